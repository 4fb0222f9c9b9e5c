"""The loop: it moves frames between the TAP and the underlay, and keeps time.

`Vtep` opens the two ends, asks the switch what to do with each frame, and does it. Whatever
touches the host happens here or in the shells that it owns; nothing is decided here.

Two straight lines are the whole data path: `_tap_readable` and `_underlay_readable`.
"""

import asyncio
import errno
import logging
import os
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from vtep import netlink
from vtep.config import MTU_MAX, MTU_MIN, Config
from vtep.counters import Drop, DropLog
from vtep.errors import VtepError
from vtep.fdb import Fdb, Remote
from vtep.offload.partial import SegmentSizes, virtio_header
from vtep.switch import Segment, Switch
from vtep.tap import Tap, queue_drops
from vtep.underlay import Binding, Path, open_receiver, pool_slots, receive_queue_drops
from vtep.wire import Buffer, ethernet, virtio, vxlan
from vtep.wire.flow import flow_hash

log = logging.getLogger("vtep")

_BATCH = 64
"""Frames moved in one direction before the other one has its turn."""

_TICK = 1.0
"""Seconds between two looks at the age of the FDB."""

_QUEUE_TICKS = 10
"""Ticks between two looks at what the kernel discarded in front of us."""

_FRAME_MAX = 65536
_DATAGRAM_MAX = 65536

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

        family = _FAMILY[config.remote[0].version]
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
        self._binding = Binding(family, config.local, config.dev)
        slots = pool_slots(len(remotes))
        self._paths = {remote: Path(self._binding, remote, slots) for remote in remotes}

        # Frames from the TAP are read to where they are sent from, behind a VXLAN header that is
        # written once.
        self._outgoing = memoryview(bytearray(vxlan.HEADER_LEN + _FRAME_MAX))
        self._outgoing[: vxlan.HEADER_LEN] = vxlan.pack(config.vni)
        self._outgoing_frame = self._outgoing[vxlan.HEADER_LEN :]
        self._tap_buffers = (bytearray(virtio.HEADER_LEN), self._outgoing_frame)
        self._incoming = memoryview(bytearray(_DATAGRAM_MAX))

        self._resources = ExitStack()
        self._ended: asyncio.Future[None] | None = None
        self._blocked: int | None = None
        self._drop_logs = [DropLog(self._switch.counters), DropLog(self.segment.counters)]
        self._ticks = 0

    # --- life -------------------------------------------------------------------------------

    @property
    def fdb(self) -> Fdb:
        """What has been learned."""
        return self.segment.fdb

    @property
    def tap(self) -> str:
        """Name of the TAP device."""
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
        with ExitStack() as resources:
            await self._open(resources)
            loop.add_reader(self._tap.fd, self._tap_readable)
            resources.callback(loop.remove_reader, self._tap.fd)
            loop.add_reader(self._receiver.fileno(), self._underlay_readable)
            resources.callback(loop.remove_reader, self._receiver.fileno())
            resources.callback(self._stop_waiting_for_room)
            self._timer: asyncio.Handle = loop.call_later(_TICK, self._tick)
            resources.callback(self._cancel_timer)
            self._resources = resources.pop_all()

    async def _open(self, resources: ExitStack) -> None:
        config = self.config
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(max_workers=1) as thread:
            underlay = await loop.run_in_executor(
                thread, netlink.survey, config.remote, config.local, config.dev
            )
            self.underlay_devices = underlay.devices
            self.mtu = _tap_mtu(config, underlay)
            self._sizes = SegmentSizes(self.mtu)
            self._receiver = resources.enter_context(open_receiver(self._binding, config.dstport))
            for path in self._paths.values():
                resources.callback(path.close)
            self._tap = resources.enter_context(Tap(config.tap))
            self._tap_drops_before = queue_drops(config.tap)
            self.segment.own_mac = await loop.run_in_executor(
                thread, netlink.bring_up, config.tap, self.mtu, config.mac, config.address
            )

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

    def _end(self, error: VtepError | None) -> None:
        self._resources.close()
        if self._ended is None or self._ended.done():
            return
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)
            self._ended.exception()  # It is raised by wait() or by leaving the context.

    # --- TAP to underlay --------------------------------------------------------------------

    def _tap_readable(self) -> None:
        now = time.monotonic()
        segment = self.segment
        counters = segment.counters
        for _ in range(_BATCH):
            try:
                length = os.readv(self._tap.fd, self._tap_buffers) - virtio.HEADER_LEN
            except BlockingIOError:
                return
            except OSError as error:
                self._end(VtepError(f"the TAP device {self.tap} was removed: {error.strerror}"))
                return
            frame = self._outgoing_frame[:length]
            if length < ethernet.HEADER_LEN:
                counters.drop(Drop.TX_RUNT)
                continue
            counters.tx_frames += 1
            counters.tx_bytes += length
            self._sizes.observe(frame)
            datagram = self._outgoing[: vxlan.HEADER_LEN + length]
            if not self._send(datagram, segment.destinations(frame), flow_hash(frame), now):
                return

    def _send(self, datagram: Buffer, remotes: Sequence[Remote], flow: int, now: float) -> bool:
        """Send a datagram to each remote; False if the TAP must wait because the underlay is full.

        The rest is sent, and the TAP read again, when the underlay has room. Until then frames
        queue in front of the TAP, where their senders feel it.
        """
        counters = self.segment.counters
        for number, remote in enumerate(remotes):
            path = self._paths[remote]
            try:
                lost = path.send(datagram, flow, now)
            except BlockingIOError:
                self._await_room(path.fileno(flow), datagram, remotes[number:], flow)
                return False
            if lost is None:
                counters.tx_datagrams += 1
            else:
                counters.drop(lost, remote.host)
        return True

    def _await_room(self, fd: int, datagram: Buffer, rest: Sequence[Remote], flow: int) -> None:
        loop = asyncio.get_running_loop()

        def resume() -> None:
            self._stop_waiting_for_room()
            if self._send(datagram, rest, flow, time.monotonic()):
                loop.add_reader(self._tap.fd, self._tap_readable)

        loop.remove_reader(self._tap.fd)
        loop.add_writer(fd, resume)
        self._blocked = fd

    def _stop_waiting_for_room(self) -> None:
        if self._blocked is not None:
            asyncio.get_running_loop().remove_writer(self._blocked)
            self._blocked = None

    # --- underlay to TAP --------------------------------------------------------------------

    def _underlay_readable(self) -> None:
        now = time.monotonic()
        switch = self._switch
        for _ in range(_BATCH):
            try:
                length, source = self._receiver.recvfrom_into(self._incoming)
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("cannot receive from the underlay: %s", error.strerror)
                return
            datagram = self._incoming[:length]
            segment = switch.receive(datagram, source[0], now)
            if segment is not None:
                self._deliver(segment, datagram[vxlan.HEADER_LEN :])

    def _deliver(self, segment: Segment, frame: memoryview) -> None:
        counters = segment.counters
        header = virtio_header(frame, self._sizes, counters)
        try:
            os.writev(self._tap.fd, (header, frame))
        except OSError as error:
            counters.drop(Drop.TAP_DOWN if error.errno == errno.EIO else Drop.TAP_REFUSED)
        else:
            counters.rx_frames += 1
            counters.rx_bytes += len(frame)

    # --- time -------------------------------------------------------------------------------

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        if self.fdb.sweep(now):
            self._timer = loop.call_soon(self._tick)  # After the frames that wait.
            return
        self._ticks += 1
        if self._ticks % _QUEUE_TICKS == 0:
            self._count_queue_drops()
        for drop_log in self._drop_logs:
            for line in drop_log.news(now):
                log.warning("%s", line)
        self._timer = loop.call_later(_TICK, self._tick)

    def _cancel_timer(self) -> None:
        self._timer.cancel()  # The one that is set by then, not the first.

    def _count_queue_drops(self) -> None:
        """Take over what the kernel counted in front of our two descriptors."""
        if self._ended is None or self._ended.done():
            return
        self._switch.counters.drops[Drop.RX_QUEUE_FULL] = receive_queue_drops(self._receiver)
        before = self._tap_drops_before
        self.segment.counters.drops[Drop.TAP_QUEUE_FULL] = queue_drops(self.tap) - before


def _tap_mtu(config: Config, underlay: netlink.Underlay) -> int:
    """The MTU of the TAP in octets; raises VtepError where it does not fit the underlay."""
    version = config.remote[0].version
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
