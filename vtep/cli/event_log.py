"""`--debug`: a log line for every change in a VTEP."""

import logging
import time

from vtep import Vtep
from vtep.cli.log_json import FIELDS
from vtep.cli.monitor import format_event
from vtep.control.events import Events
from vtep.control.schema import MonitorEvent

log = logging.getLogger("vtep")

_LINES_PER_SECOND = 100
"""Rate limit: a scan of MAC addresses would fill a disk. Further changes are only counted."""

_FIELDS = ("object", "event", "vni", "dev", "mac", "state", "remote", "mtu", "traffic", "direction")
"""Keys of an event that are fields of its record, with --log-format json."""

_CAUSES = {
    ("fdb", "added"): "learned from a frame",
    ("fdb", "moved"): "frames from another remote",
    ("fdb", "expired"): "no frame for --ageing seconds",
}


class EventLog:
    """A subscription to the events of a VTEP, which logs them."""

    def __init__(self, vtep: Vtep) -> None:
        self._second = 0
        self._lines = 0
        self.end = Events(vtep).watch(self._log)
        """Cancels the subscription."""

    def _log(self, event: MonitorEvent) -> None:
        second = int(time.monotonic())
        if second != self._second:
            if self._lines > _LINES_PER_SECOND:
                log.debug("%d more changes were not logged", self._lines - _LINES_PER_SECOND)
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines <= _LINES_PER_SECOND:
            subject, verb = event.get("object", ""), event["event"]
            cause = _CAUSES.get((subject, verb))
            if cause is None or (verb == "added" and event.get("state") != "dynamic"):
                cause = "requested" if subject in ("fdb", "remote", "config") else verb
            text = format_event(event).removeprefix("Deleted ")
            fields = {name: event[name] for name in _FIELDS if name in event}  # type: ignore[literal-required]
            log.debug("%s %s: %s (%s)", *(subject, verb, text, cause), extra={FIELDS: fields})
