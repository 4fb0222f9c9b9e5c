"""What a remote that does not echo can be asked nevertheless: ICMP echo, and ARP on its link."""

import os
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address

from vtep.io.addresses import sockaddr
from vtep.io.socket_options import prefer_public_source
from vtep.wire.address import Address
from vtep.wire.checksum import internet_checksum
from vtep.wire.ethernet import format_mac, parse_mac

PINGS = 3
_PING_TIMEOUT = 1.0
_PING_PAUSE = 0.02
_ARP_TIMEOUT = 0.3
"""Seconds in which all who have an address have answered on any wire that is worth it."""
_ARP_QUESTIONS = 2

_ICMP = struct.Struct("!BBHHH")
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_ECHO_REQUEST = {4: 8, 6: 128}
_ECHO_REPLY = {4: 0, 6: 129}
_ETH_P_ARP = 0x0806
_ETH_P_IP = 0x0800
_PACKET_MAX = 65536
_ARP = struct.Struct("!6s6sHHHBBH6s4s6s4s")
_ANY = IPv4Address(0)
_BROADCAST = b"\xff" * 6
_ETH_P_LOCAL_EXPERIMENT = b"\x88\xb5"
"""EtherType of frames that mean nothing to others (IEEE 802, local experimental 1)."""
_FRAME_MIN = 46
"""Octets of the shortest payload of an Ethernet frame."""


def ping(host: Address, dev: str | None) -> int | None:
    """How many of `PINGS` ICMP echo requests are answered; None without the privilege to ask."""
    version = host.version
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    protocol = socket.IPPROTO_ICMPV6 if version == 6 else socket.IPPROTO_ICMP
    try:
        sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    except PermissionError:
        return None
    identity = int.from_bytes(os.urandom(2), "big")
    answered: set[int] = set()
    with sock:
        try:
            if version == 6:
                prefer_public_source(sock)
            if dev is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, dev.encode())
            sock.connect(sockaddr(str(host), 0))
            for number in range(PINGS):
                sock.send(_echo(_ECHO_REQUEST[version], identity, number))
                _hear(sock, version, identity, answered, time.monotonic() + _PING_PAUSE)
        except OSError:
            return len(answered)
        _hear(sock, version, identity, answered, time.monotonic() + _PING_TIMEOUT)
    return len(answered)


def _echo(kind: int, identity: int, number: int) -> bytes:
    checksum = internet_checksum(_ICMP.pack(kind, 0, 0, identity, number))
    return _ICMP.pack(kind, 0, checksum, identity, number)  # Over IPv6 the kernel sums it.


def _hear(sock: socket.socket, version: int, identity: int, heard: set[int], until: float) -> None:
    for packet in packets(sock, until):
        start = (packet[0] & 0x0F) * 4 if version == 4 else 0
        if len(packet) >= start + _ICMP.size:
            kind, _, _, its_identity, number = _ICMP.unpack_from(packet, start)
            if (kind, its_identity) == (_ECHO_REPLY[version], identity):
                heard.add(number)
        if len(heard) == PINGS:
            return


def packets(sock: socket.socket, until: float) -> Iterator[bytes]:
    """What arrives until then, in seconds of the monotonic clock."""
    while (left := until - time.monotonic()) > 0:
        readable, _, _ = select.select([sock], [], [], left)
        if readable:
            try:
                yield sock.recv(65536)
            except OSError:
                continue


def send_test_frame(tap: str) -> None:
    """Broadcast a frame that no host understands into the segment of a TAP. Raises OSError."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((tap, 0))
        mac: bytes = sock.getsockname()[4]
        sock.send(_BROADCAST + mac + _ETH_P_LOCAL_EXPERIMENT + bytes(_FRAME_MIN))


def who_has(
    address: IPv4Address, dev: str, mac: str, sender: IPv4Address = _ANY
) -> tuple[str, ...] | None:
    """Return the MACs that answer an ARP request for an address on a link, but the own `mac`.

    Without a `sender` it is a probe, which tells no host of an address of the sender (RFC 5227,
    section 2.1.1), so it can be sent for own addresses too. With the own address as the `sender`,
    only those answer that would answer when this host wants to reach the address: a host with
    several devices on the link may answer a probe on all of them.

    Returns: None without the privilege.
    """
    ours = parse_mac(mac)
    request = _ARP.pack(
        *(_BROADCAST, ours, _ETH_P_ARP, 1, 0x0800, 6, 4, 1),
        *(ours, sender.packed, bytes(6), address.packed),
    )
    found: dict[str, None] = {}
    try:
        sock = socket.socket(
            socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(_ETH_P_ARP)
        )
    except PermissionError:
        return None
    with sock:
        sock.bind((dev, 0))
        for _ in range(_ARP_QUESTIONS):
            sock.send(request)
            for packet in packets(sock, time.monotonic() + _ARP_TIMEOUT / _ARP_QUESTIONS):
                if len(packet) < _ARP.size:
                    continue
                *_, operation, owner, owned, _, _ = _ARP.unpack_from(packet)
                if operation == 2 and owned == address.packed and owner != ours:
                    found[format_mac(owner)] = None
    return tuple(found)


def _ipv4(source: IPv4Address, destination: IPv4Address, icmp: bytes) -> bytes:
    """Return a packet of ICMP."""
    length = _IPV4.size + len(icmp)
    fields = (0x45, 0, length, 0, 0, 64, socket.IPPROTO_ICMP)
    addresses = (source.packed, destination.packed)
    checksum = internet_checksum(_IPV4.pack(*fields, 0, *addresses))
    return _IPV4.pack(*fields, checksum, *addresses) + icmp


def is_one_host(address: IPv4Address, dev: str, source: IPv4Address, macs: Sequence[str]) -> bool:
    """Return whether several MACs that answer for an address are surely of one host.

    A ping is sent to each MAC. One host sends all replies from the device by which it reaches this
    one, and two hosts send one reply each from their own. Raises: OSError.
    """
    identity = int.from_bytes(os.urandom(2), "big")
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
    replies: dict[int, bytes] = {}
    with socket.socket(socket.AF_PACKET, kind, socket.htons(_ETH_P_IP)) as sock:
        sock.bind((dev, _ETH_P_IP))
        for number, mac in enumerate(macs):
            request = _echo(_ECHO_REQUEST[4], identity, number)
            packet = _ipv4(source, address, request)
            sock.sendto(packet, (dev, _ETH_P_IP, 0, 0, parse_mac(mac)))
        until = time.monotonic() + _PING_TIMEOUT
        while len(replies) < len(macs) and (left := until - time.monotonic()) > 0:
            readable, _, _ = select.select([sock], [], [], left)
            if not readable:
                break
            packet, sender = sock.recvfrom(_PACKET_MAX)
            at = (packet[0] & 0x0F) * 4
            if packet[12:16] != address.packed or packet[9] != socket.IPPROTO_ICMP:
                continue
            if len(packet) >= at + _ICMP.size and sender[2] != socket.PACKET_OUTGOING:
                of, _, _, its_identity, number = _ICMP.unpack_from(packet, at)
                if (of, its_identity) == (_ECHO_REPLY[4], identity):
                    replies[number] = sender[4]
    return len(replies) == len(macs) and len(set(replies.values())) == 1
