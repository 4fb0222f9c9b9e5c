"""The IPAM driver: addresses for containers, of which no two hosts of a segment assign the same.

`pools` has the subnets and the order in which their addresses are tried, `claims` decides who may
have an address, and `frames` encodes its probes and defenses: these do no I/O. `segments` sends and
receives on the bridges of networks, and `driver` has the methods that the engine calls.
"""
