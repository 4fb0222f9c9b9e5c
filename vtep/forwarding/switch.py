"""The decisions of a VTEP, without any I/O.

Which remotes a frame goes to, whether a datagram is let in, what is learned from it, what is
dropped and why. Time is passed in. Nothing here raises on hostile input: what is not let in is
counted by reason.
"""

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from struct import Struct

from attrs import frozen

from vtep.counters import Counters, Drop, Notice
from vtep.forwarding.anycast import Gateways
from vtep.forwarding.fdb import Entry, Fdb, Filter, Learned, Remote
from vtep.forwarding.suppress import Answer, Neighbours
from vtep.wire import Buffer, ethernet, vxlan
from vtep.wire.echo import Allowance, EchoKind, EchoMessage, Status

_INNER_MIN = vxlan.HEADER_LEN + ethernet.HEADER_LEN

_DESTINATION = Struct("6s")
_KIND_BITS = vxlan.FLAG_I | vxlan.GPE_BITS
"""Bits by which a header of RFC 7348 is told from all others, in one comparison."""

_VLAN_ID = 0x0FFF
_HEADERS = Struct("!II6x6s")
"""The VXLAN header's two words, and the source MAC behind it."""

_STRANGERS_MAX = 4096
"""Accepted hosts that nobody has named which are remembered before those without any learned MAC
are forgotten."""

_ANSWERS_A_SECOND = 100
_ANSWERS_AT_ONCE = 256
"""To doctors' questions: enough for some of them at a time to find the path MTU both ways."""

Networks = tuple[IPv4Network | IPv6Network, ...]

ANYBODY: Networks = (ip_network("0.0.0.0/0"), ip_network("::/0"))
"""For `Segment`: accept datagrams from every address, as RFC 7348 does."""


class InnerVlan(StrEnum):
    """What becomes of frames with VLAN tags, in both directions (RFC 7348, section 6.1)."""

    PASS = "pass"  # noqa: S105  no password
    """They are carried as they are, as in the kernel driver."""
    STRIP = "strip"
    """They lose their tags."""
    DROP = "drop"


@frozen
class GroupPolicy:
    """What is made of the group policy extension, where it is understood at all."""

    group: int = 0
    """The group of what we send; 0 is none."""
    accepted: frozenset[int] | None = None
    """Groups whose frames are let in, 0 for those that tell none; None is every group. What a VTEP
    before us has applied its policy to is let in too."""


@frozen
class Policy:
    """The finer points of what a segment takes and sends. What is left out costs nothing."""

    reserved_bits: int = 0
    """Bits of the VXLAN header, as one number of 64, that must be zero. Those of the group policy
    extension are not among them where it is understood."""
    groups: GroupPolicy | None = None
    """None is not to know of the extension: its bits are reserved ones."""
    inner_vlan: InnerVlan = InnerVlan.PASS

    @property
    def forbidden(self) -> int:
        """Which bits of a VXLAN header have a datagram dropped."""
        spared = vxlan.GBP_USED_BITS if self.groups is not None else 0
        return self.reserved_bits & ~spared


class Segment:
    """One VNI: its remotes, what it has learned of them, and its counters.

    The remotes are the destinations of the FDB's default entry: the list to which, in its order,
    frames without a known destination are replicated (head-end replication). Those hosts, those
    of entries that were put in, and those in the networks `accept` are listened to, and no others.
    """

    def __init__(
        self,
        vni: int,
        remotes: Iterable[Remote],
        fdb: Fdb,
        *,
        own_mac: bytes,
        learning: bool,
        accept: Networks = (),
        policy: Policy = Policy(),
    ) -> None:
        self.vni = vni
        self.fdb = fdb
        self.learning = learning
        self.own_mac = own_mac
        self.counters = Counters()
        self.replies: list[bytes] = []
        """Frames for the TAP, in answer to some that were shown to `inspect`."""
        self.requests: list[bytes] = []
        """Frames for the underlay: requests that were answered, and whose answers are in doubt."""
        self.neighbours: Neighbours | None = None
        self.gateways: Gateways | None = None
        self.set_policy(policy)
        self._accept = accept
        fdb.open = bool(accept)
        self.configured: tuple[Remote, ...] = ()
        """The remotes that the configuration names."""
        self._strangers: dict[str, Remote] = {}
        self._strangers_max = _STRANGERS_MAX
        self._sources = fdb.sources
        fdb.unlisted = self._forget_host
        self.set_remotes(remotes, 0.0)

    @property
    def remotes(self) -> tuple[Remote, ...]:
        """Where frames without a known destination go."""
        default = self.fdb.default
        return default.destinations if default is not None else ()

    def set_neighbours(self, neighbours: Neighbours | None) -> None:
        """Answer ARP and ND requests from this table (`--proxy`), or not any more."""
        self.neighbours = neighbours
        self.set_policy(self.policy)

    def set_gateways(self, gateways: Gateways | None) -> None:
        """Set this host's anycast gateways (`--anycast-gateway`), or None for none."""
        self.gateways = gateways
        self.set_policy(self.policy)

    def set_policy(self, policy: Policy) -> None:
        """Have another policy from now on."""
        self.policy = policy
        self._forbidden = policy.forbidden
        self.has_ingress_policy = (
            self.neighbours is not None
            or self.gateways is not None
            or self._forbidden != 0
            or policy.groups is not None
            or policy.inner_vlan is InnerVlan.DROP
        )
        """Whether more is to be looked at in a datagram than `admit` does."""
        self.strip_vlan = policy.inner_vlan is InnerVlan.STRIP
        """Whether frames from the underlay are to lose their VLAN tags."""
        self.inspect_egress = self.neighbours is not None or policy.inner_vlan is not InnerVlan.PASS
        """Whether frames from the TAP are to be shown to `inspect` before they are sent."""

    @property
    def header(self) -> bytes:
        """What goes in front of each frame, where its destination has no VNI of its own."""
        groups = self.policy.groups
        return vxlan.pack(self.vni, groups.group if groups is not None else 0)

    def set_remotes(self, remotes: Iterable[Remote], now: float) -> None:
        """Have these be the configured remotes, in place of the former ones.

        Other destinations that the default entry was given stay (as they do in the kernel driver
        when its `remote` changes). What was learned from hosts that are not listened to any more
        is forgotten.
        """
        fdb, configured = self.fdb, tuple(remotes)
        before = fdb.keys_of(self.configured)
        others = [other for other in self.remotes if before.isdisjoint(fdb.keys_of((other,)))]
        self.configured = configured
        fdb.set_default((*configured, *others), now)

    def lacks_remotes(self) -> bool:
        """Whether one of the configured remotes was taken from the default entry."""
        known = self.fdb.keys_of(self.remotes)
        return not self.fdb.keys_of(self.configured) <= known

    def flush(self, wanted: Filter, among: Iterable[Entry]) -> int:
        """Remove what is meant from the FDB, of the entries `among`; how many destinations.

        The configured remotes stay, unless their address or `permanent` is what is asked for:
        without them, nothing would get out any more.
        """
        named = wanted.dst is not None or wanted.permanent
        return self.fdb.flush(wanted, among, () if named else self.configured)

    def set_accept(self, accept: Networks) -> None:
        """Listen to these networks from now on, besides the known hosts."""
        self._accept = accept
        self.fdb.open = bool(accept)
        strangers, self._strangers = self._strangers, {}
        for host in strangers:
            if host not in self._sources:
                self._forget_host(host)

    @property
    def accept(self) -> Networks:
        """Networks that are listened to besides the known hosts."""
        return self._accept

    def inspect(self, frame: memoryview, now: float, count: int = 1) -> memoryview:
        """What is to be sent of a frame of at least 14 octets from the TAP; it may be nothing.

        What has an answer in `replies` then goes to no remote, or only to the one that can confirm
        the answer. A superframe stands for `count` frames.
        """
        inner_vlan = self.policy.inner_vlan
        if inner_vlan is not InnerVlan.PASS and ethernet.is_tagged(frame):
            if inner_vlan is InnerVlan.DROP:
                self.counters.drop(Drop.TX_TAGGED, count=count, detail=_vlan(frame))
                return frame[:0]
            frame = ethernet.untag(frame)
        if self.neighbours is not None:
            answer = self.neighbours.answer(frame, now)
            if answer is not None:
                return self._suppress(frame, answer)
        return frame

    def _suppress(self, frame: memoryview, answer: Answer) -> memoryview:
        """Do what is to be done about a request; what is to be sent of it."""
        if answer.reply is None:
            self.counters.neigh_unconfirmed += 1
            return frame
        self.counters.neigh_answered += 1
        self.replies.append(answer.reply)
        if answer.probe is None:
            return frame[:0]
        self.counters.neigh_probed += 1
        return memoryview(answer.probe)

    def destinations(self, frame: Buffer, count: int = 1) -> Sequence[Remote]:
        """Where a frame of at least 14 octets from the TAP goes: to each of these.

        A superframe goes where the `count` frames go that it stands for.
        """
        entry = self.fdb.lookup(_DESTINATION.unpack_from(frame)[0])
        if entry is None:
            # What asks or announces goes to everybody: only that is of interest to gateways.
            if self.gateways is not None and self.gateways.keeps_in(frame):
                self.counters.drop(Drop.ANYCAST_GW_SUPPRESSED_RX)
                return ()
            self.counters.flooded += count
            entry = self.fdb.default
            if entry is None:
                mac = bytes(frame[: ethernet.MAC_LEN])
                self.counters.drop(Drop.NO_REMOTE, count=count, detail=mac)
                return ()
        entry.tx_frames += count
        return entry.destinations

    def only_destination(self, frame: Buffer) -> Remote | None:
        """Where frames for the same MAC as this one go, if that is known and one remote only."""
        entry = self.fdb.lookup(_DESTINATION.unpack_from(frame)[0])
        if entry is None or len(entry.destinations) != 1:
            return None
        return entry.destinations[0]

    def admit(
        self, mac: bytes, source: str, now: float, count: int = 1, *, learn: bool = True
    ) -> bool:
        """Judge and learn from a datagram of this VNI that came from the address `source`.

        It holds at least an Ethernet header, with the source `mac`. True if the frame is to be
        delivered to the TAP, and to the TAP only: a frame from the underlay never goes back there
        (split horizon). The judgement is that of `count` datagrams whose VXLAN header and inner
        MACs are the same.
        """
        remote = self._sources.get(source) or self._stranger(source)
        if remote is None:
            self.counters.drop(Drop.SOURCE_UNKNOWN, source, count)
            return False
        if mac[0] & 1 or mac == ethernet.MAC_ZERO:
            self.counters.drop(Drop.INNER_SOURCE_INVALID, source, count, mac)
            return False
        if mac == self.own_mac:
            self.counters.drop(Drop.INNER_SOURCE_OWN, source, count, mac)
            return False
        if self.learning:
            learned = (
                self.fdb.learn(mac, remote, now, count) if learn else self.fdb.check(mac, remote)
            )
            if learned is not Learned.REFRESHED:
                return self._learned(learned, mac, source, count)
        return True

    def admit_particular(
        self, datagram: Buffer, mac: bytes, source: str, now: float, count: int = 1
    ) -> bool:
        """The same for a segment whose policy looks at more of a datagram than all others do."""
        policy, counters = self.policy, self.counters
        header = int.from_bytes(datagram[: vxlan.HEADER_LEN], "big")
        if header & self._forbidden:
            counters.drop(Drop.RESERVED_BITS, source, count, header)
            return False
        if not self.listens_to(source):
            counters.drop(Drop.SOURCE_UNKNOWN, source, count)
            return False
        learn = True
        if policy.groups is not None:
            flags = header >> 32
            if not _lets_in(policy.groups, flags):
                counters.drop(Drop.GROUP_DENIED, source, count, _group(flags))
                return False
            learn = not (flags & vxlan.FLAG_G and flags & vxlan.FLAG_D)
        if policy.inner_vlan is InnerVlan.DROP and ethernet.is_tagged(
            datagram[vxlan.HEADER_LEN : _INNER_MIN]
        ):
            vlan = _vlan(datagram[vxlan.HEADER_LEN :])
            counters.drop(Drop.INNER_TAGGED, source, count, vlan)
            return False
        if not self.admit(mac, source, now, count, learn=learn):
            return False
        if self.gateways is None and self.neighbours is None:
            return True
        frame = datagram[vxlan.HEADER_LEN :]  # As the TAP will have it.
        if policy.inner_vlan is InnerVlan.STRIP and ethernet.is_tagged(frame):
            frame = ethernet.untag(memoryview(bytearray(frame)))
        if self.gateways is not None and self.gateways.keeps_out(frame):
            counters.drop(Drop.ANYCAST_GW_SUPPRESSED_TX, source, count)
            return False
        if self.neighbours is not None and not self.neighbours.snoop(frame, now):
            counters.neigh_full += 1
            counters.last_source[Notice.NEIGH_FULL] = source
        return True

    def sweep(self, now: float) -> bool:
        """Forget a bit of what is too old; True if more of it may be left for the next call.

        Side effect: adds to `requests`.
        """
        more = self.fdb.sweep(now)
        if self.neighbours is None:
            return more
        overdue = self.neighbours.overdue(now)
        self.counters.neigh_unconfirmed += len(overdue)
        self.requests += overdue
        return self.neighbours.sweep(now) or bool(overdue) or more

    def source(self, host: str) -> Remote | None:
        """The remote that a MAC heard from a host is behind; None where it is not listened to."""
        return self._sources.get(host) or self._stranger(host)

    def refuse_runt(self, datagram: Buffer, source: str, count: int) -> None:
        """Count datagrams with a VXLAN header and less than an Ethernet header behind it."""
        header = int.from_bytes(datagram[: vxlan.HEADER_LEN], "big")
        if header & self._forbidden:
            self.counters.drop(Drop.RESERVED_BITS, source, count, header)
        elif not self.listens_to(source):
            self.counters.drop(Drop.SOURCE_UNKNOWN, source, count)
        else:
            octets = len(datagram) - vxlan.HEADER_LEN
            self.counters.drop(Drop.INNER_RUNT, source, count, octets)

    def listens_to(self, host: str) -> bool:
        """Whether datagrams from this address are a part of the segment."""
        return host in self._sources or self._accepts(host)

    def _learned(self, learned: Learned, mac: bytes, source: str, count: int) -> bool:
        """Count what is not an everyday sign of life; False if the frame is not to be believed."""
        counters = self.counters
        if learned is Learned.ADDED:
            counters.fdb_learned += 1
        elif learned is Learned.MOVED:
            counters.fdb_moved += 1
        elif learned is Learned.FULL:
            counters.fdb_full += 1
            counters.last_source[Notice.FDB_FULL] = source
        elif learned is Learned.OVER_QUOTA:
            counters.fdb_quota += 1
            counters.last_source[Notice.FDB_QUOTA] = source
        elif learned is Learned.CONFLICT:
            counters.drop(Drop.INNER_SOURCE_STATIC, source, count, mac)
            return False
        return True

    # --- who is listened to -----------------------------------------------------------------

    def _stranger(self, host: str) -> Remote | None:
        """The remote for a host that nobody has named, if it may speak nevertheless."""
        if not self._accepts(host):
            return None
        remote = self._strangers.get(host)
        if remote is None:
            if len(self._strangers) >= self._strangers_max:
                self._forget_strangers()
            remote = self._strangers[host] = Remote(host, self.fdb.port)
        return remote

    def _accepts(self, host: str) -> bool:
        if not self._accept:
            return False
        if host in self._strangers:
            return True
        try:
            address = ip_address(host)
        except ValueError:
            return False
        return any(address in network for network in self._accept)

    def _forget_strangers(self) -> None:
        """Forget those that no entry is about, and look again when there are twice as many."""
        self._strangers = {
            host: remote for host, remote in self._strangers.items() if self.fdb.uses(remote)
        }
        self._strangers_max = max(_STRANGERS_MAX, 2 * len(self._strangers))

    def _forget_host(self, host: str) -> None:
        """Forget what was learned from a host, unless it still may speak."""
        if not self._accepts(host):
            self.fdb.flush(Filter(dst=host, dynamic=True, extern_learn=False))


def _lets_in(policy: GroupPolicy, flags: int) -> bool:
    """Whether the policy has a frame let in that came with these flags and group id."""
    if policy.accepted is None or (flags & vxlan.FLAG_G and flags & vxlan.FLAG_A):
        return True
    return _group(flags) in policy.accepted


def _group(flags: int) -> int:
    """Return the policy group that the first word of a VXLAN header names, or 0 for none."""
    return flags & vxlan.GROUP_MAX if flags & vxlan.FLAG_G else 0


def _vlan(frame: Buffer) -> int:
    """Return the VLAN of a frame that has a tag: 0 to 4095."""
    at = ethernet.HEADER_LEN
    return int.from_bytes(frame[at : at + 2], "big") & _VLAN_ID


class Switch:
    """The segments of one VTEP by VNI; a frame never crosses from one to another.

    Its own counters hold what was dropped before a segment was known. Answers to an echo go to
    `reply`, with the host and port that they are for; those of others go to `heard`, with the host
    that they are from and the time.
    """

    def __init__(
        self,
        segments: Iterable[Segment],
        port: int = vxlan.PORT,
        reply: Callable[[bytes, str, int], None] | None = None,
        heard: Callable[[EchoMessage, str, float], None] | None = None,
    ) -> None:
        self.segments = {segment.vni: segment for segment in segments}
        self.counters = Counters()
        self._port = port
        self._reply = reply
        self._heard = heard
        self._allowance = Allowance(_ANSWERS_A_SECOND, _ANSWERS_AT_ONCE)

    def datagrams_of(self, octets: Buffer, stride: int, source: str) -> int:
        """How many of these octets are datagrams of `stride`, where the first claims all of them.

        The kernel has said that there are several; the first one's inner headers say that it is
        one (see `offload.partial.is_udp_superframe`), and whoever wrote those may lie. What he
        can't write is what another datagram begins with. If that is there, the claim is not
        believed; but neither is what follows it in another VNI, since where all of it is his, he
        may have written that. 0 if it is one.
        """
        first = bytes(octets[: vxlan.HEADER_LEN])
        if not self._begins(octets[stride : stride + vxlan.HEADER_LEN]):
            return 0
        for at in range(stride, len(octets), stride):
            if octets[at : at + vxlan.HEADER_LEN] != first:
                count = -(-(len(octets) - at) // stride)
                self.counters.drop(Drop.GRO_BATCH_MISMATCH, source, count)
                return at
        return len(octets)

    def _begins(self, octets: Buffer) -> bool:
        """Whether a datagram of ours could begin so, as random octets hardly ever do."""
        if len(octets) < vxlan.HEADER_LEN:
            return False
        flags, vni_word = vxlan.HEADER.unpack(octets)
        known = flags & ~(vxlan.GBP_USED_BITS >> 32) == vxlan.FLAG_I and not vni_word & 0xFF
        return known and vni_word >> 8 in self.segments

    def receive(self, datagram: Buffer, source: str, now: float, count: int = 1) -> Segment | None:
        """Judge a datagram from the underlay; the segment to which its frame is to be delivered.

        The frame begins `vxlan.HEADER_LEN` octets into the datagram. None if it was dropped, which
        has then been counted. `count` is as in `Segment.admit`.
        """
        if len(datagram) < _INNER_MIN:
            self._refuse_runt(datagram, source, count)
            return None
        flags, vni_word, mac = _HEADERS.unpack_from(datagram)
        if flags & _KIND_BITS != vxlan.FLAG_I:
            self._refuse_invalid(datagram, source, now, count)
            return None
        segment = self.segments.get(vni_word >> 8)
        if segment is None:
            self.counters.drop(Drop.VNI_UNKNOWN, source, count, vni_word >> 8)
            return None
        if segment.has_ingress_policy:
            admitted = segment.admit_particular(datagram, mac, source, now, count)
        else:
            admitted = segment.admit(mac, source, now, count)
        return segment if admitted else None

    def _refuse_invalid(self, datagram: Buffer, source: str, now: float, count: int) -> None:
        """Answer what turns out to be a doctor's question; count whatever it is."""
        counters = self.counters
        header = int.from_bytes(datagram[: vxlan.HEADER_LEN], "big")
        if header >> 32 & vxlan.FLAG_I:
            counters.drop(Drop.HEADER_GPE, source, count, header)
            return
        probe = EchoMessage.parse(datagram)
        if probe is None or self._reply is None:
            counters.drop(Drop.FLAGS_INVALID, source, count, header)
        elif probe.kind is EchoKind.REPLY:
            counters.probes_heard += count
            if self._heard is not None:
                self._heard(probe, source, now)
        elif not self._allowance.take(now):
            counters.drop(Drop.PROBE_LIMITED, source, count)
        elif (status := self._status(probe, source)) is None:
            segment = None if probe.vni is None else self.segments.get(probe.vni)
            counters = counters if segment is None else segment.counters
            counters.drop(Drop.SOURCE_UNKNOWN, source, count)
        elif probe.permits_reply(self._port):
            counters.probes_answered += count
            self._reply(probe.reply(len(datagram), status), source, probe.port)
        else:
            counters.drop(Drop.FLAGS_INVALID, source, count, header)

    def _status(self, probe: EchoMessage, source: str) -> Status | None:
        """What is to be said to who asks; None if nothing is."""
        segment = None if probe.vni is None else self.segments.get(probe.vni)
        if segment is not None and segment.listens_to(source):
            return Status.FINE
        if not any(each.listens_to(source) for each in self.segments.values()):
            return None
        if probe.vni is None:
            return Status.FINE
        return Status.VNI_UNKNOWN if segment is None else Status.SOURCE_UNKNOWN

    def _refuse_runt(self, datagram: Buffer, source: str, count: int) -> None:
        """Count what has no room for an inner Ethernet header by what is wrong with it first."""
        if len(datagram) < vxlan.HEADER_LEN:
            self.counters.drop(Drop.HEADER_TRUNCATED, source, count, len(datagram))
            return
        flags, vni_word = vxlan.HEADER.unpack_from(datagram)
        segment = self.segments.get(vni_word >> 8)
        if flags & _KIND_BITS != vxlan.FLAG_I:
            reason = Drop.HEADER_GPE if flags & vxlan.FLAG_I else Drop.FLAGS_INVALID
            self.counters.drop(reason, source, count, flags << 32 | vni_word)
        elif segment is None:
            self.counters.drop(Drop.VNI_UNKNOWN, source, count, vni_word >> 8)
        else:
            segment.refuse_runt(datagram, source, count)
