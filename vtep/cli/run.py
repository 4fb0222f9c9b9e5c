"""Run a VTEP in the foreground: logging, signals, the event loop, and the summary at the end."""

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
from vtep.cli.summary import describe_port, format_report
from vtep.config import Settings
from vtep.config.file import problems_of
from vtep.control.serve import serve
from vtep.daemon.collector import Collector
from vtep.daemon.service import Service
from vtep.daemon.state_writer import StateWriter

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
    debug: bool,
    companion: Companion | None = None,
) -> None:
    """Run a VTEP with these settings until a signal ends it.

    They come from the file `path`, if any; those in `override` take precedence over the file.

    Raises: VtepError if the VTEP cannot start, or from the `companion`.
    """
    service = Service(settings, path, override)
    bootstrap.open_standard_streams()
    with descriptors.explained("start"):
        descriptors.require(_DESCRIPTORS_MIN)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    handler = NonBlockingLogHandler(journal=bootstrap.stderr_is_journal())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    log.setLevel(logging.DEBUG if debug else logging.INFO)
    try:
        uvloop.run(_run(service, companion))
    finally:
        handler.flush()  # An error that ends the process is printed past the queue.


async def _run(service: Service, companion: Companion | None) -> None:
    _raise_descriptor_limit()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_log_loop_error)
    settings = service.settings
    async with AsyncExitStack() as running:
        # Before any device exists, since the file may be unusable.
        state = running.enter_context(StateWriter.open(settings))
        if log.isEnabledFor(logging.DEBUG):
            running.callback(EventLog(service.vtep).end)
        vtep = await running.enter_async_context(service.vtep)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
            loop.add_signal_handler(number, lambda: loop.create_task(vtep.stop()))
        loop.add_signal_handler(signal.SIGUSR1, lambda: report_log.info("%s", format_report(vtep)))
        loop.add_signal_handler(signal.SIGHUP, lambda: loop.create_task(_reload(service)))
        for number in (signal.SIGUSR2, signal.SIGALRM):
            loop.add_signal_handler(number, _log_unused_signal, number)
        await running.enter_async_context(state.attached(vtep))
        serving = serve(vtep, settings.control, service.reload, state.flush)
        await running.enter_async_context(serving)

        def log_added(event: str, port: Port, _: Mapping[str, object]) -> None:
            if event == "added":
                log.info("%s", describe_port(port))

        for port in vtep.ports.values():
            log_added("added", port, {})
        running.callback(vtep.watch(log_added))
        if not vtep.ports:
            log.info("no VNI is configured yet")
        bootstrap.unblock_signals()
        running.callback(bootstrap.block_signals)  # At the end, the loop removes its handlers.
        others = (
            [Collector(vtep).run()]
            if companion is None
            else [Collector(vtep).run(), companion(vtep)]
        )
        await _until_first_ends(vtep.wait(), *others)
    totals = vtep.counters()
    drops = sum(count for name, count in totals.items() if name.startswith("drop_"))
    out, into = totals["tx_frames"], totals["rx_frames"]
    log.info("ended: %d frames out, %d in, %d dropped", out, into, drops)


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


async def _reload(service: Service) -> None:
    """Read the configuration file again; log its problems and change nothing if it has any."""
    if service.path is None:
        log.warning("SIGHUP ignored: there is no --config file to read again")
        return
    try:
        await service.reload()
    except VtepError as error:
        for problem in problems_of(error):
            # A traceback does not help with a file.
            log.error("reload failed, nothing has changed: %s", problem)  # noqa: TRY400


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
