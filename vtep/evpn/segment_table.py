"""The entries of one VNI: which place each MAC has, and what follows for this host. No I/O."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

from vtep.evpn.announcement import Announcement
from vtep.evpn.changes import Changes, EvpnFdbChange, EvpnNeighbourChange
from vtep.evpn.duplicates import Move, MoveTracker, place_text
from vtep.evpn.entries import (
    FORMER,
    FdbState,
    IpEntry,
    Local,
    MacEntry,
    best_route,
    held_winner,
    is_same_site,
    place_of,
    rank_of,
    sequence_of,
)
from vtep.evpn.flood_table import FloodTable
from vtep.evpn.local_entries import BridgeChange
from vtep.evpn.own_routes import OwnRoutes
from vtep.evpn.refusals import NEIGHBOUR_REFUSED, REFUSED, Refusals
from vtep.evpn.rib import RibRoute, order_of
from vtep.evpn.table_settings import SegmentSettings
from vtep.ratelimit import LineLimit
from vtep.wire.address import Address
from vtep.wire.ethernet import MAC_ZERO, format_mac

if TYPE_CHECKING:
    from vtep.wire.bgp.attributes import PathAttributes


class SegmentTable:
    """A VNI. Methods that change it mark entries; `settle` decides, and `collect` returns changes.

    A MAC has one place: this host, or the VTEP of its best route. `moves` counts those since the
    start.
    """

    def __init__(self, settings: SegmentSettings, tracker: MoveTracker, lines: LineLimit) -> None:
        self.settings = settings
        self.vni = settings.vni
        self.macs: dict[bytes, MacEntry] = {}
        self.ips: dict[Address, IpEntry] = {}
        self.refusals = Refusals()
        self.floods = FloodTable(settings.vni, self.refusals)
        self.sticky_conflicts: dict[bytes, None] = {}
        """MACs that are pinned here, or sticky at a VTEP, and that are at another place, too."""
        self.own = OwnRoutes(settings)
        self.local_ips: dict[bytes, set[Address]] = {}
        self.conflicts: dict[bytes, float] = {}
        """MACs of this host itself that another one announces, and since when, in seconds."""
        self.moves = 0
        self.fdb_count = 0
        self.neighbour_count = 0
        self._tracker = tracker
        self._lines = lines
        # Marks are dicts instead of sets, so that changes come in the order of their causes.
        self._touched: dict[bytes, None] = {}
        self._changed_macs: dict[bytes, None] = {}
        self._changed_ips: dict[Address, None] = {}
        self._log: list[str] = []
        self._reinstalls = False  # Entries that are installed are in the next changes, too.

    def configure(self, settings: SegmentSettings) -> None:
        """Set other settings, and mark all that they concern."""
        if settings == self.settings:
            return
        self.settings = settings
        self.own.configure(settings)
        self._touched.update(dict.fromkeys(self.macs))
        self._changed_macs.update(dict.fromkeys(self.macs))
        self._changed_ips.update(dict.fromkeys(self.ips))
        self.floods.touch_all()

    # Marks.

    def attach(self, received: RibRoute) -> None:
        """Import a route."""
        mac, ip = received.mac, received.ip
        if mac == MAC_ZERO:
            self.floods.attach(received)
            return
        self.entry(mac).routes.append(received)
        self._touched[mac] = None
        if ip is not None:
            self._ip_entry(ip).routes.append(received)
            self._changed_ips[ip] = None

    def detach(self, received: RibRoute) -> None:
        """Remove a route that was imported."""
        mac, ip = received.mac, received.ip
        if mac == MAC_ZERO:
            self.floods.detach(received)
            return
        self.macs[mac].routes.remove(received)
        self._touched[mac] = None
        if ip is not None:
            self.ips[ip].routes.remove(received)
            self._changed_ips[ip] = None

    def entry(self, mac: bytes) -> MacEntry:
        """Return the entry of a MAC, a new one if there is none."""
        entry = self.macs.get(mac)
        if entry is None:
            entry = self.macs[mac] = MacEntry(self._tracker.last_place((self.vni, mac)))
        return entry

    def _ip_entry(self, ip: Address) -> IpEntry:
        entry = self.ips.get(ip)
        if entry is None:
            entry = self.ips[ip] = IpEntry()
        return entry

    def touch(self, mac: bytes) -> None:
        """Decide again about a MAC when `settle` is called."""
        if mac in self.macs:
            self._touched[mac] = None

    def set_local(self, mac: bytes, *, static: bool, gateway: bool, own: bool) -> None:
        """Add a local MAC, or change what it is.

        Its sequence number exceeds those of all remote routes. That of a sticky MAC is zero (RFC
        7432, section 15.2), and so is that of a gateway, which several hosts may have.

        A MAC of this host (`own`) moves here when it appears, as an address that fails over to
        this host does. Its number is not raised again: two hosts that keep one MAC would raise
        it without end.
        """
        entry = self.entry(mac)
        before = entry.local
        if static or gateway:
            sequence = 0
        elif before is None or before.static or before.gateway:
            sequence = entry.next_sequence()
        else:
            sequence = before.sequence
        entry.local = Local(sequence, static, gateway, own)
        self._touched[mac] = None

    def unset_local(self, mac: bytes) -> None:
        """Remove a local MAC."""
        entry = self.macs.get(mac)
        if entry is not None and entry.local is not None:
            entry.local = None
            self._touched[mac] = None

    def set_neighbour(self, ip: Address, mac: bytes, *, router: bool) -> None:
        """Add the address of a MAC, or give it to another MAC."""
        self.unset_neighbour(ip)
        self._ip_entry(ip).local = (mac, router)
        self.local_ips.setdefault(mac, set()).add(ip)
        self._changed_ips[ip] = None

    def unset_neighbour(self, ip: Address) -> None:
        """Remove the address of a local MAC."""
        entry = self.ips.get(ip)
        if entry is None or entry.local is None:
            return
        mac = entry.local[0]
        entry.local = None
        ips = self.local_ips[mac]
        ips.discard(ip)
        if not ips:
            del self.local_ips[mac]
        self._changed_ips[ip] = None

    def forget_local(self) -> None:
        """Remove all local MACs and addresses."""
        for mac in [mac for mac, entry in self.macs.items() if entry.local is not None]:
            self.unset_local(mac)
        for ip in [ip for ip, entry in self.ips.items() if entry.local is not None]:
            self.unset_neighbour(ip)

    def reinstall(self) -> None:
        """Put all FDB entries and neighbours into the next changes, beside those to delete."""
        self.refusals.clear()
        self._changed_macs.update(dict.fromkeys(self.macs))
        self._changed_ips.update(dict.fromkeys(self.ips))
        self.floods.reinstall()
        self._reinstalls = True

    # Entries that the daemon has refused, which are neither on the bridge port nor counted.

    def note_refused_fdb(self, change: EvpnFdbChange, reason: str) -> bool:
        """Note that the daemon has refused a change. Returns: False if it is outdated."""
        mac, vtep, dst_vni = change.mac, change.vtep, change.dst_vni
        if change.verb == "del" or self._reinstalls:
            return False
        if mac == MAC_ZERO:
            return self.floods.note_refused(vtep, dst_vni, reason)
        entry = self.macs.get(mac)
        state = FdbState(vtep, dst_vni, change.sequence or 0, change.sticky)
        if entry is None or entry.fdb != state:
            return False
        self.refusals.macs[mac] = state, reason
        self._touched[mac] = None
        return True

    def note_refused_neighbour(self, change: EvpnNeighbourChange, reason: str) -> bool:
        """Note that the daemon has refused a change. Returns: False if it is outdated."""
        entry = self.ips.get(change.ip)
        wanted = change.mac, change.router
        if change.verb == "del" or self._reinstalls or entry is None or entry.neighbour != wanted:
            return False
        self.refusals.ips[change.ip] = wanted, reason
        self._changed_ips[change.ip] = None
        return True

    def retry_refused(self) -> bool:
        """Try refused entries again. Returns: True if there are any."""
        refusals = self.refusals
        if not refusals:
            return False
        self._touched.update(dict.fromkeys(mac for mac in refusals.macs if mac in self.macs))
        self.floods.touch_all()
        self._changed_ips.update(dict.fromkeys(ip for ip in refusals.ips if ip in self.ips))
        refusals.clear()
        return True

    def refusal(self, received: RibRoute) -> str | None:
        """Return why an imported route is not used: the daemon has refused its entry."""
        refusals = self.refusals
        if received.mac == MAC_ZERO:
            return REFUSED if received.vtep in refusals.floods else None
        state = refusals.macs.get(received.mac)
        if state is not None and state[0].vtep == received.vtep:
            return REFUSED
        known = None if received.ip is None else refusals.ips.get(received.ip)
        return NEIGHBOUR_REFUSED if known is not None and known[0][0] == received.mac else None

    # Entries of a former speaker.

    def note_fdb(self, mac: bytes, state: FdbState) -> None:
        """Note that the FDB has an entry. A local MAC has moved here from its VTEP, meanwhile."""
        entry = self.entry(mac)
        self.fdb_count += entry.fdb is None
        entry.fdb = state
        if entry.local is not None and not entry.local.is_pinned:
            sequence = max(entry.local.sequence, entry.next_sequence())
            entry.local = entry.local._replace(sequence=sequence)
        self._touched[mac] = None

    def note_bridged(self, mac: bytes) -> None:
        """Note that the bridge port has an entry."""
        self.entry(mac).bridged = False
        self._touched[mac] = None

    def note_neighbour(self, ip: Address, mac: bytes) -> None:
        """Note that there is a neighbour for the suppression of ARP and ND."""
        entry = self._ip_entry(ip)
        self.neighbour_count += entry.neighbour is None
        entry.neighbour = (mac, False)
        self._changed_ips[ip] = None

    # Decisions.

    def settle(self, now: float) -> None:
        """Decide where each MAC is that was marked."""
        if not self._touched:
            return
        touched, self._touched = self._touched, {}
        for mac in touched:
            entry = self.macs[mac]
            self._settle(mac, entry, now)
            self._changed_macs[mac] = None
            for route in entry.routes:
                if route.ip is not None:
                    self._changed_ips[route.ip] = None
            if mac in self.local_ips:
                self._changed_ips.update(dict.fromkeys(self.local_ips[mac]))

    def _settle(self, mac: bytes, entry: MacEntry, now: float) -> None:
        winner = self._winner(mac, entry, now)
        if winner is not None:
            place = place_of(winner)
            is_move = entry.is_known and place != entry.place and not is_same_site(entry, winner)
            if not is_move or self._move(mac, entry, winner, now):
                if place != entry.place or entry.winner is None:
                    entry.since = now
                entry.is_known = True
                entry.place = place
            else:
                winner = held_winner(entry)
        entry.winner = winner
        self._note_conflict(mac, entry, now)
        if isinstance(winner, RibRoute) and entry.local is not None:
            if self._tracker.is_held((self.vni, mac)):
                return
            # The bridge has an entry for the local port, which is to be replaced.
            entry.local = None
            entry.bridged = None

    def _winner(self, mac: bytes, entry: MacEntry, now: float) -> RibRoute | Local | None:
        if entry.is_known and self._tracker.is_held((self.vni, mac)):
            return held_winner(entry)
        best, local = best_route(entry.routes), entry.local
        self.sticky_conflicts.pop(mac, None)
        if local is None or best is None:
            return local or best
        shared = best.shared
        if local.is_pinned:
            # An own MAC that has moved here is still announced by the former host for a while.
            has_moved = local.own and shared.sequence < local.sequence
            if not has_moved and not (local.gateway and shared.attributes.default_gateway):
                self._alert(mac, entry, best, now)
            return local
        if shared.attributes.sticky:
            self._alert(mac, entry, best, now)
            return best
        if shared.sequence != local.sequence:
            return best if shared.sequence > local.sequence else local
        return best if shared.order < self._own_order() else local

    def _own_order(self) -> tuple[int, int]:
        own = self.settings.locals
        return order_of(own[0]) if own else (7, 0)

    def _alert(self, mac: bytes, entry: MacEntry, best: RibRoute, now: float) -> None:
        # RFC 7432, section 15.2: the operator must be alerted.
        self.sticky_conflicts[mac] = None
        if entry.has_alerted:
            return
        entry.has_alerted = True
        local = entry.local
        is_pinned = local is not None and local.is_pinned
        if local is not None and local.own:
            whose = "a MAC of this host itself"
        else:
            whose = "a static MAC of this host" if is_pinned else "local"
        sticky = "as sticky" if best.shared.attributes.sticky else "too"
        result = "it stays local" if is_pinned else "it stays there"
        self._note_line(
            "sticky",
            f"vni {self.vni}: {format_mac(mac)} is {whose}, and {place_text(best.vtep)} announces "
            f"it {sticky}; {result}; two hosts have this MAC, or a sticky one was moved",
            now,
        )

    def _note_conflict(self, mac: bytes, entry: MacEntry, now: float) -> None:
        """Note whether a MAC of this host itself is announced by another one, too."""
        local, best = entry.local, best_route(entry.routes)
        if (
            local is None
            or best is None
            or best.shared.rib.peer == FORMER
            or not local.own
            or local.gateway
            or best.shared.attributes.default_gateway
        ):
            self.conflicts.pop(mac, None)
        else:
            self.conflicts.setdefault(mac, now)

    def _note_line(self, kind: str, text: str, now: float) -> None:
        left_out = self._lines.admit(now, kind)
        if left_out is not None:
            self._log.append(text + left_out)

    def _move(self, mac: bytes, entry: MacEntry, winner: RibRoute | Local, now: float) -> bool:
        """Note a move. Returns: False if it must not happen, as the MAC is held from now on."""
        sequence = sequence_of(winner)
        move = Move(self.vni, mac, entry.place, place_of(winner), sequence, now)
        is_gone = held_winner(entry) is None
        line = self._tracker.note(move, is_gone=is_gone)
        if line is not None:
            self._note_line("duplicate", line, now)
        if self._tracker.is_held((self.vni, mac)) and not is_gone:
            return False
        self.moves += 1
        return True

    # Results.

    def collect(self, changes: Changes) -> None:
        """Add the changes since the last call."""
        changes.log.extend(self._log)
        self._log.clear()
        if self._changed_macs:
            self._collect_macs(changes)
        if self._changed_ips:
            self._collect_ips(changes)
        self._reinstalls = False
        self.own.collect_flood(changes)
        self.floods.collect(changes)

    def _collect_macs(self, changes: Changes) -> None:
        fdb: list[EvpnFdbChange] = []
        bridge: list[BridgeChange] = []
        vni = self.vni
        for mac in self._changed_macs:
            entry = self.macs[mac]
            winner = entry.winner
            wanted: FdbState | None = None
            attributes: PathAttributes | None = None
            if isinstance(winner, RibRoute):
                wanted = self._fdb_state(winner)
            elif winner is not None:
                attributes = self.own.attributes(winner, router=False)
            wanted = self.refusals.admit_mac(mac, wanted)
            had = entry.fdb
            if wanted != had or (self._reinstalls and wanted is not None):
                entry.fdb = wanted
                self.fdb_count += (wanted is not None) - (had is not None)
                if wanted is not None:
                    fdb.append(EvpnFdbChange("replace", mac, *wanted))
                elif had is not None:
                    fdb.append(EvpnFdbChange("del", mac, had.vtep, had.dst_vni))
            port = None if wanted is None else wanted.sticky
            if port != entry.bridged:
                entry.bridged = port
                bridge.append(BridgeChange(mac, port is not None, bool(port)))
            if attributes is not None or entry.announced is not None:
                entry.announced = self.own.change(changes, entry.announced, mac, None, attributes)
            if entry.is_empty and not self._tracker.is_held((vni, mac)):
                del self.macs[mac]
        self._changed_macs.clear()
        if fdb:
            changes.fdb.setdefault(vni, []).extend(fdb)
        if bridge:
            changes.bridge.setdefault(vni, []).extend(bridge)

    def _fdb_state(self, best: RibRoute) -> FdbState | None:
        shared = best.shared
        if not best.is_usable or shared.vtep is None:
            return None
        dst_vni = None if best.label == self.vni else best.label
        return FdbState(shared.vtep, dst_vni, shared.sequence, shared.attributes.sticky)

    def _collect_ips(self, changes: Changes) -> None:
        neighbours: list[EvpnNeighbourChange] = []
        # Only the local gateway answers for its address, whatever others announce.
        gateways = self.settings.gateways
        for ip in self._changed_ips:
            entry = self.ips[ip]
            wanted = None if ip in gateways else self._neighbour(entry)
            wanted = self.refusals.admit_neighbour(ip, wanted)
            had = entry.neighbour
            if wanted != had or (self._reinstalls and wanted is not None):
                entry.neighbour = wanted
                self.neighbour_count += (wanted is not None) - (had is not None)
                if wanted is not None:
                    neighbours.append(EvpnNeighbourChange("replace", ip, *wanted))
                elif had is not None:
                    neighbours.append(EvpnNeighbourChange("del", ip, had[0]))
            if entry.local is not None or entry.announced is not None:
                mac, attributes = MAC_ZERO, None
                if entry.local is not None:
                    mac, router = entry.local
                    mac_entry = self.macs.get(mac)
                    if mac_entry is not None and isinstance(mac_entry.winner, Local):
                        attributes = self.own.attributes(mac_entry.winner, router=router)
                entry.announced = self.own.change(changes, entry.announced, mac, ip, attributes)
            if entry.is_empty:
                del self.ips[ip]
        self._changed_ips.clear()
        if neighbours:
            changes.neighbours.setdefault(self.vni, []).extend(neighbours)

    def _neighbour(self, entry: IpEntry) -> tuple[bytes, bool] | None:
        """Return MAC and router flag of the remote neighbour with an address.

        Its MAC must be at the VTEP that announces the address. Sequence numbers of several MACs
        can't be compared, so the latest route wins among those that neither is sticky or higher.
        """
        if not self.settings.proxy or not entry.routes:
            return None
        if entry.local is not None:
            mac_entry = self.macs.get(entry.local[0])
            if mac_entry is not None and isinstance(mac_entry.winner, Local):
                return None
        best: RibRoute | None = None
        for received in entry.routes:
            winner = self.macs[received.mac].winner
            if (
                isinstance(winner, RibRoute)
                and winner.vtep == received.vtep
                and received.is_usable
                and received.mac not in self.refusals.macs
                and (best is None or rank_of(received) >= rank_of(best))
            ):
                best = received
        return None if best is None else (best.mac, best.shared.attributes.router)

    def own_routes(self) -> Iterator[Announcement]:
        """Yield the own routes as of the last `collect`."""
        if self.own.flood is not None:
            yield self.own.flood
        entries: Iterable[MacEntry | IpEntry] = chain(self.macs.values(), self.ips.values())
        for entry in entries:
            if entry.announced is not None:
                yield entry.announced
