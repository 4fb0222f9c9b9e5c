"""The `pyvtep` command line: it runs a VTEP, or queries and changes a running one."""

from vtep.cli.main import main

__all__ = ["main"]
