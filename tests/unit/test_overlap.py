"""Addresses of the TAP that would attract traffic of the underlay."""

from ipaddress import ip_address, ip_interface, ip_network

import pytest

from vtep.config.overlap import Overlap, find_overlap

UNDERLAY = [("eth0", ip_network("192.0.2.0/24")), ("eth0", ip_network("fe80::/64"))]


@pytest.mark.parametrize(
    ("address", "remote", "other"),
    [
        ("192.0.2.9/24", "192.0.2.2", "192.0.2.2"),
        ("192.0.0.1/8", "192.0.2.2", "192.0.2.2"),
        ("198.51.100.9/24", "198.51.100.2", "198.51.100.2"),  # By a gateway.
        ("192.0.2.129/25", "192.0.2.2", "192.0.2.0/24"),
        ("192.0.2.9/24", "198.51.100.2", "192.0.2.0/24"),
        ("192.0.0.1/16", "198.51.100.2", "192.0.2.0/24"),
        ("2001:db8::9/64", "2001:db8::2", "2001:db8::2"),
        ("169.254.1.1/16", "169.254.7.7", "169.254.7.7"),
        ("10.0.0.1/24", "192.0.2.2", None),
        ("192.0.2.9/32", "192.0.2.2", None),
        ("2001:db8:1::9/64", "2001:db8::2", None),
        ("fe80::1/64", "fe80::2%eth0", None),
        ("::1:2:3/96", "192.0.2.2", None),
    ],
)
def test_overlaps(address: str, remote: str, other: str | None) -> None:
    found = find_overlap([ip_interface(address)], [ip_address(remote)], UNDERLAY)
    assert (found and str(found.other)) == other
    if found is not None:
        assert found.device == ("eth0" if "/" in str(found.other) else None)
        assert str(found).startswith(f"--address {address}: ")
        assert str(found.other) in str(found)


def test_the_first_overlap_is_returned() -> None:
    addresses = [ip_interface(each) for each in ("10.0.0.1/24", "192.0.2.9/24", "192.0.2.10/24")]
    found = find_overlap(addresses, [], UNDERLAY)
    assert found == Overlap(addresses[1], UNDERLAY[0][1], "eth0")
    assert find_overlap([], [], UNDERLAY) is None
    # A subnet of one address routes nothing away.
    assert find_overlap(addresses, [], [("wg0", ip_network("192.0.2.1/32"))]) is None
