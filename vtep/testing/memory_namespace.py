"""Another network namespace in memory, in which a `MemoryNetwork` has a TAP."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from vtep.host.link_table import LinkTable

if TYPE_CHECKING:
    from vtep.daemon.network import NetworkEvents
    from vtep.testing.memory_network import MemoryNetwork


class MemoryTapNamespace:
    """The view of a `MemoryNetwork` that a TAP in it has which belongs to another network."""

    def __init__(self, network: "MemoryNetwork") -> None:
        self._network = network
        self._events: NetworkEvents | None = None
        self.links = LinkTable()
        self.run = network.run
        self.device_index = network.device_index
        self.open_tap = network.open_tap
        self.tap_queue_drops = network.tap_queue_drops

    @property
    def end(self) -> str | None:
        """Why the namespace has ended; None if it has not."""
        return self._network.end

    def watch(self, on_changed: Callable[[], None]) -> None:
        """Call a function now and whenever a link or an address of the namespace has changed."""
        self._events = self._network.subscribe()
        self._events.start(_Notified(on_changed))
        on_changed()

    def unwatch(self) -> None:
        """End that."""
        if self._events is not None:
            self._events.close()
            self._events = None

    async def read_links(self) -> None:
        """Read all devices."""
        self.links.clear()
        for message in self._network.link_messages():
            self.links.update(message)

    def descriptors(self) -> Iterator[tuple[str, int]]:
        """Yield nothing: memory has no descriptors."""
        yield from ()

    def close(self) -> None:
        """End the notifications."""
        self.unwatch()


class _Notified:
    """A `NetworkEventHandler` that does one thing for each notification."""

    def __init__(self, notify: Callable[[], None]) -> None:
        self.on_links_changed = self.on_routes_changed = notify
        self.on_addresses_changed = self.on_policies_changed = notify
