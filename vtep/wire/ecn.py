"""Explicit congestion notification between the inner and outer IP header of a tunnel (RFC 6040).

A router on the underlay can mark the outer header only. The encapsulator therefore copies the ECN
field of the inner header to the outer one, and the decapsulator copies a mark back. A marked frame
whose sender does not support ECN is dropped, so that its sender still sees the congestion.
"""

from vtep.wire import Buffer, checksum, ethernet

NOT_ECT, ECT_1, ECT_0, CE = range(4)
"""Values of the ECN field (RFC 3168, section 5). CE is the congestion mark."""

MASK = 0x03
"""The ECN field in an IPv4 TOS octet or an IPv6 traffic class."""

DROP = 0xFF
"""Entry of `DECAPSULATED` for a frame that must be dropped."""

ENCAPSULATED = {
    "rfc6040": bytes((NOT_ECT, ECT_1, ECT_0, CE)),
    "kernel": bytes((NOT_ECT, ECT_1, ECT_0, ECT_0)),
}
"""The outer field, indexed by the inner field.

`rfc6040` is the normal mode of RFC 6040, section 4.1. `kernel` is INET_ECN_encapsulate of the
kernel's include/net/inet_ecn.h.
"""

DECAPSULATED = bytes(
    (
        *(NOT_ECT, ECT_1, ECT_0, CE),  # Outer Not-ECT; columns are the inner field.
        *(NOT_ECT, ECT_1, ECT_1, CE),  # Outer ECT(1)
        *(NOT_ECT, ECT_1, ECT_0, CE),  # Outer ECT(0)
        *(DROP, CE, CE, CE),  # Outer CE
    )
)
"""The new inner field or `DROP`, indexed by four times the outer field plus the inner field.

Source: figure 4 of RFC 6040, section 4.2. The kernel driver uses the same table.
"""


def decapsulate(frame: Buffer, outer: int) -> bool:
    """Update the ECN field of an inner frame from the outer ECN field `outer`.

    `frame` is writable and has at least 14 octets. A frame that is not IP stays as it is. An
    `outer` of 0 (Not-ECT) changes nothing, so callers may skip the call.

    Returns: False if the frame must be dropped: it is marked, and its sender does not support ECN.
    """
    ethertype, offset = ethernet.network_layer(frame)
    if ethertype == ethernet.TYPE_IPV4 and offset + 20 <= len(frame):
        inner = frame[offset + 1] & MASK
        new = DECAPSULATED[outer << 2 | inner]
        if new == DROP:
            return False
        if new != inner:
            frame[offset + 1] ^= inner ^ new  # type: ignore[index]  # writable by precondition
            # Update the checksum instead of recomputing it (RFC 1624, equation 3): a wrong
            # checksum stays wrong, so that the receiver still detects the damage.
            field = frame[offset + 10] << 8 | frame[offset + 11]
            field = checksum.fold((field ^ 0xFFFF) + (inner ^ 0xFFFF) + new) ^ 0xFFFF
            frame[offset + 10 : offset + 12] = field.to_bytes(2, "big")  # type: ignore[index]
    elif ethertype == ethernet.TYPE_IPV6 and offset + 40 <= len(frame):
        inner = frame[offset + 1] >> 4 & MASK
        new = DECAPSULATED[outer << 2 | inner]
        if new == DROP:
            return False
        frame[offset + 1] ^= (inner ^ new) << 4  # type: ignore[index]
    return True
