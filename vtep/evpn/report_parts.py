"""The speaker's report to the daemon, in parts of one request each. No I/O.

A request has a limit, and the daemon, which forwards frames, parses each one in its event loop. So
the lists that a fabric could make long without a limit are cut, and the rest is sent in parts.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, cast

from vtep.control.evpn_schema import ITEMS_MAX, VALUES_MAX, EvpnReport
from vtep.control.jsonrpc import LINE_MAX
from vtep.evpn.reports import empty_report

_OWN: Final = frozenset(("sessions", "segments"))
"""Lists whose length is that of the configuration of this host."""

_TEXT_MAX = 1000
"""Characters of a problem."""

_HEAD = 512
"""Octets of a request besides the members of the report, at most."""


def bounded(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report with at most `ITEMS_MAX` items in a list, of at most `VALUES_MAX` each.

    What is about the VNIs of this host comes first. Sessions and VNIs are never left out.
    """
    own = {segment["vni"] for segment in report["segments"]}
    found = dict(report)
    for name, value in report.items():
        if isinstance(value, list):
            items = [_bounded_item(item, own) for item in value]
            if name not in _OWN and len(items) > ITEMS_MAX:
                items = sorted(items, key=lambda item: not _is_about(item, own))[:ITEMS_MAX]
            found[name] = items
    return found


def _bounded_item(item: Any, own: set[int]) -> Any:
    if isinstance(item, str):
        return item[:_TEXT_MAX]
    return {
        key: sorted(value, key=lambda each: each not in own)[:VALUES_MAX]
        if isinstance(value, list) and len(value) > VALUES_MAX
        else value
        for key, value in item.items()
    }


def _is_about(item: Any, own: set[int]) -> bool:
    if isinstance(item, str):
        return False
    return item.get("vni") in own or not own.isdisjoint(item.get("vnis", ()))


def parts(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the parameters of the requests that make up a report.

    Each has `part`, its number from 0 on, and all but the last one `more`. A list is continued by
    that of the same name in the next part.
    """
    number, octets = 0, _HEAD
    part: dict[str, Any] = {}
    for name, value in report.items():
        for item in value if isinstance(value, list) else (value,):
            length = len(json.dumps(item, separators=(",", ":"))) + len(name) + 8
            if octets + length > LINE_MAX:
                yield {**part, "part": number, "more": True}
                number, octets, part = number + 1, _HEAD, {}
            if isinstance(value, list):
                part.setdefault(name, []).append(item)
            else:
                part[name] = item
            octets += length
    yield {**part, "part": number}


class ReportCollector:
    """The parts of a report, until it has all of them."""

    def __init__(self) -> None:
        self._found: dict[str, Any] = {}
        self._next = 0

    def add(self, part: Iterable[tuple[str, Any]], number: int, *, more: bool) -> EvpnReport | None:
        """Take a part. Returns: the report, if this was its last part; else None.

        A part is ignored if another process has got the one before it, or if it is repeated, as the
        speaker has not got the answer.
        """
        if number == 0:
            self._found = cast("dict[str, Any]", empty_report())
        elif number != self._next:
            return None
        for name, value in part:
            held = self._found.get(name)
            if isinstance(held, list) and isinstance(value, list):
                held += value
            else:
                self._found[name] = value
        self._next = number + 1 if more else 0
        return None if more else cast("EvpnReport", self._found)
