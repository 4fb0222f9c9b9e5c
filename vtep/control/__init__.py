"""Steering a running VTEP: the control socket, what it offers, and its client."""

from vtep.control.client import Client

__all__ = ["Client"]
