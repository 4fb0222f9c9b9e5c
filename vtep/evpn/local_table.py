"""Which MACs and addresses of EVPN segments are local, from messages of rtnetlink. No I/O."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import IPv6Address
from typing import Literal, NamedTuple

from attrs import define, field

from vtep.evpn.local_entries import LocalEvents, LocalHost, TapPlace
from vtep.evpn.placement import LinkIndex, Placement, is_placed_alike
from vtep.host.link_table import Link, parse_links, parse_pvids
from vtep.host.neighbour_messages import (
    AF_BRIDGE,
    NTF_EXT_LEARNED,
    NTF_OFFLOADED,
    NTF_ROUTER,
    NTF_STICKY,
    NUD_NOARP,
    NUD_PERMANENT,
    NUD_RESOLVED,
    InterfaceAddress,
    KernelNeighbour,
    NetlinkMessage,
    parse_address,
    parse_neighbour,
)
from vtep.wire.address import Address

_WATCHED_KINDS = frozenset(("bridge", "tun", "macvlan", "vlan"))
"""Kinds of devices whose neighbours are kept: other devices are of no EVPN segment."""

_GROUP_BIT = 1


class _LocalMac(NamedTuple):
    """The kind of a local MAC: an entry of a user, that of a gateway, one of this host itself."""

    static: bool = False
    gateway: bool = False
    own: bool = False


@define
class _Entry:
    """An entry of a bridge's FDB: its port, state and flags."""

    port: int
    state: int
    flags: int


@define(eq=False)
class _Segment:
    """An EVPN VNI: where its TAP is, and what has been reported of it."""

    vni: int
    place: TapPlace
    at: Placement = field(factory=Placement)
    own_macs: dict[bytes, bool] = field(factory=dict)
    """The MACs of the owners, and whether they are those of a gateway."""

    macs: dict[bytes, _LocalMac] = field(factory=dict)
    neighbours: dict[Address, tuple[bytes, bool]] = field(factory=dict)


_FdbKey = tuple[int, bytes, int]
_NeighbourKey = tuple[int, Address]


class LocalTable:
    """Links, FDB entries, neighbours and addresses of this namespace, and the segments on them.

    Messages are events, or between `begin_dump` and `end_dump` also replies to dumps of everything,
    in any order with events.
    """

    def __init__(self, events: LocalEvents) -> None:
        self._events = events
        self._segments: dict[int, _Segment] = {}
        self._by_tap: dict[str, list[_Segment]] = {}
        self._by_device: dict[int, list[_Segment]] = {}
        """The segments of each device: of a TAP, a bridge and the devices on it."""
        self._links = LinkIndex()
        self._fdb: dict[int, dict[bytes, dict[int, _Entry]]] = {}
        self._neighbours: dict[int, dict[Address, tuple[bytes, bool]]] = {}
        self._permanent: set[_NeighbourKey] = set()
        """The neighbours that a user has set: there is nothing to verify about them."""

        self._addresses: dict[int, set[Address]] = {}
        self._broadcasts: dict[int, dict[Address, Address]] = {}
        """The broadcast addresses of the subnets of own addresses."""
        # During a dump: what it contained, and what events have said since its beginning.
        self._dumped: set[object] | None = None
        self._touched: set[object] = set()
        self.is_uncertain = False
        """True if entries were deleted during the dump, which may have missed others then."""

        self.moved: set[int] = set()
        """The VNIs whose TAP or bridge is another one since the set was last cleared."""

        self._host = LocalHost()
        self._is_host_outdated = True

    # Segments.

    def configure(self, places: Mapping[int, TapPlace]) -> None:
        """Set the segments. Side effects: reports what is local in new ones.

        Nothing is reported of those that are no longer among them.
        """
        for vni in [vni for vni in self._segments if vni not in places]:
            del self._segments[vni]
        for vni, place in places.items():
            segment = self._segments.setdefault(vni, _Segment(vni, place))
            segment.place = place
        self._by_tap, self._by_device = {}, {}
        for segment in self._segments.values():
            self._by_tap.setdefault(segment.place.tap, []).append(segment)
            self._index(segment)
        self._attach(self._segments.values())
        for segment in self._segments.values():
            self._set_own_macs(segment)
            self._report(segment)
        self._is_host_outdated = True

    def attachment(self, vni: int) -> tuple[int, int]:
        """Return the indices of the TAP of a VNI and of its bridge; 0 for none."""
        segment = self._segments.get(vni)
        return segment.at[:2] if segment is not None else (0, 0)

    def is_local(self, vni: int, mac: bytes) -> bool:
        """Return whether a MAC is local to a segment."""
        segment = self._segments.get(vni)
        return segment is not None and mac in segment.macs

    def entry_owner(self, vni: int, mac: bytes) -> Literal["evpn", "other"] | None:
        """Return whose entry on the bridge port of the TAP a MAC has; None if it has none.

        Returns: "evpn" for `extern_learn`; "other" for one of the bridge itself or of a user.
        """
        tap, bridge = self.attachment(vni)
        for entry in self._fdb.get(bridge, {}).get(mac, {}).values():
            if entry.state & NUD_PERMANENT:
                return "other"
            if entry.port == tap:
                if entry.flags & NTF_EXT_LEARNED:
                    return "evpn"
                if entry.state & NUD_NOARP:
                    return "other"
        return None

    def report_host(self) -> None:
        """Report the addresses and MACs of this host if they have changed."""
        if not self._is_host_outdated:
            return
        self._is_host_outdated = False
        tap_macs = {}
        for vni, segment in self._segments.items():
            tap = self._links.get(segment.at.tap)
            if segment.at.bridge and tap is not None and tap.mac not in segment.own_macs:
                tap_macs[vni] = tap.mac
        host = LocalHost(
            frozenset(
                ip for each in self._addresses.values() for ip in each if not ip.is_link_local
            ),
            frozenset(ip for each in self._broadcasts.values() for ip in each.values()),
            tap_macs,
        )
        if host != self._host:
            self._host = host
            self._events.host_changed(host)

    def local_neighbours(self) -> Iterator[tuple[int, Address]]:
        """Yield device and address of each neighbour that is a local host, not this one.

        Permanent ones are not among them: a request with NTF_USE would make the kernel take them
        for any other, and fail those that do not answer (___neigh_update() in its neighbour.c).
        """
        for segment in self._segments.values():
            for owner in segment.at.owners:
                for ip, (mac, _) in self._neighbours.get(owner, {}).items():
                    if (
                        mac in segment.macs
                        and mac not in segment.own_macs
                        and (owner, ip) not in self._permanent
                    ):
                        yield owner, ip

    def link(self, index: int) -> Link | None:
        """Return a device."""
        return self._links.get(index)

    def device(self, name: str) -> int:
        """Return the index of a device; 0 if there is none of this name."""
        return self._links.find(name)

    def remote_macs(self, vni: int) -> Iterator[bytes]:
        """Yield MACs with an `extern_learn` entry on the bridge port of a TAP."""
        tap, bridge = self.attachment(vni)
        for mac, entries in self._fdb.get(bridge, {}).items():
            for entry in entries.values():
                if entry.port == tap and entry.flags & NTF_EXT_LEARNED:
                    yield mac
                    break

    # Messages.

    def update(self, message: NetlinkMessage, *, is_reply: bool = False) -> None:
        """Apply a message: an event, or a reply to a dump."""
        neighbour = parse_neighbour(message)
        if neighbour is None:
            address = parse_address(message)
            if address is not None:
                self._update_address(address, is_reply=is_reply)
                return
            for index, link in parse_links(message.whole):
                self._update_link(index, link, is_reply=is_reply)
            for index, pvid in parse_pvids(message.whole):
                if self._links.set_pvid(index, pvid):
                    self._attach(self._by_device.get(index, ()))
        elif neighbour.family != AF_BRIDGE:
            self._update_neighbour(neighbour, is_reply=is_reply)
        elif neighbour.master and neighbour.mac:
            self._update_entry(neighbour, is_reply=is_reply)

    def begin_dump(self) -> None:
        """Expect replies to dumps. What is in none of them, and in no event, is gone at the end."""
        self._dumped = set()
        self._touched.clear()
        self.is_uncertain = False

    def end_dump(self) -> None:
        """Delete what the dumps did not contain."""
        seen, self._dumped = self._dumped, None
        if seen is None:
            return
        for index in [one for one in self._links if not self._is_known(one, seen)]:
            self._update_link(index, None)
        keys = [
            (bridge, mac, vlan)
            for bridge, macs in self._fdb.items()
            for mac, entries in macs.items()
            for vlan in entries
        ]
        for key in keys:
            if key not in seen and key not in self._touched:
                self._delete_entry(key)
        for device, found in self._neighbours.items():
            for ip in [ip for ip in found if not self._is_known(("n", device, ip), seen)]:
                del found[ip]
                self._permanent.discard((device, ip))
                self._report_ip(device, ip)
        for device, addresses in self._addresses.items():
            gone = {ip for ip in addresses if not self._is_known(("a", device, ip), seen)}
            if gone:
                addresses.difference_update(gone)
                self._report_owner(device, gone)
        self._touched.clear()

    def _is_known(self, key: object, dumped: Collection[object]) -> bool:
        return key in dumped or key in self._touched

    def _is_outdated(self, key: object, *, is_reply: bool) -> bool:
        """Note what a message is about. Returns: True if an event may have said newer things."""
        if self._dumped is None:
            return False
        if not is_reply:
            self._touched.add(key)
            return False
        self._dumped.add(key)
        return key in self._touched

    def _update_link(self, index: int, link: Link | None, *, is_reply: bool = False) -> None:
        if self._is_outdated(index, is_reply=is_reply):
            return
        before = self._links.replace(index, link)
        self._is_host_outdated = True
        if link is None:
            for table in (self._fdb, self._neighbours, self._addresses, self._broadcasts):
                table.pop(index, None)
            self._permanent = {key for key in self._permanent if key[0] != index}
        if not is_placed_alike(before, link):
            concerned = list(self._by_device.get(index, ()))
            for one in (before, link):
                if one is not None:
                    concerned += self._by_tap.get(one.name, ())
                    concerned += self._by_device.get(one.lower, ()) if one.lower else ()
            self._attach(concerned)
        elif before is not None and link is not None and before.mac != link.mac:
            self._report_owner(index, self._addresses.get(index, ()))

    def _update_entry(self, message: KernelNeighbour, *, is_reply: bool) -> None:
        key = (message.master, message.mac, message.vlan)
        if self._is_outdated(key, is_reply=is_reply):
            return
        if message.is_deleted:
            self.is_uncertain = True
            self._delete_entry(key)
            return
        entries = self._fdb.setdefault(message.master, {}).setdefault(message.mac, {})
        entries[message.vlan] = _Entry(message.device, message.state, message.flags)
        self._report_entry(message.master, message.mac)

    def _delete_entry(self, key: _FdbKey) -> None:
        bridge, mac, vlan = key
        macs = self._fdb.get(bridge, {})
        entries = macs.get(mac, {})
        if entries.pop(vlan, None) is None:
            return
        if not entries:
            del macs[mac]
        self._report_entry(bridge, mac)

    def _update_neighbour(self, message: KernelNeighbour, *, is_reply: bool) -> None:
        device, ip = message.device, message.ip
        link = self._links.get(device)
        if ip is None or (link is not None and link.kind not in _WATCHED_KINDS):
            return
        if self._is_outdated(("n", device, ip), is_reply=is_reply):
            return
        found = self._neighbours.setdefault(device, {})
        if (
            message.is_deleted
            or not message.state & NUD_RESOLVED
            or message.flags & NTF_EXT_LEARNED
            or not message.mac
            or ip.is_multicast
        ):
            self._permanent.discard((device, ip))
            if found.pop(ip, None) is None:
                return
        else:
            if message.state & NUD_PERMANENT:
                self._permanent.add((device, ip))
            else:
                self._permanent.discard((device, ip))
            now = (message.mac, bool(message.flags & NTF_ROUTER))
            if found.get(ip) == now:
                return
            found[ip] = now
        self._report_ip(device, ip)

    def _update_address(self, message: InterfaceAddress, *, is_reply: bool) -> None:
        device, ip = message.device, message.ip
        if self._is_outdated(("a", device, ip), is_reply=is_reply):
            return
        found = self._addresses.setdefault(device, set())
        if message.is_usable and not message.is_deleted:
            found.add(ip)
            if message.broadcast is not None:
                self._broadcasts.setdefault(device, {})[ip] = message.broadcast
        else:
            found.discard(ip)
            self._broadcasts.get(device, {}).pop(ip, None)
        self._is_host_outdated = True
        self._report_owner(device, (ip,))

    # Reports.

    def _attach(self, segments: Iterable[_Segment]) -> None:
        """Find the TAPs of segments anew, and report what follows for those that have moved."""
        for segment in list(segments):
            before, now = segment.at, self._links.place(segment.place.tap)
            if before == now:
                continue
            for device in {before.tap, before.master, *before.owners}:
                if segment in (others := self._by_device.get(device, [])):
                    others.remove(segment)
            segment.at = now
            self._index(segment)
            if before[:2] != now[:2]:
                self.moved.add(segment.vni)
            self._set_own_macs(segment)
            self._report(segment)
            if before.tap and not now.tap:
                self._events.segment_lost(segment.vni)

    def _index(self, segment: _Segment) -> None:
        at = segment.at
        for device in {at.tap, at.master, *at.owners} - {0}:
            self._by_device.setdefault(device, []).append(segment)

    def _set_own_macs(self, segment: _Segment) -> None:
        """Find the MACs of the host itself."""
        segment.own_macs = {}
        for owner in segment.at.owners:
            link = self._links.get(owner)
            if link is not None and link.mac:
                is_gateway = not segment.place.gateways.isdisjoint(self._addresses.get(owner, ()))
                segment.own_macs[link.mac] = segment.own_macs.get(link.mac, False) or is_gateway

    def _report_owner(self, device: int, ips: Iterable[Address]) -> None:
        """Report what has changed in segments where a device has another MAC or addresses."""
        for segment in self._by_device.get(device, ()):
            before = segment.own_macs
            self._set_own_macs(segment)
            for mac in before.keys() | segment.own_macs.keys():
                self._report_mac(segment, mac)
            for ip in ips:
                self._report_neighbour(segment, ip)

    def _report(self, segment: _Segment) -> None:
        """Report all differences between what was reported of a segment, and what is."""
        for mac in {*segment.macs, *segment.own_macs, *self._fdb.get(segment.at.bridge, ())}:
            self._report_mac(segment, mac)
        ips = set(segment.neighbours)
        for owner in segment.at.owners:
            ips |= {*self._addresses.get(owner, ()), *self._neighbours.get(owner, ())}
        for ip in ips:
            self._report_neighbour(segment, ip)

    def _report_entry(self, bridge: int, mac: bytes) -> None:
        for segment in self._by_device.get(bridge, ()):
            self._report_mac(segment, mac)

    def _report_mac(self, segment: _Segment, mac: bytes) -> None:
        before, now = segment.macs.get(mac), self._local_mac(segment, mac)
        if before == now:
            return
        if now is None:
            del segment.macs[mac]
            self._events.mac_removed(segment.vni, mac)
        else:
            segment.macs[mac] = now
            self._events.mac_added(
                segment.vni, mac, static=now.static, gateway=now.gateway, own=now.own
            )

    def _local_mac(self, segment: _Segment, mac: bytes) -> _LocalMac | None:
        """Return the kind of a local MAC; None if it is not local."""
        if mac in segment.own_macs:
            return _LocalMac(gateway=segment.own_macs[mac], own=True)
        if mac[0] & _GROUP_BIT:
            return None
        is_local = is_static = False
        for vlan, entry in self._fdb.get(segment.at.bridge, {}).get(mac, {}).items():
            if segment.at.vlan not in (None, vlan):
                continue
            # A permanent entry is the MAC of the port itself, which no host uses. Without
            # "offload", extern_learn is the entry of another control plane for a remote MAC.
            if entry.port in segment.at[:2] or entry.state & NUD_PERMANENT:
                continue
            if entry.flags & (NTF_EXT_LEARNED | NTF_OFFLOADED) == NTF_EXT_LEARNED:
                continue
            is_local = True
            is_static |= bool(entry.state & NUD_NOARP or entry.flags & NTF_STICKY)
        return _LocalMac(static=is_static) if is_local else None

    def _report_ip(self, device: int, ip: Address) -> None:
        for segment in self._by_device.get(device, ()):
            self._report_neighbour(segment, ip)

    def _report_neighbour(self, segment: _Segment, ip: Address) -> None:
        before, now = segment.neighbours.get(ip), self._neighbour(segment, ip)
        if before == now:
            return
        if now is None:
            del segment.neighbours[ip]
            self._events.neighbour_removed(segment.vni, ip)
        else:
            segment.neighbours[ip] = now
            mac, is_router = now
            self._events.neighbour_added(segment.vni, ip, mac, router=is_router)

    def _neighbour(self, segment: _Segment, ip: Address) -> tuple[bytes, bool] | None:
        """Return the MAC of an address of this host or of a neighbour, and whether it routes."""
        for owner in segment.at.owners:
            link = self._links.get(owner)
            if link is not None and link.mac and ip in self._addresses.get(owner, ()):
                return link.mac, isinstance(ip, IPv6Address) and ip in segment.place.gateways
        for owner in segment.at.owners:
            if found := self._neighbours.get(owner, {}).get(ip):
                return found
        return None
