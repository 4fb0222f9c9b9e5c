"""Which addresses a VTEP can have, and on which link they are valid."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtep.wire.address import (
    check_destination,
    check_unicast,
    is_address,
    is_device_name,
    scope_of,
    without_scope,
)


@pytest.mark.parametrize("text", ["192.0.2.1", "127.0.0.1", "2001:db8::1", "fe80::1%eth0"])
def test_accepts_hosts(text: str) -> None:
    check_unicast(ip_address(text))
    check_destination(ip_address(text))


@pytest.mark.parametrize("text", ["239.1.1.1", "ff05::1"])
def test_a_multicast_group_is_a_destination_but_no_host(text: str) -> None:
    check_destination(ip_address(text))
    with pytest.raises(ValueError, match="is a multicast group"):
        check_unicast(ip_address(text))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0.0.0.0", "is not the address of a host"),
        ("::", "is not the address of a host"),
        ("255.255.255.255", "is not the address of a host"),
        ("::ffff:192.0.2.1", "is IPv4-mapped; write it as 192.0.2.1"),
    ],
)
def test_refuses_addresses_that_no_vtep_can_have(text: str, reason: str) -> None:
    for check in (check_unicast, check_destination):
        with pytest.raises(ValueError, match=reason):
            check(ip_address(text))


@pytest.mark.parametrize(
    ("text", "dev", "scope"),
    [
        ("fe80::1", None, None),
        ("fe80::1", "eth0", "eth0"),
        ("fe80::1%eth1", "eth0", "eth1"),
        ("2001:db8::1", "eth0", None),
        ("169.254.0.1", "eth0", None),  # IPv4 has no scopes: routes choose the link.
    ],
)
def test_only_ipv6_link_local_addresses_have_a_scope(
    text: str, dev: str | None, scope: str | None
) -> None:
    assert scope_of(ip_address(text), dev) == scope
    assert str(without_scope(ip_address(text))) == text.partition("%")[0]


@given(st.text(max_size=20))
def test_any_text_can_be_asked_about(text: str) -> None:
    is_address(text)
    if is_device_name(text):
        assert is_address(f"fe80::1%{text}")
