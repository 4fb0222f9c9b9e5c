"""EVPN tables with many routes: a full table, and one route among them."""

from ipaddress import IPv4Address

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vtep.evpn.table_settings import SegmentSettings, SpeakerSettings
from vtep.evpn.tables import Tables
from vtep.wire.bgp.attributes import PathAttributes
from vtep.wire.bgp.communities import RouteTarget
from vtep.wire.bgp.evpn import NO_ESI, MacIpRoute, RouteDistinguisher
from vtep.wire.bgp.update import Update

_OWN, _VTEP = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
_PEER = "192.0.2.2"
_TARGETS = frozenset({RouteTarget.of(65000, 100)})
_PER_MESSAGE = 100
"""Routes in a message, as most speakers put into 4096 octets."""


def _tables() -> Tables:
    made = Tables(SpeakerSettings(65000, _OWN))
    rd = RouteDistinguisher.of(_OWN, 100)
    made.configure({100: SegmentSettings(100, rd, None, _TARGETS, (_OWN,), proxy=True)}, 0.0)
    made.take()
    return made


def _update(begin: int, end: int, sequence: int = 0) -> Update:
    rd = RouteDistinguisher.of(_VTEP, 100)
    routes = (
        MacIpRoute(
            rd,
            NO_ESI,
            0,
            (2 << 40 | number).to_bytes(6),
            IPv4Address(number) if number & 1 else None,
            100,
        )
        for number in range(begin, end)
    )
    return Update(tuple(routes), attributes=PathAttributes(_VTEP, _TARGETS, sequence=sequence))


def _fill(tables: Tables, updates: list[Update]) -> int:
    for update in updates:
        tables.update(_PEER, update, 1.0)
    return len(tables.take().fdb[100])


@pytest.mark.parametrize("routes", [10_000, 100_000])
def test_full_table(benchmark: BenchmarkFixture, routes: int) -> None:
    updates = [_update(begin, begin + _PER_MESSAGE) for begin in range(0, routes, _PER_MESSAGE)]
    assert benchmark(lambda: _fill(_tables(), updates)) == routes


@pytest.mark.parametrize("routes", [1, 100_000])
def test_move_of_one_mac(benchmark: BenchmarkFixture, routes: int) -> None:
    tables = _tables()
    _fill(tables, [_update(0, routes)])
    sequences = iter(range(1, 1 << 32))
    assert benchmark(lambda: _fill(tables, [_update(0, 1, next(sequences))])) == 1
