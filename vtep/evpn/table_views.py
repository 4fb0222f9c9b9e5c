"""The state of `Tables`, and views of it for `pyvtep evpn show` and the status. No I/O."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vtep.control.evpn_schema import (
    EvpnDuplicate,
    EvpnLabelConflict,
    EvpnMac,
    EvpnMove,
    EvpnReplacedNextHop,
    EvpnRoute,
    EvpnSegment,
    EvpnUnmatched,
    EvpnVtep,
)
from vtep.evpn import views
from vtep.evpn.duplicates import MoveTracker
from vtep.evpn.next_hops import replaced_next_hops
from vtep.evpn.segment_table import SegmentTable

if TYPE_CHECKING:
    from vtep.evpn.import_policy import ImportPolicy
    from vtep.evpn.rib import AdjRibIn


class TableViews:
    """The tables of all VNIs and peers. Ages in views are in seconds until `now`."""

    def __init__(self, tracker: MoveTracker, policy: "ImportPolicy") -> None:
        self._segments: dict[int, SegmentTable] = {}
        self._ribs: dict[str, AdjRibIn] = {}
        self._tracker = tracker
        self._policy = policy
        self._refused = views.Refused()

    def _selected(self, vni: int | None) -> list[SegmentTable]:
        return [segment for segment in self._segments.values() if vni in (None, segment.vni)]

    def routes(
        self,
        now: float,
        *,
        vni: int | None = None,
        kind: int | None = None,
        mac: bytes | None = None,
    ) -> Iterator[EvpnRoute]:
        """Yield own and received routes of types 2 and 3 that match all filters."""
        return views.routes(self._segments, self._ribs.values(), now, vni=vni, kind=kind, mac=mac)

    def macs(
        self, now: float, *, vni: int | None = None, mac: bytes | None = None
    ) -> Iterator[EvpnMac]:
        """Yield local and remote MACs."""
        return views.macs(self._selected(vni), self._tracker, now, mac)

    def vteps(self, now: float, *, vni: int | None = None) -> list[EvpnVtep]:
        """Return remote VTEPs by VNI."""
        return views.vteps(self._selected(vni), now)

    def moves(
        self, now: float, *, vni: int | None = None, mac: bytes | None = None
    ) -> list[EvpnMove]:
        """Return the latest moves of MACs, the last one first; at most 1,000."""
        return views.moves(self._tracker, now, vni=vni, mac=mac)

    def duplicates(self, now: float, *, vni: int | None = None) -> list[EvpnDuplicate]:
        """Return MACs that move too often."""
        return views.duplicates(self._selected(vni), self._tracker, now)

    def unmatched(self) -> list[EvpnUnmatched]:
        """Return VTEPs with routes that no VNI imports; those of VNIs of this host come first."""
        return self._refused.unmatched(self._segments)

    def label_conflicts(self) -> list[EvpnLabelConflict]:
        """Return VTEPs with routes whose label contradicts their derived route target."""
        return self._refused.label_conflicts(self._policy)

    def replaced_next_hops(self) -> list[EvpnReplacedNextHop]:
        """Return neighbours that are the next hop of routes of others, without being VTEPs."""
        return replaced_next_hops(self._segments.values())

    def ignored(self) -> dict[str, int]:
        """Return the number of routes of types that are not used, by type."""
        return views.ignored(self._ribs.values())

    def not_installed(self) -> dict[str, int]:
        """Return the number of received routes that can't be used, by reason."""
        return views.not_installed(self._refused, self._segments.values())

    def problems(self) -> list[str]:
        """Return problems of the fabric, each with what to do."""
        return views.problems(self._refused, self._segments.values())

    def segments(self) -> list[EvpnSegment]:
        """Return a summary of each VNI."""
        return [views.segment(segment) for segment in self._segments.values()]
