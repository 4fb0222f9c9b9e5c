"""Next hops that a BGP neighbour has replaced by itself: nothing receives the frames. No I/O."""

from collections.abc import Iterable

from vtep.control.evpn_schema import EvpnReplacedNextHop
from vtep.evpn.rib import RibRoute
from vtep.evpn.segment_table import SegmentTable
from vtep.wire.address import Address


def replaced_next_hops(segments: Iterable[SegmentTable]) -> list[EvpnReplacedNextHop]:
    """Return the neighbours that are the next hop of routes of others, without being VTEPs.

    A spine does so by default in eBGP sessions (RFC 4271, section 5.1.3). The next hop of a type 3
    route shows it, since its endpoint is still that of the leaf. A neighbour with a type 3 route of
    its own is a VTEP of the VNI.
    """
    found: dict[str, tuple[set[Address], set[int]]] = {}
    for segment in segments:
        received = [each for routes in segment.floods.routes.values() for each in routes]
        announcers = {_announcer(each) for each in received}
        for each in received:
            peer, announcer, next_hop = each.shared.rib.peer, _announcer(each), each.shared.vtep
            if (
                str(next_hop) == peer
                and announcer is not None
                and next_hop not in announcers
                and each.is_usable
            ):
                vteps, vnis = found.setdefault(peer, (set(), set()))
                vteps.add(announcer)
                vnis.add(segment.vni)
    return [
        {
            "neighbor": peer,
            "vteps": [str(each) for each in sorted(vteps, key=lambda ip: (ip.version, int(ip)))],
            "vnis": sorted(vnis),
        }
        for peer, (vteps, vnis) in sorted(found.items())
    ]


def _announcer(received: RibRoute) -> Address | None:
    """Return the VTEP that has made a type 3 route, whatever its next hop is."""
    pmsi = received.shared.attributes.pmsi
    if pmsi is not None and pmsi.endpoint is not None and not pmsi.endpoint.is_unspecified:
        return received.vtep
    return received.ip
