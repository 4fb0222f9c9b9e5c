"""Forwarding decisions without I/O: FDB, segments, policy, ARP/ND suppression, anycast gateways."""
