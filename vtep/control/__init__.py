"""Steering a running VTEP: the control socket, what it offers, and its client."""
