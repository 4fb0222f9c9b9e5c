"""`pyvtep evpn`: the BGP sessions of a running pyvtep, and the routes that came by them."""

import difflib
import re
import time
from collections.abc import Collection, Mapping
from typing import Any, cast

import click

from vtep.cli import client_command, commands, evpn_text
from vtep.cli.evpn_speaker import speaker as speaker_command
from vtep.cli.grammar import Grammar
from vtep.control import Client, socket_files
from vtep.control.client import DisconnectedError
from vtep.control.evpn_schema import EVPN_VIEWS, EvpnSummary
from vtep.errors import ConfigError, VtepError, shown

_MAC = re.compile(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}|([0-9a-fA-F]{4}\.){2}[0-9a-fA-F]{4}")
"""A MAC as Linux and FRR print it, with dashes, or in three groups as switches print it."""

_SYNONYMS = {
    "neighbors": "sessions",
    "neighbours": "sessions",
    "neighbor": "sessions",
    "neighbour": "sessions",
    "peers": "sessions",
    "peer": "sessions",
    "bgp": "sessions",
    "route": "routes",
    "rib": "routes",
    "mac": "macs",
    "fdb": "macs",
    "arp-cache": "macs",
    "vtep": "vteps",
    "remotes": "vteps",
    "mobility": "moves",
    "move": "moves",
    "duplicate": "duplicates",
    "dup-addr": "duplicates",
}
"""Words of other programs, with the view of the same meaning here."""

_ROUTE_TYPES = {"macip": "2", "mac-ip": "2", "multicast": "3", "imet": "3", "inclusive": "3"}
"""Names of route types in FRR and elsewhere."""

_SHOW = Grammar(
    "mac",
    {"vni": "vni", "type": "type"},
    {view: ("what", view) for view in EVPN_VIEWS},
)
_SHOW_METAVAR = "[sessions|routes|macs|vteps|moves|duplicates] [MAC] [vni N] [type N]"

_CLEAR = Grammar("mac", {"vni": "vni"}, {"duplicate": ("duplicate", True)})
_CLEAR_METAVAR = "duplicate MAC [vni N]"

_START_S = 30.0
"""Seconds for a speaker to start, on a loaded host."""

_POLL_S = 0.05

_WITH_MAC = ("routes", "macs", "moves", "duplicates")
"""The views that a MAC selects from."""


def _check_show(arguments: dict[str, Any]) -> None:
    """Check the words of `evpn show`, and normalize them. Raises: ConfigError."""
    params = arguments["params"]
    _check_mac(params, EVPN_VIEWS)
    if "mac" in params:
        params.setdefault("what", "macs")
    what = params.setdefault("what", "routes" if "type" in params else "summary")
    kind = params.get("type")
    if kind is not None:
        kind = _ROUTE_TYPES.get(kind, kind)
        if not re.fullmatch(r"[0-9]{1,3}", kind) or not 1 <= int(kind) <= 255:
            raise ConfigError(
                f"type {shown(kind)}: is not a route type: 2 (MAC, MAC+IP), 3 (multicast) or "
                "another number up to 255"
            )
        params["type"] = int(kind)
    if "type" in params and what != "routes":
        raise ConfigError(f"type: selects routes; write: pyvtep evpn show routes type {kind}")
    if "mac" in params and what not in _WITH_MAC:
        raise ConfigError(
            f"{params['mac']}: {what} have no MAC; write: pyvtep evpn show macs {params['mac']}"
        )
    if "vni" in params and what == "sessions":
        raise ConfigError(
            "vni: a session is for all VNIs; write: pyvtep evpn show, or pyvtep evpn show vteps "
            f"vni {params['vni']}"
        )


def _check_clear(arguments: dict[str, Any]) -> None:
    """Check the words of `evpn clear`. Raises: ConfigError."""
    _check_mac(arguments["params"], ("duplicate",))


def _check_mac(params: dict[str, Any], words: Collection[str]) -> None:
    """Check the VNI and the MAC among parameters, and write the MAC as Linux does.

    Raises: ConfigError, with the one of `words` that was probably meant.
    """
    vni = params.get("vni")
    if vni is not None and not (re.fullmatch(r"[0-9]{1,8}", vni) and int(vni) < 1 << 24):
        raise ConfigError(f"vni {shown(vni)}: is not a VNI: a number from 0 to 16777215")
    mac = params.get("mac")
    if mac is None:
        return
    if not _MAC.fullmatch(mac):
        wanted = _SYNONYMS.get(mac.lower())
        if wanted is None and mac.isdecimal():
            raise ConfigError(f"{mac}: is not expected here; did you mean: vni {mac}?")
        close = difflib.get_close_matches(mac.lower(), words, 1)
        if wanted is not None and wanted in words:
            close = [wanted]
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(
            f"{shown(mac)}: is neither a MAC nor a word that is known here; {hint}known are: "
            f"{' '.join(words)} vni{' type' if 'routes' in words else ''}"
        )
    digits = re.sub(r"[:.-]", "", mac.lower())
    params["mac"] = ":".join(digits[at : at + 2] for at in range(0, 12, 2))


@click.group(cls=commands.TableGroup)
def evpn() -> None:
    """Show what was learned by BGP EVPN: sessions, routes, MACs and VTEPs."""


@evpn.command()
@client_command.words(_SHOW, _SHOW_METAVAR)
@client_command.with_client(shows=True, every=True, check=_check_show)
def show(vteps: list[Client], params: dict[str, Any], *, as_json: bool) -> None:
    """Show the sessions, VNIs, VTEPs, moves and duplicates; or one of these, or routes or MACs.

    \b
        pyvtep evpn show                          what there is, and what is wrong
        pyvtep evpn show routes type 3            the VTEPs that want flooded frames
        pyvtep evpn show macs vni 100             where MACs are, as "show evpn mac" of FRR
        pyvtep evpn show 02:00:00:00:00:01        where this MAC is

    A MAC may also be written with dashes, or as 0200.0000.0001.
    """
    what = params["what"]
    if what == "summary":
        _show_summaries(vteps, params, as_json=as_json)
        return
    found = []
    for vtep in vteps:
        with speaker(vtep) as asked:
            found += asked.call("evpn.show", **_numbers(params))
    if as_json:
        client_command.print_json(found)
    else:
        client_command.print_table(*evpn_text.table(what, found))


def _numbers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters with the VNI as a number."""
    return {name: int(value) if name == "vni" else value for name, value in params.items()}


def speaker(vtep: Client) -> Client:
    """Return a client of the EVPN speaker of a pyvtep. Raises: VtepError, with what to do."""
    path = socket_files.speaker_socket(vtep.path)
    try:
        return Client(path)
    except DisconnectedError as error:
        evpn = vtep.status()["evpn"]
        if evpn is None:
            raise VtepError(
                "this pyvtep has no EVPN; start it with --asn and --evpn-neighbor, or add [evpn] "
                "to its configuration file"
            ) from error
        state = evpn["speaker"]["state"]
        if state == "starting":
            raise VtepError("the EVPN speaker is starting; ask again in a second") from error
        reason = evpn["speaker"]["last_error"]
        raise VtepError(
            f"the EVPN speaker does not answer ({state}{f': {reason}' if reason else ''}); the log "
            "of pyvtep has more, and pyvtep evpn restart starts it again"
        ) from error


def _show_summaries(vteps: list[Client], params: Mapping[str, Any], *, as_json: bool) -> None:
    found = []
    for vtep in vteps:
        with speaker(vtep) as asked:
            summary: EvpnSummary = asked.call("evpn.show", **_numbers(params))
        status = vtep.status()["evpn"]
        found.append({"speaker": None if status is None else status["speaker"], **summary})
    if as_json:
        client_command.print_json(found[0] if len(found) == 1 else found)
        return
    for number, each in enumerate(found):
        if number:
            click.echo("")
        _print_summary(each)


def _print_summary(summary: Mapping[str, Any]) -> None:
    """Print the summary of one pyvtep: a line about the speaker, tables, and notes."""
    if summary["speaker"] is not None:
        click.echo(evpn_text.describe_speaker(summary["speaker"]))
    for what in ("sessions", "segments", "vteps", "moves", "duplicates"):
        rows = summary[what]
        if not rows and what in ("moves", "duplicates"):
            continue
        click.echo(f"\n{evpn_text.TITLES[what]}:")
        client_command.print_table(*evpn_text.table(what, rows[: evpn_text.SUMMARY_ROWS]))
        if len(rows) > evpn_text.SUMMARY_ROWS:
            more = len(rows) - evpn_text.SUMMARY_ROWS
            click.echo(f"and {more} more: pyvtep evpn show {what}")
    if notes := list(evpn_text.notes(cast("EvpnSummary", summary))):
        click.echo("")
    for line in notes:
        click.echo(line)


@evpn.command()
@client_command.words(_CLEAR, _CLEAR_METAVAR, ("duplicate", "mac"))
@client_command.with_client(shows=True, changes=True, check=_check_clear)
def clear(vtep: Client, params: dict[str, Any], *, as_json: bool) -> None:
    """Release a MAC that was found to be duplicate, once there is one host with it again."""
    wanted = {name: value for name, value in params.items() if name != "duplicate"}
    with speaker(vtep) as asked:
        count = asked.call("evpn.clear", **_numbers(wanted))["cleared"]
    if as_json:
        client_command.print_json({"cleared": count})
    else:
        where = f" in vni {params['vni']}" if "vni" in params else ""
        click.echo(
            f"{count} released"
            if count
            else f"{params['mac']} is no duplicate{where}; see: pyvtep evpn show duplicates"
        )


@evpn.command()
@client_command.with_client(segment=False, shows=True, changes=True)
def restart(vtep: Client, *, as_json: bool) -> None:
    """End the EVPN speaker and start it again, as after an upgrade.

    Entries of this host stay meanwhile. But neighbours withdraw its routes until the sessions are
    back, so that traffic from others to this host is lost for about a second.
    """
    answer = vtep.call("evpn.restart")
    path, deadline = socket_files.speaker_socket(vtep.path), time.monotonic() + _START_S
    while socket_files.listening_process(path) is None:
        if time.monotonic() > deadline:
            raise VtepError(
                f"the EVPN speaker, process {answer['pid']}, does not answer within {_START_S:g} "
                "seconds; the log of pyvtep has more"
            )
        time.sleep(_POLL_S)
    if as_json:
        client_command.print_json(answer)
    else:
        click.echo(f"EVPN speaker restarted, process {answer['pid']}")


evpn.add_command(speaker_command)
