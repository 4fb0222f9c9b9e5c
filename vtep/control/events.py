"""The events of a running VTEP, for the subscribers of the control socket."""

from collections.abc import Callable, Mapping

from vtep.control import views
from vtep.control.schema import MonitorEvent
from vtep.daemon.port import Port
from vtep.daemon.vtep import Vtep
from vtep.forwarding.fdb import Entry, EntryEvent
from vtep.forwarding.liveness import LivenessState
from vtep.forwarding.storm import Storm
from vtep.wire.ethernet import MAC_ZERO, format_mac

Observer = Callable[[MonitorEvent], None]


class Events:
    """The source of events: one for each change of a VTEP.

    While there are no observers, it watches neither the VTEP nor its FDBs, and costs nothing.
    """

    def __init__(self, vtep: Vtep) -> None:
        self._vtep = vtep
        self._observers: list[Observer] = []
        self._unwatch: dict[Port | None, Callable[[], None]] = {}
        self._mtus: dict[Port, int] = {}
        """The MTUs that observers know of: one that is set takes effect later, or never."""

    def watch(self, observer: Observer) -> Callable[[], None]:
        """Notify an observer of every change from now on. Returns: a function that ends this."""
        self._observers.append(observer)
        if len(self._observers) == 1:
            self._unwatch[None] = self._vtep.watch(self._vtep_changed)
            self._vtep.liveness.watchers.append(self._liveness_changed)
            self._vtep.evpn_watchers.append(self._session_changed)
            for port in self._vtep.ports.values():
                self._watch_port(port)
        return lambda: self._unsubscribe(observer)

    def _unsubscribe(self, observer: Observer) -> None:
        self._observers.remove(observer)
        if not self._observers:
            for unwatch in self._unwatch.values():
                unwatch()
            self._vtep.liveness.watchers.remove(self._liveness_changed)
            self._vtep.evpn_watchers.remove(self._session_changed)
            self._unwatch.clear()
            self._mtus.clear()

    def _watch_port(self, port: Port) -> None:
        if port in self._unwatch:  # It was configured, but not open, when `watch` was called.
            return

        def changed(what: EntryEvent, entry: Entry) -> None:
            self._notify(_of_entry(port, what, entry))

        def loop_changed(what: str, host: str, _seconds: float) -> None:
            details: MonitorEvent = {"event": what, "object": "loop", "remote": host}
            self._notify({**details, "vni": port.config.vni, "dev": port.config.tap})

        def storm_changed(what: str, storm: Storm) -> None:
            details: MonitorEvent = {"event": what, "object": "storm", "dropped": storm.dropped}
            source = views.flood_source(storm.source)
            self._notify({**details, **source, "vni": port.config.vni, "dev": port.config.tap})

        unwatch, segment = port.fdb.watch(changed), port.segment
        segment.loops.watchers.append(loop_changed)
        segment.storm.watchers.append(storm_changed)

        def end() -> None:
            unwatch()
            segment.loops.watchers.remove(loop_changed)
            segment.storm.watchers.remove(storm_changed)

        self._unwatch[port] = end
        self._mtus[port] = port.mtu

    def _liveness_changed(self, state: LivenessState, port: Port, host: str) -> None:
        event: MonitorEvent = {"event": str(state), "object": "remote-liveness", "remote": host}
        self._notify({**event, "vni": port.config.vni, "dev": port.config.tap})

    def _session_changed(self, what: str, neighbor: str) -> None:
        self._notify({"event": what, "object": "evpn-session", "remote": neighbor})

    def _vtep_changed(self, what: str, port: Port, details: Mapping[str, object]) -> None:
        event: MonitorEvent = {"event": what, "vni": port.config.vni, "dev": port.tap}
        if what == "added":
            self._watch_port(port)
            self._notify({**event, "object": "vni"})
        elif what == "deleted":
            self._unwatch.pop(port)()
            del self._mtus[port]
            self._notify({**event, "object": "vni"})
        elif set(details) == {"mtu"}:
            if port.mtu != self._mtus[port]:
                self._mtus[port] = port.mtu
                self._notify({**event, "object": "mtu", "mtu": port.mtu})
        else:
            # Changes of the remotes were reported as changes of the default entry.
            options = {
                views.option(name): views.plain(value)
                for name, value in details.items()
                if name != "remote"
            }
            if options:
                self._notify({**event, "object": "config", "options": options})

    def _notify(self, event: MonitorEvent) -> None:
        for observer in self._observers:
            observer(event)


def _of_entry(port: Port, what: EntryEvent, entry: Entry) -> MonitorEvent:
    state, extern_learn, sticky = views.kind(entry.kind)
    return {
        "event": str(what),
        "object": "remote" if entry.mac == MAC_ZERO else "fdb",
        "vni": port.config.vni,
        "dev": port.config.tap,  # To ask the kernel for its present name would delay frames.
        "mac": format_mac(entry.mac),
        "destinations": [
            views.destination(port.fdb, remote, origin) for remote, origin in entry.origins()
        ],
        "state": state,
        "extern_learn": extern_learn,
        "sticky": sticky,
    }
