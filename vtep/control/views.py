"""Conversion of the state of a running VTEP to the objects of `schema`.

The answers and events of the control socket, and the report on SIGUSR1, are made of them.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from vtep.config import Config
from vtep.config.host_names import HostName
from vtep.control import schema, socket_files
from vtep.counters import Drop, Reason
from vtep.daemon.names import NameResolver
from vtep.daemon.port import Port
from vtep.daemon.vtep import Vtep
from vtep.forwarding.fdb import DestinationOrigin, Entry, EntryKind, Fdb, Remote
from vtep.forwarding.storm import LIMITED, FloodSource, Storm
from vtep.forwarding.suppress import Neighbour
from vtep.io.addresses import host_of
from vtep.wire.bgp.communities import RouteTarget
from vtep.wire.ethernet import format_mac


def entry(port: Port, entry: Entry, destinations: Iterable[Remote], now: float) -> schema.FdbEntry:
    """Convert an FDB entry, with the given ones of its destinations."""
    state, extern_learn, sticky = kind(entry.kind)
    until = port.fdb.moves.held_until(entry.mac)
    return {
        "vni": port.config.vni,
        "dev": port.tap,
        "mac": format_mac(entry.mac),
        "destinations": [
            destination(port.fdb, remote, entry.origin_of(remote)) for remote in destinations
        ],
        "state": state,
        "extern_learn": extern_learn,
        "sticky": sticky,
        "age": round(max(0.0, now - entry.updated), 1) if entry.kind.ages else None,
        "held": None if until is None else round(max(0.0, until - now), 1),
        "tx_frames": entry.tx_frames,
        "rx_frames": entry.rx_frames,
    }


def sample_entry(fdb: Fdb, entry: Entry, now: float) -> schema.FdbSampleEntry:
    """Convert an FDB entry to the short form."""
    until = fdb.moves.held_until(entry.mac)
    return {
        "mac": format_mac(entry.mac),
        "dst": entry.destinations[0].host if entry.destinations else None,
        "state": str(entry.kind.state),
        "age": round(max(0.0, now - entry.updated), 1) if entry.kind.ages else None,
        "held": None if until is None else round(max(0.0, until - now), 1),
        "moves": fdb.moves.count(entry.mac, now),
        "tx_frames": entry.tx_frames,
        "rx_frames": entry.rx_frames,
    }


def kind(kind: EntryKind) -> tuple[str, bool, bool]:
    """Return state, extern_learn and sticky."""
    return str(kind.state), kind.extern_learn, kind.sticky


def destination(fdb: Fdb, remote: Remote, origin: DestinationOrigin) -> schema.Destination:
    """Convert a destination; one without a VNI of its own has that of the segment."""
    return {
        "dst": remote.host,
        "port": remote.port,
        "dst_vni": fdb.vni if remote.vni is None else remote.vni,
        "via": remote.via,
        "extern_learn": origin.extern_learn,
        "sequence": origin.sequence,
    }


def flooded_to(fdb: Fdb) -> list[schema.Destination]:
    """Convert the destinations of the default entry."""
    if fdb.default is None:
        return []
    return [destination(fdb, remote, origin) for remote, origin in fdb.default.origins()]


def process(ports: Iterable[Port]) -> schema.ProcessInfo:
    """Return the identity of this process, by which clients choose one of several."""
    segments: list[schema.ProcessSegment] = [
        {"vni": port.config.vni, "dev": port.tap, "tap": port.config.tap} for port in ports
    ]
    return {"pid": os.getpid(), "netns": socket_files.namespace(), "segments": segments}


def remotes(port: Port) -> list[schema.RemoteEntry]:
    """Convert the destinations of the default entry."""
    name_of = {
        host_of(address, port.config.dev): each.name
        for each in port.config.remote
        if isinstance(each, HostName)
        for address in each.addresses
        if address not in port.config.remote
    }
    return [
        {
            "vni": port.config.vni,
            "dev": port.tap,
            "name": name_of.get(remote.host),
            "configured": origin.is_local,
            **destination(port.fdb, remote, origin),
        }
        for remote, origin in (port.fdb.default.origins() if port.fdb.default else ())
    ]


def names(port: Port, resolver: NameResolver) -> list[schema.NameEntry]:
    """Convert the host names among the remotes."""
    return [
        {
            "name": each.name,
            "addresses": [str(address) for address in each.addresses],
            "error": (resolver.error(each.name)) or None,
        }
        for each in port.config.remote
        if isinstance(each, HostName)
    ]


def loops(port: Port, now: float) -> list[schema.LoopEntry]:
    """Convert the remotes with which flooding is stopped."""
    return [
        {
            "vni": port.config.vni,
            "dev": port.tap,
            "remote": host,
            "blocked": round(max(0.0, until - now), 1),
        }
        for host, until in port.segment.loops.blocked.items()
    ]


def storms(port: Port, now: float) -> Iterator[schema.StormEntry]:
    """Yield the limits of storm control, each followed by the remotes that exceed it."""
    control = port.segment.storm
    there = {each.source: each for each in control.storms}
    for source in LIMITED:
        yield _storm(port, source, there.get(source), now)
        for storm in control.storms:
            remote = storm.source.remote
            if remote is not None and attrs.evolve(storm.source, remote=None) == source:
                yield _storm(port, storm.source, storm, now)


def _storm(port: Port, source: FloodSource, storm: Storm | None, now: float) -> schema.StormEntry:
    limit = port.segment.storm.limits.of(source.kind)
    return {
        "vni": port.config.vni,
        "dev": port.tap,
        **flood_source(source),
        "rate": limit.rate if limit is not None else None,
        "burst": limit.burst if limit is not None else None,
        "state": "dropping" if storm is not None else "forwarding",
        "age": round(max(0.0, now - storm.began), 1) if storm is not None else None,
        "dropped": storm.dropped if storm is not None else 0,
    }


def flood_source(source: FloodSource) -> schema.StormSource:
    """Convert the source of a storm."""
    return {
        "traffic": source.kind.name.lower().replace("_", "-"),
        "direction": "tx" if source.from_tap else "rx",
        "remote": source.remote,
    }


def neighbour(port: Port, neighbour: Neighbour, now: float) -> schema.NeighbourEntry:
    """Convert a neighbour."""
    return {
        "vni": port.config.vni,
        "dev": port.tap,
        "ip": str(neighbour.address),
        "mac": format_mac(neighbour.mac),
        "vlan": list(neighbour.vlan),
        "state": "permanent" if neighbour.permanent else "dynamic",
        "router": neighbour.router,
        "extern_learn": neighbour.extern_learn,
        "age": None if neighbour.permanent else round(max(0.0, now - neighbour.updated), 1),
    }


def segment(port: Port, resolver: NameResolver) -> schema.SegmentInfo:
    """Convert a segment with all its options."""
    return {
        "vni": port.config.vni,
        "dev": port.tap,
        "mtu": port.mtu,
        "offload": sorted(port.offload),
        "fast_path": str(port.fast_path.status),
        "fast_path_reason": port.fast_path.reason,
        "underlay_devices": list(port.underlay_devices),
        "underlay_missing": list(port.underlay_missing),
        "fdb_entries": len(port.fdb),
        "remotes": flooded_to(port.fdb),
        "names": names(port, resolver),
        "options": options(port.config),
        "docker_bridge": port.network_bridge.bridge if port.network_bridge is not None else None,
        "docker_problem": port.network_problem or None,
    }


def options(config: Config) -> dict[str, Any]:
    """Convert the options of a segment."""
    return {
        option(field.name): plain(getattr(config, field.name)) for field in attrs.fields(Config)
    }


def option(field: str) -> str:
    """Return the name of the option, or TOML key, of a field of `Config`."""
    return field.replace("_", "-")


def plain(value: object) -> Any:
    """Convert the value of an option to one that JSON has."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return format_mac(value)
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple) and not isinstance(value, RouteTarget):
        return [plain(item) for item in value]
    return str(value)


def stats(vtep: Vtep, ports: Iterable[Port], now: float) -> schema.Stats:
    """Return the counters of the VTEP and of these segments; `now` is on the monotonic clock."""
    total = vtep.counters()
    reset = vtep.counters_reset
    return {
        "total": {
            **_counts(total),
            "since_reset": _counts(vtep.counters(since_reset=True)),
            "last_sources": _by_name(vtep.last_sources()),
            "last_drops": _ages(vtep.last_drops(), now),
        },
        "segments": [_of_segment(port, now) for port in ports],
        "reset_age": round(max(0.0, now - reset), 1) if reset is not None else None,
    }


def _of_segment(port: Port, now: float) -> schema.SegmentStats:
    counters = port.segment.counters
    return {
        "vni": port.config.vni,
        "dev": port.tap,
        "mtu": port.mtu,
        "fdb_entries": len(port.fdb),
        **_counts(counters.as_dict()),
        "since_reset": _counts(counters.since_reset()),
        "last_sources": _by_name(counters.last_source),
        "last_drops": _ages(counters.last_drop, now),
    }


def _counts(counters: dict[str, int]) -> schema.Counts:
    drops = {str(reason): counters.pop(f"drop_{reason}") for reason in Drop}
    return {"counters": counters, "drops": drops}


def _by_name(sources: Mapping[Reason, str]) -> dict[str, str]:
    return {str(reason): host for reason, host in sources.items()}


def _ages(times: Mapping[Drop, float], now: float) -> dict[str, float]:
    return {str(reason): round(max(0.0, now - at), 1) for reason, at in times.items()}
