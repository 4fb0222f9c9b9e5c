"""ARP and ND suppression: requests for hosts behind a remote are answered on this side.

It owns the neighbours of one segment: which IP address is at which MAC, as people have put it in
or as is seen in ARP and ND that comes from the underlay. What it can't answer is for the caller to
flood, as it would have without: a request that asks whether anybody is alive is never answered in
somebody's name (RFC 5227 probes, announcements, duplicate address detection, unicast probes).
"""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple, TypeAlias

from attrs import frozen

from vtep.errors import NeighbourError
from vtep.fdb import Fdb
from vtep.wire import Buffer, arp, ethernet, nd

_IPV4_NOBODY = bytes(4)

Vlan: TypeAlias = tuple[int, ...]
"""The VLAN ids of a frame's tags, the outer one first: each VLAN has neighbours of its own."""

_Key: TypeAlias = tuple[Vlan, bytes]


@frozen
class Neighbour:
    """An IP address and the MAC that has it; `updated` is when that was last said."""

    vlan: Vlan
    packed: bytes
    mac: bytes
    updated: float
    permanent: bool
    """It was put in: it neither changes by itself nor is it forgotten."""
    router: bool = False

    @property
    def address(self) -> IPv4Address | IPv6Address:
        """The IP address."""
        return ip_address(self.packed)


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
        self._seen.pop(key, None)
        self._permanent[key] = Neighbour(*key, mac, now, permanent=True, router=router)

    def remove(self, address: IPv4Address | IPv6Address, *, vlan: Vlan = ()) -> None:
        """Forget a neighbour; raises NeighbourError if there is none."""
        key = vlan, address.packed
        if self._permanent.pop(key, None) is None and self._seen.pop(key, None) is None:
            raise NeighbourError(f"{address}: there is no such neighbour")

    def flush(self, *, permanent: bool = False) -> int:
        """Forget what was seen, or, with `permanent`, everything; how many they were."""
        count = len(self) if permanent else len(self._seen)
        self._seen.clear()
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
        if known is None:
            if self.max_neighbours and len(self._seen) >= self.max_neighbours:
                return False
        elif known.mac != said.mac and not said.override:
            return True  # RFC 4861, section 7.2.5: it is not to replace what is known.
        else:
            del self._seen[said.key]
        router = said.router
        if router is None:
            router = known is not None and known.router
        self._seen[said.key] = Neighbour(*said.key, said.mac, now, permanent=False, router=router)
        return True

    def answer(self, frame: Buffer, now: float) -> bytes | None:
        """The frame that answers one of at least 14 octets from the TAP, if that can be known.

        With it, the request has no need to be sent on.
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

    def _answer_arp(self, frame: Buffer, at: int, now: float) -> bytes | None:
        request = arp.parse(frame, at)
        if (
            request is None
            or request.operation != arp.REQUEST
            or request.sender in (_IPV4_NOBODY, request.target)
            or not _is_station(request.sender_mac)
        ):
            return None
        neighbour = self._remote_neighbour((_vlan(frame, at), request.target), now)
        if neighbour is None or neighbour.mac == request.sender_mac:
            return None
        reply = arp.Arp(
            arp.REPLY, neighbour.mac, request.target, request.sender_mac, request.sender
        )
        return _framed(request.sender_mac, neighbour.mac, frame, at) + arp.pack(reply)

    def _answer_solicitation(self, frame: Buffer, at: int, now: float) -> bytes | None:
        request = nd.parse(frame, at)
        if (
            request is None
            or request.kind != nd.SOLICITATION
            or request.source in (nd.UNSPECIFIED, request.target)
        ):
            return None
        asker = request.link_address or bytes(frame[6:12])
        neighbour = self._remote_neighbour((_vlan(frame, at), request.target), now)
        if neighbour is None or neighbour.mac == asker or not _is_station(asker):
            return None
        reply = nd.Message(
            nd.ADVERTISEMENT,
            request.traffic_class,
            request.target,
            request.source,
            nd.FLAG_SOLICITED | nd.FLAG_OVERRIDE | (nd.FLAG_ROUTER if neighbour.router else 0),
            request.target,
            neighbour.mac,
        )
        return _framed(asker, neighbour.mac, frame, at) + nd.pack(reply)

    def _remote_neighbour(self, key: _Key, now: float) -> Neighbour | None:
        """A neighbour that is known well enough to answer for it: also where it is, is known."""
        neighbour = self._permanent.get(key) or self._seen.get(key)
        if neighbour is None or self._fdb.lookup(neighbour.mac) is None:
            return None
        if not neighbour.permanent and self.ageing and neighbour.updated + self.ageing <= now:
            return None
        return neighbour

    def _forget_who_is_here(self, frame: Buffer) -> None:
        """Whoever speaks on this side answers for itself, and is not behind a remote."""
        said = _said(frame)
        if said is not None:
            self._seen.pop(said.key, None)


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
