"""Tunnel GSO: superframes sent inside the tunnel, for a NIC or the receiver to segment."""
