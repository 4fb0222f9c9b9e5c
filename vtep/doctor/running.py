"""The pyvteps that run here, as they answer over their control sockets."""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from attrs import Factory, define

from vtep.control import Client, socket_files
from vtep.control.client import candidates
from vtep.control.schema import FdbEntry, LoopEntry, SegmentStatus
from vtep.doctor.local_network import LocalNetwork
from vtep.doctor.neighbours import ping_all_nodes
from vtep.errors import VtepError
from vtep.wire.address import Address
from vtep.wire.ethernet import parse_mac

_SAMPLE_INTERVAL_S = 1.2
"""Seconds between the two readings of the counters. Within these, hosts that retry once a second,
with a ping or an ARP request, have sent again."""


@define
class Target:
    """A remote to examine, and how a segment reaches it."""

    remote: Address
    vni: int | None
    port: int
    local: Address | None = None
    dev: str | None = None
    tap: str | None = None
    """The TAP of the segment."""
    socket: str | None = None
    """The control socket of the pyvtep, if commands have to name it."""
    sends_from_port: bool = False
    """True if the segment sends from `port`, so that both directions can be one flow."""
    by_evpn: bool = False
    """True if it is a remote by EVPN only."""
    last_seen_age: float | None = None
    """Age of the last frame from there, in seconds."""
    through: bool | None = None
    """True if a host behind it replied through the tunnel; None if no ping was sent."""


@define
class RunningVtep:
    """A running pyvtep, with its segments and counters at the time of connecting."""

    client: Client
    segments: list[Any]
    stats: Any
    read_at: float
    """Time at which the counters were read, on the monotonic clock."""
    held: list[FdbEntry] = Factory(list)
    loops: list[LoopEntry] = Factory(list)
    socket: str | None = None
    """Its control socket, if commands have to name it."""
    elsewhere: dict[int, SegmentStatus] = Factory(dict)
    """The status of the VNIs whose TAP is in another network namespace, where only pyvtep looks."""

    @classmethod
    def read(cls, client: Client) -> "RunningVtep":
        """Read segments and counters of a pyvtep. Raises: VtepError if it does not answer."""
        found = cls(client, list(client.vni.show()), client.stats(), time.monotonic())
        with suppress(VtepError):  # Another version may not know of them.
            found.held, found.loops = client.fdb.show(held=True), client.loop.show()
        if any(netns_of(segment) for segment in found.segments):
            others = {segment["vni"] for segment in found.segments if netns_of(segment)}
            found.elsewhere = {
                each["vni"]: each for each in client.status()["segments"] if each["vni"] in others
            }
        return found

    def read_stats_again(self) -> Any:
        """Return the counters after an interval in which hosts that retry have sent again."""
        time.sleep(max(0.0, self.read_at + _SAMPLE_INTERVAL_S - time.monotonic()))
        return self.client.stats()

    def targets(self, vni: int | None) -> list[Target]:
        """Return the remotes of all segments, or of the one with a VNI."""
        return [
            self._target(segment, row)
            for segment in self.segments
            if vni is None or segment["vni"] == vni
            for row in self.client.remote.show(vni=segment["vni"])
            if not ip_address(row["dst"]).is_multicast
        ]

    def _target(self, segment: Any, row: Any) -> Target:
        """Return a remote of a segment as a target."""
        options, remote = segment["options"], ip_address(row["dst"])
        return Target(
            remote,
            row["dst_vni"],
            row["port"],
            _local_of(options["local"], remote.version),
            options["dev"],
            segment["dev"],
            self.socket,
            sends_from_port=options["srcport"] == [row["port"], row["port"]],
            by_evpn=row.get("extern_learn", False),  # Another version may not know of it.
        )

    def try_tunnel(self, silent: Iterable[Target], network: LocalNetwork) -> None:
        """Find signs of life of remotes that send no echo replies, with a ping to all nodes.

        Side effect: sets `last_seen_age` and `through` of the targets.
        """
        waiting = list(silent)
        for segment in self.segments:
            vni, tap = segment["vni"], segment["dev"]
            here = [target for target in waiting if target.vni == vni]
            replied: set[str] = set()
            upper = network.upper_device(tap) if netns_of(segment) is None else None
            if here and upper is not None:
                with suppress(OSError):
                    mac, vlan = parse_mac(upper.mac), vlan_of(segment)
                    macs = ping_all_nodes(tap, upper.name, mac, vlan=vlan)
                    replied = self._remotes_of(vni, macs)
            for target in here:
                target.through = str(target.remote) in replied
                entries = self.client.fdb.show(vni=vni, dst=str(target.remote), dynamic=True)
                ages = [entry["age"] for entry in entries if entry["age"] is not None]
                target.last_seen_age = min(ages, default=None)

    def _remotes_of(self, vni: int, macs: Iterable[str]) -> set[str]:
        """Return the remotes by which these MACs are reached."""
        hosts = set()
        for mac in macs:
            with suppress(VtepError):  # The MAC is not learned, or on this side of the tunnel.
                entry = self.client.fdb.get(mac, vni=vni)
                hosts |= {destination["dst"] for destination in entry["destinations"]}
        return hosts


def netns_of(segment: Any) -> str | None:
    """Return the network namespace of a segment's TAP, if it is another than that of pyvtep."""
    netns: str | None = segment["options"].get("netns")  # Another version may not know of it.
    return netns


def vlan_of(segment: Any) -> int | None:
    """Return the VLAN of a segment whose TAP carries several; None for frames without a tag."""
    vlan: int | None = segment["options"].get("vlan")  # Another version may not know of it.
    return vlan


@contextmanager
def connect(path: str | None) -> Iterator[list[RunningVtep]]:
    """Connect to the pyvtep with this control socket, or to all of this network namespace.

    Raises:
        VtepError: the one with this socket does not answer, or is in another network namespace. The
            network there cannot be examined from here.
    """
    with ExitStack() as connections:
        found = []
        for each in _sockets_here() if path is None else [Path(path)]:
            try:
                client = connections.enter_context(Client(each))
                if path is not None:
                    _check_namespace(client)
                found.append(RunningVtep.read(client))
            except VtepError:
                if path is not None:
                    raise
                # Of several, one may have just ended.
        if path is not None or len(found) > 1:
            for running in found:
                running.socket = str(running.client.path)
        yield found


def _check_namespace(client: Client) -> None:
    """Raise VtepError if a pyvtep is in another network namespace."""
    process = client.call("process.show")
    if process["netns"] != socket_files.namespace():
        raise VtepError(
            f"--socket {client.path}: is of process {process['pid']} in another network namespace; "
            f"run the doctor there: nsenter -t {process['pid']} -n pyvtep doctor"
        )


def _sockets_here() -> list[Path]:
    """Return the control sockets of the pyvteps in this network namespace."""
    return [each.path for each in candidates() if each.here]


def _local_of(own: Iterable[str], version: int) -> Address | None:
    """Return the address of an IP version among the values of --local."""
    addresses = [ip_address(text) for text in own]
    return next((address for address in addresses if address.version == version), None)
