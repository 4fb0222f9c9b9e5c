"""Benchmarks of pyvtep beside the kernel driver and other tunnels: `scripts/bench`.

`subjects.py` has the tunnels, `underlay.py` the modes, `workloads.py` the traffic, `plan.py` their
combinations, `targets.py` the required figures. `results.py` has the result files, and `report.py`,
`plot.py` and `markdown.py` the tables and plots. `micro/` has benchmarks of single functions,
`scale/` those of large configurations.
"""
