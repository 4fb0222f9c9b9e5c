"""Rate limits of events: error messages, replies to unauthenticated requests, frames of a storm."""

from collections.abc import Hashable


class TokenBucket:
    """A bucket that holds up to `burst` tokens, and gains `rate` tokens a second.

    It is full at first. Each event takes a token. No clock is read: the caller passes the time.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._filled = 0.0

    def fill(self, now: float) -> float:
        """Add the tokens gained until `now` (seconds). A clock that goes back adds none.

        Returns: the tokens in the bucket; negative if it is in debt.
        """
        elapsed = now - self._filled
        if elapsed > 0:
            self._tokens = min(self._burst, self._tokens + elapsed * self._rate)
            self._filled = now
        return self._tokens

    def take(self, now: float, count: int = 1) -> bool:
        """Take `count` tokens at `now` (seconds), all or none. Returns: False if there is not one.

        One token is enough: the bucket then is in debt for the others. So a `count` above the burst
        is possible, and the rate still holds.
        """
        if self.fill(now) < 1:
            return False
        self._tokens -= count
        return True

    @property
    def is_full(self) -> bool:
        """True if no token is missing since the last call of `fill` or `take`."""
        return self._tokens >= self._burst


class LineLimit:
    """The limit of log lines that traffic can cause: for each reason, `burst` lines at once, and
    one in `interval` seconds. Lines that are left out are counted.

    Reasons are of a closed set, such as the names of errors, as each takes memory.
    """

    def __init__(self, interval: float = 60.0, burst: int = 1) -> None:
        self._interval = interval
        self._burst = burst
        self._buckets: dict[Hashable, TokenBucket] = {}
        self._left_out: dict[Hashable, int] = {}

    def admit(self, now: float, reason: Hashable = "") -> str | None:
        """Return what a line for a reason ends with at `now` (seconds), or None to leave it out.

        Its end says how many lines were left out before; it is empty for none.
        """
        bucket = self._buckets.get(reason)
        if bucket is None:
            bucket = self._buckets[reason] = TokenBucket(1 / self._interval, self._burst)
        if not bucket.take(now):
            self._left_out[reason] = self._left_out.get(reason, 0) + 1
            return None
        count = self._left_out.pop(reason, 0)
        return f" ({count} more lines like this were left out)" if count else ""
