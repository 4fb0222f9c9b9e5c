"""The host's network: links, routes, TAP set-up, events, firewall rules, address probes.

Functions that take a netlink connection block for some milliseconds, and pyroute2 runs an event
loop of its own inside them. Call them in a thread that has no running loop; none of them is for the
path of a frame.
"""
