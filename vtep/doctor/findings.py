"""The findings of an examination, derived from its facts alone by the checks."""

from collections.abc import Iterator

from vtep.counters import Drop
from vtep.doctor.checks import (
    addresses,
    drops,
    duplicates,
    evpn_routes,
    evpn_sessions,
    host,
    remotes,
    segments,
)
from vtep.doctor.facts import Facts
from vtep.doctor.finding import Finding, Severity


def findings(facts: Facts) -> list[Finding]:
    """Return all findings, the worst first, and each once."""
    order = list(Severity)
    return sorted(dict.fromkeys(_check(facts)), key=lambda finding: order.index(finding.severity))


def _check(facts: Facts) -> Iterator[Finding]:
    """Yield the findings of all checks.

    Sorting is stable, so within one severity the causes come first: a fault of this host or a
    segment may be the reason for one of a remote, and that for the drops.
    """
    yield from host.check(facts)
    for segment in facts.segments:
        yield from segments.check(segment, facts)
        yield from duplicates.check(segment)
    for evpn in facts.evpn:
        yield from evpn_sessions.check(evpn)
        yield from evpn_routes.check(evpn, facts.segments)
    for remote in remotes.share_signs_of_life(facts.remotes):
        yield from remotes.check(remote, facts)
    merged, processes = drops.merge(facts.segments, facts.drops)
    for segment in merged:
        yield from drops.of_segment(segment, addresses.remotes_of(segment, facts))
    # The finding about this host has the same counter, and names the devices, too.
    reported = (Drop.UDP_CHECKSUM,) if facts.host.checksum_errors_increase else ()
    for process in processes:
        yield from drops.of_process(process, reported=reported)
