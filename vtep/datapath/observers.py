"""Interfaces of what observes frames, and how it is attached.

An observer is shown each frame by calls *around* those of the data path: it gets the method and its
arguments, and calls it. So it knows what a drop, a reply or a datagram belongs to. While a VNI is
observed, its frames are handled one at a time.

`attach` stores such a call as an attribute of the instance, which hides the method of that name.
Hence the data path looks nothing up and compares nothing while it is not observed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias
from weakref import WeakKeyDictionary

from vtep.counters import Counters, Detail, Drop

if TYPE_CHECKING:
    from vtep.datapath.ingress import TapTarget
    from vtep.datapath.transmitter import Transmitter
    from vtep.forwarding.fdb import Remote
    from vtep.io.interfaces import Received
    from vtep.offload.headers import SegmentPlan
    from vtep.offload.merge import Merged
    from vtep.tunnel_gso.path import SuperframeSender
    from vtep.wire import virtio

Send: TypeAlias = Callable[[memoryview, int, Sequence["Remote"], int, float, int], None]
"""`Transmitter.send`."""

SendSuperframe: TypeAlias = Callable[..., bool]
"""`Transmitter.send_superframe`, or `send_next_superframe`."""

DeliverReceived: TypeAlias = Callable[[memoryview, "Received", float], "TapTarget | None"]
"""`Ingress.deliver_received`."""


DropWatcher: TypeAlias = Callable[[Drop, int], None]
"""Called with the reason of drops, and with their number."""


class EgressObserver(Protocol):
    """An observer of the frames that one VNI sends."""

    transmitter: "Transmitter"
    """The sending half of the data path, set when the observer is attached."""

    def forward(self, forward: Callable[[], None]) -> int:
        """Call `forward`, which reads and sends one frame at most.

        Returns: the octets that were read; 0 if there was no frame.
        """

    def send(
        self,
        send: Send,
        datagrams: memoryview,
        stride: int,
        remotes: "Sequence[Remote]",
        flow: int,
        now: float,
        skip: int,
    ) -> None:
        """Send datagrams; see `Transmitter.send`."""

    def send_superframe(
        self,
        send: SendSuperframe,
        path: "SuperframeSender",
        header: bytes,
        frame: memoryview,
        plan: "SegmentPlan",
        gso: "virtio.Header",
        flow: int,
        now: float,
    ) -> bool:
        """Send a superframe with tunnel GSO; see `Transmitter.send_superframe`."""

    def drop_sent(
        self,
        drop: Callable[[Drop, "Remote", int, memoryview], None],
        reason: Drop,
        remote: "Remote",
        count: int,
        left: memoryview,
    ) -> None:
        """Count datagrams that could not be sent; see `Transmitter.drop_sent`."""


class IngressObserver(Protocol):
    """An observer of the datagrams that one receiving port gets."""

    def deliver_received(
        self, deliver: DeliverReceived, data: memoryview, rx: "Received", now: float
    ) -> "TapTarget | None":
        """Deliver what one receive has returned; see `Ingress.deliver_received`."""

    def deliver_run(
        self,
        deliver: Callable[[memoryview, "Received", float], None],
        data: memoryview,
        rx: "Received",
        now: float,
    ) -> None:
        """Deliver separate datagrams of one size; see `Ingress.deliver_run`."""

    def handle_single(
        self,
        handle: "Callable[[memoryview, int, str, int, float], TapTarget | None]",
        data: memoryview,
        stride: int,
        host: str,
        outer_ecn: int,
        now: float,
    ) -> "TapTarget | None":
        """Admit and deliver one datagram."""

    def merge(
        self, merge: "Callable[[memoryview, int], Iterator[Merged]]", data: memoryview, stride: int
    ) -> "Iterator[Merged]":
        """Merge datagrams; each result is admitted and delivered before the next one is made."""

    def drop_excess(
        self,
        drop: Callable[[memoryview, int, str], None],
        data: memoryview,
        stride: int,
        source: str,
    ) -> None:
        """Drop datagrams of a flow that takes more than its share; see `Demux.drop_excess`."""

    def drop_overlay(
        self,
        drop: Callable[[memoryview, "Received", str], None],
        data: memoryview,
        rx: "Received",
        device: str,
    ) -> None:
        """Drop what has arrived from an overlay device; see `Demux.drop_overlay`."""


def attach(instance: object, calls: Mapping[str, Callable[..., Any]]) -> None:
    """Pass the calls of methods of an instance, by their names, to others, with the method first.

    Those that are attached already are replaced.
    """
    detach(instance, calls)
    for name, call in calls.items():
        setattr(instance, name, partial(call, getattr(instance, name)))


def detach(instance: object, names: "Mapping[str, object] | Sequence[str]") -> None:
    """Call the methods of these names themselves again."""
    for name in names:
        if name in vars(instance):
            delattr(instance, name)


def watch_drops(counters: Counters, watcher: DropWatcher | None) -> None:
    """Report each drop to a watcher, after it was counted; None ends that.

    The instance changes its class meanwhile, so that others never ask for a watcher.
    """
    if watcher is None:
        counters.__class__ = Counters
        _WATCHERS.pop(counters, None)
    else:
        _WATCHERS[counters] = watcher
        counters.__class__ = _WatchedCounters


class _WatchedCounters(Counters):
    """Counters that report drops. No slots of its own, so that an instance can become one."""

    __slots__ = ()

    def drop(
        self,
        reason: Drop,
        source: str | None = None,
        count: int = 1,
        detail: Detail | None = None,
    ) -> None:
        """Count drops, and report them."""
        super().drop(reason, source, count, detail)
        _WATCHERS[self](reason, count)


_WATCHERS: WeakKeyDictionary[Counters, DropWatcher] = WeakKeyDictionary()
