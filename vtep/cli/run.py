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

import click
import uvloop

from vtep import Config, Port, Vtep, VtepError, descriptors
from vtep.cli.collector import Collector
from vtep.cli.options import settings_of
from vtep.cli.report import introduce, render
from vtep.cli.voice import Voice, hold_standard_streams
from vtep.config import Settings
from vtep.configfile import problems_of
from vtep.control.service import serve
from vtep.keeper import hold, keep, load
from vtep.service import Service, read

Beside: TypeAlias = Callable[[Vtep], Coroutine[Any, Any, None]]

log = logging.getLogger("vtep")

_SWITCH_INTERVAL = 0.0005
"""Seconds for which a thread may keep the interpreter from the loop, instead of Python's 5 ms: the
frames wait that long at each system call while the host's network is looked at in a thread."""

_DESCRIPTORS_MIN = 16
"""Less than the loop, its sockets and one TAP take: some of it, if cut short, prints warnings."""

_EXAMPLE = "pyvtep --vni 1 --remote 192.0.2.2 --tap vx0"


def run(config: str | None, given: dict[str, Any], *, debug: bool) -> None:
    """Forward what a file, or the options that were given, ask for, until a signal ends it."""
    run_service(_service(config, given), debug=debug)


def run_service(service: Service, *, debug: bool, beside: Beside | None = None) -> None:
    """Forward until a signal ends it; `beside` runs meanwhile, and ends it by raising VtepError."""
    hold_standard_streams()
    with descriptors.explained("start"):
        descriptors.require(_DESCRIPTORS_MIN)
    sys.setswitchinterval(_SWITCH_INTERVAL)
    voice = Voice()
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, handlers=[voice])
    try:
        uvloop.run(_forward(service, voice, beside))
    finally:
        voice.close()


def _service(config: str | None, given: dict[str, Any]) -> Service:
    """What is asked for by a file, or by options; those of the process go with both."""
    process = settings_of(given)
    if config is None:
        if "vni" not in given:
            raise click.UsageError(f"--vni is missing; for example: {_EXAMPLE}")
        return Service(Settings(segments=[Config(**given)]), instead=process)
    if given:
        flag = min(given).replace("_", "-")
        raise click.UsageError(f"--{flag} says nothing beside --config: write it into {config}")
    path = Path(config)
    return Service(read(path), path, process)


async def _forward(service: Service, voice: Voice, beside: Beside | None) -> None:
    _allow_many_sockets()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_say_what_went_wrong)
    settings = service.settings
    async with AsyncExitStack() as running:
        running.enter_context(hold(settings))
        loaded = load(settings)  # Before anything is made: the file may not be ours.
        vtep = await running.enter_async_context(service.vtep)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, lambda: loop.create_task(vtep.stop()))
        loop.add_signal_handler(signal.SIGUSR1, lambda: voice.say(render(vtep)))
        if service.path is not None:
            loop.add_signal_handler(
                signal.SIGHUP, lambda: loop.create_task(_reload(service, voice))
            )
        kept = await running.enter_async_context(keep(vtep, settings, loaded))
        await running.enter_async_context(serve(vtep, settings.control, service.reload, kept))

        def introduce_added(event: str, port: Port, _: Mapping[str, object]) -> None:
            if event == "added":
                voice.say(f"pyvtep: {introduce(port)}")

        for port in vtep.ports.values():
            introduce_added("added", port, {})
        running.callback(vtep.watch(introduce_added))
        if not vtep.ports:
            voice.say("pyvtep: there is no VNI yet")
        others = (
            [Collector(vtep).run()] if beside is None else [Collector(vtep).run(), beside(vtep)]
        )
        await _until_it_ends(vtep.wait(), *others)
    totals = vtep.counters()
    drops = sum(count for name, count in totals.items() if name.startswith("drop_"))
    voice.say(
        f"pyvtep: ended: {totals['tx_frames']} frames out, {totals['rx_frames']} in, "
        f"{drops} dropped"
    )


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


async def _reload(service: Service, voice: Voice) -> None:
    """Read the file again; what is wrong with it is said, and changes nothing."""
    try:
        await service.reload()
    except VtepError as error:
        for problem in problems_of(error):
            voice.say(f"pyvtep: error: {problem}")
        voice.say("pyvtep: all is as it was")


def _allow_many_sockets() -> None:
    """Source-port entropy takes a socket for each port; the usual soft limit is for select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
