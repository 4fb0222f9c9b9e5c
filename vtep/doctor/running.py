"""What a running pyvtep says of itself, over its control socket."""

import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from attrs import define

from vtep.control import Client, socket_files
from vtep.control.client import candidates
from vtep.doctor.host import Surroundings
from vtep.doctor.neighbours import receive_until
from vtep.errors import VtepError
from vtep.wire.address import Address
from vtep.wire.checksum import internet_checksum
from vtep.wire.ethernet import format_mac, parse_mac

_REACTION = 0.6
"""Seconds in which whoever is on a segment reacts to a ping to all."""


_WATCHED = 1.2
"""Seconds between two looks at the counters: a ping, or an ARP request, is sent once a second."""


@define
class Target:
    """A remote, and how a segment speaks to it."""

    remote: Address
    vni: int | None
    port: int
    local: Address | None = None
    dev: str | None = None
    tap: str | None = None
    """The TAP of the segment."""
    socket: str | None = None
    """The control socket of the pyvtep, if commands have to name it."""
    heard: float | None = None
    """How long ago a frame came from it, in seconds."""
    through: bool | None = None
    """Whether somebody behind it has answered through the tunnel; None if nobody was asked."""


@define
class Running:
    """A pyvtep: its segments and counters as they were when it was asked."""

    client: Client
    segments: list[Any]
    before: Any
    asked: float
    """When its counters were read, on the monotonic clock."""
    socket: str | None = None
    """Its control socket, if commands have to name it."""

    @classmethod
    def ask(cls, client: Client) -> "Running":
        """Ask a pyvtep for its segments and counters.

        Raises: VtepError where it does not answer.
        """
        return cls(client, list(client.vni.show()), client.stats(), time.monotonic())

    def stats_again(self) -> Any:
        """Return its counters once what happens every second has happened since `asked`."""
        time.sleep(max(0.0, self.asked + _WATCHED - time.monotonic()))
        return self.client.stats()

    def targets(self, vni: int | None) -> list[Target]:
        """Every remote of every segment, or of one."""
        return [
            Target(
                ip_address(row["dst"]),
                row["dst_vni"],
                row["port"],
                _local(segment["options"]["local"], ip_address(row["dst"]).version),
                segment["options"]["dev"],
                segment["dev"],
                self.socket,
            )
            for segment in self.segments
            if vni is None or segment["vni"] == vni
            for row in self.client.remote.show(vni=segment["vni"])
            if not ip_address(row["dst"]).is_multicast
        ]

    def try_tunnel(self, silent: Iterable[Target], around: Surroundings) -> None:
        """Find out what is heard of remotes that don't answer the echo, with a ping to all."""
        waiting = list(silent)
        for segment in self.segments:
            vni, tap = segment["vni"], segment["dev"]
            here = [target for target in waiting if target.vni == vni]
            answered: set[str] = set()
            above = around.above(tap)
            if here and above is not None:
                with suppress(OSError):
                    answered = self._behind(vni, ping_all(tap, above.name, parse_mac(above.mac)))
            for target in here:
                target.through = str(target.remote) in answered
                entries = self.client.fdb.show(vni=vni, dst=str(target.remote), dynamic=True)
                ages = [entry["age"] for entry in entries if entry["age"] is not None]
                target.heard = min(ages, default=None)

    def _behind(self, vni: int, macs: Iterable[str]) -> set[str]:
        """The remotes that these MACs are behind."""
        hosts = set()
        for mac in macs:
            with suppress(VtepError):  # It is not learned, or on this side.
                entry = self.client.fdb.get(mac, vni=vni)
                hosts |= {destination["dst"] for destination in entry["destinations"]}
        return hosts


@contextmanager
def all_here(path: str | None) -> Iterator[list[Running]]:
    """The pyvtep with this socket, or all of this network namespace.

    Raises VtepError where that one does not answer, or is in another network namespace: what is
    seen from here says nothing of the network there.
    """
    with ExitStack() as connections:
        found = []
        for each in _sockets_here() if path is None else [Path(path)]:
            try:
                client = connections.enter_context(Client(each))
                if path is not None:
                    _check_here(client)
                found.append(Running.ask(client))
            except VtepError:
                if path is not None:
                    raise
                # It has just ended.
        if path is not None or len(found) > 1:
            for running in found:
                running.socket = str(running.client.path)
        yield found


def _check_here(client: Client) -> None:
    process = client.call("process.show")
    if process["netns"] != socket_files.namespace():
        raise VtepError(
            f"--socket {client.path}: is of process {process['pid']} in another network namespace; "
            f"run the doctor there: nsenter -t {process['pid']} -n pyvtep doctor"
        )


def _sockets_here() -> list[Path]:
    """Return the sockets of the pyvteps in this network namespace."""
    return [each.path for each in candidates() if each.here]


def _local(own: Iterable[str], version: int) -> Address | None:
    addresses = [ip_address(text) for text in own]
    return next((address for address in addresses if address.version == version), None)


_ALL_NODES = bytes.fromhex("ff02" + "00" * 13 + "01")
_ALL_NODES_MAC = bytes.fromhex("333300000001")
_ICMPV6 = 58
_ECHO_REQUEST, _ECHO_REPLY, _SOLICITATION = 128, 129, 135
_ETH_P_IPV6 = 0x86DD
_IP, _BODY = 14, 14 + 40
"""Where in a frame IPv6 begins, and what follows on it."""


def ping_all(tap: str, above: str, mac: bytes) -> set[str]:
    """Send an ICMPv6 echo request to all nodes beyond a TAP; the MACs of those that react.

    What comes back is heard on the device `above`: the bridge that the TAP is on, or the TAP. The
    sender is the link-local address of its `mac`. Where this host does not have it, nobody gets as
    far as an answer, but has to ask for that address first: that is as good. Raises OSError.
    """
    source = bytes.fromhex("fe80" + "00" * 6)
    source += bytes((mac[0] ^ 2, *mac[1:3], 0xFF, 0xFE, *mac[3:]))
    token = os.urandom(4)
    body = bytes((_ECHO_REQUEST, 0, 0, 0)) + token
    pseudo = source + _ALL_NODES + len(body).to_bytes(4, "big") + bytes((0, 0, 0, _ICMPV6))
    checksum = internet_checksum(pseudo + body).to_bytes(2, "big")
    packet = (
        *(b"\x60\0\0\0", len(body).to_bytes(2, "big"), bytes((_ICMPV6, 255))),
        *(source, _ALL_NODES, body[:2], checksum, token),
    )
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
    found = set()
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as asking,
        socket.socket(socket.AF_PACKET, kind) as hearing,
    ):
        hearing.bind((above, _ETH_P_IPV6))
        # Not on the bridge, whose other ports are on this side of the tunnel.
        asking.bind((tap, 0))
        asking.send(_ALL_NODES_MAC + mac + _ETH_P_IPV6.to_bytes(2, "big") + b"".join(packet))
        for frame in receive_until(hearing, time.monotonic() + _REACTION):
            its_mac = frame[6:12]
            asks = frame[_BODY : _BODY + 1] == bytes((_SOLICITATION,))
            answers = frame[_BODY : _BODY + 1] == bytes((_ECHO_REPLY,))
            if frame[_IP + 6 : _IP + 7] == bytes((_ICMPV6,)) and its_mac != mac:
                if asks and frame[_BODY + 8 : _BODY + 24] == source:
                    found.add(format_mac(its_mac))
                if answers and frame[_BODY + 4 : _BODY + 8] == token:
                    found.add(format_mac(its_mac))
    return found
