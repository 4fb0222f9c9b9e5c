"""The `pyvtep` command.

Its options are the fields of `Config`: their names, help texts and checks are there. Exit codes:
0, 1 (this machine refused), 2 (the command line makes no sense).
"""

import asyncio
import logging
import resource
import signal
import sys
import traceback
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import attrs
import click
import uvloop

from vtep import Config, VtepError, __version__
from vtep.cli import fdb, neigh, segments
from vtep.cli.collector import collect_gently
from vtep.cli.completion import completion
from vtep.cli.monitor import monitor
from vtep.cli.options import config_options, given_of, settings_options
from vtep.cli.report import introduce, render
from vtep.cli.voice import Voice, hold_standard_streams
from vtep.config import Settings
from vtep.configfile import FileError
from vtep.control.service import serve
from vtep.keeper import keep, load
from vtep.service import Service, read


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@config_options()
@settings_options()
@click.option("--config", metavar="FILE", help="Configuration of many VNIs, instead of options.")
@click.option("--debug", is_flag=True, help="Show tracebacks and debugging messages.")
@click.version_option(__version__, message="pyvtep %(version)s")
@click.pass_context
def cli(context: click.Context, /, *, config: str | None, debug: bool, **options: Any) -> None:
    """Join this host to a VXLAN segment, without the kernel's VXLAN driver.

    On two hosts, with the other one's address as the remote:

        pyvtep --vni 1 --remote 192.0.2.2 --tap vx0

    Then vx0 is one end of an Ethernet: give it an address, or enslave it to a bridge.
    SIGUSR1 prints counters and learned MACs; SIGINT or SIGTERM ends it and removes vx0. With
    --config, SIGHUP reads the file again.
    """
    given = given_of(options)
    if context.invoked_subcommand is not None:
        if given or config is not None:
            first = min([*given, *(["config"] if config is not None else [])]).replace("_", "-")
            raise click.UsageError(f"{context.invoked_subcommand} takes no --{first}")
        return
    service = _service(config, given)
    hold_standard_streams()
    voice = Voice()
    logging.basicConfig(level=logging.DEBUG if debug else logging.INFO, handlers=[voice])
    try:
        uvloop.run(_run(service, voice))
    finally:
        voice.close()


def _service(config: str | None, given: dict[str, Any]) -> Service:
    """What is asked for by a file, or by options; those of the process go with both."""
    process = {
        field.name: given.pop(field.name) for field in attrs.fields(Settings) if field.name in given
    }
    if config is None:
        if "vni" not in given:
            raise click.UsageError(f"--vni is missing; for example: {_EXAMPLE}")
        return Service(Settings(segments=[Config(**given)]), instead=process)
    if given:
        flag = min(given).replace("_", "-")
        raise click.UsageError(f"--{flag} says nothing beside --config: write it into {config}")
    path = Path(config)
    return Service(read(path), path, process)


_EXAMPLE = "pyvtep --vni 1 --remote 192.0.2.2 --tap vx0"


@cli.command("check-config")
@click.argument("file", type=click.Path(path_type=Path))
def check_config(file: Path) -> None:
    """Say whether a configuration file makes sense, or each line that does not."""
    try:
        settings = read(file)
    except FileError as error:  # As compilers write it, so that editors find the place.
        print(*error.problems, sep="\n", file=sys.stderr)
        sys.exit(error.exit_code)
    vnis = ", ".join(str(config.vni) for config in settings.segments)
    print(f"{file}: makes sense; vni {vnis}" if vnis else f"{file}: makes sense; there is no VNI")


@cli.command()
def demo() -> None:
    """Show two VTEPs at work on this machine, in network namespaces that are removed again."""
    from vtep.cli.demo import run  # noqa: PLC0415  the data path need not carry rich

    run()


for _command in (fdb.group, neigh.group, *segments.COMMANDS, monitor, completion):
    cli.add_command(_command)


async def _run(service: Service, voice: Voice) -> None:
    """Forward until a signal ends it."""
    _allow_many_sockets()
    loop = asyncio.get_running_loop()
    settings = service.settings
    async with AsyncExitStack() as running:
        loaded = load(settings)  # Before anything is made: the file may not be ours.
        vtep = await running.enter_async_context(service.vtep)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, lambda: loop.create_task(vtep.stop()))
        loop.add_signal_handler(signal.SIGUSR1, lambda: voice.say(render(vtep)))
        if service.path is not None:
            loop.add_signal_handler(
                signal.SIGHUP, lambda: loop.create_task(_reload(service, voice))
            )
        await running.enter_async_context(keep(vtep, settings, loaded))
        await running.enter_async_context(serve(vtep, settings.control, service.reload))
        for port in vtep.ports.values():
            voice.say(f"pyvtep: {introduce(port)}")
        if not vtep.ports:
            voice.say("pyvtep: there is no VNI yet")
        collector = loop.create_task(collect_gently())
        await vtep.wait()
        collector.cancel()
    totals = vtep.counters()
    drops = sum(count for name, count in totals.items() if name.startswith("drop_"))
    voice.say(
        f"pyvtep: ended: {totals['tx_frames']} frames out, {totals['rx_frames']} in, "
        f"{drops} dropped"
    )


async def _reload(service: Service, voice: Voice) -> None:
    """Read the file again; what is wrong with it is said, and changes nothing."""
    try:
        voice.say(f"pyvtep: {await service.reload()}")
    except VtepError as error:
        for problem in _problems(error):
            voice.say(f"pyvtep: error: {problem}")
        voice.say("pyvtep: all is as it was")


def _problems(error: VtepError) -> tuple[str, ...]:
    return error.problems if isinstance(error, FileError) else (str(error),)


def _allow_many_sockets() -> None:
    """Source-port entropy takes a socket for each port; the usual soft limit is for select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """Run the command line and end the process with its exit code."""
    debug = "--debug" in sys.argv
    try:
        cli.main(prog_name="pyvtep", standalone_mode=False)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code, debug=debug)
    except VtepError as error:
        _fail("\npyvtep: error: ".join(_problems(error)), error.exit_code, debug=debug)
    except Exception as error:  # noqa: BLE001  the last resort: a line for the person
        line = f"internal error: {error!r}; --debug shows where, and we would like to hear of it"
        _fail(line, 1, debug=debug)


def _fail(line: str, code: int, *, debug: bool) -> None:
    """Say why, with the traceback of the present exception if wanted, and end the process."""
    with suppress(OSError, AttributeError):  # Standard error may be broken, or closed.
        if debug:
            traceback.print_exc()
        print(f"pyvtep: error: {line}", file=sys.stderr, flush=True)
    sys.exit(code)
