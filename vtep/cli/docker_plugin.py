"""`pyvtep docker plugin`: the network driver of the Docker engine of this host."""

import logging
from pathlib import Path

import click

from vtep.cli import bootstrap, commands
from vtep.cli.log_handler import NonBlockingLogHandler
from vtep.cli.log_sinks import StderrSink
from vtep.service.notify import ServiceManager

_SOCKET = "/run/docker/plugins/pyvtep.sock"
_STATE = "/var/lib/pyvtep/docker"


@click.command(cls=commands.CliCommand)
@commands.option(
    "--plugin-socket",
    metavar="PATH",
    type=click.Path(path_type=Path),
    default=_SOCKET,
    help=f"Unix socket where the engine finds the plug-in [default: {_SOCKET}].",
)
@commands.option(
    "--docker-host",
    metavar="URL",
    help="Address of the engine [default: $DOCKER_HOST, or unix:///var/run/docker.sock].",
)
@commands.option(
    "--state-directory",
    metavar="PATH",
    type=click.Path(path_type=Path, file_okay=False),
    default=_STATE,
    help=f"Directory of the networks that the plug-in knows [default: {_STATE}].",
)
@commands.option(
    "--socket",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Control socket of the pyvtep for networks [default: the one that has their UDP port, or "
    "the only one].",
)
@click.pass_context
def plugin(
    context: click.Context,
    /,
    *,
    plugin_socket: Path,
    docker_host: str | None,
    state_directory: Path,
    socket: Path | None,
) -> None:
    """Serve the network driver `pyvtep` to the Docker engine, until it is ended.

    While it runs, on each of two hosts, with the address of the other host as the remote:

    \b
        docker network create -d pyvtep -o vni=200 -o remote=192.0.2.2 \\
            --subnet 10.18.0.0/16 mynetwork

    It may start before the engine, and it may be restarted at any time: containers keep their
    networks meanwhile.
    """
    # Slow to import: other commands do without.
    from vtep.docker.client import EngineClient  # noqa: PLC0415
    from vtep.docker.plugin.process import serve  # noqa: PLC0415

    # A reader of standard error that is stuck must not stop the methods of the engine.
    handler = NonBlockingLogHandler(StderrSink(journal=bootstrap.stderr_is_journal()))
    debug = context.find_root().params["debug"]
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("vtep").setLevel(logging.DEBUG if debug else logging.INFO)
    serve(
        plugin_socket,
        EngineClient(docker_host),
        state_directory,
        daemon_socket=socket,
        on_ready=ServiceManager().ready,
    )
