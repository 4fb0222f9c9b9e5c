"""The status of running VTEPs as text of 80 columns, with styles for a terminal."""

from collections.abc import Callable, Iterator
from typing import Final

from vtep.cli.evpn_text import describe_session, describe_speaker
from vtep.control.evpn_schema import EvpnStatus
from vtep.control.schema import RecentDrop, RemoteStatus, SegmentStatus, Status
from vtep.counters import duration

WIDTH: Final = 80

_INDENT = " " * 6

GOOD: Final = "good"
BAD: Final = "bad"
HEADING: Final = "heading"

Style = Callable[[str, str], str]
"""Gives a text one of the styles above."""

_STYLE_OF = {
    "up": GOOD,
    "down": BAD,
    "missing": BAD,
    "waiting": BAD,
    "seen": GOOD,
    "silent": BAD,
    "refused": BAD,
    "never-seen": "",
}

_REMOTES_MAX = 100
"""Remotes of a segment that are shown; --json has all of them."""


def format_status(status: Status, style: Style) -> Iterator[str]:
    """Yield the lines about one process."""
    uptime = duration(max(0.0, status["time"] - status["started"]))
    head = f"pyvtep {status['version']}, pid {status['pid']}, up {uptime}"
    if (reload := status["reload"]) is not None:
        ago = duration(max(0.0, status["time"] - reload["time"]))
        head += f", reloaded {ago} ago" if reload["successful"] else f", reload failed {ago} ago"
    yield style(head, HEADING)
    for segment in status["segments"]:
        yield ""
        yield from _segment(segment, style)
    if (evpn := status["evpn"]) is not None:
        yield ""
        yield from _evpn(evpn, style)
    yield from _drops(status["recent_drops"], None, style)
    yield ""
    problems = status["problems"]
    if not problems:
        yield style("no problems", GOOD)
    for problem in problems:
        yield from wrap(style("problem", BAD) + ": ", len("problem: "), problem["text"])


def _segment(segment: SegmentStatus, style: Style) -> Iterator[str]:
    state = segment["state"]
    head = f"vni {segment['vni']}"
    dev = segment["dev"] if segment["vlan"] is None else f"{segment['dev']} vlan {segment['vlan']}"
    yield f"{style(head, HEADING)}  {dev}  {style(state, _STYLE_OF.get(state, ''))}"
    place = f"bridge {segment['bridge']}" if segment["bridge"] is not None else "no bridge"
    if segment["address"]:
        place += f", address {' '.join(segment['address'])}"
    if segment["netns"] is not None:
        place = f"netns {segment['netns']}, {place}"
    mtu = f"mtu {segment['mtu']}"
    if segment["tap_mtu"] not in (None, segment["mtu"]):
        mtu += f" (tap {segment['tap_mtu']})"
    over = "/".join(segment["underlay_devices"]) or "no device"
    under = f"underlay {over}"
    if segment["underlay_mtu"] is not None:
        under += f" mtu {segment['underlay_mtu']}"
    yield from wrap("  ", 2, f"{place}; {mtu}; {under}")
    fast = f"fast path {segment['fast_path']}"
    if segment["fast_path_reason"] is not None:
        fast += f" ({segment['fast_path_reason']})"
    yield from wrap("  ", 2, f"offload {' '.join(segment['offload']) or 'none'}; {fast}")
    counters, limit = segment["counters"], segment["fdb_limit"]
    most = f" of {limit}" if limit is not None else ""
    yield from wrap(
        *("  ", 2),
        f"rx {_traffic(counters['rx_frames'], counters['rx_bytes'])}; "
        f"tx {_traffic(counters['tx_frames'], counters['tx_bytes'])}; "
        f"fdb {segment['fdb_entries']}{most}",
    )
    for name in segment["names"]:
        head = f"  name {name['name']}  "
        text = ", ".join(name["addresses"]) or "no address"
        if name["error"] is not None:
            text += f" ({name['error']})"
        yield from wrap(head, len(head), text)
    remotes = segment["remotes"]
    for remote in remotes[:_REMOTES_MAX]:
        yield from _remote(remote, style)
    if len(remotes) > _REMOTES_MAX:
        yield f"    and {len(remotes) - _REMOTES_MAX} more remotes: --json shows them"
    yield from _drops(segment["recent_drops"], segment, style)


def _remote(remote: RemoteStatus, style: Style) -> Iterator[str]:
    """Yield two lines: address, liveness and path; then what was exchanged."""
    words = [style(remote["liveness"], _STYLE_OF.get(remote["liveness"], ""))]
    plain = len(remote["liveness"])
    if remote["is_group"]:
        words, plain = ["group"], len("group")
    rest = []
    if not remote["is_configured"]:
        rest.append("not configured")
    if (seen := remote["last_seen"]) is not None:
        rest.append(f"last seen {ago(seen)}")
    if (rtt := remote["rtt"]) is not None:
        rest.append(f"rtt {1000 * rtt:.1f} ms")
    head = f"  remote {remote['remote']}  "
    text = "".join(f", {each}" for each in rest)
    yield from wrap(head + words[0], len(head) + plain, text)
    path = f"over {remote['underlay_dev']}" if remote["underlay_dev"] is not None else "no route"
    if remote["path_mtu"] is not None:
        path += f" mtu {remote['path_mtu']}"
    yield from wrap(
        *("    ", 4),
        f"{path}; rx {_traffic(remote['rx_frames'], remote['rx_bytes'])}; "
        f"tx {_traffic(remote['tx_frames'], remote['tx_bytes'])}; macs {remote['fdb_entries']}",
    )


def _evpn(evpn: EvpnStatus, style: Style) -> Iterator[str]:
    """Yield lines about EVPN: the speaker, each session and each VNI."""
    speaker = evpn["speaker"]
    text = describe_speaker(speaker).removeprefix(f"speaker {speaker['state']} for ")
    head = f"evpn  speaker {speaker['state']} for "
    styled = style("evpn", HEADING) + "  speaker " + _styled(speaker["state"], style) + " for "
    yield from wrap(styled, len(head), text)
    for session in evpn["sessions"][:_REMOTES_MAX]:
        head = f"  neighbor {session['neighbor']}  "
        state = session["state"]
        yield from wrap(
            head + _styled(state, style), len(head) + len(state), f", {describe_session(session)}"
        )
    for segment in evpn["segments"][:_REMOTES_MAX]:
        yield from wrap(
            *("  ", 2),
            f"vni {segment['vni']}: vteps {segment['vteps']}, macs {segment['macs']}, neighbours "
            f"{segment['neighbours']}, announced {segment['announced']}",
        )
    for kind in ("sessions", "segments"):
        rows = evpn["sessions"] if kind == "sessions" else evpn["segments"]
        if len(rows) > _REMOTES_MAX:
            yield f"    and {len(rows) - _REMOTES_MAX} more {kind}: --json shows them"


def _styled(state: str, style: Style) -> str:
    """Return a state of EVPN, in the colour of a state that is good, bad or neither."""
    good = {"running": GOOD, "established": GOOD, "starting": ""}
    return style(state, good.get(state, BAD))


def _drops(drops: list[RecentDrop], segment: SegmentStatus | None, style: Style) -> Iterator[str]:
    from vtep.doctor.advice import advice  # noqa: PLC0415  --help imports this module, too

    if drops and segment is None:
        yield ""
    for drop in drops:
        last = ", ".join(filter(None, (drop["last_source"], drop["detail"])))
        text = f"{drop['count']} x {drop['reason']}, last {ago(drop['age'])}: {drop['meaning']}"
        head = "  drop  " if segment is not None else "drop  "
        yield from wrap(style(head, BAD), len(head), text + (f" (last: {last})" if last else ""))
        yield from wrap(_INDENT + "-> ", len(_INDENT) + 3, advice(drop, segment))


def ago(seconds: float) -> str:
    """Return how long something is ago, in words."""
    return "now" if seconds < 1 else f"{duration(seconds)} ago"


def _traffic(frames: int, octets: int) -> str:
    return f"{frames} frames {_octets(octets)}"


def _octets(count: int) -> str:
    """Return a number of octets with a decimal prefix, and three digits or more."""
    value, prefix = float(count), ""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if value < 1000 or prefix == "P":
            break
        value /= 1000
    return f"{count} B" if not prefix else f"{value:.{0 if value >= 100 else 1}f} {prefix}B"


def wrap(head: str, head_len: int, text: str) -> Iterator[str]:
    """Yield lines with a text behind a head, of which `head_len` columns are visible.

    Words are never broken, since a command in them is to be pasted.
    """
    line, length = head, head_len
    is_first = True
    for word in text.split():
        space = "" if is_first else " "
        if not is_first and length + 1 + len(word) > WIDTH:
            yield line
            line, length, space = _INDENT + "  ", len(_INDENT) + 2, ""
        if is_first and word == ",":
            space = ""
        line += space + word
        length += len(space) + len(word)
        is_first = False
    yield line
