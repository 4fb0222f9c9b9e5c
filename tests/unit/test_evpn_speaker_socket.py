"""Requests to the speaker, and of the speaker to its daemon, that make no sense."""

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.unit.test_control_methods import Still
from vtep.config import Config
from vtep.control.params import Params
from vtep.errors import ConfigError, VtepError
from vtep.evpn.process import SpeakerProcess
from vtep.evpn.speaker_socket import SpeakerSocket
from vtep.evpn.supervisor import Supervisor

if TYPE_CHECKING:
    from vtep.control.server import Server


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(main)


@pytest.mark.parametrize("mac", ["nonsense", "02:00:00:00:00", "\ud800"])
@pytest.mark.parametrize("method", ["evpn.show", "evpn.clear"])
def test_a_wrong_mac_is_a_wrong_parameter(method: str, mac: str) -> None:
    server = SpeakerSocket(lambda *_: [], lambda *_: 0)
    with pytest.raises(ConfigError, match="mac"):
        run(server._call(method, {"mac": mac}))


def test_a_mac_may_have_capital_letters() -> None:
    seen: list[Any] = []

    def show(*given: Any) -> list[Any]:
        seen.append(given)
        return []

    server = SpeakerSocket(show, lambda *_: 0)
    run(server._call("evpn.show", {"what": "macs", "mac": "02-0A-00-00-00-01"}))
    assert seen == [("macs", None, None, b"\2\x0a\0\0\0\1")]


def supervisor() -> Supervisor:
    return Supervisor(Still(Config(vni=1, remote="192.0.2.2", tap="vx0")))


@pytest.mark.parametrize("token", ["wrong", "\ud800", "\u00e9"])
def test_a_wrong_token_is_refused(token: str) -> None:
    async def main() -> None:
        watching = supervisor()
        speaker = watching._speaker = SpeakerProcess(os.getpid(), "right", None)
        with pytest.raises(VtepError, match="is not the EVPN speaker"):
            watching.attach(Params({"token": token}))
        speaker.leave()

    run(main())


def test_no_speaker_starts_without_the_control_socket(tmp_path: Path) -> None:
    """It could not connect, and would be started again and again."""

    async def main() -> None:
        watching = supervisor()
        watching.on_serving(cast("Server", SimpleNamespace(path=tmp_path / "vx0.sock")))
        with pytest.raises(VtepError, match=r"vx0\.sock, to which it connects, was removed; rest"):
            watching._start()

    run(main())
