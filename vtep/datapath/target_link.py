"""The link of a TAP to the receive table of the fast path."""

from typing import TYPE_CHECKING

from vtep.fastpath.layout import TARGET_FD, TARGET_LIMITED, TARGET_SEGMENT_MAX

if TYPE_CHECKING:
    from vtep.datapath.ingress import TapTarget
    from vtep.fastpath.table import ReceiveTable


class TargetLink:
    """The link of a TAP to its row of `targets`, and to all that the rows about it depend on."""

    def __init__(self, table: "ReceiveTable", number: int, target: "TapTarget") -> None:
        self.number = number
        self.kick_egress = target.kick_egress
        self._table = table
        self._target = target
        self._columns = table.turn.targets[number]
        self._on_verdict_changed(None)
        target.segment.verdict_watchers.append(self._on_verdict_changed)
        target.sizing.watchers.append(self._on_packet_max_changed)
        target.tracker.watchers.append(self._on_tracker_changed)
        self._on_packet_max_changed(target.sizing.sizes.packet_max)
        self._on_tracker_changed(target.tracker.active)

    def close(self) -> None:
        """Remove all rows about the TAP."""
        target = self._target
        target.segment.verdict_watchers.remove(self._on_verdict_changed)
        target.sizing.watchers.remove(self._on_packet_max_changed)
        target.tracker.watchers.remove(self._on_tracker_changed)
        self._on_verdict_changed(None)
        self._table.close_target(self.number)

    def _on_verdict_changed(self, mac: bytes | None) -> None:
        segment = self._target.segment
        self._table.remove_verdicts(segment, mac)
        if mac is None:
            self._columns[TARGET_LIMITED] = segment.storm.limits_remotes

    def _on_packet_max_changed(self, octets: int) -> None:
        self._columns[TARGET_SEGMENT_MAX] = octets

    def _on_tracker_changed(self, active: bool) -> None:
        # An active tracker must see every frame, so all take the slow path.
        self._columns[TARGET_FD] = -1 if active else self._target.tap.fd
