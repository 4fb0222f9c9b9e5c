"""ICMP echo and ARP, for hosts that send no echo replies of VTEPs.

These take raw and packet sockets, for which the doctor needs root.
"""

import os
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address

from vtep.io import socket_constants as const
from vtep.io.addresses import sockaddr
from vtep.io.socket_filter import attach_program
from vtep.io.socket_options import prefer_public_source
from vtep.wire import arp, ethernet, icmp, icmp_echo, nd
from vtep.wire.address import Address
from vtep.wire.ethernet import format_mac, parse_mac
from vtep.wire.icmp_echo import IcmpEcho
from vtep.wire.ip import IP_HEADER_MIN

PINGS = 3
"""ICMP echo requests that `ping` sends."""

_PING_TIMEOUT_S = 1.0
_PING_INTERVAL_S = 0.02
_ARP_TIMEOUT_S = 0.3
"""Seconds after the first ARP request in which all hosts that have the address have replied."""

_ARP_REQUESTS = 2
_MULTICAST_TIMEOUT_S = 0.6
"""Seconds in which the hosts of a segment reply to a ping to all nodes."""

_PACKET_MAX = 65536
_IPV4_ANY = IPv4Address(0)
_BROADCAST = b"\xff" * ethernet.MAC_LEN
_LOCAL_EXPERIMENT = b"\x88\xb5"
"""EtherType of frames that mean nothing to other hosts (IEEE 802, local experimental 1)."""

_PAYLOAD_MIN = 46
"""Octets of the shortest payload of an Ethernet frame (IEEE 802.3)."""

_ETH_P_ALL = 0x0003
"""All EtherTypes (the kernel's include/uapi/linux/if_ether.h)."""

_BPF = struct.Struct("=HBBI")
"""struct sock_filter: code, jump offsets if true and if false, operand."""

_ALL_NODES = bytes.fromhex("ff02" + "00" * 13 + "01")
"""ff02::1, all nodes of the link (RFC 4291, section 2.7.1)."""

_ALL_NODES_MAC = bytes.fromhex("333300000001")


def receive_until(sock: socket.socket, deadline: float) -> Iterator[bytes]:
    """Yield received packets until a time on the monotonic clock, in seconds."""
    while (left := deadline - time.monotonic()) > 0:
        readable, _, _ = select.select([sock], [], [], left)
        if readable:
            try:
                yield sock.recv(_PACKET_MAX)
            except OSError:  # An ICMP error, or another reader took the packet.
                continue


# --- ICMP echo --------------------------------------------------------------------------------


def ping(host: Address, dev: str | None, size: int = 0) -> int | None:
    """Send `PINGS` ICMP echo requests to a host, over a device if one is given.

    With `size`, they are IP packets of so many octets, which no router may fragment.

    Returns: the number of replies; None without the privilege.
    """
    version = host.version
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    protocol = icmp.ICMPV6 if version == 6 else icmp.ICMP
    try:
        sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    except PermissionError:
        return None
    identifier = _random_identifier()
    replied: set[int] = set()
    with sock:
        try:
            if version == 6:
                prefer_public_source(sock)
            if dev is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, dev.encode())
            if size:
                _forbid_fragments(sock, version)
            sock.connect(sockaddr(str(host), 0))
            for sequence in range(PINGS):
                request = icmp_echo.pack_request(version, IcmpEcho(identifier, sequence))
                request += bytes(max(0, size - IP_HEADER_MIN[version] - len(request)))
                # Raw sockets for ICMPv6 fill in the checksum (RFC 3542, section 3.1); those for
                # ICMP do not.
                sock.send(icmp.with_checksum(request) if version == 4 else request)
                deadline = time.monotonic() + _PING_INTERVAL_S
                _receive_replies(sock, version, identifier, replied, deadline)
        except OSError:  # For example, there is no route.
            return len(replied)
        deadline = time.monotonic() + _PING_TIMEOUT_S
        _receive_replies(sock, version, identifier, replied, deadline)
    return len(replied)


def _forbid_fragments(sock: socket.socket, version: int) -> None:
    """Make packets pass as a whole or not at all, whatever path MTU the kernel remembers."""
    if version == 4:
        sock.setsockopt(socket.IPPROTO_IP, const.IP_MTU_DISCOVER, const.PMTUDISC_PROBE)
        return
    sock.setsockopt(socket.IPPROTO_IPV6, const.IPV6_MTU_DISCOVER, const.PMTUDISC_PROBE)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DONTFRAG, 1)


def _receive_replies(
    sock: socket.socket, version: int, identifier: int, replied: set[int], deadline: float
) -> None:
    """Receive echo replies until all requests are replied to, or the deadline.

    Side effect: adds their sequence numbers to `replied`.
    """
    for packet in receive_until(sock, deadline):
        # A raw socket for IPv4 receives the IP header, and one for IPv6 does not (raw(7), ipv6(7)).
        offset = _header_len(packet) if version == 4 else 0
        reply = icmp_echo.parse_reply(packet, offset, version)
        if reply is not None and reply.identifier == identifier:
            replied.add(reply.sequence)
        if len(replied) == PINGS:
            return


def is_one_host(address: IPv4Address, dev: str, source: IPv4Address, macs: Sequence[str]) -> bool:
    """Return True if several MACs that reply to ARP requests for an address are surely of one host.

    A ping is sent to each MAC. One host sends all replies from the device through which it reaches
    this host. Two hosts send one reply each, from their own devices.

    Raises:
        OSError: the device is gone.
    """
    identifier = _random_identifier()
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
    replies: dict[int, bytes] = {}
    with socket.socket(socket.AF_PACKET, kind, socket.htons(ethernet.TYPE_IPV4)) as sock:
        sock.bind((dev, ethernet.TYPE_IPV4))
        for sequence, mac in enumerate(macs):
            request = icmp_echo.pack_request(4, IcmpEcho(identifier, sequence))
            packet = icmp.ipv4_packet(source.packed, address.packed, request)
            sock.sendto(packet, (dev, ethernet.TYPE_IPV4, 0, 0, parse_mac(mac)))
        deadline = time.monotonic() + _PING_TIMEOUT_S
        while len(replies) < len(macs) and (left := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select([sock], [], [], left)
            if not readable:
                break
            packet, sender = sock.recvfrom(_PACKET_MAX)
            # A packet socket sees outgoing packets, too.
            if packet[12:16] != address.packed or sender[2] == socket.PACKET_OUTGOING:
                continue
            if packet[9] == icmp.ICMP:
                reply = icmp_echo.parse_reply(packet, _header_len(packet), 4)
                if reply is not None and reply.identifier == identifier:
                    replies[reply.sequence] = sender[4]
    return len(replies) == len(macs) and len(set(replies.values())) == 1


def ping_all_nodes(tap: str, upper_device: str, mac: bytes, *, vlan: int | None = None) -> set[str]:
    """Ping all IPv6 nodes that are reachable via the TAP of a segment, or in a VLAN of the TAP.

    Replies are received on `upper_device`: the bridge that the TAP is on, or the TAP. Those in a
    VLAN are received on the TAP, since the bridge itself need not be in that VLAN. The source is
    the link-local address that belongs to its `mac`. If this host does not have that address, hosts
    send neighbor solicitations for it, and no replies. These show as well that a host is there.

    Returns: the MACs of hosts that react.

    Raises:
        OSError: without the privilege, or if a device is gone.
    """
    source = nd.link_local(mac)
    echo = IcmpEcho(_random_identifier(), _random_identifier())
    packet = icmp.ipv6_packet(source, _ALL_NODES, icmp_echo.pack_request(6, echo))
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
    found = set()
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender,
        socket.socket(socket.AF_PACKET, kind) as receiver,
    ):
        if vlan is None:
            receiver.bind((upper_device, ethernet.TYPE_IPV6))
        else:
            _attach_icmpv6_filter(receiver)
            # Only a socket for all EtherTypes gets frames before the bridge takes them.
            receiver.bind((tap, _ETH_P_ALL))
        # Not from the bridge, whose other ports are on this side of the tunnel.
        sender.bind((tap, 0))
        ethertype = ethernet.TYPE_IPV6.to_bytes(2, "big")
        sender.send(with_tag(_ALL_NODES_MAC + mac + ethertype + packet, vlan))
        for frame in receive_until(receiver, time.monotonic() + _MULTICAST_TIMEOUT_S):
            from_mac = frame[ethernet.MAC_LEN : 2 * ethernet.MAC_LEN]
            if from_mac != mac and _reacts(frame, source, echo):
                found.add(format_mac(from_mac))
    return found


def with_tag(frame: bytes, vlan: int | None) -> bytes:
    """Return a frame with the 802.1Q tag of a VLAN; None for the frame as it is."""
    if vlan is None:
        return frame
    macs = 2 * ethernet.MAC_LEN
    return frame[:macs] + ethernet.pack_tag(vlan) + frame[macs:]


def _attach_icmpv6_filter(sock: socket.socket) -> None:
    """Attach a filter to a packet socket that passes ICMPv6 only, not the bulk of a busy TAP."""
    # The kernel has removed the 802.1Q tag of a received frame, so offsets are those without one.
    instructions = (
        (0x28, 0, 0, 12),  # A = EtherType
        (0x15, 0, 3, ethernet.TYPE_IPV6),
        (0x30, 0, 0, ethernet.HEADER_LEN + 6),  # A = next header
        (0x15, 0, 1, icmp.ICMPV6),
        (0x06, 0, 0, _PACKET_MAX),  # return the whole frame
        (0x06, 0, 0, 0),  # else nothing
    )
    program = b"".join(_BPF.pack(*instruction) for instruction in instructions)
    attach_program(sock, const.SO_ATTACH_FILTER, program)


def _reacts(frame: bytes, source: bytes, echo: IcmpEcho) -> bool:
    """Return True for a reply to an echo request from `source`, or a solicitation for `source`."""
    at = ethernet.HEADER_LEN
    solicitation = nd.parse(frame, at)
    if solicitation is not None:
        return solicitation.kind == nd.SOLICITATION and solicitation.target == source
    is_icmp = frame[at + 6 : at + 7] == bytes((icmp.ICMPV6,))
    return is_icmp and icmp_echo.parse_reply(frame, at + IP_HEADER_MIN[6], 6) == echo


def _header_len(packet: bytes) -> int:
    """Return the length of an IPv4 header with its options, in octets."""
    return (packet[0] & 0x0F) * 4


def _random_identifier() -> int:
    """Return 16 random bits, by which the replies to a process differ from those to others."""
    return int.from_bytes(os.urandom(2), "big")


# --- ARP and other frames ---------------------------------------------------------------------


def resolve_macs(
    address: IPv4Address, dev: str, mac: str, sender: IPv4Address = _IPV4_ANY
) -> tuple[str, ...] | None:
    """Send ARP requests for an address on the link of a device, and collect all replies.

    Without a `sender` the request is an ARP probe, which changes no ARP cache (RFC 5227, section
    2.1.1), so it can ask for own addresses, too. With the own address as `sender`, only those hosts
    reply that would reply when this host needs the address: a host with several devices on the link
    may reply to a probe on each.

    Returns: the MACs that replied, but for the own `mac`; None without the privilege.
    """
    own = parse_mac(mac)
    request = arp.Arp(arp.REQUEST, own, sender.packed, ethernet.MAC_ZERO, address.packed)
    frame = _BROADCAST + own + arp.TYPE.to_bytes(2, "big") + arp.pack(request)
    found: dict[str, None] = {}
    try:
        sock = socket.socket(
            socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(arp.TYPE)
        )
    except PermissionError:
        return None
    with sock:
        sock.bind((dev, 0))
        for _ in range(_ARP_REQUESTS):
            sock.send(frame)
            deadline = time.monotonic() + _ARP_TIMEOUT_S / _ARP_REQUESTS
            for packet in receive_until(sock, deadline):
                reply = arp.parse(packet, ethernet.HEADER_LEN)
                if reply is None or reply.operation != arp.REPLY or reply.sender_mac == own:
                    continue
                if reply.sender == address.packed:
                    found[format_mac(reply.sender_mac)] = None
    return tuple(found)


def send_test_frame(tap: str, vlan: int | None) -> None:
    """Broadcast a frame that no host understands into the segment of a TAP, or of its VLAN.

    Raises:
        OSError: without the privilege, or if the TAP is gone.
    """
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((tap, 0))
        mac: bytes = sock.getsockname()[4]
        frame = _BROADCAST + mac + _LOCAL_EXPERIMENT + bytes(_PAYLOAD_MIN)
        sock.send(with_tag(frame, vlan))
