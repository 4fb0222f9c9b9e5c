"""The headers in front of superframes with tunnel GSO, as scapy dissects them.

Whether the kernel accepts them is tested in tests/netns/test_tunnel_gso.py.
"""

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

from tests.unit.twins import BASIC, KINDS, Frame
from vtep.offload.split import plan_segments
from vtep.tunnel_gso import encoder
from vtep.wire import checksum, virtio, vxlan

PREFIX = vxlan.pack(5)
V4 = encoder.OuterHeader(
    *(b"\x02\0\0\0\0\x01", 7, IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"), 50000, 4789),
    tos=0,
    ttl=64,
    flowlabel=0,
    df=False,
    checksum=True,
)
V6 = evolve(V4, source=IPv6Address("fd00::1"), destination=IPv6Address("fd00::2"))


def tcp(version: int = 4, count: int = 3, size: int = 1000, **of_frame: Any) -> bytes:
    return Frame(version, payload=bytes(count * size), partial=True, **of_frame).build()


def header_of(frame: bytes, version: int = 4, size: int = 1000, **of_header: int) -> virtio.Header:
    start = 34 if version == 4 else 54
    kind = virtio.GSO_TCPV4 if version == 4 else virtio.GSO_TCPV6
    plain = virtio.Header(virtio.FLAG_NEEDS_CSUM, kind, len(frame), size, start, 16)
    return plain._replace(**of_header)


def head(header: encoder.OuterHeader, frame: bytes, gso: virtio.Header) -> bytes | None:
    plan = plan_segments(memoryview(frame), gso)
    made = encoder.OuterHeaderWriter(header).write(plan, len(PREFIX), len(frame), gso)
    return None if made is None else bytes(made)


def dissected(header: encoder.OuterHeader, frame: bytes, gso: virtio.Header) -> tuple[Any, Packet]:
    """Return the fields of the virtio header, and the packet behind it."""
    octets = head(header, frame, gso)
    assert octets is not None
    fields = struct.unpack("=BBHHHHHIHH", octets[:20]) + struct.unpack("<HH", octets[20:24])
    return fields, Ether(octets[24:] + PREFIX + frame)


@settings(BASIC)
@given(
    header=st.builds(
        evolve,
        st.sampled_from((V4, V6)),
        source_port=st.integers(1, 0xFFFF),
        port=st.sampled_from((4789, 8472)),
        tos=st.integers(0, 255),
        ttl=st.integers(1, 255),
        flowlabel=st.integers(0, 0xFFFFF),
        df=st.booleans(),
        checksum=st.booleans(),
        egress=st.integers(1, 0xFFFFFFFF),
    ),
    version=st.sampled_from((4, 6)),
    count=st.integers(2, 44),
    ecn=st.booleans(),
)
def test_scapy_dissects_the_given_fields(
    header: encoder.OuterHeader, version: int, count: int, ecn: bool
) -> None:
    frame = tcp(version, count)
    gso = header_of(frame, version)
    gso = gso._replace(gso_type=gso.gso_type | (virtio.GSO_ECN if ecn else 0))
    fields, packet = dissected(header, frame, gso)
    v4 = header.source.version == 4
    udp_at = 34 if v4 else 54
    inner_ip = udp_at + 8 + 8 + 14
    inner_tcp = inner_ip + (20 if version == 4 else 40)
    assert fields == (
        *(1 | (8 if header.checksum else 0), gso.gso_type | (0x20 if v4 else 0x40)),
        *(inner_tcp + 20, 1000, inner_tcp, 16, 0, 0, 0, 0, udp_at, inner_ip),
    )
    assert bytes(packet)[:6] == header.dst_mac
    assert bytes(packet)[6:10] == header.egress.to_bytes(4, "big")
    ip, udp = packet.payload, packet[UDP]
    length = 8 + len(PREFIX) + len(frame)
    if v4:
        assert isinstance(ip, IP)
        assert (ip.ihl, ip.tos, ip.len, ip.ttl, ip.proto) == (
            *(5, header.tos, 20 + length, header.ttl, 17),
        )
        assert str(ip.flags) == ("DF" if header.df else "")
        assert checksum.ones_sum(bytes(ip)[:20]) == 0xFFFF
    else:
        assert isinstance(ip, IPv6)
        assert (ip.tc, ip.fl, ip.plen, ip.nh, ip.hlim) == (
            *(header.tos, header.flowlabel, length, 17, header.ttl),
        )
    addresses = ip_address(ip.src), ip_address(ip.dst)
    assert addresses == (header.source, header.destination)
    assert (udp.sport, udp.dport, udp.len) == (header.source_port, header.port, length)
    pseudo = addresses[0].packed + addresses[1].packed + struct.pack("!HH", 17, length)
    assert udp.chksum == (checksum.ones_sum(pseudo) if header.checksum else 0)
    inside = VXLAN(bytes(udp.payload))
    assert (inside.vni, bytes(inside.payload)) == (5, frame)


def test_identifications_count_segments() -> None:
    frame = tcp(count=40)
    gso = header_of(frame)
    plan, writer = plan_segments(memoryview(frame), gso), encoder.OuterHeaderWriter(V4)
    numbers = []
    for _ in range(2000):
        made = writer.write(plan, len(PREFIX), len(frame), gso)
        assert made is not None
        ip = bytes(made[38:58])
        assert checksum.ones_sum(ip) == 0xFFFF
        numbers.append(int.from_bytes(ip[4:6]))
    assert numbers == [number * 40 & 0xFFFF for number in range(2000)]


@pytest.mark.parametrize(("header", "most"), [(V4, 65535 - 28 - 8), (V6, 65535 - 8 - 8)])
def test_superframes_that_no_length_field_can_hold(header: encoder.OuterHeader, most: int) -> None:
    frame = tcp(count=45)
    gso = header_of(frame)
    plan = plan_segments(memoryview(frame), gso)
    writer = encoder.OuterHeaderWriter(header)
    made = writer.write(plan, len(PREFIX), most, gso)
    assert made is not None
    assert made[-4:-2] == (8 + 8 + most).to_bytes(2, "big")
    assert writer.write(plan, len(PREFIX), most + 1, gso) is None


def test_eligible() -> None:
    frame = tcp()
    assert eligible(frame, header_of(frame))
    assert eligible(tcp(6), header_of(frame, 6))
    with_options = tcp(options=bytes((1, 1, 8, 10)) + bytes(8))
    assert eligible(with_options, header_of(with_options))


def eligible(frame: bytes, gso: virtio.Header) -> bool:
    return encoder.gso_eligible(len(frame), plan_segments(memoryview(frame), gso), gso)


def test_not_eligible() -> None:
    frame = tcp()
    gso = header_of(frame)
    assert not eligible(frame, gso._replace(flags=0))
    assert not eligible(frame, gso._replace(csum_start=33))
    assert not eligible(frame, gso._replace(csum_offset=6))
    assert not eligible(frame, gso._replace(gso_size=3000)), "is one segment"
    assert not eligible(frame + bytes(1), gso), "padding"
    tagged = tcp(tags=((0x8100, 7),))
    assert not eligible(tagged, header_of(tagged, csum_start=38))
    options = tcp(between=bytes((1, 1, 1, 1)))
    assert not eligible(options, header_of(options, csum_start=38))
    extended = tcp(6, between=bytes((0, 0, 1, 4, 0, 0, 0, 0)))
    assert not eligible(extended, header_of(extended, 6, csum_start=62))
    udp = Frame(*KINDS["udp4"], payload=bytes(3000), partial=True).build()
    as_udp = header_of(udp, gso_type=virtio.GSO_UDP_L4, csum_offset=6)
    assert not eligible(udp, as_udp)


@pytest.mark.parametrize(
    "packet", [encoder.SMALL_PROBE, encoder.LARGE_PROBE], ids=["small", "large"]
)
def test_probe_packets_are_superframes(packet: encoder.ProbePacket) -> None:
    frame, plan, gso = packet
    ip = IP(frame)
    assert checksum.ones_sum(frame[:20]) == 0xFFFF
    assert (ip.src, ip.dst, ip.ttl, ip.len) == ("192.0.2.1", "192.0.2.2", 1, len(frame))
    of_frame = plan_segments(memoryview(bytes(12) + b"\x08\0" + frame), gso)
    assert of_frame._replace(transport=plan.transport, header_len=plan.header_len) == plan
    pseudo = frame[12:20] + struct.pack("!HH", 6, len(frame) - 20)
    assert ip[TCP].chksum == checksum.ones_sum(pseudo)
