"""The captures of a VTEP: they attach recorders to the VNIs concerned, and remove them again."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from attrs import define, field

from vtep.capture.addresses import OuterAddresses
from vtep.capture.events import FrameEvent, FrameSplitter, RecordGroup
from vtep.capture.recorders import ListenerRecorder, PortRecorder
from vtep.capture.session import CaptureSession, Place
from vtep.counters import Counters, Drop
from vtep.errors import VtepError

if TYPE_CHECKING:
    from vtep.daemon.listener import Listener
    from vtep.daemon.port import Port
    from vtep.daemon.vtep import Vtep

CAPTURES_MAX: Final = 8
"""Captures at a time, each of which has a buffer of some MiB."""

_REFRESH_S = 1.0
"""Seconds between two looks for listeners that were opened and TAPs that were replaced."""

_OF_QUEUES = (Drop.RX_QUEUE_FULL, Drop.UDP_CHECKSUM)
"""Drops by the kernel, before the VNI of a datagram is known."""

Vnis: TypeAlias = frozenset[int] | None
"""The VNIs of a capture; None for all, and for datagrams that belong to none."""


class EventWatcher(Protocol):
    """A function that is shown events, beside the captures."""

    def __call__(self, event: FrameEvent, port: "Port | None") -> None:
        """Note an event of a port, or of none."""


@define(eq=False)
class _Subscription:
    """A capture, or a watcher of events, of some VNIs."""

    vnis: Vnis
    session: CaptureSession | None
    watcher: EventWatcher | None
    before: dict[Counters, Counter[Drop]] = field(factory=dict)
    """Drops that could not be shown, when it began."""


class Captures:
    """The captures of a VTEP, and other watchers of its frames.

    A VNI that is captured is off the fast path. `current` is the event of what is handled now; it
    is for the recorders.
    """

    def __init__(self, vtep: "Vtep") -> None:
        self.current: FrameEvent | None = None
        self._vtep = vtep
        self._subscriptions: list[_Subscription] = []
        self._recorders: dict[int, PortRecorder] = {}
        self._listeners: dict[Listener, ListenerRecorder] = {}
        self._addresses = OuterAddresses()
        self._splitter = FrameSplitter()
        self._next_id = 1
        self._unwatch: Callable[[], None] = lambda: None
        self._timer: asyncio.TimerHandle | None = None
        # The drops that were shown so far: a VNI may be captured again and again.
        self._shown: dict[Counters, Counter[Drop]] = {}
        self.wants_all = False
        """True if datagrams that belong to no VNI are captured, too."""

    # --- for the owners of captures -------------------------------------------------------------

    @property
    def count(self) -> int:
        """The number of captures that run."""
        return sum(each.session is not None for each in self._subscriptions)

    def places(self, vnis: Vnis) -> Iterator[Place]:
        """Yield the places of some VNIs, as a capture names them."""
        for vni, port in self._vtep.ports.items():
            if vnis is None or vni in vnis:
                yield vni, port.tap
        if vnis is None:
            yield None

    def check_room(self) -> None:
        """Raise VtepError if too many captures run already."""
        if self.count >= CAPTURES_MAX:
            raise VtepError(f"{self.count} captures run already: end one, and try again")

    def start(self, session: CaptureSession, vnis: Vnis) -> None:
        """Begin a capture of some VNIs. It is ended by `stop`, or by the end of its VNI."""
        self._subscribe(_Subscription(vnis, session, None))

    def stop(self, session: CaptureSession) -> dict[Drop, int]:
        """End a capture. Returns: the drops meanwhile that it could not show, by reason."""
        for each in self._subscriptions:
            if each.session is session:
                unseen = self._unseen(each)
                self._unsubscribe(each)
                return {reason: n for reason, n in sorted(unseen.items()) if n > 0}
        return {}

    def watch(self, vnis: Vnis, watcher: EventWatcher) -> Callable[[], None]:
        """Show a watcher every event of some VNIs from now on.

        A watcher sees octets as they were before anything was done to them: `SentFrame.frame` with
        its virtio header `meta`, and `ReceivedDatagrams.datagrams`, which may be several that had
        one result. It is called in the data path, and must not wait.

        Returns: a function that ends this. It may be called in the watcher.
        """
        subscription = _Subscription(vnis, None, watcher)
        self._subscribe(subscription)

        def end() -> None:
            if subscription in self._subscriptions:
                # The data path is not changed while it handles a frame.
                self._subscriptions.remove(subscription)
                asyncio.get_running_loop().call_soon(self._refresh)

        return end

    def end_all(self, why: str) -> None:
        """End all captures: their readers get what waits, and the reason."""
        for each in self._subscriptions:
            if each.session is not None:
                each.session.end(why)

    def _subscribe(self, subscription: _Subscription) -> None:
        if not self._subscriptions:
            self._unwatch = self._vtep.watch(self._on_change)
            self._schedule()
        self._subscriptions.append(subscription)
        self._refresh()
        self._vtep.counters()  # Reads the drops in the kernel that were before.
        subscription.before = dict(self._unshown(subscription))

    def _unsubscribe(self, subscription: _Subscription) -> None:
        self._subscriptions.remove(subscription)
        self._refresh()

    # --- for the recorders: see `EventSink` -----------------------------------------------------

    def recorder(self, vni: int) -> PortRecorder | None:
        """Return the recorder of a VNI; None if it is not captured."""
        return self._recorders.get(vni)

    def publish(self, event: FrameEvent, recorder: PortRecorder | None) -> None:
        """Show an event that is complete to those that watch its VNI."""
        vni = None if recorder is None else recorder.port.config.vni
        port = None if recorder is None else recorder.port
        made: dict[bool, list[RecordGroup]] = {}
        for each in tuple(self._subscriptions):
            if each.vnis is not None and vni not in each.vnis:
                continue
            if each.watcher is not None:
                each.watcher(event, port)
            if each.session is not None and not each.session.ended and each.session.may_keep(event):
                superframes = each.session.options.superframes
                groups = made.get(superframes)
                if groups is None:
                    groups = made[superframes] = self._groups(event, superframes=superframes)
                each.session.offer(None if recorder is None else recorder.place, groups)

    def _groups(self, event: FrameEvent, *, superframes: bool) -> list[RecordGroup]:
        event.first_id = self._next_id
        groups = list(event.groups(self._splitter, superframes=superframes))
        self._next_id += len(groups)
        for group in groups:
            for record in group:
                record.time_ns = event.time_ns
        return groups

    def _count_of(self, counters: Counters) -> Counter[Drop]:
        return self._shown.setdefault(counters, Counter())

    # --- recorders ------------------------------------------------------------------------------

    def _on_change(self, _what: str, _port: "Port", _values: Mapping[str, object]) -> None:
        self._refresh()

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_REFRESH_S, self._on_timer)

    def _on_timer(self) -> None:
        self._refresh()
        if self._subscriptions:
            self._schedule()

    def _refresh(self) -> None:
        """Attach recorders where they are missing, and detach those that are not needed."""
        wanted = [each.vnis for each in self._subscriptions]
        ports = self._vtep.ports
        self.wants_all = None in wanted
        for vni, recorder in tuple(self._recorders.items()):
            is_wanted = self.wants_all or any(vnis is not None and vni in vnis for vnis in wanted)
            if not is_wanted or ports.get(vni) is not recorder.port or not recorder.is_current:
                del self._recorders[vni]
                recorder.detach()
        for vni, port in ports.items():
            is_wanted = self.wants_all or any(vnis is not None and vni in vnis for vnis in wanted)
            if is_wanted and vni not in self._recorders and port.is_open:
                self._recorders[vni] = recorder = PortRecorder(
                    *(self, port, self._addresses, self._count_of(port.segment.counters))
                )
                recorder.attach()
        listeners = set(self._vtep.listeners) if self._subscriptions else set()
        for listener in self._listeners.keys() - listeners:
            self._listeners.pop(listener).detach()
        for listener in listeners - self._listeners.keys():
            shown = self._count_of(listener.demux.counters)
            made = ListenerRecorder(self, listener, self._addresses, shown)
            self._listeners[listener] = made
            made.attach()
        for each in self._subscriptions:
            if each.session is not None and each.vnis and each.vnis.isdisjoint(ports):
                each.session.end("the VNI was deleted")
        if not self._subscriptions:
            self._unwatch()
            self._unwatch = lambda: None
            self._shown.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    # --- drops that cannot be shown -------------------------------------------------------------

    def _unshown(self, each: _Subscription) -> Iterator[tuple[Counters, Counter[Drop]]]:
        """Yield the counters that concern a capture, with the drops that no recorder has shown."""
        of_all = [listener.demux.counters for listener in self._vtep.listeners]
        of_all.append(self._vtep.namespace_counters)
        for vni, port in self._vtep.ports.items():
            if each.vnis is None or vni in each.vnis:
                counters = port.segment.counters
                yield counters, _difference(counters.drops, self._shown.get(counters, {}))
        for counters in of_all:
            drops = counters.drops
            if each.vnis is not None:
                # The others are of datagrams of other VNIs, or of none.
                drops = {reason: drops[reason] for reason in _OF_QUEUES}
            yield counters, _difference(drops, self._shown.get(counters, {}))

    def _unseen(self, each: _Subscription) -> Counter[Drop]:
        """Return the drops during a capture that it could not show."""
        self._vtep.counters()  # Reads those in the kernel.
        total: Counter[Drop] = Counter()
        for counters, now in self._unshown(each):
            total.update(_difference(now, each.before.get(counters, {})))
        return total


def _difference(now: Mapping[Drop, int], before: Mapping[Drop, int]) -> Counter[Drop]:
    return Counter({reason: count - before.get(reason, 0) for reason, count in now.items()})
