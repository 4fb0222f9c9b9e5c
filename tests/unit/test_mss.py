"""Clamping: what the option holds afterwards, and whose checksum is right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tests.unit.craft import HOSTILE, ether, ip, layout, loop_sum, partial, tcp
from vtep.counters import Counters
from vtep.offload.mss import MssClamp
from vtep.wire import ip as inet

FLAGS = ("S", "SA", "SEC")


def syn(
    version: int, options: list[tuple[str, object]], tags: str = "", flags: str = "S"
) -> Packet:
    return ether(ip(version, tcp(flags=flags, options=options)), tags=tags)


def clamped(
    packet: bytes, mtu: int = 1450, fixed: int | None = None, *, is_partial: bool = False
) -> tuple[bytes, int]:
    """Clamp a frame. Returns: the frame and the count."""
    counters = Counters()
    frame = bytearray(packet)
    where = inet.find_transport(frame)
    assert where is not None
    MssClamp(counters, mtu, fixed).clamp(memoryview(frame), where, partial=is_partial)
    return bytes(frame), counters.mss_clamped


def mss(frame: bytes) -> int:
    return int(dict(Ether(frame)[TCP].options)["MSS"])


@given(
    version=st.sampled_from((4, 6)),
    announced=st.integers(0, 65535),
    mtu=st.integers(68, 9000),
    before=st.integers(0, 5),
    tags=st.sampled_from(("", "q", "aq")),
    flags=st.sampled_from(FLAGS),
)
def test_it_is_the_frame_that_would_have_announced_less(
    version: int, announced: int, mtu: int, before: int, tags: str, flags: str
) -> None:
    def frame(value: int) -> Packet:
        # No-operations put the value across two words of the checksum.
        nops: list[tuple[str, object]] = [("NOP", None)] * before
        return syn(version, [*nops, ("MSS", value), ("SAckOK", b"")], tags, flags)

    most = max(8, mtu - 4 * len(tags) - {4: 40, 6: 60}[version])
    done, count = clamped(bytes(frame(announced)), mtu)
    assert done == bytes(frame(min(announced, most)))
    assert count == (announced > most)


@given(st.sampled_from((4, 6)), st.integers(0, 3), st.integers(1, 0xFFFF))
def test_a_wrong_checksum_stays_as_wrong(version: int, before: int, wrong: int) -> None:
    packet = syn(version, [*[("NOP", None)] * before, ("MSS", 1460)])
    frame = bytearray(bytes(packet))
    at = layout(packet).checksum_at
    value = int.from_bytes(frame[at : at + 2], "big") ^ wrong
    frame[at : at + 2] = value.to_bytes(2, "big")
    done, _ = clamped(bytes(frame))

    def residue(octets: bytes) -> int:
        where = layout(packet)
        return loop_sum(where.pseudo_header + octets[where.offset :]) % 0xFFFF

    assert residue(done) == residue(bytes(frame))
    assert mss(done) < 1460


@pytest.mark.parametrize("version", [4, 6])
def test_a_partial_checksum_does_not_know_of_it(version: int) -> None:
    def frame(value: int) -> bytes:
        return partial(syn(version, [("MSS", value)]))

    assert clamped(frame(1460), is_partial=True) == (frame(1450 - {4: 40, 6: 60}[version]), 1)


@pytest.mark.parametrize(("announced", "most"), [(1460, 1200), (1200, 1200), (900, 900)])
def test_a_fixed_value_holds_whatever_the_mtu(announced: int, most: int) -> None:
    for version in (4, 6):
        for mtu in (1000, 9000):
            done, count = clamped(bytes(syn(version, [("MSS", announced)])), mtu, fixed=1200)
            assert (mss(done), count) == (most, announced > 1200)


@pytest.mark.parametrize(
    "options",
    [
        b"",
        b"\x01\x01\x01\x01",
        b"\0\0\0\0\x02\x04\xff\xff",
        b"\x08\x01\x02\x04\xff\xff\0\0",
        b"\x08\0\x02\x04\xff\xff\0\0",
        b"\x05\x20\x02\x04\xff\xff\0\0",
        b"\x02\x03\xff\0",
        b"\x02\x05\xff\xff\xff\0\0\0",
        b"\x01\x01\x01\x02",
        b"\x01\x02\x04\xff",
    ],
)
def test_without_an_option_that_makes_sense_nothing_is_touched(options: bytes) -> None:
    frame = bytearray(bytes(ether(ip(4, tcp(flags="S", options=[("NOP", None)] * len(options))))))
    frame[54 : 54 + len(options)] = options
    assert clamped(bytes(frame)) == (bytes(frame), 0)


def test_a_change_of_the_mtu_is_followed() -> None:
    clamp = MssClamp(Counters(), 1450)
    for mtu, expected in ((1450, 1410), (1400, 1360), (1450, 1410)):
        clamp.mtu = mtu
        frame = bytearray(bytes(syn(4, [("MSS", 1460)])))
        where = inet.find_transport(frame)
        assert where is not None
        clamp.clamp(memoryview(frame), where, partial=False)
        assert mss(bytes(frame)) == expected


@given(HOSTILE)
def test_hostile_frames_change_in_two_fields_at_most(octets: bytes) -> None:
    frame = bytearray(octets)
    where = inet.find_transport(frame)
    if where is None or where.protocol != inet.TCP:
        return
    MssClamp(Counters(), 100).clamp(memoryview(frame), where, partial=False)
    assert len(frame) == len(octets)
    changed = {at for at, pair in enumerate(zip(frame, octets, strict=True)) if len(set(pair)) > 1}
    field = where.offset + 16
    assert len(changed - {field, field + 1}) <= 2
    assert all(at >= where.offset + 16 for at in changed)
