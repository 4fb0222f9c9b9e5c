"""Verdicts of the slow path that compiled turns repeat (see `vtep.fastpath`).

Every rule about frames is in the slow path. Here is decided only whether its verdict about a frame
holds for all frames with the same key, until something is reported as changed:

- The route of a frame depends on its destination MAC; outer header fields on its IP header; the
  socket on its flow hash.
- The admission of a datagram depends on its source, its VXLAN header and the source MAC.

Some frames must be seen one by one, whatever their MACs are. Their kinds never get a row: a SYN,
whose MSS is clamped and remembered, and ICMPv6 other than echo, which neighbour discovery is.
Fragments, IP options, extension headers and all that is not IP have no key at all.
"""

import os
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from vtep.counters import Drop
from vtep.datapath.grants import ReceiveGrants, TransmitGrants
from vtep.datapath.target_link import TargetLink
from vtep.datapath.transmitter import Transmitter
from vtep.fastpath.layout import (
    KEY_KIND,
    KEY_MAC,
    KEY_PORT,
    KEY_TAGGED,
    KIND_DF,
    KIND_FLOW_LABEL,
    KIND_OUTER_ECN,
    KIND_TOS,
    KIND_TTL,
    KIND_TYPE,
    PORT_GSO,
    RESULT_DONE,
    RESULT_LIMITED,
    RESULT_TAKEN,
    RX_ADMITTED,
    TARGET_TSO,
    TARGET_USO,
    TX_FRAMES,
    Integers,
)
from vtep.fastpath.origins import MeterOrigin, TransmitOrigin
from vtep.forwarding.demux import Demux
from vtep.forwarding.policy import InnerVlan
from vtep.forwarding.segment import INNER_MIN, Segment
from vtep.io import error_queue
from vtep.io.addresses import unpack_sockaddr
from vtep.io.interfaces import Received, Receiver, TapDevice
from vtep.io.outer_options import control_messages
from vtep.io.path import FLOW_BITS, POOL_MAX, Path
from vtep.io.tap import Tap
from vtep.tunnel_gso.state import NEVER
from vtep.wire import Buffer, ecn, ethernet, ip, virtio, vxlan
from vtep.wire.flow import flow_hash

if TYPE_CHECKING:
    from vtep.datapath.ingress import TapTarget
    from vtep.fastpath.table import FastPath

_FRAMES_MAX: Final = 256
"""Frames that a compiled turn reads. Of 64 flows in turn, four frames of each then share a send."""

_MESSAGES_MAX: Final = 64
"""Messages that a compiled turn receives."""

_SOURCES_MAX: Final = 4096
"""Addresses of senders whose text is kept."""

_PAUSE: Final = 16
"""One more than the turns of the slow path after a compiled turn that returned superframes only: to
copy them from one to the other costs more than it gains."""

_RETURNED_MAX: Final = 32768
"""Octets that may be returned without a pause: to copy as many takes 3 us."""

_CMSGHDR = struct.Struct("=QII")
"""struct cmsghdr of a 64-bit kernel: the length of header and data, the level, the type."""

_ICMPV6 = 58
_ICMPV6_ECHO = (128, 129)
"""Echo request and echo reply (RFC 4443, section 4)."""


def is_repeatable(kind: int) -> bool:
    """Return True if frames with a `KEY_KIND` may have a row."""
    protocol, detail = kind & 0xFF, kind >> KIND_TYPE & 0xFF
    if protocol == ip.TCP:
        return not detail
    return protocol != _ICMPV6 or detail in _ICMPV6_ECHO


class _Pauses:
    """Decides when compiled turns pause, because they return most of what they take."""

    def __init__(self) -> None:
        self._left = 0

    def take(self) -> bool:
        """Return True if this turn is to be one of the slow path alone."""
        self._left -= self._left > 0
        return self._left > 0

    def note(self, octets: int, taken: int, done: int) -> None:
        """Note how many octets a compiled turn returned, of how many frames taken and handled."""
        if octets > _RETURNED_MAX and 2 * done < taken:
            self._left = _PAUSE


class EgressVerdicts:
    """The compiled turns of one VNI, from its TAP to its remotes.

    `run` is a turn. The frames that it leaves to the slow path are read by `read`, in place of that
    of the TAP. Then `learn` adds rows for them.
    """

    def __init__(
        self, fast: "FastPath", tap: TapDevice, segment: Segment, transmitter: Transmitter
    ) -> None:
        self._fast = fast
        self._table = fast.transmit
        self._turn = fast.transmit.turn
        self._tap = tap
        self._segment = segment
        self._transmitter = transmitter
        self._data = self._turn.data.data
        self._unsent_data = self._turn.unsent_data.data
        self._returned: list[list[int]] = []
        self._next = 0
        self._error = 0
        self._pauses = _Pauses()
        self._kind_mask = 0
        self._grants = TransmitGrants(fast, segment)
        self.use_paths()
        segment.verdict_watchers.append(self._on_verdict_changed)

    def use_paths(self) -> None:
        """Take note that the transmitter sends on other paths from now on."""
        policy = self._transmitter.paths.policy
        self._kind_mask = (
            (policy.inherit_ttl * 0xFF) << KIND_TTL
            | (policy.inherit_flowlabel * 0xFFFFF) << KIND_FLOW_LABEL
            | policy.inherit_df << KIND_DF
        )
        self._on_verdict_changed(None)

    def close(self) -> None:
        """Remove all rows of the segment."""
        self._segment.verdict_watchers.remove(self._on_verdict_changed)
        self._on_verdict_changed(None)

    def _on_verdict_changed(self, mac: bytes | None) -> None:
        self._table.remove_verdicts(self._segment, mac)
        if mac is None:
            self._grants.reset()

    # --- a turn -------------------------------------------------------------------------------

    def run(self, frame_max: int, now: float) -> bool:
        """Read frames, and send those for which there are rows.

        `frame_max` is the octets of the largest frame that needs no further examination.

        Returns: True if the slow path has to go on, with `read` if `has_returned`.
        """
        # An exception in the slow path may have left frames, whose memory has others by now.
        self._returned, self._error = [], 0
        if self._pauses.take() or self._segment.policy.inner_vlan is not InnerVlan.PASS:
            return True
        turn, segment, grants = self._turn, self._segment, self._grants
        grants.renew(now)
        try:
            options = self._kind_mask, frame_max, _FRAMES_MAX, grants.meter
            turn.run(self._tap.fd, segment.vni, *options)
        except Exception as error:  # noqa: BLE001  a mistake in the turn must not stop forwarding
            self._fast.fail(error)
            segment.counters.drop(Drop.FAST_PATH_FAILED, count=_lost(turn.result))
            return True
        result = turn.result[: RESULT_LIMITED + 1].tolist()
        touched, taken, returned, unsent, self._error, done, limited = result
        if limited:
            grants.account(now)
        if touched:
            self._account(touched)
        if unsent:
            self._send_again(unsent, now)
        if not returned and not self._error:
            return False
        self._returned = turn.returned[:returned].tolist()
        self._next = 0
        self._pauses.note(sum(octets for _, octets in self._returned), taken, done)
        return True

    @property
    def has_returned(self) -> bool:
        """True if the last turn has left frames, or an error, that `read` returns."""
        return self._next < len(self._returned) or self._error != 0

    def _account(self, touched: int) -> None:
        """Count what a turn has sent, as the slow path does."""
        values, origins, segment = self._turn.values, self._table.origins, self._segment
        counters = segment.counters
        for row in self._turn.touched[:touched].tolist():
            counts = values[row, TX_FRAMES:]
            frames, octets, superframes, datagrams, calls = counts.tolist()
            counts[:] = 0
            origin = origins[row]
            if isinstance(origin, TransmitOrigin):
                segment.account(origin.entry, frames, octets)
            counters.tx_superframes += superframes
            counters.tx_datagrams += datagrams
            counters.tx_syscalls += calls

    def _send_again(self, unsent: int, now: float) -> None:
        """Send batches that the kernel did not take, as the slow path does: it knows what to do."""
        origins, batches = self._table.origins, self._turn.unsent[:unsent].tolist()
        # Looked up before the first send, which may change what rows depend on and so remove them.
        found = [
            (each, batch)
            for batch in batches
            if isinstance(each := origins[batch[0]], TransmitOrigin)
        ]
        for origin, (_, hashed, stride, begin, octets, error) in found:
            remotes = origin.entry.destinations
            flow = hashed & POOL_MAX - 1 | origin.fields << FLOW_BITS
            if error in error_queue.ICMP_ERRORS and (lost := origin.path.returned(flow)):
                self._segment.counters.drop(lost, remotes[0].host)
            datagrams = self._unsent_data[begin : begin + octets]
            self._transmitter.send(datagrams, stride, remotes, flow, now, 0)

    def read(self, buffers: Sequence[bytearray | memoryview]) -> int:
        """Read the next frame that the last turn has returned, like `TapDevice.read`.

        Raises: OSError as the turn's last read of the TAP did.
        """
        if self._next >= len(self._returned):
            error, self._error = self._error, 0
            if error:
                raise OSError(error, os.strerror(error))
            raise BlockingIOError
        begin, octets = self._returned[self._next]
        self._next += 1
        meta, buffer = buffers
        frame = begin + virtio.HEADER_LEN
        meta[:] = self._data[begin:frame]
        buffer[: octets - virtio.HEADER_LEN] = self._data[frame : begin + octets]
        return octets

    # --- rows ---------------------------------------------------------------------------------

    def learn(self) -> None:
        """Add rows for the frames that the last turn has returned, and which were sent since."""
        keys = self._turn.returned_keys
        seen = set()
        for number, (begin, octets) in enumerate(self._returned):
            key = keys[number]
            if key[KEY_MAC]:
                frame = self._data[begin + virtio.HEADER_LEN : begin + octets]
                flow = flow_hash(frame) & POOL_MAX - 1
                if (identity := (key.tobytes(), flow)) not in seen:
                    seen.add(identity)
                    self._learn(key, frame, flow)
        self._returned = []

    def _learn(self, key: Integers, frame: memoryview, flow: int) -> None:
        """Add a row for a frame, unless the next one like it may need something else."""
        segment, paths = self._segment, self._transmitter.paths
        route, meter = segment.route(frame), segment.storm.tap
        if route.reason is not None or route.index < 0:  # Only the default entry has no index.
            is_limited = meter is not None and meter.limits_unknown_unicast and not frame[0] & 1
            if is_limited and route is segment.fdb.default and not int(key[KEY_PORT]) >> PORT_GSO:
                self._table.add_unknown(key, segment, bytes(frame[: ethernet.MAC_LEN]))
            return
        if len(route.destinations) != 1 or not is_repeatable(int(key[KEY_KIND])):
            return
        remote = route.destinations[0]
        path = paths.get(remote)
        is_superframe = int(key[KEY_PORT]) >> PORT_GSO != 0
        if not isinstance(path, Path):
            return
        # As in `Egress`: tunnel GSO is not used where the header would have to be rewritten.
        if is_superframe and paths.tunnel_gso and remote.vni is None:
            state = paths.tunnel_gso_path(remote).gso
            if state.max_len or state.track_above != NEVER:
                return
        fields = paths.outer_fields(frame)
        flow |= fields << FLOW_BITS
        if path.connected_fd(flow) < 0:
            return
        header = segment.header
        if remote.vni is not None:
            header = header[: vxlan.VNI_OFFSET] + remote.vni.to_bytes(3, "big") + b"\0"
        control = b"".join(
            _CMSGHDR.pack(_CMSGHDR.size + len(value), level, kind) + value + bytes(-len(value) % 8)
            for level, kind, value in control_messages(path.binding.family, fields, 0)
        )
        self._table.add(key, segment, route, path, header, control, flow)


class IngressVerdicts:
    """The compiled turns of one receiving port, from its sockets to the TAPs of its VNIs.

    `run` is a turn. The datagrams that it leaves to the slow path are received by `receive`, in
    place of a receiver, and admitted by `admit`, in place of the demux. Then `learn` adds rows.
    """

    def __init__(self, fast: "FastPath", demux: Demux) -> None:
        self._fast = fast
        self._table = fast.receive
        self._turn = fast.receive.turn
        self._demux = demux
        self._port = fast.new_port()
        self._links: dict[Segment, TargetLink] = {}
        self._data = self._turn.data.data
        self._sources: dict[bytes, tuple[str, int]] = {}
        self._returned: list[list[int]] = []
        self._next = 0
        self._error = 0
        self._pauses = _Pauses()
        self._grants = ReceiveGrants(fast.receive)
        self._single_frame_turn = False
        self.is_full = 0  # 1 if more may wait than the last turn has received.
        # By the start of a datagram that was admitted in this turn, and its source: its segment.
        self._admitted: dict[tuple[bytes, str], Segment] = {}

    # --- configuration ------------------------------------------------------------------------

    def attach(self, target: "TapTarget") -> None:
        """Deliver to a TAP, if that is wanted, and it is a device of the kernel."""
        self.detach(target.segment)
        is_possible = target.fast_path and isinstance(target.tap, Tap)
        number = self._table.open_target() if is_possible else None
        if number is not None:
            self._links[target.segment] = TargetLink(self._table, number, target)

    def detach(self, segment: Segment) -> None:
        """Remove all rows of a segment, and deliver no more of its frames."""
        link = self._links.pop(segment, None)
        if link is not None:
            link.close()

    def set_merging(self, *, tso: bool, uso: bool) -> None:
        """Set whether segments of TCP, and datagrams of UDP, may be merged."""
        for link in self._links.values():
            columns = self._turn.targets[link.number]
            columns[TARGET_TSO], columns[TARGET_USO] = tso, uso

    def close(self) -> None:
        """Remove all rows of this port."""
        for segment in tuple(self._links):
            self.detach(segment)

    # --- a turn -------------------------------------------------------------------------------

    def run(self, receiver: Receiver, now: float) -> bool:
        """Receive datagrams, and deliver the frames of those for which there are rows.

        Returns: True if the slow path has to go on, with `receive` if `has_returned`.
        """
        self._returned, self._error = [], 0  # As in `EgressVerdicts.run`.
        if self._pauses.take():
            return True
        turn = self._turn
        self._grants.renew(now)
        try:
            turn.run(receiver.fileno(), self._port, _MESSAGES_MAX)
        except Exception as error:  # noqa: BLE001  a mistake in the turn must not stop forwarding
            self._fast.fail(error)
            self._demux.counters.drop(Drop.FAST_PATH_FAILED, count=_lost(turn.result))
            return True
        touched, taken, returned, _, self._error, done, _, self.is_full, _ = turn.result.tolist()
        self._demux.counters.rx_syscalls += taken > 0
        single, self._single_frame_turn = self._single_frame_turn, taken == 1
        if single and touched and done == 1:
            # The answer of the host (see `Ingress`) does not wait until its request is counted.
            origin = self._table.origins[turn.touched[0]]
            if origin is not None:
                origin.kick_egress()
        if touched:
            self._account(touched, now)
        if not returned and not self._error:
            return False
        self._returned = turn.returned[:returned].tolist()
        self._next = 0
        self._pauses.note(sum(octets for _, octets, *_ in self._returned), taken, done)
        self._admitted.clear()
        return True

    @property
    def has_returned(self) -> bool:
        """True if the last turn has left datagrams, or an error, that `receive` returns."""
        return self._next < len(self._returned) or self._error != 0

    def _account(self, touched: int, now: float) -> None:
        """Count what a turn has delivered, and refresh its FDB entries, as the slow path does."""
        values, origins = self._turn.values, self._table.origins
        for row in self._turn.touched[:touched].tolist():
            counts = values[row, RX_ADMITTED:]
            admitted, frames, octets, superframes, partial_checksums = counts.tolist()
            counts[:] = 0
            origin = origins[row]
            if isinstance(origin, MeterOrigin):
                self._grants.account(origin, now)
            elif origin is not None:
                origin.segment.count_received(origin.host, frames, octets, now)
                counters = origin.segment.counters
                counters.rx_superframes += superframes
                counters.partial_checksums += partial_checksums
                if origin.entry is not None:
                    origin.entry.updated = now
                    origin.entry.rx_frames += admitted

    def receive(self, buffer: memoryview) -> Received:
        """Receive datagrams that the last turn has returned, like `Receiver.receive`."""
        if self._next >= len(self._returned):
            error, self._error = self._error, 0
            if error:
                raise OSError(error, os.strerror(error))
            raise BlockingIOError
        begin, octets, stride, message = self._returned[self._next]
        self._next += 1
        buffer[:octets] = self._data[begin : begin + octets]
        host, port = self._source(message)
        return octets, stride, host, port, int(self._turn.ecn[message])

    def _source(self, message: int) -> tuple[str, int]:
        """Return the address and the port of the sender of a message."""
        address = self._turn.source(message)
        source = self._sources.get(address)
        if source is None:
            source = unpack_sockaddr(address)
            if len(self._sources) >= _SOURCES_MAX:
                self._sources.clear()
            if "%" not in source[0]:  # The name of a device may change.
                self._sources[address] = source
        return source

    # --- rows ---------------------------------------------------------------------------------

    def admit(self, datagram: Buffer, source: str, now: float, count: int = 1) -> Segment | None:
        """Admit a datagram as `Demux.admit` does, and remember the verdict until `learn`."""
        segment = self._demux.admit(datagram, source, now, count)
        if segment is not None:
            self._admitted[bytes(datagram[:INNER_MIN]), source] = segment
        return segment

    def learn(self, now: float) -> None:
        """Add rows for the datagrams that the last turn has returned, and which were admitted.

        Senders of frames to groups get a meter.
        """
        keys, data = self._turn.returned_keys, self._data
        for number, (begin, octets, stride, message) in enumerate(self._returned):
            if octets >= INNER_MIN and data[begin + vxlan.HEADER_LEN] & 1:
                self._limit(begin, message, now)
            key = keys[number]
            if key[KEY_MAC] and is_repeatable(int(key[KEY_KIND])):
                datagram = self._data[begin : begin + stride]
                host = self._source(message)[0]
                segment = self._admitted.get((bytes(datagram[:INNER_MIN]), host))
                if segment is not None and self._table.find(key) < 0:
                    self._learn(key, datagram[vxlan.HEADER_LEN :], segment, host)
        self._returned = []

    def _limit(self, begin: int, message: int, now: float) -> None:
        """Give the sender of a message a meter: it has sent to a group."""
        header, host = bytes(self._data[begin : begin + vxlan.HEADER_LEN]), self._source(message)[0]
        flags, vni_word = vxlan.HEADER.unpack(header)
        segment = self._demux.segments.get(vni_word >> 8)
        link = self._links.get(segment) if segment is not None else None
        # Wrong flags have drop reasons of their own, and the name of a device may change.
        is_valid = flags & (vxlan.FLAG_I | vxlan.GPE_BITS) == vxlan.FLAG_I and "%" not in host
        if link is not None and segment is not None and is_valid:
            identity = self._port, host, header
            self._grants.learn(identity, message, segment, link.kick_egress, now)

    def _learn(self, key: Integers, frame: memoryview, segment: Segment, host: str) -> None:
        """Add a row for a datagram, unless the next one like it may need something else."""
        link, policy, kind = self._links.get(segment), segment.policy, int(key[KEY_KIND])
        if link is None or policy.groups is not None or "%" in host or segment.loops.blocked:
            return
        if policy.inner_vlan is not InnerVlan.PASS and int(key[KEY_MAC]) & KEY_TAGGED:
            return
        outer, inner = kind >> KIND_OUTER_ECN & ecn.MASK, kind >> KIND_TOS & ecn.MASK
        if ecn.DECAPSULATED[outer << 2 | inner] != inner:
            return
        mac, entry = bytes(frame[ethernet.MAC_LEN : 2 * ethernet.MAC_LEN]), None
        if segment.learning:
            entry = segment.fdb.find_refreshed(mac, host)
            if entry is None:
                return
        self._table.add(key, segment, host, mac, entry, link.number, link.kick_egress)


def _lost(result: Integers) -> int:
    """Return how many frames a turn that failed had taken, but not handled."""
    return max(0, int(result[RESULT_TAKEN] - result[RESULT_DONE]))
