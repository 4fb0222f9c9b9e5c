"""IPv4 fragmentation, judged by reassembly and by scapy."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, IPOption_NOP, IPOption_Router_Alert, IPOption_RR, defragment
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.unit.craft import ether, ip4, loop_sum, udp
from vtep.offload.fragment import fragment

PREFIX = b"VXLAN..."


def cut(frame: bytes, mtu: int, at: int = 14) -> list[bytes]:
    done = fragment(memoryview(frame), at, at + mtu, PREFIX)
    assert done is not None
    run, stride = done
    pieces = [run[begin : begin + stride] for begin in range(0, len(run), stride)]
    assert all(piece.startswith(PREFIX + frame[:at]) for piece in pieces)
    return [piece[len(PREFIX) :] for piece in pieces]


def put_together(frames: list[bytes]) -> bytes:
    (whole,) = defragment([Ether(frame) for frame in frames])  # type: ignore[no-untyped-call]
    return bytes(whole)


def words(frame: bytes, at: int = 14) -> tuple[int, int]:
    """Return flags and offset, in units of 8 octets."""
    (word,) = struct.unpack_from("!H", frame, at + 6)
    return word >> 13, word & 0x1FFF


def reassembled(frames: list[bytes], at: int = 14) -> tuple[int, bytes, bool]:
    """Offset of the first, payload, and whether more is to follow; raises where there is a gap."""
    payload = b""
    first = words(frames[0], at)[1]
    for number, frame in enumerate(frames):
        header_len = (frame[at] & 15) * 4
        flags, offset = words(frame, at)
        assert offset == first + len(payload) // 8
        assert flags & 1 or number == len(frames) - 1
        assert struct.unpack_from("!H", frame, at + 2)[0] == len(frame) - at
        assert loop_sum(frame[at : at + header_len]) == 0xFFFF
        payload += frame[at + header_len :]
    return first, payload, bool(words(frames[-1], at)[0] & 1)


@given(
    payload=st.binary(min_size=1, max_size=4000),
    mtu=st.integers(68, 1500),
    tags=st.sampled_from(("", "q", "aq")),
    before=st.integers(0, 5000),
    more=st.booleans(),
    options=st.integers(0, 10),
)
def test_reassembly_gives_the_packet(
    payload: bytes, mtu: int, tags: str, before: int, more: bool, options: int
) -> None:
    """Also that of a packet which is a fragment already."""
    if mtu < 20 + options * 4 + 8:
        mtu += 40
    if more:
        payload += bytes(-len(payload) % 8)
    fields = {
        "frag": before,
        "flags": "MF" if more else 0,
        "options": [IPOption_NOP()] * options * 4,
    }
    frame = bytes(ether(ip4(Raw(payload), proto=17, **fields), tags=tags))
    at = 14 + 4 * len(tags)
    frames = cut(frame, mtu, at)
    assert reassembled(frames, at) == (before, payload, more)
    assert all(len(piece) <= at + mtu for piece in frames)
    # None is smaller than it has to be.
    assert all(len(piece) + 8 > at + mtu for piece in frames[:-1])


@given(payload=st.binary(min_size=1, max_size=4000), room=st.integers(6, 180))
def test_it_is_what_scapy_makes_of_it(payload: bytes, room: int) -> None:
    packet = ether(ip4(udp(payload), tos=4, ttl=3, id=65535))
    ours = cut(bytes(packet), 20 + room * 8)
    theirs = Ether(bytes(packet))[IP].fragment(fragsize=room * 8)
    assert ours == [bytes(packet)[:14] + bytes(piece) for piece in theirs]


def test_scapy_puts_them_together() -> None:
    packet = ether(ip4(udp(bytes(range(256)) * 12)))
    frames = cut(bytes(packet), 600)
    assert put_together(frames) == bytes(packet)


def test_a_fragment_of_fragments_is_put_together() -> None:
    packet = bytes(ether(ip4(udp(bytes(range(256)) * 12))))
    frames = [small for large in cut(packet, 1500) for small in cut(large, 700)]
    assert put_together(frames) == packet


def test_options_go_where_they_belong() -> None:
    """RFC 791: a route is recorded in the first only; a router alert is in all."""
    options = [IPOption_RR(length=7, pointer=4, routers=["0.0.0.0"]), IPOption_Router_Alert()]
    frame = bytes(ether(ip4(udp(b"x" * 3000), options=options)))
    frames = cut(frame, 1500)
    assert len(frames) == 3
    assert frames[0][34:46] == frame[34:46]
    for later in frames[1:]:
        assert later[34:41] == b"\x01" * 7
        assert later[41:45] == frame[41:45] == b"\x94\x04\0\0"
        assert Ether(later)[IP].ihl == 8


@pytest.mark.parametrize(
    "options", [b"\x07\0\0\0", b"\x01\x01\x01\x07", b"\x07\x05\0\0", b"\0\x07\x04\0"]
)
def test_options_that_make_no_sense_are_repeated(options: bytes) -> None:
    frame = bytearray(bytes(ether(ip4(udp(b"x" * 100), options=[IPOption_NOP()] * 4))))
    frame[34:38] = options
    for piece in cut(bytes(frame), 68):
        assert piece[34:38] == options


def test_bits_that_are_not_ours_survive() -> None:
    frame = bytes(ether(ip4(udp(b"x" * 100), flags="evil")))
    assert [words(piece)[0] for piece in cut(frame, 68)] == [5, 5, 4]


@pytest.mark.parametrize(("mtu", "fits"), [(27, False), (28, True)])
def test_there_must_be_room_for_payload(mtu: int, fits: bool) -> None:
    frame = memoryview(bytes(ether(ip4(udp(b"x" * 100)))))
    assert (fragment(frame, 14, 14 + mtu, b"") is not None) == fits


@pytest.mark.parametrize(("size", "fits"), [(27, True), (28, False)])
def test_offsets_do_not_overflow(size: int, fits: bool) -> None:
    """The last octet that any offset reaches is number 65,535 of the packet."""
    frame = bytes(ether(ip4(Raw(b"x" * size), frag=8186, proto=17)))
    assert 20 + 8186 * 8 + 27 == 65535
    assert (fragment(memoryview(frame), 14, 14 + 28, b"") is not None) == fits
