"""The EVPN speaker: BGP sessions, routes, and the entries of this host's bridges."""
