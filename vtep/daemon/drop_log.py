"""The lines of the log about drops."""

from collections.abc import Iterable

from vtep.counters import BY_DESIGN, Counters, Drop, Notice, Reason
from vtep.daemon.unmatched import UnmatchedVteps

_NAMES_MAX = 3
"""Names of VNIs or TAPs in one line of the log."""

_NOTHING: dict[Reason, int] = dict.fromkeys((*Drop, *Notice), 0)


class DropLog:
    """Makes the lines of the log about drops: at most one in `interval` seconds for each reason.

    Without them, only an administrator who reads the counters would notice. `unmatched` explains
    some.
    """

    def __init__(self, interval: float = 60.0, unmatched: UnmatchedVteps | None = None) -> None:
        self._interval = interval
        self._unmatched = unmatched or UnmatchedVteps()
        self._silent_until: dict[Reason, float] = {}
        # What was reported so far, of the counters noted for the last and for the next lines.
        self._reported: dict[Counters, dict[Reason, int]] = {}
        self._noted: dict[Counters, dict[Reason, int]] = {}
        self._changed: list[tuple[str, Counters, dict[Reason, int]]] = []

    def note(self, name: str, counters: Counters, expected: Iterable[Reason] = ()) -> None:
        """Compare counters with what was reported, before `news` is called.

        `name` is that of their VNI or of the TAP that several VNIs share, or empty. All counters
        are to be noted before each call of `news`, which can be done in steps. Losses for reasons
        that are `expected` now are never reported.
        """
        reported = self._reported.get(counters, _NOTHING)
        for reason in expected:
            reported = {**reported, reason: counters.losses()[reason]}
        if counters.losses() != reported:
            if reported is _NOTHING:
                reported = _NOTHING.copy()
            self._changed.append((name, counters, reported))
        self._noted[counters] = reported

    def news(self, now: float, parts: Iterable[tuple[str, Counters]] = ()) -> list[str]:
        """Return the lines to log at `now` (seconds) about drops that were not reported yet.

        `parts` are names and counters to note first.
        """
        for part in parts:
            self.note(*part)
        self._reported, self._noted = self._noted, {}
        changed, self._changed = self._changed, []
        losses: dict[Reason, list[tuple[int, str, Counters]]] = {}
        for name, counters, before in changed:
            for reason, count in counters.losses().items():
                if (
                    count != before[reason]
                    and now >= self._silent_until.get(reason, now)
                    and reason not in BY_DESIGN
                ):
                    losses.setdefault(reason, []).append((count - before[reason], name, counters))
                    before[reason] = count
        for reason in losses:
            self._silent_until[reason] = now + self._interval
        return [self._line(reason, of_reason) for reason, of_reason in losses.items()]

    def _line(self, reason: Reason, losses: list[tuple[int, str, Counters]]) -> str:
        last = losses[-1][2].last_source.get(reason)
        return _line(reason, losses, self._unmatched.explain(reason, last))


def _line(reason: Reason, losses: list[tuple[int, str, Counters]], why: str | None) -> str:
    total = sum(count for count, _, _ in losses)
    names = [name for _, name, _ in losses if name]
    where = ", ".join(names[:_NAMES_MAX])
    if len(names) > _NAMES_MAX:
        where += f" and {len(names) - _NAMES_MAX} more"
    last = ", ".join(filter(None, (_last(reason, losses[-1][2]), why)))
    details = "; ".join(filter(None, (where, f"last: {last}" if last else "")))
    what = f"dropped {total}" if isinstance(reason, Drop) else f"{total}"
    return f"{what} x {reason}: {reason.meaning}" + (f" ({details})" if details else "")


def _last(reason: Reason, counters: Counters) -> str:
    """Return the source and the detail of the last drop, as far as they are known."""
    parts = [counters.last_source.get(reason, "")]
    if isinstance(reason, Drop):
        parts.append(counters.describe_last(reason) or "")
    return ", ".join(filter(None, parts))
