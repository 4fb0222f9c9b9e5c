"""What a doctor knows before he says what is wrong. Sizes are octets of IP packets, times seconds.

None is always: it could not be found out.
"""

from collections.abc import Mapping
from enum import IntEnum

from attrs import field, frozen

from vtep.host.firewall import Verdict
from vtep.wire.echo import Status


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
    """What became of questions of the doctor's echo: see `vtep.wire.echo`."""

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
    down: tuple[str, ...] = ()
    """Where it has none, the devices that are down and have an address in the remote's subnet."""
    local_gone: str | None = None
    """The address of `--local`, if this host does not have it."""
    dev_gone: str | None = None
    """The device of `--dev`, if it does not exist."""
    dev: str | None = None
    dev_mtu: int | None = None
    dev_mac: str | None = None
    gateway: str | None = None
    """The router through which it is reached, if it is not on a link of this host."""
    source: str | None = None
    """The address that this host uses towards it."""
    tap: str | None = None
    """The TAP of the segment that it is a remote of."""
    socket: str | None = None
    """The control socket of its pyvtep, if commands have to name it."""
    there: Echoes = Echoes()
    """Questions whose answers were to come back to where they were sent from."""
    back: Echoes | None = None
    """Those whose answers were to come to the VXLAN port, as frames do."""
    pings: int | None = None
    """How many of `PINGS` ICMP echo requests the host has answered."""
    macs: tuple[str, ...] | None = None
    """Who has answered ARP requests for the address, if it is on a link of this host."""
    one_host: bool = False
    """Whether they are surely of one host."""
    mtu_there: PathMtu | None = None
    mtu_back: PathMtu | None = None
    heard: float | None = None
    """How long ago a frame came from there, by the youngest FDB entry behind it."""
    through: bool | None = None
    """Whether somebody behind it has answered through the tunnel; None if nobody was asked."""
    firewall: Verdict | None = None
    """What of this host's own firewall drops datagrams from there to the VXLAN port."""
    firewall_out: Verdict | None = None
    """What of it drops datagrams to the VXLAN port there."""


@frozen
class PortFacts:
    """Another port of a TAP's bridge."""

    name: str
    mtu: int
    isolated: bool = False


@frozen
class Blocked:
    """What a firewall drops, such as "IPv4", and by which rules."""

    what: str
    verdict: Verdict


@frozen
class BridgeFacts:
    """The bridge that a TAP is a port of; state and flags are those of the TAP there."""

    name: str
    up: bool
    mtu: int
    addresses: tuple[str, ...] = ()
    """Addresses of the bridge with their prefix lengths, without link-local ones."""
    state: str = "forwarding"
    isolated: bool = False
    hairpin: bool = False
    others: tuple[PortFacts, ...] = ()
    own_netfilter: bool = False
    """Whether an option of this bridge, not a setting for all, takes frames to the rules for IP."""
    packets: tuple[Blocked, ...] = ()
    """IP that crosses it and is dropped by those rules."""


@frozen
class Drops:
    """What a pyvtep has dropped, by reason."""

    count: Mapping[str, int] = field(factory=dict)
    """Since the counters were reset, or since its start."""
    increase: Mapping[str, int] = field(factory=dict)
    """Of that, while the doctor looked."""
    last_source: Mapping[str, str] = field(factory=dict)
    """The underlay address of the last one."""
    age: Mapping[str, float] = field(factory=dict)
    """Seconds since the counter last increased."""


@frozen
class Conflict:
    """An own address that another host has too."""

    address: str
    """With its prefix length."""
    dev: str
    """The device of this host that has it."""
    mac: str | None = None
    """The MAC address of the other host."""


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
    """Addresses of the TAP with their prefix lengths, without link-local ones."""
    bridge: BridgeFacts | None = None
    frames: tuple[Blocked, ...] = ()
    """Frames that are dropped by rules for frames, at the TAP or on its bridge."""
    packets: tuple[Blocked, ...] = ()
    """IP between the segment and this host itself that is dropped by rules for IP."""
    options: Mapping[str, object] = field(factory=dict)
    offload: frozenset[str] = frozenset()
    drops: Drops = Drops()
    conflicts: tuple[Conflict, ...] = ()
    """Addresses of the TAP or its bridge that a host beyond the tunnel has too."""
    socket: str | None = None
    """The control socket of its pyvtep, if commands have to name it."""
    devices: tuple[str, ...] = ()
    """The underlay devices that it uses."""


@frozen
class ProcessFacts:
    """What a running pyvtep dropped that was for none of its segments."""

    drops: Drops
    port: int
    devices: tuple[str, ...] = ()
    socket: str | None = None
    """Its control socket, if commands have to name it."""


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
    own_conflicts: tuple[Conflict, ...] = ()
    """Own underlay addresses that another host has too."""
    underlay: Mapping[str, tuple[str, ...]] = field(factory=dict)
    """By underlay device, its addresses with their prefix lengths, without link-local ones."""
    checksum_errors: int = 0
    """UDP datagrams that this network namespace dropped for their checksum, since its start."""
    checksum_errors_increase: int = 0
    """Of that, while the doctor looked."""


@frozen
class Facts:
    """Everything."""

    host: HostFacts
    segments: tuple[SegmentFacts, ...] = ()
    remotes: tuple[RemoteFacts, ...] = ()
    pyvteps: int = 0
    """How many that run here have been asked."""
    drops: tuple[ProcessFacts, ...] = ()
    """Of each of them, what it dropped that was for none of its segments."""
