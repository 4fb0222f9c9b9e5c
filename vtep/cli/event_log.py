"""`--debug`: every change of a VTEP, in its log."""

import logging
import time

from vtep import Vtep
from vtep.cli.monitor import line
from vtep.control.events import Events
from vtep.control.schema import Event

log = logging.getLogger("vtep")

_LINES_A_SECOND = 100
"""More are counted only: a scan of MACs would fill a disk."""

_WHY = {
    ("fdb", "added"): "learned from a frame",
    ("fdb", "moved"): "its frames come from there now",
    ("fdb", "expired"): "nothing came from it for --ageing seconds",
}


class Trace:
    """Logs what happens in a VTEP, up to so many lines a second."""

    def __init__(self, vtep: Vtep) -> None:
        self._second = 0
        self._lines = 0
        self.end = Events(vtep).watch(self._changed)
        """Ends it."""

    def _changed(self, event: Event) -> None:
        second = int(time.monotonic())
        if second != self._second:
            if self._lines > _LINES_A_SECOND:
                log.debug("%d more changes were not logged", self._lines - _LINES_A_SECOND)
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines <= _LINES_A_SECOND:
            thing, what = event.get("object", ""), event["event"]
            why = _WHY.get((thing, what))
            if why is None or (what == "added" and event.get("state") != "dynamic"):
                why = "asked for" if thing in ("fdb", "remote", "config") else what
            log.debug("%s %s: %s (%s)", thing, what, line(event).removeprefix("Deleted "), why)
