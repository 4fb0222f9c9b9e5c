"""Examination of BGP EVPN: what daemon and speaker say, and the paths to the neighbours."""

import socket
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import IPv6Address, ip_address

from attrs import evolve, frozen

from vtep.control import Client
from vtep.control.evpn_schema import EvpnRoute, EvpnSession, EvpnStatus
from vtep.control.socket_files import speaker_socket
from vtep.doctor import procfs
from vtep.doctor.evpn_facts import EvpnFacts, NeighborFacts
from vtep.doctor.local_network import LocalNetwork
from vtep.doctor.neighbours import ping
from vtep.doctor.running import RunningVtep
from vtep.errors import VtepError
from vtep.io.addresses import FAMILY, sockaddr
from vtep.wire.address import Address, without_scope

_NEIGHBORS_AT_ONCE = 32

_CONNECT_TIMEOUT_S = 1.5
"""Seconds for an answer to a SYN and to its first retransmission."""


@frozen
class Examined:
    """EVPN of a pyvtep, before anything was sent to the neighbours."""

    status: EvpnStatus
    version: str
    multicast: tuple[EvpnRoute, ...]
    neighbors: tuple[NeighborFacts, ...]
    socket: str | None


def look(running: Iterable[RunningVtep], network: LocalNetwork) -> list[Examined]:
    """Return EVPN of those pyvteps that have it, without sending anything."""
    return [found for each in running for found in _look(each, network)]


def _look(running: RunningVtep, network: LocalNetwork) -> Iterator[Examined]:
    if not any(segment["options"].get("evpn") for segment in running.segments):
        return
    status = running.client.status()
    evpn = status.get("evpn")
    if evpn is None:
        return
    routes: list[EvpnRoute] = []
    with suppress(VtepError), Client(speaker_socket(running.client.path)) as speaker:
        routes = speaker.call("evpn.show", what="routes", type=3)
    received = tuple(route for route in routes if route["neighbor"] is not None)
    neighbors = tuple(_of_neighbor(session, network) for session in evpn["sessions"])
    yield Examined(evpn, status["version"], received, neighbors, running.socket)


def _of_neighbor(session: EvpnSession, network: LocalNetwork) -> NeighborFacts:
    """Return the facts about a neighbour that this host has without sending anything."""
    facts = NeighborFacts(session)
    host = ip_address(session["neighbor"])
    if network.is_own(host):
        return evolve(facts, is_own=True)
    scope = host.scope_id if isinstance(host, IPv6Address) else None
    if scope is not None and scope not in network.by_name:
        return evolve(facts, no_device=scope)
    # While the session is down, that which it is to be opened from.
    source = session["local"] or session.get("source")
    local = without_scope(ip_address(source)) if source is not None else None
    if local is not None and not network.is_own(local):
        return evolve(facts, local_gone=str(local))
    try:
        hop = network.next_hop(host, local)
    except (VtepError, OSError) as error:
        return evolve(facts, no_route=str(error), down=network.down_towards(host))
    device = network.by_name.get(hop.dev)
    return evolve(
        facts,
        dev=hop.dev,
        dev_mtu=device.mtu if device is not None else None,
        gateway=hop.gateway,
        source=session["local"] or _chosen(host, network),
        tcp=procfs.tcp_state(host, session["port"]),
    )


def _chosen(host: Address, network: LocalNetwork) -> str | None:
    """Return the source address that the kernel chooses towards a host."""
    with suppress(VtepError, OSError):
        return network.next_hop(host, None).source
    return None


def measure(examined: Iterable[Examined]) -> tuple[EvpnFacts, ...]:
    """Examine the paths to all neighbours, with pings and, if a session is down, a SYN."""
    found = []
    with ThreadPoolExecutor(_NEIGHBORS_AT_ONCE) as pool:
        for each in examined:
            status = each.status
            found.append(
                EvpnFacts(
                    status["speaker"],
                    each.version,
                    tuple(pool.map(_measure, each.neighbors)),
                    tuple(status["segments"]),
                    each.multicast,
                    tuple(status["unmatched"]),
                    tuple(status["label_conflicts"]),
                    tuple(status["duplicates"]),
                    tuple(status["replaced_next_hops"]),
                    tuple(status["problems"]),
                    # After the SYNs of this examination, which neighbours may answer.
                    procfs.md5_counters(),
                    each.socket,
                )
            )
    return tuple(found)


def _measure(facts: NeighborFacts) -> NeighborFacts:
    if facts.dev is None:  # This host does not reach it.
        return facts
    session = facts.session
    host = ip_address(session["neighbor"])
    facts = evolve(facts, pings=ping(host, facts.dev))
    if facts.pings and facts.dev_mtu:
        facts = evolve(facts, large_pings=ping(host, facts.dev, facts.dev_mtu))
    if (
        session["state"] != "established"
        and session["password"]
        and session["last_error_kind"] in ("timeout", None)
    ):
        facts = evolve(facts, unsigned=_connect(host, session["port"]))
    return facts


def _connect(host: Address, port: int) -> str:
    """Return the answer to a SYN without a signature: accepted, refused or silent."""
    with socket.socket(FAMILY[host.version], socket.SOCK_STREAM) as sock:
        sock.settimeout(_CONNECT_TIMEOUT_S)
        try:
            sock.connect(sockaddr(str(host), port))
        except ConnectionRefusedError:
            return "refused"
        except OSError:
            return "silent"
    return "accepted"
