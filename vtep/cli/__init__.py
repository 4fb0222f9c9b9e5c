"""`pyvtep`: options become a `Config`, which runs; nothing else happens here."""

from vtep.cli.main import main

__all__ = ["main"]
