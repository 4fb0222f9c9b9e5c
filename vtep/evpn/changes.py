"""Changes that follow from EVPN routes and local entries: values that `Tables.take` returns."""

from typing import Any, Literal, NamedTuple

from attrs import field, mutable

from vtep.evpn.announcement import Announcement
from vtep.evpn.local_entries import BridgeChange
from vtep.wire.address import Address
from vtep.wire.bgp.evpn import Route
from vtep.wire.ethernet import MAC_ZERO, format_mac


class EvpnFdbChange(NamedTuple):
    """A change of an FDB entry of a VNI, for `fdb.batch`.

    `append` and `del` of the all-zero MAC add and remove a destination of flooded frames. `replace`
    gives a MAC its only remote VTEP of EVPN; `del` removes it. `dst_vni` is None for the VNI of
    the segment. The `del` of a MAC removes whatever EVPN has given, as the daemon has another VTEP
    if it has refused a change in between.
    """

    verb: Literal["append", "replace", "del"]
    mac: bytes
    vtep: Address
    dst_vni: int | None = None
    sequence: int | None = None
    """The mobility sequence number (RFC 7432, section 7.7); None in a `del`, and for flooding."""
    sticky: bool = False

    def params(self) -> dict[str, Any]:
        """Return the change as an object of the control socket."""
        params: dict[str, Any] = {
            "verb": self.verb,
            "mac": format_mac(self.mac),
            "extern_learn": True,
        }
        if self.verb == "del" and self.mac != MAC_ZERO:
            return params
        params["dst"] = str(self.vtep)
        if self.dst_vni is not None:
            params["dst_vni"] = self.dst_vni
        if self.verb == "replace":
            params["sequence"] = self.sequence
            if self.sticky:
                params["sticky"] = True
        return params


class EvpnNeighbourChange(NamedTuple):
    """A change of a neighbour of a VNI, for `neigh.batch`: it answers ARP and ND requests."""

    verb: Literal["replace", "del"]
    ip: Address
    mac: bytes
    router: bool = False

    def params(self) -> dict[str, Any]:
        """Return the change as an object of the control socket."""
        params: dict[str, Any] = {"verb": self.verb, "ip": str(self.ip), "extern_learn": True}
        if self.verb == "replace":
            params["mac"] = format_mac(self.mac)
            params["router"] = self.router
        return params


@mutable
class Changes:
    """All changes since the last call of `Tables.take`, by VNI where they concern one.

    No two changes of a list concern the same entry or route. `log` has lines for the operator.
    """

    fdb: dict[int, list[EvpnFdbChange]] = field(factory=dict)
    neighbours: dict[int, list[EvpnNeighbourChange]] = field(factory=dict)
    bridge: dict[int, list[BridgeChange]] = field(factory=dict)
    announce: list[Announcement] = field(factory=list)
    withdraw: list[Route] = field(factory=list)
    log: list[str] = field(factory=list)

    def __bool__(self) -> bool:
        """Return True if there is a change or a line."""
        return bool(
            self.fdb or self.neighbours or self.bridge or self.announce or self.withdraw or self.log
        )
