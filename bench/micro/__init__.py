"""Benchmarks of single functions: `scripts/bench micro`.

One file for each package of the data path. Each benchmark checks its result, so that nothing is
fast because it is wrong.
"""
