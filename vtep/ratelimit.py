"""Rate limits of events, such as error messages and replies to unauthenticated requests."""


class TokenBucket:
    """A bucket that holds up to `burst` tokens, and gains `rate` tokens a second.

    It is full at first. Each event takes a token. No clock is read: the caller passes the time.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._filled = 0.0

    def take(self, now: float) -> bool:
        """Take a token at `now` (seconds). Returns: False if there is none.

        A clock that goes back adds no tokens.
        """
        elapsed = max(0.0, now - self._filled)
        self._tokens = min(self._burst, self._tokens + elapsed * self._rate)
        self._filled = max(self._filled, now)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
