"""The sum over the hosts of each VNI that are not configured, which only grows. No I/O.

Such hosts come and go: with a label for each, any sender of datagrams would make series. Their
plain sum would shrink when one is forgotten or becomes a remote, which Prometheus takes for a
restart, with all frames sent again. So the increments between two statuses are summed.
"""

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

from vtep.control.schema import RemoteStatus, RemoteTraffic, Status
from vtep.exporter.metric import OtherTraffic

_Host: TypeAlias = tuple[int, str]
"""A host of a VNI."""


class OtherHosts:
    """The sums, which begin with zero at the first status."""

    def __init__(self) -> None:
        self._sums: dict[int, OtherTraffic] = {}
        self._last: dict[_Host, RemoteTraffic] = {}
        self._started: float | None = None

    def update(self, status: Status) -> Mapping[int, OtherTraffic]:
        """Add the traffic since the last status. Returns: the sums by VNI."""
        is_first = self._started is None
        # After a restart, all counters have begun with zero again.
        last = self._last if self._started == status["started"] else {}
        self._started, self._last = status["started"], {}
        sums: dict[int, OtherTraffic] = {}
        for segment in status["segments"]:
            vni = segment["vni"]
            total = self._sums.get(vni) or _NOTHING.copy()
            total["fdb_entries"] = 0
            for remote in segment["remotes"]:
                self._last[vni, remote["remote"]] = remote
                if not remote["is_configured"]:
                    before = remote if is_first else last.get((vni, remote["remote"]))
                    _add(total, remote, before or _NOTHING)
            sums[vni] = total
        self._sums = sums
        return {vni: total.copy() for vni, total in sums.items()}


_NOTHING: Final[OtherTraffic] = {
    "rx_frames": 0,
    "rx_bytes": 0,
    "tx_frames": 0,
    "tx_bytes": 0,
    "fdb_entries": 0,
}


_Counter: TypeAlias = Literal["rx_frames", "rx_bytes", "tx_frames", "tx_bytes"]
_COUNTERS: Final[tuple[_Counter, ...]] = ("rx_frames", "rx_bytes", "tx_frames", "tx_bytes")


def _add(total: OtherTraffic, now: RemoteStatus, before: RemoteTraffic) -> None:
    """Add the traffic of a host since `before`."""
    # A host that was forgotten and is known again counts from zero.
    is_same = all(now[name] >= before[name] for name in _COUNTERS)
    base = before if is_same else _NOTHING
    for name in _COUNTERS:
        total[name] += now[name] - base[name]
    total["fdb_entries"] += now["fdb_entries"]
