"""Inner transport headers, compared with scapy."""

import struct
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrRouting, PadN
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from tests.unit.craft import (
    HOSTILE,
    VALID,
    dest,
    ether,
    hop,
    ip4,
    ip6,
    layout,
    loop_sum,
    tcp,
    udp,
)
from vtep.wire import ip

NOPS = [IPOption_NOP()]

TRANSPORTS = {
    "tcp4": ip4(tcp(b"data")),
    "udp4": ip4(udp(b"data")),
    "tcp4 empty": ip4(tcp()),
    "udp4 empty": ip4(udp()),
    "udp4 odd": ip4(udp(b"odd")),
    "udp4 options": ip4(udp(b"data"), options=NOPS * 4),
    "tcp4 all options": ip4(tcp(b"data"), options=NOPS * 40),
    "tcp4 options": ip4(tcp(b"data", options=[("NOP", None)] * 40)),
    "udp4 DF": ip4(udp(b"data"), flags="DF"),
    "udp4 evil": ip4(udp(b"data"), flags="evil"),
    "tcp6": ip6(tcp(b"data")),
    "udp6": ip6(udp(b"data")),
    "tcp6 empty": ip6(tcp()),
    "udp6 empty": ip6(udp()),
    "udp6 hop-by-hop": ip6(hop(udp(b"data"))),
    "udp6 destination": ip6(dest(udp(b"data"))),
    "tcp6 both": ip6(hop(dest(tcp(b"data")))),
    "tcp6 many": ip6(hop(dest(dest(dest(tcp(b"data")))))),
    "udp6 long": ip6(IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(40))]) / udp(b"data")),
}

NO_TRANSPORT = {
    "arp": ARP(),
    "icmp": ip4(ICMP()),
    "sctp": ip4(Raw(bytes(40)), proto=132),
    "v4 first fragment": ip4(udp(b"data"), flags="MF"),
    "v4 last fragment": ip4(Raw(bytes(40)), proto=17, frag=1),
    "v4 far fragment": ip4(Raw(bytes(40)), proto=17, frag=0x1000),
    "v6 fragment": ip6(IPv6ExtHdrFragment(nh=17) / udp(b"data")),
    "v6 fragment behind hop-by-hop": ip6(hop(IPv6ExtHdrFragment(nh=17, m=1) / udp(b"data"))),
    # Its IPv6 header has another destination than the pseudo-header.
    "v6 routing": ip6(IPv6ExtHdrRouting(addresses=["fd00:1::3"]) / udp(b"data")),
    "v6 no next header": ip6(Raw(bytes(40)), nh=59),
    "v6 jumbogram": ip6(hop(udp(b"data")), plen=0),
    "v4 version 5": ip4(udp(b"data"), version=5, ihl=0),
    "v4 wrong version": ip4(udp(b"data"), version=6, ihl=5),
    "v4 version 3": ip4(udp(b"data"), version=3, ihl=15),
    "v4 header too short": ip4(udp(b"data"), ihl=4),
    "v4 header beyond the end": ip4(udp(), ihl=8),
    "v4 length without udp": ip4(udp(b"data"), len=27),
    "v4 length without tcp": ip4(tcp(b"data"), len=39),
    "v4 length zero": ip4(udp(b"data"), len=0),
    "v4 length beyond the end": ip4(udp(b"data"), len=33),
    "v6 wrong version": ip6(udp(b"data"), version=4),
    "v6 length without udp": ip6(udp(b"data"), plen=7),
    "v6 length without tcp": ip6(tcp(b"data"), plen=19),
    "v6 length beyond the end": ip6(udp(b"data"), plen=13),
    "v6 extension beyond the length": ip6(dest(udp(b"data")), plen=7),
    "v6 extension longer than the packet": ip6(IPv6ExtHdrDestOpt(len=9, nh=17) / udp(b"data")),
}


def found(packet: Packet, tags: str = "") -> ip.Transport:
    transport = ip.find_transport(bytes(ether(packet, tags=tags)))
    assert transport is not None
    return transport


def test_transport(subtests: pytest.Subtests) -> None:
    for name, tags in product(TRANSPORTS, ("", "q", "aq")):
        with subtests.test(name, tags=tags):
            packet = ether(TRANSPORTS[name], tags=tags)
            assert found(TRANSPORTS[name], tags) == layout(packet)[:5]


def test_transport_of_any_buffer(subtests: pytest.Subtests) -> None:
    for name, packet in TRANSPORTS.items():
        with subtests.test(name):
            frame = bytes(ether(packet))
            for kind in (bytearray, memoryview):
                transport = ip.find_transport(kind(frame))
                assert transport == ip.find_transport(frame)
                assert transport is not None
                assert bytes(ip.addresses(kind(frame), transport)) == bytes(
                    ip.addresses(frame, transport)
                )
                assert ip.pseudo_sum(kind(frame), transport) == ip.pseudo_sum(frame, transport)


def test_no_transport(subtests: pytest.Subtests) -> None:
    for name, tags in product(NO_TRANSPORT, ("", "q")):
        with subtests.test(name, tags=tags):
            assert ip.find_transport(bytes(ether(NO_TRANSPORT[name], tags=tags))) is None


def test_truncated_frame_has_no_transport(subtests: pytest.Subtests) -> None:
    for name, packet in TRANSPORTS.items():
        with subtests.test(name):
            frame = bytes(ether(packet))
            for length in range(14, len(frame)):
                assert ip.find_transport(frame[:length]) is None, length


def test_padding_is_excluded(subtests: pytest.Subtests) -> None:
    for name, packet in TRANSPORTS.items():
        with subtests.test(name):
            frame = bytes(ether(packet))
            assert ip.find_transport(frame + bytes(46)) == ip.find_transport(frame)


def test_fields(subtests: pytest.Subtests) -> None:
    for name, tags in product(TRANSPORTS, ("", "q")):
        with subtests.test(name, tags=tags):
            packet = ether(TRANSPORTS[name], tags=tags)
            frame, expected, transport = (
                bytes(packet),
                layout(packet),
                found(TRANSPORTS[name], tags),
            )
            parsed = Ether(frame)
            upper = parsed[TCP] if TCP in parsed else parsed[UDP]
            assert ip.checksum_field(frame, transport) == upper.chksum
            assert ip.pseudo_sum(frame, transport) == loop_sum(expected.pseudo_header)
            addresses = expected.pseudo_header[: 8 if expected.version == 4 else 32]
            assert ip.addresses(frame, transport) == addresses
            if TCP in parsed:
                assert ip.tcp_header_len(frame, transport) == upper.dataofs * 4
            else:
                assert ip.udp_length(frame, transport) == upper.len


@given(st.binary(min_size=8, max_size=8), st.binary(max_size=40))
def test_pseudo_sum_of_any_addresses(addresses: bytes, payload: bytes) -> None:
    frame = bytearray(bytes(ether(ip4(udp(payload)))))
    frame[26:34] = addresses
    transport = ip.find_transport(frame)
    assert transport is not None
    header = addresses + struct.pack("!xBH", 17, 8 + len(payload))
    assert ip.pseudo_sum(frame, transport) == loop_sum(header)


def test_pseudo_sum_is_never_zero() -> None:
    # A UDP checksum of 0 means that there is none. It must not look like a partial checksum.
    frame = bytearray(bytes(ether(ip4(udp()))))
    frame[26:34] = bytes(8)
    transport = ip.find_transport(frame)
    assert transport is not None
    assert ip.pseudo_sum(frame, transport) == 17 + 8
    frame[26:34] = struct.pack("!HHHH", 0xFFFF - 17 - 8, 0, 0, 0)
    assert ip.pseudo_sum(frame, transport) == 0xFFFF


def test_scapy_checksum_equals_sum_of_pseudo_header_and_segment() -> None:
    for name in ("tcp4", "udp6", "tcp6 both", "udp4 odd"):
        packet = ether(TRANSPORTS[name])
        frame, transport = bytearray(bytes(packet)), found(TRANSPORTS[name])
        field = ip.checksum_field(frame, transport)
        at = transport.offset + ip.CHECKSUM_OFFSET[transport.protocol]
        struct.pack_into("!H", frame, at, ip.pseudo_sum(frame, transport))
        assert loop_sum(bytes(frame[transport.offset :])) ^ 0xFFFF == field, name


@pytest.mark.parametrize(
    ("data_offset", "payload", "length"),
    [
        (0, 0, 0),
        (4, 0, 0),
        (5, 0, 20),
        (6, 0, 0),
        (6, 3, 0),
        (6, 4, 24),
        (15, 40, 60),
        (15, 39, 0),
    ],
)
def test_tcp_header_len(data_offset: int, payload: int, length: int) -> None:
    for packet in (
        ip4(tcp(bytes(payload), dataofs=data_offset)),
        ip6(tcp(bytes(payload), dataofs=data_offset)),
    ):
        frame = bytes(ether(packet))
        assert ip.tcp_header_len(frame + bytes(60), found(packet)) == length


def with_options(options: bytes, data: bytes = b"") -> tuple[bytes, ip.Transport]:
    """Build a SYN with these octets of options, which are a multiple of four."""
    header = struct.pack("!HHIIBBHHH", 1, 2, 3, 0, (20 + len(options)) << 2, 2, 100, 0, 0)
    packet = ip4(Raw(header + options + data), proto=6)
    return bytes(ether(packet)), found(packet)


@pytest.mark.parametrize(
    ("options", "mss"),
    [
        pytest.param("020405b4", 1460, id="alone"),
        pytest.param("01010101 020405b4", 1460, id="behind no-operations"),
        pytest.param("0402 01 01 020405b4", 1460, id="behind another"),
        pytest.param("080a0000000000000000 0101 0204ffff", 0xFFFF, id="behind timestamps"),
        pytest.param("02040000", 0, id="zero"),
        pytest.param("020405b4 020400ff", 1460, id="the first of two"),
        pytest.param("", None, id="none"),
        pytest.param("00 020405b4 000000", None, id="behind the end of options"),
        # A parser that reads a length behind the end of options finds the MSS behind it.
        pytest.param("00 02 020405b4 0000", None, id="behind the end of options and an octet"),
        pytest.param("01010101", None, id="only no-operations"),
        pytest.param("01010102", None, id="kind without length"),
        pytest.param("0101 0204", None, id="truncated by the end of the options"),
        pytest.param("01 020405", None, id="truncated value"),
        pytest.param("0300 020405b4 0000", None, id="length zero"),
        pytest.param("0301 020405b4 0000", None, id="length one"),
        pytest.param("0303 07 01 0203 0001", None, id="wrong length"),
        pytest.param("02020101", None, id="no value"),
        pytest.param("fdff 0000", None, id="longer than the options"),
        pytest.param("0202 020405b4 0000", 1460, id="behind an MSS of the wrong length"),
        pytest.param("0306 00000000 0204000a 0000", 10, id="unaligned"),
    ],
)
def test_mss(options: str, mss: int | None) -> None:
    # Data behind the options is ignored, even if it looks like another option.
    for data in (b"", bytes.fromhex("02040539")):
        frame, transport = with_options(bytes.fromhex(options), data)
        assert ip.tcp_mss(frame, transport) == mss


@pytest.mark.parametrize("data_offset", [0, 4, 15])
def test_no_mss_without_a_valid_header(data_offset: int) -> None:
    packet = ip4(tcp(options=[("MSS", 1460)], dataofs=data_offset))
    assert ip.tcp_mss(bytes(ether(packet)) + bytes(60), found(packet)) is None


@given(st.integers(0, 0xFFFF), st.lists(st.sampled_from(["NOP", "SAckOK", "WScale"]), max_size=4))
def test_mss_written_by_scapy(mss: int, before: list[str]) -> None:
    values = {"NOP": None, "SAckOK": b"", "WScale": 7}
    options = [(name, values[name]) for name in before] + [("MSS", mss)]
    packet = ip6(tcp(flags="S", options=options))
    assert ip.tcp_mss(bytes(ether(packet)), found(packet)) == mss


@given(st.binary(max_size=10).map(lambda options: options * 4))
def test_arbitrary_options(options: bytes) -> None:
    frame, transport = with_options(options)
    mss = ip.tcp_mss(frame, transport)
    assert mss is None or b"\x02\x04" + mss.to_bytes(2, "big") in options


@given(HOSTILE)
def test_arbitrary_frames(frame: bytes) -> None:
    transport = ip.find_transport(frame)
    if transport is None:
        return
    assert transport.version in (4, 6)
    assert transport.length >= {ip.TCP: 20, ip.UDP: 8}[transport.protocol]
    assert 14 <= transport.ip_offset < transport.offset
    assert transport.offset + transport.length <= len(frame)
    assert len(ip.addresses(frame, transport)) in (8, 32)
    assert 0 <= ip.checksum_field(frame, transport) <= 0xFFFF
    assert 0 < ip.pseudo_sum(frame, transport) <= 0xFFFF
    if transport.protocol == ip.UDP:
        assert 0 <= ip.udp_length(frame, transport) <= 0xFFFF
    else:
        assert ip.tcp_header_len(frame, transport) in (0, *range(20, 64, 4))
        ip.tcp_mss(frame, transport)


@given(st.binary(min_size=14, max_size=400), st.sampled_from([b"\x08\x00", b"\x86\xdd"]))
def test_arbitrary_octets_behind_an_ip_ethertype(frame: bytes, ethertype: bytes) -> None:
    frame = frame[:12] + ethertype + frame[14:]
    transport = ip.find_transport(frame)
    assert transport is None or transport.offset + transport.length <= len(frame)


@pytest.mark.parametrize("name", ["tcp4", "tcp6", "udp4", "udp6 qinq", "tcp6 extensions"])
def test_valid_frames_equal_scapy(name: str) -> None:
    parsed = Ether(VALID[name])
    transport = ip.find_transport(VALID[name])
    assert transport is not None
    assert transport.version == (6 if IPv6 in parsed else 4)
    assert (IP in parsed) != (IPv6 in parsed)
    assert VALID[name][-7:] == b"payload"
    assert transport.offset + transport.length == len(VALID[name])
