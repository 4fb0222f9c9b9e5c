"""VTEPs of an EVPN fabric whose routes no VNI here takes, as an explanation of drops.

A route target that differs by mistake is the most frequent reason for which two VTEPs of a fabric
do not find each other: one of them sends, and the other one drops datagrams of an unknown source.
"""

from collections.abc import Iterable, Mapping

from vtep.counters import Drop, Reason

_TARGETS_MAX = 3
"""Route targets that a hint names."""


class UnmatchedVteps:
    """The VTEPs whose routes match no import, by the last report of the EVPN speaker."""

    def __init__(self) -> None:
        self._hints: Mapping[str, str] = {}

    def replace(self, found: Iterable[tuple[str, str, Iterable[str]]]) -> None:
        """Set the VTEPs: the address of each, the neighbour that says so, and its route targets."""
        neighbors: dict[str, str] = {}
        all_targets: dict[str, dict[str, None]] = {}
        for vtep, neighbor, targets in found:  # A VTEP is there for each neighbour and VNI.
            neighbors.setdefault(vtep, neighbor)
            all_targets.setdefault(vtep, {}).update(dict.fromkeys(targets))
        self._hints = {
            vtep: _describe(neighbor, all_targets[vtep]) for vtep, neighbor in neighbors.items()
        }

    def explain(self, reason: Reason, source: str | None) -> str | None:
        """Return what explains a drop of a datagram from a source, as a clause without subject.

        Returns: None if nothing here does.
        """
        return self._hints.get(source or "") if reason is Drop.SOURCE_UNKNOWN else None


def _describe(neighbor: str, targets: Iterable[str]) -> str:
    targets = tuple(targets)
    names = ", ".join(targets[:_TARGETS_MAX])
    if len(targets) > _TARGETS_MAX:
        names += f" and {len(targets) - _TARGETS_MAX} more"
    what = f"announces route targets {names}" if targets else "announces routes without a target"
    return f"{what} by way of {neighbor}, which no VNI here imports"
