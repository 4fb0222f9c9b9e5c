"""The VTEPs of a VNI that want flooded frames, by their routes of type 3. No I/O."""

from vtep.evpn.changes import Changes, EvpnFdbChange
from vtep.evpn.refusals import Refusals
from vtep.evpn.rib import RibRoute
from vtep.wire.address import Address
from vtep.wire.ethernet import MAC_ZERO


class FloodTable:
    """The routes of type 3 of a VNI, and the destinations of flooded frames in the daemon."""

    def __init__(self, vni: int, refusals: Refusals) -> None:
        self.routes: dict[Address, list[RibRoute]] = {}
        self.installed: dict[Address, int | None] = {}
        """Destinations in the daemon, with their VNI if it is another one."""
        self._vni = vni
        self._refusals = refusals
        # A dict instead of a set, so that changes come in the order of their causes.
        self._changed: dict[Address, None] = {}
        self._reinstalls = False

    def attach(self, received: RibRoute) -> None:
        """Import a route."""
        if received.vtep is not None:
            self.routes.setdefault(received.vtep, []).append(received)
            self._changed[received.vtep] = None

    def detach(self, received: RibRoute) -> None:
        """Remove a route that was imported."""
        if received.vtep is not None:
            self.routes[received.vtep].remove(received)
            self._changed[received.vtep] = None

    def touch_all(self) -> None:
        """Decide again about all VTEPs."""
        self._changed.update(dict.fromkeys(self.routes))

    def note(self, vtep: Address) -> None:
        """Note that flooded frames are sent to a VTEP."""
        self.installed[vtep] = None
        self._changed[vtep] = None

    def note_refused(self, vtep: Address, dst_vni: int | None, reason: str) -> bool:
        """Note that the daemon has refused a destination. Returns: False if that is outdated."""
        if self.installed.get(vtep, -1) != dst_vni:
            return False
        del self.installed[vtep]
        self._refusals.floods[vtep] = dst_vni, reason
        return True

    def reinstall(self) -> None:
        """Put all destinations into the next changes, beside those to delete."""
        self._reinstalls = True
        self.touch_all()

    def collect(self, changes: Changes) -> None:
        """Add the changes since the last call."""
        if not self._changed:
            return
        fdb: list[EvpnFdbChange] = []
        for vtep in self._changed:
            self._collect(fdb, vtep)
        self._changed.clear()
        self._reinstalls = False
        if fdb:
            changes.fdb.setdefault(self._vni, []).extend(fdb)

    def _collect(self, fdb: list[EvpnFdbChange], vtep: Address) -> None:
        routes = self.routes.get(vtep, [])
        usable = [route for route in routes if route.is_usable]
        if not routes:
            self.routes.pop(vtep, None)
        if not usable:
            self._refusals.floods.pop(vtep, None)
            if vtep in self.installed:
                fdb.append(EvpnFdbChange("del", MAC_ZERO, vtep, self.installed.pop(vtep)))
            return
        label = usable[0].label
        dst_vni = None if label in (None, self._vni) else label
        if self._refusals.refuses_flood(vtep, dst_vni):
            return
        if vtep in self.installed:
            if self.installed[vtep] != dst_vni:
                fdb.append(EvpnFdbChange("del", MAC_ZERO, vtep, self.installed[vtep]))
            elif not self._reinstalls:
                return
        fdb.append(EvpnFdbChange("append", MAC_ZERO, vtep, dst_vni))
        self.installed[vtep] = dst_vni
