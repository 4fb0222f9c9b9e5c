"""Messages of rtnetlink about neighbours, addresses and FDB entries."""

from ipaddress import ip_address
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtep.host.neighbour_messages import (
    AF_BRIDGE,
    AF_INET,
    AF_INET6,
    NTF_EXT_LEARNED,
    NTF_MASTER,
    NTF_STICKY,
    NTF_USE,
    NUD_NOARP,
    NUD_STALE,
    RTM_DELNEIGH,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETNEIGH,
    RTM_NEWADDR,
    RTM_NEWNEIGH,
    InterfaceAddress,
    KernelNeighbour,
    build_dump,
    build_fdb_deletion,
    build_fdb_entry,
    build_port_learning,
    build_probe,
    parse_address,
    parse_neighbour,
    split_messages,
)

MAC = bytes.fromhex("020000000a01")


def attribute(kind: int, value: bytes) -> bytes:
    return pack("=HH", len(value) + 4, kind) + value.ljust(len(value) + 3 & ~3, b"\0")


def message(kind: int, body: bytes, flags: int = 0) -> bytes:
    return pack("=IHHII", 16 + len(body), kind, flags, 7, 0) + body


def test_an_event_of_a_bridge_is_parsed() -> None:
    """Such as the kernel sends: br_fdb.c, fdb_fill_info."""
    body = pack("=BxxxiHBB", AF_BRIDGE, 5, NUD_STALE, NTF_EXT_LEARNED, 0)
    body += attribute(2, MAC) + attribute(9, pack("=I", 3)) + attribute(15, bytes(4))
    body += attribute(3, bytes(16)) + attribute(5, pack("=H", 42))
    (event,) = split_messages(message(RTM_NEWNEIGH, body))
    assert parse_neighbour(event) == KernelNeighbour(
        AF_BRIDGE, False, 5, NUD_STALE, NTF_EXT_LEARNED, MAC, None, 42, 3
    )
    assert parse_address(event) is None


def test_neighbours_and_addresses_are_parsed() -> None:
    """Of both families. An address that is still tentative cannot be used."""
    for text, family in (("10.0.0.1", AF_INET), ("fe80::1", AF_INET6)):
        ip = ip_address(text)
        body = pack("=BxxxiHBB", family, 5, NUD_STALE, 0, 1)
        body += attribute(1, ip.packed) + attribute(2, MAC)
        (event,) = split_messages(message(RTM_DELNEIGH, body))
        assert parse_neighbour(event) == KernelNeighbour(
            family, True, 5, NUD_STALE, 0, MAC, ip, 0, 0
        )
        for flags, usable in ((0x80, True), (0xC0, False), (0x88, False)):
            body = pack("=BBBBI", family, 24, flags & 0xFF, 0, 5) + attribute(1, ip.packed)
            body += attribute(8, pack("=I", flags))
            (event,) = split_messages(message(RTM_NEWADDR, body))
            broadcast = ip_address("10.0.0.255") if family == AF_INET else None
            assert parse_address(event) == InterfaceAddress(False, 5, ip, usable, broadcast)
    # IFA_ADDRESS is that of the peer on a point-to-point link.
    body = pack("=BBBBI", AF_INET, 32, 0, 0, 5) + attribute(1, bytes(4)) + attribute(2, b"\1\2\3\4")
    (event,) = split_messages(message(RTM_NEWADDR, body))
    assert parse_address(event) == InterfaceAddress(False, 5, ip_address("1.2.3.4"), True)


@given(
    port=st.integers(1, 2**31 - 1),
    mac=st.binary(min_size=6, max_size=6),
    flags=st.sampled_from([NTF_EXT_LEARNED, NTF_STICKY]),
    vlan=st.integers(0, 4094),
    sequence=st.integers(0, 2**32 - 1),
)
def test_requests_have_the_form_of_events(
    port: int, mac: bytes, flags: int, vlan: int, sequence: int
) -> None:
    """A batch of requests is parsed as what it asks for."""
    batch = build_fdb_entry(port, mac, sequence, flags=flags, vlan=vlan)
    batch += build_fdb_deletion(port, mac, sequence, vlan) + build_port_learning(port, 9, on=True)
    entry, deletion, learning = split_messages(batch)
    assert entry.sequence == deletion.sequence == sequence
    assert parse_neighbour(entry) == KernelNeighbour(
        AF_BRIDGE, False, port, NUD_NOARP, flags | NTF_MASTER, mac, None, vlan, 0
    )
    assert parse_neighbour(deletion) == KernelNeighbour(
        AF_BRIDGE, True, port, 0, NTF_MASTER, mac, None, vlan, 0
    )
    assert parse_neighbour(learning) is None
    assert learning.whole[-8:] == bytes((5, 0, 8, 0, 1, 0, 0, 0))


@pytest.mark.parametrize("ip", ["10.0.0.9", "fd00::9"])
def test_a_probe_changes_nothing_of_a_neighbour(ip: str) -> None:
    """It has no state or MAC, and does not create one."""
    (request,) = split_messages(build_probe(7, ip_address(ip), 3))
    address = ip_address(ip)
    family = AF_INET if address.version == 4 else AF_INET6
    assert parse_neighbour(request) == KernelNeighbour(
        family, False, 7, 0, NTF_USE, b"", address, 0, 0
    )
    assert request.whole[6:8] == bytes((1, 0))


def test_dumps_are_requested() -> None:
    """The kernel accepts the lengths of these structures only."""
    for kind, family, length in (
        (RTM_GETLINK, 0, 16 + 16 + 8),
        (RTM_GETADDR, 0, 16 + 8),
        (RTM_GETNEIGH, AF_BRIDGE, 16 + 12),
    ):
        (request,) = split_messages(build_dump(kind, family, 3))
        assert (request.kind, request.sequence, len(request.whole)) == (kind, 3, length)


@given(st.binary(max_size=200))
def test_garbage_is_never_an_error(data: bytes) -> None:
    """Neither as a datagram, nor as the body of any message."""
    bodies = (message(kind, data) for kind in (RTM_NEWNEIGH, RTM_DELNEIGH, RTM_NEWADDR, 2))
    for octets in (data, *bodies):
        for found in split_messages(octets):
            parse_neighbour(found)
            parse_address(found)
            assert found.error >= 0
            assert len(found.whole) <= len(octets)
