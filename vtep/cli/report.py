"""What runs, its counters and learned MACs, as text for people."""

import time
from collections.abc import Iterator

from attrs import frozen

from vtep import Port, Vtep
from vtep.control import rows
from vtep.control.schema import Counted, SegmentStats, Stats
from vtep.counters import Drop
from vtep.fdb import Fdb
from vtep.wire.ethernet import format_mac

_ENTRIES_SHOWN = 32

_MEANINGS = {str(reason): reason.meaning for reason in Drop}


def introduce(port: Port) -> str:
    """A line that says what a port is."""
    config = port.config
    others = [f"group {config.group}"] if config.group else []
    others += map(str, config.remote)
    over = f" over {', '.join(port.underlay_devices)}" if port.underlay_devices else ""
    return (
        f"vni {config.vni} on {port.tap} (mtu {port.mtu}) to {', '.join(others) or 'nobody yet'}"
        f"{over}, UDP port {config.dstport}, offload {','.join(sorted(port.offload)) or 'none'}"
    )


def render(vtep: Vtep) -> str:
    """The report of a running VTEP, several lines without a final newline."""
    lines = []
    for block in counted(rows.stats(vtep, vtep.ports.values())):
        lines += block.lines
        if block.vni is not None:
            lines += _entries(vtep.ports[block.vni].fdb)
    return "\n".join(lines)


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


def _entries(fdb: Fdb) -> Iterator[str]:
    now = time.monotonic()
    for number, entry in enumerate(fdb):
        if number == _ENTRIES_SHOWN:
            yield f"    and {len(fdb) - number} more"
            return
        hosts = " ".join(remote.host for remote in entry.destinations)
        yield f"    {format_mac(entry.mac)} dst {hosts} heard {now - entry.updated:.0f} s ago"
