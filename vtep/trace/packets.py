"""Packets of pcap and pcapng files, frames in hexadecimal, and the datagram in an outer packet."""

import re
from collections.abc import Iterator
from ipaddress import ip_address
from struct import Struct, error
from typing import Final, NamedTuple

from vtep.errors import ConfigError
from vtep.wire import ethernet, vxlan
from vtep.wire import ip as inet

_PCAP = {
    b"\xd4\xc3\xb2\xa1": "<",
    b"\xa1\xb2\xc3\xd4": ">",
    b"\x4d\x3c\xb2\xa1": "<",  # With nanoseconds.
    b"\xa1\xb2\x3c\x4d": ">",
}
"""Octet orders of pcap files by their first octets (draft-ietf-opsawg-pcap)."""

_PCAPNG = b"\x0a\x0d\x0d\x0a"
_SECTION, _INTERFACE, _OLD_PACKET, _SIMPLE, _PACKET = 0x0A0D0D0A, 1, 2, 3, 6
"""Types of pcapng blocks (draft-ietf-opsawg-pcapng, section 4)."""

_ETHERNET = 1
_LINK_TYPES: Final = {113: 16, 276: 20}
"""Octets of the headers of Linux "cooked" captures, as on the device any, by link type."""

_RAW = (12, 14, 101, 228, 229)
"""Link types without a header: an IP packet."""

_DUMP_LINE = re.compile(r"^\s*0x[0-9a-fA-F]+:[ \t]+((?:[0-9a-fA-F]+ ?)+)", re.MULTILINE)
"""A line of octets of `tcpdump -x` or `-X`: two blanks end them."""


class Packet(NamedTuple):
    """A packet of a file."""

    octets: bytes
    link_type: int
    length: int
    """Octets that it had on the wire."""


class OuterDatagram(NamedTuple):
    """The UDP payload of an outer packet, and what a VTEP learns about its header."""

    payload: bytes
    source: str
    ecn: int


def parse_hex(text: str) -> bytes:
    """Return the octets of a frame in hexadecimal; blanks and colons are skipped.

    It may be the output of `tcpdump -xx` about one packet.

    Raises: ConfigError.
    """
    # tcpdump also describes the packet.
    lines = _DUMP_LINE.findall(text)
    digits = re.sub(r"[\s:.-]", "", "".join(lines) if lines else text).removeprefix("0x")
    try:
        octets = bytes.fromhex(digits)
    except ValueError:
        raise ConfigError(
            "--hex: is not hexadecimal: give the octets of the frame, as in: "
            "--hex 'ffffffffffff 020000000001 0806 ...'"
        ) from None
    if not octets:
        raise ConfigError("--hex: has no octets")
    return octets


def read_packet(data: bytes, number: int) -> Packet:
    """Return a packet of a pcap or pcapng file by its number, as Wireshark counts: from 1.

    Raises: ConfigError.
    """
    try:
        count = 0
        for count, packet in enumerate(_packets(data), 1):
            if count == number:
                if packet.length > len(packet.octets):
                    raise ConfigError(
                        f"packet {number}: was captured with {len(packet.octets)} of its "
                        f"{packet.length} octets; capture it whole, as with tcpdump -s 0"
                    )
                return packet
    except (error, IndexError):
        raise ConfigError("the capture file is truncated or damaged") from None
    raise ConfigError(f"packet {number}: the capture file has {count}")


def _packets(data: bytes) -> Iterator[Packet]:
    order = _PCAP.get(data[:4])
    if order is not None:
        return _of_pcap(data, order)
    if data[:4] == _PCAPNG:
        return _of_pcapng(data)
    raise ConfigError("is not a capture file: neither pcap nor pcapng")


def _of_pcap(data: bytes, order: str) -> Iterator[Packet]:
    record = Struct(order + "8xII")
    # The upper bits say how long the FCS is.
    link_type = Struct(order + "I").unpack_from(data, 20)[0] & 0xFFFF
    at = 24
    while at < len(data):
        kept, length = record.unpack_from(data, at)
        at += record.size
        yield Packet(_part(data, at, kept), link_type, length)
        at += kept


def _of_pcapng(data: bytes) -> Iterator[Packet]:
    order, at = "<", 0
    links: list[tuple[int, int]] = []
    while at < len(data):
        if data[at : at + 4] == _PCAPNG:
            order = ">" if data[at + 8 : at + 12] == b"\x1a\x2b\x3c\x4d" else "<"
            links = []
        kind, size = Struct(order + "II").unpack_from(data, at)
        if size < 12 or size % 4:
            raise ConfigError("the capture file is damaged")
        if at + size > len(data):
            raise ConfigError("the capture file is truncated")
        body = at + 8
        if kind == _INTERFACE:
            links.append(Struct(order + "H2xI").unpack_from(data, body))
        elif kind == _PACKET:
            interface, kept, length = Struct(order + "I8xII").unpack_from(data, body)
            yield Packet(_part(data, body + 20, kept), links[interface][0], length)
        elif kind == _OLD_PACKET:
            interface, kept, length = Struct(order + "H10xII").unpack_from(data, body)
            yield Packet(_part(data, body + 20, kept), links[interface][0], length)
        elif kind == _SIMPLE:
            (length,) = Struct(order + "I").unpack_from(data, body)
            link_type, most = links[0]
            kept = min(length, most or length)
            yield Packet(_part(data, body + 4, kept), link_type, length)
        at += size


def _part(data: bytes, at: int, octets: int) -> bytes:
    if at + octets > len(data):
        raise ConfigError("the capture file is truncated")
    return data[at : at + octets]


def inner_frame(packet: Packet) -> bytes:
    """Return the Ethernet frame of a packet. Raises: ConfigError for another link type."""
    if packet.link_type != _ETHERNET:
        raise ConfigError(
            f"the packet has no Ethernet header (link type {packet.link_type}): capture on the TAP "
            "or a port of its bridge, or add --outer for a datagram of the underlay"
        )
    return packet.octets


def outer_datagram(packet: Packet) -> OuterDatagram:
    """Return the UDP payload in a packet of the underlay. Raises: ConfigError."""
    frame = packet.octets
    if packet.link_type in _RAW or packet.link_type in _LINK_TYPES:
        # As Ethernet, for the parser of the data path.
        packet_at = _LINK_TYPES.get(packet.link_type, 0)
        ip = frame[packet_at:]
        kind = ethernet.TYPE_IPV6 if ip[:1] and ip[0] >> 4 == 6 else ethernet.TYPE_IPV4
        frame = bytes(12) + kind.to_bytes(2) + ip
    elif packet.link_type != _ETHERNET:
        raise ConfigError(f"--outer: packets of link type {packet.link_type} are not understood")
    transport = None
    if len(frame) >= ethernet.HEADER_LEN:
        transport = inet.find_transport(frame)
    if transport is None or transport.protocol != inet.UDP:
        raise ConfigError("--outer: the packet is no UDP datagram, or a fragment of one")
    at = transport.ip_offset
    if transport.version == 4:
        source, tos = frame[at + 12 : at + 16], frame[at + 1]
    else:
        source, tos = frame[at + 8 : at + 24], frame[at + 1] >> 4 | frame[at] << 4
    begin = transport.offset + inet.UDP_HEADER_LEN
    payload = frame[begin : transport.offset + transport.length]
    return OuterDatagram(payload, str(ip_address(source)), tos & 3)


def is_vxlan(frame: bytes) -> bool:
    """Return True for a frame that is a datagram of the underlay rather than one of a guest."""
    if len(frame) < ethernet.HEADER_LEN or (transport := inet.find_transport(frame)) is None:
        return False
    port = int.from_bytes(frame[transport.offset + 2 : transport.offset + 4])
    return transport.protocol == inet.UDP and port == vxlan.PORT
