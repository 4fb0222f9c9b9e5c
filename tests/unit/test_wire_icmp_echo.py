"""ICMP echo requests and replies, compared with scapy."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.packet import Packet

from vtep.wire import icmp
from vtep.wire.icmp_echo import IcmpEcho, pack_request, parse_reply

ECHO = IcmpEcho(0x1234, 7)
SOURCE = {4: "192.0.2.1", 6: "2001:db8::1"}
DESTINATION = {4: "192.0.2.2", 6: "2001:db8::2"}


def expected(version: int) -> Packet:
    source, destination = SOURCE[version], DESTINATION[version]
    if version == 4:
        ip = IP(src=source, dst=destination, id=0, flags="DF")
        return ip / ICMP(type=8, id=ECHO.identifier, seq=ECHO.sequence)
    ipv6 = IPv6(src=source, dst=destination, hlim=64)
    return ipv6 / ICMPv6EchoRequest(id=ECHO.identifier, seq=ECHO.sequence)


@pytest.mark.parametrize("version", [4, 6])
def test_request(version: int) -> None:
    pack = icmp.ipv4_packet if version == 4 else icmp.ipv6_packet
    source, destination = (ip_address(each[version]).packed for each in (SOURCE, DESTINATION))
    packet = pack(source, destination, pack_request(version, ECHO))
    assert packet == bytes(expected(version))
    if version == 4:
        assert packet.endswith(icmp.with_checksum(pack_request(4, ECHO)))


@pytest.mark.parametrize("version", [4, 6])
def test_reply(version: int) -> None:
    reply = ICMP(type=0, id=0x1234, seq=7) if version == 4 else ICMPv6EchoReply(id=0x1234, seq=7)
    data = b"xx" + bytes(reply)
    assert parse_reply(data, 2, version) == ECHO
    assert parse_reply(data[:-1], 2, version) is None
    assert parse_reply(pack_request(version, ECHO), 0, version) is None


@given(st.binary(max_size=12), st.integers(0, 12), st.sampled_from([4, 6]))
def test_any_octets(data: bytes, offset: int, version: int) -> None:
    parse_reply(data, offset, version)
