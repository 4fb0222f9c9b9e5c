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
_TCP = 6


def mac(number: int) -> bytes:
    """Return a MAC address that is unique for a number."""
    return b"\x02\x01" + number.to_bytes(4, "big")


def tcp_frame(payload: int, *, partial: bool = False) -> bytes:
    """Build a TCP segment from the peer to this host, with a complete or a partial checksum."""
    length = 20 + payload
    addresses = bytes([10, 0, 0, 2, 10, 0, 0, 1])
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 7, 0x4000, 64, _TCP, 0) + addresses
    ip = ip[:10] + checksum.internet_checksum(ip).to_bytes(2, "big") + ip[12:]
    pseudo = checksum.ones_sum(addresses + struct.pack("!HH", _TCP, length))
    data = bytes(at * 7 & 0xFF for at in range(payload))
    tcp = struct.pack("!HHIIBBHHH", 40000, 5201, 1, 1, 0x50, 0x10, 65535, 0, 0) + data
    if partial:
        total = pseudo
    else:
        padded = tcp + b"\0" * (len(tcp) & 1)
        total = checksum.fold(checksum.ones_sum(padded) + pseudo) ^ 0xFFFF
    tcp = tcp[:16] + total.to_bytes(2, "big") + tcp[18:]
    frame = OWN_MAC + PEER_MAC + b"\x08\x00" + ip + tcp
    assert len(frame) == _HEADERS + payload
    return frame


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
