"""Frames built by scapy for the unit tests, and slow reference implementations for comparison."""

import struct
from typing import Any, NamedTuple

from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

MAC_A = "02:00:00:00:00:0a"
MAC_B = "02:00:00:00:00:0b"
BROADCAST = "ff:ff:ff:ff:ff:ff"
V4_A, V4_B = "10.1.0.1", "10.1.0.2"
V6_A, V6_B = "fd00:1::1", "fd00:1::2"


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


# --- frames -----------------------------------------------------------------------------------


def ether(payload: Packet, *, tags: str = "", src: str = MAC_A, dst: str = MAC_B) -> Packet:
    """Build a frame; `tags` has a letter for each VLAN tag: q for 802.1Q, a for 802.1ad."""
    for number, tag in reversed(list(enumerate(tags))):
        payload = (Dot1Q if tag == "q" else Dot1AD)(vlan=100 + number) / payload
    return Ether(src=src, dst=dst) / payload


def with_defaults(fields: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    return defaults | fields


def ip4(payload: Packet, **fields: Any) -> Packet:
    return IP(**with_defaults(fields, src=V4_A, dst=V4_B, id=7, ttl=64)) / payload


def ip6(payload: Packet, **fields: Any) -> Packet:
    return IPv6(**with_defaults(fields, src=V6_A, dst=V6_B, hlim=64)) / payload


def hop(payload: Packet) -> Packet:
    return IPv6ExtHdrHopByHop() / payload


def dest(payload: Packet) -> Packet:
    return IPv6ExtHdrDestOpt() / payload


def tcp(payload: bytes = b"", **fields: Any) -> Packet:
    return TCP(**with_defaults(fields, sport=40000, dport=80, seq=1, flags="A")) / Raw(payload)


def udp(payload: bytes = b"", **fields: Any) -> Packet:
    return UDP(**with_defaults(fields, sport=40001, dport=53)) / Raw(payload)


def ip(version: int, payload: Packet, **fields: Any) -> Packet:
    return ip4(payload, **fields) if version == 4 else ip6(payload, **fields)


def vxlan(frame: bytes | Packet, vni: int = 1) -> bytes:
    """Build the payload of a VXLAN datagram with the header of scapy."""
    return bytes(VXLAN(flags="Instance", vni=vni)) + bytes(frame)


VALID = {
    "arp": bytes(ether(ARP(psrc=V4_A, pdst=V4_B, hwsrc=MAC_A), dst=BROADCAST)),
    "icmp": bytes(ether(ip4(ICMP()))),
    "nd": bytes(ether(ip6(ICMPv6ND_NS(tgt=V6_B)))),
    "tcp4": bytes(ether(ip4(tcp(b"payload", options=[("MSS", 1460), ("NOP", None)])))),
    "tcp6": bytes(ether(ip6(tcp(b"payload", flags="S", options=[("MSS", 1440)])))),
    "udp4": bytes(ether(ip4(udp(b"payload")))),
    "udp6": bytes(ether(ip6(udp(b"payload")))),
    "tcp4 vlan": bytes(ether(ip4(tcp(b"payload", flags="S", options=[("MSS", 1460)])), tags="q")),
    "udp6 qinq": bytes(ether(ip6(udp(b"payload")), tags="aq")),
    "tcp6 extensions": bytes(ether(ip6(hop(dest(tcp(b"payload")))))),
    "udp6 fragment": bytes(ether(ip6(IPv6ExtHdrFragment(m=1) / udp(b"payload")))),
    "udp6 routing": bytes(ether(ip6(IPv6ExtHdrRouting(addresses=[V6_B]) / udp(b"payload")))),
    "udp4 fragment": bytes(ether(ip4(udp(b"payload"), flags="MF"))),
}
"""Frames that a host may send, with complete checksums."""


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Draw a valid frame with some octets changed, removed at the end or appended.

    It has at least 14 octets.
    """
    frame = bytearray(draw(st.sampled_from(list(VALID.values()))))
    for _ in range(draw(st.integers(0, 4))):
        frame[draw(st.integers(0, len(frame) - 1))] = draw(st.integers(0, 255))
    keep = draw(st.one_of(st.just(len(frame)), st.integers(14, len(frame))))
    return bytes(frame[:keep]) + draw(st.one_of(st.just(b""), st.binary(max_size=40)))


HOSTILE = st.one_of(st.binary(min_size=14, max_size=120), mutated())
"""Arbitrary input for functions that require a frame of at least 14 octets."""


# --- reference implementations ----------------------------------------------------------------


def loop_sum(data: bytes) -> int:
    """Return the one's complement sum, computed like the C code in RFC 1071, section 4.1."""
    total = 0
    for at in range(0, len(data) - 1, 2):
        total += data[at] << 8 | data[at + 1]
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


class Layout(NamedTuple):
    """Offsets and lengths in a TCP or UDP frame, as scapy dissects it."""

    version: int
    protocol: int
    ip_offset: int
    offset: int
    length: int
    pseudo_header: bytes

    @property
    def checksum_at(self) -> int:
        return self.offset + (16 if self.protocol == 6 else 6)


def layout(packet: Packet) -> Layout:
    """Dissect a packet that scapy built, without padding."""
    frame = bytes(packet)
    parsed = Ether(frame)
    upper = parsed[TCP] if TCP in parsed else parsed[UDP]
    lower = parsed[IPv6] if IPv6 in parsed else parsed[IP]
    protocol = 6 if TCP in parsed else 17
    length = len(upper)
    if IPv6 in parsed:
        version, at = 6, len(frame) - lower.plen - 40
        pseudo = frame[at + 8 : at + 40] + struct.pack("!I3xB", length, protocol)
    else:
        version, at = 4, len(frame) - lower.len
        pseudo = frame[at + 12 : at + 20] + struct.pack("!xBH", protocol, length)
    return Layout(version, protocol, at, len(frame) - length, length, pseudo)


def partial(packet: Packet) -> bytes:
    """Build the frame with a partial checksum: the sum of the pseudo-header only."""
    offsets = layout(packet)
    frame = bytearray(bytes(packet))
    struct.pack_into("!H", frame, offsets.checksum_at, loop_sum(offsets.pseudo_header))
    return bytes(frame)


class VirtioHeader(NamedTuple):
    flags: int
    gso_type: int
    hdr_len: int
    gso_size: int
    csum_start: int
    csum_offset: int


def parse_virtio(header: bytes) -> VirtioHeader:
    return VirtioHeader(*struct.unpack("=BBHHHH", header))


def finish(frame: bytes, header: bytes) -> bytes:
    """Complete the checksum of a frame as the kernel behind a TAP does (skb_checksum_help)."""
    parsed = parse_virtio(header)
    if not parsed.flags & 1:
        return frame
    done = bytearray(frame)
    checksum = loop_sum(frame[parsed.csum_start :]) ^ 0xFFFF or 0xFFFF
    struct.pack_into("!H", done, parsed.csum_start + parsed.csum_offset, checksum)
    return bytes(done)
