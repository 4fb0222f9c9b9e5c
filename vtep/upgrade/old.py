"""The old side of an upgrade: the process that forwards, until the new one says that it does."""

import asyncio
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

from attrs import define

from vtep import __version__
from vtep.config import Config
from vtep.control.methods import Method
from vtep.control.server import Server
from vtep.daemon.vtep import Vtep
from vtep.errors import VtepError
from vtep.io.inherited import CONTROL_ROLE
from vtep.upgrade import ERROR_FILE, snapshot
from vtep.upgrade import format as fmt
from vtep.upgrade.channel import Channel, PeerHungError
from vtep.upgrade.snapshot import FdbLog, Fields

log = logging.getLogger("vtep")

_CONNECT_S = 10.0
"""Seconds for the new process to connect, after it has asked for the handover."""

_BUILD_S = 60.0
"""Seconds for the new process to build everything. The old one forwards meanwhile."""

_READING_S = 2.0
"""Seconds for the new process to read, after it was told to. Neither process reads meanwhile."""

_CONFIRM_S = 1.0
"""Seconds for which this process is able to continue after the new one has begun to read."""

_UPGRADE_S = 300.0
"""Seconds for the whole: a new version compiles its fast path first, on a busy host for minutes."""

_DRAIN_S = 0.2
"""Seconds to wait for room in send buffers, so that no datagram is overtaken."""

_ROUNDS_MAX = 5
"""Times that changes of the FDB are sent while it forwards on, so that few remain for the gap."""

_FEW = 200
"""Changed FDB entries that are few enough to be sent in the gap: half a millisecond of work."""

_BACKLOG = 1


@define
class HandoverResult:
    """The result of a handover."""

    pid: int
    segments: int
    entries: int
    gap_s: float

    def __str__(self) -> str:
        """Describe it in one line, as `pyvtep upgrade` prints it."""
        vnis = "VNI" if self.segments == 1 else "VNIs"
        entries = "entry" if self.entries == 1 else "entries"
        return (
            f"upgraded: pid {os.getpid()} -> {self.pid}, {self.segments} {vnis}, {self.entries} "
            f"FDB {entries}, not read for {self.gap_s * 1e3:.1f} ms"
        )


class OldSide:
    """Hands the work of this process over, whenever a new process asks for it.

    `base` returns the configurations of the file or command line that this process has read last.
    `on_handed_over` is awaited with the PID of the new process.
    """

    def __init__(
        self,
        vtep: Vtep,
        base: Callable[[], Iterable[Config]],
        on_handed_over: Callable[[int], Awaitable[None]],
        command: Sequence[str] = (),
    ) -> None:
        self._vtep = vtep
        self._base = base
        self._on_handed_over = on_handed_over
        self._command = command or own_command()
        # Paths in the command may be relative to it; a process in the background leaves it.
        self._folder = _working_directory()
        self._server: Server | None = None
        self._task: asyncio.Task[None] | None = None
        self._outcome: asyncio.Future[HandoverResult] | None = None
        self._channel: Channel | None = None
        self.methods: Final = {
            "upgrade": Method(lambda _: self._upgrade()),
            "takeover": Method(lambda _: self._take_over()),
        }
        """The methods of the control socket by which an upgrade begins."""

    @property
    def is_handed_over(self) -> bool:
        """True once the new process forwards in place of this one."""
        return self._channel is not None

    def on_serving(self, server: Server) -> None:
        """Note the control server, whose socket is handed over."""
        self._server = server

    # --- the beginning --------------------------------------------------------------------------

    async def _upgrade(self) -> "asyncio.Task[str]":
        """Start the new process, and hand over to it. Raises: VtepError.

        Returns: a task, which the server awaits without delaying other clients.
        """
        if os.getpid() == 1:
            raise VtepError(
                "this pyvtep is the first process of its container, which would end with it: "
                "start a second container that shares /run/pyvtep, with --takeover"
            )
        if self._is_busy():
            raise VtepError("an upgrade is in progress already")
        if self._server is None or self._server.path is None:
            raise VtepError("an upgrade needs the control socket (--control)")
        # The start of the new process competes for the processor. The queues of the TAPs are not
        # made longer for that time: the kernel deactivates the qdisc of a device for that
        # (dev_qdisc_change_tx_queue_len in net/sched/sch_generic.c): each change drops some frames.
        self._outcome = asyncio.get_running_loop().create_future()
        command = [*self._command, "--takeover", str(self._server.path)]
        log.info("upgrade: starting %s", command[0])
        error_file = self._server.path.with_suffix(".error")
        try:
            # The standard error of the new process is that of this one, so it cannot be read here.
            error_file.touch(mode=0o600)
            child = subprocess.Popen(  # noqa: ASYNC220, S603  our own command line
                command,
                env={**os.environ, ERROR_FILE: str(error_file)},
                # The child waits for the new process, which is in this group and no child of it.
                process_group=0,
                # It may have been removed, or be forbidden to the user of --user.
                cwd=self._folder if os.access(self._folder, os.X_OK) else None,
            )
        except OSError as error:
            error_file.unlink(missing_ok=True)
            raise VtepError(f"cannot start {command[0]}: {error.strerror}") from error
        waiting = self._wait(child, self._outcome, error_file)
        return asyncio.get_running_loop().create_task(waiting)

    async def _wait(
        self,
        child: "subprocess.Popen[bytes]",
        outcome: "asyncio.Future[HandoverResult]",
        error_file: Path,
    ) -> str:
        loop = asyncio.get_running_loop()
        ended, reason = asyncio.Event(), ""
        pidfd = os.pidfd_open(child.pid)
        loop.add_reader(pidfd, ended.set)
        waiting = loop.create_task(ended.wait())
        try:
            await asyncio.wait(
                (waiting, outcome), timeout=_UPGRADE_S, return_when=asyncio.FIRST_COMPLETED
            )
            if outcome.done():
                return str(outcome.result())
            if ended.is_set():
                with suppress(OSError):
                    reason = error_file.read_text(errors="replace")  # noqa: ASYNC240  below /run
                raise VtepError(
                    f"the new process has ended with exit code {child.wait()} before it took over: "
                    f"{reason or 'the log has the reason'}; this one continues"
                )
            raise VtepError(f"the new process is not ready after {_UPGRADE_S:.0f} s: killed")
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            waiting.cancel()
            error_file.unlink(missing_ok=True)  # noqa: ASYNC240
            if self.is_handed_over:
                child.kill()  # It waits for the new process.
            else:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
            child.wait()

    def _take_over(self) -> dict[str, str]:
        """Listen for a new process. Returns: the path at which it is to connect."""
        if self._is_busy():
            raise VtepError("another process is taking over already")
        if self._server is None or self._server.path is None:
            raise VtepError("there is no control socket")
        path = self._server.path.with_suffix(".takeover")
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            # bind(2) gives the file the mode of the socket: it is never wider, even for a moment.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(os.fspath(path))
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise VtepError(f"cannot listen on {path}: {error.strerror}") from error
        self._task = asyncio.get_running_loop().create_task(self._serve(listener, path))
        return {"socket": str(path)}

    def _is_busy(self) -> bool:
        return self.is_handed_over or (self._task is not None and not self._task.done())

    async def _serve(self, listener: socket.socket, path: Path) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_S):
                ready = asyncio.Event()
                loop.add_reader(listener.fileno(), ready.set)
                await ready.wait()
                sock, _ = listener.accept()
        except (TimeoutError, OSError):
            self._fail(VtepError("the new process has not connected"))
            return
        finally:
            loop.remove_reader(listener.fileno())
            listener.close()
            path.unlink(missing_ok=True)  # noqa: ASYNC240  below /run
        channel = Channel(sock)
        try:
            await self._hand_over(channel)
        except VtepError as error:
            with suppress(VtepError):
                await channel.send(fmt.FAILED, seconds=0.1, reason=str(error))
            channel.close()
            self._fail(error)

    def _fail(self, error: VtepError) -> None:
        log.warning("upgrade failed, this process continues: %s", error)
        if self._outcome is not None and not self._outcome.done():
            self._outcome.set_exception(error)
            self._outcome.exception()  # Marks it as retrieved, if no client waits.

    # --- the handover ---------------------------------------------------------------------------

    async def _hand_over(self, channel: Channel) -> None:
        channel.peer.check()
        vtep, pid = self._vtep, channel.peer.pid
        hello, _ = await channel.receive(fmt.HELLO, seconds=_CONNECT_S)
        log.info("upgrade: process %d, version %s, takes over", pid, hello.text("version", "?"))
        # From here on, configurations do not change: commands that would wait.
        async with vtep.lock:
            logs = {vni: FdbLog(port.fdb) for vni, port in vtep.ports.items()}
            try:
                await self._send_snapshot(channel, logs)
                await channel.receive(fmt.READY, seconds=_BUILD_S)
                await self._send_rounds(channel, logs)
                gap_s = await self._switch(channel, logs)
                entries = sum(len(port.fdb) for port in vtep.ports.values())
                outcome = HandoverResult(pid, len(vtep.ports), entries, gap_s)
                await self._confirm(channel, logs)
                self._channel = channel
                log.info("%s", outcome)
            finally:
                for fdb_log in logs.values():
                    fdb_log.close()
            await self._on_handed_over(pid)
            if self._outcome is not None and not self._outcome.done():
                self._outcome.set_result(outcome)
            if self._server is not None:
                await self._server.hand_over()
            await vtep.release()

    async def _send_snapshot(self, channel: Channel, logs: dict[int, FdbLog]) -> None:
        vtep = self._vtep
        await channel.send(
            fmt.PROCESS, version=__version__, pid=os.getpid(), taps_lost=vtep.taps_lost
        )
        descriptors = iter([*vtep.descriptors(), *self._control_descriptor()])
        while chunk := list(islice(descriptors, fmt.DESCRIPTORS_MAX)):
            roles = [role for role, _ in chunk]
            await channel.send(fmt.DESCRIPTORS, [fd for _, fd in chunk], roles=roles)
        base = {config.vni: config for config in self._base()}
        for vni in sorted(logs.keys() | base.keys()):
            port, file = vtep.ports.get(vni), base.get(vni)
            await channel.send(
                fmt.SEGMENT,
                vni=vni,
                options=None if port is None else snapshot.config_fields(port.config),
                base=None if file is None else snapshot.config_fields(file),
                state={} if port is None else port.state(),
            )
        for vni, fdb_log in logs.items():
            for fields in fdb_log.pages(vni, time.monotonic):
                await channel.send(fmt.FDB, **fields)
                await asyncio.sleep(0)  # Frames have their turn.
        await channel.send(fmt.COMPLETE)

    def _control_descriptor(self) -> Iterator[tuple[str, int]]:
        if self._server is not None and (fd := self._server.fileno()) is not None:
            yield CONTROL_ROLE, fd

    async def _send_rounds(self, channel: Channel, logs: dict[int, FdbLog]) -> None:
        """Send what has changed, again and again, until little is left to be sent in the gap."""
        for _ in range(_ROUNDS_MAX):
            if sum(len(fdb_log.changed) for fdb_log in logs.values()) <= _FEW:
                break
            for fields in self._changes(logs):
                await channel.send(fmt.FDB, **fields)
                await asyncio.sleep(0)
        end = time.monotonic() + _DRAIN_S
        while self._vtep.is_waiting and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    @staticmethod
    def _changes(logs: dict[int, FdbLog]) -> Iterator[Fields]:
        for vni, fdb_log in logs.items():
            yield from fdb_log.changes(vni, time.monotonic())

    async def _switch(self, channel: Channel, logs: dict[int, FdbLog]) -> float:
        """Stop reading, and let the new process read.

        Returns: seconds for which neither has read. Raises: VtepError; then this process reads on.
        """
        if self._server is not None:
            await self._server.pause()  # A command now would change what was sent already.
        began = time.monotonic()
        self._vtep.pause()
        try:
            for fields in self._changes(logs):
                await channel.send(fmt.FDB, seconds=_READING_S, **fields)
            await channel.send(fmt.GO, seconds=_READING_S)
            reading, _ = await channel.receive(fmt.READING, seconds=_READING_S)
        except BaseException:
            await self._take_back(channel)
            raise
        # Both clocks are the same, unless the new process has a time namespace of its own.
        took = reading.number("now", time.monotonic()) - began
        return took if 0 <= took <= time.monotonic() - began else time.monotonic() - began

    async def _confirm(self, channel: Channel, logs: dict[int, FdbLog]) -> None:
        """Send the rest, and see the new process live on for a while.

        Raises: VtepError if it ends; then this process reads on.
        """
        try:
            await self._send_rest(channel, logs)
            # It sends nothing more. A process that is killed closes the channel; one that is asked
            # to end does so later, since it handles no signal before this process is released.
            await channel.receive(seconds=_CONFIRM_S)
        except PeerHungError:
            return
        except BaseException:
            await self._take_back(channel)
            raise

    async def _take_back(self, channel: Channel) -> None:
        """Read on in place of the new process."""
        # Killed before this process reads: two must never read at one time.
        await _kill(channel.peer.pid)
        self._vtep.resume()
        if self._server is not None:
            self._server.resume()

    async def _send_rest(self, channel: Channel, logs: dict[int, FdbLog]) -> None:
        """Send what the new process can add to its own: counters, ages, neighbours."""
        now, vtep = time.monotonic(), self._vtep
        vtep.counters()  # Reads those of the kernel, too.
        for name, counters in snapshot.all_counters(vtep):
            await channel.send(fmt.COUNTERS, name=name, **snapshot.counter_fields(counters, now))
        for listener in vtep.listeners:
            drops = {role: at for role, at in listener.kernel_drops.items() if at}
            await channel.send(fmt.COUNTERS, name="kernel", values=drops)
        for vni, fdb_log in logs.items():
            for fields in fdb_log.refreshed(vni, now):
                await channel.send(fmt.REFRESHED, **fields)
        for port in vtep.ports.values():
            for fields in snapshot.neighbour_pages(port, now):
                await channel.send(fmt.NEIGHBOURS, **fields)
        reset = vtep.counters_reset
        await channel.send(fmt.COMPLETE, reset_age=None if reset is None else now - reset)

    async def finish(self) -> None:
        """Tell the new process that this one has closed everything, also its state file."""
        if self._channel is not None:
            with suppress(VtepError):
                await self._channel.send(fmt.RELEASED)
            self._channel.close()


async def _kill(pid: int) -> None:
    """Kill the new process, and wait for its end, as far as this process may."""
    if not pid:  # In another PID namespace: it notices that the channel is closed.
        return
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:  # It has ended already.
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        async with asyncio.timeout(_READING_S):
            await ended.wait()
    except (OSError, TimeoutError) as error:
        log.warning("cannot kill process %d, which has failed to take over: %r", pid, error)
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except OSError:  # It was removed.
        return Path("/")


def own_command() -> list[str]:
    """Return the command line of this process, to start the same command again.

    The program is found again by its path, so it may be a newer version. To be called before the
    working directory changes.
    """
    arguments, skipped = [], False
    for argument in sys.argv[1:]:
        if skipped and not argument.startswith("-"):
            skipped = False
            continue
        skipped = argument == "--takeover"
        # Of an earlier upgrade; and a child of this process is in the background already.
        if not skipped and not argument.startswith("--takeover=") and argument != "--background":
            arguments.append(argument)
    program = sys.argv[0]
    if program.endswith("__main__.py"):
        return [sys.executable, "-m", "vtep", *arguments]
    return [str(Path(shutil.which(program) or program).absolute()), *arguments]
