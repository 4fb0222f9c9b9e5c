"""The facts from which the doctor derives its findings. No I/O.

Sizes are octets of IP packets, and times are seconds. None stands for what could not be found out.
`pyvtep doctor --json` prints these facts by the names of the fields.
"""

from collections.abc import Mapping
from enum import Enum, IntEnum

from attrs import field, frozen

from vtep.doctor.evpn_facts import EvpnFacts
from vtep.fastpath.state import ON, FastPathState
from vtep.host.firewall import Verdict
from vtep.wire.echo import EchoStatus


class Refusal(IntEnum):
    """The meaning of an ICMP error about a datagram, for both IP versions."""

    PORT = 1
    """No socket has the port, or a firewall pretends that."""
    FORBIDDEN = 2
    """A firewall refuses it, and says so."""
    HOST = 3
    """The host or its network is unreachable."""


@frozen
class IcmpError:
    """An ICMP error that came back, and the host that sent it."""

    refusal: Refusal
    host: str


@frozen
class Echoes:
    """The results of a series of echo requests to one VTEP: see `vtep.wire.echo`."""

    sent: int = 0
    delays: tuple[float, ...] = ()
    """Round-trip times of the requests that got a reply."""
    status: EchoStatus | None = None
    answered_from: str | None = None
    """The source address of the replies."""
    errors: tuple[IcmpError, ...] = ()
    send_error: str | None = None
    """Why this host refused to send."""
    forbidden: bool = False
    """True if its own firewall refused."""


@frozen
class PathMtu:
    """The largest packet that passes a path in one direction."""

    size: int | None
    """None if not even the smallest tried packet passes."""
    reported_by: str | None = None
    """The host that sent an ICMP error about larger packets, if any has."""


class Encryption(Enum):
    """The encryption of the datagrams to a remote, as far as this host knows; texts of a report."""

    WIREGUARD = "encrypted by WireGuard"
    PERHAPS_IPSEC = "encrypted if one of this host's IPsec policies applies: ip xfrm policy"
    PERHAPS_VPN = "encrypted if the program behind the tun device encrypts"
    NONE = "not encrypted: see docs/wireguard.md"


@frozen
class RemoteFacts:
    """One remote, and the path to it and back."""

    host: str
    vni: int | None
    port: int
    is_own: bool = False
    """True if it is an address of this host."""
    no_route: str | None = None
    """Why this host has no route to it."""
    down: tuple[str, ...] = ()
    """Without a route: devices that are down and have an address in the remote's subnet."""
    local_gone: str | None = None
    """The address of `--local`, if this host does not have it."""
    dev_gone: str | None = None
    """The device of `--dev`, if it does not exist."""
    dev: str | None = None
    dev_mtu: int | None = None
    dev_mac: str | None = None
    gateway: str | None = None
    """The router through which it is reached, if it is not on a link of this host."""
    encryption: Encryption | None = None
    """None if there is no route to it."""
    source: str | None = None
    """The address that this host uses towards it."""
    tap: str | None = None
    """The TAP of the segment that it is a remote of."""
    socket: str | None = None
    """The control socket of its pyvtep, if commands have to name it."""
    there: Echoes = Echoes()
    """Requests whose replies came to the port that the requests were sent from."""
    back: Echoes | None = None
    """Requests whose replies came to the VXLAN port, as frames do."""
    pings: int | None = None
    """The number of `PINGS` ICMP echo requests that the host replied to."""
    macs: tuple[str, ...] | None = None
    """The MACs that replied to ARP requests for the address, if it is on a link of this host."""
    one_host: bool = False
    """True if all of them surely belong to one host."""
    mtu_there: PathMtu | None = None
    mtu_back: PathMtu | None = None
    last_seen_age: float | None = None
    """Age of the last frame from there, by the youngest FDB entry for the remote."""
    through: bool | None = None
    """True if a host behind it replied through the tunnel; None if no ping was sent."""
    by_evpn: bool = False
    """True if it is a remote by EVPN only: a BGP session vouches for it."""
    silent_vnis: tuple[int, ...] = ()
    """The VNIs in which it sends no echo replies, if these are several."""
    firewall: Verdict | None = None
    """The rules of this host's firewall that drop datagrams from there to the VXLAN port."""
    firewall_new: Verdict | None = None
    """The same, if the rules accept datagrams of a flow that this host has opened, and frames in
    both directions are one flow (see `vtep.doctor.filtering`)."""
    firewall_out: Verdict | None = None
    """The rules of this host's firewall that drop datagrams to the VXLAN port there."""


@frozen
class PortFacts:
    """Another port of a TAP's bridge."""

    name: str
    mtu: int
    isolated: bool = False


@frozen
class Blocked:
    """A kind of traffic that a firewall drops, such as "IPv4", and the rules that do."""

    what: str
    verdict: Verdict


@frozen
class BridgeFacts:
    """The bridge that a TAP is a port of; state and flags are those of this port."""

    name: str
    up: bool
    mtu: int
    addresses: tuple[str, ...] = ()
    """Addresses of the bridge with prefix lengths, but for link-local ones."""
    state: str = "forwarding"
    isolated: bool = False
    hairpin: bool = False
    learning: bool = False
    """True if the bridge learns MACs at this port."""
    others: tuple[PortFacts, ...] = ()
    own_netfilter: bool = False
    """True if an option of this bridge, not a sysctl for all, passes frames to the IP rules."""
    packets: tuple[Blocked, ...] = ()
    """IP that crosses the bridge and is dropped by those rules."""
    vlans: Mapping[int, bool] | None = None
    """The VLANs of the TAP on a bridge that filters them, and True for tagged frames; None if the
    bridge does not filter."""


@frozen
class Drops:
    """The drop counters of a segment or a process, by reason."""

    count: Mapping[str, int] = field(factory=dict)
    """Since the counters were reset, or since the start."""
    increase: Mapping[str, int] = field(factory=dict)
    """The part of it that was counted during the examination."""
    last_source: Mapping[str, str] = field(factory=dict)
    """The underlay address of the last dropped datagram."""
    age: Mapping[str, float] = field(factory=dict)
    """Seconds since the counter last increased."""


@frozen
class Conflict:
    """An own address that another host has, too."""

    address: str
    """With its prefix length."""
    dev: str
    """The device of this host that has it."""
    mac: str | None = None
    """The MAC address of the other host."""


@frozen
class HeldMac:
    """A MAC that moves too often, and is held where it is."""

    mac: str
    remote: str
    seconds: float
    """The time for which it is still held."""


@frozen
class BlockedRemote:
    """A remote with which flooding is stopped, since a loop leads through it."""

    host: str
    seconds: float
    """The time for which it is still stopped."""


@frozen
class NameFacts:
    """A host name among the remotes of a segment that could not be looked up the last time."""

    name: str
    error: str
    addresses: tuple[str, ...] = ()
    """The addresses of the last answer, which it keeps."""


@frozen
class SegmentFacts:
    """A segment of a running pyvtep, with its TAP."""

    vni: int
    tap: str
    mtu: int
    """MTU of the tunnel."""
    tap_mtu: int
    """MTU of the TAP, which may be larger."""
    dstport: int
    up: bool = True
    addresses: tuple[str, ...] = ()
    """Addresses of the TAP with prefix lengths, but for link-local ones."""
    bridge: BridgeFacts | None = None
    frames: tuple[Blocked, ...] = ()
    """Frames that are dropped by rules for frames, at the TAP or on its bridge."""
    packets: tuple[Blocked, ...] = ()
    """IP between the segment and this host itself that is dropped by rules for IP."""
    options: Mapping[str, object] = field(factory=dict)
    offload: frozenset[str] = frozenset()
    fast_path: FastPathState = ON
    drops: Drops = Drops()
    conflicts: tuple[Conflict, ...] = ()
    """Addresses of the TAP or its bridge that a host on the other side of the tunnel has, too."""
    held: tuple[HeldMac, ...] = ()
    loops: tuple[BlockedRemote, ...] = ()
    names: tuple[NameFacts, ...] = ()
    socket: str | None = None
    """The control socket of its pyvtep, if commands have to name it."""
    devices: tuple[str, ...] = ()
    """The underlay devices that it uses."""
    netns: str | None = None
    """The network namespace of its TAP, as `--netns` names it, if it is another one."""


@frozen
class ProcessFacts:
    """The drops of a running pyvtep that belong to none of its segments."""

    drops: Drops
    port: int
    devices: tuple[str, ...] = ()
    socket: str | None = None
    """Its control socket, if commands have to name it."""


@frozen
class HolderFacts:
    """The holder of a UDP port of this host."""

    port: int
    process: str | None = None
    """Name and PID of the process; None if it is a kernel device, or not visible."""
    pyvtep: bool = False
    devices: tuple[str, ...] = ()
    """Kernel VXLAN devices that are up and use the port."""


@frozen
class HostFacts:
    """The host on which the doctor runs."""

    root: bool
    kernel: str
    holders: tuple[HolderFacts, ...] = ()
    own_conflicts: tuple[Conflict, ...] = ()
    """Own underlay addresses that another host has, too."""
    underlay: Mapping[str, tuple[str, ...]] = field(factory=dict)
    """Addresses with prefix lengths by underlay device, but for link-local ones."""
    checksum_errors: int = 0
    """UDP datagrams that this network namespace dropped for their checksum since its start."""
    checksum_errors_increase: int = 0
    """The part of it that was counted during the examination."""
    tun_problem: str | None = None
    """Why this user cannot open /dev/net/tun."""
    restricts_user_namespaces: bool = False
    """True if AppArmor takes the capabilities of users in their own user namespaces."""


@frozen
class Facts:
    """All facts of an examination."""

    host: HostFacts
    segments: tuple[SegmentFacts, ...] = ()
    remotes: tuple[RemoteFacts, ...] = ()
    pyvteps: int = 0
    """The number of running pyvteps that were asked."""
    drops: tuple[ProcessFacts, ...] = ()
    """For each of them, the drops that belong to none of its segments."""
    evpn: tuple[EvpnFacts, ...] = ()
    """EVPN of those of them that have it."""
