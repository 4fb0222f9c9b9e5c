"""What runs, its counters and learned MACs, as text for people."""

import time
from collections.abc import Mapping

from vtep import Port, Vtep
from vtep.counters import Drop
from vtep.fdb import Fdb
from vtep.wire.ethernet import format_mac

_ENTRIES_SHOWN = 32


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
    if len(vtep.ports) == 1:
        return "\n".join(_render_port(vtep.port, vtep.counters()))
    lines = [f"{len(vtep.ports)} VNIs, together"]
    lines += _render_counters(vtep.counters())
    for port in vtep.ports.values():
        lines += _render_port(port, port.counters())
    return "\n".join(lines)


def _render_port(port: Port, counters: Mapping[str, int]) -> list[str]:
    head = f"vni {port.config.vni} on {port.tap} (mtu {port.mtu})"
    return [head, *_render_counters(counters), *_render_fdb(port.fdb)]


def _render_counters(counters: Mapping[str, int]) -> list[str]:
    drops = {reason: counters[f"drop_{reason}"] for reason in Drop}
    plain = {name: n for name, n in counters.items() if not name.startswith("drop_")}
    lines = [f"  {name:22} {count:>12}" for name, count in plain.items()]
    lines += [f"  drops {'':16} {sum(drops.values()):>12}"]
    lines += [f"    {name:20} {count:>12}  {name.meaning}" for name, count in drops.items()]
    return lines


def _render_fdb(fdb: Fdb) -> list[str]:
    lines = [f"  fdb entries {'':10} {len(fdb):>12}"]
    now = time.monotonic()
    for number, entry in enumerate(fdb):
        if number == _ENTRIES_SHOWN:
            lines += [f"    and {len(fdb) - number} more"]
            break
        hosts = " ".join(remote.host for remote in entry.destinations)
        lines += [f"    {format_mac(entry.mac)} dst {hosts} heard {now - entry.updated:.0f} s ago"]
    return lines
