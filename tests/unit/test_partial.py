"""Virtio headers for received frames with offloads that were never carried out.

The oracle is scapy. Its complete checksum is replaced by a partial one, and completed again as the
kernel does for the virtio header. The octets must be those of scapy.
"""

import struct
from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6ExtHdrFragment, IPv6ExtHdrRouting
from scapy.packet import Packet, Raw

from tests.unit.craft import (
    HOSTILE,
    V4_A,
    V4_B,
    V6_A,
    V6_B,
    VALID,
    dest,
    ether,
    finish,
    hop,
    ip,
    ip4,
    ip6,
    layout,
    loop_sum,
    parse_virtio,
    partial,
    tcp,
    udp,
)
from tests.unit.steps import observe
from vtep.config.option_parsers import MTU_MAX
from vtep.counters import Counters
from vtep.offload.partial import SegmentSizes, is_udp_superframe, virtio_header
from vtep.wire import ip as inet
from vtep.wire import virtio

Wrap = Callable[[Packet], Packet]

MTU = 1450
HEADERS = {4: 20 + 20, 6: 40 + 20}
"""Octets of IP and TCP headers without options."""


def header_of(
    frame: bytes, sizes: SegmentSizes | None = None, counters: Counters | None = None
) -> bytes:
    return virtio_header(frame, sizes or SegmentSizes(MTU), counters or Counters())


def counted(counters: Counters) -> tuple[int, int]:
    return counters.partial_checksums, counters.super_datagrams


# --- checksums --------------------------------------------------------------------------------

NOPS = [IPOption_NOP()]
TAGS = ("", "q", "aq")
"""VLAN tags: none, 802.1Q, 802.1ad and 802.1Q."""

PACKETS = {
    "tcp4": ip4(tcp(b"payload")),
    "udp4": ip4(udp(b"payload")),
    "tcp4 empty": ip4(tcp()),
    "udp4 empty": ip4(udp()),
    "udp4 odd": ip4(udp(b"odd")),
    "tcp4 options": ip4(tcp(b"payload", options=[("MSS", 1460)]), options=NOPS * 8),
    "udp4 large": ip4(udp(bytes(range(250)) * 40)),
    "tcp6": ip6(tcp(b"payload")),
    "udp6": ip6(udp(b"payload")),
    "udp6 hop-by-hop": ip6(hop(udp(b"payload"))),
    "udp6 destination": ip6(dest(udp(b"payload"))),
    "tcp6 both": ip6(hop(dest(tcp(b"payload")))),
}


def test_partial_checksum(subtests: pytest.Subtests) -> None:
    for name, tags in product(PACKETS, TAGS):
        with subtests.test(name, tags=tags):
            packet = ether(PACKETS[name], tags=tags)
            transport, frame, counters = layout(packet), partial(packet), Counters()
            assert frame != bytes(packet)
            header = header_of(frame, counters=counters)
            assert parse_virtio(header) == (
                1,
                0,
                0,
                0,
                transport.offset,
                transport.checksum_at - transport.offset,
            )
            assert finish(frame, header) == bytes(packet)
            assert counted(counters) == (1, 0)


def test_complete_checksum(subtests: pytest.Subtests) -> None:
    for name, tags in product(PACKETS, TAGS):
        with subtests.test(name, tags=tags):
            counters = Counters()
            assert (
                header_of(bytes(ether(PACKETS[name], tags=tags)), counters=counters) == virtio.PLAIN
            )
            assert counted(counters) == (0, 0)


@pytest.mark.parametrize("name", PACKETS)
def test_wrong_checksum_is_kept(name: str) -> None:
    frame = bytearray(partial(ether(PACKETS[name])))
    frame[layout(ether(PACKETS[name])).checksum_at] ^= 0x10
    counters = Counters()
    assert header_of(bytes(frame), counters=counters) == virtio.PLAIN
    assert counted(counters) == (0, 0)


@pytest.mark.parametrize("version", [4, 6])
def test_udp_without_checksum(version: int) -> None:
    frame = bytes(ether(ip(version, udp(b"payload", chksum=0))))
    assert header_of(frame) == virtio.PLAIN


@given(st.sampled_from([4, 6]), st.sampled_from(["tcp", "udp"]), st.binary(max_size=100), st.data())
def test_random_payload(version: int, protocol: str, payload: bytes, data: st.DataObject) -> None:
    ports = {name: data.draw(st.integers(0, 0xFFFF)) for name in ("sport", "dport")}
    packet = ether(ip(version, (tcp if protocol == "tcp" else udp)(payload, **ports)))
    frame = partial(packet)
    if frame != bytes(packet):
        assert header_of(bytes(packet)) == virtio.PLAIN
    assert finish(frame, header_of(frame)) == bytes(packet)


@pytest.mark.parametrize("version", [4, 6])
def test_udp_checksum_of_zero_becomes_all_ones(version: int) -> None:
    # In UDP 0 means that there is no checksum, so 0xFFFF is stored, which is the same number.
    bare = layout(ether(ip(version, udp(b"\0\0"))))
    rest = loop_sum(bare.pseudo_header + bytes(ether(ip(version, udp(b"\0\0", chksum=0))))[-10:])
    packet = ether(ip(version, udp((0xFFFF - rest).to_bytes(2, "big"))))
    assert struct.unpack_from("!H", bytes(packet), bare.checksum_at) == (0xFFFF,)
    assert header_of(bytes(packet)) == virtio.PLAIN
    assert finish(partial(packet), header_of(partial(packet))) == bytes(packet)


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_any_buffer(kind: type) -> None:
    for packet in PACKETS.values():
        frame = partial(ether(packet))
        assert virtio_header(kind(frame), SegmentSizes(MTU), Counters()) == header_of(frame)


# --- a complete checksum that looks partial ---------------------------------------------------


def coincidence(version: int, protocol: str, payload: bytes = b"payload!", **fields: int) -> bytes:
    """Build a frame whose complete checksum equals the sum of its pseudo-header.

    The last two octets of the payload are chosen for that. If the pseudo-header sums to P, and
    everything else to S, then P + S must be the complement of P.
    """
    make = tcp if protocol == "tcp" else udp
    bare = ether(ip(version, make(payload + b"\0\0", **fields)))
    transport = layout(bare)
    frame = bytearray(partial(bare))
    pseudo = loop_sum(transport.pseudo_header)
    rest = loop_sum(bytes(frame[transport.offset :]))
    frame[transport.offset + transport.length - 2 : transport.offset + transport.length] = (
        (-pseudo - rest) % 0xFFFF
    ).to_bytes(2, "big")
    return bytes(frame)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("port", [1, 1000, 0xFFFF])
def test_coincidence_is_harmless(version: int, protocol: str, port: int) -> None:
    frame = coincidence(version, protocol, dport=port)
    # The checksum is complete, so a receiver accepts the frame.
    transport = inet.find_transport(frame)
    assert transport is not None
    assert loop_sum(frame[transport.offset :]) ^ 0xFFFF == inet.pseudo_sum(frame, transport)
    header = header_of(frame)
    assert parse_virtio(header).flags == 1
    assert finish(frame, header) == frame


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("padding", [bytes(1), bytes(18)])
def test_padding_with_zeros(version: int, protocol: str, padding: bytes) -> None:
    frame = coincidence(version, protocol) + padding
    assert finish(frame, header_of(frame)) == frame
    packet = ether(ip(version, (tcp if protocol == "tcp" else udp)(b"data")))
    frame = partial(packet) + padding
    assert parse_virtio(header_of(frame)).flags == 1
    assert finish(frame, header_of(frame)) == bytes(packet) + padding


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("padding", [b"\1", b"\0\0\0\1", b"leaked memory"])
def test_padding_with_other_octets(version: int, protocol: str, padding: bytes) -> None:
    frame, counters = coincidence(version, protocol) + padding, Counters()
    assert header_of(frame, counters=counters) == virtio.PLAIN
    assert counted(counters) == (0, 0)


@pytest.mark.parametrize("udp_length", [0, 8, 17, 19])
def test_udp_length_unlike_the_ip_length(udp_length: int) -> None:
    frame = bytearray(coincidence(4, "udp"))
    transport = inet.find_transport(frame)
    assert transport is not None
    assert transport.length == 18
    assert header_of(bytes(frame)) != virtio.PLAIN
    struct.pack_into("!H", frame, transport.offset + 4, udp_length)
    assert header_of(bytes(frame)) == virtio.PLAIN


# --- superframes ------------------------------------------------------------------------------

SUPER = bytes(range(256)) * 16


WRAPS: dict[str, tuple[int, Wrap]] = {
    "v4": (4, ip4),
    "v4 options": (4, lambda body: ip4(body, options=NOPS * 8)),
    "v6": (6, ip6),
    "v6 extensions": (6, lambda body: ip6(hop(dest(body)))),
}
FLAGS = ("A", "PA", "FPA", "AC", "AE", "AEC")


def test_superframe(subtests: pytest.Subtests) -> None:
    for (name, (version, wrap)), flags, tags in product(WRAPS.items(), FLAGS, TAGS):
        with subtests.test(name, flags=flags, tags=tags):
            packet = ether(wrap(tcp(SUPER, flags=flags, options=[("NOP", None)] * 12)), tags=tags)
            transport, frame, counters = layout(packet), partial(packet), Counters()
            header = header_of(frame, counters=counters)
            parsed = parse_virtio(header)
            gso_type = {4: 1, 6: 4}[version] | (0x80 if "C" in flags else 0)
            headers = len(frame) - len(SUPER)
            assert parsed == (
                1,
                gso_type,
                headers,
                MTU - (headers - transport.ip_offset),
                transport.offset,
                16,
            )
            assert finish(frame, header) == bytes(packet)
            assert counted(counters) == (1, 1)


@pytest.mark.parametrize(
    ("version", "payload_max"), [(4, MTU - HEADERS[4]), (6, MTU - HEADERS[6])], ids=["v4", "v6"]
)
def test_smallest_superframe(version: int, payload_max: int) -> None:
    gso_type = {4: 1, 6: 4}[version]
    for length, kind in ((payload_max - 1, 0), (payload_max, 0), (payload_max + 1, gso_type)):
        counters = Counters()
        frame = partial(ether(ip(version, tcp(bytes(length)))))
        parsed = parse_virtio(header_of(frame, counters=counters))
        assert parsed.gso_type == kind
        assert parsed.gso_size == (payload_max if kind else 0)
        assert counted(counters) == (1, 1 if kind else 0)


@pytest.mark.parametrize("version", [4, 6])
def test_largest_superframe(version: int) -> None:
    payload = bytes(65507 - 8 - 14 - HEADERS[version])
    frame = partial(ether(ip(version, tcp(payload))))
    assert len(frame) == 65507 - 8
    for mtu in (68, 1450, 9000, MTU_MAX):
        assert size_for(frame, SegmentSizes(mtu)) == mtu - HEADERS[version]


@pytest.mark.parametrize("version", [4, 6])
def test_complete_checksum_is_not_a_superframe(version: int) -> None:
    assert header_of(bytes(ether(ip(version, tcp(SUPER))))) == virtio.PLAIN


@pytest.mark.parametrize("version", [4, 6])
def test_udp_without_a_size_is_not_a_superframe(version: int) -> None:
    parsed = parse_virtio(header_of(partial(ether(ip(version, udp(SUPER))))))
    assert (parsed.flags, parsed.gso_type, parsed.gso_size) == (1, 0, 0)


@pytest.mark.parametrize("data_offset", [0, 4])
def test_invalid_data_offset_is_not_a_superframe(data_offset: int) -> None:
    counters = Counters()
    frame = partial(ether(ip4(tcp(SUPER, dataofs=data_offset))))
    parsed = parse_virtio(header_of(frame, counters=counters))
    assert (parsed.flags, parsed.gso_type) == (1, 0)
    assert counted(counters) == (1, 0)


def test_segment_size_has_a_minimum() -> None:
    frame = partial(ether(ip4(tcp(SUPER))))
    assert parse_virtio(header_of(frame, SegmentSizes(1))).gso_size == 8


# --- announced segment sizes ------------------------------------------------------------------


def syn(
    version: int,
    mss: int | None,
    *,
    sport: int = 80,
    dport: int = 40000,
    flags: str = "S",
    payload: bytes = b"",
) -> bytes:
    """Build a SYN in the direction opposite to that of `data`."""
    options = [] if mss is None else [("MSS", mss)]
    body = tcp(payload, sport=sport, dport=dport, flags=flags, options=options)
    swapped = {"src": V4_B, "dst": V4_A} if version == 4 else {"src": V6_B, "dst": V6_A}
    return bytes(ether(ip(version, body, **swapped)))


def data(version: int, *, nops: int = 0, sport: int = 40000, dport: int = 80) -> bytes:
    body = tcp(SUPER, sport=sport, dport=dport, options=[("NOP", None)] * nops)
    return partial(ether(ip(version, body)))


def size_for(frame: bytes, sizes: SegmentSizes) -> int:
    return parse_virtio(header_of(frame, sizes)).gso_size


def default_size(version: int) -> int:
    """Return the segment size without an announcement."""
    return MTU - HEADERS[version]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("flags", ["S", "SA", "SEC"])
@pytest.mark.parametrize("mss", [8, 536, 1220])
def test_announced_size(version: int, flags: str, mss: int) -> None:
    sizes = SegmentSizes(MTU)
    observe(sizes, syn(version, mss, flags=flags))
    assert size_for(data(version), sizes) == mss


@pytest.mark.parametrize("version", [4, 6])
def test_announced_size_in_a_tagged_frame(version: int) -> None:
    sizes = SegmentSizes(MTU)
    frame = syn(version, 900)
    observe(sizes, frame[:12] + b"\x81\x00\x00\x05" + frame[12:])
    assert size_for(data(version), sizes) == 900


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("nops", [4, 12, 40])
def test_tcp_options_reduce_the_size(version: int, nops: int) -> None:
    sizes = SegmentSizes(MTU)
    assert size_for(data(version, nops=nops), sizes) == default_size(version) - nops
    observe(sizes, syn(version, 1000))
    assert size_for(data(version, nops=nops), sizes) == 1000 - nops


@pytest.mark.parametrize(
    ("version", "wrap", "octets"),
    [
        pytest.param(4, lambda body: ip4(body, options=NOPS * 8), 8, id="v4 options"),
        pytest.param(6, lambda body: ip6(hop(dest(body))), 16, id="v6 extensions"),
    ],
)
def test_ip_options_reduce_the_size(version: int, wrap: Wrap, octets: int) -> None:
    frame = partial(ether(wrap(tcp(SUPER))))
    sizes = SegmentSizes(MTU)
    assert size_for(frame, sizes) == default_size(version) - octets
    observe(sizes, syn(version, 1000))
    assert size_for(frame, sizes) == 1000 - octets


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mss", [1411, 9000, 0xFFFF])
def test_announced_size_above_the_mtu(version: int, mss: int) -> None:
    sizes = SegmentSizes(MTU)
    observe(sizes, syn(version, mss))
    assert size_for(data(version), sizes) == default_size(version)


def test_announced_size_below_the_options() -> None:
    sizes = SegmentSizes(MTU)
    observe(sizes, syn(4, 0))
    assert size_for(data(4, nops=40), sizes) == 8


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(lambda version: syn(version, None), id="no MSS option"),
        pytest.param(lambda version: syn(version, 900, flags="A"), id="not a SYN"),
        pytest.param(lambda version: syn(version, 900, flags="FPAUEC"), id="all but SYN"),
        pytest.param(lambda version: syn(version, 900, sport=81), id="other source port"),
        pytest.param(lambda version: syn(version, 900, dport=40001), id="other destination port"),
        pytest.param(
            lambda version: syn(version, 900, sport=40000, dport=80), id="ports not swapped"
        ),
        pytest.param(lambda version: syn(version, 900, payload=bytes(256)), id="long"),
        pytest.param(lambda version: syn(version, 900)[:-1], id="truncated"),
        pytest.param(lambda version: syn(10 - version, 900), id="other version"),
        pytest.param(
            lambda version: bytes(ether(ip(version, tcp(flags="S", options=[("MSS", 900)])))),
            id="same direction",
        ),
        pytest.param(lambda version: bytes(ether(ip(version, udp(b"\2" * 40)))), id="udp"),
    ],
)
def test_not_announced(version: int, frame: Callable[[int], bytes]) -> None:
    sizes = SegmentSizes(MTU)
    observe(sizes, frame(version))
    assert size_for(data(version), sizes) == default_size(version)


def test_longest_syn_that_is_examined() -> None:
    for length, size in ((256, 900), (257, default_size(4))):
        sizes = SegmentSizes(MTU)
        observe(sizes, syn(4, 900, payload=bytes(length - len(syn(4, 900)))))
        assert size_for(data(4), sizes) == size


def test_latest_announcement_applies() -> None:
    sizes = SegmentSizes(MTU)
    observe(sizes, syn(4, 900))
    observe(sizes, syn(4, 800))
    assert size_for(data(4), sizes) == 800


def stored_ports(sizes: SegmentSizes, ports: range) -> list[int]:
    return [port for port in ports if size_for(data(4, sport=port), sizes) == 900]


def test_only_the_latest_connections_are_stored() -> None:
    sizes = SegmentSizes(MTU, limit=3)
    for port in range(1, 6):
        observe(sizes, syn(4, 900, dport=port))
    assert stored_ports(sizes, range(1, 6)) == [3, 4, 5]


def test_repeated_syn_evicts_nothing_and_becomes_the_latest() -> None:
    sizes = SegmentSizes(MTU, limit=3)
    for port in (1, 2, 3, 1, 1, 3, 2, 2, 1):
        observe(sizes, syn(4, 900, dport=port))
    assert stored_ports(sizes, range(1, 6)) == [1, 2, 3]
    observe(sizes, syn(4, 900, dport=4))
    assert stored_ports(sizes, range(1, 6)) == [1, 2, 4]


def test_syn_without_announcement_evicts_nothing() -> None:
    sizes = SegmentSizes(MTU, limit=1)
    observe(sizes, syn(4, 900, dport=1))
    observe(sizes, syn(4, None, dport=2))
    assert stored_ports(sizes, range(1, 3)) == [1]


def test_default_limit() -> None:
    sizes = SegmentSizes(MTU)
    frame = bytearray(syn(4, 900))
    for port in range(1, 4098):
        frame[36:38] = port.to_bytes(2, "big")
        observe(sizes, bytes(frame))
    assert stored_ports(sizes, range(1, 4)) == [2, 3]
    assert stored_ports(sizes, range(4096, 4099)) == [4096, 4097]


def test_stored_size_does_not_refer_to_the_buffer() -> None:
    sizes = SegmentSizes(MTU)
    buffer = bytearray(syn(4, 900))
    observe(sizes, memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert size_for(data(4), sizes) == 900


# --- other frames -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", VALID)
def test_valid_frames_are_plain(name: str) -> None:
    assert header_of(VALID[name]) == virtio.PLAIN


def partial_fragment(version: int) -> bytes:
    """Build a first fragment whose checksum equals the sum of the pseudo-header."""
    packet = partial(ether(ip(version, udp(b"payload"))))
    if version == 4:
        return packet[:20] + b"\x20\x00" + packet[22:]
    body = packet[54:]
    return bytes(ether(ip6(IPv6ExtHdrFragment(nh=17, m=1) / Raw(body))))


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(partial_fragment(4), id="v4 fragment"),
        pytest.param(partial_fragment(6), id="v6 fragment"),
        pytest.param(bytes(ether(ip4(ICMP(chksum=0)))), id="icmp"),
        pytest.param(
            bytes(ether(ip6(IPv6ExtHdrRouting(addresses=[V6_B]) / udp(b"payload")))), id="routing"
        ),
        pytest.param(bytes(14), id="zeros"),
        pytest.param(b"\xff" * 200, id="ones"),
        pytest.param(partial(ether(ip4(udp(b"payload"))))[:-1], id="truncated"),
        pytest.param(partial(ether(ip6(tcp(b"payload"))))[:60], id="truncated header"),
    ],
)
def test_plain(frame: bytes) -> None:
    counters = Counters()
    assert header_of(frame, counters=counters) == virtio.PLAIN
    assert counted(counters) == (0, 0)


@given(HOSTILE, HOSTILE)
def test_arbitrary_frames(observed: bytes, frame: bytes) -> None:
    sizes, counters = SegmentSizes(MTU), Counters()
    observe(sizes, observed)
    header = virtio_header(frame, sizes, counters)
    assert len(header) == virtio.HEADER_LEN
    assert counted(counters)[0] == (header != virtio.PLAIN)


@given(
    st.sampled_from([partial(ether(packet)) for packet in PACKETS.values()] + [data(4), data(6)]),
    st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=3),
    st.integers(14, 5000),
    st.integers(0, 2000),
)
def test_mutated_partial_frames(
    frame: bytes, changes: list[tuple[int, int]], keep: int, mtu: int
) -> None:
    changed = bytearray(frame)
    for at, octet in changes:
        changed[at % len(changed)] = octet
    changed = changed[:keep]
    counters = Counters()
    parsed = parse_virtio(virtio_header(bytes(changed), SegmentSizes(mtu), counters))
    assert counted(counters) == (parsed.flags, parsed.gso_type != 0)
    # The kernel refuses a frame whose header violates these conditions.
    assert parsed.csum_start + parsed.csum_offset + 2 <= len(changed)
    assert parsed.hdr_len <= len(changed)
    assert (parsed.gso_size > 0) == (parsed.gso_type != 0)


@pytest.mark.parametrize("tags", ["", "q"])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("octets", [0, 1, 17, 4000])
def test_is_udp_superframe(version: int, tags: str, octets: int) -> None:
    ip = ip4 if version == 4 else ip6
    frame = bytes(ether(ip(UDP(sport=1, dport=2) / Raw(bytes(octets))), tags=tags))
    assert is_udp_superframe(frame)
    assert not is_udp_superframe(frame + frame)
    for end in range(len(frame) if octets < 100 else 100):
        assert not is_udp_superframe(frame[:end])
