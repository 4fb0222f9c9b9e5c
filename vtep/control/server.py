"""The control server: many clients, none of which delays forwarding or another client.

All clients together get one short piece of work done in each round of the event loop; then frames
are forwarded. The memory for each client is bounded: one line of input, one piece of an answer that
it does not read, and a number of events, after which it is sent the number that it has missed.
"""

import asyncio
import errno
import logging
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final

from vtep import descriptors
from vtep.control import jsonrpc
from vtep.control.jsonrpc import Code, InvalidRequest, Request, RpcError
from vtep.control.socket_files import ControlSocket
from vtep.errors import ConfigError, VtepError

log = logging.getLogger("vtep")

CLIENTS_MAX: Final = 256
"""Connections at a time. One more is refused, unless another one is idle and can be closed."""

IDLE_S: Final = 60.0
"""Time after which a client that sends no request, or reads no answer, is idle."""

_LINGER_S = 2.0
_LINGER_MAX = 16
"""Time for which, and number of clients of which, input is still read after they were refused. A
client that is disconnected in the middle of a request gets an error when it sends the rest, and
does not read the reason."""

_DISCARDED_MAX = 1 << 20
"""Octets of input that are discarded from such a client."""

EVENTS_MAX: Final = 4096
"""Events that wait for one subscriber."""

_OUTPUT_MAX = 65536
"""Octets of an answer that wait for a client before the next piece is made."""

_EVENTS_PER_TURN = 64

_NO_DESCRIPTORS = (
    jsonrpc.failure(
        RpcError(Code.REFUSED, "too many clients: it has hardly any file descriptor left"), None
    )
    + b"\n"
)

_ACCEPTS_AT_ONCE = 16

_ACCEPT_PAUSE_S = 1.0
"""Seconds until clients are accepted again after there was no descriptor for one."""

SUBSCRIBE: Final = "monitor.subscribe"
Call = Callable[[str, dict[str, Any]], Awaitable[Any]]
Flush = Callable[[], Awaitable[None]]

Watch = Callable[[Callable[[Any], None]], Callable[[], None]]
"""Subscribes an observer to all events. Returns: a function that ends that."""


class EventQueue:
    """The events that wait for one subscriber, and the number of those that it has missed."""

    def __init__(self, limit: int = EVENTS_MAX) -> None:
        self.ready = asyncio.Event()
        """Set while an event waits."""
        self._limit = limit
        self._waiting: deque[Any] = deque()
        self._lost = 0

    def put(self, event: Any) -> None:
        """Append an event; drop and count it if too many wait."""
        # Once one is lost, all are until the queue is empty: so the gap is at one place.
        if self._lost or len(self._waiting) >= self._limit:
            self._lost += 1
        else:
            self._waiting.append(event)
        self.ready.set()

    def take(self, most: int) -> list[Any]:
        """Remove and return the oldest events; after the last, one says how many were lost."""
        events = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        if not self._waiting:
            if self._lost:
                events.append({"event": "lost", "count": self._lost})
                self._lost = 0
            self.ready.clear()
        return events


class Server:
    """The server of a control socket in the running event loop.

    `call` executes a method, given its name and parameters; the messages of VtepError, ConfigError
    and RpcError are sent to the client. `watch` subscribes to the events that subscribers get.
    `flush` is awaited before the last request of a line is answered: changes are on the disk then.
    It raises VtepError if that fails.
    """

    def __init__(self, call: Call, watch: Watch, flush: Flush) -> None:
        self._call = call
        self._watch = watch
        self._flush = flush
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients: dict[asyncio.Task[None], _Connection] = {}
        self._refused: set[asyncio.Task[None]] = set()
        self._listening: ControlSocket | None = None
        self._retry: asyncio.TimerHandle | None = None

    async def start(self, listening: ControlSocket) -> None:
        """Serve a listening socket, and own it from now on."""
        self._listening = listening
        self._listen(listening)

    def _listen(self, listening: ControlSocket) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(listening.socket.fileno(), self._accept, listening)

    async def stop(self) -> None:
        """Disconnect all clients; remove the socket's file unless it is another process's now."""
        if self._listening is None:
            return
        self._listening.remove()
        asyncio.get_running_loop().remove_reader(self._listening.socket.fileno())
        if self._retry is not None:
            self._retry.cancel()
        self._listening.socket.close()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @asynccontextmanager
    async def _one_turn(self) -> AsyncIterator[None]:
        """Do a piece of work when no other client's is done; let frames be forwarded after it."""
        async with self._lock:
            yield
            await asyncio.sleep(0)

    # --- accepting --------------------------------------------------------------------------

    def _accept(self, listening: ControlSocket) -> None:
        """Accept some of the waiting clients; pause if descriptors have run out.

        The servers of asyncio and uvloop print a traceback then, or try again without a pause.
        """
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                connection, _ = listening.socket.accept()
            except OSError as error:
                if descriptors.is_shortage(error):
                    why = descriptors.reason(error)
                    descriptors.warn(f"cannot accept clients of the control socket: {why}")
                    loop = asyncio.get_running_loop()
                    loop.remove_reader(listening.socket.fileno())
                    self._retry = loop.call_later(_ACCEPT_PAUSE_S, self._listen, listening)
                return
            connection.setblocking(False)
            if descriptors.is_reserved(connection.fileno()):
                _refuse_for_want_of_descriptors(connection)
                continue
            task = asyncio.get_running_loop().create_task(self._admit(connection, listening))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _admit(self, connection: socket.socket, listening: ControlSocket) -> None:
        """Serve a client, or send it the reason why it is not served."""
        client, task = await _Connection.of(connection), asyncio.current_task()
        if client is None or task is None:
            return
        now = asyncio.get_running_loop().time()
        if len(self._clients) >= CLIENTS_MAX and not self._close_idle(now):
            why = (
                f"too many clients: {CLIENTS_MAX} are connected to {listening.path}; end one, "
                "such as a pyvtep monitor (ss -xp lists them), and try again"
            )
            linger = self._may_linger()
            self._count_refused(task)
            await client.refuse(why, linger=linger)
            return
        self._clients[task] = client
        try:
            await self._serve(client)
        finally:
            self._clients.pop(task, None)

    def _may_linger(self) -> bool:
        return len(self._refused) < _LINGER_MAX

    def _count_refused(self, task: asyncio.Task[None]) -> None:
        self._refused.add(task)
        task.add_done_callback(self._refused.discard)

    def _close_idle(self, now: float) -> bool:
        """Disconnect the client that has been idle for longest. Returns: False if none is idle."""
        idle = [
            (since, task)
            for task, client in self._clients.items()
            if (since := client.idle_since())
        ]
        if not idle:
            return False
        since, task = min(idle, key=lambda each: each[0])
        if now - since < IDLE_S:
            return False
        self._clients.pop(task).disconnect_idle()
        self._count_refused(task)
        return True

    # --- one client -------------------------------------------------------------------------

    async def _serve(self, client: "_Connection") -> None:
        """Answer a client's requests until it disconnects, which it may do at any time."""
        try:
            with suppress(OSError):
                try:
                    while (line := await client.next_line()) is not None:
                        await self._answer(client, line)
                except RpcError as error:  # It is not known where the next line would begin.
                    client.unsubscribe()
                    await client.refuse(str(error), code=error.code, linger=self._may_linger())
                    return
                client.unsubscribe()
                await client.close()
        finally:
            client.unsubscribe()
            client.abort()

    async def _answer(self, client: "_Connection", line: bytes) -> None:
        """Execute the requests of a line, and answer in pieces, as fast as the client reads."""
        async with self._one_turn():
            message = jsonrpc.decode(line)
        async with client.writing:
            sent = False
            requests = [item for item in message.items if isinstance(item, Request)]
            for item in message.items:
                before = b"" if not message.batch else b"," if sent else b"["
                last = item in requests[-1:]
                async for piece in self._pieces(client, item, last=last):
                    await client.send(before + piece)
                    before = b""
                    sent = True
            if sent:
                await client.send(b"]\n" if message.batch else b"\n")

    async def _pieces(
        self, client: "_Connection", item: Request | InvalidRequest, *, last: bool
    ) -> AsyncIterator[bytes]:
        """Execute a request, and yield its answer; yield nothing for a notification."""
        if isinstance(item, InvalidRequest):
            if item.answered:
                yield jsonrpc.failure(item.error, item.id)
            return
        try:
            async with self._one_turn():
                if item.method == SUBSCRIBE:
                    result = self._subscribe(client, item.params)
                else:
                    result = await self._call(item.method, item.params)
            if last:
                await self._flush()
        except Exception as error:  # noqa: BLE001  whatever it is, it ends this request only
            if item.answered:
                yield jsonrpc.failure(_rpc_error(error), item.id)
            return
        if not item.answered:
            return
        pieces = jsonrpc.success(result, item.id)
        while True:
            async with self._one_turn():
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def _subscribe(self, client: "_Connection", params: dict[str, Any]) -> bool:
        if params:
            raise RpcError(Code.INVALID_PARAMS, f"{min(params)}: is not a parameter of {SUBSCRIBE}")
        if client.events is None:
            queue = EventQueue()
            client.unwatch = self._watch(queue.put)
            client.events = asyncio.get_running_loop().create_task(self._send_events(client, queue))
        return True

    async def _send_events(self, client: "_Connection", queue: EventQueue) -> None:
        with suppress(OSError):
            while await queue.ready.wait():
                async with client.writing:
                    async with self._one_turn():
                        lines = b"".join(
                            jsonrpc.notification(jsonrpc.EVENT, event) + b"\n"
                            for event in queue.take(_EVENTS_PER_TURN)
                        )
                    await client.send(lines)


def _refuse_for_want_of_descriptors(connection: socket.socket) -> None:
    descriptors.warn(
        "a client of the control socket was refused: hardly any file descriptor is left; "
        "raise the limit: ulimit -n, or LimitNOFILE= of the systemd unit"
    )
    with connection, suppress(OSError):
        connection.send(_NO_DESCRIPTORS)


def _rpc_error(error: Exception) -> RpcError:
    """Return the error that a client gets for an exception; log one that is a bug."""
    if isinstance(error, RpcError):
        return error
    if isinstance(error, ConfigError):
        return RpcError(Code.INVALID_PARAMS, str(error))
    if isinstance(error, VtepError):
        return RpcError(Code.REFUSED, str(error))
    if isinstance(error, OSError) and descriptors.is_shortage(error):
        return RpcError(Code.REFUSED, f"cannot do it: {descriptors.reason(error)}")
    log.error("internal error on the control socket: %r", error)
    log.debug("where it was:", exc_info=error)
    return RpcError(Code.INTERNAL_ERROR, f"internal error: {error!r}")


class _Connection:
    """A connection to a client: its input by lines, and its output in the order of the calls.

    The client may disconnect at any time; every method then raises OSError, or does nothing.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writing = asyncio.Lock()
        """Held for the whole of an answer, which is sent in pieces."""
        self.events: asyncio.Task[None] | None = None
        """The task that sends events, if the client has subscribed."""
        self.unwatch: Callable[[], None] = _nothing
        self._reader = reader
        self._writer = writer
        self._quiet_since = self._unread_since = 0.0

    @classmethod
    async def of(cls, connection: socket.socket) -> "_Connection | None":
        """Return the client of a connection that was just accepted; None if it has closed it."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=jsonrpc.LINE_MAX)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError:
            connection.close()
            return None
        client = cls(reader, asyncio.StreamWriter(transport, protocol, reader, loop))
        try:
            with client._open():
                transport.set_write_buffer_limits(high=_OUTPUT_MAX)
        except OSError:
            return None
        return client

    @contextmanager
    def _open(self) -> Iterator[None]:
        """Raise ConnectionResetError where uvloop raises RuntimeError on a closed transport.

        asyncio ignores, or counts, what is written to a transport that has closed. uvloop raises
        RuntimeError ("the handler is closed"), also when a StreamReader resumes reading.
        """
        try:
            yield
        except RuntimeError as error:
            if not self._writer.transport.is_closing():
                raise
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)) from error

    async def next_line(self) -> bytes | None:
        """Return the next line, also the last one if it has no end; None after that.

        Raises: RpcError if it is too long; OSError if the connection has closed.
        """
        self._quiet_since = asyncio.get_running_loop().time()
        try:
            with self._open():
                return await self._reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            return error.partial or None
        except asyncio.LimitOverrunError:
            longest = f"a line has at most {jsonrpc.LINE_MAX} octets"
            raise RpcError(Code.PARSE_ERROR, f"parse error: {longest}") from None
        finally:
            self._quiet_since = 0.0

    async def send(self, octets: bytes) -> None:
        """Send; wait while too many octets are unread. Raises: OSError if it has closed."""
        with self._open():
            self._writer.write(octets)
            self._unread_since = asyncio.get_running_loop().time()
            await self._writer.drain()
        self._unread_since = 0.0

    def idle_since(self) -> float:
        """Return since when the client reads nothing, or sends nothing; 0 if it is busy.

        A subscriber need not send anything.
        """
        return self._unread_since or (self._quiet_since if self.events is None else 0.0)

    def disconnect_idle(self) -> None:
        """Disconnect the client, which is idle, to make room for another one."""
        if self._unread_since:
            self.abort()
            return
        error = RpcError(Code.REFUSED, "disconnected: idle, and there were too many clients")
        with suppress(OSError), self._open():
            self._writer.write(jsonrpc.failure(error, None) + b"\n")
            self._writer.close()

    async def refuse(self, why: str, *, linger: bool, code: int = Code.REFUSED) -> None:
        """Send the reason why the client is not served, and disconnect it.

        With `linger`, its input is read for a while, so that it gets to read the reason.
        """
        try:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(_LINGER_S):
                    await self.send(jsonrpc.failure(RpcError(code, why), None) + b"\n")
                    if linger:
                        with self._open():
                            self._writer.write_eof()
                            rest = _DISCARDED_MAX
                            while rest > 0 and (
                                octets := await self._reader.read(jsonrpc.LINE_MAX)
                            ):
                                rest -= len(octets)
                    await self.close()
        finally:
            self.abort()

    def unsubscribe(self) -> None:
        """Send no more events."""
        self.unwatch()
        self.unwatch = _nothing
        if self.events is not None:
            self.events.cancel()

    async def close(self) -> None:
        """Close once the client has read everything. Raises: OSError if it has closed."""
        with self._open():
            self._writer.close()
            await self._writer.wait_closed()

    def abort(self) -> None:
        """Close at once."""
        with suppress(OSError), self._open():
            self._writer.transport.abort()


def _nothing() -> None:
    pass
