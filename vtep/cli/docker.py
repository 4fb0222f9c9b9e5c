"""`pyvtep docker`: attach networks of this host's Docker engine to segments."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
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
from vtep.docker.network import (
    PYVTEP_DRIVER,
    AttachedTunnel,
    is_pyvtep_driver,
    parse_containers,
    parse_network,
)

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
class _HostVni:
    """A VNI of a pyvtep on this host, with the process and its control socket."""

    process: dict[str, Any]
    socket: str
    segment: SegmentInfo

    @property
    def network(self) -> str | None:
        """The name of the Docker network that is attached to it; None if there is none."""
        name = self.segment["options"].get("docker-network")
        return None if name is None else str(name)

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

    On each of two hosts, with its own range and gateway (10.18.2.0/24 and 10.18.2.1 on the
    second), and the address of the other host as the remote:

    \b
        docker network create --subnet 10.18.0.0/16 \\
            --ip-range 10.18.1.0/24 --gateway 10.18.1.1 mynetwork
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
    _print_advice(found, segment, pid)


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


def _print_advice(found: "AttachableNetwork", segment: SegmentInfo, process: int) -> None:
    """Print problems of the network and of this host, which the log of the VTEP has as well."""
    from vtep.docker.advice import advise  # noqa: PLC0415  slow to import, as above

    tunnel = AttachedTunnel(segment["mtu"], chosen=segment["options"]["mtu"] is not None)
    remotes = [to["dst"] for to in segment["remotes"]]
    dstport, devices = segment["options"]["dstport"], segment["underlay_devices"]
    filtered = found.bridge.netfilter
    for line in advise(found.network, tunnel, filtered, remotes, dstport, devices, process):
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


def _vnis(socket: str | None = None) -> list[_HostVni]:
    """Return all VNIs of the processes on this host, or of the one at a socket."""
    return [
        _HostVni(process, str(client.path), segment)
        for process, client in _processes(socket)
        for segment in client.vni.show()
    ]


@docker.command()
@_NETWORK
@_SOCKET
def detach(network: str, *, socket: str | None) -> None:
    """Remove the VNI of a network, with its TAP.

    A pyvtep that `docker attach` has started ends with its last VNI.
    """
    vnis = _vnis(socket)
    found = [each for each in vnis if each.network == network]
    if not found:
        found = [each for each in vnis if _has_id(each, network)]
    here = [each for each in found if each.is_here]
    if found and not here:
        pid = found[0].process["pid"]
        raise VtepError(
            f"network {found[0].network} is attached by process {pid} in another network "
            f"namespace; end it there: nsenter -t {pid} -n pyvtep docker detach {found[0].network}"
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


def _has_id(vni: _HostVni, prefix: str) -> bool:
    """Return whether the ID of its network begins with a prefix, as far as its engine answers."""
    if vni.network is None:
        return False
    with suppress(VtepError):
        inspected = EngineClient(vni.segment["options"]["docker-host"]).inspect(vni.network)
        return str(inspected["Id"]).startswith(prefix)
    return False


@docker.command()
@_SOCKET
@commands.json_option
def status(*, socket: str | None, as_json: bool) -> None:
    """Show the Docker networks of this host that pyvtep has joined, and their containers.

    These are the attached ones, and those of the driver pyvtep at the engine of $DOCKER_HOST.
    """
    vnis = _vnis(socket)
    found = [_attached_status(each) for each in vnis if each.network is not None]
    found += _driver_statuses(vnis, every=socket is None)
    found.sort(key=lambda status: str(status["network"]))
    # To standard error, so that the JSON on standard output stays valid.
    for status in found:
        if _is_elsewhere(status):
            line = (
                f"network {status['network']} is joined by process {status['pid']} in another "
                "network namespace"
            )
            click.echo(f"pyvtep: note: {line}", err=True)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    if not found:
        click.echo("pyvtep has joined no Docker network on this host")
    for status in found:
        _print(status)


def _is_elsewhere(status: dict[str, Any]) -> bool:
    return status["netns"] not in (None, socket_files.namespace())


def _describe(name: str, driver: str, engine: EngineClient, vni: _HostVni | None) -> dict[str, Any]:
    """Return the state of a network as far as the process with its VNI knows it."""
    segment = None if vni is None else vni.segment
    return {
        "network": name,
        "id": None,
        "driver": driver,
        "docker_host": engine.url,
        "pid": vni and vni.process["pid"],
        "socket": vni and vni.socket,
        "netns": vni and vni.process["netns"],
        "vni": segment and segment["vni"],
        "tap": segment and segment["dev"],
        "remotes": [to["dst"] for to in segment["remotes"]] if segment is not None else [],
        "bridge": None if vni is None else _bridge_of(vni),
        "tunnel_mtu": segment and segment["mtu"],
        "network_mtu": None,
        "containers": [],
        "problem": segment and segment["docker_problem"],
    }


def _bridge_of(vni: _HostVni) -> str | None:
    """Return the bridge that a TAP is on now; None if it is on none, or elsewhere."""
    from vtep.host import links, netlink  # noqa: PLC0415  slow to import

    if not vni.is_here:
        return None
    with netlink.session() as connection:
        device = links.find_link(connection, vni.segment["dev"])
    return None if device is None else device.master


def _misplaced(vni: _HostVni, status: dict[str, Any], bridge: str) -> str | None:
    """Return the problem of a VNI that is not on the bridge of its network, or None."""
    if vni.is_here and status["bridge"] != bridge:
        return f"{status['tap']} is not on {bridge}, the bridge of the network"
    return None


def _attached_status(vni: _HostVni) -> dict[str, Any]:
    """Return the present state of an attached network, from its process and its engine."""
    name = str(vni.network)
    engine = EngineClient(vni.segment["options"]["docker-host"])
    status = _describe(name, "bridge", engine, vni)
    try:
        network = parse_network(engine.inspect(name))
    except NoSuchNetworkError as error:
        # The process knows the command that creates the network again, if it has seen it.
        return status | {"problem": status["problem"] or str(error)}
    except VtepError as error:
        return status | {"problem": str(error)}
    return status | {
        "id": network.id,
        "network_mtu": network.mtu,
        "containers": [asdict(container) for container in network.containers],
        "problem": status["problem"] or _misplaced(vni, status, network.bridge),
    }


def _driver_statuses(vnis: list[_HostVni], *, every: bool) -> list[dict[str, Any]]:
    """Return the present state of the networks of the driver pyvtep.

    The engine knows which networks these are: to their pyvtep, they are VNIs on some bridge. Those
    that no process here has are left out, unless `every`.
    """
    try:
        engine = EngineClient(None)
        listed = [
            engine.inspect(each["Id"])
            for each in engine.list_networks()
            if is_pyvtep_driver(each.get("Driver"))
        ]
    except VtepError as error:
        line = f"networks of the driver pyvtep are not shown: {error}"
        click.echo(f"pyvtep: note: {line}", err=True)
        return []
    found = (_driver_status(engine, each, vnis) for each in listed)
    return [status for status in found if every or status["pid"] is not None]


def _driver_status(
    engine: EngineClient, inspected: Mapping[str, Any], vnis: list[_HostVni]
) -> dict[str, Any]:
    from vtep.docker.plugin.network import parse_inspected  # noqa: PLC0415  needed here only

    name = str(inspected["Name"])
    common = {
        "id": inspected["Id"],
        "containers": [asdict(container) for container in parse_containers(inspected)],
    }
    try:
        made = parse_inspected(inspected)
    except VtepError as error:
        return _describe(name, PYVTEP_DRIVER, engine, None) | common | {"problem": str(error)}
    # The bridge too, as the same VNI may be in use in another network namespace.
    own = (made.vni, made.bridge)
    vni = next((v for v in vnis if (v.segment["vni"], v.segment["options"]["bridge"]) == own), None)
    status = _describe(name, PYVTEP_DRIVER, engine, vni) | common
    if vni is None:
        problem = (
            "no pyvtep that can be asked here has its VNI: check that the plug-in runs (pyvtep "
            "docker plugin); if Docker runs it (docker plugin ls), ask there"
        )
        return status | {"vni": made.vni, "problem": problem}
    mtu = made.container_mtu(vni.segment["mtu"])
    return status | {"network_mtu": mtu, "problem": _misplaced(vni, status, made.bridge)}


def _print(status: dict[str, Any]) -> None:
    where = "is in no process"
    if status["pid"] is not None:
        where = (
            f"on {status['tap']} (mtu {status['tunnel_mtu']}) to "
            f"{', '.join(status['remotes']) or 'no remote'}, process {status['pid']}"
        )
    click.echo(f"{status['network']}: vni {status['vni']} {where}")
    where = f"bridge {status['bridge']}" if status["bridge"] else "on no bridge"
    if _is_elsewhere(status):
        where = "in another network namespace"
    if status["driver"] == PYVTEP_DRIVER:
        where = f"driver {PYVTEP_DRIVER}, {where}"
    mtu = status["network_mtu"]
    click.echo(f"  {where}, {f'containers have mtu {mtu}' if mtu else 'containers are unknown'}")
    if status["problem"]:
        click.echo(f"  {status['problem']}")
    for container in status["containers"]:
        addresses = " ".join(container["addresses"])
        click.echo(f"  {container['name']:24} {container['mac']:17} {addresses}")
