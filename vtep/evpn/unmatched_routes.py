"""Routes whose route targets no VNI imports, and the target to import of each VTEP. No I/O."""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from vtep.control.evpn_schema import EvpnUnmatched
from vtep.wire.address import Address
from vtep.wire.bgp.communities import RouteTarget


class UnmatchedGroup(NamedTuple):
    """Peer, VTEP, route targets and label that unmatched routes have in common."""

    peer: str
    vtep: Address | None
    route_targets: frozenset[RouteTarget]
    label: int | None


def unmatched(groups: Iterable[UnmatchedGroup], vnis: Collection[int]) -> list[EvpnUnmatched]:
    """Return the routes of each VTEP, given the VNIs of this host.

    Those with a VNI of this host in their label are an item for each VNI, and come first. The
    others of a VTEP are one item.

    A route target to import is one that routes of no other VNI have: otherwise the label of these
    would be taken as downstream-assigned, and the two segments be joined (RFC 8365, section 5.1.3).
    """
    groups = tuple(groups)
    labels = _labels_of_targets(groups)
    targets: dict[tuple[int | None, str, str], set[RouteTarget]] = {}
    labels_of: dict[tuple[int | None, str, str], set[int]] = {}
    for group in groups:
        label = group.label
        if label is None:  # A route of type 3 without a label: its targets may tell the VNI.
            known = set().union(*(labels[target] for target in group.route_targets))
            label = known.pop() if len(known) == 1 else None
        key = label if label in vnis else None, group.peer, str(group.vtep)
        targets.setdefault(key, set()).update(group.route_targets)
        labels_of.setdefault(key, set()).update(() if label is None else (label,))
    found: list[EvpnUnmatched] = []
    for key in sorted(targets, key=lambda key: (key[0] is None, *key[1:], key[0] or 0)):
        _, peer, vtep = key
        own = labels_of[key]
        usable = {each for each in targets[key] if len(own) <= 1 and labels[each] <= own}
        texts = sorted(target.text for target in usable)
        found.append(
            {
                "neighbor": peer,
                "vtep": vtep,
                "route_targets": [
                    *texts,
                    *sorted(target.text for target in targets[key] - usable),
                ],
                "import_target": texts[0] if texts else None,
                "vnis": sorted(own),
            }
        )
    return found


def _labels_of_targets(groups: Iterable[UnmatchedGroup]) -> dict[RouteTarget, set[int]]:
    labels: dict[RouteTarget, set[int]] = {}
    for group in groups:
        for target in group.route_targets:
            labels.setdefault(target, set()).update(() if group.label is None else (group.label,))
    return labels
