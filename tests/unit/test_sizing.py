"""The tunnel sizing of one segment: SYNs in both directions, and an MTU that changes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether

from tests.unit.craft import HOSTILE, ether, ip, parse_virtio, partial, tcp
from tests.unit.steps import syn_received, syn_sent
from vtep.counters import Counters
from vtep.offload.partial import virtio_header
from vtep.offload.sizing import TunnelSizing
from vtep.wire import vxlan

PREFIX = vxlan.pack(5)
HEADERS = {4: 40, 6: 60}
VERSIONS = pytest.mark.parametrize("version", [4, 6])


def make(mtu: int = 1450, *, clamps: bool = True) -> tuple[TunnelSizing, Counters]:
    counters = Counters()
    return TunnelSizing(PREFIX, counters, mtu, "auto" if clamps else "off"), counters


def syn(version: int, mss: int = 1460) -> bytes:
    return bytes(ether(ip(version, tcp(flags="S", options=[("MSS", mss)]))))


def mss(frame: bytes | bytearray) -> int:
    return int(dict(Ether(bytes(frame))[TCP].options)["MSS"])


@VERSIONS
def test_syns_are_clamped_on_their_way_out_and_in(version: int) -> None:
    fit, counters = make()
    for pass_syn in (syn_sent, syn_received):
        frame = bytearray(syn(version))
        pass_syn(fit, memoryview(frame))
        assert bytes(frame) == syn(version, 1450 - HEADERS[version])
    assert counters.mss_clamped == 2


@VERSIONS
def test_an_unfinished_checksum_of_one_that_arrives_is_left_for_the_kernel(version: int) -> None:
    fit, _ = make()
    packet = ether(ip(version, tcp(flags="S", options=[("MSS", 1460)])))
    frame = bytearray(partial(packet))
    syn_received(fit, memoryview(frame))
    clamped = ether(ip(version, tcp(flags="S", options=[("MSS", 1450 - HEADERS[version])])))
    assert bytes(frame) == partial(clamped)


@VERSIONS
def test_without_clamping_nothing_is_touched(version: int) -> None:
    fit, counters = make(clamps=False)
    for pass_syn in (syn_sent, syn_received):
        frame = bytearray(syn(version))
        pass_syn(fit, memoryview(frame))
        assert bytes(frame) == syn(version)
    assert counters.mss_clamped == 0


@pytest.mark.parametrize("clamps", [True, False])
@pytest.mark.parametrize("announced", [900, 9000])
@VERSIONS
def test_what_is_announced_here_is_what_superframes_are_cut_to(
    version: int, announced: int, clamps: bool
) -> None:
    fit, counters = make(clamps=clamps)
    there = tcp(flags="S", sport=1, dport=2, options=[("MSS", announced)])
    syn_sent(fit, memoryview(bytearray(bytes(ether(ip(version, there))))))
    addresses = {"src": "10.1.0.2", "dst": "10.1.0.1"}
    if version == 6:
        addresses = {"src": "fd00:1::2", "dst": "fd00:1::1"}
    back = partial(ether(ip(version, tcp(b"x" * 20000, sport=2, dport=1), **addresses)))
    header = parse_virtio(virtio_header(back, fit.sizes, counters))
    assert header.gso_size == min(announced, 1450 - HEADERS[version])


def test_an_mtu_that_changes_is_everywhere() -> None:
    fit, counters = make()
    for mtu in (1400, 1300, 1450):
        fit.mtu = mtu
        assert fit.mtu == fit.sizes.mtu == mtu
        assert fit.oversize.limit == mtu + 14
        frame = bytearray(syn(4))
        syn_sent(fit, memoryview(frame))
        assert mss(frame) == mtu - 40
    assert counters.mss_clamped == 3


def test_one_that_does_not_clamp_has_an_mtu_too() -> None:
    fit, _ = make(clamps=False)
    fit.mtu = 1300
    assert fit.mtu == fit.sizes.mtu == 1300


def test_clamping_may_change() -> None:
    fit, _ = make()
    for mss_clamp, expected in (("off", 1460), (1200, 1200), ("auto", 1410), (1460, 1460)):
        fit.set_mss_clamp(mss_clamp)
        frame = bytearray(syn(4))
        syn_sent(fit, memoryview(frame))
        assert mss(frame) == expected


@given(HOSTILE)
def test_any_octets_may_arrive_and_leave(octets: bytes) -> None:
    fit, counters = make(300)
    frame = bytearray(octets)
    syn_sent(fit, memoryview(frame))
    syn_received(fit, memoryview(frame))
    assert counters.mss_clamped or bytes(frame) == octets


@given(st.sampled_from((4, 6)), st.sampled_from(("", "q", "aq")), st.sampled_from(("A", "FA", "R")))
def test_other_segments_are_left_alone(version: int, tags: str, flags: str) -> None:
    fit, _ = make()
    packet = ether(ip(version, tcp(flags=flags, options=[("MSS", 1460)])), tags=tags)
    frame = bytearray(bytes(packet))
    syn_sent(fit, memoryview(frame))
    assert bytes(frame) == bytes(packet)
