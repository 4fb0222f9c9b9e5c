"""The source of all data on the page: one connection to a VTEP, shared by all browsers.

Nothing runs by itself. A request of a browser asks the VTEP, unless the last answer is recent: so
the VTEP is asked at most once a second however many pages are open, and never while none is.
"""

import gzip
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from attrs import field, frozen

from vtep.control.client import DisconnectedError
from vtep.control.schema import RecentDrop, SegmentStatus, Status
from vtep.doctor.advice import advice
from vtep.errors import ConfigError, VtepError

STATUS_INTERVAL_S = 1.0
"""Seconds between two requests for the status."""

FDB_INTERVAL_S = 0.5
"""Seconds between two requests for FDB entries, of whatever VNI. Each takes the VTEP some five
milliseconds, in slices of half a millisecond."""

FDB_MAX_AGE_S = 5.0
"""Seconds for which FDB entries are shown before the VTEP is asked again."""

_FDB_CACHED_MAX = 64
"""Answers with FDB entries that are kept."""

_Result = TypeVar("_Result")


class StatusClient(Protocol):
    """The part of `vtep.control.Client` that the page uses; it changes nothing."""

    def status(self) -> Status:
        """Return the state of the VTEP."""

    def call(self, method: str, **params: Any) -> Any:
        """Call a method by name."""

    def close(self) -> None:
        """Disconnect."""


class BusyError(Exception):
    """The VTEP has been asked a moment ago; the browser has to repeat its request."""


@frozen
class Document:
    """A JSON document, in both forms in which browsers take it."""

    plain: bytes
    packed: bytes = field(repr=False)
    """The same, compressed by gzip."""

    @classmethod
    def of(cls, value: object) -> "Document":
        """Format a value."""
        plain = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
        # The status of 50 VNIs with 64 remotes each has 1.5 MB, and shrinks to a twentieth. Level
        # 1 takes some milliseconds for it, once for all browsers.
        return cls(plain, gzip.compress(plain, 1, mtime=0))


@frozen
class _Answer:
    """An answer of the VTEP, and when it was asked for, in seconds."""

    asked: float
    document: Document


class SharedConnection:
    """The answers of a VTEP for all browsers, and the connection to it.

    `connect` opens a connection, or raises VtepError. All methods may be called by several threads.
    """

    def __init__(
        self, connect: Callable[[], StatusClient], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._connect = connect
        self._clock = clock
        # Held while the VTEP is asked: requests that arrive meanwhile share its answer.
        self._lock = threading.Lock()
        self._client: StatusClient | None = None
        self._status: _Answer | None = None
        self._fdb: OrderedDict[tuple[object, ...], _Answer] = OrderedDict()
        self._fdb_asked = float("-inf")
        self._failure: VtepError | None = None
        self._failed = float("-inf")

    def status(self) -> tuple[Document, float]:
        """Return the state of the VTEP, or why there is none, as the document for browsers.

        Its `state` is "connected" with a `status`, or "reconnecting" with an `error`.

        Returns: the document, and the seconds after which there can be a newer one.
        """
        with self._lock:
            now = self._clock()
            answer = self._status
            if answer is None or now - answer.asked >= STATUS_INTERVAL_S:
                answer = self._status = _Answer(now, Document.of(self._ask_status()))
            return answer.document, max(0.0, answer.asked + STATUS_INTERVAL_S - self._clock())

    def _ask_status(self) -> dict[str, Any]:
        try:
            status = self._ask(lambda client: client.status())
        except VtepError as error:
            return {"state": "reconnecting", "error": str(error)}
        return {"state": "connected", "status": with_remedies(status)}

    def fdb(self, vni: int, page: int | None = 0, mac: str | None = None) -> Document:
        """Return some 500 FDB entries of a VNI from a page on, or the entry of a MAC.

        The document is an `FdbSample`.

        Raises: VtepError if the VTEP refuses or does not answer; BusyError if it was asked for
            others a moment ago.
        """
        key = (vni, page, mac)
        with self._lock:
            now = self._clock()
            answer = self._fdb.get(key)
            if answer is not None and now - answer.asked < FDB_MAX_AGE_S:
                return answer.document
            if now - self._fdb_asked < FDB_INTERVAL_S:
                if answer is None:
                    raise BusyError
                return answer.document
            self._fdb_asked = now
            macs = [] if mac is None else [mac]
            sample = self._ask(
                lambda client: client.call("fdb.sample", vni=vni, page=page, macs=macs)
            )
            answer = self._fdb[key] = _Answer(now, Document.of(sample))
            self._fdb.move_to_end(key)
            if len(self._fdb) > _FDB_CACHED_MAX:
                self._fdb.popitem(last=False)
            return answer.document

    def _ask(self, request: Callable[[StatusClient], _Result]) -> _Result:
        """Return the answer to a request. Raises: VtepError.

        After a failure, the VTEP is not asked again for a second: if its process is stopped, each
        attempt takes seconds, for which all browsers wait.
        """
        if self._failure is not None and self._clock() - self._failed < STATUS_INTERVAL_S:
            raise self._failure
        try:
            result = self._ask_connected(request)
        except ConfigError:  # The VTEP answers, and the browser has asked for nonsense.
            raise
        except VtepError as error:
            self._failure, self._failed = error, self._clock()
            self.close()
            raise
        self._failure = None
        return result

    def _ask_connected(self, request: Callable[[StatusClient], _Result]) -> _Result:
        """Return the answer to a request, over the connection or a new one. Raises: VtepError."""
        if self._client is not None:
            # A VTEP that was replaced has closed the connection, which is noticed only now.
            try:
                return request(self._client)
            except DisconnectedError:
                self.close()
        self._client = self._connect()
        return request(self._client)

    def close(self) -> None:
        """Disconnect; the next request connects again."""
        client, self._client = self._client, None
        if client is not None:
            client.close()


def with_remedies(status: Status) -> dict[str, Any]:
    """Return a status in which each recent drop has its `remedy`, in words."""
    return {
        **status,
        "recent_drops": _advised(status["recent_drops"], None),
        "segments": [
            {**segment, "recent_drops": _advised(segment["recent_drops"], segment)}
            for segment in status["segments"]
        ],
    }


def _advised(drops: list[RecentDrop], segment: SegmentStatus | None) -> list[dict[str, Any]]:
    return [{**drop, "remedy": advice(drop, segment)} for drop in drops]
