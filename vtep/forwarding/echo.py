"""Replies to echo requests, and delivery of echo replies to the process that sent the requests."""

from collections.abc import Callable, Mapping

from vtep.counters import Counters, Drop
from vtep.forwarding.segment import Segment
from vtep.ratelimit import TokenBucket
from vtep.wire import Buffer, vxlan
from vtep.wire.echo import EchoKind, EchoMessage, EchoStatus

_REPLIES_PER_S = 100
_REPLIES_BURST = 256
"""Enough for several doctors at a time, each of which searches the path MTU both ways."""


class EchoResponder:
    """Answers echo requests, and passes echo replies on.

    An echo request is answered if its source belongs to one of the `segments`, so that a VTEP
    cannot be used to reflect datagrams, and not more often than `_REPLIES_PER_S`.

    Replies are sent by `send_reply(datagram, host, port)`. Echo replies from `host` are passed to
    `on_reply(reply, host, now)`. `counters` are those of the demultiplexer. `port` is the UDP port
    on which this VTEP receives.
    """

    def __init__(
        self,
        segments: Mapping[int, Segment],
        counters: Counters,
        port: int,
        send_reply: Callable[[bytes, str, int], None] | None,
        on_reply: Callable[[EchoMessage, str, float], None] | None,
    ) -> None:
        self._segments = segments
        self._counters = counters
        self._port = port
        self._send_reply = send_reply
        self._on_reply = on_reply
        self._limit = TokenBucket(_REPLIES_PER_S, _REPLIES_BURST)

    def handle(self, datagram: Buffer, source: str, now: float, count: int) -> None:
        """Answer, pass on or drop `count` equal datagrams whose VXLAN header has no I flag."""
        counters = self._counters
        header = int.from_bytes(datagram[: vxlan.HEADER_LEN], "big")
        message = EchoMessage.parse(datagram)
        if message is None or self._send_reply is None:
            counters.drop(Drop.FLAGS_INVALID, source, count, header)
        elif message.kind is EchoKind.REPLY:
            counters.echo_replies_received += count
            if self._on_reply is not None:
                self._on_reply(message, source, now)
        elif not self._limit.take(now):
            counters.drop(Drop.PROBE_LIMITED, source, count)
        elif (status := self._status(message, source)) is None:
            segment = None if message.vni is None else self._segments.get(message.vni)
            counters = counters if segment is None else segment.counters
            counters.drop(Drop.SOURCE_UNKNOWN, source, count)
        elif message.permits_reply(self._port):
            counters.echo_requests_answered += count
            self._send_reply(message.reply(len(datagram), status), source, message.port)
        else:
            counters.drop(Drop.FLAGS_INVALID, source, count, header)

    def _status(self, message: EchoMessage, source: str) -> EchoStatus | None:
        """Return the status that a reply states, or None if no segment accepts the source."""
        segment = None if message.vni is None else self._segments.get(message.vni)
        if segment is not None and segment.accepts_source(source):
            return EchoStatus.FINE
        if not any(each.accepts_source(source) for each in self._segments.values()):
            return None
        if message.vni is None:
            return EchoStatus.FINE
        return EchoStatus.VNI_UNKNOWN if segment is None else EchoStatus.SOURCE_UNKNOWN
