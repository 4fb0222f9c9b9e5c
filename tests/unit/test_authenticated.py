"""Segments that their ends authenticate arrive as they were sent, and are neither split nor merged.

The oracles are the authentication codes themselves, computed as RFC 2385 and RFC 5925 define them.
"""

import hashlib
import hmac
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import TCP
from scapy.layers.ipsec import AH, ESP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.unit.craft import dest, ether, hop, ip, ip6, layout, partial, tcp
from tests.unit.steps import syn_received, syn_sent
from tests.unit.test_egress import inspected
from tests.unit.test_oversize import Handled, counted
from vtep.counters import Counters
from vtep.forwarding.fdb import Fdb, Remote
from vtep.forwarding.policy import InnerVlan, SegmentPolicy
from vtep.forwarding.segment import Segment
from vtep.offload.merge import Merger
from vtep.offload.partial import SegmentSizes, virtio_header
from vtep.offload.sizing import TunnelSizing
from vtep.offload.split import AuthenticatedError, Splitter
from vtep.wire import ip as inet
from vtep.wire import virtio, vxlan

PREFIX = vxlan.pack(5)
MTU = 1450
KEY = b"secret"
TAGS = st.sampled_from(("", "q", "aq"))
VERSIONS = st.sampled_from((4, 6))
MD5, AO = 19, 29
WRAPS: dict[str, Callable[[Packet], Packet]] = {
    "plain": lambda packet: packet,
    "hop-by-hop": hop,
    "destination": dest,
    "both": lambda packet: hop(dest(packet)),
}


def md5(frame: bytes, packet: Packet) -> bytes:
    """RFC 2385, section 2.0: pseudo-header, header without options, data, key."""
    where = layout(packet)
    segment = frame[where.offset :]
    data = segment[(segment[12] >> 4) * 4 :]
    addresses = where.pseudo_header[: 8 if where.version == 4 else 32]
    pseudo = addresses + struct.pack("!xBH", 6, len(segment))
    head = segment[:16] + bytes(2) + segment[18:20]
    return hashlib.md5(pseudo + head + data + KEY).digest()


def ao(frame: bytes, packet: Packet, at: int) -> bytes:
    """RFC 5925, section 5.1, options included; the code is at `at` in the frame, 12 octets."""
    where = layout(packet)
    zeroed = bytearray(frame)
    zeroed[at : at + 12] = bytes(12)
    zeroed[where.offset + 16 : where.offset + 18] = bytes(2)
    message = bytes(4) + where.pseudo_header + zeroed[where.offset :]
    return hmac.new(KEY, message, hashlib.sha1).digest()[:12]


def code_at(frame: bytes, packet: Packet, kind: int) -> int:
    """Return the offset of the authentication code in a frame."""
    at = layout(packet).offset + 20
    while frame[at] != kind:
        at += 1 if frame[at] == 1 else frame[at + 1]
    return at + (2 if kind == MD5 else 4)


def syn(version: int, kind: int, tags: str, flags: str, wrap: str = "plain") -> tuple[bytes, int]:
    """Build a SYN with an MSS of 9000 and a valid code. Returns: it and the offset of the code."""
    option = (kind, bytes(16 if kind == MD5 else 14))
    options = [("MSS", 9000), ("NOP", None), ("NOP", None), option]
    inner = tcp(flags=flags, options=options)
    packet = ether(ip6(WRAPS[wrap](inner)) if version == 6 else ip(4, inner), tags=tags)
    frame = bytearray(bytes(packet))
    at = code_at(bytes(frame), packet, kind)
    code = md5(bytes(frame), packet) if kind == MD5 else ao(bytes(frame), packet, at)
    frame[at : at + len(code)] = code
    signed = Ether(bytes(frame))
    del signed[TCP].chksum  # It covers the code.
    return bytes(signed), at


def mss(frame: bytes) -> int:
    return int(dict(Ether(frame)[TCP].options)["MSS"])


SYNS = {
    "version": VERSIONS,
    "tags": TAGS,
    "flags": st.sampled_from(("S", "SA", "SEC")),
    "wrap": st.sampled_from(tuple(WRAPS)),
    "arrives": st.booleans(),
    "mss_clamp": st.sampled_from(("auto", 536)),
}


@given(**SYNS)
def test_a_syn_with_tcp_ao_is_not_touched(
    version: int, tags: str, flags: str, wrap: str, arrives: bool, mss_clamp: str | int
) -> None:
    frame, at = syn(version, AO, tags, flags, wrap)
    assert frame[at : at + 12] == ao(frame, Ether(frame), at)
    done, counters = bytearray(frame), Counters()
    fit = TunnelSizing(PREFIX, counters, MTU, mss_clamp)
    (syn_received if arrives else syn_sent)(fit, memoryview(done))
    assert bytes(done) == frame
    assert counters.mss_clamped == 0


@given(**SYNS)
def test_a_syn_with_an_md5_signature_is_clamped_and_stays_valid(
    version: int, tags: str, flags: str, wrap: str, arrives: bool, mss_clamp: str | int
) -> None:
    frame, at = syn(version, MD5, tags, flags, wrap)
    done, counters = bytearray(frame), Counters()
    fit = TunnelSizing(PREFIX, counters, MTU, mss_clamp)
    (syn_received if arrives else syn_sent)(fit, memoryview(done))
    assert mss(bytes(done)) <= MTU - 40
    assert counters.mss_clamped == 1
    assert done[at : at + 16] == md5(bytes(done), Ether(bytes(done)))


@pytest.mark.parametrize("tags", ["", "q", "aq"])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("wrap", ["ah", "esp", "hop ah"])
def test_a_syn_within_ipsec_is_not_touched(version: int, tags: str, wrap: str) -> None:
    inner = bytes(TCP(flags="S", options=[("MSS", 9000)]))
    if wrap == "esp":
        payload: Packet = ESP(spi=1, seq=1, data=inner)
    else:
        payload = AH(nh=6, spi=1, seq=1, icv=bytes(12), payloadlen=4) / Raw(inner)
    if wrap.startswith("hop") and version == 6:
        payload = hop(payload)
    frame = bytes(ether(ip(version, payload), tags=tags))
    done, counters = bytearray(frame), Counters()
    fit = TunnelSizing(PREFIX, counters, MTU, "auto")
    syn_sent(fit, memoryview(done))
    syn_received(fit, memoryview(done))
    assert bytes(done) == frame
    assert virtio_header(memoryview(done), SegmentSizes(MTU), counters) == virtio.PLAIN
    assert counted(counters) == {}


# --- segments that are too large ----------------------------------------------------------------


def large(version: int, kind: int, *, df: bool = True, payload: int = 1460) -> Packet:
    option = (kind, bytes(16 if kind == MD5 else 14))
    fields = {"flags": "DF"} if version == 4 and df else {}
    options = [("NOP", None), ("NOP", None), option]
    return ether(ip(version, tcp(bytes(payload), options=options), **fields))


@pytest.mark.parametrize(("version", "kind"), [(4, MD5), (6, MD5), (6, AO)])
def test_the_sender_of_one_that_must_not_be_cut_is_told(version: int, kind: int) -> None:
    handled = Handled(large(version, kind))
    assert handled.frames == []
    assert handled.answer is not None
    assert counted(handled.counters) == {"drop_tx_too_big": 1, "tx_too_big_answered": 1}


def test_tcp_ao_over_ipv4_is_told_and_carried() -> None:
    """Its sender ignores "fragmentation needed" by default (RFC 5925, section 7.8)."""
    handled = Handled(large(4, AO))
    assert handled.frames == [handled.frame]
    assert handled.answer is not None
    assert counted(handled.counters) == {"tx_oversize": 1, "tx_too_big_answered": 1}


@pytest.mark.parametrize("kind", [MD5, AO])
def test_one_that_may_be_fragmented_is(kind: int) -> None:
    assert counted(Handled(large(4, kind, df=False)).counters) == {"tx_fragmented": 1}


# --- superframes --------------------------------------------------------------------------------


def gso(version: int, size: int = 1000) -> virtio.Header:
    gso_type = virtio.GSO_TCPV4 if version == 4 else virtio.GSO_TCPV6
    at = 14 + inet.IP_HEADER_MIN[version]
    return virtio.Header(virtio.FLAG_NEEDS_CSUM, gso_type, 0, size, at, 16)


@pytest.mark.parametrize("kind", [MD5, AO])
@pytest.mark.parametrize("version", [4, 6])
def test_a_superframe_is_not_split(version: int, kind: int) -> None:
    frame = memoryview(partial(large(version, kind, payload=4000)))
    with pytest.raises(AuthenticatedError):
        Splitter(PREFIX).begin(frame, gso(version))


@pytest.mark.parametrize("inner_vlan", [InnerVlan.PASS, InnerVlan.STRIP])
@pytest.mark.parametrize("kind", [MD5, AO])
@pytest.mark.parametrize("version", [4, 6])
def test_a_superframe_from_the_tap_is_one_segment(
    version: int, kind: int, inner_vlan: InnerVlan
) -> None:
    remote = Remote("192.0.2.2", 4789)
    fdb = Fdb(5, 4789, ageing=0, max_addresses=0)
    policy = SegmentPolicy(inner_vlan=inner_vlan)
    segment = Segment(5, [remote], fdb, own_mac=bytes(6), learning=True, policy=policy)
    fits, too_large = large(version, kind, payload=1200), large(version, kind, payload=4000)
    header = virtio.HEADER.pack(*gso(version))
    sent, answers = inspected([(header, partial(fits)), (header, partial(too_large))], segment)
    whole = [PREFIX + bytes(fits)]
    if (version, kind) == (4, AO):  # See above.
        whole.append(PREFIX + bytes(too_large))
    assert [datagram for batch in sent for datagram in batch] == whole
    assert len(answers) == 1
    assert segment.counters.tx_too_big_answered == 1


@pytest.mark.parametrize("kind", [MD5, AO])
@pytest.mark.parametrize("version", [4, 6])
def test_one_that_was_received_whole_is_not_for_the_kernel_to_split(
    version: int, kind: int
) -> None:
    frame = partial(large(version, kind, payload=4000))
    header = virtio_header(frame, SegmentSizes(MTU), Counters())
    assert header == virtio.pack_needs_csum(14 + inet.IP_HEADER_MIN[version], 16)


@given(VERSIONS, TAGS, st.sampled_from((MD5, AO)), st.integers(0, 2))
def test_segments_in_a_row_are_not_merged(version: int, tags: str, kind: int, nops: int) -> None:
    """Not even where their codes are equal, as only a forger can have them."""
    option = (kind, b"\x05" * (16 if kind == MD5 else 14))
    segments = [
        ether(
            ip(
                version,
                tcp(bytes(1000), seq=1 + 1000 * number, options=[*[("NOP", None)] * nops, option]),
                **({"id": 7 + number, "flags": "DF"} if version == 4 else {}),
            ),
            tags=tags,
        )
        for number in range(4)
    ]
    burst = b"".join(PREFIX + bytes(segment) for segment in segments)
    stride = len(burst) // 4
    merged = Merger(len(PREFIX), uso=True).merge(memoryview(bytearray(burst)), stride)
    assert [(each.header, each.datagrams) for each in merged] == [(None, 1)] * 4


def test_an_option_beyond_the_end_of_the_list_authenticates_nothing() -> None:
    """Receivers stop there, too; and a timestamp with such octets is no option."""
    for options in (b"\0\x13\x12\0", b"\x08\x0a\x13\x1d\x13\x1d\x13\x1d\x13\x1d\1\1"):
        frame = bytearray(bytes(ether(ip(4, tcp(options=[("NOP", None)] * len(options))))))
        frame[54 : 54 + len(options)] = options
        where = inet.find_transport(frame)
        assert where is not None
        assert inet.tcp_authentication(frame, where) == 0
