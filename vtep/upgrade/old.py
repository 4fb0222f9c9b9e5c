"""The old side of an upgrade: the process that forwards, until the new one says that it does."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

from attrs import asdict, define

from vtep import __version__
from vtep.config import Config
from vtep.control.methods import Method
from vtep.control.params import Params
from vtep.control.server import Server
from vtep.daemon.vtep import Vtep
from vtep.errors import VtepError
from vtep.io.inherited import CONTROL_ROLE, SPEAKER_ROLE
from vtep.upgrade import format as fmt
from vtep.upgrade import snapshot
from vtep.upgrade.channel import Channel, ClosedError, PeerHungError
from vtep.upgrade.snapshot import FdbLog, Fields
from vtep.upgrade.successor import Successor, own_command, working_directory

log = logging.getLogger("vtep")

_CONNECT_S = 10.0
"""Seconds for the new process to connect, after it has asked for the handover."""

_BUILD_S = 60.0
"""Seconds for the new process to build everything. The old one forwards meanwhile."""

_READING_S = 2.0
"""Seconds for the new process to read, after it was told to. Neither process reads meanwhile."""

_CONFIRM_S = 1.0
"""Seconds for which this process is able to continue after the new one has begun to read."""

_DRAIN_S = 0.2
"""Seconds to wait for room in send buffers, so that no datagram is overtaken."""

_ROUNDS_MAX = 5
"""Times that changes of the FDB are sent while it forwards on, so that few remain for the gap."""

_FEW = 200
"""Changed FDB entries that are few enough to be sent in the gap: half a millisecond of work."""

_BACKLOG = 1

_SUFFIX = ".takeover"
"""Suffix of the socket to which the new process connects, beside the control socket."""


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
    `on_handed_over` is awaited with the PID of the new process. `speaker` returns what that process
    must know of the EVPN speaker, and `speaker_pidfd` its pidfd.
    """

    def __init__(
        self,
        vtep: Vtep,
        base: Callable[[], Iterable[Config]],
        on_handed_over: Callable[[int], Awaitable[None]],
        command: Sequence[str] = (),
        speaker: Callable[[], Mapping[str, object]] = dict,
        speaker_pidfd: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._vtep = vtep
        self._base = base
        self._on_handed_over = on_handed_over
        self._command = command or own_command()
        self._speaker = speaker
        self._speaker_pidfd = speaker_pidfd
        # Paths in the command may be relative to it; a process in the background leaves it.
        self._folder = working_directory()
        self._server: Server | None = None
        self._successor: Successor | None = None
        """The process that an upgrade has started, until the outcome of the upgrade is known."""
        self._task: asyncio.Task[None] | None = None
        """The handover, from the call of `takeover` to its end."""
        self._process = "a process"
        """The process that takes over, for messages."""
        self._step = ""
        """The step of the handover that is awaited of that process, as an infinitive."""
        self._channel: Channel | None = None
        self.refusal: str | None = None
        """The reason why the changes of the file were refused when this process took over."""
        self.methods: Final = {
            "upgrade": Method(lambda _: self._upgrade()),
            "upgrade.show": Method(
                lambda _: {"waiting_for": self._waiting_for(), "refusal": self.refusal}
            ),
            "takeover": Method(self._take_over, ("token",)),
        }
        """The methods of the control socket by which an upgrade begins."""

    @property
    def is_handed_over(self) -> bool:
        """True once the new process forwards in place of this one."""
        return self._channel is not None

    @property
    def new_pid(self) -> int:
        """The process that forwards in place of this one; 0 if none does, or it is not known."""
        return self._channel.peer.pid if self._channel is not None else 0

    def on_serving(self, server: Server) -> None:
        """Note the control server, whose socket is handed over."""
        self._server = server
        # Left by a process that was killed while it waited there.
        if server.path is not None:
            server.path.with_suffix(_SUFFIX).unlink(missing_ok=True)

    # --- the beginning --------------------------------------------------------------------------

    def _upgrade(self) -> "asyncio.Task[str]":
        """Start the new process, and hand over to it. Raises: VtepError.

        Returns: a task, which the server awaits without delaying other clients.
        """
        if os.getpid() == 1:
            raise VtepError(
                "this pyvtep is the first process of its container, which would end with it: "
                "start a second container that shares /run/pyvtep, with --takeover"
            )
        self._check_idle()
        _, path = self._need_server()
        # The start of the new process competes for the processor. The queues of the TAPs are not
        # made longer for that time: the kernel deactivates the qdisc of a device for that
        # (dev_qdisc_change_tx_queue_len in net/sched/sch_generic.c): each change drops some frames.
        log.info("upgrade: starting %s", self._command[0])
        command = [*self._command, "--takeover", str(path)]
        self._successor = successor = Successor(command, self._folder)
        return asyncio.get_running_loop().create_task(self._wait(successor))

    async def _wait(self, successor: Successor) -> str:
        """Wait for the outcome of an upgrade. Returns: the line that describes it."""
        try:
            return await successor.outcome
        except VtepError as error:
            log.warning("upgrade failed, this process continues: %s", error)
            raise VtepError(f"{error}; the running process continues") from error
        finally:
            successor.close(kill=not self.is_handed_over)
            if not self.is_handed_over and self._task is not None:
                # One without a peer would wait for it in vain. Another one knows of the end now,
                # and must not be interrupted: it begins to read again.
                if not successor.is_taking_over:
                    self._task.cancel()
                await asyncio.wait((self._task,))
            self._successor = None

    def _check_idle(self) -> None:
        """Raise VtepError, with the reason, if another process takes over or is about to."""
        if self._task is not None and not self._task.done():
            raise VtepError(f"{self._process} is taking over already: wait for its end")
        if self._successor is not None:
            raise VtepError(
                f"an upgrade is in progress already, and waits for {self._waiting_for()}: wait for "
                "its end"
            )
        if self.is_handed_over:
            raise VtepError(f"{self._process} has taken over already")

    def _waiting_for(self) -> str | None:
        """Return which process is awaited, and to do what; None if there is no upgrade."""
        if self._task is not None and not self._task.done():
            return f"{self._process} to {self._step}"
        return None if self._successor is None else f"the new process to {self._successor.doing}"

    def _need_server(self) -> tuple[Server, Path]:
        """Return the control server and its path. Raises: VtepError if it does not listen."""
        if self._server is None or self._server.path is None:
            raise VtepError("an upgrade needs the control socket (--control)")
        return self._server, self._server.path

    def _take_over(self, given: Params) -> dict[str, str]:
        """Listen for a new process. Returns: the path at which it is to connect.

        `token` is that of the process that an upgrade has started; another process has none.
        """
        token, successor = given.text("token"), self._successor
        if successor is None or token != successor.token:
            self._check_idle()
            if token is not None:
                raise VtepError("the upgrade that has started this process has ended meanwhile")
        elif self._task is not None and not self._task.done():
            raise VtepError(f"{self._process} is taking over already: wait for its end")
        server, control = self._need_server()
        path = control.with_suffix(_SUFFIX)
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
        self._process, self._step = "a process", "connect"
        serving = self._serve(server, listener, path, successor)
        self._task = asyncio.get_running_loop().create_task(serving)
        return {"socket": str(path)}

    async def _serve(
        self, server: Server, listener: socket.socket, path: Path, successor: Successor | None
    ) -> None:
        """Hand over to the process that connects, or report why that has failed."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_S):
                ready = asyncio.Event()
                loop.add_reader(listener.fileno(), ready.set)
                await ready.wait()
                sock, _ = listener.accept()
        except (TimeoutError, OSError):
            self._fail(VtepError("the new process has not connected"), successor)
            return
        finally:
            loop.remove_reader(listener.fileno())
            listener.close()
            path.unlink(missing_ok=True)  # noqa: ASYNC240  below /run
        if successor is not None:
            successor.is_taking_over = True
        channel = Channel(sock)
        self._process = f"process {channel.peer.pid}"
        try:
            outcome = await self._hand_over(server, channel)
        except Exception as error:  # noqa: BLE001  whatever it is, this process forwards on
            failure = self._explain(error)
            with suppress(VtepError):
                await channel.send(fmt.FAILED, seconds=0.1, reason=str(failure))
            channel.close()
            self._fail(failure, successor)
        else:
            if successor is not None and not successor.outcome.done():
                successor.outcome.set_result(str(outcome))

    def _explain(self, error: Exception) -> VtepError:
        """Return the error of a handover, with the step that it was at."""
        awaited = f"{self._process} was to {self._step}, and"
        if isinstance(error, ClosedError):
            return VtepError(
                f"{awaited} has ended; see the log, and dmesg if the kernel may have killed it for "
                "want of memory"
            )
        if isinstance(error, PeerHungError):
            return VtepError(f"{awaited} did nothing for {error.seconds:g} s")
        if isinstance(error, VtepError):
            return error
        log.debug("traceback:", exc_info=error)
        return VtepError(f"{awaited} this process has failed: {error!r}; please report it")

    def _fail(self, error: VtepError, successor: Successor | None) -> None:
        if successor is not None and not successor.outcome.done():
            successor.outcome.set_exception(error)
        elif successor is None:
            log.warning("upgrade failed, this process continues: %s", error)

    # --- the handover ---------------------------------------------------------------------------

    async def _hand_over(self, server: Server, channel: Channel) -> HandoverResult:
        channel.peer.check()
        vtep, pid = self._vtep, channel.peer.pid
        self._step = "send its version"
        hello, _ = await channel.receive(fmt.HELLO, seconds=_CONNECT_S)
        log.info("upgrade: process %d, version %s, takes over", pid, hello.text("version", "?"))
        # From here on, configurations do not change. Commands that would change them wait for the
        # first lock. With the second one only, they would wait within their turn at the server, and
        # Server.pause() would wait for the end of that turn: a deadlock.
        async with server.changing, vtep.lock:
            logs = {vni: FdbLog(port.fdb) for vni, port in vtep.ports.items()}
            try:
                self._step = "build its ports"
                await self._send_snapshot(channel, logs)
                await channel.receive(fmt.READY, seconds=_BUILD_S)
                await self._send_rounds(channel, logs)
                self._step = "read"
                gap_s = await self._switch(server, channel, logs)
                entries = sum(len(port.fdb) for port in vtep.ports.values())
                outcome = HandoverResult(pid, len(vtep.ports), entries, gap_s)
                self._step = "forward for a second"
                await self._confirm(server, channel, logs)
                self._channel = channel
                log.info("%s", outcome)
            finally:
                for fdb_log in logs.values():
                    fdb_log.close()
            await self._on_handed_over(pid)
            server.hand_over()
            await vtep.release()
        return outcome

    async def _send_snapshot(self, channel: Channel, logs: dict[int, FdbLog]) -> None:
        vtep = self._vtep
        await channel.send(
            fmt.PROCESS,
            version=__version__,
            pid=os.getpid(),
            taps_lost=vtep.taps_lost,
            # Exactly, and not as an age: a monitoring system takes another time for a restart.
            started=vtep.started,
            reload=asdict(vtep.last_reload) if vtep.last_reload is not None else {},
            # Its sessions stay up: the new process supervises it.
            speaker=dict(self._speaker()),
        )
        descriptors = iter([*self._process_descriptors(), *vtep.descriptors()])
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
                state={}
                if port is None
                else {**port.state(), "names": snapshot.name_fields(port.config)},
            )
        for vni, fdb_log in logs.items():
            for fields in fdb_log.pages(vni, time.monotonic):
                await channel.send(fmt.FDB, **fields)
                await asyncio.sleep(0)  # Frames have their turn.
        await channel.send(fmt.COMPLETE)

    def _process_descriptors(self) -> Iterator[tuple[str, int]]:
        if (pidfd := self._speaker_pidfd()) is not None:
            yield SPEAKER_ROLE, pidfd
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
        for port in self._vtep.ports.values():
            for fields in snapshot.guard_pages(port, time.monotonic()):
                await channel.send(fmt.FDB, **fields)
                await asyncio.sleep(0)
        end = time.monotonic() + _DRAIN_S
        while self._vtep.is_waiting and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    @staticmethod
    def _changes(logs: dict[int, FdbLog]) -> Iterator[Fields]:
        for vni, fdb_log in logs.items():
            yield from fdb_log.changes(vni, time.monotonic())

    async def _switch(self, server: Server, channel: Channel, logs: dict[int, FdbLog]) -> float:
        """Stop reading, and let the new process read.

        Returns: seconds for which neither has read. Raises: VtepError; then this process reads on.
        """
        await server.pause()  # A command now would change what was sent already.
        began = time.monotonic()
        self._vtep.pause()
        try:
            for fields in self._changes(logs):
                await channel.send(fmt.FDB, seconds=_READING_S, **fields)
            await channel.send(fmt.GO, seconds=_READING_S)
            reading, _ = await channel.receive(fmt.READING, seconds=_READING_S)
        except BaseException:
            await self._take_back(server, channel)
            raise
        # Both clocks are the same, unless the new process has a time namespace of its own.
        took = reading.number("now", time.monotonic()) - began
        return took if 0 <= took <= time.monotonic() - began else time.monotonic() - began

    async def _confirm(self, server: Server, channel: Channel, logs: dict[int, FdbLog]) -> None:
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
            await self._take_back(server, channel)
            raise

    async def _take_back(self, server: Server, channel: Channel) -> None:
        """Read on in place of the new process."""
        # Killed before this process reads: two must never read at one time.
        await channel.kill_peer()
        self._vtep.resume()
        server.resume()

    async def _send_rest(self, channel: Channel, logs: dict[int, FdbLog]) -> None:
        """Send what the new process can add to its own: counters, ages, neighbours."""
        now, vtep = time.monotonic(), self._vtep
        vtep.counters()  # Reads those of the kernel, too.
        for name, counters in snapshot.all_counters(vtep):
            await channel.send(fmt.COUNTERS, name=name, **snapshot.counter_fields(counters, now))
        for listener in vtep.listeners:
            drops = {role: at for role, at in listener.kernel_drops.items() if at}
            await channel.send(fmt.COUNTERS, name="kernel", values=drops)
        for port in vtep.ports.values():
            for fields in snapshot.remote_counter_pages(port, now):
                await channel.send(fmt.COUNTERS, **fields)
        for fields in snapshot.liveness_pages(vtep, now):
            await channel.send(fmt.COUNTERS, **fields)
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
