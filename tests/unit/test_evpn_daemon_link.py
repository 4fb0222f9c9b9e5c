"""The speaker's connections to the daemon: admission, configurations, batches, and takeovers."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from vtep.control import jsonrpc, socket_files
from vtep.control.access import Policy
from vtep.control.jsonrpc import Code, RpcError
from vtep.control.server import Server
from vtep.control.socket_files import ControlSocket
from vtep.errors import VtepError
from vtep.evpn.daemon_link import DaemonGoneError, DaemonLink

Call = Callable[[str, dict[str, Any]], Any]


@asynccontextmanager
async def daemon(
    path: Path, call: Call, listening: ControlSocket | None = None
) -> AsyncIterator[Server]:
    """Serve a control socket whose methods are a function; `listening` is one that exists."""

    async def called(method: str, params: dict[str, Any]) -> Any:
        return call(method, params)

    async def flushed() -> None:
        pass

    server = Server(called, lambda _: lambda: None, flushed, Policy(os.geteuid()))
    await server.start(listening or socket_files.listen(path))
    try:
        yield server
    finally:
        await server.stop()


def run(main: Any) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await main

    asyncio.run(limited())


def admitting(method: str, params: dict[str, Any]) -> Any:
    """Answer as a daemon that knows the token "right"."""
    if method == "ping":
        return True
    if params.pop("token", "right") != "right":
        raise VtepError("this process is not the EVPN speaker that was started last")
    if method == "evpn.attach":
        return {"generation": 1}
    if method == "fdb.batch":
        changes = params["changes"]
        errors = [
            {"index": number, "error": "no"}
            for number, change in enumerate(changes)
            if change["mac"].endswith("07")
        ]
        return {"done": len(changes) - len(errors), "errors": errors}
    raise RpcError(Code.METHOD_NOT_FOUND, f"{method}: there is no such method")


def test_a_speaker_is_admitted_by_its_token(tmp_path: Path) -> None:
    path = tmp_path / "socket"

    async def main() -> None:
        link = DaemonLink(path, "right")
        with pytest.raises(DaemonGoneError, match="the daemon has ended"):
            await link.attach()
        async with daemon(path, admitting):
            assert await link.attach() == {"generation": 1}
            with pytest.raises(VtepError, match="there is no such method"):
                await link.call("other")
            with pytest.raises(DaemonGoneError, match="is not the EVPN speaker"):
                await DaemonLink(path, "wrong").attach()
            link.close()
        with pytest.raises(DaemonGoneError):
            await link.call("ping")

    run(main())


def test_batches_are_split_and_their_errors_found(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    seen: list[int] = []

    def call(method: str, params: dict[str, Any]) -> Any:
        if method == "fdb.batch":
            assert len(jsonrpc.encode(params)) <= jsonrpc.LINE_MAX
            if params["vni"] == 5:
                raise VtepError("vni 5: there is no such segment")
            seen.append(len(params["changes"]))
        return admitting(method, params)

    async def main() -> None:
        changes = [
            {
                "verb": "replace",
                "mac": f"02:00:00:00:{n >> 8:02x}:{n & 255:02x}",
                "dst": "192.0.2.1",
            }
            for n in range(1500)
        ]
        async with daemon(path, call):
            link = DaemonLink(path, "right")
            refused = await link.batch("fdb.batch", 100, changes)
            assert sum(seen) == 1500
            assert len(seen) > 1
            assert [change["mac"] for change, _ in refused] == [
                change["mac"] for change in changes if change["mac"].endswith("07")
            ]
            assert await link.batch("fdb.batch", 5, changes) == [
                (change, "vni 5: there is no such segment") for change in changes
            ]
            link.close()

    run(main())


def test_another_process_takes_over(tmp_path: Path) -> None:
    """As in an upgrade: the path leads to the new process, which is asked again."""
    path = tmp_path / "socket"
    attached: list[int] = []
    waiting: list[asyncio.Future[Any]] = []

    def serve(generation: int) -> Call:
        def call(method: str, params: dict[str, Any]) -> Any:
            if method == "evpn.attach":
                attached.append(generation)
                return {"generation": generation}
            if method == "evpn.config":
                if params["after"] != generation:
                    return {"generation": generation}
                waiting.append(asyncio.get_running_loop().create_future())
                return waiting[-1]
            return generation

        return call

    async def main() -> None:
        link = DaemonLink(path, "right")
        first = socket_files.listen(path)
        second = attrs.evolve(first, socket=first.socket.dup())
        async with daemon(path, serve(1), first) as old:
            await link.attach()
            assert await link.call("which") == 1
            config = asyncio.ensure_future(link.next_config(1))
            while not waiting:  # noqa: ASYNC110  nothing could set an event
                await asyncio.sleep(0)
            # It lets go of the socket, and answers no request any more.
            await old.pause()
            old.hand_over()
            async with daemon(path, serve(2), second):
                assert await link.call("which") == 2
                await old.stop()
                assert await config == {"generation": 2}
                assert attached[:2] == [1, 2]
                link.close()

    run(main())


@pytest.mark.parametrize("is_sent", [False, True])
def test_a_request_that_is_too_large_is_refused(
    is_sent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be again, so it is not repeated."""
    path = tmp_path / "socket"
    attached: list[str] = []
    given = {"text": "x" * jsonrpc.LINE_MAX}

    def call(method: str, params: dict[str, Any]) -> Any:
        attached.append(method)
        return admitting(method, params)

    async def main() -> None:
        async with daemon(path, call):
            link = DaemonLink(path, "right")
            await link.attach()
            with monkeypatch.context() as patch:
                if is_sent:  # Another limit, as of a later version.
                    limits = SimpleNamespace(request=jsonrpc.request, LINE_MAX=1 << 20)
                    patch.setattr("vtep.evpn.daemon_link.jsonrpc", limits)
                with pytest.raises(VtepError, match="a line has at most" if is_sent else "large"):
                    await link.call("ping", **given)
            assert attached == ["evpn.attach"]
            assert await link.call("ping")
            link.close()

    run(main())
