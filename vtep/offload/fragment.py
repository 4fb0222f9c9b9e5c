"""Fragmentation of inner IPv4 packets (RFC 791, section 3.2)."""

from vtep.wire import checksum
from vtep.wire.ip import FRAGMENT_OFFSET_MASK

_MORE_FRAGMENTS = 0x2000
_OFFSET_UNIT = 8
"""Octets that fragment offsets count in."""

_PACKET_MAX = 0xFFFF
_OPTION_END = 0
_OPTION_NOP = 1
_OPTIONS_OFFSET = 20
_COPIED = 0x80
"""Flag in the type of an option that is repeated in all fragments."""


def fragment(
    frame: memoryview, ip_offset: int, length_max: int, prefix: bytes
) -> tuple[bytes, int] | None:
    """Cut the IPv4 packet at `ip_offset` into fragments whose frames fit `length_max` octets.

    The packet is complete and valid. It may be a fragment itself.

    An option that only the first fragment carries is replaced by no-operations in the others, as
    in the kernel's ip_options_fragment. So all headers have the same length.

    Returns: the frames, each behind `prefix`, and the octets from one to the next; the last one may
    be shorter. None if `length_max` has no space for data, or if the packet ends beyond the largest
    offset that a fragment can state.
    """
    header = bytearray(frame[ip_offset : ip_offset + (frame[ip_offset] & 0x0F) * 4])
    total = int.from_bytes(frame[ip_offset + 2 : ip_offset + 4], "big")
    payload = frame[ip_offset + len(header) : ip_offset + total]
    step = (length_max - ip_offset - len(header)) // _OFFSET_UNIT * _OFFSET_UNIT
    word = int.from_bytes(header[6:8], "big")
    begin = (word & FRAGMENT_OFFSET_MASK) * _OFFSET_UNIT
    if step <= 0 or len(header) + begin + len(payload) > _PACKET_MAX:
        return None
    link_header = prefix + bytes(frame[:ip_offset])
    fragments = bytearray()
    for at in range(0, len(payload), step):
        piece = payload[at : at + step]
        more = _MORE_FRAGMENTS if at + step < len(payload) else 0
        header[2:4] = (len(header) + len(piece)).to_bytes(2, "big")
        # If the packet is a fragment, its own offset and flag apply: it may be the last one.
        header[6:8] = ((word | more) + at // _OFFSET_UNIT).to_bytes(2, "big")
        header[10:12] = bytes(2)
        header[10:12] = checksum.internet_checksum(header).to_bytes(2, "big")
        fragments += link_header
        fragments += header
        fragments += piece
        if at == 0:
            _blank_uncopied_options(header)
    return bytes(fragments), len(link_header) + len(header) + step


def _blank_uncopied_options(header: bytearray) -> None:
    """Replace the options that only the first fragment carries by no-operations."""
    offset = _OPTIONS_OFFSET
    while offset < len(header) and header[offset] != _OPTION_END:
        length = 1
        if header[offset] != _OPTION_NOP:
            length = header[offset + 1] if offset + 1 < len(header) else 0
            if length < 2 or offset + length > len(header):
                return
            if not header[offset] & _COPIED:
                header[offset : offset + length] = bytes([_OPTION_NOP]) * length
        offset += length
