"""The committed captures, processed by Demux.receive and virtio_header."""

import runpy
from collections.abc import Callable, Iterator
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.utils import RawPcapReader

from tests.unit.craft import finish, mac, parse_virtio
from vtep.counters import Counters, Drop
from vtep.forwarding.demux import Demux
from vtep.forwarding.fdb import Fdb, Remote
from vtep.forwarding.segment import Segment
from vtep.offload.partial import SegmentSizes, virtio_header
from vtep.wire import virtio, vxlan
from vtep.wire.flow import flow_hash

FIXTURES = Path(__file__).parents[1] / "fixtures"
MAKER: dict[str, Any] = runpy.run_path(str(FIXTURES / "make_pcaps.py"))
PCAPS: dict[str, Callable[[], dict[str, bytes]]] = MAKER["PCAPS"]
REMOTES = [Remote("192.0.2.1", 4789), Remote("2001:db8::1", 4789)]
MTU = 1450


@cache
def captured(pcap: str) -> dict[str, bytes]:
    """Read the packets of a committed file, by the names in `make_pcaps.py`."""
    with RawPcapReader(str(FIXTURES / f"{pcap}.pcap")) as reader:
        return dict(zip(PCAPS[pcap](), (packet for packet, _ in reader), strict=True))


def datagram(packet: bytes) -> tuple[bytes, str]:
    """Return what a UDP socket receives for an underlay packet: payload and source address."""
    at, addresses = (34, slice(26, 30)) if packet[12:14] == b"\x08\x00" else (54, slice(22, 38))
    assert packet[at + 2 : at + 4] == (4789).to_bytes(2, "big")
    assert len(packet) - at == int.from_bytes(packet[at + 4 : at + 6], "big")
    return packet[at + 8 :], str(ip_address(packet[addresses]))


def endpoint() -> tuple[Demux, Segment]:
    fdb = Fdb(MAKER["VNI"], 4789, ageing=300.0, max_addresses=0)
    segment = Segment(MAKER["VNI"], REMOTES, fdb, own_mac=mac(MAKER["OWN"]), learning=True)
    return Demux([segment]), segment


def drops(*counters: Counters) -> dict[Drop, int]:
    return {reason: n for each in counters for reason, n in each.drops.items() if n}


def names(pcap: str) -> list[str]:
    return list(PCAPS[pcap]())


# --- the files --------------------------------------------------------------------------------


@pytest.mark.parametrize("pcap", PCAPS)
def test_captures_are_reproducible(pcap: str, tmp_path: Path) -> None:
    MAKER["main"](tmp_path)
    assert (tmp_path / f"{pcap}.pcap").read_bytes() == (FIXTURES / f"{pcap}.pcap").read_bytes()


@pytest.mark.parametrize("pcap", PCAPS)
def test_capture_contains_the_named_packets(pcap: str) -> None:
    assert captured(pcap) == PCAPS[pcap]()


def test_no_other_files() -> None:
    assert {path.stem for path in FIXTURES.glob("*.pcap")} == set(PCAPS)


# --- vxlan_good -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names("vxlan_good"))
def test_good(name: str) -> None:
    demux, segment = endpoint()
    octets, source = datagram(captured("vxlan_good")[name])
    assert demux.admit(memoryview(octets), source, 1.0) is segment
    assert drops(demux.counters, segment.counters) == {}
    (remote,) = (remote for remote in REMOTES if remote.host == source)
    host = mac(MAKER["HOST"])
    assert [(entry.mac, entry.destinations) for entry in segment.fdb] == [(host, (remote,))]
    frame = octets[vxlan.HEADER_LEN :]
    assert frame[6:12] == host
    assert virtio_header(frame, SegmentSizes(MTU), Counters()) == virtio.PLAIN


def test_inner_frames_are_equal_over_ipv4_and_ipv6() -> None:
    inside: dict[str, set[bytes]] = {}
    for name, packet in captured("vxlan_good").items():
        underlay, _, what = name.partition(": ")
        assert underlay == ("v4" if packet[12:14] == b"\x08\x00" else "v6")
        inside.setdefault(what, set()).add(datagram(packet)[0])
    assert {len(octets) for octets in inside.values()} == {1}
    assert len({flow_hash(octets.pop()[8:]) for octets in inside.values()}) > 6


# --- vxlan_bad --------------------------------------------------------------------------------

VERDICTS = {
    "empty datagram": Drop.HEADER_TRUNCATED,
    "header truncated": Drop.HEADER_TRUNCATED,
    "no flag": Drop.FLAGS_INVALID,
    "every flag but I": Drop.FLAGS_INVALID,
    "GPE with IPv4 inside": Drop.HEADER_GPE,
    "I flag in the wrong octet": Drop.FLAGS_INVALID,
    "foreign VNI": Drop.VNI_UNKNOWN,
    "VNI zero": Drop.VNI_UNKNOWN,
    "VNI in the wrong byte order": Drop.VNI_UNKNOWN,
    "stranger": Drop.SOURCE_UNKNOWN,
    "no inner frame": Drop.INNER_RUNT,
    "runt": Drop.INNER_RUNT,
    "multicast source": Drop.INNER_SOURCE_INVALID,
    "broadcast source": Drop.INNER_SOURCE_INVALID,
    "zero source": Drop.INNER_SOURCE_INVALID,
    "own source": Drop.INNER_SOURCE_OWN,
}


@pytest.mark.parametrize("name", names("vxlan_bad"))
def test_bad(name: str) -> None:
    demux, segment = endpoint()
    octets, source = datagram(captured("vxlan_bad")[name])
    assert demux.admit(memoryview(octets), source, 1.0) is None
    assert drops(demux.counters, segment.counters) == {VERDICTS[name]: 1}
    assert len(segment.fdb) == 0


def test_all_bad_packets_in_sequence() -> None:
    demux, segment = endpoint()
    for packet in captured("vxlan_bad").values():
        demux.admit(*datagram(packet), 1.0)
    expected = list(VERDICTS.values())
    assert drops(demux.counters, segment.counters) == {
        reason: expected.count(reason) for reason in expected
    }


# --- partial_checksums ------------------------------------------------------------------------


def recomputed(frame: bytes) -> bytes:
    """Return the frame with the checksum computed by scapy."""
    packet = Ether(frame)
    del packet[TCP if TCP in packet else UDP].chksum
    return bytes(packet)


def received(name: str) -> tuple[bytes, bytes, Counters]:
    """Receive a packet.

    Returns: its inner frame, its virtio header, and the counters.
    """
    demux, segment = endpoint()
    octets, source = datagram(captured("partial_checksums")[name])
    assert demux.admit(octets, source, 1.0) is segment
    frame = octets[vxlan.HEADER_LEN :]
    return frame, virtio_header(frame, SegmentSizes(MTU), segment.counters), segment.counters


def of_kind(*, plain: bool) -> Iterator[str]:
    return (name for name in names("partial_checksums") if name.startswith("plain") is plain)


@pytest.mark.parametrize("name", list(of_kind(plain=True)))
def test_plain(name: str) -> None:
    _, header, counters = received(name)
    assert header == virtio.PLAIN
    assert (counters.partial_checksums, counters.super_datagrams) == (0, 0)


@pytest.mark.parametrize("name", list(of_kind(plain=False)))
def test_partial(name: str) -> None:
    frame, header, counters = received(name)
    assert recomputed(frame) != frame
    assert finish(frame, header) == recomputed(frame)
    assert (counters.partial_checksums, counters.super_datagrams) == (1, "super" in name)
    parsed, packet = parse_virtio(header), Ether(frame)
    upper = packet[TCP] if TCP in packet else packet[UDP]
    assert parsed.csum_start == len(frame) - len(upper)
    if "super" in name:
        ip_header = 20 if IP in packet else 40
        assert (IPv6 in packet) == (ip_header == 40)
        assert parsed.gso_type == (1 if IP in packet else 4)
        assert parsed.hdr_len == len(frame) - len(upper.payload)
        assert parsed.gso_size == MTU - ip_header - 20
    else:
        assert parsed[1:4] == (0, 0, 0)
