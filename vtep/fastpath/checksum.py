"""The Internet checksum (RFC 1071) over parts of an array of uint8."""

from typing import Any

import numpy as np

from vtep.fastpath.jit import JIT, compiled, i64
from vtep.fastpath.layout import Octets


@compiled
def fold(total: int) -> int:
    """Add the carries to a sum until it has 16 bits."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


if JIT:

    @compiled
    def _sum_words(words: Any) -> int:
        # A plain loop, which LLVM turns into vector instructions: 3.5 us for 64 KiB.
        total = 0
        for index in range(words.shape[0]):
            total += i64(words[index])
        return total

else:

    def _sum_words(words: Any) -> int:
        return int(words.sum(dtype=np.int64))


@compiled
def ones_sum(data: Octets, at: int, octets: int) -> int:
    """Return the one's complement sum of `octets` octets, folded to 16 bits in network order.

    The words are summed in host order, since the sum of swapped octets is the swapped sum (RFC
    1071, section 2 (B)). This assumes a little-endian host.
    """
    even = octets & ~3
    total = _sum_words(data[at : at + even].view(np.uint32))
    at += even
    if octets & 2:
        total += i64(data[at]) | i64(data[at + 1]) << 8
        at += 2
    if octets & 1:
        total += i64(data[at])
    total = fold(total)
    return (total & 0xFF) << 8 | total >> 8
