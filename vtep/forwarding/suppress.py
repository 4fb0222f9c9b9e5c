"""ARP and ND suppression: requests for hosts behind a remote are answered on this side.

It owns the neighbours of one segment: which IP address is at which MAC, as people have put it in
or as is seen in ARP and ND that comes from the underlay. What it can't answer is for the caller to
flood, as it would have without: a request that asks whether anybody is alive is never answered in
somebody's name (RFC 5227 probes, announcements, duplicate address detection, unicast probes).

An address can move to another MAC without an announcement. So a learned neighbour is answered for
only while it is confirmed, which is much as the kernel's NUD has it (RFC 4861, section 7.3):

- ARP or ND from its MAC, by way of the remote at which the FDB has that, confirms it for a while.
- A request that is answered is also passed on to the neighbour, and to it alone. Unless it confirms
  soon, the request is flooded after all, so that the new owner of the address can correct us.
- A conflicting claim, a MAC that has moved to another remote, and a requester who asks again make
  it doubtful. Requests for it are flooded until it is confirmed again.

What was put in is answered with as it is.
"""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple, TypeAlias

from attrs import define

from vtep.errors import NeighbourError
from vtep.forwarding.fdb import Fdb, Remote
from vtep.wire import Buffer, arp, ethernet, nd

_REACHABLE_S = 30.0
"""How long a neighbour is confirmed after it has spoken: base_reachable_time of Linux, and
REACHABLE_TIME of RFC 4861, section 10."""

_REPEAT_S = 5.0
"""A requester who asks again within so long has no use for the answer that it got."""

_PROBE_S = 1.1
"""How long a neighbour may take to confirm after a request was passed on to it. A second longer
than its reply takes, since Linux ignores a reply that contradicts another one of the last second
(arp locktime)."""

_OVERDUE_MAX = 50
"""Requests that are flooded at a time: half a millisecond's work."""

_IPV4_NOBODY = bytes(4)

Vlan: TypeAlias = tuple[int, ...]
"""The VLAN ids of a frame's tags, the outer one first: each VLAN has neighbours of its own."""

_Key: TypeAlias = tuple[Vlan, bytes]


@define
class Neighbour:
    """An IP address and the MAC that has it; `updated` is when that was last said."""

    vlan: Vlan
    packed: bytes
    mac: bytes
    updated: float
    permanent: bool
    """It was put in: it neither changes by itself nor is it forgotten."""
    router: bool = False
    where: tuple[Remote, ...] | None = None
    """The destinations that its MAC had in the FDB when it last spoke."""
    doubtful: bool = False
    """Something has contradicted it since it last spoke."""
    told: bytes = b""
    """The MAC of the requester that was answered last."""
    told_at: float = 0.0

    @property
    def address(self) -> IPv4Address | IPv6Address:
        """The IP address."""
        return ip_address(self.packed)


class Answer(NamedTuple):
    """What is done about a request for a known neighbour.

    Without a `reply`, the neighbour is not confirmed, and the request is to be flooded. `probe` is
    the request as a frame to the neighbour alone, to be sent in its place, if it is to confirm.
    """

    reply: bytes | None = None
    probe: bytes | None = None


class _Said(NamedTuple):
    """What a message says of the address of whoever has sent it."""

    key: _Key
    mac: bytes
    router: bool | None
    """None if it says nothing of that."""
    override: bool


class Neighbours:
    """Neighbours by VLAN and address, those that were seen bounded by `max_neighbours`.

    They are forgotten `ageing` seconds after they were last seen; then the next request for them
    is flooded, and its answer is seen. Zero means "never", and "no limit".
    """

    def __init__(self, fdb: Fdb, *, ageing: float, max_neighbours: int) -> None:
        self.ageing = ageing
        self.max_neighbours = max_neighbours
        self._fdb = fdb
        self._permanent: dict[_Key, Neighbour] = {}
        self._seen: dict[_Key, Neighbour] = {}  # The one seen last is the last.
        # Requests that were answered and passed on, with the time of that, the oldest first.
        self._probed: dict[_Key, tuple[float, bytes]] = {}

    def __len__(self) -> int:
        return len(self._permanent) + len(self._seen)

    def __iter__(self) -> Iterator[Neighbour]:
        yield from self._permanent.values()
        yield from self._seen.values()

    # --- what people do ---------------------------------------------------------------------

    def add(
        self,
        address: IPv4Address | IPv6Address,
        mac: bytes,
        now: float,
        *,
        vlan: Vlan = (),
        router: bool = False,
    ) -> None:
        """Put in a neighbour; raises NeighbourError if one was put in, or it makes no sense."""
        if (vlan, address.packed) in self._permanent:
            raise NeighbourError(f"{address}: is a permanent neighbour already: use replace")
        self.replace(address, mac, now, vlan=vlan, router=router)

    def replace(
        self,
        address: IPv4Address | IPv6Address,
        mac: bytes,
        now: float,
        *,
        vlan: Vlan = (),
        router: bool = False,
    ) -> None:
        """Put in a neighbour in place of what is known of its address."""
        if not _is_host(address.packed):
            raise NeighbourError(f"{address}: is no address that a host can have")
        if not _is_station(mac):
            raise NeighbourError(f"lladdr {ethernet.format_mac(mac)}: is no MAC of a host")
        if not all(1 <= vid <= 4094 for vid in vlan):
            raise NeighbourError(f"vlan {' '.join(map(str, vlan))}: must be from 1 to 4094")
        key = vlan, address.packed
        self._forget(key)
        self._permanent[key] = Neighbour(*key, mac, now, permanent=True, router=router)

    def take_over(self, former: "Neighbours") -> None:
        """Enter the permanent neighbours of another table. Those that were seen are seen again."""
        self._permanent.update(former._permanent)  # noqa: SLF001  of the same class

    def remove(self, address: IPv4Address | IPv6Address, *, vlan: Vlan = ()) -> None:
        """Forget a neighbour; raises NeighbourError if there is none."""
        key = vlan, address.packed
        if self._permanent.pop(key, None) is None and not self._forget(key):
            raise NeighbourError(f"{address}: there is no such neighbour")

    def flush(self, *, permanent: bool = False) -> int:
        """Forget what was seen, or, with `permanent`, everything; how many they were."""
        count = len(self) if permanent else len(self._seen)
        self._seen.clear()
        self._probed.clear()
        if permanent:
            self._permanent.clear()
        return count

    # --- what frames do ---------------------------------------------------------------------

    def snoop(self, frame: Buffer, now: float) -> bool:
        """Take note of what a frame of at least 14 octets from the underlay says of its sender.

        False if it would have been news, but there is no room for more.
        """
        said = _said(frame)
        if said is None or said.key in self._permanent:
            return True
        known = self._seen.get(said.key)
        conflict = False
        if known is None:
            if self.max_neighbours and len(self._seen) >= self.max_neighbours:
                return False
        elif known.mac == said.mac:
            self._forget(said.key)
        elif said.override:
            conflict = self._is_confirmed(known, now)
            del self._seen[said.key]
        else:
            known.doubtful = True  # RFC 4861, section 7.2.5: it is not to replace what is known.
            return True
        router = said.router
        if router is None:
            router = known is not None and known.router
        one = Neighbour(*said.key, said.mac, now, permanent=False, router=router)
        one.where, one.doubtful = self._where(said.mac), conflict
        if known is not None and known.mac == said.mac:
            one.told, one.told_at = known.told, known.told_at
        self._seen[said.key] = one
        return True

    def answer(self, frame: Buffer, now: float) -> Answer | None:
        """Return what is done about a frame of at least 14 octets from the TAP.

        None if it is no request for a neighbour that is known: then it is like any other frame.
        """
        ethertype, at = ethernet.network_layer(frame)
        if ethertype not in (arp.TYPE, ethernet.TYPE_IPV6):
            return None
        self._forget_who_is_here(frame)
        if not ethernet.is_group(frame):
            return None  # To see whether its addressee is alive: that can answer itself.
        if ethertype == arp.TYPE:
            return self._answer_arp(frame, at, now)
        return self._answer_solicitation(frame, at, now)

    def overdue(self, now: float) -> list[bytes]:
        """Return requests that were answered and not confirmed in time, some of them at a time.

        They are to be flooded. Their neighbours are doubtful from now on.
        """
        requests: list[bytes] = []
        while self._probed and len(requests) < _OVERDUE_MAX:
            key, (since, request) = next(iter(self._probed.items()))
            if since + _PROBE_S > now:
                break
            del self._probed[key]
            if (neighbour := self._seen.get(key)) is not None:
                neighbour.doubtful = True
            requests.append(request)
        return requests

    def sweep(self, now: float, budget: int = 300) -> bool:
        """Forget what was not seen for `ageing` seconds; as `Fdb.sweep`."""
        while self.ageing and self._seen:
            key, neighbour = next(iter(self._seen.items()))
            if neighbour.updated + self.ageing > now:
                return False
            if not budget:
                return True
            budget -= 1
            del self._seen[key]
        return False

    def _answer_arp(self, frame: Buffer, at: int, now: float) -> Answer | None:
        request = arp.parse(frame, at)
        if (
            request is None
            or request.operation != arp.REQUEST
            or request.sender in (_IPV4_NOBODY, request.target)
            or not _is_station(request.sender_mac)
        ):
            return None
        asker = request.sender_mac
        neighbour = self._remote_neighbour((_vlan(frame, at), request.target))
        if neighbour is None or neighbour.mac == asker:
            return None
        if not self._may_answer(neighbour, asker, now):
            return Answer()
        reply = arp.Arp(arp.REPLY, neighbour.mac, request.target, asker, request.sender)
        answer = _framed(asker, neighbour.mac, frame, at) + arp.pack(reply)
        return Answer(answer, self._probe(neighbour, frame, now))

    def _answer_solicitation(self, frame: Buffer, at: int, now: float) -> Answer | None:
        request = nd.parse(frame, at)
        if (
            request is None
            or request.kind != nd.SOLICITATION
            or request.source in (nd.UNSPECIFIED, request.target)
        ):
            return None
        asker = request.link_address or bytes(frame[6:12])
        neighbour = self._remote_neighbour((_vlan(frame, at), request.target))
        if neighbour is None or neighbour.mac == asker or not _is_station(asker):
            return None
        if not self._may_answer(neighbour, asker, now):
            return Answer()
        reply = nd.Message(
            nd.ADVERTISEMENT,
            request.traffic_class,
            request.target,
            request.source,
            nd.FLAG_SOLICITED | nd.FLAG_OVERRIDE | (nd.FLAG_ROUTER if neighbour.router else 0),
            request.target,
            neighbour.mac,
        )
        answer = _framed(asker, neighbour.mac, frame, at) + nd.pack(reply)
        return Answer(answer, self._probe(neighbour, frame, now))

    def _remote_neighbour(self, key: _Key) -> Neighbour | None:
        """A neighbour of which it is known where it is, too."""
        neighbour = self._permanent.get(key) or self._seen.get(key)
        return None if neighbour is None or self._where(neighbour.mac) is None else neighbour

    def _where(self, mac: bytes) -> tuple[Remote, ...] | None:
        entry = self._fdb.lookup(mac)
        return None if entry is None else entry.destinations

    def _is_confirmed(self, neighbour: Neighbour, now: float) -> bool:
        lasts = min(_REACHABLE_S, self.ageing or _REACHABLE_S)
        return (
            not neighbour.doubtful
            and neighbour.updated + lasts > now
            and neighbour.where == self._where(neighbour.mac)
        )

    def _may_answer(self, neighbour: Neighbour, asker: bytes, now: float) -> bool:
        """Whether an asker is to be told of a neighbour; if so, remember that it was."""
        if neighbour.permanent:
            return True
        repeated = neighbour.told == asker and neighbour.told_at + _REPEAT_S > now
        if repeated and neighbour.updated <= neighbour.told_at:
            neighbour.doubtful = True  # It has not spoken since, either.
        if repeated or not self._is_confirmed(neighbour, now):
            # What is flooded now need not be flooded later.
            self._probed.pop((neighbour.vlan, neighbour.packed), None)
            return False
        neighbour.told, neighbour.told_at = asker, now
        return True

    def _probe(self, neighbour: Neighbour, request: Buffer, now: float) -> bytes | None:
        """The request as a frame to the neighbour, unless that was sent one just now."""
        key = neighbour.vlan, neighbour.packed
        if neighbour.permanent or key in self._probed:
            return None
        self._probed[key] = now, bytes(request)
        return neighbour.mac + bytes(request[ethernet.MAC_LEN :])

    def _forget(self, key: _Key) -> bool:
        """Forget what was seen of an address; False if nothing was."""
        self._probed.pop(key, None)
        return self._seen.pop(key, None) is not None

    def _forget_who_is_here(self, frame: Buffer) -> None:
        """Whoever speaks on this side answers for itself, and is not behind a remote."""
        said = _said(frame)
        if said is not None:
            self._forget(said.key)


def _said(frame: Buffer) -> _Said | None:
    """What a frame of at least 14 octets says of the address of its sender, if it is ARP or ND."""
    ethertype, at = ethernet.network_layer(frame)
    if ethertype == arp.TYPE:
        packet = arp.parse(frame, at)
        if packet is None or not (_is_host(packet.sender) and _is_station(packet.sender_mac)):
            return None
        return _Said((_vlan(frame, at), packet.sender), packet.sender_mac, None, override=True)
    message = nd.parse(frame, at) if ethertype == ethernet.TYPE_IPV6 else None
    if message is None or message.link_address is None or not _is_station(message.link_address):
        return None
    advertises = message.kind == nd.ADVERTISEMENT
    address = message.target if advertises else message.source
    if not _is_host(address):
        return None
    return _Said(
        (_vlan(frame, at), address),
        message.link_address,
        message.flags & nd.FLAG_ROUTER != 0 if advertises else None,
        override=not advertises or message.flags & nd.FLAG_OVERRIDE != 0,
    )


def _vlan(frame: Buffer, at: int) -> Vlan:
    """The VLAN ids between the addresses and the EtherType that ends before `at`."""
    return tuple((frame[tag] << 8 | frame[tag + 1]) & 0x0FFF for tag in range(14, at, 4))


def _framed(destination: bytes, source: bytes, request: Buffer, at: int) -> bytes:
    """An Ethernet header with the tags and the EtherType of a request."""
    return destination + source + bytes(request[2 * ethernet.MAC_LEN : at])


def _is_station(mac: bytes) -> bool:
    return not mac[0] & 1 and mac != ethernet.MAC_ZERO


def _is_host(packed: bytes) -> bool:
    """Whether an IP address can be that of one host on the segment."""
    address = ip_address(packed)
    return not (
        address.is_unspecified
        or address.is_multicast
        or address.is_loopback
        or packed == b"\xff\xff\xff\xff"
    )
