"""The local side of EVPN segments: entries of the host's bridges, read and written by rtnetlink."""

from collections.abc import Iterable, Mapping

from vtep.evpn.local_entries import BridgeChange, LocalEvents, TapPlace


class BridgeWatch:
    """Reports local MACs and addresses of EVPN VNIs, and writes remote MACs to bridge ports.

    All methods are called in the thread of the running event loop, which also calls `events`.
    """

    def __init__(self, events: LocalEvents) -> None:
        self._events = events

    async def start(self) -> None:
        """Subscribe to links, FDB entries, neighbours and addresses, and read them."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Close the sockets, and restore the learning of bridge ports. Entries remain."""
        raise NotImplementedError

    def configure(self, places: Mapping[int, TapPlace], *, learning: Iterable[int] = ()) -> None:
        """Watch the TAPs of these VNIs, and no others.

        Learning is switched off on the bridge port of each TAP, but for the VNIs in `learning`.
        Side effects: reports the entries of new VNIs, then calls `synced` for each.
        """
        raise NotImplementedError

    def apply(self, changes: Mapping[int, Iterable[BridgeChange]]) -> None:
        """Write entries to, or delete them from, the bridge ports of the TAPs of these VNIs.

        Returns at once: entries are written in batches between other events. They are kept, and
        written again if the TAP joins another bridge. Those of a TAP without a bridge are not
        written. Errors are logged.
        """
        raise NotImplementedError

    def remote_macs(self, vni: int) -> frozenset[bytes]:
        """Return MACs with an `extern_learn` entry on the bridge port of a TAP.

        After `synced`, these are what a former speaker has left.
        """
        raise NotImplementedError

    def set_port_learning(self, tap: str, *, on: bool) -> None:
        """Switch the learning of a TAP's bridge port, if it has one."""
        raise NotImplementedError
