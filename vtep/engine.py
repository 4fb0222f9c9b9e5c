"""A VTEP as a whole: it opens the two ends, has frames moved between them, and keeps time.

Whatever touches the host happens in the shells that it owns. How frames move is in `datapath`.
"""

import asyncio
import logging
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from types import TracebackType
from typing import Self

from vtep import netlink
from vtep.config import Config
from vtep.counters import Drop, DropLog
from vtep.datapath import Inbound, Outbound
from vtep.errors import VtepError
from vtep.fdb import Fdb, Remote
from vtep.offload.partial import SegmentSizes
from vtep.switch import Segment, Switch
from vtep.tap import Tap
from vtep.underlay import (
    Binding,
    Path,
    joins_datagrams,
    open_receiver,
    pool_slots,
    receive_queue_drops,
    segments_datagrams,
    superframe_max,
)
from vtep.values import MTU_MAX, MTU_MIN
from vtep.wire import ethernet, vxlan

log = logging.getLogger("vtep")

_TICK = 1.0
"""Seconds between two looks at the age of the FDB."""

_SETTLED = 0.2
"""Seconds from a change of some link to the look at ours: changes come in flocks."""

_EVENT_MAX = 65536

_QUEUE_TICKS = 10
"""Ticks between two looks at what the kernel discarded in front of us."""

_OVERHEAD = {4: vxlan.OVERHEAD_V4, 6: vxlan.OVERHEAD_V6}
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


class Vtep:
    """A VXLAN tunnel endpoint that runs in the current asyncio event loop.

    Use it as an asynchronous context manager, or call `start` and `stop`. Everything else is to be
    called from the loop's own thread. Forwarding goes on by itself between the two; `wait` returns
    when it has ended.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.mtu = 0
        """MTU of the TAP, known once started."""
        self.underlay_devices: tuple[str, ...] = ()
        """Devices through which the remotes are reached, known once started."""
        self.offload: frozenset[str] = frozenset()
        """Which offloads of `Config.offload` the kernel has, known once started."""

        version = config.versions[0]
        family = _FAMILY[version]
        # Spelled as the kernel spells the source of a datagram.
        hosts = [socket.inet_ntop(family, remote.packed) for remote in config.remote]
        remotes = [Remote(host, config.dstport) for host in hosts]
        self.segment = Segment(
            config.vni,
            remotes,
            Fdb(ageing=config.ageing, max_addresses=config.max_addresses),
            own_mac=ethernet.MAC_ZERO,
            learning=config.learning,
        )
        self._switch = Switch([self.segment])
        self._binding = Binding(family, config.local_for(version), config.dev)
        self._resources = ExitStack()
        self._ended: asyncio.Future[None] | None = None
        self._drop_logs = [DropLog(self._switch.counters), DropLog(self.segment.counters)]
        self._ticks = 0
        self._links_settled = True
        self._task: asyncio.Task[None] | None = None
        self._running = False
        self._rx_drops_before = 0
        self._dev_refused: int | None = None

    # --- life -------------------------------------------------------------------------------

    @property
    def fdb(self) -> Fdb:
        """What has been learned."""
        return self.segment.fdb

    @property
    def tap(self) -> str:
        """Name of the TAP device: the configured one, unless somebody has renamed it."""
        if self._running:
            with suppress(OSError):
                return self._tap.name
        return self.config.tap

    def counters(self) -> dict[str, int]:
        """Every counter by name, as of now; see `vtep.counters`."""
        self._count_queue_drops()
        total = self.segment.counters.as_dict()
        for name, count in self._switch.counters.as_dict().items():
            total[name] += count
        return total

    async def start(self) -> None:
        """Open the underlay and the TAP, and begin to forward.

        Raises VtepError, saying what to do, where this host does not let us; nothing is left
        behind then.
        """
        if self._ended is not None:
            raise RuntimeError("a Vtep can be started only once; make another one")
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        try:
            with ExitStack() as resources:
                directions = await self._open(resources)
                if self._ended.done():
                    raise VtepError("it was stopped before it had started")  # noqa: TRY301
                for direction in directions:
                    direction.start()
                    resources.callback(direction.stop)
                self._timer: asyncio.Handle = loop.call_later(_TICK, self._tick)
                resources.callback(self._cancel_timer)
                self._resources = resources.pop_all()
        except BaseException as error:
            self._end(error if isinstance(error, VtepError) else None)
            raise
        self._running = True

    async def _open(self, resources: ExitStack) -> tuple[Outbound, Inbound]:
        config = self.config
        wanted = config.offload
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(max_workers=1) as thread:
            underlay = await loop.run_in_executor(
                thread, netlink.survey, config.remote, config.local, config.dev
            )
            self.underlay_devices = underlay.devices
            self.mtu = _tap_mtu(config, underlay)
            self._receiver = self._open_receiver()
            resources.callback(self._close_receiver)
            tap = resources.enter_context(Tap(config.tap, tso="tso" in wanted, uso="uso" in wanted))
            self._tap_drops_before = tap.queue_drops()
            await loop.run_in_executor(
                thread, netlink.bring_up, config.tap, self.mtu, config.mac, config.address
            )
            self.segment.own_mac = tap.mac
            self._tap = tap
            self._tap_index = netlink.device_index(config.tap)
        have = {
            "tso": tap.tso,
            "uso": tap.uso,
            "gso": "gso" in wanted and segments_datagrams(),
            "gro": "gro" in wanted and joins_datagrams(self._receiver),
        }
        self.offload = frozenset(name for name, works in have.items() if works)
        for name in sorted(wanted - self.offload):
            log.warning("offload %s is not there: this kernel does not have it", name)
        slots = pool_slots(len(self.segment.remotes))
        paths = {
            remote: Path(self._binding, remote, slots, gso=have["gso"])
            for remote in self.segment.remotes
        }
        for path in paths.values():
            resources.callback(path.close)
        self._sizes = sizes = SegmentSizes(self.mtu)
        self._inbound = Inbound(self._receiver, tap, self._switch, sizes, _cannot_receive)
        self._outbound = Outbound(tap, self.segment, paths, sizes, self._lost_tap)
        self._links = resources.enter_context(netlink.watch())
        loop.add_reader(self._links.fileno(), self._links_changed)
        resources.callback(loop.remove_reader, self._links.fileno())
        await self._adapt()
        return self._outbound, self._inbound

    def _close_receiver(self) -> None:
        self._receiver.close()  # The one that is used by then: see _follow_the_host.

    def _open_receiver(self) -> socket.socket:
        config = self.config
        index = netlink.device_index(config.dev) if config.dev else None
        receiver = open_receiver(self._binding, config.dstport, gro="gro" in config.offload)
        self._dev_index = index
        return receiver

    async def stop(self) -> None:
        """Stop forwarding, close both ends and remove the TAP that we made."""
        self._end(None)

    async def wait(self) -> None:
        """Wait until forwarding has ended.

        Returns after `stop`; raises VtepError where the TAP was taken from us.
        """
        if self._ended is None:
            raise RuntimeError("start() the Vtep first")
        await asyncio.shield(self._ended)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()
        if exc is None and self._ended is not None and (error := self._ended.exception()):
            raise error

    def _lost_tap(self, error: OSError) -> None:
        self._end(VtepError(f"the TAP device {self.tap} was removed: {error.strerror}"))

    def _end(self, error: VtepError | None) -> None:
        self._count_queue_drops()
        if self._task is not None:
            self._task.cancel()
        self._running = False
        self._resources.close()
        if self._ended is None or self._ended.done():
            return
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)
            self._ended.exception()  # It is raised by wait() or by leaving the context.

    # --- time -------------------------------------------------------------------------------

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        if self.fdb.sweep(now):
            self._timer = loop.call_soon(self._tick)  # After the frames that wait.
            return
        self._timer = loop.call_later(_TICK, self._tick)
        self._ticks += 1
        self._follow_the_host()
        if self._ticks % _QUEUE_TICKS == 0:
            self._count_queue_drops()
        for drop_log in self._drop_logs:
            for line in drop_log.news(now):
                log.warning("%s", line)

    def _cancel_timer(self) -> None:
        self._timer.cancel()  # The one that is set by then, not the first.

    def _follow_the_host(self) -> None:
        """Notice what others have changed of the devices that we use."""
        with suppress(OSError):  # The TAP is gone, which its reader is told of too.
            self.segment.own_mac = self._tap.mac
        dev = self.config.dev
        if dev is None or (index := netlink.device_index(dev)) in (None, self._dev_index):
            return
        # A device of this name has been made anew. Sockets are bound to devices by their number.
        before = self._receiver
        try:
            self._receiver = self._open_receiver()
        except VtepError as error:
            if self._dev_refused != index:  # It may not have its address yet: said once, and
                self._dev_refused = index  # tried again with every tick.
                log.warning("--dev %s is another device now, but not ready: %s", dev, error)
            return
        self._rx_drops_before += receive_queue_drops(before)
        self._inbound.rebind(self._receiver)
        before.close()
        self._outbound.reconnect()
        log.warning("--dev %s is another device now: using that", dev)

    def _links_changed(self) -> None:
        """Look at our devices again, once for all that happened in a moment."""
        with suppress(OSError):  # Until it is empty; an overrun says no less than an event.
            while True:
                self._links.recv(_EVENT_MAX)
        self._links_settled = False
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._adapt_when_settled())

    async def _adapt_when_settled(self) -> None:
        while not self._links_settled:
            await asyncio.sleep(_SETTLED)
            self._links_settled = True
            self._outbound.hope_again()
            await self._adapt()

    async def _adapt(self) -> None:
        """Fit the TAP to its place, on a bridge or not, and ourselves to the MTU it has now."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(max_workers=1) as thread, suppress(OSError, VtepError):
            adapt = partial(netlink.adapt, self._tap.name, self._tap_index, superframe_max)
            self._sizes.mtu = await loop.run_in_executor(thread, adapt)

    def _count_queue_drops(self) -> None:
        """Take over what the kernel counted in front of our two descriptors."""
        if not self._running:
            return
        received = self._switch.counters.drops
        sent = self.segment.counters.drops
        with suppress(OSError):
            drops = self._rx_drops_before + receive_queue_drops(self._receiver)
            received[Drop.RX_QUEUE_FULL] = max(received[Drop.RX_QUEUE_FULL], drops)
        with suppress(OSError):
            drops = self._tap.queue_drops() - self._tap_drops_before
            sent[Drop.TAP_QUEUE_FULL] = max(sent[Drop.TAP_QUEUE_FULL], drops)


def _cannot_receive(error: OSError) -> None:
    log.warning("cannot receive from the underlay: %s", error.strerror)


def _tap_mtu(config: Config, underlay: netlink.Underlay) -> int:
    """The MTU of the TAP in octets; raises VtepError where it does not fit the underlay."""
    version = config.versions[-1]
    devices = ", ".join(underlay.devices)
    room = min(underlay.mtu - _OVERHEAD[version], MTU_MAX)
    if room < MTU_MIN:
        raise VtepError(
            f"the underlay ({devices}) has an MTU of {underlay.mtu}, too small for VXLAN over "
            f"IPv{version}: raise it (ip link set {underlay.devices[0]} mtu 1500)"
        )
    if config.mtu is not None and config.mtu > room:
        raise VtepError(
            f"--mtu {config.mtu}: does not fit; the underlay ({devices}) carries {underlay.mtu} "
            f"octets, of which VXLAN over IPv{version} leaves {room}"
        )
    return config.mtu if config.mtu is not None else room
