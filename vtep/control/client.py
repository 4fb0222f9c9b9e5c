"""The client of the control socket: the verbs of `pyvtep`, as methods.

with Client() as vtep:
    vtep.fdb.add("02:00:00:00:00:01", dst="192.0.2.2")
    for entry in vtep.fdb.show():
        print(entry["mac"], entry["destinations"])

A segment is named by `vni` or by `dev`, its TAP; neither is needed where there is only one. Every
call raises VtepError where the VTEP refuses, ConfigError where what is asked for makes no sense,
each with one line that says why; nothing has changed then.
"""

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from os import PathLike, fspath
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vtep.control import jsonrpc, paths
from vtep.control.jsonrpc import Code
from vtep.control.schema import Event, FdbEntry, Neighbour, RemoteRow, Segment, Stats
from vtep.errors import ConfigError, VtepError

_TIMEOUT = 30.0
"""Seconds for a VTEP to do something and to say so."""


class DisconnectedError(VtepError):
    """The VTEP has ended, or is not there, or does not answer."""


class Client:
    """A connection to a running VTEP, over its control socket.

    Without `path` it is the one that is found: see `paths.find`. Raises VtepError where none is.
    """

    def __init__(
        self, path: str | PathLike[str] | None = None, *, timeout: float = _TIMEOUT
    ) -> None:
        self.path = Path(path) if path is not None else paths.find()
        self._timeout = timeout
        self._number = 0
        self._events: list[Event] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(fspath(self.path))
        except OSError as error:
            self._socket.close()
            raise DisconnectedError(
                f"--socket {self.path}: no pyvtep answers there ({error.strerror or error})"
            ) from error
        self._lines = self._socket.makefile("rb")
        self.fdb = FdbVerbs(self)
        self.remote = RemoteVerbs(self)
        self.vni = VniVerbs(self)
        self.neigh = NeighVerbs(self)

    def call(self, method: str, **params: Any) -> Any:
        """Call a method of the VTEP by name; parameters that are None are left out."""
        self._number += 1
        given = {name: value for name, value in params.items() if value is not None}
        try:
            self._socket.sendall(jsonrpc.request(method, given, self._number) + b"\n")
            while (answer := self._receive()).get("id") != self._number:
                if "error" in answer:  # About the line, not about a request in it.
                    break
                if answer.get("method") == jsonrpc.EVENT:
                    self._events.append(answer["params"])
        except TimeoutError as error:
            raise DisconnectedError(
                f"{self.path}: no answer within {self._timeout:g} seconds"
            ) from error
        except OSError as error:
            raise DisconnectedError(f"{self.path}: {error.strerror or error}") from error
        if "error" in answer:
            raise _refusal(method, answer["error"])
        return answer["result"]

    def stats(self, *, vni: int | None = None, dev: str | None = None) -> Stats:
        """What every segment has counted, or one of them."""
        result: Stats = self.call("stats", vni=vni, dev=dev)
        return result

    def set(self, *, vni: int | None = None, dev: str | None = None, **options: Any) -> Segment:
        """Change options of a segment while it runs; all of them, or none."""
        result: Segment = self.call("set", vni=vni, dev=dev, options=options)
        return result

    def reload(self) -> list[str]:
        """Have the configuration file read again; what was changed, a line for each."""
        result: list[str] = self.call("reload")
        return result

    def monitor(self) -> Iterator[Event]:
        """Every change from now on, until the VTEP ends.

        What comes from it is typed as `schema.Event`. To see no gap, call this, take what there is
        with `fdb.show()`, and then iterate.
        """
        self.call("monitor.subscribe")
        return self._monitor()

    def _monitor(self) -> Iterator[Event]:
        self._socket.settimeout(None)
        try:
            while True:
                yield from self._told()
                with suppress(OSError):
                    message = self._receive()
                    if message.get("method") == jsonrpc.EVENT:
                        self._events.append(message["params"])
        except DisconnectedError:
            return
        finally:
            self._socket.settimeout(self._timeout)

    def _told(self) -> list[Event]:
        told, self._events = self._events, []
        return told

    def _receive(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line.endswith(b"\n"):
            raise DisconnectedError(f"{self.path}: the VTEP has ended")
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise DisconnectedError(f"{self.path}: what answers there is no pyvtep")
        return answer

    def close(self) -> None:
        """Disconnect."""
        self._lines.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
