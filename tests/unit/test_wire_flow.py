"""The flow hash, and run keys."""

from collections import Counter
from itertools import combinations, product
from zlib import crc32

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IPOption_NOP
from scapy.layers.inet6 import IPv6ExtHdrFragment
from scapy.layers.l2 import ARP
from scapy.packet import Packet, Raw

from tests.unit.craft import (
    BROADCAST,
    HOSTILE,
    MAC_A,
    VALID,
    dest,
    ether,
    hop,
    ip,
    ip4,
    ip6,
    tcp,
    udp,
)
from vtep.wire import ip as inet
from vtep.wire.flow import flow_hash, run_key_struct
from vtep.wire.outer_header import InheritPolicy

PORTS = st.binary(min_size=4, max_size=4)
PORT_PROTOCOLS = [6, 17, 33, 132, 136]
PORTLESS_PROTOCOLS = [1, 2, 4, 47, 50, 58, 89]


def hashed(packet: Packet) -> int:
    return flow_hash(bytes(ether(packet)))


def of_protocol(version: int, protocol: int, body: bytes) -> Packet:
    return ip(version, Raw(body), **{"proto" if version == 4 else "nh": protocol})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(ip4(udp(b"a")), ip4(udp(b"longer")), id="v4 payload"),
        pytest.param(ip4(udp(), ttl=9), ip4(udp(), id=99, tos=4, flags="DF"), id="v4 header"),
        pytest.param(ip4(udp()), ip4(udp(), options=[IPOption_NOP()] * 4), id="v4 options"),
        pytest.param(ip4(tcp(seq=1)), ip4(tcp(seq=2, flags="S")), id="v4 segments"),
        pytest.param(ip6(udp(b"a")), ip6(udp(b"longer")), id="v6 payload"),
        pytest.param(ip6(udp(), hlim=9), ip6(udp(), tc=4), id="v6 header"),
        pytest.param(ip6(tcp(seq=1)), ip6(tcp(seq=2, flags="S")), id="v6 segments"),
        pytest.param(
            ip4(Raw(b"12345678"), proto=17, flags="MF"),
            ip4(Raw(b"abcdefgh"), proto=17, frag=1),
            id="v4 first and last fragment",
        ),
        pytest.param(
            ip4(Raw(b"12345678"), proto=6, frag=256),
            ip4(Raw(b"abcdefgh"), proto=6, frag=4096),
            id="v4 fragment offsets",
        ),
        pytest.param(
            ip6(IPv6ExtHdrFragment(m=1, nh=17) / Raw(b"12345678")),
            ip6(IPv6ExtHdrFragment(offset=1, nh=17) / Raw(b"abcdefgh")),
            id="v6 first and last fragment",
        ),
        pytest.param(ip6(hop(udp(sport=1))), ip6(hop(udp(sport=2))), id="v6 behind hop-by-hop"),
        pytest.param(ip6(dest(udp(sport=1))), ip6(dest(udp(sport=2))), id="v6 behind destination"),
        pytest.param(ip4(ICMP(id=1)), ip4(ICMP(id=2)), id="icmp"),
    ],
)
def test_same_flow(one: Packet, other: Packet) -> None:
    assert bytes(one) != bytes(other)
    assert hashed(one) == hashed(other)


FLOWS = {
    f"v{version} {name}": packet
    for version, addresses in ((4, ("10.1.0.3", "10.1.0.4")), (6, ("fd00:1::3", "fd00:1::4")))
    for name, packet in {
        "udp": ip(version, udp(sport=1000, dport=2000)),
        "source port": ip(version, udp(sport=1001, dport=2000)),
        "destination port": ip(version, udp(sport=1000, dport=2001)),
        "reversed ports": ip(version, udp(sport=2000, dport=1000)),
        "tcp": ip(version, tcp(sport=1000, dport=2000)),
        "source": ip(version, udp(sport=1000, dport=2000), src=addresses[0]),
        "destination": ip(version, udp(sport=1000, dport=2000), dst=addresses[1]),
        "icmp": ip(version, ICMP()),
    }.items()
}


def test_different_flows(subtests: pytest.Subtests) -> None:
    for one, other in combinations(FLOWS, 2):
        with subtests.test(one=one, other=other):
            assert hashed(FLOWS[one]) != hashed(FLOWS[other])


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", PORT_PROTOCOLS)
@given(PORTS, PORTS)
def test_ports_are_hashed(version: int, protocol: int, one: bytes, other: bytes) -> None:
    # Only 32 bits differ, so CRC-32 is different for any two of these.
    assume(one != other)
    assert hashed(of_protocol(version, protocol, one + b"rest")) != hashed(
        of_protocol(version, protocol, other + b"rest")
    )


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", PORTLESS_PROTOCOLS)
def test_payload_of_portless_protocols_is_not_hashed(version: int, protocol: int) -> None:
    one, other = (of_protocol(version, protocol, body) for body in (b"12345678", b"abcdefgh"))
    assert hashed(one) == hashed(other)


@pytest.mark.parametrize("version", [4, 6])
def test_protocol_is_hashed(version: int) -> None:
    hashes = {hashed(of_protocol(version, protocol, b"12345678")) for protocol in range(256)}
    assert len(hashes) == 256


def test_tags_and_macs_are_not_hashed(subtests: pytest.Subtests) -> None:
    for flow, tags in product(FLOWS, ("q", "aq")):
        with subtests.test(flow=flow, tags=tags):
            tagged = ether(FLOWS[flow], tags=tags, dst=BROADCAST)
            assert flow_hash(bytes(tagged)) == hashed(FLOWS[flow])


def test_hash_is_crc32() -> None:
    # Python's hash() differs in every process and would move flows on each restart.
    frame = VALID["udp4"]
    assert flow_hash(frame) == crc32(frame[26:38], 17)
    frame = VALID["tcp6"]
    assert flow_hash(frame) == crc32(frame[22:58], 6)


@pytest.mark.parametrize("protocol", [1, 17])
@pytest.mark.parametrize(("version", "addresses"), [(4, range(26, 34)), (6, range(22, 54))])
def test_every_octet_of_the_addresses_is_hashed(
    version: int, addresses: range, protocol: int
) -> None:
    frame = bytes(ether(of_protocol(version, protocol, b"12345678")))
    hashes = {flow_hash(frame)}
    for at in addresses:
        hashes.add(flow_hash(frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1 :]))
    assert len(hashes) == 1 + len(addresses)


def test_ports_behind_ipv4_options() -> None:
    options = [IPOption_NOP()] * 4
    one, other = (ip4(udp(sport=port), options=options) for port in (1, 2))
    assert hashed(one) != hashed(other)


def test_other_protocols_are_hashed_by_macs_and_ethertype() -> None:
    frames = [
        VALID["arp"],
        bytes(ether(ARP(), src=MAC_A)),
        bytes(ether(ARP(), src="02:00:00:00:00:0c")),
        bytes(ether(Raw(b"x")))[:12] + b"\x88\xcc" + b"x",
    ]
    assert len({flow_hash(frame) for frame in frames}) == len(frames)
    assert [flow_hash(frame) for frame in frames] == [flow_hash(frame[:14]) for frame in frames]


@pytest.mark.parametrize(("name", "complete"), [("udp4", 34), ("udp6", 54)])
def test_truncated_ip_header_is_hashed_by_macs_and_ethertype(name: str, complete: int) -> None:
    frame = VALID[name]
    for length in range(14, complete):
        assert flow_hash(frame[:length]) == flow_hash(frame[:14]), length
    assert flow_hash(frame[:complete]) != flow_hash(frame[:14])


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("slots", [2, 16, 64])
def test_flows_spread_over_all_slots(version: int, slots: int) -> None:
    # The low bits select the outer source port.
    frame = bytearray(VALID[f"udp{version}"])
    at = 34 if version == 4 else 54
    hits = Counter[int]()
    for port in range(32768, 32768 + 2048):
        frame[at : at + 2] = port.to_bytes(2, "big")
        hits[flow_hash(frame) % slots] += 1
    assert len(hits) == slots
    assert max(hits.values()) <= 2 * 2048 / slots


@pytest.mark.parametrize("frame", VALID.values(), ids=VALID.keys())
def test_any_buffer(frame: bytes) -> None:
    assert flow_hash(bytearray(frame)) == flow_hash(memoryview(frame)) == flow_hash(frame)


@given(HOSTILE)
def test_any_frame(frame: bytes) -> None:
    assert 0 <= flow_hash(frame) < 1 << 32


# --- run keys ---------------------------------------------------------------------------------

INHERIT = InheritPolicy(inherit_tos=True, inherit_ttl=True, inherit_flowlabel=True, inherit_df=True)
READERS = [INHERIT.make_reader(), InheritPolicy().make_reader()]


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(ip4(udp()), id="v4 udp"),
        pytest.param(ip4(tcp()), id="v4 tcp"),
        pytest.param(ip6(udp(bytes(4))), id="v6 udp"),
        pytest.param(ip6(tcp()), id="v6 tcp"),
    ],
)
def test_octets_outside_of_the_run_key(packet: Packet) -> None:
    frame = bytes(ether(packet))
    key_struct = run_key_struct(frame)
    assert key_struct is not None
    free = set(range(len(frame)))
    for at in range(len(frame)):
        changed = bytearray(frame)
        changed[at] ^= 0xFF
        if key_struct.unpack_from(changed) != key_struct.unpack_from(frame):
            free.remove(at)
    v6 = frame[12] == 0x86
    ip_at, upper = 14, 54 if v6 else 34
    protocol = frame[20 if v6 else 23]
    expected = {18, 19} if v6 else {16, 17, 18, 19, 24, 25}
    expected |= set(range(upper + 4, len(frame)))
    if protocol == 6:
        expected -= {upper + 12, upper + 13}
    assert ip_at < min(free)
    assert free == expected


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(ip4(tcp(flags="S")), id="v4 syn"),
        pytest.param(ip6(tcp(flags="SA")), id="v6 syn"),
        pytest.param(ip4(udp(), flags="MF"), id="v4 first fragment"),
        pytest.param(ip4(Raw(bytes(30)), proto=17, frag=1), id="v4 fragment"),
        pytest.param(ip4(udp(), options=[IPOption_NOP()] * 4), id="v4 options"),
        pytest.param(ip6(hop(udp())), id="v6 extension"),
        pytest.param(ip4(ICMP()), id="icmp"),
        pytest.param(ARP(), id="arp"),
    ],
)
def test_no_run_key(packet: Packet) -> None:
    assert run_key_struct(bytes(ether(packet))) is None


@given(frame=HOSTILE)
def test_run_key_lies_within_the_frame(frame: bytes) -> None:
    key_struct = run_key_struct(frame)
    assert key_struct is None or key_struct.size <= len(frame)


@given(
    frame=st.sampled_from([VALID[name] for name in ("tcp4", "udp4", "udp6")]),
    changes=st.lists(st.tuples(st.integers(14, 53), st.integers(0, 255)), max_size=2),
    data=st.data(),
)
def test_frames_with_equal_run_keys_get_the_same_treatment(
    frame: bytes, changes: list[tuple[int, int]], data: st.DataObject
) -> None:
    one = bytearray(frame)
    for at, octet in changes:
        one[at % len(one)] = octet
    frame = bytes(one)
    key_struct = run_key_struct(frame)
    assume(key_struct is not None)
    assert key_struct is not None
    other = bytearray(frame)
    for at in data.draw(st.lists(st.integers(0, len(frame) - 1), max_size=8)):
        other[at] = data.draw(st.integers(0, 255))
    # Octets outside of the key may have any value, those of the key keep theirs.
    mask = bytes([255]) * key_struct.size
    kept = bytearray(key_struct.pack(*key_struct.unpack_from(mask)))
    for at in range(key_struct.size):
        if kept[at]:
            other[at] = frame[at]
    assert key_struct.unpack_from(other) == key_struct.unpack_from(frame)
    assert flow_hash(other) == flow_hash(frame)
    assert other[:6] == frame[:6]
    assert [reader(other) for reader in READERS] == [reader(frame) for reader in READERS]
    assert inet.tcp_syn(other) is None
    assert inet.tcp_syn(frame) is None
