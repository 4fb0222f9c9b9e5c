"""Frames that are too large for the tunnel: cut, fragmented, answered or sent unchanged."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, defragment
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.unit.craft import BROADCAST, HOSTILE, ether, hop, ip, ip4, ip6, tcp, udp
from tests.unit.steps import handle
from vtep.counters import Counters, Drop
from vtep.offload.oversize import Outcome, Oversize
from vtep.offload.split import Splitter
from vtep.wire import virtio, vxlan

PREFIX = vxlan.pack(5)
TAGS = st.sampled_from(("", "q", "aq"))


def counted(counters: Counters) -> dict[str, int]:
    return {name: count for name, count in counters.as_dict().items() if count}


class Handled:
    """An outcome, taken to pieces."""

    def __init__(self, frame: bytes | Packet, mtu: int = 1450) -> None:
        self.counters = Counters()
        self.frame = bytes(frame)
        oversize = Oversize(PREFIX, self.counters, mtu)
        outcome = handle(oversize, memoryview(self.frame), 0.0)
        self.answer = outcome.answer
        self.frames = frames(outcome)

    def unchanged(self) -> bool:
        return self.frames == [self.frame] and self.answer is None


def frames(outcome: Outcome) -> list[bytes]:
    run, stride, _ = outcome
    datagrams = [run[at : at + stride] for at in range(0, len(run), stride)]
    assert all(datagram.startswith(PREFIX) for datagram in datagrams)
    return [datagram[len(PREFIX) :] for datagram in datagrams]


def dont_fragment(version: int, payload: Packet, tags: str = "") -> Packet:
    return ether(ip(version, payload, **({"flags": "DF"} if version == 4 else {})), tags=tags)


# --- TCP --------------------------------------------------------------------------------------


@given(
    version=st.sampled_from((4, 6)),
    tags=TAGS,
    mtu=st.integers(200, 1450),
    octets=st.integers(0, 3000),
    sequence=st.integers(0, 0xFFFF_FFFF),
    flags=st.sampled_from(("A", "PA", "FA", "FPA", "AE", "PAC")),
    timestamps=st.booleans(),
)
def test_tcp_segments_become_several_that_say_the_same(
    version: int, tags: str, mtu: int, octets: int, sequence: int, flags: str, timestamps: bool
) -> None:
    payload = (bytes(range(251)) * 18)[: mtu + octets]
    options = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))] if timestamps else []
    packet = dont_fragment(version, tcp(payload, seq=sequence, flags=flags, options=options), tags)
    handled = Handled(packet, mtu)
    got = b""
    parsed = [Ether(frame) for frame in handled.frames]
    for number, frame in enumerate(parsed):
        segment = frame[TCP]
        assert segment.seq == (sequence + len(got)) & 0xFFFF_FFFF
        assert segment.options == options
        last = number == len(parsed) - 1
        hidden = ("" if last else "FP") + ("C" if number else "")
        assert set(str(segment.flags)) == set(flags) - set(hidden)
        got += bytes(segment.payload)
        # Scapy computes all checksums and lengths anew, and finds the same.
        fresh = frame.copy()
        for layer, fields in ((IP, ("chksum", "len")), (IPv6, ("plen",)), (TCP, ("chksum",))):
            for name in fields if layer in fresh else ():
                delattr(fresh[layer], name)
        assert bytes(fresh) == handled.frames[number]
    assert got == payload
    assert len(parsed) > 1
    assert all(len(frame) == mtu + 14 for frame in handled.frames[:-1])
    assert handled.counters.tx_resegmented == 1
    # Nothing is lost, but the sender learns of it.
    assert handled.answer is not None
    assert handled.counters.tx_too_big_answered == 1


def test_the_sender_of_tcp_that_may_be_fragmented_is_left_in_peace() -> None:
    handled = Handled(ether(ip4(tcp(b"x" * 1460))))
    assert [len(frame) for frame in handled.frames] == [1464, 104]
    assert handled.answer is None


INDIVISIBLE = {
    "SYN": tcp(b"x" * 1460, flags="S"),
    "RST": tcp(b"x" * 1460, flags="RA"),
    "urgent": tcp(b"x" * 1460, flags="UA", urgptr=5),
    "without ACK": tcp(b"x" * 1460, flags="P"),
    "signed with MD5": tcp(b"x" * 1440, options=[(19, b"0" * 16), ("NOP", None), ("NOP", None)]),
    "a wrong checksum": tcp(b"x" * 1460, chksum=1),
    "a header shorter than itself": tcp(b"x" * 1460, dataofs=4),
}


@pytest.mark.parametrize("name", INDIVISIBLE)
def test_tcp_that_must_not_be_cut_is_treated_like_other_packets(name: str) -> None:
    handled = Handled(ether(ip4(INDIVISIBLE[name], flags="DF")))
    assert handled.frames == []
    assert handled.answer is not None
    assert counted(handled.counters) == {"drop_tx_too_big": 1, "tx_too_big_answered": 1}
    handled = Handled(ether(ip4(INDIVISIBLE[name])))
    whole = defragment([Ether(frame) for frame in handled.frames])  # type: ignore[no-untyped-call]
    assert [bytes(frame) for frame in whole] == [handled.frame]
    assert counted(handled.counters) == {"tx_fragmented": 1}


def test_a_fragment_of_tcp_is_no_segment() -> None:
    handled = Handled(ether(ip4(tcp(b"x" * 1460), flags="MF")))
    assert counted(handled.counters) == {"tx_fragmented": 1}


def test_tcp_behind_extension_headers_is_cut() -> None:
    handled = Handled(ether(ip6(hop(tcp(b"x" * 1440)))))
    assert [len(frame) for frame in handled.frames] == [1464, 14 + 40 + 8 + 20 + 1440 - 1382]
    assert handled.counters.tx_resegmented == 1


# --- other packets ------------------------------------------------------------------------------


@pytest.mark.parametrize("tags", ["", "q", "aq"])
@pytest.mark.parametrize("version", [4, 6])
def test_the_sender_learns_what_would_pass(version: int, tags: str) -> None:
    """Tags take room too, of which the sender's interface knows nothing."""
    room = 1450 - 4 * len(tags)
    ping = ICMP() if version == 4 else ICMPv6EchoRequest()
    headers = (20 if version == 4 else 40) + 8
    for upper in (udp(), ping):
        handled = Handled(dont_fragment(version, upper / Raw(b"x" * (room - headers)), tags))
        assert handled.frames == [handled.frame]  # It would not have been asked about.
        handled = Handled(dont_fragment(version, upper / Raw(b"x" * (room - headers + 1)), tags))
        assert handled.frames == []
        assert counted(handled.counters) == {"drop_tx_too_big": 1, "tx_too_big_answered": 1}
        assert handled.answer is not None
        said = Ether(handled.answer)
        told = said[ICMP].nexthopmtu if version == 4 else said[ICMPv6PacketTooBig].mtu
        assert told == room


@given(payload=st.binary(min_size=1423, max_size=3000), tags=TAGS, mtu=st.integers(100, 1450))
def test_ipv4_that_may_be_fragmented_is(payload: bytes, tags: str, mtu: int) -> None:
    handled = Handled(ether(ip4(udp(payload)), tags=tags), mtu)
    assert all(len(frame) <= mtu + 14 for frame in handled.frames)
    parsed = [Ether(frame) for frame in handled.frames]
    (whole,) = defragment([frame[IP] for frame in parsed])  # type: ignore[no-untyped-call]
    assert bytes(whole[UDP].payload) == payload
    assert handled.answer is None
    assert counted(handled.counters) == {"tx_fragmented": 1}


@pytest.mark.parametrize("at", [185, 256, 300, 4096])
def test_fragments_that_may_be_fragmented_are(at: int) -> None:
    handled = Handled(ether(ip4(Raw(b"x" * 1480), proto=17, frag=at, flags="MF")))
    assert [Ether(frame)[IP].frag for frame in handled.frames] == [at, at + 1424 // 8]
    assert handled.counters.tx_fragmented == 1


def test_broadcasts_that_may_be_fragmented_are() -> None:
    handled = Handled(ether(ip4(udp(b"x" * 1460), dst="10.1.0.255"), dst=BROADCAST))
    assert len(handled.frames) == 2
    assert counted(handled.counters) == {"tx_fragmented": 1}


def test_of_ipv6_no_less_than_its_minimum_is_asked() -> None:
    """A sender need not send less (RFC 8200, section 5): the underlay must fragment that."""
    handled = Handled(ether(ip6(udp(b"x" * (1281 - 48)))), 1000)
    assert handled.answer is not None
    assert Ether(handled.answer)[ICMPv6PacketTooBig].mtu == 1280
    handled = Handled(ether(ip6(udp(b"x" * (1280 - 48)))), 1000)
    assert handled.unchanged()
    assert counted(handled.counters) == {"tx_oversize": 1}


def test_ipv6_tcp_is_cut_even_below_its_minimum() -> None:
    handled = Handled(ether(ip6(tcp(b"x" * 1220))), 1000)
    assert [len(frame) for frame in handled.frames] == [1014, 14 + 60 + 280]
    assert handled.answer is not None
    assert Ether(handled.answer)[ICMPv6PacketTooBig].mtu == 1280


def wrong_header() -> bytes:
    frame = bytearray(bytes(ether(ip4(udp(b"x" * 1460)))))
    frame[24] ^= 1
    return bytes(frame)


def with_octet(at: int, value: int, packet: Packet) -> bytes:
    frame = bytearray(bytes(packet))
    frame[at] = value
    return bytes(frame)


GROUP = "33:33:00:00:00:01"
UNMENDABLE: dict[str, bytes | Packet] = {
    "not IP": Ether(type=0x88B5) / Raw(b"x" * 1500),
    "DF to a group": ether(ip4(udp(b"x" * 1460), dst="239.0.0.1", flags="DF"), dst=GROUP),
    "IPv6 to a group": ether(ip6(udp(b"x" * 1460), dst="ff02::1"), dst=GROUP),
    "an error with DF": ether(ip4(ICMP(type=3) / Raw(b"x" * 1460), flags="DF")),
    "a later fragment with DF": ether(ip4(Raw(b"x" * 1480), frag=10, flags="DF")),
    "a wrong header checksum": wrong_header(),
    "IPv4 longer than its frame": ether(ip4(udp(b"x" * 1460), len=1600)),
    "IPv4 shorter than its header": ether(ip4(udp(b"x" * 1460), len=19)),
    "IPv4 of another version": with_octet(14, 0x65, ether(ip4(udp(b"x" * 1460)))),
    "IPv4 with a short header": with_octet(14, 0x44, ether(ip4(udp(b"x" * 1460)))),
    "IPv6 longer than its frame": ether(ip6(udp(b"x" * 1460), plen=1500)),
    "IPv6 of another version": with_octet(14, 0x40, ether(ip6(udp(b"x" * 1460)))),
}


@pytest.mark.parametrize("name", UNMENDABLE)
def test_the_rest_is_left_to_the_underlay(name: str) -> None:
    handled = Handled(UNMENDABLE[name])
    assert handled.unchanged()
    assert counted(handled.counters) == {"tx_oversize": 1}


@pytest.mark.parametrize("version", [4, 6])
def test_padding_is_cut_off(version: int) -> None:
    frame = bytes(dont_fragment(version, udp(b"x" * 100)))
    handled = Handled(frame + bytes(1500))
    assert handled.frames == [frame]
    assert counted(handled.counters) == {}


@pytest.mark.parametrize("mtu", [68, 1450])
@pytest.mark.parametrize("excess", [0, 1])
def test_the_limit_is_exact(mtu: int, excess: int) -> None:
    """Called for a frame that fits, nothing is done to it."""
    frame = bytes(ether(ip4(udp(b"x" * (mtu + excess - 28)), flags="DF")))
    handled = Handled(frame, mtu)
    assert (handled.frames == [frame]) == (excess == 0)


@given(HOSTILE, st.integers(68, 100))
def test_any_octets_are_judged_without_fault(frame: bytes, mtu: int) -> None:
    handled = Handled(frame, mtu)
    for sent in handled.frames:
        assert len(sent) <= max(mtu + 14, len(frame))
    if handled.frames == [frame]:
        assert handled.answer is None


@given(st.binary(max_size=60), st.sampled_from((0x0800, 0x86DD, 0x8100)), st.integers(0, 255))
def test_any_headers_are_judged_without_fault(octets: bytes, ethertype: int, first: int) -> None:
    frame = bytes(12) + struct.pack("!HB", ethertype, first) + octets + bytes(1500)
    handled = Handled(frame)
    assert handled.unchanged() or handled.frames != [frame]


def test_an_mtu_that_falls_and_recovers_is_followed() -> None:
    oversize = Oversize(PREFIX, Counters(), 1450)
    packet = memoryview(bytes(dont_fragment(4, udp(b"x" * 1460))))
    for mtu in (1450, 1300, 1400):
        oversize.mtu = mtu
        assert oversize.limit == mtu + 14
        answer = handle(oversize, packet, 0.0).answer
        assert answer is not None
        assert Ether(answer)[ICMP].nexthopmtu == mtu


# --- superframes --------------------------------------------------------------------------------


def split(packet: Packet, gso_type: int, size: int) -> list[bytes]:
    splitter = Splitter(b"")
    gso = virtio.Header(1, gso_type, 0, size, 0, 0)
    octets, stride = splitter.split(memoryview(bytes(packet)), gso)
    out = splitter.out[:octets].tobytes()
    return [out[at : at + stride] for at in range(0, octets, stride)]


class HandledSuperframe:
    """The outcomes for a superframe whose segments have `size` octets of payload."""

    def __init__(self, packet: Packet, gso_type: int, size: int, mtu: int = 1450) -> None:
        self.counters = Counters()
        self.split = split(packet, gso_type, size)
        run = b"".join(PREFIX + segment for segment in self.split)
        stride = len(PREFIX) + len(self.split[0])
        oversize = Oversize(PREFIX, self.counters, mtu)
        frame = memoryview(bytes(packet))
        outcomes = list(oversize.handle_superframe(frame, memoryview(run), stride, 0.0))
        self.answers = [outcome.answer for outcome in outcomes]
        self.frames = [one for outcome in outcomes for one in frames(outcome)]


@given(
    version=st.sampled_from((4, 6)),
    octets=st.integers(1449, 65000),
    mtu=st.integers(200, 1499),
    tags=TAGS,
    closing=st.sampled_from(("A", "PA", "FPA")),
)
def test_superframes_of_tcp_are_cut_as_if_they_had_asked_for_what_fits(
    version: int, octets: int, mtu: int, tags: str, closing: str
) -> None:
    packet = dont_fragment(version, tcp(bytes(octets), flags=closing), tags)
    gso_type = {4: virtio.GSO_TCPV4, 6: virtio.GSO_TCPV6}[version]
    handled = HandledSuperframe(packet, gso_type, 1448, mtu)
    size = mtu - 4 * len(tags) - {4: 40, 6: 60}[version]
    fitting = Splitter(b"")
    total, stride = fitting.split(
        memoryview(bytes(packet)), virtio.Header(1, 1 if version == 4 else 4, 0, size, 0, 0)
    )
    expected = [
        fitting.out[at : min(at + stride, total)].tobytes() for at in range(0, total, stride)
    ]
    assert handled.frames == expected
    assert counted(handled.counters) == {"tx_resegmented": 1, "tx_too_big_answered": 1}
    # The answer quotes a segment: the sender knows nothing of superframes.
    (answer,) = handled.answers
    assert answer is not None
    at = 14 + 4 * len(tags)
    quoted = answer[at + {4: 28, 6: 48}[version] :]
    assert handled.split[0][at:].startswith(quoted)


def test_superframes_of_tcp_that_may_be_fragmented_are_not_answered() -> None:
    handled = HandledSuperframe(ether(ip4(tcp(bytes(9000)))), 1, 1460)
    assert counted(handled.counters) == {"tx_resegmented": 1}
    assert handled.answers == [None]


@pytest.mark.parametrize("size", [1423, 1472])
def test_datagrams_of_a_udp_superframe_are_fragmented_one_by_one(size: int) -> None:
    payload = bytes(range(256)) * 40
    handled = HandledSuperframe(ether(ip4(udp(payload))), 5, size)
    whole = defragment([Ether(frame) for frame in handled.frames])  # type: ignore[no-untyped-call]
    datagrams = [bytes(frame[UDP].payload) for frame in whole]
    assert b"".join(datagrams) == payload
    # The last fits as it is.
    assert counted(handled.counters) == {"tx_fragmented": len(payload) // size}
    assert handled.frames[-1] == handled.split[-1]


def test_datagrams_of_a_udp_superframe_are_answered_one_by_one() -> None:
    handled = HandledSuperframe(ether(ip6(udp(bytes(1452 * 5 + 9)))), 5, 1452)
    assert counted(handled.counters) == {"drop_tx_too_big": 5, "tx_too_big_answered": 5}
    assert handled.frames == handled.split[-1:]


def test_a_superframe_whose_headers_leave_no_room_goes_out_as_it_was_split() -> None:
    options = [("NOP", None)] * 40
    packet = ether(ip6(hop(hop(tcp(bytes(9000), options=options)))))
    handled = HandledSuperframe(packet, 4, 1000, 100)
    assert handled.frames == handled.split
    assert counted(handled.counters) == {"tx_oversize": 9}


# --- how often ----------------------------------------------------------------------------------


def test_answers_are_rationed() -> None:
    counters = Counters()
    oversize = Oversize(PREFIX, counters, 1450)
    packet = memoryview(bytes(dont_fragment(4, udp(b"x" * 1460))))
    answers = [handle(oversize, packet, 7.0).answer for _ in range(60)]
    assert [answer is not None for answer in answers] == [True] * 50 + [False] * 10
    assert handle(oversize, packet, 7.5).answer is not None
    assert counters.tx_too_big_answered == 51
    assert counters.drops[Drop.TX_TOO_BIG] == 61
