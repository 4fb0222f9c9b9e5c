"""Running a VTEP: from what was asked for, through signals, to its last words."""

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
from vtep.cli.event_log import Trace
from vtep.cli.log_handler import Voice, hold_standard_streams
from vtep.cli.summary import introduce, render
from vtep.config import Settings
from vtep.config.file import problems_of
from vtep.control.serve import serve
from vtep.daemon.collector import Collector
from vtep.daemon.service import Service
from vtep.daemon.state_writer import hold, keep, load

log = logging.getLogger("vtep")

Beside: TypeAlias = Callable[[Vtep], Coroutine[Any, Any, None]]

log = logging.getLogger("vtep")

_SWITCH_INTERVAL = 0.0005
"""Seconds for which a thread may keep the interpreter from the loop, instead of Python's 5 ms: the
frames wait that long at each system call while the host's network is looked at in a thread."""

_DESCRIPTORS_MIN = 16
"""Less than the loop, its sockets and one TAP take: some of it, if cut short, prints warnings."""


def run(
    settings: Settings,
    path: Path | None = None,
    instead: Mapping[str, Any] | None = None,
    *,
    debug: bool,
    beside: Beside | None = None,
) -> None:
    """Forward as settings ask for, until a signal ends it.

    They are from the file `path`, if any, and those in `instead` hold whatever it says. `beside`
    runs meanwhile, and ends it by raising VtepError.
    """
    service = Service(settings, path, instead)
    hold_standard_streams()
    with descriptors.explained("start"):
        descriptors.require(_DESCRIPTORS_MIN)
    sys.setswitchinterval(_SWITCH_INTERVAL)
    voice = Voice(journal=bootstrap.in_journal())
    logging.basicConfig(level=logging.WARNING, handlers=[voice])
    log.setLevel(logging.DEBUG if debug else logging.INFO)
    try:
        uvloop.run(_forward(service, voice, beside))
    finally:
        voice.close()


async def _forward(service: Service, voice: Voice, beside: Beside | None) -> None:
    _allow_many_sockets()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_say_what_went_wrong)
    settings = service.settings
    async with AsyncExitStack() as running:
        running.enter_context(hold(settings))
        loaded = load(settings)  # Before anything is made: the file may not be ours.
        if log.isEnabledFor(logging.DEBUG):
            running.callback(Trace(service.vtep).end)
        vtep = await running.enter_async_context(service.vtep)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
            loop.add_signal_handler(number, lambda: loop.create_task(vtep.stop()))
        loop.add_signal_handler(signal.SIGUSR1, lambda: voice.say(render(vtep)))
        loop.add_signal_handler(signal.SIGHUP, lambda: loop.create_task(_reload(service)))
        for number in (signal.SIGUSR2, signal.SIGALRM):
            loop.add_signal_handler(number, _say_unknown, number)
        kept = await running.enter_async_context(keep(vtep, settings, loaded))
        await running.enter_async_context(serve(vtep, settings.control, service.reload, kept))

        def introduce_added(event: str, port: Port, _: Mapping[str, object]) -> None:
            if event == "added":
                log.info("%s", introduce(port))

        for port in vtep.ports.values():
            introduce_added("added", port, {})
        running.callback(vtep.watch(introduce_added))
        if not vtep.ports:
            log.info("there is no VNI yet")
        bootstrap.let_signals_end()
        running.callback(bootstrap.let_signals_wait)  # The handlers go before the process does.
        others = (
            [Collector(vtep).run()] if beside is None else [Collector(vtep).run(), beside(vtep)]
        )
        await _until_it_ends(vtep.wait(), *others)
    totals = vtep.counters()
    drops = sum(count for name, count in totals.items() if name.startswith("drop_"))
    out, into = totals["tx_frames"], totals["rx_frames"]
    log.info("ended: %d frames out, %d in, %d dropped", out, into, drops)


def _say_what_went_wrong(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error that only the loop has seen: as a line, and where it was with --debug."""
    error = context.get("exception")
    if isinstance(error, OSError) and descriptors.is_shortage(error):
        descriptors.warn(f"{context['message']}: {descriptors.reason(error)}")
    else:
        log.error("internal error: %s: %r", context["message"], error)
    log.debug("where it was:", exc_info=error)


async def _until_it_ends(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run them together; when one has ended, cancel the others, and raise what it raised.

    If the first of them has ended, it does not matter what became of the others by then.
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
    """Read the file again; what is wrong with it is said, and changes nothing."""
    if service.path is None:
        log.warning("SIGHUP: there is no --config file to read again; nothing has changed")
        return
    try:
        await service.reload()
    except VtepError as error:
        for problem in problems_of(error):
            log.error("error: %s", problem)  # noqa: TRY400  the reader is no programmer
        log.error("all is as it was")  # noqa: TRY400


def _say_unknown(number: signal.Signals) -> None:
    """Say that a signal asks for nothing here."""
    log.warning(
        "%s: means nothing here; SIGUSR1 prints a report, SIGHUP reads the --config file again, "
        "SIGTERM ends pyvtep",
        number.name,
    )


def _allow_many_sockets() -> None:
    """Source-port entropy takes a socket for each port; the usual soft limit is for select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
