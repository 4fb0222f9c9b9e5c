"""Slots: one recvmmsg returns what as many single receives would, in the same order."""

import itertools
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.twins import BASIC
from vtep.io import socket_constants as const
from vtep.io.binding import Binding
from vtep.io.interfaces import Received
from vtep.io.receiver import UdpReceiver
from vtep.io.slots import Slots, with_scope

LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
SENDERS = 3


class Rig:
    """Two receivers of one family that are sent the same, and the senders."""

    def __init__(self, family: socket.AddressFamily, *, gro: bool) -> None:
        binding = Binding(family, None, None)
        self.receivers = [UdpReceiver.open(binding, 0, gro=gro) for _ in range(2)]
        self.senders = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(SENDERS)]
        self._host = LOOPBACK[family]
        self._level, self._option = (
            (socket.IPPROTO_IP, socket.IP_TOS)
            if family == socket.AF_INET
            else (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
        )

    def send(self, sender: int, data: bytes, tos: int = 0, segment_size: int = 0) -> None:
        control = [(self._level, self._option, struct.pack("=i", tos))] if tos else []
        if segment_size:
            control.append((const.SOL_UDP, const.UDP_SEGMENT, struct.pack("=H", segment_size)))
        for receiver in self.receivers:
            address = self._host, receiver.address[1]
            self.senders[sender].sendmsg((data,), control, 0, address)

    def singly(self) -> list[tuple[Received, bytes]]:
        """Return all that the first receiver gets, by single receives."""
        buffer = memoryview(bytearray(1 << 16))
        got = []
        try:
            while True:
                received = self.receivers[0].receive(buffer)
                got.append((received, bytes(buffer[: received[0]])))
        except BlockingIOError:
            return got

    def many(self, slots: Slots) -> list[tuple[Received, bytes]]:
        """Return all that the second receiver gets, by many at a time."""
        got = []
        try:
            while True:
                runs = self.receivers[1].receive_many(slots)
                each = [received for received, count in runs for _ in range(count)]
                assert 0 < len(each) <= slots.count
                assert all(a != b for (a, _), (b, _) in itertools.pairwise(runs))
                got += [
                    (received, bytes(slots.datagram(index, received[0])))
                    for index, received in enumerate(each)
                ]
        except BlockingIOError:
            return got

    def close(self) -> None:
        for receiver in self.receivers:
            receiver.close()
        for sender in self.senders:
            sender.close()


SIZES = st.one_of(
    st.sampled_from([0, 1, 31, 32, 33, 72, 72, 1471, 1472, 1472, 1473, 9000, 50_000, 65_487]),
    st.integers(0, 65_487),
)
# Sender, octets, TOS, and the segment size of several datagrams in one send, or 0.
SENT = st.one_of(
    st.tuples(st.integers(0, SENDERS - 1), SIZES, st.sampled_from([0, 0, 1, 2, 3]), st.just(0)),
    st.tuples(
        st.integers(0, SENDERS - 1),
        st.integers(1, 20_000),
        st.sampled_from([0, 3]),
        st.sampled_from([500, 1000, 1400]),
    ),
)
BURSTS = st.lists(
    st.tuples(SENT, st.integers(1, 30)).map(lambda pair: [pair[0]] * pair[1]),
    min_size=1,
    max_size=5,
).map(lambda bursts: [*itertools.chain(*bursts)][:60])
SLOTS = Slots()
"""One for all examples and families, as the sockets of a process share it."""


@pytest.mark.parametrize("gro", [False, True])
@pytest.mark.parametrize("family", LOOPBACK)
@settings(BASIC, max_examples=30)
@given(turns=st.lists(BURSTS, min_size=1, max_size=3))
def test_many_as_singly(
    family: socket.AddressFamily, *, gro: bool, turns: list[Sequence[tuple[int, int, int, int]]]
) -> None:
    numbers = itertools.count()
    with closing(Rig(family, gro=gro)) as rig:
        for turn in turns:
            for sender, octets, tos, segment_size in turn:
                data = next(numbers).to_bytes(4, "big") * (octets // 4 + 1)
                rig.send(sender, data[:octets], tos, segment_size)
            expected = rig.singly()
            assert rig.many(SLOTS) == expected
            assert len(expected) >= len(turn)


def test_equal_datagrams_become_adjacent() -> None:
    slots = Slots()
    datagrams = [os.urandom(200) for _ in range(20)]
    with closing(Rig(socket.AF_INET, gro=False)) as rig:
        for _ in range(2):
            for data in datagrams:
                rig.send(0, data)
            ((received, count),) = rig.receivers[1].receive_many(slots)
        host, port = received[2:4]
        assert (received, count) == ((200, 200, host, port, 0), 20)
        assert (host, port) == ("127.0.0.1", rig.senders[0].getsockname()[1])
    assert bytes(slots.buffer[: 20 * 200]) == b"".join(datagrams)


def test_a_batch_of_the_kernel_keeps_its_stride() -> None:
    slots, data = Slots(), os.urandom(20_500)
    with closing(Rig(socket.AF_INET, gro=True)) as rig:
        rig.send(0, data, 2, 1000)
        rig.send(0, data[:300])
        (batch, _), (single, _) = rig.receivers[1].receive_many(slots)
        assert (batch[:2], batch[4]) == ((20_500, 1000), 2)
        assert (single[:2], single[4]) == ((300, 300), 0)
    assert bytes(slots.datagram(0, 20_500)) == data
    assert bytes(slots.datagram(1, 300)) == data[:300]


def test_a_few_datagrams_leave_the_pitch_as_it_is() -> None:
    slots = Slots()
    pitch = slots.pitch
    slots.fit([100] * 7)
    slots.fit([100] * 8 + [*range(8)])
    slots.empty()
    assert slots.pitch == pitch
    slots.fit([100] * 8 + [*range(7)])
    assert slots.pitch == pitch  # The datagrams are still there.
    slots.empty()
    assert slots.pitch == 100


def test_errors_are_those_of_a_single_receive() -> None:
    slots = Slots()
    receiver = UdpReceiver.open(Binding(socket.AF_INET, None, None), 0, gro=True)
    with pytest.raises(BlockingIOError):
        receiver.receive_many(slots)
    receiver.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        receiver.receive_many(slots)


def test_a_link_local_source_has_its_device() -> None:
    index = socket.if_nametoindex("lo")
    assert with_scope("fe80::1", index) == "fe80::1%lo"
    assert with_scope("fe80::1", 1 << 30) == f"fe80::1%{1 << 30}"
    assert with_scope("2001:db8::1", 0) == "2001:db8::1"
