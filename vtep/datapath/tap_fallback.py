"""What becomes of frames that the kernel does not take at a TAP device as they are.

Some kernels refuse superframes that others take: Linux 6.6.44 and its contemporaries checked their
virtio headers too strictly, and those before 6.2 know no superframes of UDP. What such a header
leaves to the kernel can be done here, and then nothing is lost.
"""

import errno
import os

from vtep.counters import Counters, Drop
from vtep.offload.split import AuthenticatedError, SplitError, Splitter, finish_checksum
from vtep.wire import virtio

_NOT_THE_HEADER = frozenset((errno.EIO, errno.EBADF, errno.EBADFD, errno.EAGAIN))
"""Errors that a plain frame meets as well: the device is down or gone, or its queue is full."""

_REFUSALS = 8
"""Refused superframes after which it is decided whether merging still pays."""

_SHARE = 0.25
"""Share of refused superframes from which merging no longer pays, since it is undone each time."""

_PAUSE_S = 60.0
_PAUSE_MAX_S = 3600.0


class MergeGuard:
    """Decides whether superframes of one kind are merged for one TAP, of which some are refused.

    Merging is suspended for a while, since it may be particular traffic that is refused; and for
    twice as long each time.
    """

    def __init__(self) -> None:
        self.until = 0.0
        """When merging may be tried again."""
        self.suspensions = 0
        self._pause = _PAUSE_S
        self._refused = 0
        self._merged = 0

    def refuse(self, merged: int, now: float) -> bool:
        """Count a refused superframe; `merged` is how many have been merged for the TAP by now.

        Returns: whether merging is suspended from now on.
        """
        self._refused += 1
        if self._refused < _REFUSALS:
            return False
        share = self._refused / max(1, merged - self._merged)
        self._refused, self._merged = 0, merged
        if share < _SHARE:
            return False
        self.until = now + self._pause
        self._pause = min(2 * self._pause, _PAUSE_MAX_S)
        self.suspensions += 1
        return True


def count_refused(counters: Counters, error: OSError, count: int = 1) -> None:
    """Count frames that a TAP device did not take."""
    counters.drop(Drop.TAP_DOWN if error.errno == errno.EIO else Drop.TAP_REFUSED, count=count)


def write_without_offload(
    fd: int,
    frame: memoryview,
    header: bytes,
    error: OSError,
    splitter: Splitter,
    counters: Counters,
) -> bool:
    """Write a frame or superframe that a TAP device has refused as frames that need nothing done.

    A superframe is split, and an unfinished checksum is finished in place. What can't be written
    either is counted as dropped.

    Args:
        fd: the TAP device.
        frame: a writable view of the frame.
        header: the virtio header with which it was refused.
        error: the refusal.
        splitter: one without a prefix, of which the output is overwritten.
        counters: those of the segment.

    Returns: whether the refusal was about the virtio header.
    """
    gso = virtio.unpack(header)
    count = frames_of(len(frame), header)[0]
    if header == virtio.PLAIN or error.errno in _NOT_THE_HEADER:
        count_refused(counters, error, count)
        return False
    try:
        if gso.gso_type != virtio.GSO_NONE:
            octets, step = splitter.split(frame, gso)
            frame = splitter.out.data[:octets]
        else:
            step = len(frame)
            finish_checksum(frame, gso.csum_start, gso.csum_offset)
    except (SplitError, AuthenticatedError):
        count_refused(counters, error, count)
        return True
    counters.tap_header_refused += 1
    for at in range(0, len(frame), step):
        piece = frame[at : at + step]
        try:
            os.writev(fd, (virtio.PLAIN, piece))
        except OSError as failure:
            count_refused(counters, failure)
        else:
            counters.rx_frames += 1
            counters.rx_bytes += len(piece)
    return True


def frames_of(octets: int, header: bytes) -> tuple[int, int]:
    """For how many frames a frame or superframe of so many octets stands, and their octets."""
    gso = virtio.unpack(header)
    if gso.gso_type == virtio.GSO_NONE:
        return 1, octets
    count = -(-(octets - gso.hdr_len) // gso.gso_size)
    return count, octets + (count - 1) * gso.hdr_len
