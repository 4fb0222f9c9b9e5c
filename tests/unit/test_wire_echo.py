"""The echo of VTEPs: its format, which requests get a reply, and how often."""

from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from vtep.counters import Drop
from vtep.forwarding.demux import Demux
from vtep.forwarding.fdb import Fdb, Remote
from vtep.forwarding.segment import Segment
from vtep.wire import ethernet, vxlan
from vtep.wire.echo import SIZE, TOKEN_OFFSET, EchoKind, EchoMessage, EchoStatus

TOKEN = b"01234567"
REQUEST = EchoMessage(EchoKind.REQUEST, 5, 50000, TOKEN, 7, SIZE)

messages = st.builds(
    EchoMessage,
    st.sampled_from(EchoKind),
    st.none() | st.integers(0, vxlan.VNI_MAX),
    st.integers(0, 0xFFFF),
    st.binary(min_size=8, max_size=8),
    st.integers(0, 0xFFFF_FFFF),
    st.integers(0, 0xFFFF),
    st.sampled_from(EchoStatus),
)


# --- format -------------------------------------------------------------------------------------


@given(messages, st.integers(SIZE, 2000))
def test_pack_and_parse(message: EchoMessage, size: int) -> None:
    datagram = message.pack(size)
    assert len(datagram) == size
    assert EchoMessage.parse(datagram) == message


def test_format() -> None:
    header = bytes.fromhex("00000000 00000500 7079767465704543 01 01 01 00 0000 c350")
    assert REQUEST.pack() == header + TOKEN + bytes.fromhex("00000007 0026")
    assert SIZE == 0x26
    assert REQUEST.pack()[TOKEN_OFFSET:].startswith(TOKEN)


@given(messages)
def test_other_vteps_drop_a_message(message: EchoMessage) -> None:
    datagram = message.pack()
    assert not datagram[0] & 0x08
    # Nor is it taken for TCP or UDP in a frame, so that it would be merged with others.
    ethertype = datagram[vxlan.HEADER_LEN + 12 : vxlan.HEADER_LEN + 14]
    assert ethertype == bytes(2)


@given(
    st.binary(max_size=100) | st.binary(max_size=60).map(lambda rest: REQUEST.pack()[:20] + rest)
)
def test_any_octets_parse_or_give_none(datagram: bytes) -> None:
    message = EchoMessage.parse(datagram)
    if message is not None:
        assert message.pack()[:SIZE] == datagram[:SIZE]


@given(st.integers(0, SIZE - 1))
def test_a_truncated_message_is_none(length: int) -> None:
    assert EchoMessage.parse(REQUEST.pack()[:length]) is None


@pytest.mark.parametrize("at", [0, 7, 8, 15, 16, 17, 18, 19, 20, 21])
def test_each_fixed_octet_is_checked(at: int) -> None:
    datagram = bytearray(REQUEST.pack())
    datagram[at] ^= 0x88
    assert EchoMessage.parse(datagram) is None


@given(messages, st.integers(SIZE, 9000), st.sampled_from(EchoStatus))
def test_a_reply_is_never_longer_than_its_request(
    message: EchoMessage, arrived: int, status: EchoStatus
) -> None:
    datagram = message.reply(arrived, status)
    assert SIZE <= len(datagram) <= arrived
    reply = EchoMessage.parse(datagram)
    assert reply == evolve(message, kind=EchoKind.REPLY, octets=arrived, status=status)


# --- replies ------------------------------------------------------------------------------------


class Replier:
    """A demux with two segments, and the replies that it sends."""

    def __init__(self) -> None:
        self.said: list[tuple[EchoMessage | None, int, str, int]] = []
        segments = [
            Segment(
                vni,
                [Remote(host, 4789)],
                Fdb(vni, 4789, ageing=300, max_addresses=0),
                own_mac=ethernet.MAC_ZERO,
                learning=True,
            )
            for vni, host in ((5, "192.0.2.5"), (6, "192.0.2.6"))
        ]
        self.demux = Demux(segments, 4789, self._reply)

    def _reply(self, datagram: bytes, host: str, port: int) -> None:
        self.said.append((EchoMessage.parse(datagram), len(datagram), host, port))

    def ask(
        self, message: EchoMessage, host: str = "192.0.2.5", size: int = SIZE, now: float = 0.0
    ) -> Any:
        self.said.clear()
        assert self.demux.admit(message.pack(size), host, now) is None
        return self.said[0] if self.said else None

    def drops(self) -> dict[Drop, int]:
        counters = [self.demux.counters, *(s.counters for s in self.demux.segments.values())]
        return {
            reason: count
            for reason in Drop
            if (count := sum(each.drops[reason] for each in counters))
        }


@pytest.mark.parametrize(
    ("vni", "host", "status"),
    [
        (5, "192.0.2.5", EchoStatus.FINE),
        (None, "192.0.2.5", EchoStatus.FINE),
        (6, "192.0.2.5", EchoStatus.SOURCE_UNKNOWN),
        (7, "192.0.2.5", EchoStatus.VNI_UNKNOWN),
    ],
)
def test_hosts_of_a_segment_get_a_reply(vni: int | None, host: str, status: EchoStatus) -> None:
    replier = Replier()
    answer, size, to, port = replier.ask(evolve(REQUEST, vni=vni, octets=100), host, size=1400)
    assert (size, to, port) == (100, host, 50000)
    assert answer == EchoMessage(EchoKind.REPLY, vni, 50000, TOKEN, 7, 1400, status)
    assert replier.drops() == {}
    assert replier.demux.counters.echo_requests_answered == 1


@pytest.mark.parametrize("vni", [None, 5, 6, 7])
def test_other_hosts_get_none(vni: int | None) -> None:
    replier = Replier()
    assert replier.ask(evolve(REQUEST, vni=vni), "192.0.2.9") is None
    assert replier.drops() == {Drop.SOURCE_UNKNOWN: 1}
    # The segment of the requested VNI counts the drop, if there is one.
    segment = replier.demux.segments.get(vni or 0)
    counters = segment.counters if segment else replier.demux.counters
    assert counters.last_source == {Drop.SOURCE_UNKNOWN: "192.0.2.9"}


def test_a_reply_gets_no_reply() -> None:
    replier = Replier()
    assert replier.ask(evolve(REQUEST, kind=EchoKind.REPLY)) is None
    assert replier.drops() == {}
    assert replier.demux.counters.echo_replies_received == 1


@pytest.mark.parametrize("port", [0, 22, 53, 4788, 4790, 49151])
def test_no_reply_goes_to_ports_of_other_services(port: int) -> None:
    replier = Replier()
    assert replier.ask(evolve(REQUEST, port=port)) is None
    assert replier.drops() == {Drop.FLAGS_INVALID: 1}


@pytest.mark.parametrize("port", [4789, 49152, 65535])
def test_replies_go_to_ports_of_vteps(port: int) -> None:
    assert Replier().ask(evolve(REQUEST, port=port))[3] == port


def test_replies_are_rate_limited() -> None:
    replier = Replier()
    answered = sum(replier.ask(REQUEST, now=10.0) is not None for _ in range(1000))
    assert answered == 256
    assert replier.drops() == {Drop.PROBE_LIMITED: 744}
    answered = sum(replier.ask(REQUEST, now=11.0) is not None for _ in range(1000))
    assert answered == 100


def test_without_a_reply_function_requests_are_dropped() -> None:
    demux = Demux(())
    assert demux.admit(REQUEST.pack(), "192.0.2.5", 0.0) is None
    assert demux.counters.drops[Drop.FLAGS_INVALID] == 1
