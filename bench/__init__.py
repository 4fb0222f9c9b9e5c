"""Benchmarks of pyvtep beside the kernel driver and other tunnels: `scripts/bench`.

`subjects.py` has the tunnels, `workloads.py` the traffic, `targets.py` the required figures,
`results.py` the result files, `report.py` and `plot.py` tables and plots. `micro/` has benchmarks
of single functions, `scale/` those of large configurations.
"""
