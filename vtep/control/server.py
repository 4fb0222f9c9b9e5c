"""The control server: many clients, none of which delays forwarding or another client.

All clients together get one short piece of work done in each round of the event loop; then frames
are forwarded. The memory for each client is bounded: one line of input, one piece of an answer that
it does not read, and a number of events, after which it is sent the number that it has missed.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Final

from vtep import descriptors
from vtep.control import jsonrpc
from vtep.control.access import Access, Policy
from vtep.control.connection import STREAM_OCTETS, Connection, OctetSource, peer_of
from vtep.control.jsonrpc import Code, InvalidRequest, OctetStream, Request, RpcError
from vtep.control.schema import CAPTURE_HANDED_OVER
from vtep.control.socket_files import ControlSocket
from vtep.errors import ConfigError, VtepError

log = logging.getLogger("vtep")

CLIENTS_MAX: Final = 256
"""Connections at a time. One more is refused, unless another one is idle and can be closed."""

READERS_MAX: Final = 192
"""Connections at a time of peers that may only read: they leave room for those that may change."""

IDLE_S: Final = 60.0
"""Time after which a client that sends no request, or reads no answer, is idle."""

_LINGER_MAX = 16
"""Number of refused clients of which input is still read, so that they get to read the reason."""

EVENTS_MAX: Final = 4096
"""Events that wait for one subscriber."""

_EVENTS_PER_TURN = 64

_NO_DESCRIPTORS = (
    jsonrpc.failure(
        RpcError(Code.REFUSED, "too many clients: it has hardly any file descriptor left"), None
    )
    + b"\n"
)

_ACCEPTS_AT_ONCE = 16

_FINISH_S = 1.0
"""Time for the answers in progress when another process takes over."""

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
    It raises VtepError if that fails. `policy` says what each client may do. `lasting` are the
    methods that take several turns, and are executed one after the other.
    """

    def __init__(
        self,
        call: Call,
        watch: Watch,
        flush: Flush,
        policy: Policy,
        lasting: Collection[str] = (),
    ) -> None:
        self.changing = asyncio.Lock()
        """Held while a lasting method is executed, or while none may be. Those that wait for it do
        not delay other clients."""
        self.has_answered = False
        """True once a client has sent a request."""
        self._lasting = lasting
        self._is_handed_over = False
        self._policy = policy
        self._call = call
        self._watch = watch
        self._flush = flush
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients: dict[asyncio.Task[None], Connection] = {}
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
        if self._retry is not None:
            self._retry.cancel()
        if self._listening is not None:  # Another process may have it now.
            self._listening.remove()
            asyncio.get_running_loop().remove_reader(self._listening.socket.fileno())
            self._listening.socket.close()
        if self._is_handed_over:
            await self._finish_answers()
        await self._finish_streams()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def path(self) -> Path | None:
        """The path of the socket; None if it does not listen."""
        return self._listening.path if self._listening is not None else None

    @property
    def has_clients(self) -> bool:
        """True while a client is connected, or waits to be accepted as one."""
        return bool(self._tasks)

    def fileno(self) -> int | None:
        """Return the descriptor of the listening socket; None if it does not listen."""
        return self._listening.socket.fileno() if self._listening is not None else None

    async def pause(self) -> None:
        """Accept no client, and do no work for one, until `resume`."""
        await self._lock.acquire()
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening.socket.fileno())

    def resume(self) -> None:
        """Serve again."""
        self._lock.release()
        if self._listening is not None:
            self._listen(self._listening)

    def hand_over(self) -> None:
        """Leave the socket and its file to another process, and execute no more requests.

        A change here would be lost. Clients are told to ask the other process; `Client` does so.
        """
        self._is_handed_over = True
        self._end_streams(CAPTURE_HANDED_OVER)
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.socket.close()
        if self._lock.locked():
            self._lock.release()

    async def _finish_answers(self) -> None:
        """Send the answers in progress."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FINISH_S):
                for client in tuple(self._clients.values()):
                    async with client.writing:
                        pass

    async def _finish_streams(self) -> None:
        """End the streams, and send what is left of them to clients that read."""
        streaming = [task for task, client in self._clients.items() if client.stream is not None]
        self._end_streams("this pyvtep has ended")
        if streaming:
            await asyncio.wait(streaming, timeout=_FINISH_S)

    def _end_streams(self, why: str) -> None:
        for client in self._clients.values():
            if client.stream is not None:
                client.stream.end(why)

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
        # Before the first wait: the client may disconnect at any time.
        access = self._policy.access(peer_of(connection))
        client, task = await Connection.of(connection, access), asyncio.current_task()
        if client is None or task is None:
            return
        if access is Access.NONE:
            why = self._policy.connect_refusal()
        else:
            why = self._make_room(access, listening)
        if why:
            linger = self._may_linger()
            self._count_refused(task)
            await client.refuse(why, linger=linger)
            return
        self._clients[task] = client
        try:
            await self._serve(client)
        finally:
            self._clients.pop(task, None)

    def _make_room(self, access: Access, listening: ControlSocket) -> str:
        """Return why there is no room for one more client, or "".

        Side effect: disconnects an idle one if that makes room. Readers do so to readers only.
        """
        now, most, only = asyncio.get_running_loop().time(), CLIENTS_MAX, Access.CHANGE
        count = len(self._clients)
        if access is Access.READ:
            most, only = READERS_MAX, access
            count = sum(client.access is access for client in self._clients.values())
        if (count < most and len(self._clients) < CLIENTS_MAX) or self._close_idle(now, only):
            return ""
        return (
            f"too many clients: {count} are connected to {listening.path}; end one, such as a "
            "pyvtep monitor (ss -xp lists them), and try again"
        )

    def _may_linger(self) -> bool:
        return len(self._refused) < _LINGER_MAX

    def _count_refused(self, task: asyncio.Task[None]) -> None:
        self._refused.add(task)
        task.add_done_callback(self._refused.discard)

    def _close_idle(self, now: float, access: Access) -> bool:
        """Disconnect the client that has been idle for longest, of those with `access` at most.

        Returns: False if none is idle.
        """
        idle = [
            (since, task)
            for task, client in self._clients.items()
            if client.access <= access and (since := client.idle_since())
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

    async def _serve(self, client: Connection) -> None:
        """Answer a client's requests until it disconnects, which it may do at any time."""
        try:
            with suppress(OSError):
                try:
                    while (line := await client.next_line()) is not None:
                        await self._answer(client, line)
                        if client.stream is not None:
                            await self._send_stream(client, client.stream)
                            break
                except RpcError as error:  # It is not known where the next line would begin.
                    client.unsubscribe()
                    await client.refuse(str(error), code=error.code, linger=self._may_linger())
                    return
                client.unsubscribe()
                await client.close()
        finally:
            client.unsubscribe()
            client.abort()

    async def _answer(self, client: Connection, line: bytes) -> None:
        """Execute the requests of a line, and answer in pieces, as fast as the client reads."""
        self.has_answered = True
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
        self, client: Connection, item: Request | InvalidRequest, *, last: bool
    ) -> AsyncIterator[bytes]:
        """Execute a request, and yield its answer; yield nothing for a notification."""
        if isinstance(item, InvalidRequest):
            if item.answered:
                yield jsonrpc.failure(item.error, item.id)
            return
        try:
            result = await self._execute(client, item)
        except Exception as failed:  # noqa: BLE001  whatever it is, it ends this request only
            # A command that has failed has changed nothing, so it can be executed elsewhere.
            error = _handed_over() if self._is_handed_over else failed
            if item.answered:
                yield jsonrpc.failure(_rpc_error(error), item.id)
            return
        try:
            if last:
                await self._flush()
        except Exception as error:  # noqa: BLE001
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

    async def _execute(self, client: Connection, request: Request) -> Any:
        """Execute a request. Returns: its result. Raises: RpcError, VtepError, and any other."""
        if refusal := self._policy.refusal(request.method, client.access):
            raise RpcError(Code.REFUSED, refusal)
        lasting = self.changing if request.method in self._lasting else nullcontext()
        async with lasting, self._one_turn():
            if self._is_handed_over:
                raise _handed_over()
            if request.method == SUBSCRIBE:
                return self._subscribe(client, request.params)
            result = await self._call(request.method, request.params)
        if isinstance(result, asyncio.Future):  # It takes long, and others have their turn.
            result = await result
        if isinstance(result, OctetStream):
            result = self._use_stream(client, result)
        return result

    @staticmethod
    def _use_stream(client: Connection, stream: OctetStream) -> Any:
        """Send a stream after the answer. Returns: the result for the answer."""
        if client.stream is not None:
            stream.source.close()
            raise RpcError(Code.REFUSED, "a connection has one stream; use another connection")
        client.begin_stream(stream.source)
        return stream.result

    async def _send_stream(self, client: Connection, stream: OctetSource) -> None:
        """Send a stream, as fast as the client reads, until either end has enough."""
        waiting = asyncio.get_running_loop().create_task(client.wait_for_end())
        waiting.add_done_callback(lambda _: stream.end("the client has ended it"))
        try:
            while await stream.ready.wait():
                async with self._one_turn():
                    octets = stream.take(STREAM_OCTETS)
                if octets:
                    await client.send(octets)
                elif stream.has_ended:
                    break
            await client.send(stream.finish())
        finally:
            waiting.cancel()

    def _subscribe(self, client: Connection, params: dict[str, Any]) -> bool:
        if params:
            raise RpcError(Code.INVALID_PARAMS, f"{min(params)}: is not a parameter of {SUBSCRIBE}")
        if client.events is None:
            queue = EventQueue()
            client.unwatch = self._watch(queue.put)
            client.events = asyncio.get_running_loop().create_task(self._send_events(client, queue))
        return True

    async def _send_events(self, client: Connection, queue: EventQueue) -> None:
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


def _handed_over() -> RpcError:
    return RpcError(
        Code.HANDED_OVER,
        "another process has taken over, and nothing was changed here: connect again",
    )


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
