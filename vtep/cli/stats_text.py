"""What was counted, as text for people."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from attrs import frozen

from vtep.control.schema import Counted, Counts, Stats
from vtep.counters import Drop, duration

_MEANINGS = {str(reason): reason.meaning for reason in Drop}


@frozen
class Block:
    """What is said of one segment or, where `vni` is None, of all."""

    vni: int | None
    lines: list[str]


def together(several: Sequence[Stats]) -> Stats:
    """Return what several running pyvteps have counted as if they were one."""
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
            "last_drops": _least(total["last_drops"] for total in totals),
        },
        "segments": [segment for stats in several for segment in stats["segments"]],
        # Only where all were reset is what they count together since then.
        "reset_age": None if None in ages else max(age for age in ages if age is not None),
    }


def _sum_counts(several: Sequence[Counts]) -> Counts:
    return {
        "counters": _sum(counts["counters"] for counts in several),
        "drops": _sum(counts["drops"] for counts in several),
    }


def _least(several: Iterable[Mapping[str, float]]) -> dict[str, float]:
    least: dict[str, float] = {}
    for ages in several:
        for reason, age in ages.items():
            least[reason] = min(age, least.get(reason, age))
    return least


def _sum(several: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for counts in several:
        for name, count in counts.items():
            total[name] = total.get(name, 0) + count
    return total


def counted(stats: Stats, *, whole: bool = True, zeros: bool = True) -> Iterator[Block]:
    """What a running pyvtep has counted, in all if `whole`, and of each segment.

    What is counted of a segment is all there is where that is the only one. After a reset, it is
    what was counted since. Counters that are zero are left out unless `zeros`.
    """
    segments = stats["segments"]
    age = stats["reset_age"]
    since = f", since the reset {duration(age)} ago" if age is not None else ""
    if whole and len(segments) != 1:
        head = f"{len(segments)} VNIs, together{since}"
        yield Block(None, [head, *_counters(stats["total"]["since_reset"], zeros=zeros)])
    for segment in segments:
        own: Counted = stats["total"] if whole and len(segments) == 1 else segment
        lines = [f"vni {segment['vni']} on {segment['dev']} (mtu {segment['mtu']}){since}"]
        lines += _counters(own["since_reset"], zeros=zeros)
        lines += [f"  fdb entries {'':10} {segment['fdb_entries']:>12}"]
        yield Block(segment["vni"], lines)


def _counters(counted: Counts, *, zeros: bool) -> Iterator[str]:
    for name, count in counted["counters"].items():
        if count or zeros:
            yield f"  {name:22} {count:>12}"
    yield f"  drops {'':16} {sum(counted['drops'].values()):>12}"
    for name, count in counted["drops"].items():
        if count or zeros:
            yield f"    {name:20} {count:>12}  {_MEANINGS.get(name, '')}"
