"""The routes that this host announces for one VNI. No I/O."""

from vtep.evpn.announcement import Announcement
from vtep.evpn.changes import Changes
from vtep.evpn.entries import Local
from vtep.evpn.table_settings import SegmentSettings
from vtep.wire.address import Address
from vtep.wire.bgp.attributes import INGRESS_REPLICATION, PathAttributes, Pmsi
from vtep.wire.bgp.evpn import NO_ESI, MacIpRoute, MulticastRoute


class OwnRoutes:
    """The attributes of own routes, and those routes that concern the whole VNI.

    `count` is the number of all own routes that are announced.
    """

    def __init__(self, settings: SegmentSettings) -> None:
        self.count = 0
        self.flood: Announcement | None = None
        """The type 3 route, by which this host receives flooded frames."""
        self._settings = settings
        self._is_changed = True
        self._attributes: dict[tuple[int, bool, bool, bool], PathAttributes] = {}

    def configure(self, settings: SegmentSettings) -> None:
        """Set other settings of the VNI."""
        self._settings = settings
        self._attributes.clear()
        self._is_changed = True

    def attributes(self, local: Local, *, router: bool) -> PathAttributes | None:
        """Return the attributes of a local MAC: the same object for the same ones.

        Returns: None if this host has no VTEP address.
        """
        settings = self._settings
        if not settings.locals:
            return None
        key = local.sequence, local.static, local.gateway, router
        attributes = self._attributes.get(key)
        if attributes is None:
            attributes = self._attributes[key] = PathAttributes(
                next_hop=settings.locals[0],
                route_targets=settings.export_targets,
                sequence=local.sequence,
                sticky=local.static,
                default_gateway=local.gateway,
                router=router,
            )
        return attributes

    def change(
        self,
        changes: Changes,
        present: Announcement | None,
        mac: bytes,
        ip: Address | None,
        attributes: PathAttributes | None,
    ) -> Announcement | None:
        """Announce or withdraw a type 2 route unless that has been done.

        Without `attributes`, it is withdrawn. Returns: what is announced now.
        """
        settings = self._settings
        wanted: Announcement | None = None
        if attributes is not None:
            route = MacIpRoute(settings.rd, NO_ESI, 0, mac, ip, settings.vni)
            wanted = Announcement(route, attributes)
        self._replace(changes, present, wanted)
        return wanted

    def collect_flood(self, changes: Changes) -> None:
        """Announce or withdraw the type 3 route if the settings have changed."""
        if not self._is_changed:
            return
        self._is_changed = False
        wanted = self._flood()
        self._replace(changes, self.flood, wanted)
        self.flood = wanted

    def _replace(
        self, changes: Changes, present: Announcement | None, wanted: Announcement | None
    ) -> None:
        if present == wanted:
            return
        if present is not None and (wanted is None or wanted.route != present.route):
            changes.withdraw.append(present.route)
        if wanted is not None:
            changes.announce.append(wanted)
        self.count += (wanted is not None) - (present is not None)

    def _flood(self) -> Announcement | None:
        settings = self._settings
        if not settings.locals:
            return None
        vtep = settings.locals[0]
        attributes = PathAttributes(
            next_hop=vtep,
            route_targets=settings.export_targets,
            pmsi=Pmsi(0, INGRESS_REPLICATION, settings.vni, vtep),
        )
        return Announcement(MulticastRoute(settings.rd, 0, vtep), attributes)
