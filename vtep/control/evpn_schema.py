"""The objects about EVPN in answers of the control socket and of the speaker's own socket.

Ages are in seconds. What the daemon shows is from the last report of the speaker, whose age is
`EvpnSpeaker.report_age`, by which the ages of sessions and duplicates have increased since.
"""

from typing import Final, TypedDict

EVPN_VIEWS: Final = ("summary", "sessions", "routes", "macs", "vteps", "moves", "duplicates")
"""Values of `what` of the method `evpn.show`.

A summary is an `EvpnSummary`; the others are lists of `EvpnSession`, `EvpnRoute`, `EvpnMac`,
`EvpnVtep`, `EvpnMove` and `EvpnDuplicate`.
"""

EVPN_ERRORS: Final = (
    "connect-refused",
    "no-route",
    "timeout",
    "closed-before-open",
    "notification-received",
    "notification-sent",
    "wrong-asn",
    "no-evpn-family",
    "hold-expired",
    "closed",
    "local-address",
    "no-md5",
)
"""Values of `EvpnSession.last_error_kind`.

A timeout is a neighbour that does not answer at all; closed-before-open one that closes the
connection before it sends an OPEN, as it does not know this host; closed one that ends an
established session without a reason. local-address is a source address that cannot be used, and
no-md5 a kernel that cannot sign segments. wrong-asn and no-evpn-family may be told by either side.
"""


class EvpnSession(TypedDict):
    """The BGP session with a neighbour."""

    neighbor: str
    """Its address as configured; a link-local one with %DEVICE."""
    port: int
    asn: int
    """The autonomous system number of this host."""
    remote_asn: int | None
    """That of the neighbour: of its last OPEN, else as configured; None if both are unknown."""
    state: str
    """idle, connect, active, open-sent, open-confirm or established (RFC 4271, 8.2.2)."""
    age: float
    """Seconds in this state."""
    was_established: bool
    """True if it is, or has been, established since the speaker started, also with settings that
    have changed since."""
    local: str | None
    """The local address of the connection; None without one."""
    source: str | None
    """The address that it is to be opened from: `local` of the neighbour, or `--local`; None for
    that which the kernel chooses."""
    router_id: str | None
    """The BGP identifier of the neighbour; None until its OPEN."""
    hold_time: int | None
    """The negotiated hold time; None until then, and 0 for no keepalives."""
    passive: bool
    """True if only the neighbour connects."""
    password: bool
    """True if segments are signed (TCP MD5, RFC 2385)."""
    routes_received: int
    """Routes of the neighbour that are valid now, imported or not."""
    routes_announced: int
    """Own routes that it has now."""
    end_of_rib: bool
    """True if it has sent all its routes (RFC 4724, 2) since the session was established."""
    last_error: str | None
    """Why the last session or attempt ended: what failed, and what to do; None if none did."""
    last_error_kind: str | None
    """One of `EVPN_ERRORS`."""
    last_error_age: float | None


class EvpnSegment(TypedDict):
    """A VNI with EVPN."""

    vni: int
    rd: str
    """The route distinguisher of its routes."""
    import_targets: list[str] | None
    """Route targets that are imported; None for those derived from the VNI, of any AS."""
    export_targets: list[str]
    local: list[str]
    """The own VTEP addresses, which are the next hops of its routes."""
    vteps: int
    """Remote VTEPs that want flooded frames: those with a route of type 3."""
    macs: int
    """Remote MACs in the FDB."""
    neighbours: int
    """IP addresses of remote MACs that ARP and ND are answered for; none without `--proxy`."""
    announced: int
    """Own routes, of all types."""
    conflicts: int
    """MACs that are static here or sticky elsewhere, and are announced by another VTEP, too."""
    moves: int
    """Moves of MACs between VTEPs since the speaker started."""


class EvpnUnmatched(TypedDict):
    """Routes of a VTEP that no VNI imports, since no route target matches.

    Those with a VNI of this host in their label are an item for each VNI, and the rest is another.
    """

    neighbor: str
    vtep: str
    """Their next hop."""
    route_targets: list[str]
    """All that these routes have."""
    import_target: str | None
    """The one to import: routes of no other VNI have it. None if there is none, or several VNIs."""
    vnis: list[int]
    """The VNIs in their labels."""


class EvpnLabelConflict(TypedDict):
    """Routes of a VTEP whose derived route target and label name two VNIs; they are ignored."""

    neighbor: str
    vtep: str
    vni: int
    """The VNI of the route target."""
    label: int
    """The VNI of the label."""
    route_targets: list[str]


class EvpnReplacedNextHop(TypedDict):
    """A neighbour that is the next hop of routes of others, and no VTEP itself."""

    neighbor: str
    vteps: list[str]
    """The VTEPs that have made the routes."""
    vnis: list[int]


class EvpnDuplicate(TypedDict):
    """A MAC that moves too often between VTEPs (RFC 7432, 15.1), or that two of them keep."""

    vni: int
    mac: str
    state: str
    """warned, or held: changes of the MAC are then ignored until it is released. conflict: it is a
    MAC of this host itself, and another VTEP announces it, too."""
    sequence: int
    """Its mobility sequence number."""
    moves: int
    """Moves within the time of `duplicate-time`."""
    vteps: list[str]
    """The VTEPs, and "local", between which it moved."""
    age: float
    """Seconds since it was found."""


ITEMS_MAX: Final = 1000
"""Items of a list in a report, but of sessions and of VNIs, which have no limit."""

VALUES_MAX: Final = 100
"""Values in a list of an item, such as the route targets of an `EvpnUnmatched`."""


class EvpnReport(TypedDict):
    """The report of the speaker to the daemon (`evpn.report`).

    Longer lists are cut (`ITEMS_MAX`, `VALUES_MAX`), and what is about the VNIs of this host comes
    first. An `EvpnSummary` has all.
    """

    sessions: list[EvpnSession]
    segments: list[EvpnSegment]
    unmatched: list[EvpnUnmatched]
    label_conflicts: list[EvpnLabelConflict]
    duplicates: list[EvpnDuplicate]
    replaced_next_hops: list[EvpnReplacedNextHop]
    ignored: dict[str, int]
    """Routes that are not used, by their type: "1", "4", "5" and so on."""
    not_installed: dict[str, int]
    """Routes of types 2 and 3 that are not used, or not entirely, by `EvpnRoute.reason`."""
    problems: list[str]
    """Other problems of the speaker, each with what to do, such as a port that is taken."""


SPEAKER_STATES: Final = ("starting", "running", "silent", "failed")
"""Values of `EvpnSpeaker.state`.

starting: not attached yet. silent: it runs, but has not reported for `REPORT_LIMIT_S`. failed: it
has ended, and is started again.
"""

REPORT_LIMIT_S: Final = 15.0
"""Seconds without a report after which the speaker is silent: it sends one every five seconds."""


class EvpnSpeaker(TypedDict):
    """The process that speaks BGP, as the daemon sees it."""

    pid: int | None
    """None if it does not run."""
    state: str
    """One of `SPEAKER_STATES`."""
    age: float
    """Seconds in this state."""
    version: str | None
    """Its version, which is older than that of the daemon after an upgrade; None until attached."""
    restarts: int
    """Starts after the first one, since the daemon started."""
    last_error: str | None
    """Why it ended the last time; None if it never did."""
    report_age: float | None
    """Seconds since its last report; None without one."""


class EvpnStatus(EvpnReport):
    """The state of EVPN in a pyvtep: the speaker, and its last report (empty without one)."""

    speaker: EvpnSpeaker


class EvpnVtep(TypedDict):
    """A remote VTEP of a VNI."""

    vni: int
    vtep: str
    neighbor: str
    """The session by which its best route came."""
    flood: bool
    """True if it wants flooded frames: it has announced a route of type 3."""
    macs: int
    reason: str | None
    """The reason why none of its entries is installed, as in `EvpnRoute`; None if one is."""
    stale: bool
    """True if the session that announced it is down, and its routes are kept for a while."""
    age: float


class EvpnMove(TypedDict):
    """A move of a MAC from one VTEP to another."""

    vni: int
    mac: str
    old: str | None
    """The VTEP that it was at; None for this host."""
    new: str | None
    sequence: int
    """The mobility sequence number after the move."""
    age: float


class EvpnMac(TypedDict):
    """A MAC of a VNI, local or remote."""

    vni: int
    mac: str
    vtep: str | None
    """The remote VTEP; None if the MAC is local."""
    neighbor: str | None
    """The session by which its best route came; None if the MAC is local."""
    ip: list[str]
    sequence: int
    sticky: bool
    state: str
    """active, stale (kept without a session), duplicate (it moved too often) or held."""
    reason: str | None
    """The reason why it is not in the FDB, as in `EvpnRoute`; None if it is, or is local."""
    moves: int
    """Moves within the time of `duplicate-time`."""
    age: float
    """Seconds since it is at this VTEP."""


class EvpnRoute(TypedDict):
    """An EVPN route, own or received."""

    neighbor: str | None
    """The neighbour that sent it; None for an own route."""
    vni: int | None
    """The VNI that imports it, or which it is of; None if none imports it."""
    type: int
    """2: MAC, or MAC and IP; 3: inclusive multicast; others are ignored."""
    rd: str
    ethernet_tag: int
    mac: str | None
    ip: str | None
    """The address of a MAC+IP route, or the originating router of a type 3."""
    esi: str | None
    """The Ethernet segment as hexadecimal octets; None if it is zero."""
    label: int | None
    """The VNI in the route."""
    next_hop: str | None
    """The VTEP; None for an own route before it is sent."""
    route_targets: list[str]
    sequence: int
    sticky: bool
    default_gateway: bool
    router: bool
    best: bool
    """True if it is used, or announced."""
    reason: str | None
    """The reason why a received route is not used: own-route, router-id, as-loop, next-hop,
    encapsulation, tunnel-type, route-target, label, mac, own-mac, sticky, anycast-gateway,
    ip-version or refused (by the daemon); or why only its IP address is not: neighbour-ip or
    neighbour-refused. None if all of it can be used."""
    stale: bool
    age: float


class EvpnSummary(EvpnReport):
    """The answer of the speaker to `evpn.show` with `what` summary."""

    vteps: list[EvpnVtep]
    moves: list[EvpnMove]
    """The latest ones, the last one first; at most 100."""
