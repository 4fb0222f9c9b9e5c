"""Run a VTEP in this process: logging, signals, the event loop, and the summary at the end."""

import asyncio
import logging
import resource
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeAlias

import uvloop

from vtep import Port, Vtep, VtepError, descriptors
from vtep.cli import bootstrap
from vtep.cli.event_log import EventLog
from vtep.cli.log_handler import REPORT, NonBlockingLogHandler
from vtep.cli.process_options import ProcessOptions
from vtep.cli.summary import describe_port, format_report
from vtep.config import Settings
from vtep.config.file import problems_of
from vtep.control.serve import serve
from vtep.daemon.collector import Collector
from vtep.daemon.reloadable import ReloadableVtep
from vtep.daemon.state_writer import StateWriter
from vtep.service.notify import ServiceManager

log = logging.getLogger("vtep")

report_log = logging.getLogger(REPORT)

Companion: TypeAlias = Callable[[Vtep], Coroutine[Any, Any, None]]
"""A coroutine that runs beside a VTEP; its VtepError ends both."""

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
    companion: Companion | None = None,
) -> None:
    """Run a VTEP with these settings until a signal ends it.

    They come from the file `path`, if any; those in `override` take precedence over the file.

    Raises: VtepError if the VTEP cannot start, or from the `companion`.
    """
    reloadable = ReloadableVtep(settings, path, override)
    manager = ServiceManager()
    bootstrap.open_standard_streams()
    with descriptors.explained("start"):
        descriptors.require(_DESCRIPTORS_MIN)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    handler = NonBlockingLogHandler(journal=bootstrap.stderr_is_journal())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    log.setLevel(logging.DEBUG if process.debug else logging.INFO)
    try:
        uvloop.run(_run(reloadable, manager, companion))
    finally:
        handler.flush()  # An error that ends the process is printed past the queue.


async def _run(
    reloadable: ReloadableVtep, manager: ServiceManager, companion: Companion | None
) -> None:
    """Start everything in order, run until the VTEP ends, and end everything in reverse order."""
    _raise_descriptor_limit()
    asyncio.get_running_loop().set_exception_handler(_log_loop_error)
    settings = reloadable.settings
    async with AsyncExitStack() as running:
        # Before any device exists, since the file may be unusable.
        state = running.enter_context(StateWriter.open(settings))
        if log.isEnabledFor(logging.DEBUG):
            running.callback(EventLog(reloadable.vtep).end)
        # 1. The devices and sockets: opened here or, with --takeover, received from the process
        #    that this one replaces.
        vtep = await running.enter_async_context(reloadable.vtep)
        running.callback(manager.stopping)
        _handle_signals(reloadable, manager)
        await running.enter_async_context(state.attached(vtep))
        # 2. Privileges that only the start needs are dropped here. Files that are made from now on
        #    belong to the user of --user.
        serving = serve(vtep, settings.control, reloadable.reload, state.flush)
        await running.enter_async_context(serving)
        _log_ports(vtep, running)
        bootstrap.unblock_signals()
        running.callback(bootstrap.block_signals)  # At the end, the loop removes its handlers.
        others = [Collector(vtep).run()]
        if companion is not None:
            others.append(companion(vtep))
        # 3. It forwards: --takeover is acknowledged, and whoever waits for the start is told.
        manager.ready()
        await _until_first_ends(vtep.wait(), *others)
    totals = vtep.counters()
    drops = sum(count for name, count in totals.items() if name.startswith("drop_"))
    out, into = totals["tx_frames"], totals["rx_frames"]
    log.info("ended: %d frames out, %d in, %d dropped", out, into, drops)


def _handle_signals(reloadable: ReloadableVtep, manager: ServiceManager) -> None:
    """Handle signals in the running loop: those that end, those that request something."""
    loop, vtep = asyncio.get_running_loop(), reloadable.vtep
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        loop.add_signal_handler(number, lambda: loop.create_task(vtep.stop()))
    loop.add_signal_handler(signal.SIGUSR1, lambda: report_log.info("%s", format_report(vtep)))
    loop.add_signal_handler(signal.SIGHUP, lambda: loop.create_task(_reload(reloadable, manager)))
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


async def _reload(reloadable: ReloadableVtep, manager: ServiceManager) -> None:
    """Read the configuration file again; log its problems and change nothing if it has any."""
    if reloadable.path is None:
        log.warning("SIGHUP ignored: there is no --config file to read again")
        return
    manager.reloading()
    try:
        await reloadable.reload()
    except VtepError as error:
        for problem in problems_of(error):
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
