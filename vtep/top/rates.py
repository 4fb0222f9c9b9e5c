"""Rates from two statuses: differences of counters, divided by the difference of their times."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias, cast

from attrs import field, frozen

from vtep.control.schema import RecentDrop, RemoteStatus, SegmentStatus, Status

Value: TypeAlias = str | int | float | None
"""The value of a column; None if it is unknown, or if there is none."""

Counts: TypeAlias = Mapping[str, int]

Advice: TypeAlias = Callable[[RecentDrop, SegmentStatus | None], str]
"""A function that returns what to do about a drop."""

_OF_SEGMENT: Final = (
    *("rx_bytes", "tx_bytes", "rx_frames", "tx_frames", "rx_superframes", "tx_superframes"),
    *("flooded", "fdb_learned", "fdb_moved"),
)
_OF_REMOTE: Final = ("rx_bytes", "tx_bytes", "rx_frames", "tx_frames")


@frozen
class Row:
    """A line of a table: an object with its values."""

    kind: str
    """total, vni, remote, mac or drop."""
    key: tuple[Value, ...]
    """The identity of the object, by which it is found again in later rows."""
    values: Mapping[str, Value] = field(eq=False)
    """The values by the name of the column."""
    note: str = field(default="", eq=False)
    """More about the object, for readers."""


@frozen
class Rates:
    """The rows at one moment."""

    time: float
    """Seconds since the epoch."""
    version: str
    total: Row
    vnis: tuple[Row, ...]
    remotes: tuple[Row, ...]
    drops: tuple[Row, ...]
    problems: tuple[str, ...]


def per_second(before: Counts | None, now: Counts, seconds: float) -> dict[str, float]:
    """Return the rate of each counter in units a second.

    Returns: nothing if there is no earlier value, or if a counter has shrunk. Then another process
    counts, or another object of the same name, and no difference has a meaning.
    """
    if before is None or seconds <= 0:
        return {}
    common = now.keys() & before.keys()
    if any(now[name] < before[name] for name in common):
        return {}
    return {name: (now[name] - before[name]) / seconds for name in common}


def quotient(part: float | None, whole: float | None) -> float | None:
    """Return a quotient of two rates; None if one is unknown, or if the divisor is zero."""
    return part / whole if part is not None and whole else None


class RateMeter:
    """Makes rows of one status after another, of which it keeps the last one."""

    def __init__(self, advice: Advice = lambda drop, _segment: drop["meaning"]) -> None:
        self._advice = advice
        self._before: Status | None = None

    def forget(self) -> None:
        """Forget the last status, as the connection was lost: the next rates are unknown."""
        self._before = None

    def take(self, status: Status) -> Rates:
        """Return the rows of a status."""
        before = self._before
        self._before = status
        # Another process counts from zero, even if no counter is smaller than before by chance.
        if before is not None and before["pid"] != status["pid"]:
            before = None
        seconds = status["monotonic"] - before["monotonic"] if before is not None else 0.0
        of_before = before["segments"] if before is not None else []
        earlier = {segment["vni"]: segment for segment in of_before}
        pairs = [(earlier.get(segment["vni"]), segment) for segment in status["segments"]]
        drops = list(self._drops(None, before, status, seconds))
        for old, segment in pairs:
            drops += self._drops(segment, old, segment, seconds)
        return Rates(
            time=status["time"],
            version=status["version"],
            total=_total(before, status, seconds),
            vnis=tuple(_vni(old, segment, seconds) for old, segment in pairs),
            remotes=tuple(row for pair in pairs for row in _remotes(*pair, seconds)),
            drops=tuple(drops),
            problems=tuple(problem["text"] for problem in status["problems"]),
        )

    def _drops(
        self,
        segment: SegmentStatus | None,
        before: Status | SegmentStatus | None,
        now: Status | SegmentStatus,
        seconds: float,
    ) -> Iterator[Row]:
        """Yield the recent drops of a segment or, without one, of the process."""
        rates = per_second(before["drops"] if before is not None else None, now["drops"], seconds)
        vni = segment["vni"] if segment is not None else None
        for drop in now["recent_drops"]:
            values: dict[str, Value] = {
                "vni": vni,
                "reason": drop["reason"],
                "drops_rate": rates.get(drop["reason"]),
                "drops": drop["count"],
                "age": drop["age"],
                "source": drop["last_source"],
            }
            last = f"last: {drop['detail']}; " if drop["detail"] else ""
            yield Row("drop", (vni, drop["reason"]), values, last + self._advice(drop, segment))


def _traffic(before: object, now: object, names: Sequence[str], seconds: float) -> dict[str, Value]:
    """Return the rates of some counters of an object, each as `<name>_rate`."""
    counts, old = cast("Counts", now), cast("Counts | None", before)
    there = {name: counts[name] for name in names if name in counts}
    rates = per_second(old, there, seconds)
    return {f"{name}_rate": rates.get(name) for name in names}


def _drop_rate(before: Counts | None, now: Counts, seconds: float) -> float | None:
    rates = per_second(before, now, seconds)
    return sum(rates.values()) if rates else None


def _total(before: Status | None, now: Status, seconds: float) -> Row:
    old = before["counters"] if before is not None else None
    calls = ("rx_syscalls", "tx_syscalls")
    values: dict[str, Value] = {
        "version": now["version"],
        "pid": now["pid"],
        "uptime": max(0.0, now["time"] - now["started"]),
        "vnis": len(now["segments"]),
        "fdb_entries": sum(segment["fdb_entries"] for segment in now["segments"]),
        "problems": len(now["problems"]),
        **_traffic(old, now["counters"], (*_OF_SEGMENT, *calls), seconds),
        "drops_rate": _drop_rate(before["drops"] if before else None, now["drops"], seconds),
    }
    for direction in ("rx", "tx"):
        frames, of_calls = values[f"{direction}_frames_rate"], values[f"{direction}_syscalls_rate"]
        values[f"{direction}_frames_per_call"] = quotient(
            cast("float | None", frames), cast("float | None", of_calls)
        )
    return Row("total", (), values)


def _vni(before: SegmentStatus | None, now: SegmentStatus, seconds: float) -> Row:
    old = before["counters"] if before is not None else None
    values: dict[str, Value] = {
        "vni": now["vni"],
        "dev": now["dev"],
        "state": now["state"],
        **_traffic(old, now["counters"], _OF_SEGMENT, seconds),
        "drops_rate": _drop_rate(before["drops"] if before else None, now["drops"], seconds),
        "fdb_entries": now["fdb_entries"],
        "mtu": now["mtu"],
        "bridge": now["bridge"],
        "fast_path": now["fast_path"],
    }
    reason = f" ({now['fast_path_reason']})" if now["fast_path_reason"] else ""
    bridge = f" in {now['bridge']}" if now["bridge"] else ""
    missing = f"missing: {', '.join(now['underlay_missing'])}" if now["underlay_missing"] else ""
    parts = (
        f"{now['dev']}{bridge}",
        missing,
        f"MTU {now['mtu']}, TAP {now['tap_mtu'] or '?'}, underlay {now['underlay_mtu'] or '?'}",
        f"offloads {', '.join(now['offload']) or 'none'}",
        f"fast path {now['fast_path']}{reason}",
    )
    return Row("vni", (now["vni"],), values, "; ".join(filter(None, parts)))


def _remotes(before: SegmentStatus | None, now: SegmentStatus, seconds: float) -> Iterator[Row]:
    earlier = {each["remote"]: each for each in before["remotes"]} if before is not None else {}
    for remote in now["remotes"]:
        values: dict[str, Value] = {
            "vni": now["vni"],
            "remote": remote["remote"],
            "liveness": remote["liveness"],
            **_traffic(earlier.get(remote["remote"]), remote, _OF_REMOTE, seconds),
            "last_seen": remote["last_seen"],
            "rtt": remote["rtt"],
            "path_mtu": remote["path_mtu"],
            "fdb_entries": remote["fdb_entries"],
            "underlay_dev": remote["underlay_dev"],
        }
        yield Row("remote", (now["vni"], remote["remote"]), values, _describe(remote))


def _describe(remote: RemoteStatus) -> str:
    configured = "configured" if remote["is_configured"] else "not configured, but accepted"
    parts = [
        "multicast group" if remote["is_group"] else configured,
        "runs pyvtep" if remote["is_pyvtep"] else "",
        f"via {remote['underlay_dev']}" if remote["underlay_dev"] else "no route",
        f"path MTU {remote['path_mtu'] or 'unknown'}",
        f"RTT {remote['rtt'] * 1000:.2f} ms" if remote["rtt"] is not None else "",
        f"{remote['fdb_entries']} MACs",
    ]
    return "; ".join(filter(None, parts))
