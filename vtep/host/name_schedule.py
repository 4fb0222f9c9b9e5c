"""When host names are looked up, and what becomes of the answers. No I/O; time is passed in.

A name that has been resolved is looked up again when its TTL expires (RFC 1035, section 3.2.1). A
failure changes no addresses, since hosts outlive their name servers, and is retried, first soon
and then less and less often.
"""

from collections.abc import Iterable, Mapping

from attrs import define, field, frozen

from vtep.wire.address import Address

TTL_MIN_S = 5.0
"""Shortest pause after an answer in seconds, for names whose TTL is 0."""

TTL_MAX_S = 3600.0
"""Longest pause after an answer in seconds: a TTL is an upper limit, and a query is cheap."""

TTL_UNKNOWN_S = 30.0
"""Pause in seconds after an answer without a TTL, such as one from /etc/hosts."""

RETRY_MIN_S = 1.0
"""Pause in seconds after the first failure; it doubles with each."""

RETRY_MAX_S = 30.0
"""Longest pause after a failure in seconds."""


@frozen
class NameAnswer:
    """The outcome of looking up a name."""

    addresses: tuple[Address, ...] = ()
    ttl: float | None = None
    """Seconds for which it holds; None if that is not known."""
    error: str = ""
    """Why there are no addresses; empty if there are some."""
    failed: frozenset[int] = frozenset()
    """IP versions whose name servers have failed: that there are no addresses means nothing."""


@define
class NameState:
    """The state of a name: its addresses, and when it is looked up next."""

    due: float
    """When it is to be looked up next."""
    addresses: tuple[Address, ...] = ()
    """The addresses of the last good answer, sorted."""
    error: str = ""
    """Why the last lookup has failed; empty if it has not, or if there was none yet."""
    failures: int = 0
    """Failed lookups since the last good answer."""
    is_resolved: bool = False
    """True after the first good answer."""
    is_busy: bool = False
    """True while it is looked up."""
    again: bool = field(default=False)
    """True if it is to be looked up once more, since this was asked for while it was looked up."""
    began: float = 0.0
    """When the last lookup began."""


class NameSchedule:
    """The names of a VTEP, with what is known of each."""

    def __init__(self) -> None:
        self._states: dict[str, NameState] = {}

    @property
    def states(self) -> Mapping[str, NameState]:
        """The names that are wanted, with their states."""
        return self._states

    def want(self, names: Mapping[str, Iterable[Address]], now: float) -> None:
        """Replace the names. New ones begin with the given addresses, and are due at once."""
        states = {}
        for name, addresses in names.items():
            state = self._states.get(name)
            states[name] = state or NameState(due=now, addresses=_sorted(addresses))
        self._states = states

    def delay(self, now: float) -> float | None:
        """Return the seconds until a name is due; None if there is none to wait for."""
        times = [state.due for state in self._states.values() if not state.is_busy]
        return max(0.0, min(times) - now) if times else None

    def take_due(self, now: float) -> list[str]:
        """Return the names that are due. Each is busy until `on_answer` is called for it."""
        due = [
            name for name, state in self._states.items() if not state.is_busy and state.due <= now
        ]
        for name in due:
            self._states[name].is_busy = True
            self._states[name].began = now
        return due

    def on_answer(self, name: str, answer: NameAnswer, now: float) -> bool:
        """Take an answer.

        Returns: whether the addresses have changed.
        """
        state = self._states.get(name)
        if state is None or not state.is_busy:  # It is not wanted any more.
            return False
        state.is_busy = False
        before = state.addresses
        if answer.addresses:
            kept = [each for each in before if each.version in answer.failed]
            state.addresses = _sorted((*answer.addresses, *kept))
            state.is_resolved, state.error, state.failures = True, "", 0
            pause = TTL_UNKNOWN_S if answer.ttl is None else answer.ttl
            pause = min(max(pause, TTL_MIN_S), TTL_MAX_S)
        else:
            state.error = answer.error or "no address"
            # With the exponent limited: after some weeks, the power would be no float any more.
            pause = min(RETRY_MIN_S * 2 ** min(state.failures, 10), RETRY_MAX_S)
            state.failures += 1
        state.due = now if state.again else now + pause
        state.again = False
        return state.addresses != before

    def look_up_again(self) -> None:
        """Make all names due at once."""
        for state in self._states.values():
            _expire(state)

    def retry_failed(self, now: float) -> None:
        """Make the names due that could not be looked up: the network has changed.

        None is looked up more often than after `RETRY_MIN_S`, since routes may change all the time.
        """
        for state in self._states.values():
            if state.error and not state.is_busy:
                state.due = min(state.due, max(now, state.began + RETRY_MIN_S))


def _expire(state: NameState) -> None:
    if state.is_busy:
        state.again = True
    else:
        state.due = 0.0


def _sorted(addresses: Iterable[Address]) -> tuple[Address, ...]:
    """Return different addresses in one order: name servers rotate those of their answers."""
    return tuple(sorted(set(addresses), key=lambda each: (each.version, int(each), str(each))))
