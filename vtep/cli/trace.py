"""`pyvtep trace`: what would happen to a frame, decision by decision. Nothing is sent."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vtep.cli import client_command, commands
from vtep.cli.grammar import SEGMENT, Grammar
from vtep.control import Client
from vtep.errors import ConfigError, VtepError
from vtep.trace.fields import PROTOCOLS, SIZE_MAX, FrameFields, build_frame
from vtep.trace.packets import Packet as FilePacket
from vtep.trace.packets import inner_frame, is_vxlan, outer_datagram, parse_hex, read_packet
from vtep.trace.steps import TraceDrop, TraceResult, TraceSent
from vtep.wire import vxlan
from vtep.wire.address import Address
from vtep.wire.ethernet import parse_mac

if TYPE_CHECKING:
    from vtep.control.schema import RecentDrop

_SEGMENT = Grammar(None, SEGMENT)
_FIELDS = (
    *("src_mac", "dst_mac", "src", "dst", "proto", "sport", "dport", "size", "vlan", "ttl", "tos"),
    *("dont_fragment", "syn"),
)
_FILE_MAX = 1 << 30
"""Octets of a capture file that is read: it is read as a whole."""

_ETHERNET = 1

_PORT = click.IntRange(0, 65535)
_OCTET = click.IntRange(0, 255)
_STAGE_WIDTH = 10


def _mac(_context: click.Context, parameter: click.Parameter, value: str | None) -> bytes | None:
    if value is None:
        return None
    try:
        return parse_mac(value)
    except ValueError as error:
        raise ConfigError(f"{parameter.opts[0]} {value}: {error}") from None


def _ip(_context: click.Context, parameter: click.Parameter, value: str | None) -> Address | None:
    if value is None:
        return None
    try:
        return ip_address(value)
    except ValueError:
        more = "; a MAC is --src-mac or --dst-mac" if value.count(":") == 5 else ""
        raise ConfigError(f"{parameter.opts[0]} {value}: is not an IP address{more}") from None


@click.command(cls=commands.CliCommand)
@client_command.words(_SEGMENT, "[dev TAP]")
@commands.option("--src-mac", metavar="MAC", callback=_mac, help="Source MAC of the frame.")
@commands.option(
    "--dst-mac",
    metavar="MAC",
    callback=_mac,
    help="Destination MAC; it follows from --dst for groups and with --proto arp or nd.",
)
@commands.option("--src", metavar="IP", callback=_ip, help="Source address of the IP packet.")
@commands.option("--dst", metavar="IP", callback=_ip, help="Destination address.")
@commands.option(
    "--proto",
    metavar=f"[{'|'.join(PROTOCOLS)}]",
    type=click.Choice(PROTOCOLS),
    help="Protocol [default: udp with ports, icmp with addresses, else none].",
)
@commands.option("--sport", metavar="PORT", type=_PORT, help="Source port of TCP or UDP.")
@commands.option("--dport", metavar="PORT", type=_PORT, help="Destination port of TCP or UDP.")
@commands.option("--syn", is_flag=True, help="The TCP segment opens a connection (MSS 1460).")
@commands.option(
    "--size",
    metavar="OCTETS",
    type=click.IntRange(0, SIZE_MAX),
    help="Length of the IP packet, as an MTU counts.",
)
@click.option(
    "--vlan",
    metavar="ID",
    type=click.IntRange(0, 4094),
    multiple=True,
    help="VLAN tag; repeat it for several, the outer one first.",
    cls=commands.RepeatableOption,
)
@commands.option("--ttl", metavar="N", type=_OCTET, default=64, help="Inner TTL [default: 64].")
@commands.option("--tos", metavar="N", type=_OCTET, default=0, help="Inner TOS octet, with ECN.")
@commands.option(
    "--df", "dont_fragment", is_flag=True, help="The IPv4 packet must not be fragmented."
)
@commands.option(
    "--hex", "hex_", metavar="OCTETS", help="The frame in hexadecimal, or - for standard input."
)
@commands.option(
    "--pcap", metavar="FILE[:N]", help="The frame is packet N of a pcap or pcapng file."
)
@commands.option(
    "--live",
    metavar="N",
    type=click.IntRange(1, 100),
    help="The next N real frames, in both directions.",
)
@commands.option(
    "--filter", "filter_", metavar="EXPRESSION", help="With --live: a filter of libpcap."
)
@commands.option(
    "--from",
    "source",
    metavar="REMOTE",
    callback=_ip,
    help="The frame comes from this remote, not from the TAP.",
)
@commands.option(
    "--outer",
    is_flag=True,
    help="--hex or --pcap has a whole packet of the underlay, with outer IP and UDP headers.",
)
@commands.option(
    "--vni-header", metavar="N", type=click.IntRange(0, vxlan.VNI_MAX), help="VNI in the header."
)
@commands.option("--gbp", metavar="GROUP", type=_PORT, help="Policy group in the VXLAN header.")
@commands.option(
    "--header", metavar="HEX", help="The whole VXLAN header, 8 octets, in place of those."
)
@commands.option(
    "--outer-ecn", metavar="N", type=click.IntRange(0, 3), help="ECN field of the outer header."
)
@commands.option("--verbose", "-v", is_flag=True, help="Show the octets of datagrams and frames.")
@client_command.with_client(shows=True)
def trace(
    vtep: Client,
    params: dict[str, Any],
    *,
    as_json: bool,
    verbose: bool,
    live: int | None,
    filter_: str | None,
    **given: Any,
) -> None:
    """Show what would happen to a frame, decision by decision; nothing is sent or changed.

    For a frame from the TAP, one from a remote, and real frames:

    \b
        pyvtep trace --dst-mac 02:00:00:00:00:02 --dst 10.0.0.2 --dport 53
        pyvtep trace --from 192.0.2.2 --pcap dump.pcap:7
        pyvtep trace --live 3 --filter arp

    Exit code: 0 if the frame would be forwarded, delivered or answered, 1 if it would be dropped.
    """
    if live is not None:
        _refuse(given, (*_FIELDS, *_OTHERS), "--live")
        results = _follow(vtep, params, live, filter_, as_json=as_json, verbose=verbose)
    else:
        if filter_ is not None:
            raise ConfigError("--filter: is for --live; a single frame needs none")
        results = [vtep.call("trace", **params, **_request(given))]
        _show(vtep, results[0], as_json=as_json, verbose=verbose)
    if any(result["outcome"] == "dropped" for result in results):
        sys.exit(1)


_OTHERS = ("hex_", "pcap", "source", "outer", "vni_header", "gbp", "header", "outer_ecn")
_DEFAULTS: dict[str, object] = {"ttl": 64, "tos": 0}


def _refuse(given: dict[str, Any], names: tuple[str, ...], option: str) -> None:
    """Raise ConfigError if one of the options was given, beside one that excludes them."""
    for name in names:
        if given[name] not in (None, False, (), _DEFAULTS.get(name)):
            name = {"dont_fragment": "df"}.get(name, name)  # noqa: PLW2901
            written = name.rstrip("_").replace("source", "from").replace("_", "-")
            raise ConfigError(f"--{written}: makes no sense with {option}; leave one out")


def _request(given: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of the method `trace`."""
    packet = _packet(given)
    source, ecn = given["source"], given["outer_ecn"]
    if given["outer"]:
        if packet is None:
            raise ConfigError("--outer: needs the packet, with --hex or --pcap")
        _refuse(given, ("vni_header", "gbp", "header"), "--outer")
        found = outer_datagram(packet)
        return {
            "datagram": found.payload.hex(),
            "source": found.source if source is None else str(source),
            "ecn": found.ecn if ecn is None else ecn,
        }
    if packet is None:
        frame = build_frame(FrameFields(**{name: given[name] for name in _FIELDS}))
    else:
        frame = inner_frame(packet)
        if source is None and is_vxlan(frame):
            click.echo(
                "pyvtep: note: this is a VXLAN datagram, traced as a frame of a guest; add --outer "
                "to trace its reception",
                err=True,
            )
    if source is None:
        _refuse(given, ("vni_header", "gbp", "header", "outer_ecn"), "a frame from the TAP: --from")
        return {"frame": frame.hex()}
    return {"frame": frame.hex(), "source": str(source), "header": _header(given), "ecn": ecn}


def _header(given: dict[str, Any]) -> str | None:
    """Return the VXLAN header in hexadecimal; None for that of the segment."""
    if given["header"] is not None:
        _refuse(given, ("vni_header", "gbp"), "--header")
        return parse_hex(given["header"]).hex()
    if given["vni_header"] is None:
        if given["gbp"] is not None:
            raise ConfigError("--gbp: needs --vni-header, too")
        return None
    return vxlan.pack(given["vni_header"], given["gbp"] or 0).hex()


def _packet(given: dict[str, Any]) -> FilePacket | None:
    """Return the packet that --hex or --pcap names; None without them."""
    if given["hex_"] is None and given["pcap"] is None:
        return None
    option = "--hex" if given["hex_"] is not None else "--pcap"
    _refuse(given, (*_FIELDS, *(("pcap",) if option == "--hex" else ())), option)
    if option == "--hex":
        text = sys.stdin.read() if given["hex_"] == "-" else given["hex_"]
        octets = parse_hex(text)
        return FilePacket(octets, _ETHERNET, len(octets))
    return _of_file(given["pcap"])


def _of_file(name: str) -> FilePacket:
    path, number = Path(name), 1
    before, _, after = name.rpartition(":")
    if before and after.isdecimal() and not path.exists():
        path, number = Path(before), int(after)
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_MAX)
    except OSError as error:
        raise VtepError(f"--pcap {path}: cannot be read: {error.strerror}") from None
    try:
        return read_packet(data, number)
    except ConfigError as error:
        raise ConfigError(f"--pcap {path}: {error}") from None


def _follow(
    vtep: Client,
    params: dict[str, Any],
    count: int,
    expression: str | None,
    *,
    as_json: bool,
    verbose: bool,
) -> list[TraceResult]:
    """Trace real frames until there are enough, or until the user interrupts it."""
    results: list[TraceResult] = []
    with suppress(KeyboardInterrupt):
        while len(results) < count:
            left = count - len(results)
            for result in vtep.call("trace.live", **params, count=left, filter=expression):
                if results and not as_json:
                    click.echo()
                _show(vtep, result, as_json=as_json, verbose=verbose)
                sys.stdout.flush()
                results.append(result)
    return results


# --- text -----------------------------------------------------------------------------------------


def _show(vtep: Client, result: TraceResult, *, as_json: bool, verbose: bool) -> None:
    if as_json:
        client_command.print_json(result)
        return
    for line in _lines(result, verbose=verbose):
        click.echo(line)
    for drop in result["drops"]:
        click.echo(f"  {'remedy':{_STAGE_WIDTH}}{_remedy(vtep, result, drop)}")


def _lines(result: TraceResult, *, verbose: bool) -> Iterator[str]:
    where = "from the TAP" if result["direction"] == "transmit" else "from the underlay"
    yield f"vni {result['vni']} dev {result['dev']}, {where}: {result['summary']}"
    indent = " " * (2 + _STAGE_WIDTH)
    for step in result["steps"]:
        yield f"  {step['stage']:{_STAGE_WIDTH}}{step['decision']}"
        if step["rule"]:
            yield f"{indent}[{step['rule']}]"
    if verbose:
        for each in result["sent"]:
            for datagram in each["datagrams"]:
                yield f"  {'datagram':{_STAGE_WIDTH}}to {each['remote']}: {datagram}"
        for written in result["written"]:
            yield f"  {'frame':{_STAGE_WIDTH}}to {written['dev']}: {written['frame']}"
    if result["counters"]:
        grown = ", ".join(f"{name} +{count}" for name, count in result["counters"].items())
        yield f"  {'counters':{_STAGE_WIDTH}}{grown}"
    yield f"  {'fast path':{_STAGE_WIDTH}}{result['fast_path']}"
    yield f"  => {_conclusion(result)}"


def _conclusion(result: TraceResult) -> str:
    outcome = result["outcome"]
    if outcome == "forwarded":
        remotes = dict.fromkeys(map(_destination, result["sent"]))
        return f"forwarded to {', '.join(remotes)}"
    if outcome == "delivered":
        return f"delivered to {', '.join({each['dev']: None for each in result['written']})}"
    if outcome == "answered":
        return "answered by this VTEP, and not forwarded"
    return f"dropped: {', '.join({drop['reason']: None for drop in result['drops']}) or 'nothing'}"


def _destination(sent: TraceSent) -> str:
    return f"{sent['remote']} (VNI {sent['vni']})"


def _remedy(vtep: Client, result: TraceResult, drop: TraceDrop) -> str:
    """Return what to do about a drop, in one line."""
    from vtep.doctor.advice import advice  # noqa: PLC0415  needed for drops only

    segments = vtep.status(vni=result["vni"])["segments"]
    recent: RecentDrop = {
        "reason": drop["reason"],
        "meaning": drop["meaning"],
        "count": drop["count"],
        "age": 0.0,
        "last_source": drop["source"],
        "detail": None,
    }
    return advice(recent, segments[0] if segments else None)
