"""One TAP for several VLANs, each of which is a `TapDevice` of its own.

The frames of the TAP have 802.1Q tags. A `VlanTap` has those of one VLAN, without this tag, so that
the data path of a VNI reads and writes it as any TAP.

The tag costs no copy: readv(2) puts it into a buffer of its own, and writev(2) takes it from one.
But which VLAN the next frame belongs to is known only after the read. So the VLAN of the last frame
reads, right to where its VNI sends from. A frame of another VLAN is copied to a queue, and that
VLAN has the next turn.
"""

import asyncio
import errno
from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Final

from vtep.counters import Counters, Drop
from vtep.errors import VtepError
from vtep.wire import Buffer, ethernet, virtio

if TYPE_CHECKING:
    from vtep.io.interfaces import ReadFrame, TapDevice, WriteFrame

_MACS = 2 * ethernet.MAC_LEN
"""Octets in front of the tag."""

_PLAIN: Buffer = virtio.PLAIN

_TAGGED_MIN = virtio.HEADER_LEN + ethernet.HEADER_LEN + ethernet.TAG_LEN
"""Octets of the shortest read with a tagged frame."""

_PRIORITIES = range(16)
"""Values of PCP and DEI: frames with any of them belong to the VLAN. VXLAN carries none of them."""

_QUEUED_MAX = 4 << 20
"""Octets of memory that the queues of all VLANs of a TAP take at most."""

_OVERHEAD = 200
"""Octets of memory that a queued frame takes besides itself."""

_OTHERS_MAX = 192
"""Frames of other VLANs that are read in one turn of a VLAN: as many as it reads of its own, and as
each of those reads in its next turn. So queues grow only while datagrams wait for room."""

_OCTETS_PER_READ = 2048
"""Octets of a superframe that count as one frame."""


class VlanTap:
    """The frames of one VLAN of a TAP, untagged; see `interfaces.TapDevice`.

    `VlanTrunk.open` makes it, and the last one that is closed closes the TAP.
    """

    def __init__(self, trunk: "VlanTrunk", vlan: int) -> None:
        self.trunk: Final = trunk
        self.vlan: Final = vlan
        self.read: ReadFrame = self._read
        self.write: WriteFrame = self._write
        self.turn: Callable[[], None] | None = None
        """Reads and sends frames; None while the VNI reads none."""
        self.counters = Counters()
        """Counts what the queue has no space for; those of the VNI once that forwards."""
        self.queue: deque[tuple[bytes, bytes]] = deque()
        """Frames that were read by another VLAN: virtio headers and frames."""
        self.queued = 0
        """Octets of memory that the queue takes."""
        self._tag = ethernet.pack_tag(vlan)
        self._tags = frozenset(ethernet.pack_tag(vlan, priority=each) for each in _PRIORITIES)
        # The last virtio headers that were not plain, and what became of them: mostly, all frames
        # with a partial checksum have the same one.
        self._read_header = self._untagged_header = virtio.PLAIN
        self._written_header = self._tagged_header = virtio.PLAIN

    @property
    def tags(self) -> frozenset[bytes]:
        """The 802.1Q tags of the VLAN, one for each priority."""
        return self._tags

    # --- frames -----------------------------------------------------------------------------

    def _read(self, buffers: Sequence[bytearray | memoryview]) -> int:
        """Read the next frame of the VLAN, as os.readv. Raises: OSError."""
        meta, body = buffers[0], memoryview(buffers[1])
        if self.queue:
            return self._take(meta, body)
        trunk, tags = self.trunk, self._tags
        tag, readv = trunk.tag, trunk.tap.read
        while trunk.reads_left > 0:
            octets = readv((meta, body[:_MACS], tag, body[_MACS:]))
            if bytes(tag) in tags and octets >= _TAGGED_MIN:
                if meta != _PLAIN:
                    meta[:] = self.untagged_header(meta)
                return octets - ethernet.TAG_LEN
            trunk.reads_left -= 1 + octets // _OCTETS_PER_READ
            trunk.sort(meta, body, octets)
        raise BlockingIOError(errno.EAGAIN, "another VLAN has its turn")

    def _take(self, meta: bytearray | memoryview, body: memoryview) -> int:
        """Read the first frame of the queue."""
        header, frame = self.queue.popleft()
        octets = len(frame)
        meta[:], body[:octets] = header, frame
        self.queued -= octets + _OVERHEAD
        self.trunk.queued -= octets + _OVERHEAD
        return virtio.HEADER_LEN + octets

    def put(self, meta: Buffer, frame: Buffer) -> None:
        """Queue an untagged frame with the virtio header that it was read with, or drop it."""
        octets = len(frame) + _OVERHEAD
        # A queue may hold as much as is left for all (dynamic threshold). So one VLAN whose remotes
        # are slow takes half of the memory, and several of them leave something to the others.
        if self.queued + octets > _QUEUED_MAX - self.trunk.queued:
            self.counters.drop(Drop.TAP_QUEUE_FULL)
            return
        header = virtio.PLAIN if meta == virtio.PLAIN else self.untagged_header(meta)
        self.queue.append((header, bytes(frame)))
        self.queued += octets
        self.trunk.queued += octets

    def untagged_header(self, meta: Buffer) -> bytes:
        """Return the virtio header of a frame without the tag that it was read with."""
        if meta != self._read_header:
            self._read_header = bytes(meta)
            self._untagged_header = virtio.shift(self._read_header, -ethernet.TAG_LEN)
        return self._untagged_header

    def _write(self, buffers: Sequence[Buffer]) -> int:
        """Write an untagged frame to the VLAN, as os.writev. Raises: OSError."""
        header, frame = buffers
        if header != virtio.PLAIN:
            if header != self._written_header:
                self._written_header = bytes(header)
                self._tagged_header = virtio.shift(self._written_header, ethernet.TAG_LEN)
            header = self._tagged_header
        octets = self.trunk.tap.write((header, frame[:_MACS], self._tag, frame[_MACS:]))
        return octets - ethernet.TAG_LEN

    # --- turns ------------------------------------------------------------------------------

    def start_reading(self, turn: Callable[[], None]) -> None:
        """Call `turn` whenever frames can be read, in the running event loop."""
        self.trunk.start_reading(self, turn)

    def stop_reading(self) -> None:
        """Call no `turn` any more. Frames queue as long as other VLANs of the TAP are read."""
        self.trunk.stop_reading(self)

    def end_reading(self) -> None:
        """Call no `turn` any more, and discard what is queued."""
        self.trunk.end_reading(self)

    # --- the device: see `TapDevice` --------------------------------------------------------

    @property
    def fd(self) -> int:
        """The descriptor of the TAP, which all its VLANs share."""
        return self.trunk.tap.fd

    @property
    def index(self) -> int:
        """The index of the TAP."""
        return self.trunk.tap.index

    @property
    def name(self) -> str:
        """The present name of the TAP. Raises: OSError if it is gone."""
        return self.trunk.tap.name

    @property
    def mac(self) -> bytes:
        """The present MAC address of the TAP. Raises: OSError if it is gone."""
        return self.trunk.tap.mac

    @property
    def tso(self) -> bool:
        """True if the TAP passes superframes of TCP."""
        return self.trunk.tap.tso

    @property
    def uso(self) -> bool:
        """True if the TAP passes superframes of UDP."""
        return self.trunk.tap.uso

    @property
    def removed_on_close(self) -> bool:
        """True if this is the last VLAN, and the kernel removes the TAP when that is closed."""
        return len(self.trunk.vlans) == 1 and self.trunk.tap.removed_on_close

    def request_offloads(self, *, tso: bool, uso: bool) -> None:
        """Request superframes for all VLANs of the TAP."""
        self.trunk.tap.request_offloads(tso=tso, uso=uso)

    def set_persistent(self, *, on: bool) -> None:
        """Make the TAP outlive this process, or not."""
        self.trunk.tap.set_persistent(on=on)

    def close(self) -> None:
        """Close the VLAN, and the TAP with the last one."""
        self.trunk.close(self)


class VlanTrunk:
    """A TAP, which it owns, and its open VLANs."""

    def __init__(self, tap: "TapDevice", *, is_inherited: bool = False) -> None:
        self.tap: Final = tap
        self.is_inherited: Final = is_inherited
        """True if the TAP was open before: its setup may be one that is in use."""
        self.vlans: dict[int, VlanTap] = {}
        """The open VLANs by their ID."""
        self.counters = Counters()
        """Counts the frames that belong to no VLAN of a VNI."""
        self.drops_before: int | None = None
        """The transmit drops of the device when it was opened; None if they were not read yet."""
        self.tag: Final = bytearray(ethernet.TAG_LEN)
        """The octets of the last frame behind its MAC addresses."""
        self.queued = 0
        """Octets of memory that the queues of all VLANs take."""
        self.reads_left = 0
        """Frames of other VLANs that may be read in this turn; 0 outside of `readable`."""
        self._by_tag: dict[bytes, VlanTap] = {}
        self._last: VlanTap | None = None
        # VLANs with something in their queues, in the order in which they are to have a turn.
        self._due: dict[VlanTap, None] = {}
        self._readers = 0
        self._is_watched = False
        self._is_paused = False
        # VLANs are closed in threads: to remove a device takes 20 ms.
        self._lock = Lock()

    def open(self, vlan: int) -> VlanTap:
        """Open a VLAN. Raises: VtepError if it is open."""
        with self._lock:
            if vlan in self.vlans:
                raise VtepError(f"--vlan {vlan}: is in use on {self.tap.name}; choose another one")
            tap = self.vlans[vlan] = VlanTap(self, vlan)
        return tap

    def close(self, tap: VlanTap) -> None:
        """Close a VLAN, and the TAP with the last one."""
        with self._lock:
            if self.vlans.pop(tap.vlan, None) is not None and not self.vlans:
                self.tap.close()

    # --- turns ------------------------------------------------------------------------------

    def readable(self) -> None:
        """Read the TAP. The VLAN of the last frame does: the next one is most likely its own."""
        reader = self._last
        if reader is None or reader.turn is None:
            reader = next((each for each in tuple(self.vlans.values()) if each.turn), None)
        if reader is not None and reader.turn is not None and not self._is_paused:
            self.reads_left = _OTHERS_MAX
            reader.turn()
            self.reads_left = 0

    def sort(self, meta: Buffer, body: memoryview, octets: int) -> None:
        """Give a frame to its VLAN, which is another one than the VLAN that has read it.

        `octets` were read to `meta`, to `body`, and in between to `tag`.
        """
        if octets < _TAGGED_MIN:
            is_runt = octets < virtio.HEADER_LEN + ethernet.HEADER_LEN
            self.counters.drop(Drop.TX_RUNT if is_runt else Drop.TX_UNTAGGED)
            return
        vlan = self._by_tag.get(bytes(self.tag))
        if vlan is None:
            self._drop()
            return
        vlan.put(meta, body[: octets - virtio.HEADER_LEN - ethernet.TAG_LEN])
        self._last = vlan
        if vlan.turn is not None:
            self._schedule(vlan)

    def _drop(self) -> None:
        """Count a frame of no VLAN that is open."""
        tpid, tci = (self.tag[0] << 8 | self.tag[1]), (self.tag[2] << 8 | self.tag[3])
        vlan = tci & ethernet.VLAN_MASK
        # VLAN 0 is no VLAN, but only a priority (IEEE 802.1Q, section 9.6).
        if tpid != ethernet.TYPE_8021Q or vlan == 0:
            self.counters.drop(Drop.TX_UNTAGGED, detail=tpid)
        else:
            self.counters.drop(Drop.TX_VLAN_UNKNOWN, detail=vlan)

    def _schedule(self, vlan: VlanTap) -> None:
        if not self._due:
            asyncio.get_running_loop().call_soon(self._serve)
        self._due[vlan] = None

    def _serve(self) -> None:
        """Give all VLANs a turn that have something in their queues.

        They do not read the TAP, or some of them could fill the queue of another one.
        """
        due, self._due = self._due, {}
        for vlan in due:
            if vlan.turn is not None:
                vlan.turn()
            if vlan.queue and vlan.turn is not None:  # It has used its budget up.
                self._schedule(vlan)

    def start_reading(self, vlan: VlanTap, turn: Callable[[], None]) -> None:
        """Call `turn` whenever frames of a VLAN can be read, in the running event loop."""
        for tag in vlan.tags:
            self._by_tag[tag] = vlan
        self._readers += vlan.turn is None
        vlan.turn = turn
        if vlan.queue:
            self._schedule(vlan)
        self._watch()

    def stop_reading(self, vlan: VlanTap) -> None:
        """Call no turn of a VLAN any more, until it starts again."""
        self._readers -= vlan.turn is not None
        vlan.turn = None
        self._watch()

    def end_reading(self, vlan: VlanTap) -> None:
        """Call no turn of a VLAN any more, and discard its queue: its VNI has ended."""
        self.stop_reading(vlan)
        for tag in vlan.tags:
            if self._by_tag.get(tag) is vlan:
                del self._by_tag[tag]
        self.queued -= vlan.queued
        vlan.queued = 0
        vlan.queue.clear()
        if self._last is vlan:
            self._last = None

    def pause(self) -> None:
        """Leave all frames in the TAP until `resume`; the VLANs still get what is queued."""
        self._is_paused = True
        self.reads_left = 0
        self._watch()

    def resume(self) -> None:
        """Read the TAP again, in the running event loop."""
        self._is_paused = False
        self._watch()

    def _watch(self) -> None:
        """Watch the TAP while a VLAN is read.

        While datagrams of all of them wait for room, frames queue in front of the TAP, where their
        senders notice it.
        """
        wanted = self._readers > 0 and not self._is_paused
        if wanted == self._is_watched:
            return
        self._is_watched = wanted
        loop = asyncio.get_running_loop()
        if wanted:
            loop.add_reader(self.tap.fd, self.readable)
        else:
            loop.remove_reader(self.tap.fd)


if TYPE_CHECKING:

    def _is_tap_device(tap: VlanTap) -> TapDevice:
        return tap
