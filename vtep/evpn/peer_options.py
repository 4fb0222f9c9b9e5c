"""The settings on which the session with one neighbour depends. No I/O."""

from collections.abc import Iterable
from ipaddress import IPv4Address

from attrs import frozen

from vtep.config.evpn import EvpnSettings
from vtep.config.evpn_neighbors import Neighbor
from vtep.wire.address import Address


@frozen(kw_only=True)
class PeerOptions:
    """All settings on which a session depends: it is reset if they change."""

    asn: int
    neighbor: Neighbor
    password: str | None
    hold_time: int
    router_id: IPv4Address | None
    local: Address | None
    """The address to connect from; None for that which the kernel chooses."""

    @classmethod
    def of(
        cls, settings: EvpnSettings, neighbor: Neighbor, local_addresses: Iterable[Address]
    ) -> "PeerOptions":
        """Return the options of a neighbour.

        It is connected to from its own option `local`, else from the first of `local_addresses`
        that has its version, but for link-local neighbours.
        """
        local = neighbor.local
        if local is None and not neighbor.address.is_link_local:
            version = neighbor.address.version
            local = next((each for each in local_addresses if each.version == version), None)
        return cls(
            asn=settings.asn,
            neighbor=neighbor,
            password=neighbor.password or settings.password,
            hold_time=settings.hold_time,
            router_id=settings.router_id,
            local=local,
        )
