"""Local MACs and addresses that bridges report, and changes of bridge entries. No I/O."""

from collections.abc import Mapping
from typing import Protocol

from attrs import field, frozen

from vtep.wire.address import Address


@frozen
class TapPlace:
    """The TAP of an EVPN VNI by name, and the bridge that it is to be a port of, if any.

    `gateways` are the addresses of `--anycast-gateway`. The MAC of a device of this host that has
    one is reported as that of a gateway.
    """

    tap: str
    bridge: str | None = None
    gateways: frozenset[Address] = frozenset()


@frozen
class BridgeChange:
    """An entry of a remote MAC on the bridge port of the TAP, to be written or deleted.

    `is_present` is False to delete it. A `sticky` entry is not replaced by a frame of a local host
    (NTF_STICKY).
    """

    mac: bytes
    is_present: bool = True
    sticky: bool = False


@frozen
class LocalHost:
    """The addresses and MACs of this host that no remote VTEP or host has.

    Link-local addresses are not among them.
    """

    addresses: frozenset[Address] = frozenset()
    broadcasts: frozenset[Address] = frozenset()
    """The directed broadcast addresses of its subnets."""
    tap_macs: Mapping[int, bytes] = field(factory=dict)
    """The MACs of TAPs on bridges by VNI. Those of the host itself are local MACs."""

    unusable: frozenset[Address] = field(init=False, eq=False)
    """Next hops that are unusable: the addresses and the broadcast addresses."""

    @unusable.default
    def _unusable(self) -> frozenset[Address]:
        return self.addresses | self.broadcasts


class LocalEvents(Protocol):
    """The consumer of what `BridgeWatch` finds. MACs are 6 octets.

    An entry is reported again if one of its properties has changed. A report of what is known
    already, or a removal of what is not known, never occurs.

    The MACs of the host itself are `own`: those of the bridge and of macvlan devices on it, or of a
    TAP that is no port of a bridge. Entries that a user has made are `static`.
    """

    def mac_added(self, vni: int, mac: bytes, *, static: bool, gateway: bool, own: bool) -> None:
        """Add a MAC behind a port of the bridge other than the TAP, or one of the host itself."""

    def mac_removed(self, vni: int, mac: bytes) -> None:
        """Remove a local MAC: it has aged out, was deleted, or is reachable via the TAP now."""

    def neighbour_added(self, vni: int, ip: Address, mac: bytes, *, router: bool) -> None:
        """Add an address, or replace its MAC, which need not be local.

        The addresses of the host itself are included. `router` concerns IPv6 (RFC 4861).
        """

    def neighbour_removed(self, vni: int, ip: Address) -> None:
        """Remove an IP address."""

    def host_changed(self, host: LocalHost) -> None:
        """Note addresses and MACs of this host, at the start and after each change."""

    def synced(self, vni: int) -> None:
        """Note that all local entries of a VNI have been reported, at the start or after a loss."""

    def segment_lost(self, vni: int) -> None:
        """Note that the TAP is gone. Its MACs and addresses have been reported as removed."""
