"""What a doctor knows before he says what is wrong. Sizes are octets of IP packets, times seconds.

None is always: it could not be found out.
"""

from collections.abc import Mapping
from enum import IntEnum

from attrs import field, frozen

from vtep.firewall import Verdict
from vtep.probe import Status


class Refusal(IntEnum):
    """What an ICMP error says of a datagram, whichever IP version it is of."""

    PORT = 1
    """Nothing listens there, or a firewall pretends that."""
    FORBIDDEN = 2
    """A firewall says that it is one."""
    HOST = 3
    """The host, or its network, can't be reached."""


@frozen
class IcmpError:
    """An ICMP error that came back, and the host that sent it."""

    refusal: Refusal
    host: str


@frozen
class Echoes:
    """What became of questions of the doctor's echo: see `vtep.probe`."""

    sent: int = 0
    delays: tuple[float, ...] = ()
    """From each question to its answer."""
    status: Status | None = None
    answered_from: str | None = None
    """The address that the answers have as their source."""
    errors: tuple[IcmpError, ...] = ()
    send_error: str | None = None
    """Why this host refused to send."""
    forbidden: bool = False
    """That was its own firewall."""


@frozen
class PathMtu:
    """The largest packet that passes one way."""

    size: int | None
    """None: not even the smallest one tried."""
    told_by: str | None = None
    """Who has sent an ICMP error about larger ones; None if nobody has."""


@frozen
class RemoteFacts:
    """What is known of the way to one remote and back."""

    host: str
    vni: int | None
    port: int
    is_own: bool = False
    """It is an address of this host."""
    no_route: str | None = None
    """Why this host has none."""
    dev: str | None = None
    dev_mtu: int | None = None
    dev_mac: str | None = None
    gateway: str | None = None
    """The router through which it is reached, if it is not on a link of this host."""
    source: str | None = None
    """The address that this host uses towards it."""
    there: Echoes = Echoes()
    """Questions whose answers were to come back to where they were sent from."""
    back: Echoes | None = None
    """Those whose answers were to come to the VXLAN port, as frames do."""
    pings: int | None = None
    """How many of `PINGS` ICMP echo requests the host has answered."""
    macs: tuple[str, ...] | None = None
    """Who has answered ARP requests for the address, if it is on a link of this host."""
    mtu_there: PathMtu | None = None
    mtu_back: PathMtu | None = None
    heard: float | None = None
    """How long ago a frame came from there, by the youngest FDB entry behind it."""
    through: bool | None = None
    """Whether somebody behind it has answered through the tunnel; None if nobody was asked."""
    firewall: Verdict | None = None
    """What this host's own firewall does to datagrams from there to the VXLAN port."""


@frozen
class PortFacts:
    """Another port of a TAP's bridge."""

    name: str
    mtu: int
    isolated: bool = False


@frozen
class BridgeFacts:
    """The bridge that a TAP is a port of; state and flags are those of the TAP there."""

    name: str
    up: bool
    mtu: int
    state: str = "forwarding"
    isolated: bool = False
    hairpin: bool = False
    others: tuple[PortFacts, ...] = ()
    netfilter: bool = False
    """Whether frames on it go through the rules for IP."""
    forward: Verdict | None = None
    """What those rules do, then, to frames that cross it."""


@frozen
class Drops:
    """What a pyvtep has dropped, by reason."""

    count: Mapping[str, int] = field(factory=dict)
    meanwhile: Mapping[str, int] = field(factory=dict)
    """Of that, while the doctor looked."""
    last_source: Mapping[str, str] = field(factory=dict)
    """The underlay address of the last one."""


@frozen
class SegmentFacts:
    """What a running pyvtep says of one of its segments, and what is known of the TAP."""

    vni: int
    tap: str
    mtu: int
    """What the tunnel carries."""
    tap_mtu: int
    """The TAP's own, which may be more."""
    dstport: int
    up: bool = True
    addresses: tuple[str, ...] = ()
    """Those of the TAP, without link-local ones."""
    bridge: BridgeFacts | None = None
    options: Mapping[str, object] = field(factory=dict)
    offload: frozenset[str] = frozenset()
    drops: Drops = Drops()
    conflicts: Mapping[str, str] = field(factory=dict)
    """Addresses of the TAP or its bridge that somebody beyond the tunnel has too, with its MAC."""


@frozen
class HolderFacts:
    """Who has a UDP port on this host."""

    port: int
    process: str | None = None
    """Name and number of the process; None if it is a kernel device, or can't be seen."""
    pyvtep: bool = False
    devices: tuple[str, ...] = ()
    """Kernel VXLAN devices that are up and use it."""


@frozen
class HostFacts:
    """What is known of this host itself."""

    root: bool
    kernel: str
    holders: tuple[HolderFacts, ...] = ()
    own_conflicts: Mapping[str, str] = field(factory=dict)
    """Own addresses that another host has too, with its MAC, or with "" if that is not known."""
    checksum_errors: int = 0
    """UDP datagrams dropped for their checksum, since the host was started."""
    checksum_errors_meanwhile: int = 0


@frozen
class Facts:
    """Everything."""

    host: HostFacts
    segments: tuple[SegmentFacts, ...] = ()
    remotes: tuple[RemoteFacts, ...] = ()
    pyvteps: int = 0
    """How many that run here have been asked."""
    drops: tuple[Drops, ...] = ()
    """Of each of them, what came for none of its segments."""
