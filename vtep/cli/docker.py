"""`pyvtep docker`: networks of this host's Docker engine, attached to a segment."""

import json
import os
from contextlib import suppress
from typing import Any

import click
from attrs import asdict, evolve

from vtep import Config, VtepError
from vtep.cli import bootstrap, commands
from vtep.cli.options import config_options, given_options, settings_options, take_settings
from vtep.config import Settings
from vtep.control import client as control
from vtep.control import socket_files
from vtep.docker import record
from vtep.docker.client import Client, NoSuchNetworkError
from vtep.docker.network import read
from vtep.docker.record import Record


def _checked(_context: click.Context, _option: click.Parameter, network: str) -> str:
    record.check(network)
    return network


_NETWORK = click.argument("network", callback=_checked)
"""Its name, or as for docker itself the beginning of its ID."""


@click.group(cls=commands.CliGroup)
def docker() -> None:
    """Join Docker networks of several hosts: their containers share one subnet."""


@docker.command()
@_NETWORK
@config_options(without=("bridge", "anycast_gateway"))
@settings_options()
@commands.option(
    "--docker-host",
    metavar="URL",
    help="Where the engine listens [default: $DOCKER_HOST, or unix:///var/run/docker.sock].",
)
@click.pass_context
def attach(
    context: click.Context, /, network: str, *, docker_host: str | None, **options: Any
) -> None:
    """Attach a Docker network of this host to a segment, for as long as this runs.

    On each of two hosts, with a range and a gateway of its own (172.18.2.0/24 and 172.18.2.1 on
    the other), and the other one's address as the remote:

    \b
        docker network create --subnet 172.18.0.0/16 \\
            --ip-range 172.18.1.0/24 --gateway 172.18.1.1 mynetwork
        pyvtep docker attach mynetwork --vni 200 --remote 192.0.2.2

    The network's bridge is found by asking the engine, and found again where the network is
    created anew. Each host's containers keep to the gateway of their own host.
    """
    bootstrap.block_signals()
    given = given_options(options)
    process = take_settings(given)
    if "vni" not in given:
        example = f"pyvtep docker attach {network} --vni 200 --remote 192.0.2.2"
        raise click.UsageError(f"--vni is missing; for example: {example}")
    config = Config(**given)
    # What forwards takes a while to load, which the other commands, and mistakes, need not.
    from vtep.cli.run import run  # noqa: PLC0415
    from vtep.docker.attachment import Attachment, find  # noqa: PLC0415

    client = Client(docker_host)
    place = find(client, network)
    _check_free(place.network.bridge)
    kept = Record(
        pid=os.getpid(),
        network=place.network.name,
        id=place.network.id,
        vni=config.vni,
        tap=config.tap,
        remotes=tuple(str(remote) for remote in config.remote),
        docker_host=client.url,
        recipe=place.network.recipe,
        netns=socket_files.namespace(),
    )
    settings = Settings(segments=[evolve(config, **place.options)])
    debug = context.find_root().params["debug"]
    with record.keep(kept):
        run(settings, None, process, debug=debug, companion=Attachment(client, place).follow)


def _check_free(bridge: str) -> None:
    """Raise VtepError where another attachment is on a bridge: two of them would be a loop."""
    from vtep.host import links, netlink  # noqa: PLC0415

    with netlink.session() as connection:
        for other in record.attached():
            if other.netns not in (None, socket_files.namespace()):
                continue
            device = links.find_link(connection, other.tap)
            if device is not None and device.master == bridge:
                raise VtepError(
                    f"bridge {bridge} is attached already, by {other.tap} of network "
                    f"{other.network}; to end that: pyvtep docker detach {other.network}"
                )


@docker.command()
@_NETWORK
def detach(network: str) -> None:
    """End the attachment of a network, and wait until its device is gone."""
    record.detach(network)


@docker.command()
@commands.json_option
def status(*, as_json: bool) -> None:
    """Show the networks that are attached on this host, and their containers."""
    attached = record.attached()
    for kept in attached:
        if kept.netns not in (None, socket_files.namespace()):
            line = f"process {kept.pid} in another network namespace has network {kept.network}"
            click.echo(f"pyvtep: note: {line}", err=True)
    found = [_status(kept) for kept in attached]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    if not found:
        click.echo("no network is attached on this host")
    for one in found:
        _print(one)


def _status(kept: Record) -> dict[str, Any]:
    """An attachment as it is now, as far as the host and the engine say."""
    from vtep.host import links, netlink  # noqa: PLC0415

    here = kept.netns in (None, socket_files.namespace())
    device = None
    if here:
        with netlink.session() as connection:
            device = links.find_link(connection, kept.tap)
    status = asdict(kept) | {
        "bridge": device and device.master,
        "tunnel_mtu": _tunnel_mtu(kept),
        "network_mtu": None,
        "containers": [],
        "problem": None,
    }
    try:
        network = read(Client(kept.docker_host).inspect(kept.network))
    except NoSuchNetworkError:
        return status | {"problem": f"the network is gone; to make it again: {kept.recipe}"}
    except VtepError as error:
        return status | {"problem": str(error)}
    if here and status["bridge"] != network.bridge:
        status["problem"] = f"{kept.tap} is not on {network.bridge}, the bridge of the network"
    containers = [asdict(container) for container in network.containers]
    return status | {"network_mtu": network.mtu, "containers": containers}


def _tunnel_mtu(kept: Record) -> int | None:
    """What the process says that its tunnel carries now; None where it can't be asked."""
    path = socket_files.of_process(kept.pid)
    if path is None:
        return None
    with suppress(VtepError), control.Client(path) as running:
        (segment,) = running.vni.show(vni=kept.vni)
        return segment["mtu"]
    return None


def _print(status: dict[str, Any]) -> None:
    mtu = status["tunnel_mtu"] or "unknown"
    click.echo(
        f"{status['network']}: vni {status['vni']} on {status['tap']} (mtu {mtu}) "
        f"to {', '.join(status['remotes'])}, process {status['pid']}"
    )
    where = f"bridge {status['bridge']}" if status["bridge"] else "on no bridge"
    if status["netns"] not in (None, socket_files.namespace()):
        where = "in another network namespace"
    mtu = status["network_mtu"]
    click.echo(f"  {where}, {f'containers have mtu {mtu}' if mtu else 'containers are unknown'}")
    if status["problem"]:
        click.echo(f"  {status['problem']}")
    for container in status["containers"]:
        addresses = " ".join(container["addresses"])
        click.echo(f"  {container['name']:24} {container['mac']:17} {addresses}")
