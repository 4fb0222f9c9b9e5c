"""A captured frame as one line of text, in the manner of `tcpdump -e`."""

import time
from ipaddress import ip_address

from vtep.control.frames import CapturedFrame
from vtep.wire import ethernet, ip, vxlan
from vtep.wire.echo import EchoMessage
from vtep.wire.ethernet import format_mac

_NAMES = {ethernet.TYPE_IPV4: "IPv4", ethernet.TYPE_IPV6: "IPv6", 0x0806: "ARP"}
_PROTOCOLS = {1: "ICMP", 2: "IGMP", ip.TCP: "TCP", ip.UDP: "UDP", 47: "GRE", 50: "ESP", 58: "ICMP6"}
_ICMP = {
    *((1, 0, "echo reply"), (1, 3, "unreachable"), (1, 8, "echo request")),
    *((58, 2, "packet too big"), (58, 128, "echo request"), (58, 129, "echo reply")),
    *((58, 133, "router solicitation"), (58, 134, "router advertisement")),
    *((58, 135, "neighbour solicitation"), (58, 136, "neighbour advertisement")),
}
_ICMP_NAMES = {(protocol, kind): name for protocol, kind, name in _ICMP}
_TCP_FLAGS = "FSRP.UEW"
"""The letters of tcpdump, from the lowest bit on."""

_OUTER_HEADERS = {
    ethernet.TYPE_IPV4: ethernet.HEADER_LEN + ip.UDP_IP_HEADERS_LEN[4],
    ethernet.TYPE_IPV6: ethernet.HEADER_LEN + ip.UDP_IP_HEADERS_LEN[6],
}


def format_frame(frame: CapturedFrame) -> str:
    """Return a line: time, TAP, VNI, point, direction, what it is, length, id, and the drop."""
    seconds, rest = divmod(frame.time_ns, 1_000_000_000)
    clock = time.strftime("%H:%M:%S", time.localtime(seconds))
    where = "-" if frame.vni is None else f"{frame.dev} vni {frame.vni}"
    about = _outer(frame.octets) if frame.point == "outer" else _ethernet(frame.octets)
    words = [f"{clock}.{rest // 1000:06} {where} {frame.point} {frame.direction}"]
    if frame.point == "inner" and frame.remote is not None:
        words.append(f"remote {frame.remote}")
    line = f"{' '.join(words)} {about}, length {frame.length}"
    if frame.packet_id is not None:
        line += f", id {frame.packet_id}"
    for comment in frame.comments:
        line += f"; {comment}" if not comment.startswith("drop ") else f"; DROP {comment[5:]}"
    if frame.lost:
        line += f"; {frame.lost} lost before"
    return line


def _outer(octets: bytes) -> str:
    """Describe a datagram by its outer addresses and its frame."""
    ethertype = int.from_bytes(octets[12:14])
    text = _network(octets, ethertype, ethernet.HEADER_LEN)
    datagram = octets[_OUTER_HEADERS.get(ethertype, len(octets)) :]
    if len(datagram) < vxlan.HEADER_LEN:
        return text
    flags, word = vxlan.HEADER.unpack_from(datagram)
    if flags & vxlan.FLAG_I:
        return f"{text}: VXLAN vni {word >> 8}: {_ethernet(datagram[vxlan.HEADER_LEN :])}"
    message = EchoMessage.parse(datagram)
    if message is None:
        return f"{text}: VXLAN without the I flag"
    return f"{text}: echo {message.kind.name.lower()}"


def _ethernet(frame: bytes) -> str:
    """Describe an Ethernet frame."""
    if len(frame) < ethernet.HEADER_LEN:
        return f"runt of {len(frame)} octets"
    macs = f"{format_mac(frame[6:12])} > {format_mac(frame[:6])}"
    ethertype, offset = ethernet.network_layer(frame)
    tags = "".join(
        f" vlan {int.from_bytes(frame[at : at + 2]) & 0x0FFF}"
        for at in range(ethernet.HEADER_LEN, min(offset, len(frame) - 1), ethernet.TAG_LEN)
    )
    name = _NAMES.get(ethertype, f"ethertype 0x{ethertype:04x}")
    about = _arp(frame, offset) if name == "ARP" else _network(frame, ethertype, offset)
    return f"{macs}{tags} {name}" + (f" {about}" if about else "")


def _arp(frame: bytes, at: int) -> str:
    if len(frame) < at + 28:
        return ""
    operation = int.from_bytes(frame[at + 6 : at + 8])
    sender, target = ip_address(frame[at + 14 : at + 18]), ip_address(frame[at + 24 : at + 28])
    if operation == 1:
        return f"who-has {target} tell {sender}"
    return f"{sender} is-at {format_mac(frame[at + 8 : at + 14])}"


def _network(frame: bytes, ethertype: int, at: int) -> str:
    """Describe an IP packet at an offset; return "" if it is none."""
    if ethertype == ethernet.TYPE_IPV4 and len(frame) >= at + 20:
        source, destination = frame[at + 12 : at + 16], frame[at + 16 : at + 20]
        protocol, upper = frame[at + 9], at + (frame[at] & 15) * 4
        fragment = int.from_bytes(frame[at + 6 : at + 8]) & ip.FRAGMENT_OFFSET_MASK
    elif ethertype == ethernet.TYPE_IPV6 and len(frame) >= at + 40:
        source, destination = frame[at + 8 : at + 24], frame[at + 24 : at + 40]
        protocol, upper, fragment = frame[at + 6], at + 40, 0
    else:
        return ""
    addresses = [str(ip_address(source)), str(ip_address(destination))]
    name = _PROTOCOLS.get(protocol, f"protocol {protocol}")
    if fragment:
        return f"{' > '.join(addresses)} {name} fragment at {fragment * 8}"
    if protocol in (ip.TCP, ip.UDP) and len(frame) >= upper + 4:
        ports = (frame[upper : upper + 2], frame[upper + 2 : upper + 4])
        addresses = [
            f"{address}.{int.from_bytes(port)}"
            for address, port in zip(addresses, ports, strict=True)
        ]
    if protocol == ip.TCP and len(frame) > upper + ip.TCP_FLAGS_OFFSET:
        flags = frame[upper + ip.TCP_FLAGS_OFFSET]
        name += f" [{''.join(letter for bit, letter in enumerate(_TCP_FLAGS) if flags >> bit & 1)}]"
    elif len(frame) > upper and (protocol, frame[upper]) in _ICMP_NAMES:
        name += f" {_ICMP_NAMES[protocol, frame[upper]]}"
    return f"{' > '.join(addresses)} {name}"
