"""Checks of MACs that are held and of loops, as they are at the moment."""

from collections.abc import Iterator

from vtep.doctor.facts import SegmentFacts
from vtep.doctor.finding import Finding, warning

_NAMES_MAX = 4
"""MACs that a finding names."""


def check(segment: SegmentFacts) -> Iterator[Finding]:
    """Yield findings about loops and held MACs of a segment."""
    bridge = segment.bridge.name if segment.bridge is not None else "the bridge"
    for each in segment.loops:
        yield warning(
            segment.tap,
            f"a loop leads through {each.host}: flooding with it is stopped for another "
            f"{each.seconds:.0f} s",
            f"{segment.tap} reaches {each.host} by another path, too. If that is still so then, "
            "flooding is stopped again.",
            f"remove the other path (bridge link show lists the ports of {bridge}), or run STP on "
            "the bridges at both ends: see docs/loops.md",
        )
    if segment.held:
        at = ", ".join(f"{each.mac} at {each.remote}" for each in segment.held[:_NAMES_MAX])
        more = f" and {len(segment.held) - _NAMES_MAX} more" * (len(segment.held) > _NAMES_MAX)
        where = f" --vni {segment.vni}"
        if segment.socket is not None:
            where += f" --socket {segment.socket}"
        yield warning(
            segment.tap,
            f"MACs are held on {segment.tap}, as they move too often: {at}{more}",
            "Frames from them that arrive from another remote are dropped (inner_source_held): two "
            f"hosts have the same MAC, or there is a loop. All are released by: "
            f"pyvtep fdb flush held{where}",
            "give one of the hosts another address, or remove the loop (docs/loops.md); then "
            f"release it: pyvtep fdb del {segment.held[0].mac}{where}",
        )
