"""Metrics: what one is, and the snapshot that its values are taken from. No I/O."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Literal, TypeAlias

from attrs import field, frozen

from vtep.control.schema import RemoteTraffic, Status

NO_VNI: Final = "none"
"""The label `vni` of what belongs to no VNI, such as datagrams with an unknown one."""

Values: TypeAlias = Iterator[tuple[tuple[str, ...], float]]
"""The values of a metric, each with the values of its labels."""


class OtherTraffic(RemoteTraffic):
    """Traffic and FDB entries of the hosts of a VNI that are not configured, together."""

    fdb_entries: int


@frozen
class Snapshot:
    """A status, and the sum over the other hosts of each VNI."""

    status: Status
    others: Mapping[int, OtherTraffic]


@frozen(eq=False)
class Metric:
    """A metric, and how its values are taken from a snapshot."""

    name: str
    """As it is exposed, with its suffix."""
    labels: tuple[str, ...]
    help: str
    values: Callable[[Snapshot], Values] = field(repr=False)

    @property
    def kind(self) -> Literal["counter", "info", "gauge"]:
        """The type, which the suffix tells."""
        if self.name.endswith("_total"):
            return "counter"
        return "info" if self.name.endswith("_info") else "gauge"


def states(known: Iterable[str], actual: str) -> Iterator[tuple[str, float]]:
    """Yield each state with 1 if it is the actual one, else with 0.

    A daemon of a newer version may have a state that is not known here.
    """
    for state in dict.fromkeys((*known, actual)):
        yield state, float(state == actual)
