"""Docker bridge networks of several hosts as one segment.

`network` judges what an engine says, `client` asks it, `attachment` keeps a VTEP on the bridge of a
network whatever becomes of either, and `record` lets other processes know.
"""
