"""BGP messages with 10,000 EVPN routes: a full table in one direction."""

from ipaddress import IPv4Address

from pytest_benchmark.fixture import BenchmarkFixture

from vtep.wire.bgp.attributes import PathAttributes
from vtep.wire.bgp.communities import RouteTarget
from vtep.wire.bgp.evpn import NO_ESI, MacIpRoute, RouteDistinguisher
from vtep.wire.bgp.message import Deframer
from vtep.wire.bgp.update import pack_updates, parse_update

_VTEP = IPv4Address("192.0.2.1")
_RD = RouteDistinguisher.of(_VTEP, 100)
_ROUTES = [
    MacIpRoute(_RD, NO_ESI, 0, number.to_bytes(6), IPv4Address(number) if number & 1 else None, 100)
    for number in range(10_000)
]
_ATTRIBUTES = PathAttributes(_VTEP, frozenset({RouteTarget.of(65000, 100)}))


def _pack() -> bytes:
    return b"".join(pack_updates(_ROUTES, _ATTRIBUTES, four_octet=True, internal=True, asn=65000))


def _parse(stream: bytes) -> int:
    return sum(
        len(parse_update(body, four_octet=True, internal=True).announced)
        for _, body in Deframer().feed(stream)
    )


def test_pack(benchmark: BenchmarkFixture) -> None:
    assert len(benchmark(_pack)) > 300_000


def test_parse(benchmark: BenchmarkFixture) -> None:
    assert benchmark(_parse, _pack()) == len(_ROUTES)
