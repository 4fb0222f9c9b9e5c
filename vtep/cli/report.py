"""Counters and learned MACs as text for people."""

import time

from vtep import Vtep
from vtep.counters import Drop
from vtep.wire.ethernet import format_mac

_ENTRIES_SHOWN = 32


def render(vtep: Vtep) -> str:
    """The report of a running VTEP, several lines without a final newline."""
    counters = vtep.counters()
    drops = {reason: counters.pop(f"drop_{reason}") for reason in Drop}
    lines = [f"vni {vtep.segment.vni} on {vtep.tap} (mtu {vtep.mtu})"]
    lines += [f"  {name:22} {count:>12}" for name, count in counters.items()]
    lines += [f"  drops {'':16} {sum(drops.values()):>12}"]
    lines += [f"    {name:20} {count:>12}  {name.meaning}" for name, count in drops.items()]
    lines += [f"  fdb entries {'':10} {len(vtep.fdb):>12}"]
    now = time.monotonic()
    for number, entry in enumerate(vtep.fdb):
        if number == _ENTRIES_SHOWN:
            lines += [f"    and {len(vtep.fdb) - number} more"]
            break
        hosts = " ".join(remote.host for remote in entry.destinations)
        lines += [f"    {format_mac(entry.mac)} dst {hosts} heard {now - entry.updated:.0f} s ago"]
    return "\n".join(lines)
