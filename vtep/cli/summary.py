"""Reports of a running VTEP as text: its segments, counters and learned MAC addresses."""

import time
from collections.abc import Iterator

from vtep import Port, Vtep
from vtep.cli.stats_text import format_stats
from vtep.control import views
from vtep.forwarding.fdb import Fdb
from vtep.wire.ethernet import format_mac

_ENTRIES_SHOWN = 32


def describe_port(port: Port) -> str:
    """Return one line about a port: its VNI, TAP, remotes, underlay, offloads and fast path."""
    config = port.config
    others = [f"group {config.group}"] if config.group else []
    others += map(str, config.remote)
    others += ["the VTEPs of EVPN"] if config.evpn else []
    over = f" over {', '.join(port.underlay_devices)}" if port.underlay_devices else ""
    if port.underlay_missing:
        over += ", underlay not ready"
    tap = port.tap if config.vlan is None else f"{port.tap} vlan {config.vlan}"
    return (
        f"vni {config.vni} on {tap} (mtu {port.mtu}) to {', '.join(others) or 'no remote yet'}"
        f"{over}, UDP port {config.dstport}, offload {','.join(sorted(port.offload)) or 'none'}, "
        f"fast path {port.fast_path}"
    )


def format_report(vtep: Vtep) -> str:
    """Return the report of a running VTEP: several lines, without a final newline."""
    lines = []
    for block in format_stats(views.stats(vtep, vtep.ports.values(), time.monotonic())):
        lines += block.lines
        if block.vni is not None:
            lines += _entries(vtep.ports[block.vni].fdb)
    return "\n".join(lines)


def _entries(fdb: Fdb) -> Iterator[str]:
    now = time.monotonic()
    for number, entry in enumerate(fdb):
        if number == _ENTRIES_SHOWN:
            yield f"    and {len(fdb) - number} more"
            return
        hosts = " ".join(remote.host for remote in entry.destinations)
        yield f"    {format_mac(entry.mac)} dst {hosts} last seen {now - entry.updated:.0f} s ago"
