"""Docker bridge networks of several hosts, joined to one segment.

`client` queries a Docker engine, `network` parses its answers and finds problems in them,
`attachment` keeps a VTEP on the bridge of a network, and `record` publishes it for other
processes.
"""
