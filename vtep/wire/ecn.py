"""Explicit congestion notification between a tunnel's inner and outer IP headers (RFC 6040).

A router on the underlay can mark only the outer header. So what the inner header says of its
sender's abilities goes outwards with a frame, and a mark that came back with the outer header goes
inwards; a mark on a frame whose sender knows nothing of marks is a loss, as it was meant to be.
"""

from vtep.wire import Buffer, checksum, ethernet

NOT_ECT, ECT_1, ECT_0, CE = range(4)
"""The values of the field (RFC 3168, section 5): CE is the mark; ECT says that it is understood."""

MASK = 0x03
"""Of an IPv4 TOS octet or an IPv6 traffic class."""

DROP = 0xFF
"""In `DECAPSULATED`: the frame is to be dropped."""

ENCAPSULATED = {
    "rfc6040": bytes((NOT_ECT, ECT_1, ECT_0, CE)),
    "kernel": bytes((NOT_ECT, ECT_1, ECT_0, ECT_0)),
}
"""The outer field by the inner one: the normal mode of RFC 6040, section 4.1, and the kernel
driver's (INET_ECN_encapsulate in its include/net/inet_ecn.h)."""

DECAPSULATED = bytes(
    (
        *(NOT_ECT, ECT_1, ECT_0, CE),  # The outer header is Not-ECT; by the inner field.
        *(NOT_ECT, ECT_1, ECT_1, CE),  # ECT(1)
        *(NOT_ECT, ECT_1, ECT_0, CE),  # ECT(0)
        *(DROP, CE, CE, CE),  # CE
    )
)
"""The new inner field, or `DROP`, by four times the outer field plus the inner one: figure 4 of
RFC 6040, section 4.2, to which the kernel driver keeps too."""


def decapsulate(frame: Buffer, outer: int) -> bool:
    """Bring into a frame what the ECN field `outer` of its datagram says of the way here.

    `frame` is writable and has at least 14 octets. False where it must be dropped: it was marked,
    and its sender is not one who would understand. What is not IP is left as it is. An outer field
    of zero changes nothing, so there is no need to ask.
    """
    ethertype, at = ethernet.network_layer(frame)
    if ethertype == ethernet.TYPE_IPV4 and at + 20 <= len(frame):
        inner = frame[at + 1] & MASK
        new = DECAPSULATED[outer << 2 | inner]
        if new == DROP:
            return False
        if new != inner:
            frame[at + 1] ^= inner ^ new  # type: ignore[index]  # writable, as said
            # RFC 1624, equation 3: a checksum that was wrong stays as wrong as it was.
            field = frame[at + 10] << 8 | frame[at + 11]
            field = checksum.fold((field ^ 0xFFFF) + (inner ^ 0xFFFF) + new) ^ 0xFFFF
            frame[at + 10 : at + 12] = field.to_bytes(2, "big")  # type: ignore[index]
    elif ethertype == ethernet.TYPE_IPV6 and at + 40 <= len(frame):
        inner = frame[at + 1] >> 4 & MASK
        new = DECAPSULATED[outer << 2 | inner]
        if new == DROP:
            return False
        frame[at + 1] ^= (inner ^ new) << 4  # type: ignore[index]
    return True
