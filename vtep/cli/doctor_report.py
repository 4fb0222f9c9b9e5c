"""The report of `pyvtep doctor`, as text and as JSON."""

import json
import statistics
from enum import Enum
from typing import Any

import attrs
import click

from vtep.doctor.facts import Facts, PathMtu, RemoteFacts, SegmentFacts
from vtep.doctor.finding import Finding, Severity, has_faults

_COLOURS = {Severity.PROBLEM: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


def format_json(facts: Facts, found: list[Finding]) -> str:
    """Return facts and findings as JSON."""
    return json.dumps({"findings": _plain(found), "facts": _plain(facts)}, indent=2)


def _plain(value: Any) -> Any:
    """Return facts and findings as values for JSON."""
    if attrs.has(type(value)):
        return {name: _plain(each) for name, each in attrs.asdict(value, recurse=False).items()}
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, frozenset):
        return sorted(value)
    return value.name.lower() if isinstance(value, Enum) else value


def show(facts: Facts, found: list[Finding]) -> None:
    """Print facts and findings, without wrapping lines: commands in them are to be copied."""
    for segment in facts.segments:
        click.echo(_format_segment(segment))
    for remote in facts.remotes:
        click.echo(_format_remote(remote))
    for finding in found:
        severity = click.style(finding.severity.upper(), fg=_COLOURS[finding.severity], bold=True)
        click.echo(f"\n{severity}: {finding.title}")
        if finding.explanation:
            click.echo(f"  {finding.explanation}")
        if finding.fix:
            click.echo(f"  To fix it: {finding.fix}")
    if has_faults(found):
        return
    if any(finding.earlier for finding in found):
        click.echo("\nNo fault is present at the moment. The notes report earlier losses.")
    else:
        click.echo("\nNo fault was found, as far as can be seen from here.")


def _format_segment(segment: SegmentFacts) -> str:
    where = f"on bridge {segment.bridge.name}" if segment.bridge is not None else "on no bridge"
    addresses = ", ".join(segment.addresses) or "no address"
    offload = ",".join(sorted(segment.offload)) or "none"
    return (
        f"vni {segment.vni} on {segment.tap}: {'up' if segment.up else 'down'}, mtu {segment.mtu}, "
        f"{where}, {addresses}, offload {offload}, fast path {segment.fast_path}"
    )


def _format_remote(remote: RemoteFacts) -> str:
    there = remote.there
    parts = [f"{remote.host} port {remote.port}"]
    if remote.vni is not None:
        parts[0] += f" vni {remote.vni}"
    if remote.dev is not None:
        parts[0] += f" over {remote.dev}"
    encryption = [remote.encryption.value] if remote.encryption is not None else []
    if not there.delays:
        return f"{parts[0]}: {', '.join(('no answer', *encryption))}"
    delays = [1000 * delay for delay in there.delays]
    lost = there.sent - len(delays)
    parts += [
        f"answers in {statistics.median(delays):.2f} ms ({min(delays):.2f} to {max(delays):.2f})",
        f"{lost} of {there.sent} lost",
        f"path mtu {_size(remote.mtu_there)} there, {_size(remote.mtu_back)} back",
        *encryption,
    ]
    return f"{parts[0]}: {', '.join(parts[1:])}"


def _size(path: PathMtu | None) -> str:
    return str(path.size) if path is not None and path.size is not None else "unknown"
