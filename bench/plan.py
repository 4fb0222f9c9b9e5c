"""The plan of a run: which subjects carry which workloads over which underlay.

All combinations together take hours. The plan has those that a target, a table or a claim of the
documentation needs, in some 35 minutes for five rounds on two CPUs.
"""

from collections.abc import Collection

from attrs import frozen

from bench.subjects import SUBJECTS, Subject
from bench.underlay import NIC, NOGRO, UNDERLAYS, VETH, Underlay
from bench.workloads import WORKLOADS

_OURS = ("kernel", "pyvtep-fast", "pyvtep-slow")
"""The comparison that the targets are about."""

_MIXED = ("from-kernel", "to-kernel")
_RIVALS = ("ovs", "tinc", "wireguard-go", "vdeplug")

_ALONE = tuple(name for name in WORKLOADS if name != "observed")

_TCP = ("tcp1", "tcp4", "tcp-both")

_PLAN = {
    (underlay.name, subject): frozenset(workloads)
    for underlay, subjects, workloads in (
        (NIC, _OURS, _ALONE),
        (NIC, ("observed",), ("observed",)),
        (NIC, _MIXED, ("tcp1", "rtt")),
        # No rival uses an offload of the underlay for its own datagrams.
        (NIC, _RIVALS, ("tcp1", "rtt", "udp1400", "udp64")),
        (NIC, ("ovs",), ("tcp1", "rtt", "udp1400", "udp64", "udp64x64")),
        (NOGRO, _OURS, (*_TCP, "udp64", "udp64x64")),
        (VETH, _OURS, (*_TCP, "tcp-reverse", "rtt", "udp64")),
        (VETH, _RIVALS, ("tcp1",)),
    )
    for subject in subjects
}
"""The names of the workloads by underlay and subject."""


@frozen
class Case:
    """A subject over an underlay, and the names of the workloads that it carries."""

    underlay: Underlay
    subject: Subject
    workloads: tuple[str, ...]


def plan(
    modes: Collection[str] | None = None,
    subjects: Collection[str] | None = None,
    workloads: Collection[str] | None = None,
) -> list[Case]:
    """Return the cases of a round in their order; None stands for the choice of the plan.

    Named workloads are measured in every case. Together with named modes, subjects are measured in
    those modes, even if the plan does not have them there.
    """
    cases = []
    # The subjects of one underlay are neighbours: their ratios are taken within a round.
    for mode, underlay in UNDERLAYS.items():
        for name, subject in SUBJECTS.items():
            planned = _PLAN.get((mode, name), frozenset())
            explicit = modes is not None and subjects is not None
            if (
                (modes is not None and mode not in modes)
                or (subjects is not None and name not in subjects)
                or not (planned or explicit)
            ):
                continue
            wanted = workloads or planned or WORKLOADS
            cases.append(
                Case(underlay, subject, tuple(each for each in WORKLOADS if each in wanted))
            )
    return cases
