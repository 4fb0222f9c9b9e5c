"""The Docker plug-in: a network driver and an IPAM driver for the engine of this host.

`server` serves HTTP on a Unix socket, and `dispatch` maps the methods of the plug-in protocol to
functions. `store` keeps state on disk.
"""
