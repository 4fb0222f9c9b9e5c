"""Which remotes take superframes whole: they are asked, and asked again. No I/O.

What leaves whole (see `.encoder`) is cut by a network card. Where there is none, as between
containers of a host and in every lab, it arrives whole, and who receives it has to know what it is:
a pyvtep does, and a kernel driver. So none leaves whole before it is known that the way takes it:

- A pyvtep answers a question (see `vtep.probe`) that was a superframe itself. The answer says that
  the way is open, and whether the question was cut: if not, there is another, as large as
  superframes are, since something on the way may not carry those.
- No other VTEP answers. So one superframe of those that are sent anyhow leaves whole, and if its
  receiver acknowledges it (see `tunnel_gso.ack_tracker`), so may those that follow.

Of a way that is open, one superframe a second is watched so. If that is lost, the way is shut: its
sender sends it again, in pieces. Then no answer is believed, and the remote is tried ever more
seldom, until one has arrived again. Whoever does neither gets superframes that were cut here.
"""

from collections.abc import Callable
from functools import partial
from typing import Generic, Protocol, TypeVar

from attrs import define, frozen

from vtep.probe import SIZE, Kind, Probe
from vtep.tunnel_gso.ack_tracker import Fate, Judge
from vtep.tunnel_gso.encoder import LARGE, OCTETS_MAX, SMALL, Question

_LIFE = 20.0
"""Seconds for which an answer is believed."""

_RENEWED = 5.0
"""Seconds after which a way that is in use is asked for again; and for which one is open without an
answer after a superframe has arrived."""

_AGAIN = 1.0
"""Seconds from a question to the next, if nobody has answered."""

_PATIENCE = 3
"""Questions without an answer until a remote has a pause."""

_PAUSE = 60.0
"""Seconds of that."""

_FIRST_PAUSE = 1.0
"""Seconds from a superframe that was lost, which may have been an accident, to the next one that is
to leave whole; and twice as long each time that this is lost, too."""

_PAUSE_MAX = 3600.0

_FAILURES_MAX = 1024
"""Hosts of which a lost superframe is remembered. Those that came first are forgotten first."""


class Way(Protocol):
    """The way to a remote, as far as it is of interest here."""

    wished: bool
    """That superframes are to leave whole, of which we have been told."""
    sent: int
    """How many have left whole."""
    largest: int
    """Octets of the largest that may leave whole now; 0 if none may."""
    host: str
    """The address of the remote."""

    @property
    def is_open(self) -> bool:
        """Whether they leave whole now."""

    def open(self, device: int, largest: int) -> None:
        """Have those of so many octets at most leave whole, over the device of this index."""

    def shut(self) -> None:
        """Have them cut here again."""

    def ask(self, device: int, probe: bytes, question: Question, now: float) -> None:
        """Send a question whole behind a probe; whether it has left is seen by the answer."""

    def tell_losses(self) -> None:
        """Let people know that superframes are lost, and so are cut here."""

    def try_one(self, device: int, judge: Judge, *, any_size: bool) -> None:
        """Have one leave whole that is larger than those, and `judge` be told what becomes of it.

        Or of one of `any_size`, if that is the first to leave.
        """


_W = TypeVar("_W", bound=Way)


@define(eq=False)
class _Request(Generic[_W]):
    way: _W
    port: int
    """Where the answer is to go."""
    token: bytes
    device: int | None = None
    asked: int = 0
    """Questions since the last answer."""
    asked_at: float = 0.0
    believed_until: float = 0.0
    question: Question = SMALL
    sent: int = 0
    """How many had left whole when it was last asked."""
    seen: int = 0
    """How many had when one was to be watched."""
    tried: bool = False
    """Whether it is open because of a superframe that has arrived, not of an answer."""


@frozen
class _Failure:
    """A superframe that left whole for a host, and was lost."""

    octets: int
    pause: float
    until: float


class Consent(Generic[_W]):
    """What was asked of whom, and answered.

    `token` gives eight octets that nobody can guess, and `wake` is called when there is a way for
    which a device is to be found: `wanting` has those, and `found` is to be told.
    """

    def __init__(self, token: Callable[[], bytes], wake: Callable[[], None]) -> None:
        self._token = token
        self._wake = wake
        self._requests: dict[_W, _Request[_W]] = {}
        self._by_token: dict[bytes, _Request[_W]] = {}
        self._failures: dict[str, _Failure] = {}

    def wish(self, way: _W, port: int) -> None:
        """There are superframes for this way; answers are to go to our VXLAN `port`."""
        way.wished = True
        request = _Request(way, port, self._token())
        self._requests[way] = self._by_token[request.token] = request
        self._wake()

    def wanting(self) -> list[_W]:
        """The ways for which there is no device yet."""
        return [
            request.way
            for request in self._requests.values()
            if request.device is None and not request.asked
        ]

    def found(self, way: _W, device: int | None, now: float) -> None:
        """Superframes would leave by the device of this index; None if there is none for them."""
        request = self._requests.get(way)
        if request is None:
            return
        request.device = device
        if device is None:
            request.asked, request.asked_at = _PATIENCE, now
        else:
            self._ask(request, now)
            self._try(request, device, now)

    def _try(
        self, request: _Request[_W], device: int, now: float, *, any_size: bool = False
    ) -> None:
        """Find out by a superframe, unless one was lost so not long ago."""
        failure = self._failures.get(request.way.host)
        if failure is None or now >= failure.until:
            request.way.try_one(device, partial(self._judged, request), any_size=any_size)

    def _judged(self, request: _Request[_W], fate: Fate, octets: int, now: float) -> None:
        way, device = request.way, request.device
        if self._requests.get(way) is not request or device is None:
            return
        failure = self._failures.get(way.host)
        if fate is Fate.LOST:
            pause = _FIRST_PAUSE if failure is None else min(2 * failure.pause, _PAUSE_MAX)
            if failure is None and len(self._failures) >= _FAILURES_MAX:
                del self._failures[next(iter(self._failures))]
            self._failures[way.host] = _Failure(octets, pause, now + pause)
            if pause == 2 * _FIRST_PAUSE:  # Once, and not where one was an accident.
                way.tell_losses()
            self._suspend(request, now)
            return
        if fate is Fate.ARRIVED:
            if failure is not None and octets >= failure.octets:
                del self._failures[way.host]
            if not way.is_open:
                request.tried = True
            if request.tried:
                request.believed_until = now + _RENEWED
                way.open(device, max(octets, way.largest))
        if request.tried or not way.is_open:
            self._try(request, device, now)  # A larger one, or another.

    def _suspend(self, request: _Request[_W], now: float) -> None:
        """Have superframes cut, as if nobody had answered, until one that is tried arrives."""
        request.way.shut()
        request.tried, request.believed_until = False, 0.0
        request.asked, request.asked_at = _PATIENCE, now

    def answered(self, probe: Probe, host: str, now: float) -> None:
        """An answer has come from a host, perhaps to one of our questions."""
        request = self._by_token.get(probe.token)
        if request is None or request.device is None or request.way.host != host:
            return
        if host in self._failures:
            return  # Questions may pass where superframes don't.
        if probe.octets < SIZE + len(SMALL.frame):
            request.question = SMALL  # It was cut, as all will be.
        elif probe.octets < SIZE + len(LARGE.frame):
            if request.question is SMALL:
                request.question, request.asked = LARGE, 0
                self._ask(request, now)
            return
        request.tried, request.asked = False, 0
        request.believed_until = now + _LIFE
        request.way.open(request.device, OCTETS_MAX)

    def tick(self, now: float) -> None:
        """Do what is due: to be called about once a second."""
        for request in tuple(self._requests.values()):
            way, device = request.way, request.device
            if not request.believed_until:
                self._wait(request, now)
            elif not way.is_open or device is None:  # It was shut, as after an error.
                self._suspend(request, now)
                request.device = None
            elif now >= request.believed_until:
                self._expire(request, device, now)
            else:
                if way.sent != request.seen:
                    request.seen = way.sent
                    self._try(request, device, now, any_size=True)
                if not request.tried and now >= request.believed_until - _LIFE + _RENEWED:
                    self._renew(request, now)

    def _expire(self, request: _Request[_W], device: int, now: float) -> None:
        """Believe somebody no longer. Who was tried is tried again, with the next superframe."""
        if request.tried:
            self._suspend(request, now)
            self._try(request, device, now)
        else:
            self.release(request.way)

    def _renew(self, request: _Request[_W], now: float) -> None:
        """Ask again who is in use, or forget him: else all might be lost while he is believed."""
        if now < request.asked_at + _AGAIN:
            return
        if request.asked >= _PATIENCE:
            self.release(request.way)
        elif request.asked or request.way.sent != request.sent:
            self._ask(request, now)

    def _wait(self, request: _Request[_W], now: float) -> None:
        """Go on with who has not answered yet, and of whose superframes none has arrived."""
        waited = now - request.asked_at
        if request.asked < _PATIENCE:
            if waited >= _AGAIN:
                self._ask(request, now)
        elif waited >= _PAUSE:
            self.release(request.way)
        elif request.device is not None:
            self._try(request, request.device, now)

    def _ask(self, request: _Request[_W], now: float) -> None:
        if request.device is None:
            return
        request.asked += 1
        request.asked_at = now
        request.sent = request.way.sent
        probe = Probe(Kind.QUESTION, None, request.port, request.token, request.asked, 0)
        request.way.ask(request.device, probe.pack(), request.question, now)

    def release(self, way: _W) -> None:
        """Forget a way; it is cut for there, and may be wished for again."""
        request = self._requests.pop(way, None)
        if request is not None:
            del self._by_token[request.token]
        way.shut()
        way.wished = False

    def forget(self) -> None:
        """Forget all, since the host's network is another one now."""
        for way in tuple(self._requests):
            self.release(way)
