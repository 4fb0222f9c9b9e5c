"""Liveness of a remote: whether it is there, from its traffic, echo replies and ICMP errors.

Only a pyvtep answers echo requests (see `vtep.wire.echo`). So a remote is silent only if it has
answered before, leaves several requests in a row unanswered, and sends nothing. A VTEP of another
kind may be quiet for as long as it likes.

Times are in seconds of any monotonic clock.
"""

from enum import StrEnum
from typing import Final, NamedTuple

from attrs import define

MISSED_MAX: Final = 3
"""Unanswered requests in a row after which a remote that has answered before is silent."""

RETRY_S: Final = 2.0
"""Seconds after which a request is unanswered, and the next one is sent, unless the interval is
shorter. At the default interval, a remote that dies is silent after 16 to 18 seconds."""

INTERVAL_MAX_S: Final = 60.0
"""Longest interval, unless a longer one is configured, for remotes that have never answered."""


class LivenessState(StrEnum):
    """A state of a remote."""

    NEVER_SEEN = "never-seen"
    """Nothing was ever received from it."""
    SEEN = "seen"
    SILENT = "silent"
    """It has answered before, and neither answers nor sends any more."""
    REFUSED = "refused"
    """Its host, or a firewall, has answered with an ICMP error: no VTEP receives there."""


class LivenessRow(NamedTuple):
    """A `Liveness` as one process passes it to another, with ages in seconds."""

    is_pyvtep: bool
    is_refused: bool
    missed: int
    heard: float | None
    replied: float | None
    rtt: float | None


@define(eq=False)
class Liveness:
    """The liveness of one remote.

    Its owner sends an echo request when `is_due`, and reports what happens.
    """

    is_pyvtep: bool = False
    """True if it has answered an echo request."""
    last_heard: float | None = None
    """Time of the last frame or echo reply from it."""
    last_reply: float | None = None
    rtt: float | None = None
    """Round-trip time of the last reply in seconds."""
    last_request: float | None = None
    is_refused: bool = False
    _missed: int = 0
    _sent: float | None = None
    """When the request was sent that is not answered yet; None if there is none."""
    _due: float | None = None
    _is_doubted: bool = False
    """True if it has sent a frame after it was silent, and has not answered since."""
    _unrefused: int = 0
    """Requests that were sent since the last ICMP error."""
    _backoff: float = 0.0
    """The interval at which a remote is asked that has never answered; 0 before the second one."""

    @property
    def state(self) -> LivenessState:
        """The present state."""
        if self.is_refused:
            return LivenessState.REFUSED
        if self.is_pyvtep and self._missed >= MISSED_MAX:
            return LivenessState.SILENT
        return LivenessState.NEVER_SEEN if self.last_heard is None else LivenessState.SEEN

    # --- what happens -------------------------------------------------------------------------

    def hear(self, at: float) -> None:
        """Note that a frame from it was received at a time, which may be the same as before."""
        if self.last_heard is None or at > self.last_heard:
            if self.state is LivenessState.SILENT:
                # It is back. If it goes on to leave requests unanswered, it is another VTEP now,
                # such as a kernel driver in place of a pyvtep: then it may be quiet.
                self._is_doubted, self._due = True, at
            self.last_heard = at
            self.is_refused = False
            self._missed = 0

    def on_reply(self, now: float, *, is_to_last: bool = True) -> None:
        """Note an echo reply. One to a request before the last one says nothing of the delay."""
        if self._sent is not None and is_to_last:
            self.rtt = max(0.0, now - self._sent)
            self._sent = None
        self.is_pyvtep, self._is_doubted = True, False
        self.last_reply = now
        self.hear(now)

    def on_refused(self, asked: float) -> None:
        """Note an ICMP error about a request, or a frame, that was sent at a time or since.

        It is out of date if something was received later.
        """
        if self.last_heard is None or self.last_heard < asked:
            self.is_refused = True
            self._unrefused = 0

    def hurry(self, now: float) -> None:
        """Send two requests soon, as a frame may have been refused."""
        if self.last_request is None or now >= self.last_request + RETRY_S:
            self._due = now if self._due is None else min(self._due, now)
            self._backoff = 0.0

    # --- requests -----------------------------------------------------------------------------

    def is_due(self, now: float, interval: float) -> bool:
        """Return True if an echo request is to be sent now.

        `interval` is the one for remotes that answer. Frames that are received within it save the
        request. The first request comes one interval after the first call.
        """
        if self._due is None:
            self._due = now + interval
        if self._sent is not None and now >= self._sent + min(RETRY_S, interval):
            self._sent = None
            self._missed += 1
            if self._is_doubted and self._missed >= MISSED_MAX:
                self.is_pyvtep = self._is_doubted = False
        if self.is_pyvtep and not self._missed and self.last_heard is not None:
            self._due = max(self._due, self.last_heard + interval)
        return now >= self._due

    def request(self, now: float, interval: float) -> None:
        """Note that a request is sent."""
        self._sent = self.last_request = now
        self._unrefused += 1
        if self.is_refused and self._unrefused > MISSED_MAX:
            # The port is open by now, of a VTEP that does not answer; or a router is the better.
            self.is_refused = False
        if not self.is_pyvtep:
            # The second one comes soon: an ICMP error about the first one is reported then.
            self._due = now + (self._backoff or min(RETRY_S, interval))
            longest = max(interval, INTERVAL_MAX_S)
            self._backoff = min(longest, 2 * self._backoff) if self._backoff else interval
        elif self._missed < MISSED_MAX:
            self._due = now + min(RETRY_S, interval)  # A reply puts it off.
        else:
            self._due = now + interval

    # --- upgrades -----------------------------------------------------------------------------

    def export(self, now: float) -> list[object]:
        """Return the fields of a `LivenessRow` for another process."""
        heard = None if self.last_heard is None else now - self.last_heard
        replied = None if self.last_reply is None else now - self.last_reply
        return [self.is_pyvtep, self.is_refused, self._missed, heard, replied, self.rtt]

    def restore(self, row: LivenessRow, now: float) -> None:
        """Continue with the state of another process, unless more is known here already."""
        if self.last_heard is None:
            self.is_refused, self._missed = row.is_refused, row.missed
            self.last_heard = None if row.heard is None else now - row.heard
        if self.last_reply is None:
            self.is_pyvtep = row.is_pyvtep
            self.last_reply = None if row.replied is None else now - row.replied
            self.rtt = row.rtt
