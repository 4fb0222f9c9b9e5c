"""`pyvtep doctor`: faults between this host and the other VTEPs, and how to fix them.

1. `examine` collects facts (`facts`) from this host (`local_network`, `procfs`, `filtering`), from
   the running pyvteps (`running`), and from the remotes and their neighbors (`echo`, `neighbours`).
2. `findings` derives the findings from the facts alone, with the checks in `checks`.
"""
