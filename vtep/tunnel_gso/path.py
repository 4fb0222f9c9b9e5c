"""The way to one remote for superframes that leave whole, beside that of its sockets."""

import errno
import logging

from vtep.offload.headers import Cut
from vtep.tunnel_gso import encoder as whole
from vtep.tunnel_gso.ack_tracker import Judge
from vtep.tunnel_gso.device import Injector
from vtep.underlay.path import FLOW_BITS, Path
from vtep.underlay.shared import Sender, connected
from vtep.underlay.sockets import Outer
from vtep.wire import virtio

log = logging.getLogger("vtep")

_NO_ROOM = frozenset((errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM))

_HEADS_MAX = 256
"""Flows of which it is remembered what their outer headers say."""


class WholeWay:
    """Sends superframes as they are, as from the sockets of a path: shut until it is opened.

    Whether it may be opened is decided in `vtep.tunnel_gso.state`.
    """

    def __init__(self, path: Path, outer: Outer, injector: Injector) -> None:
        self.wished = False
        self.sent = 0
        self.largest = 0
        """Octets of the largest superframe that may leave whole now; none may if it is 0."""
        self.judge: Judge | None = None
        """If a larger one is to leave whole, who is to be told what becomes of it."""
        self.any_size = False
        """Whether that is to be told of one that is no larger, too."""
        self.host = path.remote.host
        self.binding = path.binding
        self._path = path
        self._outer = outer
        self.injector = injector
        self._device = 0
        self._heads: dict[int, tuple[Sender, whole.Heads]] = {}
        self._last: whole.Heads

    @property
    def is_open(self) -> bool:
        """Whether superframes leave whole now."""
        return self.largest > 0

    def open(self, device: int, largest: int) -> None:
        """Have superframes of so many octets leave whole, over the device of this index."""
        self._use(device)
        if largest != self.largest:
            log.debug("offload tnl is on to %s: superframes of up to %d octets", self.host, largest)
        self.largest, self.judge = largest, None

    def shut(self) -> None:
        """Have them cut here again."""
        if self.largest:
            log.debug("offload tnl is off to %s: superframes are segmented here", self.host)
        self.largest, self.judge = 0, None
        self._heads.clear()  # The host's address may be another one when they leave whole again.

    def tell_losses(self) -> None:
        """Say in the log that superframes are lost, and so are cut here."""
        log.warning("offload tnl is off to %s for a while: superframes are lost", self.host)

    def try_one(self, device: int, judge: Judge, *, any_size: bool) -> None:
        """Have one superframe leave whole that is larger, or one of `any_size`; `judge` is told."""
        self._use(device)
        self.judge, self.any_size = judge, any_size

    def _use(self, device: int) -> None:
        if device != self._device:
            self._device = device
            self._heads.clear()

    def ask(self, device: int, probe: bytes, question: whole.Question, now: float) -> None:
        """Send a question whole behind a probe; whether it has left is seen by the answer."""
        self._use(device)
        sent = self._send(probe, *question, 0, now)
        octets = len(question.frame)
        log.debug(
            "tunnel probe to %s: %s, %d octets", self.host, "sent" if sent else "failed", octets
        )

    def send(
        self,
        prefix: bytes,
        frame: memoryview,
        cut: Cut,
        gso: virtio.Header,
        flow: int,
        now: float,
    ) -> bool:
        """Send a superframe behind `prefix`; False if it did not leave, and is to be cut here.

        `cut` and `gso` are as `encoder.goes_whole` wants them, `flow` is as `Path.send` does.
        """
        sent = self._send(prefix, frame, cut, gso, flow, now)
        self.sent += sent
        return sent

    def send_again(self, prefix: bytes, frame: memoryview) -> bool:
        """Send one more that is as long as the last one sent, and like it in all that was given.

        As `send`, in the same turn of the loop.
        """
        try:
            self.injector.write(self._last.write_again(), prefix, frame)
        except OSError as error:
            self._failed(error)
            return False
        self.sent += 1
        return True

    def _send(
        self,
        prefix: bytes,
        frame: bytes | memoryview,
        cut: Cut,
        gso: virtio.Header,
        flow: int,
        now: float,
    ) -> bool:
        try:
            sock = self._path.socket(flow, now)
            known = self._heads.get(flow)
            heads = known[1] if known is not None and known[0] is sock else self._note(flow, sock)
            head = heads.write(cut, len(prefix), len(frame), gso)
            if head is None:
                return False
            self.injector.write(head, prefix, frame)
        except OSError as error:
            self._failed(error)
            return False
        self._last = heads
        return True

    def _failed(self, error: OSError) -> None:
        """Shut it, unless there is no room at the moment."""
        if error.errno in _NO_ROOM:
            return
        if self.is_open:
            why = error.strerror
            log.warning("offload tnl is off to %s for a while: %s", self.host, why)
        self.shut()

    def _note(self, flow: int, sender: Sender) -> whole.Heads:
        """What goes before the superframes of a flow from now on; raises OSError."""
        if len(self._heads) >= _HEADS_MAX:
            self._heads.clear()
        port: int = sender.getsockname()[1]
        with connected(sender) as sock:
            outside = self._outer.outside(
                *(sock, port, self.injector.mac, self._device, flow >> FLOW_BITS),
                df=self._path.keeps_whole(flow),
            )
        heads = whole.Heads(outside)
        self._heads[flow] = sender, heads
        return heads
