"""`pyvtep docker`: attach networks of this host's Docker engine to segments."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from attrs import asdict, frozen

from vtep import Config, VtepError
from vtep.cli import commands
from vtep.cli.docker_plugin import plugin
from vtep.cli.options import config_options, given_options
from vtep.config import docker_parsers
from vtep.control import Client, socket_files
from vtep.control.client import candidates
from vtep.control.schema import SegmentInfo
from vtep.docker.client import EngineClient, NoSuchNetworkError
from vtep.docker.host_daemon import join
from vtep.docker.network import AttachedTunnel, parse_network

if TYPE_CHECKING:
    from vtep.docker.attachment import AttachableNetwork

_ATTACH_TIMEOUT_S = 30.0
"""Time for a VTEP to find the network and to attach the TAP to its bridge."""

_POLL_S = 0.05

_DERIVED = ("bridge", "anycast_gateway", "docker_network", "netns", "tap_fd", "vlan")
"""Options that the network replaces, or that contradict it."""


def _check_name(_context: click.Context, _option: click.Parameter, network: str) -> str:
    docker_parsers.docker_network(network)
    return network


_NETWORK = click.argument("network", callback=_check_name)
"""Name of a network or, as for docker itself, a prefix of its ID."""

_SOCKET = commands.option(
    "--socket",
    metavar="PATH",
    help="Control socket of the pyvtep to talk to [default: the one in this network namespace].",
)


@frozen
class _Attached:
    """A VNI with a Docker network, and its process."""

    process: dict[str, Any]
    socket: str
    segment: SegmentInfo

    @property
    def name(self) -> str:
        return str(self.segment["options"]["docker-network"])

    @property
    def is_here(self) -> bool:
        """True if its process is in the network namespace of this one."""
        return bool(self.process["netns"] == socket_files.namespace())


@click.group(cls=commands.CliGroup)
def docker() -> None:
    """Join Docker networks of several hosts, so that their containers share a subnet."""


docker.add_command(plugin)


@docker.command()
@_NETWORK
@config_options(without=_DERIVED)
@_SOCKET
@click.option("--wait", is_flag=True, help="Wait until the engine answers and the network exists.")
def attach(network: str, *, socket: str | None, wait: bool, **options: Any) -> None:
    """Attach a Docker network of this host to a segment, until it is detached.

    On each of two hosts, with its own range and gateway (172.18.2.0/24 and 172.18.2.1 on the
    second), and the address of the other host as the remote:

    \b
        docker network create --subnet 172.18.0.0/16 \\
            --ip-range 172.18.1.0/24 --gateway 172.18.1.1 mynetwork
        pyvtep docker attach mynetwork --vni 200 --remote 192.0.2.2

    It adds a VNI to the running pyvtep, or starts one in the background. That follows the network,
    also if it is created anew. Containers use the gateway of their own host.
    """
    given = given_options(options)
    if "vni" not in given:
        example = f"pyvtep docker attach {network} --vni 200 --remote 192.0.2.2"
        raise click.UsageError(f"--vni is missing; for example: {example}")
    config = Config(**given, docker_network=network)  # Mistakes are reported at once.

    # Slow to import: other commands, and mistakes, do without.
    from vtep.docker.attachment import find_network, wait_for  # noqa: PLC0415

    engine = EngineClient(config.docker_host)
    find = find_network
    if wait:

        def find(client: EngineClient, name: str) -> "AttachableNetwork":
            return wait_for(client, name, _report_waiting)

    found = find(engine, network)
    _check_free(found)
    name = found.network.name
    given = {key: value for key, value in given.items() if key != "vni"} | {"docker_network": name}
    with join(dstport=config.dstport, socket=None if socket is None else Path(socket)) as vtep:
        vtep.vni.add(config.vni, **given)
        try:
            segment = _wait_until_attached(vtep, config.vni, found)
        except BaseException:
            with suppress(VtepError):
                vtep.vni.delete(config.vni)
            raise
        pid = vtep.call("process.show")["pid"]
    click.echo(
        f"network {name}: vni {config.vni} on {segment['dev']} (mtu {segment['mtu']}) is on its "
        f"bridge {found.network.bridge}, process {pid}"
    )
    _print_advice(found, segment)


def _report_waiting(reason: str) -> None:
    print(f"pyvtep: waiting: {reason}", file=sys.stderr, flush=True)


def _wait_until_attached(vtep: Client, vni: int, found: "AttachableNetwork") -> SegmentInfo:
    """Wait until a VNI is on the bridge of its network. Raises: VtepError with its problem."""
    deadline = time.monotonic() + _ATTACH_TIMEOUT_S
    while True:
        (segment,) = vtep.vni.show(vni=vni)
        if segment["docker_bridge"] == found.network.bridge:
            return segment
        if problem := segment["docker_problem"]:
            raise VtepError(f"network {found.network.name}: pyvtep cannot attach it: {problem}")
        if time.monotonic() > deadline:
            raise VtepError(
                f"network {found.network.name}: pyvtep has not attached it within "
                f"{_ATTACH_TIMEOUT_S:g} seconds; its log has the reason"
            )
        time.sleep(_POLL_S)


def _print_advice(found: "AttachableNetwork", segment: SegmentInfo) -> None:
    """Print problems of the network and of this host, which the log of the VTEP has as well."""
    from vtep.docker.advice import advise  # noqa: PLC0415  slow to import, as above

    tunnel = AttachedTunnel(segment["mtu"], chosen=segment["options"]["mtu"] is not None)
    remotes = [to["dst"] for to in segment["remotes"]]
    dstport, devices = segment["options"]["dstport"], segment["underlay_devices"]
    for line in advise(found.network, tunnel, found.bridge.netfilter, remotes, dstport, devices):
        click.echo(f"pyvtep: warning: {line}", err=True)


def _check_free(found: "AttachableNetwork") -> None:
    """Raise VtepError if another TAP is on a bridge: both would form a loop."""
    from vtep.host import links, netlink  # noqa: PLC0415

    bridge = found.network.bridge
    with netlink.session() as connection:
        for process, client in _processes():
            if process["netns"] != socket_files.namespace():
                continue
            for segment in client.vni.show():
                device = links.find_link(connection, segment["dev"])
                if device is None or device.master != bridge:
                    continue
                end = f"pyvtep vni del {segment['vni']}"
                if segment["options"].get("docker-network") is not None:
                    end = f"pyvtep docker detach {segment['options']['docker-network']}"
                raise VtepError(
                    f"network {found.network.name}: is attached already, by {segment['dev']} (vni "
                    f"{segment['vni']}) on its bridge {bridge}; to end that: {end}"
                )


def _processes(socket: str | None = None) -> Iterator[tuple[dict[str, Any], Client]]:
    """Yield each running pyvtep, or the one at a socket, with a client of it.

    Those that do not answer are left out, unless they were named.
    """
    if socket is not None:
        with Client(socket) as client:
            yield client.call("process.show"), client
        return
    for candidate in candidates():
        with suppress(VtepError), Client(candidate.path) as client:
            yield client.call("process.show"), client


def _attached(socket: str | None = None) -> list[_Attached]:
    """Return all VNIs with a Docker network, sorted by its name."""
    found = [
        _Attached(process, str(client.path), segment)
        for process, client in _processes(socket)
        for segment in client.vni.show()
        if segment["options"].get("docker-network") is not None
    ]
    return sorted(found, key=lambda each: each.name)


@docker.command()
@_NETWORK
@_SOCKET
def detach(network: str, *, socket: str | None) -> None:
    """Remove the VNI of a network, with its TAP.

    A pyvtep that `docker attach` has started ends with its last VNI.
    """
    attached = _attached(socket)
    found = [each for each in attached if each.name == network]
    if not found:
        found = [each for each in attached if _has_id(each, network)]
    here = [each for each in found if each.is_here]
    if found and not here:
        pid = found[0].process["pid"]
        raise VtepError(
            f"network {found[0].name} is attached by process {pid} in another network namespace; "
            f"end it there: nsenter -t {pid} -n pyvtep docker detach {found[0].name}"
        )
    if not here:
        raise VtepError(
            f"network {network} is not attached on this host; see: pyvtep docker status"
        )
    if len(here) > 1:
        sockets = ", ".join(each.socket for each in here)
        raise VtepError(
            f"network {network}: several pyvteps have it; choose one with --socket PATH: {sockets}"
        )
    with Client(here[0].socket) as client:
        client.vni.delete(here[0].segment["vni"])


def _has_id(attached: _Attached, prefix: str) -> bool:
    """Return whether the ID of a network begins with a prefix, as far as its engine answers."""
    with suppress(VtepError):
        inspected = EngineClient(attached.segment["options"]["docker-host"]).inspect(attached.name)
        return str(inspected["Id"]).startswith(prefix)
    return False


@docker.command()
@_SOCKET
@commands.json_option
def status(*, socket: str | None, as_json: bool) -> None:
    """Show the attached networks of this host, and their containers."""
    attached = _attached(socket)
    # To standard error, so that the JSON on standard output stays valid.
    for each in attached:
        if not each.is_here:
            line = (
                f"network {each.name} is attached by process {each.process['pid']} in another "
                "network namespace"
            )
            click.echo(f"pyvtep: note: {line}", err=True)
    found = [_status(each) for each in attached]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    if not found:
        click.echo("no network is attached on this host")
    for status in found:
        _print(status)


def _status(attached: _Attached) -> dict[str, Any]:
    """Return the present state of an attached network, from its process and the engine."""
    from vtep.host import links, netlink  # noqa: PLC0415

    segment = attached.segment
    device = None
    if attached.is_here:
        with netlink.session() as connection:
            device = links.find_link(connection, segment["dev"])
    engine = EngineClient(segment["options"]["docker-host"])
    status = {
        "network": attached.name,
        "id": None,
        "docker_host": engine.url,
        "pid": attached.process["pid"],
        "socket": attached.socket,
        "netns": attached.process["netns"],
        "vni": segment["vni"],
        "tap": segment["dev"],
        "remotes": [to["dst"] for to in segment["remotes"]],
        "bridge": device and device.master,
        "tunnel_mtu": segment["mtu"],
        "network_mtu": None,
        "containers": [],
        "problem": segment["docker_problem"],
    }
    try:
        network = parse_network(engine.inspect(attached.name))
    except NoSuchNetworkError as error:
        # The process knows the command that creates the network again, if it has seen it.
        return status | {"problem": status["problem"] or str(error)}
    except VtepError as error:
        return status | {"problem": str(error)}
    if attached.is_here and status["bridge"] != network.bridge and not status["problem"]:
        status["problem"] = (
            f"{segment['dev']} is not on {network.bridge}, the bridge of the network"
        )
    containers = [asdict(container) for container in network.containers]
    return status | {"id": network.id, "network_mtu": network.mtu, "containers": containers}


def _print(status: dict[str, Any]) -> None:
    click.echo(
        f"{status['network']}: vni {status['vni']} on {status['tap']} (mtu "
        f"{status['tunnel_mtu']}) to {', '.join(status['remotes']) or 'no remote'}, process "
        f"{status['pid']}"
    )
    where = f"bridge {status['bridge']}" if status["bridge"] else "on no bridge"
    if status["netns"] != socket_files.namespace():
        where = "in another network namespace"
    mtu = status["network_mtu"]
    click.echo(f"  {where}, {f'containers have mtu {mtu}' if mtu else 'containers are unknown'}")
    if status["problem"]:
        click.echo(f"  {status['problem']}")
    for container in status["containers"]:
        addresses = " ".join(container["addresses"])
        click.echo(f"  {container['name']:24} {container['mac']:17} {addresses}")
