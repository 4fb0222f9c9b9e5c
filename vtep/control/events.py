"""What happens in a running VTEP, told as it happens to whoever watches."""

from collections.abc import Callable, Mapping

from vtep.control import views
from vtep.control.schema import Event
from vtep.daemon.port import Port
from vtep.daemon.vtep import Vtep
from vtep.forwarding.fdb import Entry, EntryEvent
from vtep.wire.ethernet import MAC_ZERO, format_mac

Observer = Callable[[Event], None]


class Events:
    """The changes in a VTEP, one event for each.

    Nothing is done, nor asked of the VTEP's tables, while nobody watches.
    """

    def __init__(self, vtep: Vtep) -> None:
        self._vtep = vtep
        self._observers: list[Observer] = []
        self._unwatch: dict[Port | None, Callable[[], None]] = {}
        self._mtus: dict[Port, int] = {}
        """What is known by those who watch: an MTU that is set takes effect later, or never."""

    def watch(self, observer: Observer) -> Callable[[], None]:
        """Tell every change from now on; what is returned ends that."""
        self._observers.append(observer)
        if len(self._observers) == 1:
            self._unwatch[None] = self._vtep.watch(self._vtep_changed)
            for port in self._vtep.ports.values():
                self._watch_port(port)
        return lambda: self._leave(observer)

    def _leave(self, observer: Observer) -> None:
        self._observers.remove(observer)
        if not self._observers:
            for unwatch in self._unwatch.values():
                unwatch()
            self._unwatch.clear()
            self._mtus.clear()

    def _watch_port(self, port: Port) -> None:
        if port in self._unwatch:  # It was watched before it was opened.
            return

        def changed(what: EntryEvent, entry: Entry) -> None:
            self._tell(_of_entry(port, what, entry))

        self._unwatch[port] = port.fdb.watch(changed)
        self._mtus[port] = port.mtu

    def _vtep_changed(self, what: str, port: Port, details: Mapping[str, object]) -> None:
        event: Event = {"event": what, "vni": port.config.vni, "dev": port.tap}
        if what == "added":
            self._watch_port(port)
            self._tell({**event, "object": "vni"})
        elif what == "deleted":
            self._unwatch.pop(port)()
            del self._mtus[port]
            self._tell({**event, "object": "vni"})
        elif set(details) == {"mtu"}:
            if port.mtu != self._mtus[port]:
                self._mtus[port] = port.mtu
                self._tell({**event, "object": "mtu", "mtu": port.mtu})
        else:
            # Those of the remotes have been told as what became of the default entry.
            options = {
                views.option(name): views.plain(value)
                for name, value in details.items()
                if name != "remote"
            }
            if options:
                self._tell({**event, "object": "config", "options": options})

    def _tell(self, event: Event) -> None:
        for observer in self._observers:
            observer(event)


def _of_entry(port: Port, what: EntryEvent, entry: Entry) -> Event:
    state, extern_learn, sticky = views.kind(entry.kind)
    return {
        "event": str(what),
        "object": "remote" if entry.mac == MAC_ZERO else "fdb",
        "vni": port.config.vni,
        "dev": port.config.tap,  # Not asked of the kernel: frames wait for this.
        "mac": format_mac(entry.mac),
        "destinations": [views.destination(port.fdb, remote) for remote in entry.destinations],
        "state": state,
        "extern_learn": extern_learn,
        "sticky": sticky,
    }
