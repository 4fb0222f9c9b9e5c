"""Address pools, and the order in which their addresses are tried."""

from ipaddress import ip_address, ip_network
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtep.docker.ipam.pools import AddressPool
from vtep.errors import VtepError


@given(
    st.sampled_from(
        [
            (4, "172.18.0.0/24", ""),
            (4, "172.18.0.0/24", "172.18.0.0/25"),
            (4, "172.18.0.0/24", "172.18.0.128/25"),
            (4, "172.18.0.0/16", "172.18.7.0/30"),
            (4, "172.18.0.0/31", ""),
            (4, "172.18.0.7/32", ""),
            (6, "fd00:18::/120", ""),
            (6, "fd00:18::/64", "fd00:18::7:0/124"),
            (6, "fd00:18::/127", ""),
        ]
    ),
    st.binary(max_size=16),
)
def test_each_usable_address_of_the_range_is_tried_once(
    values: tuple[int, str, str], seed: bytes
) -> None:
    version, subnet, sub_pool = values
    pool = AddressPool.parse(subnet, sub_pool, version=version)
    assert AddressPool.from_id(pool.id) == pool
    candidates = list(pool.order(seed).candidates())
    inside = ip_network(subnet)
    expected = set(ip_network(sub_pool or subnet))
    if inside.num_addresses > 2:
        expected -= {inside.network_address}
        if version == 4:
            expected -= {inside.broadcast_address}
    assert len(candidates) == len(expected)
    assert set(candidates) == expected
    for address in candidates:
        pool.check(address)
        assert pool.interface(address) == f"{address}/{inside.prefixlen}"


def test_hosts_differ_and_each_goes_on() -> None:
    pool = AddressPool.parse("fd00:18::/64", version=6)
    one, other = pool.order(b"one"), pool.order(b"other")
    firsts = {*islice(one.candidates(), 100)}
    assert firsts.isdisjoint(islice(other.candidates(), 100))
    assert firsts.isdisjoint(islice(one.candidates(), 100))


def test_a_range_without_usable_addresses() -> None:
    pool = AddressPool.parse("172.18.0.0/24", "172.18.0.0/32", version=4)
    assert list(pool.order(b"").candidates()) == []


def test_gateway_is_the_same_on_all_hosts() -> None:
    pool = AddressPool.parse("172.18.0.9/16", "172.18.2.0/24", version=4)
    assert str(pool.subnet) == "172.18.0.0/16"
    assert pool.gateway == ip_address("172.18.0.1")
    assert AddressPool.parse("fd00:18::/64", version=6).gateway == ip_address("fd00:18::1")


@pytest.mark.parametrize(
    ("version", "subnet", "sub_pool", "words"),
    [
        (4, "", "", "no subnet for IPv4"),
        (6, "", "", "--subnet fd00:18::/64"),
        (4, "fd00:18::/64", "", "not a subnet of IPv4"),
        (4, "172.18.0.0/16", "172.19.0.0/24", "no part of"),
        (4, "172.18.0.0/24", "172.18.0.0/16", "no part of"),
        (4, "172.18.0.0/16", "fd00:18::/64", "no part of"),
        (4, "x", "", "does not appear to be"),
    ],
)
def test_refused_pools(version: int, subnet: str, sub_pool: str, words: str) -> None:
    with pytest.raises(VtepError, match=words):
        AddressPool.parse(subnet, sub_pool, version=version)


@pytest.mark.parametrize("text", ["172.19.0.2", "172.18.0.0", "172.18.255.255", "fd00::1"])
def test_refused_addresses(text: str) -> None:
    with pytest.raises(VtepError, match=text):
        AddressPool.parse("172.18.0.0/16", version=4).check(ip_address(text))


def test_overlaps() -> None:
    pool = AddressPool.parse("172.18.0.0/16", version=4)
    assert pool.overlaps(AddressPool.parse("172.18.1.0/24", version=4))
    assert AddressPool.parse("172.18.1.0/24", version=4).overlaps(pool)
    assert not pool.overlaps(AddressPool.parse("172.19.0.0/16", version=4))
    assert not pool.overlaps(AddressPool.parse("fd00:18::/64", version=6))
