"""What was counted, as text for people."""

from collections.abc import Iterator

from attrs import frozen

from vtep.control.schema import Counted, Counts, Stats
from vtep.counters import Drop, duration

_MEANINGS = {str(reason): reason.meaning for reason in Drop}


@frozen
class Block:
    """What is said of one segment or, where `vni` is None, of all."""

    vni: int | None
    lines: list[str]


def counted(stats: Stats, *, whole: bool = True) -> Iterator[Block]:
    """What a running pyvtep has counted, in all if `whole`, and of each segment.

    What is counted of a segment is all there is where that is the only one. After a reset, it is
    what was counted since.
    """
    segments = stats["segments"]
    age = stats["reset_age"]
    since = f", since the reset {duration(age)} ago" if age is not None else ""
    if whole and len(segments) != 1:
        head = f"{len(segments)} VNIs, together{since}"
        yield Block(None, [head, *_counters(stats["total"]["since_reset"])])
    for segment in segments:
        own: Counted = stats["total"] if whole and len(segments) == 1 else segment
        lines = [f"vni {segment['vni']} on {segment['dev']} (mtu {segment['mtu']}){since}"]
        lines += _counters(own["since_reset"])
        lines += [f"  fdb entries {'':10} {segment['fdb_entries']:>12}"]
        yield Block(segment["vni"], lines)


def _counters(counted: Counts) -> Iterator[str]:
    for name, count in counted["counters"].items():
        yield f"  {name:22} {count:>12}"
    yield f"  drops {'':16} {sum(counted['drops'].values()):>12}"
    for name, count in counted["drops"].items():
        yield f"    {name:20} {count:>12}  {_MEANINGS.get(name, '')}"
