"""The time that a speaker has to start, and to report; one that exceeds it is killed."""

import asyncio
import logging
import signal
from collections.abc import Callable

from vtep.control.evpn_schema import REPORT_LIMIT_S
from vtep.evpn.process import SpeakerProcess

log = logging.getLogger("vtep")

_ATTACH_S = 60.0
"""Seconds for a speaker to start and connect, most of which it takes to load its modules."""

_SILENCE_S = 60.0
"""Seconds without a report, after which a speaker is killed, since it hangs."""


class SilenceAlarm:
    """A timer for the next sign of life of the speaker."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def on_started(self, speaker: SpeakerProcess) -> None:
        """Give a speaker that is not attached yet the time to do so."""
        self._set(_ATTACH_S, lambda: _kill(speaker, "start"))

    def on_report(self, speaker: SpeakerProcess) -> None:
        """Give a speaker that has attached, or reported, the time for its next report."""
        self._set(REPORT_LIMIT_S, lambda: self._on_late(speaker))

    def cancel(self) -> None:
        """Wait for nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, seconds: float, action: Callable[[], None]) -> None:
        self.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, action)

    def _on_late(self, speaker: SpeakerProcess) -> None:
        log.error(
            "EVPN speaker, process %d: it has not reported for %.0f s; it is killed after %.0f s, "
            "and started again",
            *(speaker.pid, REPORT_LIMIT_S, _SILENCE_S),
        )
        self._set(_SILENCE_S - REPORT_LIMIT_S, lambda: _kill(speaker, "report any more"))


def _kill(speaker: SpeakerProcess, failing: str) -> None:
    is_sent = speaker.send(signal.SIGKILL)
    log.error(
        "EVPN speaker, process %d: %s, since it does not %s",
        speaker.pid,
        "killed" if is_sent else "given up, and left alone as it may be another process",
        failing,
    )
