"""`pyvtep top`: the rates of a running VTEP, as a screen or as rows.

It is a process of its own, which polls the control socket. `rates`, `macs`, `tables` and `view` do
no I/O and know no terminal: statuses go in, and rows and lines of text come out. `screen` shows the
lines with textual, and `batch` prints the rows.
"""
