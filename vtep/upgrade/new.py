"""The new side of an upgrade: the process that takes over from one that forwards."""

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vtep import __version__
from vtep.config import Config, Settings
from vtep.control import socket_files
from vtep.control.client import Client, DisconnectedError
from vtep.control.socket_files import ControlSocket
from vtep.daemon.vtep import Reload, Vtep
from vtep.errors import VtepError
from vtep.io.inherited import CONTROL_ROLE, SPEAKER_ROLE
from vtep.upgrade import format as fmt
from vtep.upgrade import snapshot
from vtep.upgrade.channel import Channel, ClosedError, PeerHungError
from vtep.upgrade.format import FormatError, Message
from vtep.upgrade.merge import merge
from vtep.upgrade.starter import Starter, starter
from vtep.wire.address import Address

if TYPE_CHECKING:
    from vtep.daemon.port import Port

log = logging.getLogger("vtep")

END_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)
"""Signals that end a VTEP in order."""

_FAST_PATH_S = 240.0
"""Seconds to wait for the fast path. The old process forwards meanwhile."""

_STEP_S = 30.0
"""Seconds to wait for the next message of the old process."""

_REPORT_S = 1.0
"""Interval between reports to the old process while the fast path is loaded, in seconds."""


class NewSide:
    """Takes over from the process whose control socket is at `path`.

    `wanted` are the configurations of the file or command line of this process.
    """

    def __init__(self, vtep: Vtep, wanted: Iterable[Config], path: Path) -> None:
        self._vtep = vtep
        self._starter: Starter = starter()
        self._wanted = tuple(wanted)
        self._path = path
        self._configs: dict[int, Config] = {}
        self._base: dict[int, Config] = {}
        self._states: dict[int, Message] = {}
        self.control: ControlSocket | None = None
        """The listening control socket of the old process, which this one serves then."""
        self.speaker: Mapping[str, Any] = {}
        """The description of the EVPN speaker of the old process; empty without one."""
        self.speaker_pidfd: int | None = None
        """Its pidfd, which the caller owns."""
        self.taken: Mapping[int, Port] = {}
        """The ports as they were handed over, by VNI, before changes of the file."""
        self.refusal: str | None = None
        """The reason why the host has refused what the file has changed, if it has."""
        self.end_requested = asyncio.Event()
        """Set if a signal has asked this process to end since it forwards."""

    @asynccontextmanager
    async def started(self) -> AsyncIterator[Vtep]:
        """Provide the VTEP, which forwards in place of that of the old process.

        Raises: VtepError if that fails; the old process continues then.
        """
        vtep = self._vtep
        # First: it would be a pity to find out only after the fast path has been compiled.
        await asyncio.to_thread(self._check_target)
        if any(config.fast_path and config.vlan is None for config in self._wanted):
            await self._load_fast_path()
        # Now, while the old process forwards: to visit the objects of numba takes 50 ms, in which
        # the queue of a TAP overflows at 20,000 frames/s. `Collector` goes on from here.
        gc.collect()
        gc.freeze()
        gc.disable()
        self._starter.report("ask for the handover")
        channel = await self._connect()
        try:
            try:
                await self._take_over(channel)
            except BaseException as error:
                # Nothing of what was inherited is changed or removed: the old process has it, too.
                await vtep.release()
                vtep.inherited.close()
                if self.speaker_pidfd is not None:
                    os.close(self.speaker_pidfd)
                    self.speaker_pidfd = None
                if isinstance(error, ClosedError):
                    raise VtepError(
                        f"cannot take over: process {channel.peer.pid} has ended, or has given up; "
                        "see its log; to start without it, leave out --takeover"
                    ) from error
                if isinstance(error, VtepError):
                    await self._report_failure(channel, error)
                raise
            await self._finish(channel)
        finally:
            channel.close()
        # From now on, TAPs are opened as at any other time, also in other network namespaces.
        vtep.inherited.in_use = False
        async with vtep.continued():
            self.taken = dict(vtep.ports)
            await self._apply_changes()
            yield vtep

    def _check_target(self) -> None:
        """Raise VtepError if there is no process to take over from, or not in this namespace."""
        process = self._call("process.show")
        theirs, own = process.get("netns"), socket_files.namespace()
        if None not in (theirs, own) and theirs != own:
            pid = process.get("pid")
            raise VtepError(
                f"--takeover {self._path}: process {pid} is in another network namespace; start "
                f"this one there: nsenter --net=/proc/{pid}/ns/net pyvtep ..."
            )

    async def _load_fast_path(self) -> None:
        """Load the fast path, and report meanwhile that this process is alive."""

        async def report() -> None:
            while True:
                self._starter.report(f"load the fast path ({self._vtep.fast_path})")
                await asyncio.sleep(_REPORT_S)

        reporting = asyncio.get_running_loop().create_task(report())
        try:
            await self._vtep.load_fast_path(_FAST_PATH_S)
        finally:
            reporting.cancel()

    async def _connect(self) -> Channel:
        answer = await asyncio.to_thread(self._call, "takeover", token=self._starter.token)
        return Channel.connect(Path(str(answer["socket"])))

    def _call(self, method: str, **params: str | None) -> dict[str, Any]:
        """Call a method of the old process. Raises: VtepError, with what to do if there is none."""
        try:
            with Client(self._path) as client:
                answer: dict[str, Any] = client.call(method, **params)
        except DisconnectedError as error:
            cause = error.__cause__
            reason = (cause.strerror if isinstance(cause, OSError) else None) or str(error)
            others = ", ".join(str(live.path) for live in socket_files.live())
            advice = f"name one that runs: {others}" if others else "no pyvtep was found here"
            raise VtepError(
                f"--takeover {self._path}: no process to take over from ({reason}); {advice}; or "
                "start without --takeover"
            ) from error
        return answer

    @staticmethod
    async def _report_failure(channel: Channel, error: VtepError) -> None:
        try:
            await channel.send(fmt.FAILED, seconds=1.0, reason=str(error))
        except VtepError:
            log.debug("the old process does not listen any more")

    async def _take_over(self, channel: Channel) -> None:
        channel.peer.check()
        await channel.send(fmt.HELLO, version=__version__, pid=os.getpid())
        vtep, pages = self._vtep, await self._receive_snapshot(channel)
        vtep.replace_configs(self._configs.values())
        await vtep.start(paused=True)
        for vni, message in self._states.items():
            port = vtep.ports.get(vni)
            if port is not None:
                mtu = message.fields.get("mtu")
                port.set_state(
                    message.integer("index", port.tap_index),
                    mtu if isinstance(mtu, int) else None,
                    message.integer("queue_drops", 0),
                )
                if isinstance(bridge := message.fields.get("bridge"), str):
                    port.set_network_bridge(bridge, _addresses(message))
        for page in pages:
            self._apply_fdb(page)
        vtep.check_running()
        await channel.send(fmt.READY)
        while True:
            message, _ = await channel.receive(fmt.FDB, fmt.GO, seconds=_STEP_S)
            if message.kind == fmt.GO:
                break
            self._apply_fdb(message)
        self._defer_end()
        vtep.resume()
        try:
            await channel.send(fmt.READING, now=time.monotonic())
        except ClosedError:
            # The old process had stopped reading. If it has ended, nothing reads but this one.
            vtep.pause()
            if not await channel.peer_has_ended():
                raise
            vtep.resume()
            log.warning("the old process has ended during the handover: this one continues")
        self._starter.close()

    def _defer_end(self) -> None:
        """Note signals that end a process, until the caller handles them.

        Their default action would leave behind what the old process has left to this one.
        """
        loop = asyncio.get_running_loop()
        for number in END_SIGNALS:
            loop.add_signal_handler(number, self.end_requested.set)

    async def _receive_snapshot(self, channel: Channel) -> list[Message]:
        """Receive descriptors and configurations. Returns: the pages of the FDBs."""
        pages: list[Message] = []
        while True:
            message, fds = await channel.receive(
                *(fmt.PROCESS, fmt.DESCRIPTORS, fmt.SEGMENT, fmt.FDB, fmt.COMPLETE),
                seconds=_STEP_S,
            )
            if message.kind == fmt.COMPLETE:
                return pages
            if message.kind == fmt.PROCESS:
                log.info("taking over from process %d", message.integer("pid", 0))
                self._vtep.taps_lost = message.integer("taps_lost", 0)
                if message.fields.get("started") is not None:
                    self._vtep.started = message.number("started")
                self.speaker = message.mapping("speaker")
                if reload := message.mapping("reload"):
                    at = Message(fmt.PROCESS, reload).number("time")
                    self._vtep.last_reload = Reload(reload.get("successful") is True, at)
            elif message.kind == fmt.DESCRIPTORS:
                self._take_descriptors(message.items("roles"), fds)
            elif message.kind == fmt.SEGMENT:
                self._take_segment(message)
            else:
                pages.append(message)

    def _take_descriptors(self, roles: list[object], fds: list[int]) -> None:
        self._vtep.inherited.in_use = True
        # All of them first: so each has an owner that closes it if one makes no sense.
        for position, fd in enumerate(fds):
            role = roles[position] if position < len(roles) else ""
            self._vtep.inherited.put(str(role), fd)
        if (pidfd := self._vtep.inherited.take(SPEAKER_ROLE)) is not None:
            if self.speaker_pidfd is not None:
                os.close(self.speaker_pidfd)
            self.speaker_pidfd = pidfd
        listening = self._vtep.inherited.take(CONTROL_ROLE)
        if listening is None:
            return
        try:
            inode = self._path.stat().st_ino
            control = socket.socket(fileno=listening)
        except OSError as error:
            os.close(listening)
            raise VtepError(f"cannot take over the control socket: {error.strerror}") from error
        control.setblocking(False)
        if self.control is not None:
            self.control.socket.close()
        self.control = ControlSocket(control, self._path, inode)

    def _take_segment(self, message: Message) -> None:
        vni = message.integer("vni")
        if message.fields.get("base") is not None:
            self._base[vni] = snapshot.parse_config(message.mapping("base"))
        if message.fields.get("options") is not None:
            state = self._states[vni] = Message(fmt.SEGMENT, message.mapping("state"))
            config = snapshot.parse_config(message.mapping("options"))
            if config.vni != vni:
                raise FormatError("a segment contradicts its VNI")
            self._configs[vni] = snapshot.with_addresses(config, state)

    def _apply_fdb(self, message: Message) -> None:
        port = self._vtep.ports.get(message.integer("vni"))
        if port is not None:  # Its TAP may have been removed since.
            snapshot.apply_fdb(port, message, time.monotonic())

    # --- after the handover ---------------------------------------------------------------------

    async def _finish(self, channel: Channel) -> None:
        """Add counters, ages and neighbours; wait until the old process has closed its files."""
        try:
            while True:
                message, _ = await channel.receive(
                    *(fmt.COUNTERS, fmt.REFRESHED, fmt.NEIGHBOURS, fmt.COMPLETE, fmt.RELEASED),
                    seconds=_STEP_S,
                )
                if message.kind == fmt.RELEASED:
                    return
                self._add(message, time.monotonic())
        except VtepError as error:
            # This process forwards, whatever has become of the old one.
            log.warning("counters and ages of the old process may be incomplete: %s", error)
            if isinstance(error, PeerHungError):
                # It would keep its state file locked. Once it went on, it would find this channel
                # closed, kill this process, and read again.
                log.warning("process %d hangs: killed", channel.peer.pid)
                await channel.kill_peer()

    def _add(self, message: Message, now: float) -> None:
        if message.kind == fmt.COUNTERS:
            self._add_counters(message, now)
        elif message.kind == fmt.COMPLETE:
            if message.fields.get("reset_age") is not None:
                self._vtep.counters_reset = now - message.number("reset_age")
        elif (port := self._vtep.ports.get(message.integer("vni"))) is not None:
            if message.kind == fmt.REFRESHED:
                snapshot.apply_refreshed(port, message, now)
            else:
                snapshot.apply_neighbours(port, message, now)

    def _add_counters(self, message: Message, now: float) -> None:
        name = message.text("name")
        if name == snapshot.LIVENESS:
            snapshot.apply_liveness(self._vtep, message, now)
            return
        if name == snapshot.REMOTES:
            port = self._vtep.ports.get(message.integer("vni"))
            if port is not None:
                snapshot.add_remote_counters(port, message, now)
            return
        if name == "kernel":
            drops = {
                role: at for role, at in message.mapping("values").items() if isinstance(at, int)
            }
            for listener in self._vtep.listeners:
                listener.kernel_drops = drops
            return
        for own, counters in snapshot.all_counters(self._vtep):
            if own == name:
                snapshot.add_counters(counters, message, now)

    async def _apply_changes(self) -> None:
        """Apply what the file has changed since the old process has read it."""
        current = self._vtep.ports
        merged = merge(
            self._base.values(), (port.config for port in current.values()), self._wanted
        )
        if {config.vni: config for config in merged} == {
            vni: port.config for vni, port in current.items()
        }:
            return
        try:
            await self._vtep.reload(merged)
        except VtepError as error:
            self.refusal = str(error)
            log.error(  # noqa: TRY400  the traceback would say no more
                "the changed configuration was not applied, the former one continues: %s", error
            )

    @property
    def base(self) -> tuple[Config, ...]:
        """The configurations with which a later upgrade is to compare its file.

        Those that the host has refused are none: what they have deleted still exists.
        """
        return self._wanted if self.refusal is None else tuple(self._base.values())


def socket_path(named: str, settings: Settings) -> Path:
    """Return the control socket that `--takeover` names: a path, a name, or the own default.

    Raises: VtepError if it names none.
    """
    if "/" in named:
        return Path(named)
    if not named and settings.control not in ("auto", "none"):
        return Path(settings.control)
    place = socket_files.folder()
    if place is None:
        raise VtepError("--takeover: XDG_RUNTIME_DIR is not set; give the PATH of a control socket")
    name = named or (settings.segments[0].tap if settings.segments else "pyvtep")
    return place / f"{name}.sock"


def _addresses(message: Message) -> list[Address]:
    """Return the gateways of a Docker network. Raises: FormatError."""
    try:
        return [ip_address(str(each)) for each in message.items("gateways")]
    except ValueError:
        raise FormatError("a gateway is not an IP address") from None
