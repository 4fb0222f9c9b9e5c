"""A plausible status of a running pyvtep, and a client that returns it, for tests of readers."""

import copy
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, cast

from attrs import fields

from vtep.control.client import DisconnectedError
from vtep.control.schema import (
    Problem,
    RecentDrop,
    RemoteStatus,
    SegmentStatus,
    Status,
)
from vtep.counters import Counters, Drop

NOW = 1_800_000_000.0
"""The time of the first status, in seconds since the epoch."""

STARTED = NOW - 3600
MONOTONIC = 5000.0


def counters(**counts: int) -> dict[str, int]:
    """Return all counters of a segment: zero but for these."""
    names = [each.name for each in fields(Counters) if "unit" in each.metadata]
    assert set(counts) <= set(names), set(counts) - set(names)
    return dict.fromkeys(names, 0) | counts


def drops(**counts: int) -> dict[str, int]:
    """Return all drop reasons: zero but for these."""
    return dict.fromkeys((str(each) for each in Drop), 0) | {
        str(Drop[reason.upper()]): count for reason, count in counts.items()
    }


def recent_drop(
    reason: str, count: int, age: float = 3.0, last_source: str | None = None
) -> RecentDrop:
    return {
        "reason": reason,
        "meaning": Drop[reason.upper()].meaning,
        "count": count,
        "age": age,
        "last_source": last_source,
        "detail": None,
    }


def remote(address: str = "192.0.2.2", **changed: Any) -> RemoteStatus:
    """Return a configured remote that was seen a second ago, with these fields."""
    made: RemoteStatus = {
        "remote": address,
        "is_group": False,
        "is_configured": True,
        "underlay_dev": "eth0",
        "liveness": "seen",
        "is_pyvtep": True,
        "last_seen": 1.0,
        "rtt": 0.00025,
        "path_mtu": 1500,
        "fdb_entries": 3,
        "rx_frames": 4000,
        "rx_bytes": 4_000_000,
        "tx_frames": 2000,
        "tx_bytes": 200_000,
    }
    return cast("RemoteStatus", _merged(made, changed))


def segment(vni: int = 10, **changed: Any) -> SegmentStatus:
    """Return a segment that is up, with three remotes of different liveness, and these fields."""
    made: SegmentStatus = {
        "vni": vni,
        "evpn": False,
        "dev": f"vx{vni}",
        "vlan": None,
        "netns": None,
        "state": "up",
        "bridge": f"br{vni}",
        "address": [f"10.0.{vni % 256}.1/24", "fe80::1/64"],
        "mtu": 1450,
        "tap_mtu": 1500,
        "underlay_mtu": 1500,
        "offload": ["csum", "tnl", "tso", "uso"],
        "fast_path": "on",
        "fast_path_reason": None,
        "underlay_devices": ["eth0"],
        "underlay_missing": [],
        "names": [],
        "dstport": 4789,
        "fdb_entries": 5,
        "fdb_limit": 100_000,
        "counters": counters(
            rx_frames=4100,
            rx_bytes=4_010_000,
            rx_superframes=120,
            tx_frames=2000,
            tx_bytes=200_000,
            tx_superframes=40,
            tx_datagrams=2400,
            flooded=10,
            fdb_learned=6,
            fdb_moved=1,
        ),
        "drops": drops(source_unknown=7, storm_broadcast_rx=90),
        "recent_drops": [
            recent_drop("storm_broadcast_rx", 90, 0.5, "192.0.2.3"),
            recent_drop("source_unknown", 7, 200.0, "203.0.113.9"),
        ],
        "remotes": [
            remote("192.0.2.2"),
            remote(
                "192.0.2.3",
                liveness="silent",
                last_seen=95.0,
                rx_frames=100,
                rx_bytes=10_000,
                fdb_entries=2,
            ),
            remote(
                "2001:db8::4",
                liveness="never-seen",
                is_pyvtep=False,
                last_seen=None,
                rtt=None,
                path_mtu=None,
                underlay_dev=None,
                rx_frames=0,
                rx_bytes=0,
                fdb_entries=0,
            ),
        ],
    }
    return cast("SegmentStatus", _merged(made, changed))


def status(**changed: Any) -> Status:
    """Return the status of a pyvtep with two VNIs, 10 and 20, with these fields.

    VNI 10 has a storm and a remote that is silent; VNI 20 has a refused remote, a host that is not
    configured, and a TAP that is down.
    """
    segments = [
        segment(10),
        segment(
            20,
            state="down",
            bridge=None,
            fast_path="off",
            fast_path_reason="the option --no-fast-path",
            fdb_limit=None,
            recent_drops=[recent_drop("tap_down", 12)],
            drops=drops(tap_down=12),
            remotes=[
                remote("192.0.2.2", liveness="refused", is_pyvtep=False, rtt=None, last_seen=40.0),
                remote("239.1.1.1", is_group=True, is_pyvtep=False, rtt=None, last_seen=None),
                remote("198.51.100.7", is_configured=False, is_pyvtep=False, rtt=None),
            ],
        ),
    ]
    problems: list[Problem] = [
        {
            "problem": "remote-silent",
            "vni": 10,
            "remote": "192.0.2.3",
            "text": "vni 10: 192.0.2.3 is silent: it answered no echo request for 95 s; see "
            "pyvtep doctor",
        },
        {
            "problem": "storm",
            "vni": 10,
            "remote": "192.0.2.3",
            "text": "vni 10: a broadcast storm comes from 192.0.2.3; find the loop behind it",
        },
        {
            "problem": "remote-refused",
            "vni": 20,
            "remote": "192.0.2.2",
            "text": "vni 20: 192.0.2.2 refuses datagrams to port 4789; start pyvtep there",
        },
        {
            "problem": "port-down",
            "vni": 20,
            "remote": None,
            "text": "vni 20: vx20 is down; set it up: ip link set vx20 up",
        },
    ]
    made: Status = {
        "version": "0.14.0",
        "pid": 4242,
        "time": NOW,
        "started": STARTED,
        "monotonic": MONOTONIC,
        "reload": {"successful": True, "time": NOW - 600},
        "counters": {},
        "drops": {},
        "recent_drops": [recent_drop("vni_unknown", 3, 20.0, "203.0.113.9")],
        "segments": segments,
        "evpn": None,
        "problems": problems,
    }
    made = cast("Status", _merged(made, changed))
    if "counters" not in changed:
        made["counters"] = _sum("counters", made["segments"])
    if "drops" not in changed:
        made["drops"] = _sum("drops", made["segments"]) or drops()
        made["drops"]["vni_unknown"] += 3
    return made


def advanced(before: Status, seconds: float = 1.0) -> Status:
    """Return the status that follows after some seconds with traffic, at fixed rates.

    For each second and VNI 1000 frames of 1 kB each are received and sent, by its first remote, and
    10 are dropped as `source_unknown`.
    """
    made = copy.deepcopy(before)
    made["time"] += seconds
    made["monotonic"] += seconds
    frames, octets, dropped = round(1000 * seconds), round(1_000_000 * seconds), round(10 * seconds)
    for each in made["segments"]:
        for of in (each["counters"], made["counters"], *each["remotes"][:1]):
            counts = cast("dict[str, int]", of)
            for name, by in (
                ("rx_frames", frames),
                ("rx_bytes", octets),
                ("tx_frames", frames),
                ("tx_bytes", octets),
            ):
                counts[name] = counts.get(name, 0) + by
        for reasons in (each["drops"], made["drops"]):
            reasons["source_unknown"] = reasons.get("source_unknown", 0) + dropped
    return made


class FakeClient:
    """A client whose calls of `status` return one status after another.

    By default, `seconds` pass between two calls, with traffic as of `advanced`. A test may set
    `next_status`, or make calls fail with `is_down`.
    """

    def __init__(self, first: Status | None = None, seconds: float = 1.0) -> None:
        self.next_status = status() if first is None else first
        self.seconds = seconds
        self.is_down = False
        self.calls = 0
        self.is_closed = False

    def status(self, *, vni: int | None = None, dev: str | None = None) -> Status:
        """Return the next status. Raises: DisconnectedError if `is_down`."""
        self.calls += 1
        if self.is_down:
            raise DisconnectedError("/run/pyvtep/fake.sock: no pyvtep answers there")
        now = copy.deepcopy(self.next_status)
        self.next_status = advanced(self.next_status, self.seconds)
        if vni is not None or dev is not None:
            now["segments"] = [
                each for each in now["segments"] if each["vni"] == vni or each["dev"] == dev
            ]
        return now

    def restart(self) -> None:
        """Begin again with a new process, whose counters are zero."""
        pid = self.next_status["pid"] + 1
        fresh = status(pid=pid, started=self.next_status["time"], time=self.next_status["time"])
        for each in fresh["segments"]:
            each["counters"], each["drops"] = counters(), drops()
            for of in each["remotes"]:
                of["rx_frames"] = of["rx_bytes"] = of["tx_frames"] = of["tx_bytes"] = 0
        fresh["counters"], fresh["drops"] = counters(), drops()
        self.next_status = fresh

    def close(self) -> None:
        self.is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _sum(part: str, segments: list[SegmentStatus]) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in segments:
        for name, count in cast("Mapping[str, Mapping[str, int]]", each)[part].items():
            total[name] = total.get(name, 0) + count
    return total


def _merged(made: object, changed: Mapping[str, Any]) -> object:
    known = cast("dict[str, Any]", made)
    assert set(changed) <= set(known), f"unknown: {set(changed) - set(known)}"
    return {**known, **changed}
