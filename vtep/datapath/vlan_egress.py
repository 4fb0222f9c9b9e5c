"""The egress data path of a VNI whose TAP is one VLAN of a trunk."""

from typing import TYPE_CHECKING, Any

from vtep.datapath.egress import Egress
from vtep.forwarding.segment import Segment
from vtep.io.interfaces import TapDevice
from vtep.io.vlan_trunk import VlanTap

if TYPE_CHECKING:
    from vtep.fastpath.table import FastPath


def make_egress(tap: TapDevice, segment: Segment, *parts: Any) -> Egress:
    """Return the egress data path of a VNI, by its TAP; the arguments are those of `Egress`."""
    if isinstance(tap, VlanTap):
        return VlanEgress(tap, segment, *parts)
    return Egress(tap, segment, *parts)


class VlanEgress(Egress):
    """An `Egress` that has its turns from a `VlanTrunk`, which several of them share.

    Only what starts and stops the reading differs: a frame takes the same path.
    """

    def __init__(self, tap: VlanTap, segment: Segment, *parts: Any) -> None:
        self._vlan_tap = tap
        super().__init__(tap, segment, *parts)
        tap.counters = segment.counters

    @property
    def is_waiting(self) -> bool:
        """True while datagrams wait for room in a send buffer, or frames in the queue."""
        return super().is_waiting or bool(self._vlan_tap.queue)

    def pause(self) -> None:
        """Leave all frames in the TAP until `resume`; what was read from it is sent."""
        # Not the turns of this VLAN: the trunk may have read some of its frames already.
        self._vlan_tap.trunk.pause()

    def resume(self) -> None:
        """Read the TAP again, in the running event loop."""
        self._vlan_tap.trunk.resume()

    def stop(self) -> None:
        """Stop reading, and discard frames in the queue and datagrams that wait for room."""
        super().stop()
        self._vlan_tap.end_reading()

    def use_fast_path(self, fast: "FastPath | None") -> None:
        """Do nothing: compiled turns read a descriptor, which a VLAN has none of its own of."""

    def _start_reading(self) -> None:
        self._vlan_tap.start_reading(self.readable)

    def _stop_reading(self) -> None:
        self._vlan_tap.stop_reading()
