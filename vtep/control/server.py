"""The control socket: many clients, none of which can hold up forwarding or each other.

All clients together get one short piece of work done per round of the loop, then frames have their
turn. What is kept for a client is bounded: a line of its input, a piece of an answer that it does
not read, and so many events, after which it is told how many it has missed.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from vtep import descriptors
from vtep.control import jsonrpc
from vtep.control.jsonrpc import Code, Refusal, Request, RpcError
from vtep.control.socket_files import Listener
from vtep.errors import ConfigError, VtepError

log = logging.getLogger("vtep")

CLIENTS_MAX: Final = 256
"""Connections at a time; one more is told so and closed, unless one is idle."""

IDLE_S: Final = 60.0
"""Time after which a client that says nothing, or reads nothing, makes room for another one."""

_LINGER_S = 2.0
_LINGER_MAX = 16
"""How long, and how many at a time, clients that are turned away may go on to send: who is hung up
on in the middle of a request does not read why."""

_DISCARDED_MAX = 1 << 20
"""Octets that such a client may go on to send."""

EVENTS_MAX: Final = 4096
"""Events that wait for one subscriber."""

_OUTPUT_MAX = 65536
"""Octets of an answer that wait for a client before the next piece is made."""

_EVENTS_AT_ONCE = 64

_NO_DESCRIPTORS = (
    jsonrpc.failure(
        RpcError(Code.REFUSED, "too many clients: it has hardly any file descriptor left"), None
    )
    + b"\n"
)

_ACCEPTS_AT_ONCE = 16

_ACCEPT_PAUSE = 1.0
"""Seconds until clients are accepted again after there was no descriptor for one."""

SUBSCRIBE: Final = "monitor.subscribe"
Call = Callable[[str, dict[str, Any]], Awaitable[Any]]
Flush = Callable[[], Awaitable[None]]


Watch = Callable[[Callable[[Any], None]], Callable[[], None]]
"""Has every event told to an observer, until what it returned is called."""


class Feed:
    """The events that wait for one subscriber."""

    def __init__(self, limit: int = EVENTS_MAX) -> None:
        self.some = asyncio.Event()
        """Set while something waits."""
        self._limit = limit
        self._waiting: deque[Any] = deque()
        self._lost = 0

    def put(self, event: Any) -> None:
        """Keep an event or, while too many wait, count it as lost."""
        if self._lost or len(self._waiting) >= self._limit:
            self._lost += 1
        else:
            self._waiting.append(event)
        self.some.set()

    def take(self, most: int) -> list[Any]:
        """The oldest of what waits; behind the last of it, how many were lost since."""
        events = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        if not self._waiting:
            if self._lost:
                events.append({"event": "lost", "count": self._lost})
                self._lost = 0
            self.some.clear()
        return events


class Server:
    """Serves a control socket in the running loop.

    `call` does what a method name and its parameters ask for; it may raise VtepError, ConfigError
    and RpcError, whose messages the client is told. `watch` is where subscribers' events come from.
    `flush` is waited for before the last request of a line is answered: what was changed then is
    on a disk, or VtepError says why it is not.
    """

    def __init__(self, call: Call, watch: Watch, flush: Flush) -> None:
        self._call = call
        self._watch = watch
        self._flush = flush
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients: dict[asyncio.Task[None], _Client] = {}
        self._refused: set[asyncio.Task[None]] = set()
        self._listener: Listener | None = None
        self._retry: asyncio.TimerHandle | None = None

    async def start(self, listener: Listener) -> None:
        """Serve a listening socket, which is ours from now on."""
        self._listener = listener
        self._listen(listener)

    def _listen(self, listener: Listener) -> None:
        asyncio.get_running_loop().add_reader(listener.socket.fileno(), self._accept, listener)

    async def stop(self) -> None:
        """Disconnect everybody, and remove the socket's file if it is still ours."""
        if self._listener is None:
            return
        self._listener.remove()
        asyncio.get_running_loop().remove_reader(self._listener.socket.fileno())
        if self._retry is not None:
            self._retry.cancel()
        self._listener.socket.close()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @asynccontextmanager
    async def _one_turn(self) -> AsyncIterator[None]:
        """A piece of work: one at a time for all clients together, and frames move after it."""
        async with self._lock:
            yield
            await asyncio.sleep(0)

    # --- one client -------------------------------------------------------------------------

    def _accept(self, listener: Listener) -> None:
        """Accept some of the clients that wait, or none for a while if descriptors have run out.

        The servers of asyncio and uvloop print a traceback then, or try again without a pause.
        """
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                connection, _ = listener.socket.accept()
            except OSError as error:
                if descriptors.is_shortage(error):
                    why = descriptors.reason(error)
                    descriptors.warn(f"cannot accept clients of the control socket: {why}")
                    loop = asyncio.get_running_loop()
                    loop.remove_reader(listener.socket.fileno())
                    self._retry = loop.call_later(_ACCEPT_PAUSE, self._listen, listener)
                return
            connection.setblocking(False)
            if descriptors.is_reserved(connection.fileno()):
                _refuse_for_want_of_descriptors(connection)
                continue
            task = asyncio.get_running_loop().create_task(self._admit(connection, listener))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _admit(self, connection: socket.socket, listener: Listener) -> None:
        """Serve a client, or tell it why it is not served."""
        client, task = await _Client.of(connection), asyncio.current_task()
        if client is None or task is None:
            return
        now = asyncio.get_running_loop().time()
        if len(self._clients) >= CLIENTS_MAX and not self._make_room(now):
            why = (
                f"too many clients: {CLIENTS_MAX} are connected to {listener.path}; end one, "
                "such as a pyvtep monitor (ss -xp lists them), and try again"
            )
            linger = self._may_linger()
            self._count_refused(task)
            await client.turn_away(why, linger=linger)
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

    def _make_room(self, now: float) -> bool:
        """Disconnect the client that has been idle for longest; False if none is."""
        idle = [(since, task) for task, client in self._clients.items() if (since := client.idle())]
        if not idle:
            return False
        since, task = min(idle, key=lambda each: each[0])
        if now - since < IDLE_S:
            return False
        self._clients.pop(task).dismiss()
        self._count_refused(task)
        return True

    async def _serve(self, client: "_Client") -> None:
        try:
            with suppress(OSError):  # It went away, which is its right.
                try:
                    while (line := await client.next_line()) is not None:
                        await self._answer(client, line)
                except RpcError as error:  # Where its next line would begin can't be known.
                    client.unsubscribe()
                    await client.turn_away(str(error), code=error.code, linger=self._may_linger())
                    return
                client.unsubscribe()
                await client.close()
        finally:
            client.unsubscribe()
            client.abort()

    async def _answer(self, client: "_Client", line: bytes) -> None:
        """Do what a line asks for, and answer in pieces, as fast as the client reads."""
        async with self._one_turn():
            message = jsonrpc.decode(line)
        async with client.writing:
            said = False
            requests = [item for item in message.items if isinstance(item, Request)]
            for item in message.items:
                before = b"" if not message.batch else b"," if said else b"["
                last = item in requests[-1:]
                async for piece in self._pieces(client, item, last=last):
                    await client.send(before + piece)
                    before = b""
                    said = True
            if said:
                await client.send(b"]\n" if message.batch else b"\n")

    async def _pieces(
        self, client: "_Client", item: Request | Refusal, *, last: bool
    ) -> AsyncIterator[bytes]:
        """The answer to one request, none where none is wanted."""
        if isinstance(item, Refusal):
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
                yield jsonrpc.failure(_told(error), item.id)
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

    def _subscribe(self, client: "_Client", params: dict[str, Any]) -> bool:
        if params:
            raise RpcError(Code.INVALID_PARAMS, f"{min(params)}: is no parameter of {SUBSCRIBE}")
        if client.pump is None:
            feed = Feed()
            client.unwatch = self._watch(feed.put)
            client.pump = asyncio.get_running_loop().create_task(self._tell(client, feed))
        return True

    async def _tell(self, client: "_Client", feed: Feed) -> None:
        with suppress(OSError):
            while await feed.some.wait():
                async with client.writing:
                    async with self._one_turn():
                        events = feed.take(_EVENTS_AT_ONCE)
                        told = b"".join(
                            jsonrpc.notification(jsonrpc.EVENT, event) + b"\n" for event in events
                        )
                    await client.send(told)


def _refuse_for_want_of_descriptors(connection: socket.socket) -> None:
    descriptors.warn(
        "a client of the control socket was refused: hardly any file descriptor is left; "
        "raise the limit: ulimit -n, or LimitNOFILE= of the systemd unit"
    )
    with connection, suppress(OSError):
        connection.send(_NO_DESCRIPTORS)


def _told(error: Exception) -> RpcError:
    """What a client is told of an error."""
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


class _Client:
    """A connection: its input by lines, and its output in the order in which it is made."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writing = asyncio.Lock()
        """Held for the whole of an answer, which is sent in pieces."""
        self.pump: asyncio.Task[None] | None = None
        self.unwatch: Callable[[], None] = _nothing
        self._reader = reader
        self._writer = writer
        self._quiet_since = self._unread_since = 0.0
        writer.transport.set_write_buffer_limits(high=_OUTPUT_MAX)

    @classmethod
    async def of(cls, connection: socket.socket) -> "_Client | None":
        """Return the client of a connection that was just accepted; None if it has gone."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=jsonrpc.LINE_MAX)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError:
            connection.close()
            return None
        return cls(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    async def next_line(self) -> bytes | None:
        """The next line, the last one also without its end; None after that.

        Raises RpcError where it is too long, and OSError where the connection broke.
        """
        self._quiet_since = asyncio.get_running_loop().time()
        try:
            return await self._reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            return error.partial or None
        except asyncio.LimitOverrunError:
            longest = f"a line has at most {jsonrpc.LINE_MAX} octets"
            raise RpcError(Code.PARSE_ERROR, f"parse error: {longest}") from None
        finally:
            self._quiet_since = 0.0

    async def send(self, octets: bytes) -> None:
        """Send, and wait while too much waits to be read; raises OSError."""
        self._writer.write(octets)
        self._unread_since = asyncio.get_running_loop().time()
        await self._writer.drain()
        self._unread_since = 0.0

    def idle(self) -> float:
        """Since when it reads nothing, or says nothing and waits for no events; 0 if it is busy."""
        return self._unread_since or (self._quiet_since if self.pump is None else 0.0)

    def dismiss(self) -> None:
        """Disconnect it, since it is idle and another client needs its place."""
        if not self._unread_since:
            error = RpcError(Code.REFUSED, "disconnected: idle, and there were too many clients")
            self._writer.write(jsonrpc.failure(error, None) + b"\n")
            self._writer.close()
        else:
            self.abort()

    async def turn_away(self, why: str, *, linger: bool, code: int = Code.REFUSED) -> None:
        """Say why it is served no more, and close; with `linger`, once it has had time to read."""
        try:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(_LINGER_S):
                    await self.send(jsonrpc.failure(RpcError(code, why), None) + b"\n")
                    if linger:
                        self._writer.write_eof()
                        rest = _DISCARDED_MAX
                        while rest > 0 and (octets := await self._reader.read(jsonrpc.LINE_MAX)):
                            rest -= len(octets)
                    await self.close()
        finally:
            self.abort()

    def unsubscribe(self) -> None:
        """Tell no more events."""
        self.unwatch()
        self.unwatch = _nothing
        if self.pump is not None:
            self.pump.cancel()

    async def close(self) -> None:
        """Close once everything has been read; raises OSError."""
        self._writer.close()
        await self._writer.wait_closed()

    def abort(self) -> None:
        """Close at once."""
        self._writer.transport.abort()


def _nothing() -> None:
    pass
