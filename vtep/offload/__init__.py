"""Offloads in software: checksum completion, segmentation of superframes, and merging (GRO)."""
