"""The facts about BGP EVPN from which the doctor derives findings. No I/O.

Times are seconds, and sizes octets. None stands for what could not be found out.
"""

from attrs import frozen

from vtep.control.evpn_schema import (
    EvpnDuplicate,
    EvpnLabelConflict,
    EvpnReplacedNextHop,
    EvpnRoute,
    EvpnSegment,
    EvpnSession,
    EvpnSpeaker,
    EvpnUnmatched,
)


@frozen
class Md5Counters:
    """TCP segments that this network namespace has dropped for their MD5 signature (RFC 2385)."""

    missing: int = 0
    """Those without a signature, for a connection that has a password (TCPMD5NotFound)."""
    unexpected: int = 0
    """Those with a signature, for a connection that has no password (TCPMD5Unexpected)."""
    wrong: int = 0
    """Those whose signature is of another password (TCPMD5Failure)."""


@frozen
class TcpState:
    """The TCP connection of a session, as the kernel has it."""

    unacknowledged: int
    """Octets that were sent, or wait to be sent, and were not acknowledged."""
    retransmits: int
    """Retransmission timeouts in a row without an acknowledgement."""


@frozen
class NeighborFacts:
    """A BGP neighbour, the session with it, and the path to it."""

    session: EvpnSession
    is_own: bool = False
    """True if it is an address of this host."""
    local_gone: str | None = None
    """The source address of its session, if this host does not have it."""
    no_device: str | None = None
    """The device in its link-local address, if this host has no such device."""
    no_route: str | None = None
    """Why this host has no route to it."""
    down: tuple[str, ...] = ()
    """Without a route: devices that are down and have an address in its subnet."""
    dev: str | None = None
    dev_mtu: int | None = None
    gateway: str | None = None
    """The router through which it is reached, if it is not on a link of this host."""
    source: str | None = None
    """The address that the kernel chooses towards it, unless a connection has one already."""
    pings: int | None = None
    """The number of small ICMP echo requests that it replied to, of 3."""
    large_pings: int | None = None
    """The number of those of the MTU of the device, unfragmented, that it replied to, of 3."""
    unsigned: str | None = None
    """The answer to a TCP SYN without a signature, for a session with a password that got none:
    accepted, refused or silent."""
    tcp: TcpState | None = None


@frozen
class EvpnFacts:
    """EVPN of one pyvtep, as its daemon and its speaker answer."""

    speaker: EvpnSpeaker
    version: str
    """The version of the daemon."""
    neighbors: tuple[NeighborFacts, ...] = ()
    segments: tuple[EvpnSegment, ...] = ()
    multicast: tuple[EvpnRoute, ...] = ()
    """Routes of type 3 that neighbours have sent: one of each VTEP and VNI."""
    unmatched: tuple[EvpnUnmatched, ...] = ()
    label_conflicts: tuple[EvpnLabelConflict, ...] = ()
    duplicates: tuple[EvpnDuplicate, ...] = ()
    replaced_next_hops: tuple[EvpnReplacedNextHop, ...] = ()
    problems: tuple[str, ...] = ()
    md5: Md5Counters | None = None
    socket: str | None = None
    """The control socket of the pyvtep, if commands have to name it."""
