"""Generators of BGP messages with EVPN routes, for property tests and fuzz targets."""

from ipaddress import IPv4Address, IPv6Address

from hypothesis import strategies as st

from vtep.wire.address import Address, check_unicast
from vtep.wire.bgp.attributes import INGRESS_REPLICATION, PathAttributes, Pmsi
from vtep.wire.bgp.capabilities import Capabilities, GracefulRestart
from vtep.wire.bgp.communities import RouteTarget
from vtep.wire.bgp.evpn import (
    NO_ESI,
    MacIpRoute,
    MulticastRoute,
    OtherRoute,
    RouteDistinguisher,
)
from vtep.wire.bgp.message import Open

OCTET = st.integers(0, 0xFF)
U16 = st.integers(0, 0xFFFF)
U24 = st.integers(0, 0xFF_FFFF)
U32 = st.integers(0, 0xFFFF_FFFF)
ADDRESSES: st.SearchStrategy[Address] = st.one_of(
    st.ip_addresses(v=4), st.integers(0, (1 << 128) - 1).map(IPv6Address)
)


def _is_next_hop(address: Address) -> bool:
    try:
        check_unicast(address)
    except ValueError:
        return False
    return True


NEXT_HOPS = ADDRESSES.filter(_is_next_hop)
ASNS = st.one_of(
    st.sampled_from([1, 23455, 64512, 65535, 65536, 4200000000, 0xFFFF_FFFF]),
    st.integers(1, 0xFFFF),
)
PATHS = st.builds(
    lambda path, times: tuple(path * times), st.lists(ASNS, max_size=5), st.sampled_from([1, 100])
)
DISTINGUISHERS = st.one_of(
    st.builds(RouteDistinguisher.of, st.ip_addresses(v=4), U16),
    st.binary(min_size=8, max_size=8).map(RouteDistinguisher),
)
ESIS = st.one_of(st.just(NO_ESI), st.binary(min_size=10, max_size=10))
MACS = st.binary(min_size=6, max_size=6)
MAC_IP_ROUTES = st.builds(
    MacIpRoute,
    rd=DISTINGUISHERS,
    esi=ESIS,
    ethernet_tag=U32,
    mac=MACS,
    ip=st.none() | ADDRESSES,
    label=U24,
    label2=st.none() | U24,
)
MULTICAST_ROUTES = st.builds(MulticastRoute, rd=DISTINGUISHERS, ethernet_tag=U32, ip=ADDRESSES)
OTHER_ROUTES = st.builds(
    OtherRoute, kind=OCTET.filter(lambda kind: kind not in (2, 3)), octets=st.binary(max_size=255)
)
ROUTES_IN_USE = st.one_of(MAC_IP_ROUTES, MULTICAST_ROUTES)
ROUTES = st.one_of(MAC_IP_ROUTES, MULTICAST_ROUTES, OTHER_ROUTES)

ROUTE_TARGETS = st.one_of(
    st.builds(RouteTarget.of, st.integers(0, 0xFFFF), U32),
    st.builds(RouteTarget.of, st.integers(0x1_0000, 0xFFFF_FFFF), U16),
    st.builds(lambda ip, n: RouteTarget.parse(f"{ip}:{n}"), st.ip_addresses(v=4), U16),
    st.builds(
        lambda ip, n: RouteTarget.parse(f"[{IPv6Address(ip)}]:{n}"),
        st.integers(0, (1 << 128) - 1),
        U16,
    ),
)
PMSIS = st.one_of(
    st.builds(
        Pmsi,
        flags=OCTET,
        tunnel_type=st.just(INGRESS_REPLICATION),
        label=U24,
        endpoint=ADDRESSES,
    ),
    st.builds(
        Pmsi,
        flags=OCTET,
        tunnel_type=OCTET.filter(lambda kind: kind != INGRESS_REPLICATION),
        label=U24,
        endpoint=st.none(),
    ),
)
ATTRIBUTES = st.builds(
    PathAttributes,
    next_hop=NEXT_HOPS,
    route_targets=st.frozensets(ROUTE_TARGETS, max_size=5),
    encapsulations=st.frozensets(U16, max_size=3),
    sequence=U32,
    sticky=st.booleans(),
    default_gateway=st.booleans(),
    router=st.booleans(),
    pmsi=st.none() | PMSIS,
    as_path=PATHS,
    origin=st.integers(0, 2),
    local_pref=U32,
    originator_id=st.none() | st.ip_addresses(v=4),
    cluster_list=st.lists(st.ip_addresses(v=4), max_size=3).map(tuple),
)
"""Attributes as an internal peer may send them."""

FAMILIES = st.tuples(U16, OCTET)
CAPABILITIES = st.builds(
    Capabilities,
    families=st.frozensets(FAMILIES, max_size=5),
    four_octet_asn=st.none() | ASNS,
    route_refresh=st.booleans(),
    graceful_restart=st.none()
    | st.builds(
        GracefulRestart,
        restarting=st.booleans(),
        restart_time=st.integers(0, 0xFFF),
        families=st.dictionaries(FAMILIES, st.booleans(), max_size=5),
        notification=st.booleans(),
    ),
    enhanced_route_refresh=st.booleans(),
    unknown=st.lists(
        st.tuples(st.sampled_from([5, 6, 71, 73, 128, 255]), st.binary(max_size=255)), max_size=3
    ).map(tuple),
)


@st.composite
def opens(draw: st.DrawFn) -> Open:
    """Draw an OPEN message; its AS number agrees with the capability for four octets."""
    capabilities = draw(CAPABILITIES)
    asn = capabilities.four_octet_asn
    if asn is None:
        asn = draw(ASNS.filter(lambda number: number <= 0xFFFF))
    return Open(
        asn=asn,
        hold_time=draw(U16.filter(lambda seconds: seconds not in (1, 2))),
        router_id=IPv4Address(draw(st.integers(1, 0xFFFF_FFFF))),
        capabilities=capabilities,
    )
