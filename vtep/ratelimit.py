"""Rate limits of events: error messages, replies to unauthenticated requests, frames of a storm."""


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
