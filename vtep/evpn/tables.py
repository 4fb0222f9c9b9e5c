"""EVPN policy: the VTEP of each MAC, the VTEPs for flooded frames, and the routes of this host.

`Tables` takes routes of peers and entries of local bridges, and returns changes. It does no I/O and
reads no clock: `now` is in seconds of any monotonic clock. The work for an event is proportional to
the entries that it concerns, not to the size of the tables.
"""

from collections.abc import Iterable, Iterator, Mapping

from attrs import evolve

from vtep.evpn.announcement import Announcement
from vtep.evpn.changes import Changes, EvpnFdbChange, EvpnNeighbourChange
from vtep.evpn.duplicates import Key, MoveTracker
from vtep.evpn.entries import FORMER
from vtep.evpn.former import StaleMac, restore
from vtep.evpn.import_policy import OWN_MAC, ImportPolicy, Match
from vtep.evpn.local_entries import LocalHost
from vtep.evpn.rib import AdjRibIn, AttributeSet, RibRoute
from vtep.evpn.segment_table import SegmentTable
from vtep.evpn.table_settings import SegmentSettings, SpeakerSettings
from vtep.evpn.table_views import TableViews
from vtep.ratelimit import LineLimit
from vtep.wire.address import Address, without_scope
from vtep.wire.bgp.evpn import MulticastRoute, OtherRoute, Route, RouteKey
from vtep.wire.bgp.update import Update
from vtep.wire.ethernet import MAC_ZERO, format_mac, is_group

_GRACE_S = 10.0
"""Seconds in which neighbours can establish their sessions before entries of a former speaker are
removed: a neighbour without a session then does not delay that until `stale_time`."""

_LOG_INTERVAL_S, _LOG_BURST = 10.0, 5
"""Seconds between two lines of a kind, and how many may come at once: a loop moves many MACs."""

_RETRY_S = 60.0
"""Seconds until entries that the daemon has refused are tried again: the reason may be gone."""


class Tables(TableViews):
    """The routes of all peers, the local entries, and what follows from them."""

    def __init__(self, settings: SpeakerSettings) -> None:
        self._settings = settings
        self._host = LocalHost()
        tracker = MoveTracker(
            settings.duplicate_mac, settings.duplicate_moves, settings.duplicate_time
        )
        super().__init__(tracker, self._new_policy({}))
        self._lines = LineLimit(_LOG_INTERVAL_S, _LOG_BURST)
        self._epoch = 0
        self._retry_at: float | None = None
        """The time when entries that the daemon has refused are tried again; None without any."""
        self._restored_at: float | None = None
        """The time when entries of a former speaker were restored; None if none are left."""
        self._dirty: dict[int, None] = {}
        """VNIs with changes to collect, in the order of their causes."""
        self._pending = Changes()

    def _new_policy(self, segments: Mapping[int, SegmentSettings]) -> ImportPolicy:
        settings = self._settings
        return ImportPolicy(
            segments, asn=settings.asn, router_id=settings.router_id, host=self._host
        )

    def configure(
        self,
        segments: Mapping[int, SegmentSettings],
        now: float,
        settings: SpeakerSettings | None = None,
    ) -> None:
        """Set the VNIs, and the settings of the speaker if they change.

        Side effects: a VNI that is new announces its type 3 route; one that is missing withdraws
        its routes and deletes its entries. Peers that are missing in `settings` are removed.
        """
        if settings is not None and settings != self._settings:
            self._configure_speaker(settings, now)
        removed = [vni for vni in self._segments if vni not in segments]
        for vni in removed:
            self._remove_former(vni)
        for vni, segment_settings in segments.items():
            segment = self._segments.get(vni)
            if segment is None:
                segment = SegmentTable(segment_settings, self._tracker, self._lines)
                self._segments[vni] = segment
            segment.configure(segment_settings)
            self._dirty[vni] = None
        self._set_policy(segments, now)
        for vni in removed:
            self._remove_segment(vni, now)
        self._settle(now)

    def set_host(self, host: LocalHost, now: float) -> None:
        """Set the addresses and MACs of this host, which no remote VTEP or host has."""
        self._host = host
        self._set_policy({vni: each.settings for vni, each in self._segments.items()}, now)
        self._settle(now)

    def _set_policy(self, segments: Mapping[int, SegmentSettings], now: float) -> None:
        policy = self._new_policy(segments)
        if policy.inputs == self._policy.inputs:
            return
        self._policy = policy
        self._epoch += 1
        for rib in self._ribs.values():
            if rib.peer != FORMER:
                self._match_again(rib, now)

    def _configure_speaker(self, settings: SpeakerSettings, now: float) -> None:
        self._settings = settings
        for key in self._tracker.configure(
            settings.duplicate_mac, settings.duplicate_moves, settings.duplicate_time
        ):
            self._touch(key)
        for peer in [peer for peer in self._ribs if peer not in (FORMER, *settings.neighbors)]:
            self.peer_removed(peer, now)

    def _remove_segment(self, vni: int, now: float) -> None:
        self._tracker.forget(vni)
        segment = self._segments.pop(vni)
        self._dirty.pop(vni, None)
        segment.forget_local()
        segment.configure(evolve(segment.settings, locals=()))
        segment.settle(now)
        segment.collect(self._pending)

    def _match_again(self, rib: AdjRibIn, now: float) -> None:
        for received in rib.routes.values():
            match = self._match(received)
            if match != received.match:
                self._detach(received)
                self._attach(received, match, now)

    # Routes of peers, which are named as in `SpeakerSettings.neighbors`.

    def _rib(self, peer: str) -> AdjRibIn:
        rib = self._ribs.get(peer)
        if rib is None:
            rib = self._ribs[peer] = AdjRibIn(peer)
        return rib

    def peer_up(self, peer: str, now: float, *, preserved: bool = False) -> None:
        """Note an established session.

        Stale routes of the peer are kept if it has `preserved` its forwarding state (RFC 4724,
        section 4.2), else removed.
        """
        rib = self._rib(peer)
        rib.is_established = True
        rib.has_ended_rib = False
        if not preserved:
            self._remove_stale(rib)
            self._settle(now)

    def update(self, peer: str, update: Update, now: float) -> None:
        """Take the routes of an UPDATE message; an End-of-RIB marker included."""
        rib = self._rib(peer)
        for route in update.withdrawn:
            if isinstance(route, OtherRoute):
                rib.others.get(route.kind, set()).discard(route.key)
                continue
            received = rib.routes.pop(route.key, None)
            if received is not None:
                self._detach(received)
        if update.announced and update.attributes is not None:
            shared = AttributeSet(rib, update.attributes)
            for route in update.announced:
                self._take_route(rib, shared, route, now)
        self._settle(now)
        if update.is_end_of_rib:
            self.end_of_rib(peer, now)

    def _take_route(self, rib: AdjRibIn, shared: AttributeSet, route: Route, now: float) -> None:
        if isinstance(route, OtherRoute):
            rib.others.setdefault(route.kind, set()).add(route.key)
            return
        key = route.key
        present = rib.routes.get(key)
        if present is not None:
            if present.route == route and present.shared.attributes == shared.attributes:
                present.generation = rib.generation
                return
            self._detach(present)
        received = rib.routes[key] = RibRoute(shared, route, now)
        self._attach(received, self._match(received), now)

    def _match(self, received: RibRoute) -> Match:
        shared, route = received.shared, received.route
        attributes = shared.attributes
        if shared.epoch != self._epoch:
            shared.matches.clear()
            shared.epoch = self._epoch
        is_multicast = isinstance(route, MulticastRoute)
        key = received.label, route.ethernet_tag != 0, is_multicast
        match = shared.matches.get(key)
        if match is None:
            match = shared.matches[key] = self._policy.match(
                attributes,
                received.vtep,
                received.label,
                is_tagged=route.ethernet_tag != 0,
                is_multicast=is_multicast,
            )
        return self._policy.match_route(match, route, default_gateway=attributes.default_gateway)

    def _attach(self, received: RibRoute, match: Match, now: float) -> None:
        received.match = match
        received.ip = None if match.ip_reason is not None else received.route.ip
        if match.vni is not None:
            self._segments[match.vni].attach(received)
            self._dirty[match.vni] = None
        if match.reason is not None or match.ip_reason is not None:
            self._refused.add(received)
        if match.reason == OWN_MAC:
            self._note_own_mac(received, now)

    def _note_own_mac(self, received: RibRoute, now: float) -> None:
        left_out = self._lines.admit(now, OWN_MAC)
        if left_out is not None:
            self._pending.log.append(
                f"{format_mac(received.mac)} is the MAC of the TAP of this host with vni "
                f"{received.label}, and {received.vtep} announces it; the route is ignored; look "
                "for a loop, by which frames of this host come to that VTEP, or a host with a "
                f"forged MAC{left_out}"
            )

    def _detach(self, received: RibRoute) -> None:
        match = received.match
        if match.vni is not None:
            self._segments[match.vni].detach(received)
            self._dirty[match.vni] = None
        if match.reason is not None or match.ip_reason is not None:
            self._refused.remove(received)

    def _remove(self, rib: AdjRibIn, keys: Iterable[RouteKey]) -> None:
        for key in keys:
            self._detach(rib.routes.pop(key))

    def _remove_stale(self, rib: AdjRibIn) -> None:
        if rib.stale_until is not None:
            rib.stale_until = None
            self._remove(rib, list(rib.stale_keys()))

    def end_of_rib(self, peer: str, now: float) -> None:
        """Remove routes of a peer that are stale still: it has sent all that it has."""
        rib = self._rib(peer)
        rib.has_ended_rib = True
        self._remove_stale(rib)
        self._sweep(now)
        self._settle(now)

    def peer_down(self, peer: str, now: float, retain: float | None = None) -> None:
        """Note the end of a session. Routes are stale for `retain` seconds, or removed with None.

        Routes that are stale already are removed (RFC 4724, section 4.2).
        """
        rib = self._ribs.get(peer)
        if rib is None:  # Removed before its session has ended.
            return
        rib.others.clear()
        if retain is None:
            rib.stale_until = None
            self._remove(rib, list(rib.routes))
        elif rib.is_established:
            self._remove_stale(rib)
            if rib.routes:
                rib.generation += 1
                rib.stale_until = now + retain
        rib.is_established = rib.has_ended_rib = False
        self._settle(now)

    def peer_removed(self, peer: str, now: float) -> None:
        """Remove a peer that is configured no longer, with its routes."""
        if peer in self._ribs:
            self.peer_down(peer, now)
            del self._ribs[peer]

    # Entries of a former speaker.

    def restore_stale(
        self,
        vni: int,
        macs: Mapping[bytes, StaleMac],
        floods: Iterable[Address],
        neighbours: Mapping[Address, bytes],
        bridge_macs: Iterable[bytes],
        now: float,
    ) -> None:
        """Take over entries of EVPN that a former speaker has left, before any session.

        They stay until a route confirms or replaces them. The others are deleted when all peers
        have sent End-of-RIB, or after `stale_time`. A VNI that is not configured has none.
        """
        segment = self._segments.get(vni)
        if segment is None:
            return
        self._restored_at = now
        restore(self._rib(FORMER), segment, macs, floods, neighbours, bridge_macs, now)
        self._dirty[vni] = None
        self._settle(now)

    def _remove_former(self, vni: int | None = None) -> None:
        rib = self._ribs.get(FORMER)
        if rib is not None:
            self._remove(
                rib,
                [key for key, route in rib.routes.items() if vni in (None, route.match.vni)],
            )

    def _sweep(self, now: float) -> float | None:
        """Remove entries of a former speaker if they are confirmed by no route in time.

        Returns: when to try again; None if there are none.
        """
        if self._restored_at is None:
            return None
        age = now - self._restored_at
        ribs = [rib for peer, rib in self._ribs.items() if peer != FORMER and rib.is_established]
        have_all = bool(ribs) and all(rib.has_ended_rib for rib in ribs)
        is_complete = {rib.peer for rib in ribs} >= self._settings.neighbors
        if age >= self._settings.stale_time or (have_all and (is_complete or age >= _GRACE_S)):
            self._remove_former()
            self._restored_at = None
            return None
        wait = _GRACE_S if age < _GRACE_S else self._settings.stale_time
        return self._restored_at + min(wait, self._settings.stale_time)

    # Local entries: `LocalEvents` with the time. VNIs that are not configured are ignored.

    def mac_added(
        self,
        vni: int,
        mac: bytes,
        now: float,
        *,
        static: bool = False,
        gateway: bool = False,
        own: bool = False,
    ) -> None:
        """Note a local MAC: a frame of it was seen, it is configured (`static`: sticky), or `own`.

        An own MAC is one of this host itself.
        """
        segment = self._segments.get(vni)
        if segment is None or mac == MAC_ZERO or is_group(mac):
            return
        segment.set_local(mac, static=static, gateway=gateway, own=own)
        self._settle_segment(segment, now)

    def mac_removed(self, vni: int, mac: bytes, now: float) -> None:
        """Note that a MAC is local no longer."""
        segment = self._segments.get(vni)
        if segment is not None:
            segment.unset_local(mac)
            self._settle_segment(segment, now)

    def neighbour_added(
        self, vni: int, ip: Address, mac: bytes, now: float, *, router: bool = False
    ) -> None:
        """Note the address of a MAC. It is announced while the MAC is local."""
        segment = self._segments.get(vni)
        if segment is not None and not (ip.is_multicast or ip.is_unspecified):
            segment.set_neighbour(without_scope(ip), mac, router=router)
            self._settle_segment(segment, now)

    def neighbour_removed(self, vni: int, ip: Address, now: float) -> None:
        """Note that an address is gone."""
        segment = self._segments.get(vni)
        if segment is not None:
            segment.unset_neighbour(without_scope(ip))
            self._settle_segment(segment, now)

    def segment_lost(self, vni: int, now: float) -> None:
        """Forget all local MACs and addresses of a VNI."""
        segment = self._segments.get(vni)
        if segment is not None:
            segment.forget_local()
            self._settle_segment(segment, now)

    def _settle_segment(self, segment: SegmentTable, now: float) -> None:
        segment.settle(now)
        self._dirty[segment.vni] = None

    def _settle(self, now: float) -> None:
        for vni in self._dirty:
            self._segments[vni].settle(now)

    def _touch(self, key: Key) -> None:
        vni, mac = key
        segment = self._segments.get(vni)
        if segment is not None:
            segment.touch(mac)
            self._dirty[vni] = None

    # Results.

    def tick(self, now: float) -> float | None:
        """End what is due: stale routes, held MACs. Returns: when to call again; None: never."""
        times: list[float | None] = []
        for rib in self._ribs.values():
            if rib.stale_until is not None:
                if rib.stale_until <= now:
                    self._remove_stale(rib)
                else:
                    times.append(rib.stale_until)
        times.append(self._sweep(now))
        times.append(self._retry(now))
        ended, next_end = self._tracker.expire(now)
        times.append(next_end)
        for key in ended:
            self._touch(key)
        self._settle(now)
        return min((at for at in times if at is not None), default=None)

    def take(self) -> Changes:
        """Return the changes since the last call, and forget them."""
        changes, self._pending = self._pending, Changes()
        if changes.withdraw:
            # Of a VNI that was removed, and perhaps added again.
            removed = changes.withdraw
            changes.withdraw = []
        else:
            removed = []
        for vni in self._dirty:
            self._segments[vni].collect(changes)
        self._dirty.clear()
        if removed:
            announced = {announcement.route.key for announcement in changes.announce}
            changes.withdraw += [route for route in removed if route.key not in announced]
        return changes

    def reinstall(self, vni: int) -> None:
        """Put all entries of a VNI into the next changes: its FDB was flushed or made anew."""
        segment = self._segments.get(vni)
        if segment is not None:
            segment.reinstall()
            self._dirty[vni] = None

    def note_refused(
        self, vni: int, change: EvpnFdbChange | EvpnNeighbourChange, reason: str, now: float
    ) -> None:
        """Note that the daemon has refused a change, in its words: the entry is not installed.

        Side effects: the entry is deleted on the bridge port, and tried again after a minute.
        """
        segment = self._segments.get(vni)
        if segment is None:
            return
        if isinstance(change, EvpnFdbChange):
            is_noted = segment.note_refused_fdb(change, reason)
        else:
            is_noted = segment.note_refused_neighbour(change, reason)
        if is_noted:
            if self._retry_at is None:
                self._retry_at = now + _RETRY_S
            self._settle_segment(segment, now)

    def _retry(self, now: float) -> float | None:
        if self._retry_at is None or now < self._retry_at:
            return self._retry_at
        self._retry_at = None
        for segment in self._segments.values():
            if segment.retry_refused():
                self._dirty[segment.vni] = None
        return None

    def own_routes(self) -> Iterator[Announcement]:
        """Yield all own routes, for a session that is established or asks for a refresh."""
        for segment in self._segments.values():
            yield from segment.own_routes()

    def clear_duplicate(self, mac: bytes, vni: int | None, now: float) -> int:
        """Release a duplicate MAC, in one VNI or in all. Returns: how many were released."""
        keys = [key for key in self._tracker.duplicates if key[1] == mac and vni in (None, key[0])]
        for key in keys:
            self._tracker.release(key)
            self._touch(key)
        self._settle(now)
        return len(keys)
