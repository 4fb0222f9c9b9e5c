"""`pyvtep docker`: attach networks of this host's Docker engine to segments."""

import json
import os
import sys
from contextlib import suppress
from typing import Any

import click
from attrs import asdict, evolve

from vtep import Config, VtepError
from vtep.cli import bootstrap, commands
from vtep.cli.docker_plugin import plugin
from vtep.cli.options import config_options, given_options, settings_options, take_settings
from vtep.cli.process_options import ProcessOptions, in_background, process_options
from vtep.config import Settings
from vtep.control import client as control
from vtep.control import socket_files
from vtep.docker import record
from vtep.docker.client import EngineClient, NoSuchNetworkError
from vtep.docker.network import parse_network
from vtep.docker.record import AttachmentRecord
from vtep.service.notify import ServiceManager


def _check_name(_context: click.Context, _option: click.Parameter, network: str) -> str:
    record.check_name(network)
    return network


_NETWORK = click.argument("network", callback=_check_name)
"""Name of a network or, as for docker itself, a prefix of its ID."""


@click.group(cls=commands.CliGroup)
def docker() -> None:
    """Join Docker networks of several hosts, so that their containers share a subnet."""


docker.add_command(plugin)


@docker.command()
@_NETWORK
@config_options(without=("bridge", "anycast_gateway"))
@settings_options()
@commands.option(
    "--docker-host",
    metavar="URL",
    help="Address of the engine [default: $DOCKER_HOST, or unix:///var/run/docker.sock].",
)
@click.option("--wait", is_flag=True, help="Wait until the engine answers and the network exists.")
@process_options
@click.pass_context
def attach(
    context: click.Context,
    /,
    network: str,
    *,
    docker_host: str | None,
    wait: bool,
    **options: Any,
) -> None:
    """Attach a Docker network of this host to a segment, for as long as this command runs.

    On each of two hosts, with its own range and gateway (172.18.2.0/24 and 172.18.2.1 on the
    second), and the address of the other host as the remote:

    \b
        docker network create --subnet 172.18.0.0/16 \\
            --ip-range 172.18.1.0/24 --gateway 172.18.1.1 mynetwork
        pyvtep docker attach mynetwork --vni 200 --remote 192.0.2.2

    The engine is asked for the bridge of the network, again whenever the network is created
    anew. Containers use the gateway of their own host.
    """
    bootstrap.block_signals()  # The group has unblocked them, as other commands need no handlers.
    given = given_options(options)
    overrides = take_settings(given)
    if "vni" not in given:
        example = f"pyvtep docker attach {network} --vni 200 --remote 192.0.2.2"
        raise click.UsageError(f"--vni is missing; for example: {example}")
    process = ProcessOptions.take(given, debug=context.find_root().params["debug"])
    config = Config(**given)
    with in_background(process) as background:
        # Slow to import: other commands, and mistakes, do without.
        from vtep.cli.run import run  # noqa: PLC0415
        from vtep.docker.attachment import Attachment, find_network, wait_for  # noqa: PLC0415
        from vtep.host import privileges  # noqa: PLC0415

        client = EngineClient(docker_host)
        # One that takes over does not wait: the old process can only continue if this one fails.
        if wait and process.takeover is None:
            local = wait_for(client, network, _report_waiting)
        else:
            local = find_network(client, network)
        if process.takeover is None:
            _check_free(local.network.bridge)
        own = AttachmentRecord(
            pid=os.getpid(),
            network=local.network.name,
            id=local.network.id,
            vni=config.vni,
            tap=config.tap,
            remotes=tuple(str(remote) for remote in config.remote),
            docker_host=client.url,
            recipe=local.network.recipe,
            netns=socket_files.namespace(),
        )
        settings = Settings(segments=[evolve(config, **local.options)])
        user = overrides.get("user")
        owner = privileges.find_user(user).uid if user is not None else None
        run(
            *(settings, None, overrides),
            process=process,
            background=background,
            companion=Attachment(client, local).follow,
            record=record.publish(own, record.own_directory(os.environ), owner=owner),
            groups=client.groups,
        )


def _report_waiting(reason: str) -> None:
    """Report what an attachment waits for, to the service manager and on standard error."""
    ServiceManager().status(f"waiting: {reason}")
    line = f"{bootstrap.journal_prefix(5)}pyvtep: waiting: {reason}"
    print(line, file=sys.stderr, flush=True)


def _check_free(bridge: str) -> None:
    """Raise VtepError if another attachment is on a bridge: both would form a loop."""
    from vtep.host import links, netlink  # noqa: PLC0415

    with netlink.session() as connection:
        for other in record.list_records():
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
    """End the attachment of a network, and wait until its TAP is removed."""
    record.detach(network)


@docker.command()
@commands.json_option
def status(*, as_json: bool) -> None:
    """Show the attached networks of this host, and their containers."""
    attached = record.list_records()
    # To standard error, so that the JSON on standard output stays valid.
    for attachment in attached:
        if attachment.netns not in (None, socket_files.namespace()):
            line = (
                f"network {attachment.network} is attached by process {attachment.pid} in another "
                "network namespace"
            )
            click.echo(f"pyvtep: note: {line}", err=True)
    found = [_status(attachment) for attachment in attached]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    if not found:
        click.echo("no network is attached on this host")
    for status in found:
        _print(status)


def _status(attachment: AttachmentRecord) -> dict[str, Any]:
    """Return the present state of an attachment, from the host and the engine."""
    from vtep.host import links, netlink  # noqa: PLC0415

    here = attachment.netns in (None, socket_files.namespace())
    device = None
    if here:
        with netlink.session() as connection:
            device = links.find_link(connection, attachment.tap)
    status = asdict(attachment) | {
        "bridge": device and device.master,
        "tunnel_mtu": _tunnel_mtu(attachment),
        "network_mtu": None,
        "containers": [],
        "problem": None,
    }
    try:
        network = parse_network(EngineClient(attachment.docker_host).inspect(attachment.network))
    except NoSuchNetworkError:
        return status | {"problem": f"the network is gone; to create it again: {attachment.recipe}"}
    except VtepError as error:
        return status | {"problem": str(error)}
    if here and status["bridge"] != network.bridge:
        status["problem"] = (
            f"{attachment.tap} is not on {network.bridge}, the bridge of the network"
        )
    containers = [asdict(container) for container in network.containers]
    return status | {"network_mtu": network.mtu, "containers": containers}


def _tunnel_mtu(attachment: AttachmentRecord) -> int | None:
    """Return the present MTU of the tunnel from its process; None if that does not answer."""
    path = socket_files.of_process(attachment.pid)
    if path is None:
        return None
    with suppress(VtepError), control.Client(path) as running:
        (segment,) = running.vni.show(vni=attachment.vni)
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
