"""Find out from TCP whether a superframe that was sent with tunnel GSO was delivered.

The inner TCP connection reveals it, so that the remote needs no support for this:

- An acknowledgement of the whole superframe proves its delivery.
- A retransmission of any part of it counts as a loss. An acknowledgement that follows proves
  nothing, since it may belong to the retransmission, which pyvtep segments.

So the first of the two decides. A loss costs one superframe, which TCP repairs by itself (RFC 9293,
section 3.8.1; RFC 5681, section 3.2).

Data that was sent before the superframe may have been lost as well. TCP retransmits that first,
which can take long (RFC 6582), and meanwhile neither of the two occurs. So after a second the
superframe counts as lost if older data was retransmitted. Otherwise the result is unknown.
"""

from collections.abc import Callable
from enum import Enum, auto
from struct import Struct
from typing import TypeAlias

from vtep.offload.headers import SegmentPlan
from vtep.wire import Buffer
from vtep.wire import ip as inet

_DEADLINE_S = 1.0
"""Seconds after which there is a result in any case: five times the shortest retransmission timeout
of Linux (TCP_RTO_MIN, 200 ms)."""

_SEQUENCE_SPACE = 1 << 32
_NUMBERS = Struct("!II")
_NUMBERS_AT = 4
"""Offset of the sequence number and the acknowledgement number in a TCP header."""
_PORTS_LEN = 4


class DeliveryResult(Enum):
    """The outcome for a superframe that was sent with tunnel GSO."""

    ACKED = auto()
    """Its receiver acknowledged all of it."""
    LOST = auto()
    """Its sender retransmitted a part of it, or older data for the whole second."""
    UNKNOWN = auto()
    """Neither happened in time, or the connection was reset."""


OnResult: TypeAlias = Callable[[DeliveryResult, int, float], None]
"""Receives the result, the octets of the superframe, and the time at which the result is known."""


class AckTracker:
    """Tracks the delivery of one superframe at a time, among the frames of one TAP.

    While it is `active`, every frame that is sent is to be passed to `on_sent`, and every frame
    that is received to `on_received`. The result goes to the callback given to `start`, once.
    """

    def __init__(self) -> None:
        self.active = False
        """True while a superframe is tracked. Callers read it for every frame, which a plain
        attribute makes cheap; only this class writes it."""
        self.watchers: list[Callable[[bool], None]] = []
        """Called with the new value of `active` when it changes."""
        self._flow = self._reverse_flow = b""
        self._sequence = self._payload_len = self._frame_len = 0
        self._deadline = 0.0
        self._older_retransmitted = False
        self._on_result: OnResult = _ignore

    def start(self, frame: Buffer, plan: SegmentPlan, on_result: OnResult, now: float) -> None:
        """Track a TCP superframe that was sent at `now`, in place of any tracked before.

        `frame` has neither IP options nor extension headers, and `plan` is how it is segmented.
        """
        transport = plan.transport
        flow = self._flow = _flow(frame, transport)
        half = (len(flow) - _PORTS_LEN) // 2
        addresses, ports = flow[half:-_PORTS_LEN] + flow[:half], flow[-_PORTS_LEN:]
        self._reverse_flow = addresses + ports[2:] + ports[:2]
        self._sequence, _ = _NUMBERS.unpack_from(frame, transport.offset + _NUMBERS_AT)
        self._payload_len = transport.length - plan.transport_header_len
        self._frame_len = len(frame)
        self._deadline = now + _DEADLINE_S
        self._older_retransmitted = False
        self._on_result = on_result
        self._set_active(active=True)

    def _finish(self, result: DeliveryResult, now: float) -> None:
        if self.active:
            # First, since the callback may lead to another `start`.
            self._set_active(active=False)
            self._on_result(result, self._frame_len, now)

    def _set_active(self, *, active: bool) -> None:
        if active != self.active:
            self.active = active
            for watcher in self.watchers:
                watcher(active)

    def on_sent(self, frame: Buffer, now: float) -> None:
        """Look for a retransmission in a frame or superframe, of at least 14 octets.

        Frames that are sent in the same turn as the superframe may be left out: a retransmission
        follows its loss by a round trip at least.
        """
        transport = inet.find_transport(frame)
        if (
            transport is not None
            and transport.protocol == inet.TCP
            and _flow(frame, transport) == self._flow
        ):
            sequence, _ = _NUMBERS.unpack_from(frame, transport.offset + _NUMBERS_AT)
            payload_len = transport.length - inet.tcp_header_len(frame, transport)
            # Sequence numbers wrap around: they compare by their distance (RFC 9293, section 3.4).
            behind = (self._sequence - sequence) % _SEQUENCE_SPACE
            begins_inside = (sequence - self._sequence) % _SEQUENCE_SPACE < self._payload_len
            if begins_inside or behind < payload_len:
                self._finish(DeliveryResult.LOST, now)
            elif payload_len and behind < _SEQUENCE_SPACE // 2:
                self._older_retransmitted = True
        if now > self._deadline:
            lost = self._older_retransmitted
            self._finish(DeliveryResult.LOST if lost else DeliveryResult.UNKNOWN, now)

    def on_received(self, frame: Buffer, now: float) -> None:
        """Look for an acknowledgement in a frame, of at least 14 octets, from the underlay.

        Frames may be left out: acknowledgements are cumulative.
        """
        transport = inet.find_transport(frame)
        if (
            transport is None
            or transport.protocol != inet.TCP
            or _flow(frame, transport) != self._reverse_flow
        ):
            return
        flags = frame[transport.offset + inet.TCP_FLAGS_OFFSET]
        _, acknowledged = _NUMBERS.unpack_from(frame, transport.offset + _NUMBERS_AT)
        distance = (acknowledged - self._sequence) % _SEQUENCE_SPACE
        if flags & inet.TCP_FLAG_ACK and self._payload_len <= distance < _SEQUENCE_SPACE // 2:
            self._finish(DeliveryResult.ACKED, now)
        elif flags & inet.TCP_FLAG_RST:
            self._finish(DeliveryResult.UNKNOWN, now)


def _flow(frame: Buffer, transport: inet.Transport) -> bytes:
    """Return the addresses and ports of a frame, source before destination."""
    ports = frame[transport.offset : transport.offset + _PORTS_LEN]
    return bytes(inet.addresses(frame, transport)) + bytes(ports)


def _ignore(_result: DeliveryResult, _frame_len: int, _now: float) -> None:
    pass
