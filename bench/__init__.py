"""Measurements of pyvtep beside the kernel driver and other tunnels: `scripts/bench`.

`subjects.py` knows the tunnels, `workloads.py` what is done to them, `targets.py` what is demanded
of the figures, `results.py` how they are kept, `report.py` and `plot.py` how they are shown.
`micro/` has benchmarks of single functions.
"""
