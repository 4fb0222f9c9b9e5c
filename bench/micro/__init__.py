"""Benchmarks of single functions: `scripts/bench micro`.

One file for each room of the data path. Each benchmark checks what it got, so that nothing is fast
by being wrong. What belongs to a room that grows, such as splitting and merging in `vtep/offload`,
goes into that room's file: `test_offload.py`.
"""
