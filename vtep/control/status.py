"""Making of the answer to `status`: the state of a VTEP on one screen.

It is made of what the data path and the watchers of the daemon know already: no request to the
kernel and no walk over an FDB. A VTEP may have a thousand segments, and one of those a thousand
remotes, so it is made in steps, between which frames are forwarded.
"""

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from vtep import __version__
from vtep.control import problems, schema, views
from vtep.control.jsonrpc import PagedObject
from vtep.counters import BY_DESIGN, Counters, Drop
from vtep.daemon.port import Port
from vtep.daemon.unmatched import UnmatchedVteps
from vtep.daemon.vtep import Vtep
from vtep.fastpath.state import off
from vtep.forwarding.liveness import Liveness, LivenessState
from vtep.forwarding.remote_counters import RemoteCounters
from vtep.wire.address import is_group

_RECENT_S = 300.0
"""Seconds for which a drop is recent."""

_REMOTES_PER_STEP = 100
"""Remotes that are converted at a time: half a millisecond, for which frames wait."""


_NOTHING = RemoteCounters()
"""The counters of a remote without traffic."""


def status(vtep: Vtep, ports: Iterable[Port]) -> PagedObject:
    """Return the state of a VTEP (`schema.Status`), with these of its segments."""
    return _Status(vtep, ports).result()


class _Status:
    """A status in the making."""

    def __init__(self, vtep: Vtep, ports: Iterable[Port]) -> None:
        self._vtep = vtep
        self._shown = frozenset(ports)
        self._now = time.monotonic()
        self._counters: Counter[str] = Counter()
        self._drops: Counter[str] = Counter()
        self._problems: list[schema.Problem] = []

    def result(self) -> PagedObject:
        return PagedObject("segments", self._segments(), self._rest)

    def _segments(self) -> Iterator[list[schema.SegmentStatus]]:
        for port in (*self._vtep.ports.values(), *self._vtep.lost.values()):
            counters = port.segment.counters
            counters.note_drops(self._now)
            numbers = counters.numbers()
            self._counters.update(numbers)
            self._drops.update(counters.drops)
            if port not in self._shown:
                yield []
                continue
            remotes: list[schema.RemoteStatus] = []
            # A VNI without a TAP neither hears its remotes nor asks them.
            for step in () if self._is_lost(port) else self._remotes(port):
                remotes += step
                yield []
            segment = self._segment(port, numbers, remotes)
            self._problems += problems.of_segment(
                segment,
                views.loops(port, self._now),
                views.storms(port, self._now),
                fast_path_failed=(
                    port.config.fast_path
                    and port.config.vlan is None
                    and self._vtep.fast_path_failed
                ),
            )
            if port.attachment.unjoined:
                self._problems.append(
                    problems.of_bridge(
                        port.config.vni,
                        port.tap,
                        port.effective.bridge or "",
                        port.attachment.unjoined,
                    )
                )
            if port.network_problem:
                self._problems.append(
                    problems.of_docker_network(port.config.vni, port.network_problem)
                )
            yield [segment]

    def _is_lost(self, port: Port) -> bool:
        return self._vtep.lost.get(port.config.vni) is port

    def _segment(
        self, port: Port, numbers: dict[str, int], remotes: list[schema.RemoteStatus]
    ) -> schema.SegmentStatus:
        config, counters = port.config, port.segment.counters
        link, bridge = self._vtep.link_of(port), self._vtep.bridge_of(port)
        fast_path = off("its TAP was removed") if self._is_lost(port) else port.fast_path
        missing = list(port.underlay_missing)
        mtus = [mtu for remote in remotes if (mtu := remote["path_mtu"]) is not None]
        state = "up"
        if not port.is_open:
            state = "missing"
        elif link is not None and not link.is_up:
            state = "down"
        elif missing or any(self._vtep.names.is_awaited(name) for name in config.remote_names):
            state = "waiting"
        return {
            "vni": config.vni,
            "evpn": config.evpn,
            "dev": port.tap,
            "vlan": config.vlan,
            "netns": config.netns,
            "state": state,
            "bridge": bridge.name if bridge is not None else None,
            "address": list(port.addresses),
            "mtu": port.mtu,
            "tap_mtu": link.mtu if link is not None else None,
            "underlay_mtu": min(mtus, default=port.underlay.mtu),
            "offload": sorted(port.offload),
            "fast_path": str(fast_path.status),
            "fast_path_reason": fast_path.reason,
            "underlay_devices": list(port.underlay_devices),
            "underlay_missing": missing,
            "dstport": config.dstport,
            "fdb_entries": len(port.fdb),
            "fdb_limit": port.fdb.max_addresses or None,
            "counters": numbers,
            "drops": {str(reason): count for reason, count in counters.drops.items()},
            "recent_drops": _recent((counters,), self._now, self._vtep.unmatched),
            "remotes": remotes,
            "names": views.names(port, self._vtep.names),
        }

    def _remotes(self, port: Port) -> Iterator[list[schema.RemoteStatus]]:
        """Yield the remotes of a segment, some at a time: those of the default entry first."""
        segment = port.segment
        flooded = dict.fromkeys(remote.host for remote in segment.remotes)
        mtus = port.path_mtus
        segment.remote_counters.settle()
        step: list[schema.RemoteStatus] = []
        for host in dict.fromkeys((*flooded, *segment.known_hosts())):
            dev = port.underlay.device_to(host)
            counters = segment.remote_counters.get(host, _NOTHING)
            member = segment.fdb.members.hosts.get(host)
            known = self._vtep.liveness.get(host, member.port) if member is not None else None
            known = known or Liveness()
            state = known.state
            if state is LivenessState.NEVER_SEEN and counters.last_rx is not None:
                state = LivenessState.SEEN  # Since the last round, or it is no member.
            seen = [at for at in (counters.last_rx, known.last_reply) if at is not None]
            step.append(
                {
                    "remote": host,
                    "is_group": is_group(host),
                    "is_configured": host in flooded,
                    "underlay_dev": dev,
                    "liveness": str(state),
                    "is_pyvtep": known.is_pyvtep,
                    "last_seen": _age(max(seen, default=None), self._now),
                    "rtt": known.rtt,
                    "path_mtu": mtus.get(host) or (port.underlay.mtu if dev is not None else None),
                    "fdb_entries": port.fdb.members.entry_count(host) - (host in flooded),
                    "rx_frames": counters.rx_frames,
                    "rx_bytes": counters.rx_bytes,
                    "tx_frames": counters.tx_frames,
                    "tx_bytes": counters.tx_bytes,
                }
            )
            if len(step) >= _REMOTES_PER_STEP:
                yield step
                step = []
        yield step

    def _rest(self) -> Mapping[str, object]:
        """Return all but the segments, after those."""
        vtep = self._vtep
        shared = tuple(vtep.shared_counters())
        for counters in shared:
            counters.note_drops(self._now)
            self._counters.update(counters.numbers())
            self._drops.update(counters.drops)
        reload: schema.ReloadStatus | None = None
        if vtep.last_reload is not None:
            reload = {"successful": vtep.last_reload.successful, "time": vtep.last_reload.time}
        evpn = vtep.evpn_status() if vtep.evpn_status is not None else None
        wall = time.time()
        rest: dict[str, object] = {
            "version": __version__,
            "pid": os.getpid(),
            "time": wall,
            "started": vtep.started or wall,
            "monotonic": self._now,
            "reload": reload,
            "counters": {**self._counters, "taps_lost": vtep.taps_lost},
            "drops": {str(reason): count for reason, count in self._drops.items()},
            "recent_drops": _recent(shared, self._now, vtep.unmatched),
            "evpn": evpn,
            "problems": [
                *problems.of_process(reload, wall),
                *(problems.of_evpn(evpn) if evpn is not None else ()),
                *problems.unexplained(self._problems, evpn),
            ],
        }
        return rest


def _age(at: float | None, now: float) -> float | None:
    return None if at is None else round(max(0.0, now - at), 3)


def _recent(
    parts: Iterable[Counters], now: float, unmatched: UnmatchedVteps
) -> list[schema.RecentDrop]:
    """Return the drops of the last minutes, the latest first; intended ones are left out."""
    found: dict[Drop, schema.RecentDrop] = {}
    for counters in parts:
        for reason, at in counters.last_drop.items():
            age = round(max(0.0, now - at), 1)
            if age > _RECENT_S or reason in BY_DESIGN:
                continue
            count = counters.drops[reason]
            other = found.get(reason)
            if other is not None:
                count += other["count"]
                if other["age"] < age:
                    other["count"] = count
                    continue
            source = counters.last_source.get(reason)
            found[reason] = {
                "reason": str(reason),
                "meaning": reason.meaning,
                "count": count,
                "age": age,
                "last_source": source,
                "detail": counters.describe_last(reason) or unmatched.explain(reason, source),
            }
    return sorted(found.values(), key=lambda drop: drop["age"])
