"""Run a VTEP in this process: logging, signals, the event loop, and the summary at the end."""

import asyncio
import faulthandler
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs
import uvloop
from attrs import frozen

from vtep import Port, Vtep, VtepError, descriptors
from vtep.cli import bootstrap, least_privilege
from vtep.cli.log_handler import REPORT, NonBlockingLogHandler
from vtep.cli.log_sinks import LogDestinations, StderrSink
from vtep.cli.process_options import STDERR, SYSLOG, ProcessOptions
from vtep.cli.summary import describe_port, format_report
from vtep.config import Settings
from vtep.control import socket_files
from vtep.control.on_demand import OnDemand
from vtep.control.serve import serve
from vtep.control.server import Server
from vtep.daemon.collector import Collector
from vtep.daemon.reloadable import ReloadableVtep
from vtep.daemon.state_writer import StateWriter
from vtep.daemon.tap_namespace import prepare_taps
from vtep.evpn.fabric import Fabric, check_neighbors
from vtep.io.inherited import Inherited
from vtep.service.background import Background, PidFile
from vtep.service.notify import ServiceManager
from vtep.service.supervision import Supervision, stored_descriptors
from vtep.upgrade.new import END_SIGNALS, NewSide, socket_path
from vtep.upgrade.old import OldSide
from vtep.upgrade.starter import starter
from vtep.upgrade.successor import own_command

log = logging.getLogger("vtep")

report_log = logging.getLogger(REPORT)

_SWITCH_INTERVAL_S = 0.0005
"""Time slice of threads in seconds, instead of Python's 5 ms. While a thread reads routes, the loop
waits that long for the interpreter lock after each system call."""

_DESCRIPTORS_MIN = 16
"""Fewer descriptors than the loop, its sockets and one TAP take. Without this check, libraries that
run out of them at start would print warnings of their own."""


def run(
    settings: Settings,
    path: Path | None = None,
    override: Mapping[str, Any] | None = None,
    *,
    process: ProcessOptions,
    background: Background | None = None,
) -> None:
    """Run a VTEP with these settings until a signal ends it.

    They come from the file `path`, if any; those in `override` take precedence over the file.
    `background` is told when it forwards.

    Raises: VtepError if the VTEP cannot start.
    """
    stored = stored_descriptors(os.environ)
    reloadable = ReloadableVtep(settings, path, override, Inherited(stored), check_neighbors)
    takeover = process.takeover is not None
    command = own_command()
    manager = ServiceManager(takeover=takeover)
    supervision = Supervision(manager, reloadable.vtep, [name for name, _ in stored])
    if manager.watchdog_s is not None:
        faulthandler.enable()  # A manager that is not fed sends SIGABRT: the log shows where it is.
    bootstrap.open_standard_streams()
    with descriptors.explained("start"):
        descriptors.require(_DESCRIPTORS_MIN)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    with ExitStack() as files:
        if not takeover:
            # While this process may still enter the network namespaces of others.
            prepare_taps(settings.segments, reloadable.vtep.inherited)
        # Before the first thread, which is that of the log handler, and before anything else is
        # opened. So the files that are made from now on belong to the user of --user.
        least_privilege.drop(reloadable.settings, on_demand=process.on_demand)
        logs = LogDestinations.open(process, in_background=background is not None)
        pid_file = _write_pid_file(files, process, settings, takeover=takeover)
        # Not earlier: the PID file is in the directory of the user of --user.
        command += _options_of_successor(process, settings)
        handler = NonBlockingLogHandler(*logs.at_start)
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
        log.setLevel(logging.DEBUG if process.debug else logging.INFO)
        if logs.problem is not None:
            log.warning("%s", logs.problem)
        if process.background and pid_file is None and not process.on_demand:
            log.warning(
                "no PID file is written: XDG_RUNTIME_DIR is not set; name one with --pid-file FILE"
            )
        least_privilege.check_files(reloadable.settings, path)

        def on_ready() -> None:
            _publish(pid_file)
            supervision.ready()
            if background is not None:
                handler.flush()
                handler.sinks = logs.lasting
                background.ready()

        try:
            parts = _Parts(
                *(reloadable, supervision, handler, on_ready, pid_file),
                *(command, process.log_options, process.takeover, process.on_demand),
            )
            uvloop.run(_run(parts))
        except VtepError as error:
            _log_error(process, logs, handler, error)
            raise
        finally:
            handler.flush()  # An error that ends the process is printed past the queue.


def _log_error(
    process: ProcessOptions,
    logs: LogDestinations,
    handler: NonBlockingLogHandler,
    error: VtepError,
) -> None:
    """Log the error that ends this process where the caller, who prints it, does not.

    Side effect: exits if standard error has JSON, as a line of text is none.
    """
    in_json = any(isinstance(sink, StderrSink) and sink.as_json for sink in logs.lasting)
    if not in_json and logs.lasting == logs.at_start and process.log in (None, STDERR):
        return
    handler.flush()
    handler.sinks = tuple(
        sink for sink in logs.lasting if in_json or not isinstance(sink, StderrSink)
    )
    for problem in error.problems:
        log.error("%s", problem)
    if in_json:
        handler.flush()
        starter().fail(error.problems[-1])
        sys.exit(error.exit_code)


def _write_pid_file(
    files: ExitStack, process: ProcessOptions, settings: Settings, *, takeover: bool
) -> PidFile | None:
    """Write the PID file, if there is to be one, and remove it at the end of `files`."""
    path = _pid_file(process, settings)
    return None if path is None else files.enter_context(PidFile(path, takeover=takeover))


def _publish(pid_file: PidFile | None) -> None:
    """Replace the PID file of the process that was taken over."""
    try:
        if pid_file is not None:
            pid_file.publish()
    except OSError as error:  # It forwards already: no reason to end.
        log.warning("--pid-file: cannot replace it: %s", error.strerror)


def _options_of_successor(process: ProcessOptions, settings: Settings) -> list[str]:
    """Return options for the successor of a process in the background, which is there already.

    They name what `--background` implies: where the log goes, and the PID file.
    """
    if not process.background:
        return []
    options = []
    if process.log is None:
        options += ["--log", SYSLOG]
    if process.pid_file is None and (path := _pid_file(process, settings)) is not None:
        options += ["--pid-file", str(path)]
    return options


def _pid_file(process: ProcessOptions, settings: Settings) -> Path | None:
    """Return the path of the PID file; None for a process without one."""
    # A process on demand may be one of several, in several network namespaces, and ends by itself.
    if process.pid_file is not None or not process.background or process.on_demand:
        return process.pid_file
    place = socket_files.folder()
    if place is None:
        return None
    try:
        place.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise VtepError(
            f"cannot write a PID file in {place}: {descriptors.reason(error)}; name one with "
            "--pid-file FILE"
        ) from error
    name = settings.segments[0].tap if settings.segments else "pyvtep"
    return place / f"{name}.pid"


@frozen(eq=False)
class _Parts:
    """All that a process consists of before its event loop runs."""

    reloadable: ReloadableVtep
    supervision: Supervision
    handler: NonBlockingLogHandler
    on_ready: Callable[[], None]
    pid_file: PidFile | None
    command: list[str]
    log_options: list[str]
    """Options of the log, for processes that this one starts."""
    takeover: str | None
    """The control socket of the process to take over from, or empty for the default one."""
    on_demand: bool


async def _run(parts: _Parts) -> None:
    """Start everything in order, run until the VTEP ends, and end everything in reverse order."""
    reloadable, supervision = parts.reloadable, parts.supervision
    _raise_descriptor_limit()
    asyncio.get_running_loop().set_exception_handler(_log_loop_error)
    settings = reloadable.settings

    async def on_handed_over(pid: int) -> None:
        if parts.pid_file is not None:
            parts.pid_file.leave()
        await supervision.hand_over(pid)

    async with AsyncExitStack() as running:
        manager = supervision.manager
        fabric = Fabric(reloadable.vtep, parts.log_options)
        handover = OldSide(
            *(reloadable.vtep, lambda: reloadable.settings.segments),
            *(on_handed_over, parts.command),
            speaker=fabric.state,
            speaker_pidfd=fabric.pidfd,
        )
        running.push_async_callback(handover.finish)  # The last of all: the files are closed then.
        if parts.takeover is None:
            # Before any device exists, since the file may be unusable.
            state = running.enter_context(StateWriter.open(settings))
        if log.isEnabledFor(logging.DEBUG):
            # It imports the client commands, whose format it shares.
            from vtep.cli.event_log import EventLog  # noqa: PLC0415

            running.callback(EventLog(reloadable.vtep).end)
        # 1. The devices and sockets: opened here or, with --takeover, received from the process
        #    that this one replaces.
        successor = None
        if parts.takeover is None:
            vtep = await running.enter_async_context(reloadable.vtep)
        else:
            path = socket_path(parts.takeover, settings)
            successor = NewSide(reloadable.vtep, settings.segments, path)
            vtep = await running.enter_async_context(successor.started())
            reloadable.settings = attrs.evolve(settings, segments=successor.base)
            handover.refusal = successor.refusal
            fabric.adopt(successor.speaker, successor.taken, successor.speaker_pidfd)
            # Not earlier: until now, they were locked by the process that this one replaces.
            state = running.enter_context(StateWriter.open(settings))
        running.callback(supervision.stopping)
        _handle_signals(reloadable, manager, parts.handler, handover, fabric)
        if successor is not None and successor.end_requested.is_set():
            asyncio.get_running_loop().create_task(vtep.stop())
        restores = parts.takeover is None
        await running.enter_async_context(state.attached(vtep, restores=restores))
        # 2. The control socket.
        on_demand = OnDemand(vtep)
        serving = serve(
            *(vtep, settings.control, reloadable.reload, state.flush),
            readers=settings.control_group,
            changers=settings.control_admin_group,
            inherited=None if successor is None else successor.control,
            more={**handover.methods, **fabric.methods},
            on_serving=partial(_on_serving, handover, on_demand, fabric),
        )
        await running.enter_async_context(serving)
        await running.enter_async_context(
            fabric.configured(reloadable, lambda: handover.is_handed_over)
        )
        _log_ports(vtep, running)
        bootstrap.unblock_signals()
        running.callback(bootstrap.block_signals)  # At the end, the loop removes its handlers.
        # 3. It forwards: --takeover is acknowledged, and whoever waits for the start is told.
        parts.on_ready()
        await _until_first_ends(vtep.wait(), *_others(parts, vtep, on_demand), fabric.run())
    totals = vtep.counters()
    drops = sum(count for name, count in totals.items() if name.startswith("drop_"))
    out, into = totals["tx_frames"], totals["rx_frames"]
    log.info("ended: %d frames out, %d in, %d dropped", out, into, drops)


def _on_serving(handover: OldSide, on_demand: OnDemand, fabric: Fabric, server: Server) -> None:
    """Pass the server of the control socket to the parts that need it."""
    handover.on_serving(server)
    fabric.on_serving(server)
    on_demand.server = server


def _others(parts: _Parts, vtep: Vtep, on_demand: OnDemand) -> Iterator[Coroutine[Any, Any, None]]:
    """Yield what runs beside the VTEP, each a coroutine that ends the process when it ends."""
    yield Collector(vtep).run()
    yield parts.supervision.run()
    yield _follow_docker_networks(vtep)
    if parts.on_demand:
        yield on_demand.run()


async def _follow_docker_networks(vtep: Vtep) -> None:
    """Keep ports with --docker-network on the bridges of their networks, until cancelled."""
    needed = asyncio.Event()

    def note(_event: str, port: Port, _values: Mapping[str, object]) -> None:
        if port.config.docker_network is not None:
            needed.set()

    unwatch = vtep.watch(note)
    for port in vtep.ports.values():
        note("added", port, {})
    await needed.wait()
    unwatch()
    # Not earlier, since few processes need it, and in a thread, so that frames need not wait.
    attachment = await asyncio.to_thread(import_module, "vtep.docker.attachment")
    await attachment.DockerNetworks(vtep).run()


def _handle_signals(
    reloadable: ReloadableVtep,
    manager: ServiceManager,
    handler: NonBlockingLogHandler,
    handover: OldSide,
    fabric: Fabric,
) -> None:
    """Handle signals in the running loop: those that end, those that request something."""
    loop, vtep = asyncio.get_running_loop(), reloadable.vtep

    def on_end() -> None:
        # After a handover, this process ends by itself. To stop would remove what it has handed
        # over, such as the file of the control socket.
        if not handover.is_handed_over:
            loop.create_task(vtep.stop())

    for number in END_SIGNALS:
        loop.add_signal_handler(number, on_end)
    loop.add_signal_handler(signal.SIGUSR1, lambda: report_log.info("%s", format_report(vtep)))

    def on_hangup() -> None:
        handler.reopen()
        fabric.reopen_log()
        loop.create_task(_reload(reloadable, manager, handover))

    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    for number in (signal.SIGUSR2, signal.SIGALRM):
        loop.add_signal_handler(number, _log_unused_signal, number)


def _log_ports(vtep: Vtep, running: AsyncExitStack) -> None:
    """Log each port, those of now and those that are added later."""

    def log_added(event: str, port: Port, _: Mapping[str, object]) -> None:
        if event == "added":
            log.info("%s", describe_port(port))

    for port in vtep.ports.values():
        log_added("added", port, {})
    running.callback(vtep.watch(log_added))
    if not vtep.ports:
        log.info("no VNI is configured yet")


def _log_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an exception that no task handles: as one line, and with --debug its traceback."""
    error = context.get("exception")
    if isinstance(error, OSError) and descriptors.is_shortage(error):
        descriptors.warn(f"{context['message']}: {descriptors.reason(error)}")
    else:
        log.error("internal error: %s: %r", context["message"], error)
    log.debug("traceback:", exc_info=error)


async def _until_first_ends(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run coroutines until one ends, cancel the others, and raise its exception.

    Exceptions of the others are ignored if the first one, the VTEP itself, has ended: they may be a
    consequence of that.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks[:1] if tasks[0] in ended else ended:
        task.result()


async def _reload(reloadable: ReloadableVtep, manager: ServiceManager, handover: OldSide) -> None:
    """Read the configuration file again; log its problems and change nothing if it has any."""
    if reloadable.path is None:
        log.warning("SIGHUP ignored: there is no --config file to read again")
        return
    manager.reloading()
    try:
        await reloadable.reload()
    except VtepError as error:
        if handover.new_pid:
            # It waited for the handover. The new process may have read the file before it changed.
            with suppress(OSError):
                os.kill(handover.new_pid, signal.SIGHUP)
            return
        for problem in error.problems:
            # A traceback does not help with a file.
            log.error("reload failed, nothing has changed: %s", problem)  # noqa: TRY400
    finally:
        manager.ready()


def _log_unused_signal(number: signal.Signals) -> None:
    """Log that a signal has no function here."""
    log.warning(
        "%s ignored: SIGUSR1 prints a report, SIGHUP reads the --config file again, SIGTERM ends "
        "pyvtep",
        number.name,
    )


def _raise_descriptor_limit() -> None:
    """Raise the soft limit of open descriptors to the hard limit.

    Each source port takes a socket. The usual soft limit of 1024 is there for users of select().
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
