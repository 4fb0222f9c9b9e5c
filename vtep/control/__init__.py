"""The control socket of a running VTEP: server, methods and client."""

from vtep.control.client import Client

__all__ = ["Client"]
