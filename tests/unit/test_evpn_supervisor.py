"""The supervisor of the speaker: its end, restarts, silence, and entries without a speaker."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Awaitable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import attrs
import pytest

from tests.unit import evpn_fake
from tests.unit.test_control_methods import Still, ask
from vtep.config import Config, Settings
from vtep.config.evpn import EvpnSettings
from vtep.control.params import Params
from vtep.daemon.port import Port
from vtep.errors import VtepError
from vtep.evpn.process import SpeakerProcess
from vtep.evpn.supervisor import Supervisor

if TYPE_CHECKING:
    from vtep.control.server import Server

TOKEN_OF_CHILD = Params({"token": "right", "version": "1"})


def run(main: Awaitable[None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await main

    asyncio.run(limited())


STATE: dict[str, Any] = {
    **dict.fromkeys(("starts", "generation", "last_instance", "flushes"), 1),
    "token": "right",
    "last_error": None,
    "instances": {},
}


def child() -> tuple[Any, SpeakerProcess]:
    """Return a process in place of a speaker, and how the supervisor sees it."""
    popen = subprocess.Popen(["/bin/sleep", "600"])
    return popen, SpeakerProcess(popen.pid, "right", popen)


def supervisor(vtep: Still | None = None) -> Supervisor:
    found = Supervisor(vtep or Still())
    found.configure(configured())
    return found


def configured() -> Settings:
    return Settings(segments=[], evpn=EvpnSettings(asn=65000, neighbor="198.51.100.1"))


@pytest.mark.parametrize("number", [signal.SIGKILL, 40])
def test_the_end_of_a_speaker_is_named_whatever_the_signal(number: int) -> None:
    async def main() -> None:
        popen, speaker = child()
        popen.send_signal(number)
        await speaker.ended.wait()
        assert speaker.reap() == f"ended by {'SIGKILL' if number == 9 else 'signal 40'}"
        assert speaker.pidfd == -1
        speaker.leave()  # The number may be that of a TAP by now.

    run(main())


def test_a_hung_speaker_of_a_former_process_is_killed_if_it_is_known() -> None:
    """Its number alone may be that of another process by now."""

    async def main() -> None:
        for is_known in (False, True):
            popen, before = child()
            watching = supervisor()
            state = {**STATE, "pid": popen.pid}
            watching.adopt(state, {}, os.dup(before.pidfd) if is_known else None)
            before.leave()
            speaker = watching._speaker
            assert speaker is not None
            assert watching.pidfd() == speaker.pidfd
            assert speaker.send(signal.SIGKILL) is is_known
            await speaker.ended.wait()
            assert (popen.poll() is None) or is_known
            popen.kill()
            assert popen.wait() == -signal.SIGKILL
            await watching.stop(handed_over=False)
            assert watching.pidfd() is None

    run(main())


def test_a_handed_over_speaker_that_makes_no_sense_is_given_up() -> None:
    async def main() -> None:
        _, before = child()
        watching, pidfd = supervisor(), os.dup(before.pidfd)
        watching.adopt({}, {}, pidfd)
        assert watching.pidfd() is None
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(pidfd)
        watching._speaker = before
        await watching.stop(handed_over=False)

    run(main())


def test_a_restart_that_fails_is_answered(tmp_path: Path) -> None:
    async def main() -> None:
        watching = supervisor()
        watching.on_serving(cast("Server", SimpleNamespace(path=tmp_path / "vx0.sock")))
        task = asyncio.ensure_future(watching.run())
        for _ in range(2):
            with pytest.raises(VtepError, match=r"cannot start .*/vx0\.sock, .* was removed"):
                await watching.restart()
        task.cancel()
        await watching.stop(handed_over=False)

    run(main())


def test_a_restart_is_answered_if_evpn_is_removed_meanwhile() -> None:
    async def main() -> None:
        watching = supervisor()
        first = watching.restart()
        watching.configure(Settings(segments=[]))
        with pytest.raises(VtepError, match="there is no EVPN"):
            await first
        watching.configure(configured())
        popen, watching._speaker = child()
        task = asyncio.ensure_future(watching.run())
        second = watching.restart()
        while watching._restarting:  # noqa: ASYNC110  nothing could set an event
            await asyncio.sleep(0)
        third = watching.restart()
        watching.configure(Settings(segments=[]))
        assert (await second)["pid"] == popen.pid
        with pytest.raises(VtepError, match="there is no EVPN"):
            await third
        task.cancel()
        await watching.stop(handed_over=False)

    run(main())


def test_a_speaker_that_only_attaches_is_as_silent_as_before() -> None:
    async def main() -> None:
        watching = supervisor()
        _, watching._speaker = child()
        watching.attach(TOKEN_OF_CHILD)
        timer = watching._alarm._timer
        watching.attach(TOKEN_OF_CHILD)
        assert watching._alarm._timer is timer
        report = {"token": "right", **evpn_fake.report()}
        watching.report(Params({**report, "part": 0, "more": True}))
        assert watching._alarm._timer is timer
        assert not watching.status()["sessions"]
        watching.report(Params({**report, "part": 1}))
        assert watching._alarm._timer is not timer
        assert len(watching.status()["sessions"]) == 2
        await watching.stop(handed_over=False)

    run(main())


def test_an_upgrade_hands_over_since_when_the_speaker_runs() -> None:
    async def main() -> None:
        former, watching = supervisor(), supervisor()
        _, former._speaker = child()
        former.attach(TOKEN_OF_CHILD)
        assert former._running_since is not None
        former._running_since -= 1000
        watching.adopt(former.state(), {})
        watching.attach(TOKEN_OF_CHILD)
        shown = watching.status()["speaker"]
        assert shown["state"] == "running"
        assert shown["age"] >= 1000
        await watching.stop(handed_over=True)
        await former.stop(handed_over=False)

    run(main())


def instance(watching: Supervisor) -> int:
    (segment,) = watching._config()["segments"]
    number: int = segment["instance"]
    return number


def change(vtep: Still, port: Port, **options: Any) -> None:
    port.config = attrs.evolve(port.config, **options)
    vtep._ports.notify("changed", port, options)


def filled() -> tuple[Still, Port]:
    """Return a VTEP, and a port with entries for more than one slice of a removal."""
    vtep = Still(Config(vni=1, remote="192.0.2.2", tap="vx0", evpn=True))
    for first in (0, 1000):
        changes = [
            {
                "verb": "replace",
                "mac": f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}",
                "dst": "192.0.2.9",
                "extern_learn": True,
            }
            for number in range(first, first + 1000)
        ]
        assert ask(vtep, "fdb.batch", vni=1, changes=changes)["errors"] == []
    return vtep, vtep.ports[1]


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_a_vni_that_is_of_evpn_again_keeps_what_its_speaker_installs() -> None:
    """Also if the speaker was busy, and has not seen that the VNI was not of EVPN meanwhile."""
    vtep, port = filled()

    async def main() -> None:
        watching = supervisor(vtep)
        _, watching._speaker = child()
        watching.attach(TOKEN_OF_CHILD)
        before = instance(watching)
        change(vtep, port, evpn=False)
        await turns(3)
        assert 0 < len(port.fdb) < 2000
        change(vtep, port, evpn=True)
        left = len(port.fdb)
        await turns(20)
        assert len(port.fdb) == left
        assert instance(watching) != before
        await watching.stop(handed_over=False)

    run(main())


def test_a_speaker_that_comes_late_finds_entries_that_stay() -> None:
    vtep, port = filled()

    async def main() -> None:
        watching = supervisor(vtep)
        _, watching._speaker = child()
        watching._on_stale()
        await turns(3)
        watching.attach(TOKEN_OF_CHILD)
        left = len(port.fdb)
        assert 0 < left < 2000
        await turns(20)
        assert len(port.fdb) == left
        watching._remove([port])
        while len(port.fdb):  # noqa: ASYNC110  nothing could set an event
            await asyncio.sleep(0)
        await watching.stop(handed_over=False)

    run(main())
