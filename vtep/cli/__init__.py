"""The `pyvtep` command line: it runs a VTEP, or asks and changes a running one."""

from vtep.cli.main import main

__all__ = ["main"]
