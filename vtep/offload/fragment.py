"""Fragmentation of IPv4 packets inside frames (RFC 791, section 3.2)."""

from vtep.wire import checksum
from vtep.wire.ip import FRAGMENT_OFFSET_MASK

_MORE_FRAGMENTS = 0x2000
_OFFSET_UNIT = 8
_PACKET_MAX = 0xFFFF
_OPTION_END = 0
_OPTION_NOP = 1
_OPTIONS_AT = 20
_COPIED = 0x80
"""Bit of an option's type: it is in all fragments, not only in the first."""


def fragment(
    frame: memoryview, ip_offset: int, length_max: int, prefix: bytes
) -> tuple[bytes, int] | None:
    """Cut the IPv4 packet at `ip_offset` so that no fragment's frame exceeds `length_max` octets.

    The packet is whole and sound, and may be a fragment itself. Gives the frames one after the
    other, each behind `prefix`, and how many octets there are from one to the next: where an option
    is not to be repeated there are no-operations in its place, as in the kernel's
    ip_options_fragment, so all are of one length, but perhaps the last.

    None where `length_max` leaves no room, or the packet ends beyond what an offset can state.
    """
    header = bytearray(frame[ip_offset : ip_offset + (frame[ip_offset] & 0x0F) * 4])
    total = int.from_bytes(frame[ip_offset + 2 : ip_offset + 4], "big")
    payload = frame[ip_offset + len(header) : ip_offset + total]
    step = (length_max - ip_offset - len(header)) // _OFFSET_UNIT * _OFFSET_UNIT
    word = int.from_bytes(header[6:8], "big")
    begin = (word & FRAGMENT_OFFSET_MASK) * _OFFSET_UNIT
    if step <= 0 or len(header) + begin + len(payload) > _PACKET_MAX:
        return None
    opening = prefix + bytes(frame[:ip_offset])
    fragments = bytearray()
    for at in range(0, len(payload), step):
        piece = payload[at : at + step]
        more = _MORE_FRAGMENTS if at + step < len(payload) else 0
        header[2:4] = (len(header) + len(piece)).to_bytes(2, "big")
        # The offset counts on from that of the packet, whose last fragment ends what it ended.
        header[6:8] = ((word | more) + at // _OFFSET_UNIT).to_bytes(2, "big")
        header[10:12] = bytes(2)
        header[10:12] = checksum.internet_checksum(header).to_bytes(2, "big")
        fragments += opening
        fragments += header
        fragments += piece
        if at == 0:
            _leave_out_uncopied(header)
    return bytes(fragments), len(opening) + len(header) + step


def _leave_out_uncopied(header: bytearray) -> None:
    """Replace the options that belong to the first fragment only by no-operations."""
    at = _OPTIONS_AT
    while at < len(header) and header[at] != _OPTION_END:
        length = 1
        if header[at] != _OPTION_NOP:
            length = header[at + 1] if at + 1 < len(header) else 0
            if length < 2 or at + length > len(header):
                return
            if not header[at] & _COPIED:
                header[at : at + length] = bytes([_OPTION_NOP]) * length
        at += length
