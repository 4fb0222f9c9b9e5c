"""ECN across the tunnel: the tables of RFC 6040, and the rewritten inner header read by scapy."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from tests.unit import craft
from vtep.wire import ecn

NOT, ECT0, ECT1, CE = 0b00, 0b10, 0b01, 0b11
"""ECN field values of RFC 3168, section 5."""

DROPPED = None

FIGURE_4 = {
    # Inner field: results for the outer fields Not-ECT, ECT(0), ECT(1), CE, as in RFC 6040.
    NOT: (NOT, NOT, NOT, DROPPED),
    ECT0: (ECT0, ECT0, ECT1, CE),
    ECT1: (ECT1, ECT1, ECT1, CE),
    CE: (CE, CE, CE, CE),
}
ROWS = [
    (inner, outer, result)
    for inner, row in FIGURE_4.items()
    for outer, result in zip((NOT, ECT0, ECT1, CE), row, strict=True)
]


def frame_of(version: int, tos: int, tags: str = "") -> bytes:
    fields = {"tos": tos} if version == 4 else {"tc": tos, "fl": 0xABCDE}
    return bytes(craft.ether(craft.ip(version, craft.udp(b"payload"), **fields), tags=tags))


def test_figure_4_of_rfc_6040(subtests: pytest.Subtests) -> None:
    for (inner, outer, result), version, tags in product(ROWS, (4, 6), ("", "q", "aq")):
        with subtests.test(inner=inner, outer=outer, version=version, tags=tags):
            for dscp in (0, 0xB8, 0xFC):
                frame = bytearray(frame_of(version, dscp | inner, tags))
                passed = ecn.decapsulate(memoryview(frame), outer)
                assert passed is (result is not DROPPED)
                expected = inner if result is None else result
                assert frame == frame_of(version, dscp | expected, tags)


@pytest.mark.parametrize(
    ("mode", "row"),
    [("rfc6040", (NOT, ECT1, ECT0, CE)), ("kernel", (NOT, ECT1, ECT0, ECT0))],
)
def test_encapsulation(mode: str, row: tuple[int, ...]) -> None:
    assert tuple(ecn.ENCAPSULATED[mode][inner] for inner in (NOT, ECT1, ECT0, CE)) == row


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.integers(0, 255), st.integers(0, 3))
def test_ipv4_checksum_is_updated(ident: int, total: int, tos: int, outer: int) -> None:
    packet = IP(src=craft.V4_A, dst=craft.V4_B, id=ident, len=total, tos=tos, ttl=1)
    frame = bytearray(bytes(Ether(src=craft.MAC_A, dst=craft.MAC_B) / packet))
    if not ecn.decapsulate(frame, outer):
        return
    after = Ether(bytes(frame))[IP]
    carried = after.chksum
    del after.chksum
    assert IP(bytes(after)).chksum == carried


@given(st.integers(0, 0xFFFF))
def test_a_wrong_checksum_stays_wrong(field: int) -> None:
    good = frame_of(4, ECT0)
    frame = bytearray(good)
    frame[24:26] = field.to_bytes(2, "big")
    assert ecn.decapsulate(frame, CE)
    right = IP(frame_of(4, CE)[14:]).chksum
    before = IP(good[14:]).chksum
    wrong = int.from_bytes(frame[24:26], "big")
    assert (wrong - right) % 0xFFFF == (field - before) % 0xFFFF


@given(craft.HOSTILE, st.integers(0, 3))
def test_arbitrary_frames(frame: bytes, outer: int) -> None:
    data = bytearray(frame)
    passed = ecn.decapsulate(memoryview(data), outer)
    assert len(data) == len(frame)
    changed = [at for at in range(len(frame)) if data[at] != frame[at]]
    # One octet with the ECN field, and two of the IPv4 checksum.
    assert len(changed) <= 3
    if not passed:
        assert not changed
        assert outer == CE


@pytest.mark.parametrize("frame", [craft.VALID["arp"], b"\xff" * 14, b"\0" * 12 + b"\x81\0"])
def test_other_protocols_pass_unchanged(frame: bytes) -> None:
    data = bytearray(frame)
    assert ecn.decapsulate(data, CE)
    assert data == frame


def test_flow_label_is_preserved() -> None:
    frame = bytearray(frame_of(6, ECT0))
    assert ecn.decapsulate(frame, CE)
    assert Ether(bytes(frame))[IPv6].fl == 0xABCDE
