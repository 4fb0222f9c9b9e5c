"""Lookup and learning in small and large forwarding databases."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.frames import REMOTE, mac, table
from vtep.forwarding.fdb import Learned

SIZES = [1_000, 100_000]


@pytest.mark.parametrize("entries", SIZES)
def test_lookup(benchmark: BenchmarkFixture, entries: int) -> None:
    fdb = table(entries)
    entry = benchmark(fdb.lookup, mac(entries // 2))
    assert entry.destinations == (REMOTE,)


@pytest.mark.parametrize("entries", SIZES)
def test_lookup_of_an_unknown_host(benchmark: BenchmarkFixture, entries: int) -> None:
    fdb = table(entries)
    assert benchmark(fdb.lookup, mac(entries)) is None


@pytest.mark.parametrize("entries", SIZES)
def test_learn_again(benchmark: BenchmarkFixture, entries: int) -> None:
    fdb = table(entries)
    assert benchmark(fdb.learn, mac(entries // 2), REMOTE, 1.0) is Learned.REFRESHED
