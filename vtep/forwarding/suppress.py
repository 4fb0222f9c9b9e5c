"""ARP and ND suppression: requests for remote hosts are answered locally instead of flooded.

A table of neighbours, that is, IP addresses with their MACs, is configured or learned from the ARP
packets and ND messages that the underlay delivers. A request that the table cannot answer is
flooded as without suppression. Requests that test whether a host is alive or an address is in use
are never answered: RFC 5227 probes, announcements, duplicate address detection and unicast probes.

An address can move to another MAC without an announcement. So a learned neighbour answers requests
only while it is *confirmed*, similar to the kernel's NUD (RFC 4861, section 7.3):

- A neighbour is confirmed for a while by ARP or ND from its MAC, if the message came from the
  remote at which the FDB has that MAC.
- An answered request is also sent to the neighbour, and only to it. If the neighbour does not
  confirm in time, the request is flooded after all, so that a new owner of the address can answer.
- A neighbour becomes doubtful by a conflicting claim, by a move of its MAC to another remote, and
  by a requester that repeats its request. Requests for a doubtful neighbour are flooded until it is
  confirmed again.

A configured neighbour always answers, and so does one that a control plane has added
(`extern_learn`). Neither is changed by messages; the control plane deletes its own ones only.
"""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple, TypeAlias

from attrs import define

from vtep.errors import ConfigError, NeighbourError
from vtep.forwarding.fdb import Fdb, Remote
from vtep.wire import Buffer, arp, ethernet, nd

_REACHABLE_S = 30.0
"""Seconds for which a message confirms its sender: base_reachable_time of Linux, and REACHABLE_TIME
of RFC 4861, section 10."""

_REPEAT_S = 5.0
"""Seconds within which a second request of the same host means that the answer did not help."""

_CONFIRM_S = 1.1
"""Seconds that a neighbour has to confirm an answer. After it, a flooded request gets its replies
more than a second after the answer, as Linux ignores a contradicting reply within a second (sysctl
locktime)."""

_OVERDUE_MAX = 50
"""Requests that are flooded in one call, which takes half a millisecond."""

Vlan: TypeAlias = tuple[int, ...]
"""The VLAN ids of a frame's tags, the outer one first. Each VLAN has its own neighbours."""

_Key: TypeAlias = tuple[Vlan, bytes]


@define
class Neighbour:
    """An IP address and the MAC that has it."""

    vlan: Vlan
    packed: bytes
    mac: bytes
    updated: float
    """Time of the last message from the neighbour, or of the configuration."""
    permanent: bool
    """The neighbour is configured, or of a control plane: it neither changes nor expires."""
    router: bool = False
    extern_learn: bool = False
    """A control plane has added the neighbour."""
    remotes: tuple[Remote, ...] | None = None
    """The destinations of the MAC in the FDB at the time `updated`."""
    doubtful: bool = False
    """The neighbour was contradicted after `updated`."""
    last_requester: bytes = b""
    """The MAC of the host that was answered last."""
    answered: float = 0.0
    """Time of that answer."""

    @property
    def address(self) -> IPv4Address | IPv6Address:
        """The IP address."""
        return ip_address(self.packed)


class Answer(NamedTuple):
    """The treatment of a request for a known neighbour.

    Without a `reply`, the neighbour is not confirmed and the request is to be flooded. `probe` is
    the request as a unicast frame to the neighbour, to be sent instead, or None if the neighbour
    need not confirm.
    """

    reply: bytes | None = None
    probe: bytes | None = None


class _Claim(NamedTuple):
    """The statement of an ARP packet or ND message about its sender."""

    key: _Key
    mac: bytes
    router: bool | None
    """None if the message does not state it."""
    override: bool
    """The claim may replace a known MAC (RFC 4861, section 4.4)."""


class Neighbours:
    """Neighbours of one segment, by VLAN and address.

    Learned neighbours expire `ageing` seconds after their last message (0: never), and there are at
    most `max_neighbours` of them (0: no limit).
    """

    def __init__(self, fdb: Fdb, *, ageing: float, max_neighbours: int) -> None:
        self.ageing = ageing
        self.max_neighbours = max_neighbours
        self._fdb = fdb
        self._permanent: dict[_Key, Neighbour] = {}
        # In the order of `updated`: a neighbour moves to the end when it is confirmed.
        self._learned: dict[_Key, Neighbour] = {}
        # Answered requests that were sent to the neighbour, and when, the oldest first.
        self._probed: dict[_Key, tuple[float, bytes]] = {}

    def __len__(self) -> int:
        return len(self._permanent) + len(self._learned)

    def __iter__(self) -> Iterator[Neighbour]:
        yield from self._permanent.values()
        yield from self._learned.values()

    # --- configuration ------------------------------------------------------------------------

    def add(
        self,
        address: IPv4Address | IPv6Address,
        mac: bytes,
        now: float,
        *,
        vlan: Vlan = (),
        router: bool = False,
        extern_learn: bool = False,
    ) -> None:
        """Add a neighbour.

        Raises: NeighbourError if one is configured; ConfigError if a value is invalid.
        """
        if (vlan, address.packed) in self._permanent:
            raise NeighbourError(f"{address}: is a permanent neighbour already: use replace")
        self.replace(address, mac, now, vlan=vlan, router=router, extern_learn=extern_learn)

    def replace(
        self,
        address: IPv4Address | IPv6Address,
        mac: bytes,
        now: float,
        *,
        vlan: Vlan = (),
        router: bool = False,
        extern_learn: bool = False,
    ) -> None:
        """Add or replace a neighbour.

        Raises: ConfigError if a value is invalid; NeighbourError if `extern_learn` would take over
        a configured one.
        """
        if not _is_host(address.packed):
            raise ConfigError(f"{address}: is not a unicast address")
        if not _is_station(mac):
            raise ConfigError(f"lladdr {ethernet.format_mac(mac)}: is not a unicast MAC address")
        if not all(1 <= vid <= 4094 for vid in vlan):
            raise ConfigError(f"vlan {' '.join(map(str, vlan))}: must be from 1 to 4094")
        key = vlan, address.packed
        known = self._permanent.get(key)
        if extern_learn and known is not None and not known.extern_learn:
            raise NeighbourError(
                f"extern_learn: {address} is configured as a permanent neighbour: delete that first"
            )
        self._forget(key)
        self._permanent[key] = Neighbour(
            *key, mac, now, permanent=True, router=router, extern_learn=extern_learn
        )

    def export(self, now: float) -> list[list[Any]]:
        """Return all neighbours for another process: VLAN, address, MAC, age, and three flags."""
        return [
            [
                list(each.vlan),
                each.packed.hex(),
                each.mac.hex(),
                now - each.updated,
                each.permanent,
                each.router,
                each.extern_learn,
            ]
            for each in self
        ]

    def restore(
        self,
        vlan: Vlan,
        packed: bytes,
        mac: bytes,
        updated: float,
        *,
        permanent: bool,
        router: bool,
        extern_learn: bool = False,
    ) -> None:
        """Add a neighbour that another process has exported, unless this one knows it already."""
        key = vlan, packed
        if key in self._permanent or (key in self._learned and not permanent):
            return
        self._forget(key)
        neighbour = Neighbour(
            *key, mac, updated, permanent=permanent, router=router, extern_learn=extern_learn
        )
        neighbour.remotes = self._remotes_of(mac)
        (self._permanent if permanent else self._learned)[key] = neighbour

    def copy_permanent(self, other: "Neighbours") -> None:
        """Add the permanent neighbours of another table."""
        self._permanent.update(other._permanent)  # noqa: SLF001  of the same class

    def remove(
        self, address: IPv4Address | IPv6Address, *, vlan: Vlan = (), extern_learn: bool = False
    ) -> None:
        """Remove a neighbour; with `extern_learn`, only one that a control plane has added.

        Raises: NeighbourError if there is none.
        """
        key = vlan, address.packed
        if extern_learn:
            known = self._permanent.get(key)
            if known is None or not known.extern_learn:
                raise NeighbourError(f"{address}: there is no such extern_learn neighbour")
        if self._permanent.pop(key, None) is None and not self._forget(key):
            raise NeighbourError(f"{address}: there is no such neighbour")

    def is_extern_learn(self, address: IPv4Address | IPv6Address, vlan: Vlan = ()) -> bool:
        """Return True for a neighbour that a control plane has added."""
        known = self._permanent.get((vlan, address.packed))
        return known is not None and known.extern_learn

    def flush(self, *, permanent: bool = False, extern_learn: bool = False) -> int:
        """Remove learned neighbours and, with `permanent`, configured ones as well.

        With `extern_learn`, remove those of a control plane, and no others unless `permanent` is
        given, too. Returns: how many were removed.
        """
        count = 0
        if permanent or not extern_learn:
            count += len(self._learned)
            self._learned.clear()
            self._probed.clear()
        kept = {
            key: each
            for key, each in self._permanent.items()
            if not (extern_learn if each.extern_learn else permanent)
        }
        count += len(self._permanent) - len(kept)
        self._permanent = kept
        return count

    # --- frames -------------------------------------------------------------------------------

    def snoop(self, frame: Buffer, now: float) -> bool:
        """Learn from a frame of at least 14 octets from the underlay.

        Returns: False if a neighbour was not learned because the table is full.
        """
        claim = _read_claim(frame, *ethernet.network_layer(frame))
        if claim is None or claim.key in self._permanent:
            return True
        known = self._learned.get(claim.key)
        conflict = False
        if known is None:
            if self.max_neighbours and len(self._learned) >= self.max_neighbours:
                return False
        elif known.mac == claim.mac:
            self._forget(claim.key)
        elif claim.override:
            conflict = self._is_confirmed(known, now)
            del self._learned[claim.key]
        else:
            known.doubtful = True  # RFC 4861, section 7.2.5: the known MAC is not replaced.
            return True
        router = claim.router
        if router is None:
            router = known is not None and known.router
        neighbour = Neighbour(*claim.key, claim.mac, now, permanent=False, router=router)
        neighbour.remotes, neighbour.doubtful = self._remotes_of(claim.mac), conflict
        if known is not None and known.mac == claim.mac:
            neighbour.last_requester, neighbour.answered = known.last_requester, known.answered
        self._learned[claim.key] = neighbour
        return True

    def answer(self, frame: Buffer, now: float) -> Answer | None:
        """Decide about a frame of at least 14 octets from the TAP.

        Returns: None for a frame that is not a request for a known neighbour. It is then forwarded
        like any other frame.
        Side effects: neighbours that turn out to be local are removed; doubts and probes are noted.
        """
        ethertype, offset = ethernet.network_layer(frame)
        if ethertype not in (arp.TYPE, ethernet.TYPE_IPV6):
            return None
        claim = _read_claim(frame, ethertype, offset)
        if claim is not None:
            # A sender on this side answers for itself.
            self._forget(claim.key)
        if not ethernet.is_group(frame):
            return None  # A unicast request tests whether its target is alive.
        if ethertype == arp.TYPE:
            return self._answer_arp(frame, offset, now)
        return self._answer_solicitation(frame, offset, now)

    def take_overdue(self, now: float) -> list[bytes]:
        """Remove and return answered requests that were not confirmed in time, to be flooded.

        Returns: at most `_OVERDUE_MAX` frames.
        Side effect: their neighbours become doubtful.
        """
        requests: list[bytes] = []
        while self._probed and len(requests) < _OVERDUE_MAX:
            key, (since, request) = next(iter(self._probed.items()))
            if since + _CONFIRM_S > now:
                break
            del self._probed[key]
            if (neighbour := self._learned.get(key)) is not None:
                neighbour.doubtful = True
            requests.append(request)
        return requests

    def sweep(self, now: float, budget: int = 300) -> bool:
        """Remove up to `budget` expired neighbours. Returns: True if some were left."""
        while self.ageing and self._learned:
            key, neighbour = next(iter(self._learned.items()))
            if neighbour.updated + self.ageing > now:
                return False
            if not budget:
                return True
            budget -= 1
            del self._learned[key]
        return False

    def _answer_arp(self, frame: Buffer, offset: int, now: float) -> Answer | None:
        request = arp.parse(frame, offset)
        if (
            request is None
            or request.operation != arp.REQUEST
            # A probe and an announcement (RFC 5227, sections 2.1.1 and 2.3).
            or request.sender in (arp.UNSPECIFIED, request.target)
            or not _is_station(request.sender_mac)
        ):
            return None
        requester = request.sender_mac
        neighbour = self._reachable_neighbour((_vlans(frame, offset), request.target))
        if neighbour is None or neighbour.mac == requester:
            return None
        if not self._may_answer(neighbour, requester, now):
            return Answer()
        reply = arp.Arp(arp.REPLY, neighbour.mac, request.target, requester, request.sender)
        answer = _reply_header(requester, neighbour.mac, frame, offset) + arp.pack(reply)
        return Answer(answer, self._build_probe(neighbour, frame, now))

    def _answer_solicitation(self, frame: Buffer, offset: int, now: float) -> Answer | None:
        request = nd.parse(frame, offset)
        if (
            request is None
            or request.kind != nd.SOLICITATION
            or request.source in (nd.UNSPECIFIED, request.target)
        ):
            return None
        requester = request.link_address or bytes(frame[6:12])
        neighbour = self._reachable_neighbour((_vlans(frame, offset), request.target))
        if neighbour is None or neighbour.mac == requester or not _is_station(requester):
            return None
        if not self._may_answer(neighbour, requester, now):
            return Answer()
        reply = nd.NdMessage(
            nd.ADVERTISEMENT,
            request.traffic_class,
            request.target,
            request.source,
            nd.FLAG_SOLICITED | nd.FLAG_OVERRIDE | (nd.FLAG_ROUTER if neighbour.router else 0),
            request.target,
            neighbour.mac,
        )
        answer = _reply_header(requester, neighbour.mac, frame, offset) + nd.pack(reply)
        return Answer(answer, self._build_probe(neighbour, frame, now))

    def _reachable_neighbour(self, key: _Key) -> Neighbour | None:
        """Return a neighbour whose MAC has an FDB entry, or None."""
        neighbour = self._permanent.get(key) or self._learned.get(key)
        return None if neighbour is None or self._remotes_of(neighbour.mac) is None else neighbour

    def _remotes_of(self, mac: bytes) -> tuple[Remote, ...] | None:
        entry = self._fdb.lookup(mac)
        return None if entry is None else entry.destinations

    def _is_confirmed(self, neighbour: Neighbour, now: float) -> bool:
        lifetime = min(_REACHABLE_S, self.ageing or _REACHABLE_S)
        return (
            not neighbour.doubtful
            and neighbour.updated + lifetime > now
            and neighbour.remotes == self._remotes_of(neighbour.mac)
        )

    def _may_answer(self, neighbour: Neighbour, requester: bytes, now: float) -> bool:
        """Return True if a request is to be answered for a neighbour.

        Side effects: the answer is noted, or a doubt about the neighbour.
        """
        if neighbour.permanent:
            return True
        repeated = neighbour.last_requester == requester and neighbour.answered + _REPEAT_S > now
        if repeated and neighbour.updated <= neighbour.answered:
            # Nor has the neighbour sent anything since the answer.
            neighbour.doubtful = True
        if repeated or not self._is_confirmed(neighbour, now):
            # This request is flooded now, so the one answered before need not be flooded later.
            self._probed.pop((neighbour.vlan, neighbour.packed), None)
            return False
        neighbour.last_requester, neighbour.answered = requester, now
        return True

    def _build_probe(self, neighbour: Neighbour, request: Buffer, now: float) -> bytes | None:
        """Return the request as a unicast frame to the neighbour, and note when it is sent.

        Returns: None for a permanent neighbour, or if an earlier probe is not confirmed yet.
        """
        key = neighbour.vlan, neighbour.packed
        if neighbour.permanent or key in self._probed:
            return None
        self._probed[key] = now, bytes(request)
        return neighbour.mac + bytes(request[ethernet.MAC_LEN :])

    def _forget(self, key: _Key) -> bool:
        """Remove a learned neighbour. Returns: False if there was none."""
        self._probed.pop(key, None)
        return self._learned.pop(key, None) is not None


def _read_claim(frame: Buffer, ethertype: int, offset: int) -> _Claim | None:
    """Return what a frame states about its sender, or None if it is neither ARP nor ND.

    `ethertype` and `offset` are those of `ethernet.network_layer`.
    """
    if ethertype == arp.TYPE:
        packet = arp.parse(frame, offset)
        if packet is None or not (_is_host(packet.sender) and _is_station(packet.sender_mac)):
            return None
        key = _vlans(frame, offset), packet.sender
        return _Claim(key, packet.sender_mac, None, override=True)
    message = nd.parse(frame, offset) if ethertype == ethernet.TYPE_IPV6 else None
    if message is None or message.link_address is None or not _is_station(message.link_address):
        return None
    advertises = message.kind == nd.ADVERTISEMENT
    address = message.target if advertises else message.source
    if not _is_host(address):
        return None
    return _Claim(
        (_vlans(frame, offset), address),
        message.link_address,
        message.flags & nd.FLAG_ROUTER != 0 if advertises else None,
        override=not advertises or message.flags & nd.FLAG_OVERRIDE != 0,
    )


def _vlans(frame: Buffer, offset: int) -> Vlan:
    """Return the VLAN ids in the tags before the network layer at `offset`."""
    tags = range(ethernet.HEADER_LEN, offset, ethernet.TAG_LEN)
    return tuple((frame[tag] << 8 | frame[tag + 1]) & 0x0FFF for tag in tags)


def _reply_header(destination: bytes, source: bytes, request: Buffer, offset: int) -> bytes:
    """Return an Ethernet header with the tags and the EtherType of a request."""
    return destination + source + bytes(request[2 * ethernet.MAC_LEN : offset])


def _is_station(mac: bytes) -> bool:
    return not mac[0] & 1 and mac != ethernet.MAC_ZERO


def _is_host(packed: bytes) -> bool:
    """Return True for an IP address that a single host on the segment can have."""
    address = ip_address(packed)
    return not (
        address.is_unspecified
        or address.is_multicast
        or address.is_loopback
        or packed == b"\xff\xff\xff\xff"
    )
