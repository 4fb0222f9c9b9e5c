"""The client of the control socket: the commands of `pyvtep` as methods.

with Client() as vtep:
    vtep.fdb.add("02:00:00:00:00:01", dst="192.0.2.2")
    for entry in vtep.fdb.show():
        print(entry["mac"], entry["destinations"])

A segment is named by `vni` or by `dev`, its TAP; neither is needed if there is only one. Every call
raises ConfigError if the request makes no sense, and VtepError if the VTEP refuses it, each with a
line that says why; nothing has changed then.
"""

import json
import socket
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from vtep.control import jsonrpc, socket_files
from vtep.control.access import READING
from vtep.control.choice import Candidate, SegmentName, choose, choose_having
from vtep.control.client_commands import (
    FdbCommands,
    LoopCommands,
    NeighCommands,
    RemoteCommands,
    StormCommands,
    VniCommands,
)
from vtep.control.json_items import ItemParser
from vtep.control.jsonrpc import Code
from vtep.control.schema import CaptureRequest, MonitorEvent, SegmentInfo, Stats, Status
from vtep.errors import ConfigError, VtepError

if TYPE_CHECKING:
    from vtep.control.frames import FrameStream

_TIMEOUT_S = 30.0
"""Time for a VTEP to execute a request and to answer."""

_UPGRADE_S = 600.0
"""Time for an upgrade: a new version may have to compile its fast path first. The running process
gives up before."""

_PING_TIMEOUT_S = 4.0
"""Time in which a VTEP answers a ping, unless its process is stopped or hangs."""

_BUFFER = 1 << 16
"""Octets that are read at a time."""

_RECONNECT_INTERVAL_S = 0.02
"""Pause between two attempts to connect while the accept queue of a VTEP is full."""


class DisconnectedError(VtepError):
    """The VTEP does not exist, has ended, or does not answer."""


def candidates(*, ask: bool = False) -> list[Candidate]:
    """Return the running pyvteps whose sockets are in the default directory.

    Each is asked for its identity, unless one of them is the only one in this network namespace;
    with `ask`, also then.
    """
    live = socket_files.live()
    here = [each.here for each in live if each.here is not False]
    return [_candidate(each, ask=ask or here != [True]) for each in live]


def _candidate(live: socket_files.LiveSocket, *, ask: bool) -> Candidate:
    here, segments = live.here is True, None
    if ask:
        with (
            suppress(VtepError, KeyError, TypeError),
            Client(live.path, timeout=_PING_TIMEOUT_S) as asked,
        ):
            process = asked.call("process.show")
            segments = tuple(SegmentName(**each) for each in process["segments"])
            here = process["netns"] is not None and process["netns"] == socket_files.namespace()
    return Candidate(live.path, live.pid, here, segments)


def find(
    *,
    vni: int | None = None,
    dev: str | None = None,
    changes: bool = True,
    every: bool = False,
    by_segment: bool = True,
) -> list[Candidate]:
    """Return the running pyvtep that a command without --socket is for; see `choice.choose`."""
    found = candidates()
    if not found:
        raise socket_files.none_found()
    return choose(found, vni=vni, dev=dev, changes=changes, every=every, by_segment=by_segment)


class Client:
    """A connection to a running VTEP, over its control socket.

    Without `path`, it is to the only VTEP of this network namespace, or to the only one that has
    the segment `vni` or `dev`. If there is none, it is to the only one of other network namespaces,
    for calls that change nothing. Raises VtepError if none is found.
    """

    def __init__(
        self,
        path: str | PathLike[str] | None = None,
        *,
        vni: int | None = None,
        dev: str | None = None,
        timeout: float = _TIMEOUT_S,
    ) -> None:
        self._elsewhere: Candidate | None = None
        if path is None:
            running = candidates(ask=vni is not None or dev is not None)
            if not running:
                raise socket_files.none_found()
            found = choose_having(running, vni, dev)
            path = found.path
            self._elsewhere = None if found.here else found
        self.path = Path(path)
        self._said_elsewhere = False
        self._timeout = timeout
        self._number = 0
        self._events: list[MonitorEvent] = []
        self._answers = False
        self._open()
        self.fdb = FdbCommands(self.call)
        self.remote = RemoteCommands(self.call)
        self.vni = VniCommands(self.call)
        self.neigh = NeighCommands(self.call)
        self.loop = LoopCommands(self.call)
        self.storm = StormCommands(self.call)

    def _open(self) -> None:
        """Open a connection. Raises: DisconnectedError."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(min(self._timeout, _PING_TIMEOUT_S))
        try:
            self._connect(time.monotonic() + min(self._timeout, _PING_TIMEOUT_S))
        except PermissionError as error:
            self._socket.close()
            raise DisconnectedError(
                f"--socket {self.path}: permission denied: run this with sudo, as the user that "
                "runs pyvtep, or as a member of its --control-group"
            ) from error
        except OSError as error:
            self._socket.close()
            if isinstance(error, ConnectionRefusedError) and not self.path.is_socket():
                raise DisconnectedError(f"--socket {self.path}: is not a socket") from error
            raise DisconnectedError(
                f"--socket {self.path}: no pyvtep answers there ({error.strerror or error})"
            ) from error
        self._lines = BufferedReader(self._socket.makefile("rb", 0), _BUFFER)

    def _connect(self, deadline: float) -> None:
        """Connect, once there is room in the accept queue of the VTEP. Raises: OSError."""
        while True:
            try:
                return self._socket.connect(fspath(self.path))
            except BlockingIOError:  # The accept queue is full; the kernel does not wait.
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_RECONNECT_INTERVAL_S)

    def call(self, method: str, **params: Any) -> Any:
        """Call a method of the VTEP by name, without the parameters that are None."""
        if self._elsewhere is not None:
            self._check(method, self._elsewhere)
        given = {name: value for name, value in params.items() if value is not None}
        while True:
            answer = self._ask_living(method, given)
            if "error" not in answer:
                return answer["result"]
            if answer["error"].get("code") != Code.HANDED_OVER:
                raise refusal(method, answer["error"])
            # An upgrade: the request was not executed, and the new process serves the same path.
            self.close()
            self._answers = False
            self._open()

    def items(self, method: str, **params: Any) -> Iterator[Any]:
        """Call a method whose result is a list of objects, and yield them as they arrive.

        Memory is needed for a part of them only. The connection is in use until the last one.
        """
        given = {name: value for name, value in params.items() if value is not None}
        while True:
            self.call("ping")  # It connects again after an upgrade.
            if self._elsewhere is not None:
                self._check(method, self._elsewhere)
            self._send(method, given, self._timeout)
            answer = yield from self._receive_items(method)
            if answer is None:
                return
            if "error" not in answer:
                yield from answer["result"]
                return
            if answer["error"].get("code") != Code.HANDED_OVER:
                raise refusal(method, answer["error"])
            self.close()
            self._answers = False
            self._open()

    def _receive_items(self, method: str) -> Generator[Any, None, dict[str, Any] | None]:
        """Yield the items of an answer. Returns: an answer that has no list in pages."""
        parser = ItemParser(self._number)
        while True:
            with self._connected():
                octets = self._lines.peek()
                octets = self._lines.read(octets.find(b"\n") + 1 or len(octets))
            if not octets:
                raise DisconnectedError(f"{self.path}: the VTEP has ended")
            try:
                items = parser.feed(octets)
            except ValueError:
                raise self._foreign() from None
            yield from items
            if not parser.has_ended:
                continue
            answer: dict[str, Any] | None = parser.message
            if answer is None or self._is_answer(answer, method):
                return answer
            parser = ItemParser(self._number)

    def _ask_living(self, method: str, given: dict[str, Any]) -> dict[str, Any]:
        """Send a request to a VTEP that has shown to be alive, and return its answer."""
        if not self._answers:  # Else a stopped process would execute it once it goes on.
            answer = self._ask("ping", {}, min(self._timeout, _PING_TIMEOUT_S))
            if answer.get("id") is None:  # It concerns the connection, such as too many clients.
                raise refusal("ping", answer["error"])
            if answer.get("error", {}).get("code") == Code.HANDED_OVER:
                return answer
            self._answers = True
        return self._ask(method, given, self._timeout)

    def _check(self, method: str, process: Candidate) -> None:
        """Raise VtepError if a method would change a VTEP of another network namespace."""
        if method not in READING:
            choose([process])
        if not self._said_elsewhere:
            import logging  # noqa: PLC0415  few clients need it

            self._said_elsewhere = True
            log = logging.getLogger("vtep")
            log.warning("%s in another network namespace answers: %s", process.process, self.path)

    def _ask(self, method: str, given: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Send a request and return its answer, which may be an error.

        Raises: DisconnectedError if there is none; VtepError if the request is too large, or if the
        VTEP has refused this client.
        """
        self._send(method, given, timeout)
        while True:
            with self._connected():
                message = self._receive()
            if self._is_answer(message, method):
                return message

    def _send(self, method: str, given: dict[str, Any], timeout: float) -> None:
        """Send a request. Raises: as `_ask`."""
        self._number += 1
        request = jsonrpc.request(method, given, self._number)
        if len(request) > jsonrpc.LINE_MAX:
            raise VtepError(
                f"{method}: the request is too large: it has {len(request)} octets, and may have "
                f"at most {jsonrpc.LINE_MAX} octets; ask for less at a time"
            )
        self._socket.settimeout(timeout)
        # A VTEP with too many clients may have disconnected us, after a line that says so.
        with self._connected(), suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(request + b"\n")

    def _is_answer(self, message: dict[str, Any], method: str) -> bool:
        """Return True for the answer to the last request. Side effect: an event is kept.

        Raises: VtepError for an error that concerns the connection, not a request.
        """
        if message.get("id") == self._number:
            return True
        if "error" in message:
            raise refusal(method, message["error"])
        if message.get("method") == jsonrpc.EVENT:
            self._events.append(message["params"])
        return False

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Raise DisconnectedError for a failure of the connection."""
        try:
            yield
        except TimeoutError as error:
            raise DisconnectedError(
                f"{self.path}: no answer within {self._socket.gettimeout():g} seconds; is its "
                "process stopped?"
            ) from error
        except OSError as error:
            raise DisconnectedError(f"{self.path}: {error.strerror or error}") from error

    def _foreign(self) -> DisconnectedError:
        return DisconnectedError(f"{self.path}: the process that answers is not a pyvtep")

    def stats(self, *, vni: int | None = None, dev: str | None = None) -> Stats:
        """Return the counters of every segment, or of one."""
        result: Stats = self.call("stats", vni=vni, dev=dev)
        return result

    def status(self, *, vni: int | None = None, dev: str | None = None) -> Status:
        """Return the state of the VTEP, with every segment and its remotes, or with one segment."""
        result: Status = self.call("status", vni=vni, dev=dev)
        return result

    def reset_stats(self) -> None:
        """Restart the counts that `stats` returns as `since_reset`; the counters go on."""
        self.call("stats.reset")

    def set(self, *, vni: int | None = None, dev: str | None = None, **options: Any) -> SegmentInfo:
        """Change options of a segment while it runs: all of them, or none."""
        result: SegmentInfo = self.call("set", vni=vni, dev=dev, options=options)
        return result

    def upgrade(self) -> str:
        """Replace the process by a new one, without a loss. Returns: a line that describes it."""
        timeout, self._timeout = self._timeout, _UPGRADE_S
        try:
            return str(self.call("upgrade"))
        finally:
            self._timeout = timeout

    def reload(self) -> str:
        """Make the VTEP read its configuration file again.

        Returns: a line that says what has changed.
        """
        result: str = self.call("reload")
        return result

    def capture(self, **wanted: Unpack[CaptureRequest]) -> "FrameStream":
        """Return an asynchronous iterator of frames, which has a connection of its own."""
        from vtep.control.frames import FrameStream  # noqa: PLC0415  few clients need it

        return FrameStream(self.path, remotes=True, **wanted)

    def monitor(self) -> Iterator[MonitorEvent]:
        """Subscribe to events, and return an iterator of them that ends with the VTEP.

        To miss no change, call this, then `fdb.show()`, and then iterate.
        """
        self.call("monitor.subscribe")
        return self._monitor()

    def _monitor(self) -> Iterator[MonitorEvent]:
        while True:
            events, self._events = self._events, []
            yield from events
            self._socket.settimeout(None)
            try:
                message = self._receive()
            except (OSError, DisconnectedError):
                return
            if message.get("method") == jsonrpc.EVENT:
                self._events.append(message["params"])

    def _receive(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except ConnectionResetError:  # The VTEP ended before it had read our request.
            line = b""
        if not line.endswith(b"\n"):
            raise DisconnectedError(f"{self.path}: the VTEP has ended")
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise self._foreign()
        return answer

    def close(self) -> None:
        """Disconnect."""
        self._lines.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def refusal(method: str, error: dict[str, Any]) -> VtepError:
    """Return the exception that stands for the error of an answer."""
    code, message = error.get("code"), str(error.get("message"))
    if code == Code.INVALID_PARAMS:
        return ConfigError(message)
    if code == Code.METHOD_NOT_FOUND:
        return VtepError(f"{method}: this pyvtep is of another version, and has no such command")
    return VtepError(message)
