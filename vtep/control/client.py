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
import time
from collections.abc import Iterator
from contextlib import suppress
from os import PathLike, fspath
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vtep.control import jsonrpc, socket_files
from vtep.control.choice import READS, Candidate, choose
from vtep.control.choice import Segment as Named
from vtep.control.jsonrpc import Code
from vtep.control.schema import Event, FdbEntry, Neighbour, RemoteRow, Segment, Stats
from vtep.errors import ConfigError, VtepError

_TIMEOUT = 30.0
"""Seconds for a VTEP to do something and to say so."""

_ALIVE = 4.0
"""Seconds in which a VTEP says anything at all, unless its process is stopped, or hangs."""

_PAUSE = 0.02
"""Seconds between two attempts to get into the queue of a VTEP."""


class DisconnectedError(VtepError):
    """The VTEP has ended, or is not there, or does not answer."""


def candidates() -> list[Candidate]:
    """Return the running pyvteps whose sockets are in the default folder.

    They are asked who they are, unless one of them is the only one in this network namespace.
    """
    live = socket_files.live()
    here = [each.here for each in live if each.here is not False]
    return [_candidate(each, ask=here != [True]) for each in live]


def _candidate(live: socket_files.Live, *, ask: bool) -> Candidate:
    here, segments = live.here is True, None
    if ask:
        with suppress(VtepError, KeyError, TypeError), Client(live.path, timeout=_ALIVE) as asked:
            process = asked.call("process.show")
            segments = tuple(Named(**each) for each in process["segments"])
            here = process["netns"] is not None and process["netns"] == socket_files.namespace()
    return Candidate(live.path, live.pid, here, segments)


def find(
    *, vni: int | None = None, dev: str | None = None, changes: bool = True, every: bool = False
) -> list[Candidate]:
    """Return the running pyvtep that is meant where no socket is named; see `choice.choose`."""
    found = candidates()
    if not found:
        raise socket_files.none_found()
    return choose(found, vni=vni, dev=dev, changes=changes, every=every)


class Client:
    """A connection to a running VTEP, over its control socket.

    Without `path` it is to the only one of this network namespace, or to the only one that has the
    segment `vni` or `dev`. Where there is none here, it is to the only one of another network
    namespace; that may be asked, but not changed. Raises VtepError where none is found.
    """

    def __init__(
        self,
        path: str | PathLike[str] | None = None,
        *,
        vni: int | None = None,
        dev: str | None = None,
        timeout: float = _TIMEOUT,
    ) -> None:
        self._elsewhere: Candidate | None = None
        if path is None:
            (found,) = find(vni=vni, dev=dev, changes=False)
            path = found.path
            self._elsewhere = None if found.here else found
        self.path = Path(path)
        self._said_elsewhere = False
        self._timeout = timeout
        self._number = 0
        self._events: list[Event] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._answers = False
        self._socket.settimeout(min(timeout, _ALIVE))
        try:
            self._connect(time.monotonic() + min(timeout, _ALIVE))
        except PermissionError as error:
            self._socket.close()
            raise DisconnectedError(
                f"--socket {self.path}: may not be asked by you (mode 0600): run this with sudo, "
                "or as the user whose it is"
            ) from error
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

    def _connect(self, deadline: float) -> None:
        """Connect, once there is a place in the queue of the VTEP; raises OSError."""
        while True:
            try:
                return self._socket.connect(fspath(self.path))
            except BlockingIOError:  # The queue is full, and the kernel does not wait for a place.
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_PAUSE)

    def call(self, method: str, **params: Any) -> Any:
        """Call a method of the VTEP by name; parameters that are None are left out."""
        if self._elsewhere is not None:
            self._check(method, self._elsewhere)
        if not self._answers:  # So one that is stopped does not do it once it goes on.
            answer = self._ask("ping", {}, min(self._timeout, _ALIVE))
            if answer.get("id") is None:  # It is about the connection, as of one client too many.
                raise _refusal("ping", answer["error"])
            self._answers = True
        given = {name: value for name, value in params.items() if value is not None}
        answer = self._ask(method, given, self._timeout)
        if "error" in answer:
            raise _refusal(method, answer["error"])
        return answer["result"]

    def _check(self, method: str, process: Candidate) -> None:
        """Raise VtepError where a method would change a process of another network namespace."""
        if method not in READS:
            choose([process])
        if not self._said_elsewhere:
            import logging  # noqa: PLC0415  most clients need it not

            self._said_elsewhere = True
            log = logging.getLogger("vtep")
            log.warning("%s in another network namespace answers: %s", process.process, self.path)

    def _ask(self, method: str, given: dict[str, Any], timeout: float) -> dict[str, Any]:
        """The answer to a request, whatever it is.

        Raises DisconnectedError where there is none, and VtepError where the request is too large,
        or the VTEP says why it serves this client no longer.
        """
        self._number += 1
        request = jsonrpc.request(method, given, self._number)
        if len(request) > jsonrpc.LINE_MAX:
            raise VtepError(
                f"{method}: the request is too large: it has {len(request)} octets, and may have "
                f"at most {jsonrpc.LINE_MAX} octets; ask for less at a time"
            )
        self._socket.settimeout(timeout)
        try:
            # A VTEP that serves too many clients may have hung up by now, and have said so.
            with suppress(BrokenPipeError, ConnectionResetError):
                self._socket.sendall(request + b"\n")
            while (answer := self._receive()).get("id") != self._number:
                if "error" in answer:  # About the connection, not about a request.
                    raise _refusal(method, answer["error"])
                if answer.get("method") == jsonrpc.EVENT:
                    self._events.append(answer["params"])
        except TimeoutError as error:
            raise DisconnectedError(
                f"{self.path}: no answer within {timeout:g} seconds; is its process stopped?"
            ) from error
        except OSError as error:
            raise DisconnectedError(f"{self.path}: {error.strerror or error}") from error
        return answer

    def stats(self, *, vni: int | None = None, dev: str | None = None) -> Stats:
        """What every segment has counted, or one of them."""
        result: Stats = self.call("stats", vni=vni, dev=dev)
        return result

    def reset_stats(self) -> None:
        """Let `since_reset` in what `stats` returns count from now on; the counters go on."""
        self.call("stats.reset")

    def set(self, *, vni: int | None = None, dev: str | None = None, **options: Any) -> Segment:
        """Change options of a segment while it runs; all of them, or none."""
        result: Segment = self.call("set", vni=vni, dev=dev, options=options)
        return result

    def reload(self) -> str:
        """Have the configuration file read again; a line that says what is different."""
        result: str = self.call("reload")
        return result

    def monitor(self) -> Iterator[Event]:
        """Every change from now on, until the VTEP ends.

        What comes from it is typed as `schema.Event`. To see no gap, call this, take what there is
        with `fdb.show()`, and then iterate.
        """
        self.call("monitor.subscribe")
        return self._monitor()

    def _monitor(self) -> Iterator[Event]:
        while True:
            told, self._events = self._events, []
            yield from told
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
        except ConnectionResetError:  # It ended with some of our request unread.
            line = b""
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


class FdbVerbs:
    """`pyvtep fdb`: the forwarding database, as `bridge fdb` has it."""

    def __init__(self, client: Client) -> None:
        self._call = client.call

    def show(
        self, *, vni: int | None = None, dev: str | None = None, **wanted: Any
    ) -> list[FdbEntry]:
        """The entries that are meant: see `flush` for what can be wanted."""
        result: list[FdbEntry] = self._call("fdb.show", vni=vni, dev=dev, **wanted)
        return result

    def get(self, mac: str, *, vni: int | None = None, dev: str | None = None) -> FdbEntry:
        """The entry of a MAC."""
        result: FdbEntry = self._call("fdb.get", mac=mac, vni=vni, dev=dev)
        return result

    def add(self, mac: str, dst: str, **entry: Any) -> None:
        """Put in an entry for a MAC that has none.

        Of what an entry can have: `port`, `dst_vni`, `via`; `state`, which is "permanent",
        "static" or "dynamic"; `extern_learn` and `sticky`, which are True or False; and the
        segment, `vni` or `dev`.
        """
        self._call("fdb.add", mac=mac, dst=dst, **entry)

    def append(self, mac: str, dst: str, **entry: Any) -> None:
        """Give a MAC one more destination; the rest is as with `add`."""
        self._call("fdb.append", mac=mac, dst=dst, **entry)

    def replace(self, mac: str, dst: str, **entry: Any) -> None:
        """Have a MAC be behind this destination alone; the rest is as with `add`."""
        self._call("fdb.replace", mac=mac, dst=dst, **entry)

    def delete(self, mac: str, dst: str | None = None, **destination: Any) -> None:
        """Take one destination from a MAC, or its entry altogether."""
        self._call("fdb.del", mac=mac, dst=dst, **destination)

    def flush(self, *, vni: int | None = None, dev: str | None = None, **wanted: Any) -> int:
        """Remove every destination to which all of this applies; how many there were.

        Of what can be wanted: `dst`, `port`, `dst_vni`, `via`; and `permanent`, `static`,
        `dynamic`, `extern_learn`, `sticky`, where False stands for the `no...` of `bridge fdb`.
        """
        result: int = self._call("fdb.flush", vni=vni, dev=dev, **wanted)
        return result


class RemoteVerbs:
    """`pyvtep remote`: the VTEPs to which broadcasts go."""

    def __init__(self, client: Client) -> None:
        self._call = client.call

    def show(self, *, vni: int | None = None, dev: str | None = None) -> list[RemoteRow]:
        """The destinations of the default entry."""
        result: list[RemoteRow] = self._call("remote.show", vni=vni, dev=dev)
        return result

    def add(self, remote: str, *, vni: int | None = None, dev: str | None = None) -> None:
        """Add a remote to a segment, as if it had been given as an option."""
        self._call("remote.add", remote=remote, vni=vni, dev=dev)

    def delete(self, remote: str, *, vni: int | None = None, dev: str | None = None) -> None:
        """Remove a remote from a segment, with what was learned to be behind it."""
        self._call("remote.del", remote=remote, vni=vni, dev=dev)


class VniVerbs:
    """`pyvtep vni`: the segments of the process."""

    def __init__(self, client: Client) -> None:
        self._call = client.call

    def show(self, *, vni: int | None = None, dev: str | None = None) -> list[Segment]:
        """Every segment, or one."""
        result: list[Segment] = self._call("vni.show", vni=vni, dev=dev)
        return result

    def add(self, vni: int, **options: Any) -> Segment:
        """Open one more segment; its options are those of `Config`."""
        result: Segment = self._call("vni.add", vni=vni, options=options)
        return result

    def delete(self, vni: int) -> None:
        """Close a segment."""
        self._call("vni.del", vni=vni)


class NeighVerbs:
    """`pyvtep neigh`: what ARP and neighbour discovery are answered with."""

    def __init__(self, client: Client) -> None:
        self._call = client.call

    def show(self, *, vni: int | None = None, dev: str | None = None) -> list[Neighbour]:
        """Every neighbour."""
        result: list[Neighbour] = self._call("neigh.show", vni=vni, dev=dev)
        return result

    def add(self, ip: str, mac: str, **neighbour: Any) -> None:
        """Have requests for an address be answered with a MAC, where that has no neighbour yet.

        Of what it can have: `vlan`, `router`, and the segment, `vni` or `dev`.
        """
        self._call("neigh.add", ip=ip, mac=mac, **neighbour)

    def replace(self, ip: str, mac: str, **neighbour: Any) -> None:
        """Have requests for an address be answered with a MAC; the rest is as with `add`."""
        self._call("neigh.replace", ip=ip, mac=mac, **neighbour)

    def delete(self, ip: str, **neighbour: Any) -> None:
        """Forget an address."""
        self._call("neigh.del", ip=ip, **neighbour)

    def flush(
        self, *, permanent: bool = False, vni: int | None = None, dev: str | None = None
    ) -> int:
        """Forget what was seen, and if `permanent` what was put in; how many there were."""
        result: int = self._call("neigh.flush", permanent=permanent, vni=vni, dev=dev)
        return result


def _refusal(method: str, error: dict[str, Any]) -> VtepError:
    """What the VTEP said of a request, as what it raised there."""
    code, message = error.get("code"), str(error.get("message"))
    if code == Code.INVALID_PARAMS:
        return ConfigError(message)
    if code == Code.METHOD_NOT_FOUND:
        return VtepError(f"{method}: this pyvtep is of another version, and has no such command")
    return VtepError(message)
