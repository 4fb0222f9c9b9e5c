"""`pyvtep web`: serve the page about a running pyvtep."""

import sys
from typing import Any

import click

from vtep.cli import client_command, commands
from vtep.control import Client
from vtep.control.reconnect import Connector
from vtep.errors import ConfigError
from vtep.web.address import ListenAddress

_TIMEOUT_S = 4.0
"""Time in which a VTEP answers: the page says so if it does not."""


def _check(arguments: dict[str, Any]) -> None:
    """Raise ConfigError for an address that cannot be, or that has to be allowed."""
    address = ListenAddress.parse(arguments["listen"])
    if not (address.ip.is_loopback or arguments["unauthenticated"]):
        raise ConfigError(
            f"--listen {address}: other hosts could reach the page, which asks for no password; "
            "use 127.0.0.1 and ssh -L, or allow it with --unauthenticated"
        )


@click.command(cls=commands.CliCommand)
@commands.option(
    "--listen",
    metavar="IP:PORT",
    default="127.0.0.1:8479",
    help="Address and TCP port to serve the page at. [default: 127.0.0.1:8479]",
)
@commands.option(
    "--unauthenticated",
    is_flag=True,
    help="Allow an address that other hosts can reach; the page asks for no password.",
)
@client_command.with_client(segment=False, changes=False, check=_check)
def web(vtep: Client, *, listen: str, unauthenticated: bool) -> None:
    """Show a running pyvtep in a browser: its map, rates, MACs, and drops with remedies.

    The page changes nothing, and shows no payload. It is served until this command is ended.
    """
    # Other commands do without a web server.
    from vtep.web.server import WebServer  # noqa: PLC0415
    from vtep.web.shared_connection import SharedConnection  # noqa: PLC0415

    address = ListenAddress.parse(listen)
    vtep.close()
    socket = click.get_current_context().params["socket"]
    # The command has told already if it is in another network namespace.
    connect = Connector(socket, timeout=_TIMEOUT_S, elsewhere=lambda _: None)
    with WebServer(address, SharedConnection(connect)) as server:
        if unauthenticated and not address.ip.is_loopback:
            print(
                f"pyvtep: warning: every host that reaches {server.address} can read the page",
                file=sys.stderr,
            )
        print(f"http://{server.address}/", flush=True)
        server.serve_forever()
