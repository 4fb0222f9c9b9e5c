"""The speaker's connections to the control socket of the daemon that has started it.

There are two: one for requests, and one on which a request for the next configuration waits. If
they close, the daemon has ended, or another process has taken over (an upgrade): the same path
leads to that process then, and it knows the token of this one.
"""

import asyncio
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from attrs import define, field

from vtep import __version__
from vtep.control import jsonrpc
from vtep.control.batches import split
from vtep.control.jsonrpc import Code
from vtep.errors import VtepError
from vtep.evpn import report_parts

_ANSWER_MAX = 256 << 20
"""Octets of an answer, such as all entries of an FDB."""

_TRIES_S = 60.0
"""Seconds for a daemon that is there to answer: one that takes over may have much to do."""

_PAUSE_S = 0.05

_PAUSE_MAX_S = 1.0
"""Seconds before a request is repeated on another connection, after several that have closed."""

_OWN_FAULT = (Code.PARSE_ERROR, Code.INVALID_REQUEST)
"""Errors without an id that are about the request, and not about the connection."""


class DaemonGoneError(VtepError):
    """The daemon has ended, or does not know this speaker."""


class _ClosedError(Exception):
    """The connection has closed, or another process serves the socket."""


@define
class _Connection:
    """A connection with one request at a time."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    _number: int = 0
    _lock: asyncio.Lock = field(factory=asyncio.Lock)

    @classmethod
    async def open(cls, path: Path) -> "_Connection":
        """Connect. Raises: OSError."""
        return cls(*await asyncio.open_unix_connection(os.fspath(path), limit=_ANSWER_MAX))

    async def call(self, method: str, params: dict[str, Any]) -> Any:
        """Call a method. Raises: VtepError if it is refused; _ClosedError."""
        async with self._lock:
            self._number += 1
            line = jsonrpc.request(method, params, self._number)
            if len(line) > jsonrpc.LINE_MAX:
                raise VtepError(f"{method}: the request is too large: it has {len(line)} octets")
            try:
                self.writer.write(line + b"\n")
                await self.writer.drain()
                while True:
                    answer = await self.reader.readuntil(b"\n")
                    found = json.loads(answer)
                    if found.get("id") == self._number:
                        break
                    if "error" in found and found.get("id") is None:
                        if found["error"].get("code") in _OWN_FAULT:
                            break
                        raise _ClosedError(found["error"].get("message"))
            except (OSError, asyncio.IncompleteReadError, RuntimeError) as error:
                raise _ClosedError(str(error)) from error
        if "error" in found:
            if found["error"].get("code") == Code.HANDED_OVER:
                raise _ClosedError("another process has taken over")
            raise VtepError(str(found["error"].get("message")))
        return found["result"]

    def close(self) -> None:
        """Close at once."""
        with suppress(OSError, RuntimeError):
            self.writer.transport.abort()


class DaemonLink:
    """A client of the daemon, for the speaker only.

    Each method raises DaemonGoneError once there is no daemon that knows this process.
    """

    def __init__(self, path: Path, token: str) -> None:
        self.path: Final = path
        self._token = token
        self._requests: _Connection | None = None
        self._configs: _Connection | None = None
        self._attaching = asyncio.Lock()

    async def attach(self) -> dict[str, Any]:
        """Show to the daemon that this is its speaker. Returns: the configuration.

        Raises: DaemonGoneError.
        """
        deadline = asyncio.get_running_loop().time() + _TRIES_S
        while True:
            connection = None
            try:
                async with asyncio.timeout_at(deadline):
                    connection = await _Connection.open(self.path)
                    config: dict[str, Any] = await connection.call(
                        "evpn.attach",
                        {"token": self._token, "pid": os.getpid(), "version": __version__},
                    )
            except (ConnectionRefusedError, FileNotFoundError) as error:
                raise DaemonGoneError("the daemon has ended") from error
            except VtepError as error:
                if connection is not None:
                    connection.close()
                raise DaemonGoneError(str(error)) from error
            except (OSError, _ClosedError, TimeoutError) as error:
                # It may be about to hand over, or its accept queue may be full.
                if connection is not None:
                    connection.close()
                if asyncio.get_running_loop().time() >= deadline:
                    raise DaemonGoneError(f"the daemon does not answer: {error}") from error
                await asyncio.sleep(_PAUSE_S)
            else:
                self._requests = connection
                return config

    async def call(self, method: str, **params: Any) -> Any:
        """Call a method; again if another process takes over. Raises: VtepError; see `attach`."""
        pause = 0.0
        while True:
            connection = self._requests
            if connection is None:
                await self._attach_again()
                continue
            try:
                return await connection.call(method, params)
            except _ClosedError:
                connection.close()
                if self._requests is connection:
                    self._requests = None
                # At once after a takeover. But if connections go on closing, the daemon, which
                # forwards frames, must not be kept busy with new ones.
                await asyncio.sleep(pause)
                pause = min(2 * pause + _PAUSE_S, _PAUSE_MAX_S)

    async def _attach_again(self) -> None:
        async with self._attaching:
            if self._requests is None:
                await self.attach()

    async def report(self, report: dict[str, Any]) -> None:
        """Send a report for the status, without what exceeds its limits."""
        for part in report_parts.parts(report_parts.bounded(report)):
            await self.call("evpn.report", token=self._token, **part)

    async def next_config(self, after: int) -> dict[str, Any]:
        """Wait for a configuration of another generation than `after`, and return it."""
        pause = 0.0
        while True:
            if self._configs is None:
                if self._requests is None:
                    await self._attach_again()
                try:
                    self._configs = await _Connection.open(self.path)
                except OSError:
                    # Told apart from a full queue by the other connection.
                    await self.call("ping")
                    await asyncio.sleep(_PAUSE_S)
                    continue
            connection = self._configs
            try:
                config: dict[str, Any] = await connection.call(
                    "evpn.config", {"token": self._token, "after": after}
                )
            except _ClosedError:
                connection.close()
                self._configs = None
                await self.call("ping")
                await asyncio.sleep(pause)
                pause = min(2 * pause + _PAUSE_S, _PAUSE_MAX_S)
            except VtepError as error:
                connection.close()
                self._configs = None
                raise DaemonGoneError(str(error)) from error
            else:
                return config

    async def batch(
        self, method: str, vni: int, changes: Sequence[dict[str, Any]]
    ) -> list[tuple[dict[str, Any], str]]:
        """Apply changes in batches (`fdb.batch`, `neigh.batch`).

        Returns: those that were refused, each with the reason.
        """
        refused = []
        done = 0
        for part in split(changes):
            try:
                answer = await self.call(method, vni=vni, changes=part)
            except DaemonGoneError:
                raise
            except VtepError as error:  # Such as a VNI that was deleted meanwhile.
                refused += [(change, str(error)) for change in changes[done:]]
                break
            done += len(part)
            refused += [(part[each["index"]], each["error"]) for each in answer["errors"]]
        return refused

    def close(self) -> None:
        """Disconnect."""
        for connection in (self._requests, self._configs):
            if connection is not None:
                connection.close()
