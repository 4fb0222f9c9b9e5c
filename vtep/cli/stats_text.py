"""Counters of running VTEPs as text."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from attrs import frozen

from vtep.control.schema import CounterStats, Counts, Stats
from vtep.counters import Drop, duration

_MEANINGS = {str(reason): reason.meaning for reason in Drop}

_NAME_WIDTH = max(len(reason) for reason in _MEANINGS) + 2
"""Columns for a name. Names of drop reasons are the longest, and indented by two columns."""


@frozen
class StatsBlock:
    """Lines about one segment or, if `vni` is None, about all of them together."""

    vni: int | None
    lines: list[str]


def merge_stats(several: Sequence[Stats]) -> Stats:
    """Return the statistics of several processes as if they were one."""
    if len(several) == 1:
        return several[0]
    totals = [stats["total"] for stats in several]
    ages = [stats["reset_age"] for stats in several]
    return {
        "total": {
            **_sum_counts(totals),
            "since_reset": _sum_counts([total["since_reset"] for total in totals]),
            "last_sources": {
                reason: host for total in totals for reason, host in total["last_sources"].items()
            },
            "last_drops": _minima(total["last_drops"] for total in totals),
        },
        "segments": [segment for stats in several for segment in stats["segments"]],
        # A total "since the reset" has a meaning only if all of them were reset.
        "reset_age": None if None in ages else max(age for age in ages if age is not None),
    }


def _sum_counts(several: Sequence[Counts]) -> Counts:
    return {
        "counters": _sum(counts["counters"] for counts in several),
        "drops": _sum(counts["drops"] for counts in several),
    }


def _minima(several: Iterable[Mapping[str, float]]) -> dict[str, float]:
    minima: dict[str, float] = {}
    for ages in several:
        for reason, age in ages.items():
            minima[reason] = min(age, minima.get(reason, age))
    return minima


def _sum(several: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for counts in several:
        for name, count in counts.items():
            total[name] = total.get(name, 0) + count
    return total


def format_stats(stats: Stats, *, totals: bool = True, zeros: bool = True) -> Iterator[StatsBlock]:
    """Yield a block for the `totals`, and one for each segment, counted since the last reset.

    The block of an only segment has the totals, which also count what belongs to no segment.
    Counters that are zero are left out unless `zeros`.
    """
    segments = stats["segments"]
    age = stats["reset_age"]
    since = f", since the reset {duration(age)} ago" if age is not None else ""
    if totals and len(segments) != 1:
        head = f"{len(segments)} VNIs, together{since}"
        yield StatsBlock(None, [head, *_counters(stats["total"]["since_reset"], zeros=zeros)])
    for segment in segments:
        own: CounterStats = stats["total"] if totals and len(segments) == 1 else segment
        lines = [f"vni {segment['vni']} on {segment['dev']} (mtu {segment['mtu']}){since}"]
        lines += _counters(own["since_reset"], zeros=zeros)
        lines += [_line("fdb entries", segment["fdb_entries"])]
        yield StatsBlock(segment["vni"], lines)


def _counters(counts: Counts, *, zeros: bool) -> Iterator[str]:
    for name, count in counts["counters"].items():
        if count or zeros:
            yield _line(name, count)
    yield _line("drops", sum(counts["drops"].values()))
    for name, count in counts["drops"].items():
        if count or zeros:
            yield f"{_line('  ' + name, count)}  {_MEANINGS.get(name, '')}"


def _line(name: str, count: int) -> str:
    return f"  {name:{_NAME_WIDTH}} {count:>12}"
