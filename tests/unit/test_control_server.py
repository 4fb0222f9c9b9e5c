"""The control server and client, with methods that need no VTEP."""

import asyncio
import gc
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop
from attrs import evolve

from tests.unit.test_descriptors import no_descriptors
from vtep import descriptors
from vtep.control import Client, client, jsonrpc, server, socket_files
from vtep.control.access import Policy
from vtep.control.client import DisconnectedError, find
from vtep.control.jsonrpc import Code, Pages, RpcError
from vtep.control.server import EventQueue, Server
from vtep.errors import ConfigError, VtepError

Main = Callable[[], Awaitable[None]]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Any], None]:
    def runner(main: Any) -> None:
        request.param(asyncio.wait_for(main, 30))

    return runner


class FakeMethods:
    """Methods and events of a server, without a VTEP."""

    def __init__(self) -> None:
        self.called: list[tuple[str, dict[str, Any]]] = []
        self.observers: list[Callable[[Any], None]] = []
        self.may_end = asyncio.Event()
        self.pages_made = 0
        self.disk_is_full = False

    async def call(self, method: str, params: dict[str, Any]) -> Any:
        self.called.append((method, params))
        match method:
            case "echo":
                return params
            case "pages":
                return Pages(self.page(n) for n in range(params["count"]))
            case "wait":
                await self.may_end.wait()
                return "done"
            case "refuse":
                raise VtepError("no room")
            case "misuse":
                raise ConfigError("--mtu 1: must be from 68")
            case "fail":
                raise KeyError("a bug")
        raise RpcError(Code.METHOD_NOT_FOUND, f"{method}: no such method")

    async def flush(self) -> None:
        self.called.append(("flush", {}))
        if self.disk_is_full:
            raise VtepError("no disk")

    def page(self, number: int) -> list[Any]:
        self.pages_made += 1
        return [{"number": number}] * 10

    def watch(self, observer: Callable[[Any], None]) -> Callable[[], None]:
        self.observers.append(observer)
        return lambda: self.observers.remove(observer)


class RawClient:
    """A client that sends any octets."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, octets: bytes) -> None:
        self.writer.write(octets)

    async def answer(self) -> Any:
        line = await self.reader.readline()
        return json.loads(line) if line else None

    async def ask(self, method: str, ident: object = 1, **params: Any) -> Any:
        request = {"jsonrpc": "2.0", "method": method, "params": params, "id": ident}
        self.send(json.dumps(request).encode() + b"\n")
        return await self.answer()


@asynccontextmanager
async def serving(path: Path, policy: Policy | None = None) -> AsyncIterator[FakeMethods]:
    methods = FakeMethods()
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    serves = Server(*(methods.call, methods.watch, methods.flush), policy or Policy(os.geteuid()))
    await serves.start(socket_files.listen(path))
    try:
        yield methods
    finally:
        await serves.stop()
        gc.collect()  # asyncio reports the error of a task once the task is deleted.
        assert errors == []
        assert methods.observers == []
        assert not os.path.exists(path)  # noqa: ASYNC240, PTH110


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[RawClient]:
    reader, writer = await asyncio.open_unix_connection(os.fspath(path), limit=1 << 24)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.sock"


def test_requests_are_answered_in_their_order(run: Callable[..., None], path: Path) -> None:
    async def main() -> None:
        async with serving(path), connected(path) as peer:
            request = b'{"jsonrpc":"2.0","method":"echo","params":{"a":%d},"id":%d}\n'
            peer.send(b"".join(request % (n, n) for n in range(500)))
            for n in range(500):
                assert await peer.answer() == {"jsonrpc": "2.0", "result": {"a": n}, "id": n}

    run(main())


def test_errors_and_their_codes(run: Callable[..., None], path: Path) -> None:
    async def main() -> None:
        async with serving(path), connected(path) as peer:
            for method, code, words in (
                ("refuse", -32000, "no room"),
                ("misuse", -32602, "--mtu 1: must be from 68"),
                ("fail", -32603, "internal error: KeyError('a bug')"),
                ("none", -32601, "none: no such method"),
                ("monitor.subscribe", -32602, "x: is not a parameter of monitor.subscribe"),
            ):
                said = await peer.ask(method, "i", x=1)
                assert said["error"] == {"code": code, "message": words}
                assert said["id"] == "i"

    run(main())


def test_a_batch_has_one_answer_without_its_notifications(
    run: Callable[..., None], path: Path
) -> None:
    call = '{"jsonrpc":"2.0","method":"%s","params":{"count":2},"id":%d}'
    notice = '{"jsonrpc":"2.0","method":"echo","params":{"n":1}}'

    async def main() -> None:
        async with serving(path) as methods, connected(path) as peer:
            batch = [notice, call % ("echo", 1), "1", call % ("pages", 2), call % ("none", 3)]
            peer.send(f"[{','.join(batch)}]\n".encode())
            echo, invalid, pages, missing = await peer.answer()
            assert echo["result"] == {"count": 2}
            assert (invalid["error"]["code"], invalid["id"]) == (-32600, None)
            assert len(pages["result"]) == 20
            assert missing["error"]["code"] == -32601
            # Nothing at all for those that want no answer, not even an empty batch.
            peer.send(f"[{notice},{notice}]\n{notice}\n".encode())
            peer.send(b'{"jsonrpc":"2.0","method":"fail"}\n')
            assert (await peer.ask("echo", 9))["id"] == 9
            assert methods.called.count(("echo", {"n": 1})) == 4

    run(main())


def test_invalid_lines_get_an_error_and_the_connection_stays(
    run: Callable[..., None], path: Path
) -> None:
    async def main() -> None:
        async with serving(path), connected(path) as peer:
            for line in (b"hello", b"", b"[" * 60000, b"\xff\0", b"[]", b'{"jsonrpc":"2.0"}'):
                peer.send(line + b"\n")
                said = await peer.answer()
                assert said["error"]["code"] in (-32700, -32600)
                assert said["id"] is None
            assert (await peer.ask("echo"))["result"] == {}

    run(main())


def test_the_last_line_needs_no_end(run: Callable[..., None], path: Path) -> None:
    async def main() -> None:
        async with serving(path):
            async with connected(path) as peer:
                peer.send(b'{"jsonrpc":"2.0","method":"echo","id":1}')
                peer.writer.write_eof()
                assert (await peer.answer())["result"] == {}
                assert await peer.answer() is None
            async with connected(path) as peer:
                peer.send(b'{"jsonrpc":"2.0","meth')
                peer.writer.write_eof()
                assert (await peer.answer())["error"]["code"] == -32700
                assert await peer.answer() is None

    run(main())


def test_a_line_that_is_too_long_is_refused(run: Callable[..., None], path: Path) -> None:
    async def main() -> None:
        async with serving(path):
            async with connected(path) as peer:
                longest = b'{"jsonrpc":"2.0","method":"echo","id":1}'.ljust(jsonrpc.LINE_MAX)
                peer.send(longest + b"\n")
                assert (await peer.answer())["id"] == 1
                peer.send(b"x" * (jsonrpc.LINE_MAX + 1))
                said = await peer.answer()
                assert said["error"]["code"] == -32700
                assert "at most 65536 octets" in said["error"]["message"]
                assert await peer.answer() is None
            async with connected(path) as peer:
                assert (await peer.ask("echo"))["id"] == 1

    run(main())


def test_a_client_that_does_not_read_delays_no_other(run: Callable[..., None], path: Path) -> None:
    async def main() -> None:
        async with serving(path) as methods, connected(path) as other, connected(path) as deaf:
            deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
            deaf.send(b'{"jsonrpc":"2.0","method":"pages","params":{"count":100000},"id":1}\n')
            await until(lambda: methods.pages_made)
            made = -1
            while made != methods.pages_made:
                made = methods.pages_made
                for n in range(200):
                    assert (await other.ask("echo", n))["id"] == n
            # 160 octets each: what its two buffers hold is made, and no more.
            assert made < 10000

    run(main())


def test_large_answers_let_the_loop_do_other_work(run: Callable[..., None], path: Path) -> None:
    """While an answer of 1000 pages is made, what else the loop has to do is done."""

    async def main() -> None:
        rounds = 0

        async def forward() -> None:
            nonlocal rounds
            while True:
                rounds += 1
                await asyncio.sleep(0)

        async with serving(path), connected(path) as peer:
            forwarding = asyncio.create_task(forward())
            said = await peer.ask("pages", count=1000)
            assert len(said["result"]) == 10000
            assert rounds > 1000
            forwarding.cancel()

    run(main())


def test_a_subscriber_gets_every_event_between_its_answers(
    run: Callable[..., None], path: Path
) -> None:
    async def main() -> None:
        async with serving(path) as methods, connected(path) as peer:
            assert (await peer.ask("monitor.subscribe"))["result"] is True
            assert (await peer.ask("monitor.subscribe"))["result"] is True
            (tell,) = methods.observers
            peer.send(b'{"jsonrpc":"2.0","method":"pages","params":{"count":500},"id":2}\n')
            numbers: list[int] = []
            answered = False
            for number in range(300):
                tell({"number": number})
                if number % 50 == 0:
                    await asyncio.sleep(0)
            while len(numbers) < 300 or not answered:
                said = await peer.answer()
                if "id" in said:
                    answered = True
                    assert len(said["result"]) == 5000
                else:
                    assert said["method"] == "monitor.event"
                    numbers.append(said["params"]["number"])
            assert numbers == list(range(300))

    run(main())


def test_a_subscriber_that_disconnects_is_unsubscribed(
    run: Callable[..., None], path: Path
) -> None:
    async def main() -> None:
        async with serving(path) as methods:
            async with connected(path) as peer:
                await peer.ask("monitor.subscribe")
                assert len(methods.observers) == 1
            await until(lambda: not methods.observers)

    run(main())


@pytest.mark.parametrize("subscribed", [False, True])
def test_a_client_that_leaves_early_is_no_error(
    run: Callable[..., None], path: Path, subscribed: bool
) -> None:
    """An answer takes several writes: the first one closes the transport, the next one fails."""
    requests = [
        b'{"jsonrpc":"2.0","method":"%s","params":{"count":3},"id":1}\n' % method
        for method in (b"echo", b"pages", b"wait", b"nonsense")
    ]

    async def main() -> None:
        async with serving(path) as methods:
            for lines in (*requests, b"".join(requests), b"x" * 100_000):
                for shut in (socket.SHUT_WR, socket.SHUT_RDWR):
                    async with connected(path) as other:
                        with socket.socket(socket.AF_UNIX) as peer:
                            peer.connect(os.fspath(path))
                            if subscribed:
                                peer.sendall(b'{"jsonrpc":"2.0","method":"monitor.subscribe"}\n')
                                await until(lambda: methods.observers)
                            peer.sendall(lines)
                            peer.shutdown(shut)
                        for observer in methods.observers:
                            observer({"event": "added"})
                        methods.may_end.set()
                        for _ in range(20):
                            assert "result" in await other.ask("echo")
                    await until(lambda: not methods.observers)

    run(main())


def test_events_that_are_not_read_are_counted() -> None:
    queue = EventQueue(limit=3)
    for number in range(5):
        queue.put(number)
    assert queue.take(2) == [0, 1]
    queue.put(5)  # Behind those that were lost: in between it would be a riddle.
    assert queue.take(2) == [2, {"event": "lost", "count": 3}]
    assert not queue.ready.is_set()
    queue.put(6)
    assert queue.ready.is_set()
    assert queue.take(2) == [6]


def test_one_client_too_many(
    run: Callable[..., None], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CLIENTS_MAX", 2)

    async def main() -> None:
        async with serving(path), connected(path) as first:
            async with connected(path) as second:
                await first.ask("echo")
                await second.ask("echo")
                async with connected(path) as third:
                    assert "too many clients" in (await third.answer())["error"]["message"]
                    assert await third.answer() is None
            while True:
                async with connected(path) as third:
                    if "result" in await third.ask("echo"):
                        break

    run(main())


@pytest.mark.parametrize("lingers", [0, 16])
def test_one_client_too_many_gets_the_reason_whatever_it_sends(
    run: Callable[..., None], path: Path, monkeypatch: pytest.MonkeyPatch, lingers: int
) -> None:
    """Also where it is hung up on before it has sent anything."""
    monkeypatch.setattr(server, "CLIENTS_MAX", 1)
    monkeypatch.setattr(server, "_LINGER_MAX", lingers)
    line = r"^too many clients: 1 are connected to .*x\.sock; end one"

    async def main() -> None:
        async with serving(path), connected(path) as first:
            await first.ask("echo")
            for _ in range(20):
                with pytest.raises(VtepError, match=line) as refused:
                    await asyncio.to_thread(ask_once, path)
                assert refused.value.exit_code == 1
            async with connected(path) as other:
                other.send(b'{"jsonrpc":"2.0","method":"echo","id":1}\n' * (1000 if lingers else 0))
                assert "too many clients" in (await other.answer())["error"]["message"]

    run(main())


def ask_once(path: Path) -> Any:
    with Client(path) as client:
        return client.call("echo")


@pytest.mark.parametrize("said", [b"", b'{"jsonrpc"'], ids=["nothing", "half a line"])
def test_an_idle_client_is_disconnected_for_a_new_one(
    run: Callable[..., None], path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(server, "CLIENTS_MAX", 3)

    async def main() -> None:
        async with (
            serving(path) as methods,
            connected(path) as watches,
            connected(path) as first,
            connected(path) as second,
        ):
            await watches.ask(server.SUBSCRIBE)
            for peer in (first, second):
                await peer.ask("echo")
                peer.send(said)
            # No client has been idle for long.
            with pytest.raises(VtepError, match="too many clients"):
                await asyncio.to_thread(ask_once, path)
            monkeypatch.setattr(server, "IDLE_S", 0.0)
            async with connected(path) as third, connected(path) as fourth:
                for peer in (first, second):
                    assert "disconnected: idle" in (await peer.answer())["error"]["message"]
                    assert await peer.answer() is None
                # A client that waits for an answer, or for events, is not idle.
                for peer in (third, fourth):
                    peer.send(b'{"jsonrpc":"2.0","method":"wait","id":1}\n')
                await until(lambda: ("wait", {}) in methods.called)
                with pytest.raises(VtepError, match="too many clients"):
                    await asyncio.to_thread(ask_once, path)
                methods.may_end.set()
                for peer in (third, fourth):
                    assert (await peer.answer())["result"] == "done"
                for observer in methods.observers:
                    observer({"event": "added"})
                assert (await watches.answer())["params"] == {"event": "added"}

    run(main())


def test_a_client_that_reads_nothing_is_disconnected_for_a_new_one(
    run: Callable[..., None], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CLIENTS_MAX", 1)
    monkeypatch.setattr(server, "IDLE_S", 0.0)

    async def main() -> None:
        async with serving(path), connected(path) as first:
            first.writer.transport.pause_reading()  # type: ignore[attr-defined]
            pages = b'{"jsonrpc":"2.0","method":"pages","id":1,"params":{"count":1000000}}\n'
            first.send(pages)
            while True:  # Until the server has nowhere to put more pages.
                with suppress(VtepError):
                    assert await asyncio.to_thread(ask_once, path) == {}
                    return

    run(main())


def test_an_idle_client_gets_the_reason_why_it_was_disconnected(
    run: Callable[..., None], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CLIENTS_MAX", 1)
    monkeypatch.setattr(server, "IDLE_S", 0.0)

    def use() -> None:
        with Client(path) as client:
            client.call("echo")
            assert ask_once(path) == {}
            with pytest.raises(VtepError, match="disconnected: idle"):
                client.call("echo")
            with pytest.raises(DisconnectedError, match="the VTEP has ended"):
                client.call("echo")

    async def main() -> None:
        async with serving(path):
            await asyncio.to_thread(use)

    run(main())


def test_the_client_reports_a_server_that_stops_during_a_request(
    run: Callable[..., None], path: Path
) -> None:
    def wait() -> None:
        with Client(path) as client, pytest.raises(DisconnectedError, match="the VTEP has ended"):
            client.call("wait")

    async def main() -> None:
        async with serving(path) as methods:
            asked = asyncio.create_task(asyncio.to_thread(wait))
            await until(lambda: ("wait", {}) in methods.called)
        await asked

    run(main())


def test_a_client_that_sends_a_line_too_long_gets_the_reason(
    run: Callable[..., None], path: Path
) -> None:
    """Though it first sends all of it."""

    def send() -> bytes:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(20)
            peer.connect(os.fspath(path))
            peer.sendall(b"x" * 900_000 + b"\n")
            peer.shutdown(socket.SHUT_WR)
            return peer.makefile("rb").read()

    async def main() -> None:
        async with serving(path):
            assert b"a line has at most 65536 octets" in await asyncio.to_thread(send)

    run(main())


def test_a_client_is_accepted_once_there_is_a_descriptor(
    run: Callable[..., None], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is accepted when there is one; until then the loop is not kept busy by it."""
    tries = []
    accept = Server._accept

    def counted(self: Server, listener: socket_files.ControlSocket) -> None:
        tries.append(listener)
        accept(self, listener)

    monkeypatch.setattr(Server, "_accept", counted)
    monkeypatch.setattr(server, "_ACCEPT_PAUSE_S", 0.05)

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as waiting:
            async with serving(path), connected(path) as first:
                await first.ask("echo")
                tries.clear()
                with no_descriptors():
                    waiting.connect(os.fspath(path))
                    await until(lambda: tries)
                    for _ in range(10000):
                        await asyncio.sleep(0)
                    assert len(tries) < 1000
                    assert "result" in await first.ask("echo")
                waiting.sendall(b'{"jsonrpc": "2.0", "method": "echo", "id": 7}\n')
                answer = await asyncio.to_thread(waiting.recv, 4096)
                assert json.loads(answer)["id"] == 7

    run(main())


def test_the_last_descriptors_are_kept_from_clients(
    run: Callable[..., None], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with serving(path), connected(path) as first:
            await first.ask("echo")
            monkeypatch.setattr(descriptors, "RESERVE", 1 << 30)
            # It says why, although it hangs up at once.
            with (
                pytest.raises(VtepError, match="too many clients"),
                Client(path) as client,
            ):
                await asyncio.to_thread(client.call, "echo")
            assert "result" in await first.ask("echo")

    run(main())


def test_requests_are_executed_one_at_a_time(run: Callable[..., None], path: Path) -> None:
    async def main() -> None:
        async with serving(path) as methods, connected(path) as first, connected(path) as second:
            waiting = asyncio.create_task(first.ask("wait"))
            await until(lambda: methods.called)
            then = asyncio.create_task(second.ask("echo"))
            for _ in range(20):
                await asyncio.sleep(0)
            assert methods.called == [("wait", {})]
            methods.may_end.set()
            assert (await waiting)["result"] == "done"
            assert (await then)["result"] == {}

    run(main())


def test_a_line_is_answered_after_its_changes_are_flushed(
    run: Callable[..., None], path: Path
) -> None:
    async def main() -> None:
        async with serving(path) as methods, connected(path) as peer:
            await peer.ask("echo")
            two = [{"jsonrpc": "2.0", "method": "echo", "id": number} for number in (1, 2)]
            peer.send(json.dumps(two).encode() + b"\n")
            await peer.answer()
            called = [name for name, _ in methods.called]
            assert called == ["echo", "flush", "echo", "echo", "flush"]
            methods.disk_is_full = True
            assert (await peer.ask("echo"))["error"]["message"] == "no disk"

    run(main())


def test_stopping_disconnects_a_client_that_waits(run: Callable[..., None], path: Path) -> None:
    async def main() -> None:
        async with serving(path) as methods:
            reader, writer = await asyncio.open_unix_connection(os.fspath(path))
            peer = RawClient(reader, writer)
            waiting = asyncio.create_task(peer.ask("wait"))
            await until(lambda: methods.called)
        with suppress(OSError):
            assert await waiting is None
        writer.close()

    run(main())


# --- the client ---------------------------------------------------------------------------------


def test_the_client(run: Callable[..., None], path: Path) -> None:
    def use(methods: FakeMethods, loop: asyncio.AbstractEventLoop) -> None:
        with Client(path) as client:
            assert client.call("echo", a=1, b=None) == {"a": 1}
            with pytest.raises(VtepError, match="no room") as refused:
                client.call("refuse")
            assert refused.value.exit_code == 1
            with pytest.raises(ConfigError, match="--mtu 1") as misused:
                client.call("misuse")
            assert misused.value.exit_code == 2
            with pytest.raises(VtepError, match="another version"):
                client.call("none")
            with pytest.raises(VtepError, match="at most 65536 octets"):
                client.call("echo", a="x" * 70000)
        with Client(path) as client:
            events = client.monitor()
            loop.call_soon_threadsafe(methods.observers[0], {"event": "added"})
            assert len(client.call("pages", count=3)) == 30
            loop.call_soon_threadsafe(methods.observers[0], {"event": "deleted"})
            assert [next(events)["event"], next(events)["event"]] == ["added", "deleted"]

    async def main() -> None:
        async with serving(path) as methods:
            await asyncio.to_thread(use, methods, asyncio.get_running_loop())

    run(main())


def test_a_client_without_a_server(path: Path) -> None:
    with pytest.raises(DisconnectedError, match=r"x\.sock: no pyvtep answers there"):
        Client(path)


def test_a_file_that_is_not_a_socket(path: Path) -> None:
    path.write_text("")
    for other in (path, path.parent):
        with pytest.raises(DisconnectedError, match=f"^--socket {other}: is not a socket$"):
            Client(other)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400\r\n", b"[]\n", b"{"])
def test_a_client_of_another_kind_of_server(path: Path, said: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        with Client(path) as client:
            peer, _ = listener.accept()
            peer.send(said)
            peer.shutdown(socket.SHUT_WR)
            with pytest.raises(DisconnectedError, match=r"x\.sock: "):
                client.call("echo")
            peer.close()


def test_a_server_that_does_not_answer(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        with (
            Client(path, timeout=0.05) as client,
            pytest.raises(DisconnectedError, match=r"no answer within 0\.05 seconds"),
        ):
            client.call("echo")


def test_a_client_waits_while_the_accept_queue_is_full(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
        listener.bind(os.fspath(path))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(os.fspath(path))
            with pytest.raises(DisconnectedError, match="no pyvtep answers there"):
                Client(path, timeout=0.05)
            accepted = threading.Timer(0.1, lambda: stack.enter_context(listener.accept()[0]))
            accepted.start()
            Client(path).close()
            accepted.join()


def test_no_request_is_sent_to_a_server_that_answers_no_ping(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        with Client(path, timeout=0.05) as client, suppress(DisconnectedError):
            client.vni.delete(1)
        peer, _ = listener.accept()
        with peer:
            assert b"vni" not in peer.recv(1000)


# --- where it is --------------------------------------------------------------------------------


def test_only_the_owner_may_connect(path: Path) -> None:
    before = os.umask(0)
    try:
        listener = socket_files.listen(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    listener.socket.close()


def test_a_socket_that_is_in_use_is_not_taken(path: Path) -> None:
    listener = socket_files.listen(path)
    with pytest.raises(VtepError, match=f"in use by process {os.getpid()}; give another PATH"):
        socket_files.listen(path)
    listener.socket.close()


def test_a_dead_socket_is_replaced(path: Path) -> None:
    socket_files.listen(path).socket.close()
    assert path.exists()
    listener = socket_files.listen(path)
    assert socket_files.listening_process(path) == os.getpid()
    listener.socket.close()


def test_a_file_that_is_no_socket_is_kept(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(VtepError, match="exists and is not a socket; give another PATH"):
        socket_files.listen(path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    "name", ["missing/x.sock", "x" * 120], ids=["no-such-folder", "a-name-too-long"]
)
def test_a_path_at_which_no_socket_can_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(VtepError, match="give another PATH, or none"):
        socket_files.listen(tmp_path / name)


def test_the_socket_of_another_process_is_not_removed(path: Path) -> None:
    first = socket_files.listen(path)
    path.unlink()
    second = socket_files.listen(path)
    first.remove()
    assert path.exists()
    second.remove()
    assert not path.exists()
    for listener in (first, second):
        listener.socket.close()


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Our own /run/pyvtep."""
    monkeypatch.setattr(socket_files, "_RUN", tmp_path / "pyvtep")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return tmp_path / "pyvtep"


def test_the_second_socket_of_a_name_gets_another_one(run_folder: Path) -> None:
    first, nobody = socket_files.listen_by_default("vx0")
    assert nobody is None
    second, taken = socket_files.listen_by_default("vx0")
    assert f"in use by process {os.getpid()}" in str(taken)
    assert stat.S_IMODE(run_folder.stat().st_mode) == 0o700
    assert first.path == run_folder / "vx0.sock"
    assert second.path == run_folder / f"vx0-{os.getpid()}.sock"
    for listener in (first, second):
        listener.socket.close()


def test_sockets_of_killed_processes_are_removed(run_folder: Path) -> None:
    first, _ = socket_files.listen_by_default("vx0")
    second, _ = socket_files.listen_by_default("vx0")
    (run_folder / "file.sock").write_text("no socket")
    second.socket.close()
    third, _ = socket_files.listen_by_default("vx1")
    assert {path.name for path in run_folder.iterdir()} == {
        *(".lock", "vx0.sock", "vx1.sock", "file.sock")
    }
    for listener in (first, third):
        listener.socket.close()


def test_without_root_the_socket_is_in_the_users_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    listener, _ = socket_files.listen_by_default("vx0")
    assert listener.path == tmp_path / "pyvtep" / "vx0.sock"
    assert found() == [listener.path]
    listener.socket.close()
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    with pytest.raises(VtepError, match="XDG_RUNTIME_DIR is not set; name one"):
        socket_files.listen_by_default("vx0")
    with pytest.raises(VtepError, match="no running pyvtep was found"):
        find()


def found(**which: Any) -> list[Path]:
    return [each.path for each in find(**which)]


def test_the_only_live_socket_is_found(run_folder: Path) -> None:
    with pytest.raises(VtepError, match="no running pyvtep was found in"):
        find()
    socket_files.listen_by_default("dead0")[0].socket.close()
    with pytest.raises(VtepError, match="no running pyvtep was found in"):
        find()
    listener, _ = socket_files.listen_by_default("vx0")
    assert found() == [run_folder / "vx0.sock"]
    listener.socket.close()


_LISTEN = """
import sys; from pathlib import Path; from vtep.control import socket_files as paths
listener = paths.listen(Path(sys.argv[1])); print("up", flush=True); sys.stdin.read()
"""


@pytest.fixture
def elsewhere(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator["subprocess.Popen[str]"]:
    """Start a listener in another process, in its own network namespace if that is allowed.

    It answers nothing, as a process that is stopped.
    """
    monkeypatch.setattr(client, "_PING_TIMEOUT_S", 0.1)
    run_folder.mkdir()
    prefix = ["unshare", "--net"] if os.getuid() == 0 else ["unshare", "--net", "--user"]
    command = [*prefix, sys.executable, "-c", _LISTEN, str(run_folder / "vx0.sock")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        yield child


def test_of_several_the_one_of_this_namespace_is_chosen(
    run_folder: Path, elsewhere: "subprocess.Popen[str]"
) -> None:
    assert found(changes=False) == [run_folder / "vx0.sock"]
    with pytest.raises(VtepError, match="no pyvtep runs in this network namespace") as refused:
        find()
    assert f"{run_folder / 'vx0.sock'} (process {elsewhere.pid})" in str(refused.value)
    here, _ = socket_files.listen_by_default("vx0")
    assert found() == [here.path]
    another, _ = socket_files.listen_by_default("vx1")
    with pytest.raises(VtepError, match="several pyvteps are running; choose one") as several:
        find()
    assert f"{here.path} (process {os.getpid()}); {another.path}" in str(several.value)
    assert found(changes=False, every=True) == [here.path, another.path]
    for listener in (here, another):
        listener.socket.close()
    with pytest.raises(VtepError, match=f"in use by process {elsewhere.pid}; give another PATH"):
        socket_files.listen(run_folder / "vx0.sock")
    elsewhere.send_signal(signal.SIGKILL)
    elsewhere.wait()
    listener = socket_files.listen(run_folder / "vx0.sock")
    listener.socket.close()


def test_a_request_that_meets_a_handover_is_executed_by_the_other_server(
    run: Callable[..., None], path: Path
) -> None:
    """One that waits for a lasting one, which delays no others, and one that comes in the pause."""
    old, new = FakeMethods(), FakeMethods()

    async def main() -> None:
        listening = socket_files.listen(path)
        handed = evolve(listening, socket=listening.socket.dup())
        first, second = (
            Server(
                *(methods.call, methods.watch, methods.flush, Policy(os.geteuid())),
                lasting=("wait",),
            )
            for methods in (old, new)
        )
        await first.start(listening)
        async with connected(path) as raw, AsyncExitStack() as held:
            await held.enter_async_context(first.changing)
            assert await raw.ask("echo") == {"jsonrpc": "2.0", "result": {}, "id": 1}
            client = await asyncio.to_thread(Client, path)
            waiting = asyncio.create_task(asyncio.to_thread(client.call, "wait"))
            await until(lambda: first.changing._waiters)
            assert "result" in await raw.ask("echo")
            await first.pause()
            raw.send(b'{"jsonrpc":"2.0","method":"echo","id":9}\n')
            await until(lambda: first._lock._waiters)
            called = [*old.called]
            first.hand_over()
            await held.aclose()
            answer = await raw.answer()
            assert (answer["id"], answer["error"]["code"]) == (9, Code.HANDED_OVER)
            await first.stop()
            assert old.called == called
            new.may_end.set()
            await second.start(handed)
            assert await waiting == "done"
            client.close()
        assert ("wait", {}) in new.called
        await second.stop()

    run(main())
