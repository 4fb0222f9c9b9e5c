"""EVPN policy: which VTEP has each MAC, who gets flooded frames, and what this host announces.

`Tables` takes routes of peers and entries of local bridges, and returns changes. It does no I/O and
reads no clock: `now` is in seconds of any monotonic clock.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from vtep.control.evpn_schema import (
    EvpnDuplicate,
    EvpnLabelConflict,
    EvpnMac,
    EvpnMove,
    EvpnRoute,
    EvpnSegment,
    EvpnUnmatched,
    EvpnVtep,
)
from vtep.evpn.announcement import Announcement
from vtep.evpn.changes import Changes
from vtep.evpn.table_settings import SegmentSettings, SpeakerSettings
from vtep.wire.address import Address
from vtep.wire.bgp.update import Update


class StaleMac(NamedTuple):
    """The place of a MAC that a former speaker has put into the FDB."""

    vtep: Address
    sequence: int = 0
    sticky: bool = False
    dst_vni: int | None = None


class Tables:
    """The routes of all peers, the local entries, and what follows from them."""

    def __init__(self, settings: SpeakerSettings) -> None:
        self._settings = settings

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
        raise NotImplementedError

    # Routes of peers, which are named as in `SpeakerSettings.neighbors`.

    def peer_up(self, peer: str, now: float, *, preserved: bool = False) -> None:
        """Note an established session.

        Stale routes of the peer are kept if it has `preserved` its forwarding state (RFC 4724,
        section 4.2), else removed.
        """
        raise NotImplementedError

    def update(self, peer: str, update: Update, now: float) -> None:
        """Take the routes of an UPDATE message; an End-of-RIB marker included."""
        raise NotImplementedError

    def end_of_rib(self, peer: str, now: float) -> None:
        """Remove routes of a peer that are stale still: it has sent all that it has."""
        raise NotImplementedError

    def peer_down(self, peer: str, now: float, retain: float | None = None) -> None:
        """Note the end of a session. Routes are stale for `retain` seconds, or removed with None.

        Routes that are stale already are removed (RFC 4724, section 4.2).
        """
        raise NotImplementedError

    def peer_removed(self, peer: str, now: float) -> None:
        """Remove a peer that is configured no longer, with its routes."""
        raise NotImplementedError

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
        have sent End-of-RIB, or after `stale_time`.
        """
        raise NotImplementedError

    # Local entries: `LocalEvents` with the time.

    def mac_added(
        self, vni: int, mac: bytes, now: float, *, static: bool = False, gateway: bool = False
    ) -> None:
        """Note a local MAC: a frame of it was seen, or it is configured (`static`: sticky)."""
        raise NotImplementedError

    def mac_removed(self, vni: int, mac: bytes, now: float) -> None:
        """Note that a MAC is local no longer."""
        raise NotImplementedError

    def neighbour_added(
        self, vni: int, ip: Address, mac: bytes, now: float, *, router: bool = False
    ) -> None:
        """Note the address of a MAC. It is announced while the MAC is local."""
        raise NotImplementedError

    def neighbour_removed(self, vni: int, ip: Address, now: float) -> None:
        """Note that an address is gone."""
        raise NotImplementedError

    def segment_lost(self, vni: int, now: float) -> None:
        """Forget all local MACs and addresses of a VNI."""
        raise NotImplementedError

    # Results.

    def tick(self, now: float) -> float | None:
        """Let times run out: stale routes, held MACs. Returns: when to call again; None: never."""
        raise NotImplementedError

    def take(self) -> Changes:
        """Return the changes since the last call, and forget them."""
        raise NotImplementedError

    def reinstall(self, vni: int) -> None:
        """Put all entries of a VNI into the next changes: its FDB was flushed or made anew."""
        raise NotImplementedError

    def own_routes(self) -> Iterator[Announcement]:
        """Yield all own routes, for a session that is established or asks for a refresh."""
        raise NotImplementedError

    def clear_duplicate(self, mac: bytes, vni: int | None, now: float) -> int:
        """Release a duplicate MAC, in one VNI or in all. Returns: how many were released."""
        raise NotImplementedError

    # Views: ages are in seconds until `now`.

    def routes(
        self,
        now: float,
        *,
        vni: int | None = None,
        kind: int | None = None,
        mac: bytes | None = None,
    ) -> Iterator[EvpnRoute]:
        """Yield own and received routes of types 2 and 3 that match all filters."""
        raise NotImplementedError

    def macs(
        self, now: float, *, vni: int | None = None, mac: bytes | None = None
    ) -> Iterator[EvpnMac]:
        """Yield local and remote MACs."""
        raise NotImplementedError

    def vteps(self, now: float, *, vni: int | None = None) -> list[EvpnVtep]:
        """Return remote VTEPs by VNI."""
        raise NotImplementedError

    def moves(
        self, now: float, *, vni: int | None = None, mac: bytes | None = None
    ) -> list[EvpnMove]:
        """Return the latest moves of MACs, the last one first; at most 1,000."""
        raise NotImplementedError

    def duplicates(self, now: float, *, vni: int | None = None) -> list[EvpnDuplicate]:
        """Return MACs that move too often."""
        raise NotImplementedError

    def unmatched(self) -> list[EvpnUnmatched]:
        """Return VTEPs with routes that no VNI imports, by peer."""
        raise NotImplementedError

    def label_conflicts(self) -> list[EvpnLabelConflict]:
        """Return VTEPs with routes whose label contradicts their derived route target."""
        raise NotImplementedError

    def ignored(self) -> dict[str, int]:
        """Return the number of routes of types that are not used, by type."""
        raise NotImplementedError

    def not_installed(self) -> dict[str, int]:
        """Return the number of imported routes that can't be used, by reason."""
        raise NotImplementedError

    def segments(self) -> list[EvpnSegment]:
        """Return a summary of each VNI."""
        raise NotImplementedError
