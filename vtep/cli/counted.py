"""What was counted, as text for people."""

from collections.abc import Iterator

from attrs import frozen

from vtep.control.schema import Counted, SegmentStats, Stats
from vtep.counters import Drop

_MEANINGS = {str(reason): reason.meaning for reason in Drop}


@frozen
class Block:
    """What is said of one segment or, where `vni` is None, of all."""

    vni: int | None
    lines: list[str]


def counted(stats: Stats, *, whole: bool = True) -> Iterator[Block]:
    """What a running pyvtep has counted, in all if `whole`, and of each segment.

    What is counted of a segment is all there is where that is the only one.
    """
    segments = stats["segments"]
    if whole and len(segments) != 1:
        head = f"{len(segments)} VNIs, together"
        yield Block(None, [head, *_counters(stats["total"])])
    for segment in segments:
        own = stats["total"] if whole and len(segments) == 1 else segment
        lines = [f"vni {segment['vni']} on {segment['dev']} (mtu {segment['mtu']})"]
        lines += _counters(own)
        lines += [f"  fdb entries {'':10} {segment['fdb_entries']:>12}"]
        yield Block(segment["vni"], lines)


def _counters(counted: Counted | SegmentStats) -> Iterator[str]:
    for name, count in counted["counters"].items():
        yield f"  {name:22} {count:>12}"
    yield f"  drops {'':16} {sum(counted['drops'].values()):>12}"
    for name, count in counted["drops"].items():
        yield f"    {name:20} {count:>12}  {_MEANINGS.get(name, '')}"
