"""BGP messages for EVPN (RFC 4271, 4760, 7432, 8365), encoded and decoded without state.

Only the address family L2VPN EVPN is understood. Functions take and return octets; what a peer may
send wrongly without the end of the session is handled as RFC 7606 demands (`vtep.wire.bgp.update`).
"""

AFI_L2VPN = 25
SAFI_EVPN = 70

EVPN = (AFI_L2VPN, SAFI_EVPN)
"""The address family of all routes here (RFC 7432, section 7)."""

AS_TRANS = 23456
"""The two-octet AS number that stands for one that needs four octets (RFC 6793, section 9)."""
