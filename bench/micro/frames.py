"""Frames and tables for the benchmarks."""

import struct

from vtep.forwarding.fdb import Fdb, Remote
from vtep.forwarding.segment import Segment
from vtep.wire import checksum, vxlan

OWN_MAC = bytes.fromhex("020000000001")
PEER_MAC = bytes.fromhex("020000000002")
REMOTE = Remote("192.0.2.2", vxlan.PORT)
VNI = 42

_HEADERS = 14 + 20 + 20
_TCP, _UDP = 6, 17
_ADDRESSES = bytes([10, 0, 0, 2, 10, 0, 0, 1])


def mac(number: int) -> bytes:
    """Return a MAC address that is unique for a number."""
    return b"\x02\x01" + number.to_bytes(4, "big")


def tcp_frame(payload: int, *, partial: bool = False) -> bytes:
    """Build a TCP segment from the peer to this host, with a complete or a partial checksum."""
    data = bytes(at * 7 & 0xFF for at in range(payload))
    tcp = struct.pack("!HHIIBBHHH", 40000, 5201, 1, 1, 0x50, 0x10, 65535, 0, 0) + data
    frame = _frame(_TCP, tcp, 16, partial=partial)
    assert len(frame) == _HEADERS + payload
    return frame


def udp_frame(payload: int, flow: int, number: int) -> bytes:
    """Build a UDP datagram to this host, with a complete checksum; `number` is its IPv4 ID."""
    udp = struct.pack("!HHHH", 40000 + flow, 5202, 8 + payload, 0) + bytes(payload)
    return _frame(_UDP, udp, 6, number)


def _frame(
    protocol: int, packet: bytes, checksum_at: int, ident: int = 7, *, partial: bool = False
) -> bytes:
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(packet), ident, 0x4000, 64, protocol, 0)
    ip += _ADDRESSES
    ip = ip[:10] + checksum.internet_checksum(ip).to_bytes(2, "big") + ip[12:]
    total = checksum.ones_sum(_ADDRESSES + struct.pack("!HH", protocol, len(packet)))
    if not partial:
        padded = packet + b"\0" * (len(packet) & 1)
        total = checksum.fold(checksum.ones_sum(padded) + total) ^ 0xFFFF
    packet = packet[:checksum_at] + total.to_bytes(2, "big") + packet[checksum_at + 2 :]
    return OWN_MAC + PEER_MAC + b"\x08\x00" + ip + packet


def table(entries: int) -> Fdb:
    """Return an FDB with learned entries."""
    fdb = Fdb(VNI, vxlan.PORT, ageing=300, max_addresses=0)
    for number in range(entries):
        fdb.learn(mac(number), REMOTE, 0.0)
    return fdb


def segment(remote: Remote = REMOTE) -> Segment:
    """Return a segment with one remote and an empty FDB."""
    fdb = Fdb(VNI, vxlan.PORT, ageing=300, max_addresses=65536)
    return Segment(VNI, [remote], fdb, own_mac=OWN_MAC, learning=True)
