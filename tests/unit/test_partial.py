"""partial: what a sender left to hardware, and what it did not.

The oracle is scapy's finished checksum: a frame is made partial, and finished again by following
the virtio header as the kernel does; the octets must be those that scapy made.
"""

import struct
from collections.abc import Callable

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
from vtep.counters import Counters
from vtep.offload.partial import SegmentSizes, is_udp_superframe, virtio_header
from vtep.values import MTU_MAX
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


@pytest.mark.parametrize("tags", ["", "q", "aq"])
@pytest.mark.parametrize("name", PACKETS)
def test_partial_checksum(name: str, tags: str) -> None:
    packet = ether(PACKETS[name], tags=tags)
    where, frame, counters = layout(packet), partial(packet), Counters()
    assert frame != bytes(packet)
    header = header_of(frame, counters=counters)
    assert parse_virtio(header) == (1, 0, 0, 0, where.offset, where.checksum_at - where.offset)
    assert finish(frame, header) == bytes(packet)
    assert counted(counters) == (1, 0)


@pytest.mark.parametrize("tags", ["", "q", "aq"])
@pytest.mark.parametrize("name", PACKETS)
def test_finished_checksum(name: str, tags: str) -> None:
    counters = Counters()
    assert header_of(bytes(ether(PACKETS[name], tags=tags)), counters=counters) == virtio.PLAIN
    assert counted(counters) == (0, 0)


@pytest.mark.parametrize("name", PACKETS)
def test_wrong_checksum_is_left_as_it_is(name: str) -> None:
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
def test_any_payload(version: int, protocol: str, payload: bytes, data: st.DataObject) -> None:
    ports = {name: data.draw(st.integers(0, 0xFFFF)) for name in ("sport", "dport")}
    packet = ether(ip(version, (tcp if protocol == "tcp" else udp)(payload, **ports)))
    frame = partial(packet)
    if frame != bytes(packet):
        assert header_of(bytes(packet)) == virtio.PLAIN
    assert finish(frame, header_of(frame)) == bytes(packet)


@pytest.mark.parametrize("version", [4, 6])
def test_udp_checksum_that_comes_out_as_zero(version: int) -> None:
    # Zero would say that there is none, so 0xFFFF is stored, which is the same number.
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


# --- a finished checksum that looks partial ---------------------------------------------------


def coincidence(version: int, protocol: str, payload: bytes = b"payload!", **fields: int) -> bytes:
    """A frame with a finished checksum that is also the sum of its pseudo-header.

    The last two octets of the payload are free, so they can be chosen to make it so: with
    a pseudo-header sum of P and all else summing to S, P + S must be the complement of P.
    """
    make = tcp if protocol == "tcp" else udp
    bare = ether(ip(version, make(payload + b"\0\0", **fields)))
    where = layout(bare)
    frame = bytearray(partial(bare))
    pseudo = loop_sum(where.pseudo_header)
    rest = loop_sum(bytes(frame[where.offset :]))
    frame[where.offset + where.length - 2 : where.offset + where.length] = (
        (-pseudo - rest) % 0xFFFF
    ).to_bytes(2, "big")
    return bytes(frame)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("port", [1, 1000, 0xFFFF])
def test_coincidence_is_harmless(version: int, protocol: str, port: int) -> None:
    frame = coincidence(version, protocol, dport=port)
    # It is finished, so that a receiver who sums it finds no fault with it.
    where = inet.find_transport(frame)
    assert where is not None
    assert loop_sum(frame[where.offset :]) ^ 0xFFFF == inet.pseudo_sum(frame, where)
    header = header_of(frame)
    assert parse_virtio(header).flags == 1
    assert finish(frame, header) == frame


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("padding", [bytes(1), bytes(18)])
def test_zeros_at_the_end_add_nothing(version: int, protocol: str, padding: bytes) -> None:
    frame = coincidence(version, protocol) + padding
    assert finish(frame, header_of(frame)) == frame
    packet = ether(ip(version, (tcp if protocol == "tcp" else udp)(b"data")))
    frame = partial(packet) + padding
    assert parse_virtio(header_of(frame)).flags == 1
    assert finish(frame, header_of(frame)) == bytes(packet) + padding


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("padding", [b"\1", b"\0\0\0\1", b"leaked memory"])
def test_other_padding_would_be_summed_too(version: int, protocol: str, padding: bytes) -> None:
    frame, counters = coincidence(version, protocol) + padding, Counters()
    assert header_of(frame, counters=counters) == virtio.PLAIN
    assert counted(counters) == (0, 0)


@pytest.mark.parametrize("stated", [0, 8, 17, 19])
def test_octets_behind_the_udp_length_would_be_summed_too(stated: int) -> None:
    frame = bytearray(coincidence(4, "udp"))
    where = inet.find_transport(frame)
    assert where is not None
    assert where.length == 18
    assert header_of(bytes(frame)) != virtio.PLAIN
    struct.pack_into("!H", frame, where.offset + 4, stated)
    assert header_of(bytes(frame)) == virtio.PLAIN


# --- superframes ------------------------------------------------------------------------------

SUPER = bytes(range(256)) * 16


@pytest.mark.parametrize("tags", ["", "q", "aq"])
@pytest.mark.parametrize("flags", ["A", "PA", "FPA", "AC", "AE", "AEC"])
@pytest.mark.parametrize(
    ("version", "wrap"),
    [
        pytest.param(4, ip4, id="v4"),
        pytest.param(4, lambda body: ip4(body, options=NOPS * 8), id="v4 options"),
        pytest.param(6, ip6, id="v6"),
        pytest.param(6, lambda body: ip6(hop(dest(body))), id="v6 extensions"),
    ],
)
def test_superframe(version: int, wrap: Wrap, flags: str, tags: str) -> None:
    packet = ether(wrap(tcp(SUPER, flags=flags, options=[("NOP", None)] * 12)), tags=tags)
    where, frame, counters = layout(packet), partial(packet), Counters()
    header = header_of(frame, counters=counters)
    parsed = parse_virtio(header)
    gso_type = {4: 1, 6: 4}[version] | (0x80 if "C" in flags else 0)
    headers = len(frame) - len(SUPER)
    assert parsed == (1, gso_type, headers, MTU - (headers - where.ip_offset), where.offset, 16)
    assert finish(frame, header) == bytes(packet)
    assert counted(counters) == (1, 1)


@pytest.mark.parametrize(
    ("version", "room"), [(4, MTU - HEADERS[4]), (6, MTU - HEADERS[6])], ids=["v4", "v6"]
)
def test_where_superframes_begin(version: int, room: int) -> None:
    for length, kind in ((room - 1, 0), (room, 0), (room + 1, {4: 1, 6: 4}[version])):
        counters = Counters()
        frame = partial(ether(ip(version, tcp(bytes(length)))))
        parsed = parse_virtio(header_of(frame, counters=counters))
        assert parsed.gso_type == kind
        assert parsed.gso_size == (room if kind else 0)
        assert counted(counters) == (1, 1 if kind else 0)


@pytest.mark.parametrize("version", [4, 6])
def test_largest_superframe(version: int) -> None:
    payload = bytes(65507 - 8 - 14 - HEADERS[version])
    frame = partial(ether(ip(version, tcp(payload))))
    assert len(frame) == 65507 - 8
    for mtu in (68, 1450, 9000, MTU_MAX):
        assert size_for(frame, SegmentSizes(mtu)) == mtu - HEADERS[version]


@pytest.mark.parametrize("version", [4, 6])
def test_finished_superframe_is_only_a_large_frame(version: int) -> None:
    assert header_of(bytes(ether(ip(version, tcp(SUPER))))) == virtio.PLAIN


@pytest.mark.parametrize("version", [4, 6])
def test_udp_has_no_superframes(version: int) -> None:
    parsed = parse_virtio(header_of(partial(ether(ip(version, udp(SUPER))))))
    assert (parsed.flags, parsed.gso_type, parsed.gso_size) == (1, 0, 0)


@pytest.mark.parametrize("data_offset", [0, 4])
def test_superframe_with_a_nonsensical_data_offset_is_not_split(data_offset: int) -> None:
    counters = Counters()
    frame = partial(ether(ip4(tcp(SUPER, dataofs=data_offset))))
    parsed = parse_virtio(header_of(frame, counters=counters))
    assert (parsed.flags, parsed.gso_type) == (1, 0)
    assert counted(counters) == (1, 0)


def test_sizes_that_make_no_sense_still_split_into_something() -> None:
    frame = partial(ether(ip4(tcp(SUPER))))
    assert parse_virtio(header_of(frame, SegmentSizes(1))).gso_size == 8


# --- the sizes that SYNs announce -------------------------------------------------------------


def syn(
    version: int,
    mss: int | None,
    *,
    sport: int = 80,
    dport: int = 40000,
    flags: str = "S",
    payload: bytes = b"",
) -> bytes:
    """A SYN in the direction against that of `data`."""
    options = [] if mss is None else [("MSS", mss)]
    body = tcp(payload, sport=sport, dport=dport, flags=flags, options=options)
    swapped = {"src": V4_B, "dst": V4_A} if version == 4 else {"src": V6_B, "dst": V6_A}
    return bytes(ether(ip(version, body, **swapped)))


def data(version: int, *, nops: int = 0, sport: int = 40000, dport: int = 80) -> bytes:
    body = tcp(SUPER, sport=sport, dport=dport, options=[("NOP", None)] * nops)
    return partial(ether(ip(version, body)))


def size_for(frame: bytes, sizes: SegmentSizes) -> int:
    return parse_virtio(header_of(frame, sizes)).gso_size


def without(version: int) -> int:
    """The size where nothing was announced."""
    return MTU - HEADERS[version]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("flags", ["S", "SA", "SEC"])
@pytest.mark.parametrize("mss", [8, 536, 1220])
def test_announced_size(version: int, flags: str, mss: int) -> None:
    sizes = SegmentSizes(MTU)
    sizes.observe(syn(version, mss, flags=flags))
    assert size_for(data(version), sizes) == mss


@pytest.mark.parametrize("version", [4, 6])
def test_announced_size_behind_tags(version: int) -> None:
    sizes = SegmentSizes(MTU)
    frame = syn(version, 900)
    sizes.observe(frame[:12] + b"\x81\x00\x00\x05" + frame[12:])
    assert size_for(data(version), sizes) == 900


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("nops", [4, 12, 40])
def test_options_take_from_the_announced_size(version: int, nops: int) -> None:
    sizes = SegmentSizes(MTU)
    assert size_for(data(version, nops=nops), sizes) == without(version) - nops
    sizes.observe(syn(version, 1000))
    assert size_for(data(version, nops=nops), sizes) == 1000 - nops


@pytest.mark.parametrize(
    ("version", "wrap", "octets"),
    [
        pytest.param(4, lambda body: ip4(body, options=NOPS * 8), 8, id="v4 options"),
        pytest.param(6, lambda body: ip6(hop(dest(body))), 16, id="v6 extensions"),
    ],
)
def test_options_of_ip_take_from_it_too(version: int, wrap: Wrap, octets: int) -> None:
    frame = partial(ether(wrap(tcp(SUPER))))
    sizes = SegmentSizes(MTU)
    assert size_for(frame, sizes) == without(version) - octets
    sizes.observe(syn(version, 1000))
    assert size_for(frame, sizes) == 1000 - octets


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mss", [1411, 9000, 0xFFFF])
def test_announced_size_above_the_mtu(version: int, mss: int) -> None:
    sizes = SegmentSizes(MTU)
    sizes.observe(syn(version, mss))
    assert size_for(data(version), sizes) == without(version)


def test_announced_size_of_less_than_nothing() -> None:
    sizes = SegmentSizes(MTU)
    sizes.observe(syn(4, 0))
    assert size_for(data(4, nops=40), sizes) == 8


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(lambda version: syn(version, None), id="no size"),
        pytest.param(lambda version: syn(version, 900, flags="A"), id="no SYN"),
        pytest.param(lambda version: syn(version, 900, flags="FPAUEC"), id="all but SYN"),
        pytest.param(lambda version: syn(version, 900, sport=81), id="other source port"),
        pytest.param(lambda version: syn(version, 900, dport=40001), id="other destination port"),
        pytest.param(lambda version: syn(version, 900, sport=40000, dport=80), id="ports as ours"),
        pytest.param(lambda version: syn(version, 900, payload=bytes(256)), id="long"),
        pytest.param(lambda version: syn(version, 900)[:-1], id="cut"),
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
    sizes.observe(frame(version))
    assert size_for(data(version), sizes) == without(version)


def test_longest_syn_that_is_looked_at() -> None:
    for length, size in ((256, 900), (257, without(4))):
        sizes = SegmentSizes(MTU)
        sizes.observe(syn(4, 900, payload=bytes(length - len(syn(4, 900)))))
        assert size_for(data(4), sizes) == size


def test_the_latest_announcement_counts() -> None:
    sizes = SegmentSizes(MTU)
    sizes.observe(syn(4, 900))
    sizes.observe(syn(4, 800))
    assert size_for(data(4), sizes) == 800


def remembered(sizes: SegmentSizes, ports: range) -> list[int]:
    return [port for port in ports if size_for(data(4, sport=port), sizes) == 900]


def test_only_the_latest_connections_are_remembered() -> None:
    sizes = SegmentSizes(MTU, limit=3)
    for port in range(1, 6):
        sizes.observe(syn(4, 900, dport=port))
    assert remembered(sizes, range(1, 6)) == [3, 4, 5]


def test_a_repeated_syn_pushes_nothing_out_and_is_late() -> None:
    sizes = SegmentSizes(MTU, limit=3)
    for port in (1, 2, 3, 1, 1, 3, 2, 2, 1):
        sizes.observe(syn(4, 900, dport=port))
    assert remembered(sizes, range(1, 6)) == [1, 2, 3]
    sizes.observe(syn(4, 900, dport=4))
    assert remembered(sizes, range(1, 6)) == [1, 2, 4]


def test_a_syn_that_announces_nothing_pushes_nothing_out() -> None:
    sizes = SegmentSizes(MTU, limit=1)
    sizes.observe(syn(4, 900, dport=1))
    sizes.observe(syn(4, None, dport=2))
    assert remembered(sizes, range(1, 3)) == [1]


def test_memory_by_default_has_a_bound() -> None:
    sizes = SegmentSizes(MTU)
    frame = bytearray(syn(4, 900))
    for port in range(1, 4098):
        frame[36:38] = port.to_bytes(2, "big")
        sizes.observe(bytes(frame))
    assert remembered(sizes, range(1, 4)) == [2, 3]
    assert remembered(sizes, range(4096, 4099)) == [4096, 4097]


def test_what_was_observed_outlives_the_buffer() -> None:
    sizes = SegmentSizes(MTU)
    buffer = bytearray(syn(4, 900))
    sizes.observe(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert size_for(data(4), sizes) == 900


# --- everything else --------------------------------------------------------------------------


@pytest.mark.parametrize("name", VALID)
def test_valid_frames_are_plain(name: str) -> None:
    assert header_of(VALID[name]) == virtio.PLAIN


def partial_fragment(version: int) -> bytes:
    """Its first fragment has a checksum that would be partial if it were whole."""
    whole = partial(ether(ip(version, udp(b"payload"))))
    if version == 4:
        return whole[:20] + b"\x20\x00" + whole[22:]
    body = whole[54:]
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
        pytest.param(partial(ether(ip4(udp(b"payload"))))[:-1], id="cut"),
        pytest.param(partial(ether(ip6(tcp(b"payload"))))[:60], id="cut in its header"),
    ],
)
def test_plain(frame: bytes) -> None:
    counters = Counters()
    assert header_of(frame, counters=counters) == virtio.PLAIN
    assert counted(counters) == (0, 0)


@given(HOSTILE, HOSTILE)
def test_any_frame(seen: bytes, frame: bytes) -> None:
    sizes, counters = SegmentSizes(MTU), Counters()
    sizes.observe(seen)
    header = virtio_header(frame, sizes, counters)
    assert len(header) == virtio.HEADER_LEN
    assert counted(counters)[0] == (header != virtio.PLAIN)


@given(
    st.sampled_from([partial(ether(packet)) for packet in PACKETS.values()] + [data(4), data(6)]),
    st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=3),
    st.integers(14, 5000),
    st.integers(0, 2000),
)
def test_any_mutated_partial_frame(
    frame: bytes, changes: list[tuple[int, int]], keep: int, mtu: int
) -> None:
    changed = bytearray(frame)
    for at, octet in changes:
        changed[at % len(changed)] = octet
    changed = changed[:keep]
    counters = Counters()
    parsed = parse_virtio(virtio_header(bytes(changed), SegmentSizes(mtu), counters))
    assert counted(counters) == (parsed.flags, parsed.gso_type != 0)
    # What the kernel demands of a header, and else refuses the frame.
    assert parsed.csum_start + parsed.csum_offset + 2 <= len(changed)
    assert parsed.hdr_len <= len(changed)
    assert (parsed.gso_size > 0) == (parsed.gso_type != 0)


@pytest.mark.parametrize("tags", ["", "q"])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("octets", [0, 1, 17, 4000])
def test_udp_superframes_are_told_from_bursts(version: int, tags: str, octets: int) -> None:
    ip = ip4 if version == 4 else ip6
    frame = bytes(ether(ip(UDP(sport=1, dport=2) / Raw(bytes(octets))), tags=tags))
    assert is_udp_superframe(frame)
    assert not is_udp_superframe(frame + frame)
    for end in range(len(frame) if octets < 100 else 100):
        assert not is_udp_superframe(frame[:end])
