"""The daemon: ports, listeners, reconfiguration, housekeeping and state of a running VTEP."""
