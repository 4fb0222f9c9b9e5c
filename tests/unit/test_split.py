"""Segmentation of superframes, and completion of partial checksums.

The tables are compared with scapy, which builds every segment by itself. Random frames are compared
with the reference implementation, and that with scapy.
"""

import sys
import tracemalloc
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import product
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.unit import twins
from tests.unit.twins import (
    ACK,
    BASIC,
    CHECKSUM_AT,
    CWR,
    ECE,
    FIN,
    GARBAGE,
    GSO_ECN,
    GSO_TYPE,
    KINDS,
    PSH,
    Frame,
)
from vtep.offload.headers import row_sums
from vtep.offload.split import SplitError, Splitter, finish_checksum, finish_checksums
from vtep.wire import virtio

PREFIX = bytes.fromhex("0800000000000100")


def gso(frame: Frame, size: int, **fields: int) -> virtio.Header:
    """Build the virtio header that the kernel sends with a superframe."""
    shape = frame.shape
    header = virtio.Header(
        flags=1,
        gso_type=GSO_TYPE[shape.version, shape.protocol],
        hdr_len=shape.payload,
        gso_size=size,
        csum_start=shape.upper,
        csum_offset=CHECKSUM_AT[shape.protocol],
    )
    return header._replace(**fields)


def octets(size: int) -> bytes:
    return Random(size).randbytes(size)


def pieces(splitter: Splitter, frame: bytes, header: virtio.Header, prefix: bytes) -> list[bytes]:
    """Split a frame and return its segments; the output is filled first to expose stale octets."""
    splitter.out[:] = 0xA5
    end, stride = splitter.split(memoryview(frame), header)
    segments = [bytes(splitter.out[at : min(at + stride, end)]) for at in range(0, end, stride)]
    assert all(segment.startswith(prefix) for segment in segments)
    return [segment[len(prefix) :] for segment in segments]


def split(frame: Frame | bytes, header: virtio.Header) -> list[bytes]:
    frame = frame if isinstance(frame, bytes) else frame.build()
    return pieces(Splitter(PREFIX), frame, header, PREFIX)


# --- scapy ------------------------------------------------------------------------------------


def scapy_packet(frame: Frame) -> Packet:
    """Build the frame with scapy, which computes all lengths and checksums."""
    upper: Packet = UDP(sport=frame.sport, dport=frame.dport)
    if frame.protocol == twins.TCP:
        upper = TCP(
            sport=frame.sport,
            dport=frame.dport,
            seq=frame.seq,
            ack=frame.ack,
            reserved=frame.reserved >> 1,
            flags=(frame.reserved & 1) << 8 | frame.flags,
            window=frame.window,
            urgptr=frame.urgent,
            dataofs=5 + len(frame.options) // 4,
        ) / Raw(frame.options)
    network: Packet
    if frame.version == 4:
        network = IP(
            src=f"10.1.0.{frame.source}",
            dst="10.1.0.99",
            tos=frame.tos,
            id=frame.ident,
            flags=frame.fragment >> 13,
            frag=frame.fragment & 0x1FFF,
            ttl=frame.ttl,
            options=[IPOption_NOP()] * len(frame.between),
        )
    else:
        network = IPv6(
            src=f"fd00::{frame.source:x}",
            dst="fd00::63",
            tc=frame.tos,
            fl=frame.label,
            hlim=frame.ttl,
        )
        if frame.between:
            network /= {0: IPv6ExtHdrHopByHop, 60: IPv6ExtHdrDestOpt}[frame.extension]()
    packet: Packet = network / upper / Raw(frame.payload)
    for tpid, tci in reversed(frame.tags):
        tag = {0x8100: Dot1Q, 0x88A8: Dot1AD}[tpid]
        packet = tag(prio=tci >> 13, dei=tci >> 12 & 1, vlan=tci & 0xFFF) / packet
    return Ether(src=frame.src.hex(":"), dst=frame.dst.hex(":")) / packet


def scapy_split(frame: Frame, size: int) -> list[bytes]:
    """Build each segment by itself, as a sender without offload does."""
    count = -(-len(frame.payload) // size)
    segments = []
    for number in range(count):
        flags = frame.flags
        flags &= ~CWR if number > 0 else 0xFF
        flags &= ~(FIN | PSH) if number < count - 1 else 0xFF
        segment = replace(
            frame,
            payload=frame.payload[number * size : (number + 1) * size],
            ident=(frame.ident + number) % 2**16,
            seq=(frame.seq + number * size) % 2**32,
            flags=flags,
        )
        segments.append(bytes(scapy_packet(segment)))
    return segments


IPV6_PAD = b"\0\0\1\4\0\0\0\0"
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "vlan": {"tags": ((0x8100, 0x6005),)},
    "qinq": {"tags": ((0x88A8, 5), (0x8100, 0xF006))},
    "IP fields": {"tos": 0xFE, "label": 0xABCDE, "ttl": 1, "fragment": 0x8000, "window": 0},
    "flags": {"flags": ACK | FIN | PSH | CWR | ECE, "reserved": 1},
    "all flags": {"flags": 0xFF, "urgent": 3, "reserved": 0xF},
    "wraps": {"ident": 0xFFFE, "seq": 0xFFFF_FFC0},
    "options": {"options": bytes([1, 1, 8, 10, *range(8)])},
    "all options": {"options": bytes([1] * 40)},
}
BETWEEN: dict[str, dict[str, Any]] = {
    "IP options": {"version": 4, "between": b"\1" * 12},
    "hop-by-hop": {"version": 6, "between": IPV6_PAD, "extension": 0},
    "destination": {"version": 6, "between": IPV6_PAD, "extension": 60},
}


def shaped(kind: str) -> list[Frame]:
    version, protocol = KINDS[kind]
    frames = [Frame(version, protocol, **changes) for changes in SHAPES.values()]
    return frames + [
        Frame(**{"protocol": protocol} | changes)
        for changes in BETWEEN.values()
        if changes["version"] == version
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_frames_and_reference_equal_scapy(kind: str) -> None:
    for frame in shaped(kind):
        superframe = replace(frame, payload=octets(250))
        assert superframe.build() == bytes(scapy_packet(superframe))
        assert superframe.head_len == len(superframe.build()) - 250
        assert twins.split(superframe.build(), gso(superframe, 100)) == scapy_split(superframe, 100)
        assert twins.dissect(superframe.build()) == superframe.shape
        assert twins.finish(replace(superframe, partial=True).build()) == superframe.build()


# --- the table --------------------------------------------------------------------------------


LENGTHS = {
    "S1-even": (200, 100),
    "S2-short-tail": (250, 100),
    "S2-tail-of-one": (201, 100),
    "S2-tail-one-less": (199, 100),
    "S2-odd": (303, 101),
    "S2-one-octet-each": (7, 1),
    "S7-one-segment": (100, 100),
    "S7-shorter-than-a-segment": (99, 100),
    "S7-largest-size": (1, 0xFFFF),
    "S2-usual": (9000, 1448),
}
"""Octets of payload, and the segment size."""


def test_lengths(subtests: pytest.Subtests) -> None:
    for (name, (payload, size)), kind in product(LENGTHS.items(), KINDS):
        with subtests.test(name, kind=kind):
            for frame in shaped(kind):
                superframe = replace(frame, payload=octets(payload), partial=True)
                assert split(superframe, gso(superframe, size)) == scapy_split(superframe, size)


@pytest.mark.parametrize(
    ("kind", "lengths"),
    [("tcp4", [140, 140]), ("tcp6", [160, 160]), ("udp4", [128, 128]), ("udp6", [148, 148])],
    ids=lambda value: f"S1-{value}" if isinstance(value, str) else "",
)
def test_packet_lengths(kind: str, lengths: list[int]) -> None:
    superframe = Frame(*KINDS[kind], payload=octets(200))
    assert [len(segment) - 14 for segment in split(superframe, gso(superframe, 100))] == lengths


def test_capacity(subtests: pytest.Subtests) -> None:
    for kind, tail, count in product(KINDS, (100, 1, 3, 50, 99), (1, 2, 5)):
        with subtests.test(kind=kind, tail=tail, count=count):
            # S3: a buffer of exactly the size needed, and of one octet less.
            superframe = Frame(*KINDS[kind], payload=octets((count - 1) * 100 + tail))
            need = len(superframe.payload) + count * (len(PREFIX) + superframe.head_len)
            exact = Splitter(PREFIX, need)
            assert pieces(exact, superframe.build(), gso(superframe, 100), PREFIX) == scapy_split(
                superframe, 100
            )
            for capacity in (need - 1, len(PREFIX) + 20, 0):
                with pytest.raises(SplitError, match="fit"):
                    Splitter(PREFIX, capacity).split(
                        memoryview(superframe.build()), gso(superframe, 100)
                    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [511, 512, 1448, 32767, 65000])
def test_largest_packet(kind: str, size: int) -> None:
    # S4: the largest value of the IP length field, which includes the IPv4 header.
    version, protocol = KINDS[kind]
    bare = Frame(version, protocol, payload=b"")
    largest = 0xFFFF - (bare.head_len - (14 if version == 4 else 54))
    superframe = replace(bare, payload=octets(largest), partial=True)
    assert split(superframe, gso(superframe, size)) == twins.split(
        superframe.build(), gso(superframe, size)
    )


SUPERFRAME = Frame(payload=octets(250))
REFUSED: dict[str, tuple[bytes, virtio.Header]] = {
    "S6-size-zero": (SUPERFRAME.build(), gso(SUPERFRAME, 0)),
    "S6-empty": (b"", gso(SUPERFRAME, 100)),
    "S6-one-octet": (b"\0", gso(SUPERFRAME, 100)),
    "S6-runt": (SUPERFRAME.build()[:13], gso(SUPERFRAME, 100)),
    "S6-no-ip": (SUPERFRAME.build()[:14], gso(SUPERFRAME, 100)),
    "S6-half-ip": (SUPERFRAME.build()[:33], gso(SUPERFRAME, 100)),
    "S6-cut": (SUPERFRAME.build()[:-1], gso(SUPERFRAME, 100)),
    "S6-half-tag": (Frame(tags=((0x8100, 1),)).build()[:17], gso(SUPERFRAME, 100)),
    "S6-no-payload": (Frame(payload=b"").build(), gso(SUPERFRAME, 100)),
    "S6-no-payload-udp": (
        Frame(protocol=twins.UDP, payload=b"").build(),
        gso(Frame(protocol=twins.UDP), 100),
    ),
    "S6-arp": (b"\xff" * 12 + b"\x08\x06" + bytes(46), gso(SUPERFRAME, 100)),
    "S6-fragment": (replace(SUPERFRAME, fragment=0x2000).build(), gso(SUPERFRAME, 100)),
    "S6-last-fragment": (replace(SUPERFRAME, fragment=3).build(), gso(SUPERFRAME, 100)),
    "S6-data-offset-small": (
        SUPERFRAME.build()[:46] + b"\x40" + SUPERFRAME.build()[47:],
        gso(SUPERFRAME, 100),
    ),
    "S6-data-offset-beyond": (
        Frame(payload=b"").build()[:46] + b"\x60" + Frame(payload=b"").build()[47:],
        gso(SUPERFRAME, 100),
    ),
}
for _name, _kind in KINDS.items():
    _frame = Frame(*_kind, payload=octets(250))
    for _type in (*range(8), 0x7F, *(GSO_TYPE[_kind] | 1 << bit for bit in range(3, 7))):
        if _type != GSO_TYPE[_kind]:
            for _ecn in (0, GSO_ECN):
                REFUSED[f"S8-{_name}-{_type | _ecn:#x}"] = (
                    _frame.build(),
                    gso(_frame, 100, gso_type=_type | _ecn),
                )


def test_refused(subtests: pytest.Subtests) -> None:
    for name, (frame, header) in REFUSED.items():
        with subtests.test(name):
            assert twins.split(frame, header) is None
            with pytest.raises(SplitError):
                Splitter(PREFIX).split(memoryview(frame), header)


@pytest.mark.parametrize("kind", ["tcp4", "tcp6"])
@pytest.mark.parametrize("flags", [ACK, ACK | CWR, ACK | CWR | ECE | PSH])
def test_ecn(kind: str, flags: int) -> None:
    # S8: only the first segment carries CWR, with or without the flag in the GSO type.
    superframe = Frame(*KINDS[kind], payload=octets(250), flags=flags)
    for gso_type in (GSO_TYPE[KINDS[kind]], GSO_TYPE[KINDS[kind]] | GSO_ECN):
        header = gso(superframe, 100, gso_type=gso_type)
        assert split(superframe, header) == scapy_split(superframe, 100)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"hdr_len": 0}, id="S9-none"),
        pytest.param({"hdr_len": 0xFFFF}, id="S9-largest"),
        pytest.param({"csum_start": 0, "csum_offset": 0}, id="S6-start-zero"),
        pytest.param({"csum_start": 0xFFFF, "csum_offset": 0xFFFF}, id="S6-start-beyond"),
        pytest.param({"flags": 0}, id="S9-no-checksum-requested"),
    ],
)
def test_ignored_fields(kind: str, fields: dict[str, int]) -> None:
    superframe = Frame(*KINDS[kind], payload=octets(250))
    assert split(superframe, gso(superframe, 100, **fields)) == scapy_split(superframe, 100)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "changes",
    [{"bad_checksum": 1}, {"checksum": 0}, {"bad_ip_checksum": 1}, {"udp_longer": 1}],
    ids=str,
)
def test_old_checksums_and_padding_are_ignored(kind: str, changes: dict[str, Any]) -> None:
    superframe = Frame(*KINDS[kind], payload=octets(250))
    wrong = replace(superframe, padding=b"padding", **changes)
    assert split(wrong, gso(superframe, 100)) == scapy_split(superframe, 100)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_udp_checksum_of_zero_becomes_all_ones(version: int, at: int) -> None:
    # S12: two octets of payload are chosen so that the checksum of one segment is 0.
    superframe = Frame(version, twins.UDP, payload=bytes(250))
    (chosen,) = {*split(superframe, gso(superframe, 100))[at : at + 1]}
    field = superframe.shape.upper + 6
    payload = bytearray(superframe.payload)
    payload[100 * at : 100 * at + 2] = chosen[field : field + 2]
    segments = split(replace(superframe, payload=bytes(payload)), gso(superframe, 100))
    assert [segment[field : field + 2] == b"\xff\xff" for segment in segments] == [
        number == at for number in range(3)
    ]
    assert segments == scapy_split(replace(superframe, payload=bytes(payload)), 100)


@pytest.mark.parametrize("version", [4, 6])
def test_tcp_checksum_of_zero_is_kept(version: int) -> None:
    superframe = Frame(version, payload=bytes(250))
    field = superframe.shape.upper + 16
    value = split(superframe, gso(superframe, 100))[0][field : field + 2]
    segment = split(replace(superframe, payload=value + bytes(248)), gso(superframe, 100))[0]
    assert segment[field : field + 2] == b"\0\0"


def test_ip_checksum_of_zero_is_kept() -> None:
    superframe = Frame(payload=octets(250))
    at = superframe.shape.ip
    (value,) = {split(superframe, gso(superframe, 100))[1][at + 10 : at + 12]}
    ident = (int.from_bytes(value, "big") + superframe.ident) % 0xFFFF
    segments = split(replace(superframe, ident=ident), gso(superframe, 100))
    assert segments == scapy_split(replace(superframe, ident=ident), 100)
    assert segments[1][at + 10 : at + 12] == b"\0\0"


# --- random superframes -----------------------------------------------------------------------


@st.composite
def superframes(draw: st.DrawFn) -> tuple[bytes, virtio.Header]:
    flow = draw(twins.flows(between=True, flags=0xFF))
    size = draw(st.one_of(st.integers(1, 100), st.sampled_from([536, 1448, 9000, 0xFFFF])))
    count = draw(st.integers(1, 9))
    length = max(1, min(9000, size * count) - draw(st.integers(0, min(size - 1, 99))))
    superframe = replace(
        flow,
        payload=octets(length),
        partial=draw(st.booleans()),
        padding=draw(twins.often(b"", st.binary(max_size=9))),
    )
    return superframe.build(), gso(superframe, size, hdr_len=draw(twins.U16))


@BASIC
@given(superframes(), st.binary(max_size=20))
def test_random_superframe(pair: tuple[bytes, virtio.Header], prefix: bytes) -> None:
    frame, header = pair
    assert pieces(Splitter(prefix), frame, header, prefix) == twins.split(frame, header)


@BASIC
@given(st.lists(superframes(), min_size=2, max_size=4))
def test_splitter_is_reusable(pairs: list[tuple[bytes, virtio.Header]]) -> None:
    splitter = Splitter(PREFIX)
    for frame, header in [*pairs, *pairs]:
        assert pieces(splitter, frame, header, PREFIX) == twins.split(frame, header)


# --- consecutive superframes ------------------------------------------------------------------


def consecutive_superframes(
    base: Frame, counts: Sequence[int], size: int, *, last: int | None = None
) -> list[tuple[Frame, virtio.Header]]:
    """Build superframes of one flow, each of which begins field the one before ends.

    `counts` are their numbers of segments.
    """
    data = octets(sum(counts) * size - size + (last or size))
    made, begin = [], 0
    for count in counts:
        payload = data[begin * size : (begin + count) * size]
        ident, seq = base.ident + begin & 0xFFFF, base.seq + begin * size
        superframe = replace(base, payload=payload, ident=ident, seq=seq)
        made.append((superframe, gso(superframe, size)))
        begin += count
    return made


def split_together(
    superframes: Iterable[tuple[bytes, virtio.Header]], capacity: int = 1 << 18
) -> tuple[list[int], list[bytes]]:
    """Split superframes, each together with its predecessor field possible.

    Returns: the number of superframes in each group, and all segments.
    """
    splitter = Splitter(PREFIX, capacity)
    lengths: list[int] = []
    segments: list[bytes] = []

    def finish() -> None:
        if not splitter.count:
            return
        count = splitter.count
        used, stride = splitter.finish()
        data = splitter.out[:used].tobytes()
        datagrams = [data[at : at + stride] for at in range(0, used, stride)]
        assert len(datagrams) == count
        assert {datagram[: len(PREFIX)] for datagram in datagrams} == {PREFIX}
        segments.extend(datagram[len(PREFIX) :] for datagram in datagrams)

    for frame, header in superframes:
        view = memoryview(bytearray(frame))
        if splitter.count and splitter.extend(view, header):
            lengths[-1] += 1
        else:
            finish()
            with suppress(SplitError):
                splitter.begin(view, header)
                lengths.append(1)
        view[:] = bytes(len(view))  # The next superframe is read to the same memory.
    finish()
    return lengths, segments


def split_separately(superframes: Iterable[tuple[bytes, virtio.Header]]) -> list[bytes]:
    return [segment for one in superframes for segment in twins.split(*one) or []]


CONTINUES: dict[str, tuple[tuple[str, ...], dict[str, Any], bool]] = {
    "unchanged": (tuple(KINDS), {}, True),
    "push": (("tcp4", "tcp6"), {"flags": ACK | PSH}, True),
    "fin": (("tcp4", "tcp6"), {"flags": ACK | FIN}, True),
    "cwr": (("tcp4", "tcp6"), {"flags": ACK | CWR}, True),
    "ece": (("tcp4", "tcp6"), {"flags": ACK | ECE}, False),
    "sequence": (("tcp4", "tcp6"), {"seq": 2}, False),
    "acknowledgement": (("tcp4", "tcp6"), {"ack": 10}, False),
    "window": (("tcp4", "tcp6"), {"window": 501}, False),
    "urgent": (("tcp4", "tcp6"), {"urgent": 1}, False),
    "options": (("tcp4", "tcp6"), {"options": b"\1\1\1\1"}, False),
    "identification": (("tcp4", "udp4"), {"ident": 9}, False),
    "fragments": (("tcp4", "udp4"), {"fragment": 0}, False),
    "ports": (tuple(KINDS), {"sport": 5}, False),
    "addresses": (tuple(KINDS), {"source": 5}, False),
    "tos": (tuple(KINDS), {"tos": 1}, False),
    "ttl": (tuple(KINDS), {"ttl": 63}, False),
    "label": (("tcp6", "udp6"), {"label": 1}, False),
    "tag": (tuple(KINDS), {"tags": ((0x8100, 5),)}, False),
    "mac": (tuple(KINDS), {"dst": b"\2\0\0\0\0\7"}, False),
    "checksums": (tuple(KINDS), {"bad_checksum": 1}, True),
    "header checksum": (("tcp4", "udp4"), {"bad_ip_checksum": 1}, True),
}


def test_changed_superframe(subtests: pytest.Subtests) -> None:
    """Change one of three superframes; the segments are those of separate splits in any case."""
    for name, (kinds, changes, continues) in CONTINUES.items():
        for kind, position in product(kinds, range(3)):
            with subtests.test(name, kind=kind, position=position):
                made = consecutive_superframes(Frame(*KINDS[kind]), (3, 4, 5), 100, last=7)
                frame, _ = made[position]
                changed = replace(frame, **changes)
                made[position] = changed, gso(changed, 100)
                superframes = [(frame.build(), header) for frame, header in made]
                lengths, segments = split_together(superframes)
                assert segments == split_separately(superframes)
                assert lengths == (
                    [3] if continues else {0: [1, 2], 1: [1, 1, 1], 2: [2, 1]}[position]
                )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", [{"gso_size": 99}, {"gso_size": 0}, {"gso_type": 3}])
def test_other_gso_fields_do_not_continue(kind: str, field: dict[str, int]) -> None:
    one, two = consecutive_superframes(Frame(*KINDS[kind]), (3, 3), 100)
    splitter = Splitter(PREFIX)
    splitter.begin(memoryview(one[0].build()), one[1])
    before = splitter.out.copy()
    assert splitter.extend(memoryview(two[0].build()), two[1]._replace(**field)) == 0
    assert (splitter.out == before).all()
    assert splitter.count == 3


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_continues_a_short_segment(kind: str) -> None:
    made = [
        *consecutive_superframes(Frame(*KINDS[kind]), (3,), 100, last=9),
        *consecutive_superframes(Frame(*KINDS[kind]), (9,), 100),
    ]
    made[1] = replace(made[1][0], ident=10, seq=1 + 209), made[1][1]
    superframes = [(frame.build(), header) for frame, header in made]
    lengths, segments = split_together(superframes)
    assert lengths == [1, 1]
    assert segments == split_separately(superframes)


@pytest.mark.parametrize("kind", KINDS)
def test_capacity_for_consecutive_superframes(kind: str) -> None:
    made = consecutive_superframes(Frame(*KINDS[kind]), (2, 2, 2, 2), 100)
    superframes = [(frame.build(), header) for frame, header in made]
    total = sum(len(PREFIX) + len(segment) for segment in split_separately(superframes))
    for capacity, expected in ((total, [4]), (total - 1, [3, 1]), (total // 2, [2, 2])):
        lengths, segments = split_together(superframes, capacity)
        assert lengths == expected
        assert segments == split_separately(superframes)


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[bytes, virtio.Header]]:
    """Draw consecutive superframes, some with a changed octet or truncated."""
    size = draw(st.integers(1, 120))
    base = draw(twins.flows(between=True, flags=PSH | ECE | CWR | FIN))
    base = replace(base, seq=draw(st.sampled_from([1, 2**32 - 200])), ident=65530)
    counts = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    superframes = []
    for frame, header in consecutive_superframes(
        base, counts, size, last=draw(st.integers(1, size))
    ):
        flags = draw(st.sampled_from([0, 0, PSH, FIN, CWR]))
        octets = bytearray(replace(frame, flags=frame.flags | flags).build())
        if draw(st.booleans()) and draw(st.booleans()):
            at = draw(st.integers(0, min(90, len(octets)) - 1))
            octets[at] ^= draw(st.integers(1, 255))
        end = draw(st.sampled_from([len(octets)] * 9 + [len(octets) - 1, frame.head_len, 20]))
        superframes.append((bytes(octets[:end]), header))
    return superframes


@BASIC
@given(streams())
def test_random_stream(superframes: list[tuple[bytes, virtio.Header]]) -> None:
    _, segments = split_together(superframes)
    assert segments == split_separately(superframes)


TAG = (0x8100, 5)
SAME_LENGTH: dict[str, list[dict[str, Any]]] = {
    "IP and TCP options": [{"between": b"\1\1\1\1"}, {"options": b"\1\1\1\1"}],
    "tag and IP options": [{"tags": (TAG,)}, {"between": b"\1\1\1\1"}],
    "tags and TCP options": [{"tags": (TAG, TAG)}, {"tags": (TAG,), "options": b"\1\1\1\1"}],
    "versions": [{"between": b"\1" * 20}, {"version": 6}],
    "protocols": [{}, {"protocol": twins.UDP, "between": b"\1" * 12}],
    "extension and tags": [
        {"version": 6, "between": IPV6_PAD},
        {"version": 6, "tags": (TAG, TAG)},
    ],
}


@pytest.mark.parametrize("name", SAME_LENGTH)
def test_headers_of_the_same_length(name: str) -> None:
    """Alternate between two shapes, whose cached views must not be mixed up."""
    splitter = Splitter(PREFIX)
    shapes = [Frame(payload=octets(250), **changes) for changes in SAME_LENGTH[name]]
    assert len({frame.head_len for frame in shapes}) == 1
    for frame in [*shapes, *shapes]:
        segments = pieces(splitter, frame.build(), gso(frame, 100), PREFIX)
        assert segments == scapy_split(frame, 100)


def test_more_shapes_than_the_cache_holds() -> None:
    splitter = Splitter(PREFIX)
    superframe = Frame(payload=octets(400))
    for size in [*range(1, 200), *range(1, 9)]:
        segments = pieces(splitter, superframe.build(), gso(superframe, size), PREFIX)
        assert segments == twins.split(superframe.build(), gso(superframe, size))


def test_memory_is_bounded() -> None:
    splitter = Splitter(PREFIX)
    superframe = Frame(payload=octets(1700))
    frame = memoryview(superframe.build())

    def use(sizes: range) -> int:
        for size in sizes:
            splitter.split(frame, gso(superframe, size))
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = use(range(900, 1000))
        assert use(range(1000, 1600)) - before < 500_000
    finally:
        tracemalloc.stop()


HEADERS = st.builds(
    virtio.Header,
    flags=st.integers(0, 255),
    gso_type=st.one_of(st.sampled_from([1, 4, 5]), st.integers(0, 255)),
    hdr_len=twins.U16,
    gso_size=st.one_of(st.integers(0, 300), twins.U16),
    csum_start=twins.U16,
    csum_offset=twins.U16,
)


@BASIC
@given(GARBAGE, HEADERS, st.sampled_from([1 << 18, 300, 100]))
def test_arbitrary_octets(frame: bytes, header: virtio.Header, capacity: int) -> None:
    expected = twins.split(frame, header)
    room = capacity - sum(len(PREFIX) + len(segment) for segment in expected or [])
    splitter = Splitter(PREFIX, capacity)
    if expected is None or room < 0:
        with pytest.raises(SplitError):
            splitter.split(memoryview(frame), header)
    else:
        assert pieces(splitter, frame, header, PREFIX) == expected


@BASIC
@given(superframes(), st.data())
def test_changed_octets(pair: tuple[bytes, virtio.Header], data: st.DataObject) -> None:
    frame, header = bytearray(pair[0]), pair[1]
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, min(100, len(frame)) - 1))] ^= data.draw(st.integers(1, 255))
    expected = twins.split(bytes(frame), header)
    if expected is None:
        with pytest.raises(SplitError):
            split(bytes(frame), header)
    else:
        assert split(bytes(frame), header) == expected


# --- completion of checksums ------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tags", [(), ((0x8100, 5),), ((0x88A8, 5), (0x8100, 6))], ids=len)
def test_finish_checksum(kind: str, tags: tuple[tuple[int, int], ...]) -> None:
    # S13: VLAN tags shift the start of the sum. S15: any length.
    for length in (*range(130), 1447, 1448, 8999, 9000, 9001):
        frame = Frame(*KINDS[kind], tags=tags, payload=octets(length), partial=True)
        done = bytearray(frame.build())
        finish_checksum(memoryview(done), frame.shape.upper, CHECKSUM_AT[frame.protocol])
        if length < 40 or length > 1000:
            assert done == bytes(scapy_packet(frame))
        assert done == twins.finish(frame.build())


@pytest.mark.parametrize(("protocol", "value"), [(twins.UDP, b"\xff\xff"), (twins.TCP, b"\0\0")])
@pytest.mark.parametrize("version", [4, 6])
def test_finished_checksum_of_zero(version: int, protocol: int, value: bytes) -> None:
    # S12
    frame = Frame(version, protocol, payload=bytes(5), partial=True)
    at = frame.shape.upper + CHECKSUM_AT[protocol]
    free = twins.finish(frame.build())[at : at + 2]
    done = bytearray(replace(frame, payload=free + bytes(3)).build())
    finish_checksum(memoryview(done), frame.shape.upper, CHECKSUM_AT[protocol])
    assert done[at : at + 2] == value


@pytest.mark.parametrize(
    ("length", "start", "offset"),
    [
        pytest.param(60, 58, 1, id="S10-one-octet-beyond"),
        pytest.param(60, 59, 0, id="S10-half-a-field"),
        pytest.param(60, 60, 0, id="S10-at-the-end"),
        pytest.param(60, 0, 59, id="S10-offset"),
        pytest.param(60, 0xFFFF, 0xFFFF, id="S10-largest"),
        pytest.param(1, 0, 0, id="S10-one-octet"),
        pytest.param(0, 0, 0, id="S10-empty"),
    ],
)
def test_checksum_field_outside_of_the_frame(length: int, start: int, offset: int) -> None:
    frame = bytearray(octets(length))
    with pytest.raises(SplitError):
        finish_checksum(memoryview(frame), start, offset)
    assert frame == octets(length)


@BASIC
@given(st.binary(min_size=2, max_size=99), st.data())
def test_random_checksum(frame: bytes, data: st.DataObject) -> None:
    # The sum includes the field itself, which holds the partial checksum.
    at = data.draw(st.integers(0, len(frame) - 2))
    start = data.draw(st.integers(0, at))
    done = bytearray(frame)
    finish_checksum(memoryview(done), start, at - start)
    value = twins.loop_sum(frame[start:]) ^ 0xFFFF
    if value == 0 and at - start == 6:
        value = 0xFFFF
    assert done == frame[:at] + value.to_bytes(2, "big") + frame[at + 2 :]


# --- sums of rows -----------------------------------------------------------------------------


ZEROS = (b"\0\0", b"\xff\xff")
"""The two representations of a checksum of zero; UDP requires the second (RFC 768)."""


@BASIC
@given(
    st.integers(1, 9),
    st.integers(0, 3),
    st.sampled_from([6, 16, 0, 7]),
    st.integers(0, 40),
    st.data(),
)
def test_checksums_of_a_run(
    rows: int, start: int, offset: int, size: int, data: st.DataObject
) -> None:
    """Complete the checksums of a run at once, and compare with each frame by itself."""
    stride = start + offset + 2 + size
    last = data.draw(st.integers(start + offset + 2, stride))
    kind = data.draw(st.sampled_from([0, 0xFF, None]))
    count = (rows - 1) * stride + last
    octets = bytearray(
        data.draw(st.binary(min_size=count, max_size=count)) if kind is None else [kind] * count
    )
    expected = bytearray(octets)
    for at in range(0, count, stride):
        finish_checksum(memoryview(expected)[at : at + stride], start, offset)
    finish_checksums(memoryview(octets), stride, start, offset)
    for at in range(0, count, stride):
        field = slice(at + start + offset, at + start + offset + 2)
        if offset != 6 and bytes(expected[field]) in ZEROS:
            assert bytes(octets[field]) in ZEROS
            octets[field] = expected[field]
    assert octets == expected


def in_host_order(number: int) -> int:
    """Convert a sum of big-endian words to one of words in host order, modulo 65535."""
    return int.from_bytes(number.to_bytes(2, "big"), sys.byteorder) % 0xFFFF


@BASIC
@given(
    rows=st.integers(1, 9),
    gap=st.integers(0, 60),
    size=st.one_of(st.integers(1, 60), st.sampled_from([1447, 1448])),
    last=st.integers(1, 1448),
    before=st.integers(0, 3),
    fill=st.sampled_from([None, 0, 0xFF]),
)
def test_row_sums(rows: int, gap: int, size: int, last: int, before: int, fill: int | None) -> None:
    # The last row ends with the data, and may be shorter.
    last, stride = min(last, size), size + gap
    length = before + (rows - 1) * stride + last
    data = octets(length) if fill is None else bytes([fill] * length)
    view = memoryview(data)[before:]
    lengths = [size] * (rows - 1) + [last]
    expected = [
        in_host_order(twins.loop_sum(view[at * stride :][:octets].tobytes()))
        for at, octets in enumerate(lengths)
    ]
    sums = row_sums(view, rows, stride, size, last)
    assert sums.shape == (rows,)
    assert sums.dtype == np.uint32
    assert [int(number) % 0xFFFF for number in sums] == expected


@pytest.mark.parametrize("size", [65_534, 65_535])
def test_largest_row_sums(size: int) -> None:
    # All octets are 0xFF, which gives the largest sum.
    data = b"\xff" * (2 * size)
    expected = in_host_order(twins.loop_sum(data[:size]))
    assert (row_sums(data, 2, size, size, size) % 0xFFFF).tolist() == [expected, expected]
