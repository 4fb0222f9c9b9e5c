"""Delivery of frames whose virtio header the kernel refuses at a TAP device.

Some kernels refuse superframes that others accept: Linux 6.6.44 and its contemporaries checked
virtio headers too strictly, and Linux before 6.2 knows no superframes of UDP. Segmentation and
checksums are then completed here, so that no frame is lost.
"""

import errno

from vtep.counters import Counters, Drop
from vtep.io.interfaces import WriteFrame
from vtep.offload.split import AuthenticatedError, SplitError, Splitter, finish_checksum
from vtep.wire import virtio

_HEADER_UNRELATED = frozenset((errno.EIO, errno.EBADF, errno.EBADFD, errno.EAGAIN))
"""Errors that a plain frame gets as well: the device is down or gone, or its queue is full."""

_REFUSALS = 8
"""Refused superframes after which their share is checked."""

_SHARE = 0.25
"""Share of refused superframes from which merging is suspended: each one is split again."""

_PAUSE_S = 60.0
_PAUSE_MAX_S = 3600.0


class MergeGuard:
    """Suspends the merging of superframes of one protocol for a TAP that refuses many of them.

    Merging is tried again after a pause, since the kernel may refuse particular traffic only. Each
    pause is twice as long as the one before.
    """

    def __init__(self) -> None:
        self.until = 0.0
        """When merging is tried again, in seconds of the monotonic clock."""
        self.suspensions = 0
        """The number of suspensions so far."""
        self._pause = _PAUSE_S
        self._refused = 0
        self._merged = 0

    def refuse(self, merged: int, now: float) -> bool:
        """Count a refused superframe.

        `merged` is the number of superframes merged for the TAP so far, and `now` is in seconds of
        the monotonic clock.

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
    """Count frames that a TAP device refused as dropped."""
    counters.drop(Drop.TAP_DOWN if error.errno == errno.EIO else Drop.TAP_REFUSED, count=count)


def write_without_offload(
    write: WriteFrame,
    frame: memoryview,
    header: bytes,
    error: OSError,
    splitter: Splitter,
    counters: Counters,
) -> bool:
    """Write a frame that a TAP device has refused as plain frames with complete checksums.

    A superframe is split. A partial checksum is completed in place. Frames that the device refuses
    again are counted as dropped.

    Args:
        write: that of the TAP device.
        frame: a writable view of the frame.
        header: the virtio header with which it was refused.
        error: the refusal.
        splitter: a splitter without a prefix, whose output is overwritten.
        counters: the counters of the segment.

    Returns: whether the refusal was about the virtio header.
    """
    gso = virtio.unpack(header)
    count = count_frames(len(frame), header)[0]
    if header == virtio.PLAIN or error.errno in _HEADER_UNRELATED:
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
            write((virtio.PLAIN, piece))
        except OSError as failure:
            count_refused(counters, failure)
        else:
            counters.rx_frames += 1
            counters.rx_bytes += len(piece)
    return True


def count_frames(octets: int, header: bytes) -> tuple[int, int]:
    """Return how many frames a frame or superframe of `octets` stands for, and their octets."""
    gso = virtio.unpack(header)
    if gso.gso_type == virtio.GSO_NONE:
        return 1, octets
    count = -(-(octets - gso.hdr_len) // gso.gso_size)
    return count, octets + (count - 1) * gso.hdr_len
