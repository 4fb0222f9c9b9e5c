"""The speaker before it has a BGP identifier, and at its end: with a daemon of these tests."""

import asyncio
import os
import signal
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.test_evpn_speaker_config import SEGMENTS, answer
from vtep.config.evpn import EvpnSettings
from vtep.evpn.speaker import Speaker
from vtep.evpn.speaker_config import SpeakerConfig, derive_router_id


class FakeLink:
    """A daemon that gives one configuration later."""

    path = Path("/nonexistent/socket")

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.later: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.attaches = asyncio.Event()
        self.waits = asyncio.Event()

    async def attach(self) -> dict[str, Any]:
        self.attaches.set()
        return await self.later

    async def next_config(self, after: int) -> dict[str, Any]:
        self.asked.append(after)
        self.waits.set()
        return await self.later

    def close(self) -> None:
        pass


def run(main: Callable[[Any, FakeLink], Any]) -> None:
    """Run a test with a speaker of a host that has no own address."""

    async def limited() -> None:
        link: Any = FakeLink()
        speaker: Any = Speaker(link)
        speaker._own_addresses = lambda _: []
        try:
            async with asyncio.timeout(60):
                await main(speaker, link)
        finally:
            await speaker._stop()

    asyncio.run(limited())


def test_a_configuration_ends_the_wait_for_an_own_address() -> None:
    async def main(speaker: Any, link: FakeLink) -> None:
        config = SpeakerConfig.parse(answer(SEGMENTS[1]))
        settings = config.settings
        assert settings is not None
        waiting = asyncio.ensure_future(speaker._find_router_id(config, settings))
        await link.waits.wait()
        assert [each["neighbor"] for each in speaker._waiting] == ["10.0.0.1", "fe80::1%eth0"]
        later = answer(generation=4)
        link.later.set_result(later)
        assert await waiting == later
        assert link.asked == [3]
        assert speaker._waiting == []
        given = EvpnSettings(**{**settings.to_json(), "router_id": "192.0.2.7"})
        assert await speaker._find_router_id(config, given) is None
        assert speaker._router_id == IPv4Address("192.0.2.7")

    run(main)


def test_speaker_that_waits_for_an_address_ends_without_evpn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It deletes what a former speaker has left on bridge ports."""

    async def main(speaker: Any, link: FakeLink) -> None:
        removed: list[Any] = []

        async def remove_remains(places: Any) -> None:
            removed.append(places)

        monkeypatch.setattr(speaker._watch, "remove_remains", remove_remains)
        config = SpeakerConfig.parse(answer(SEGMENTS[1]))
        following = asyncio.ensure_future(speaker._follow(config))
        await link.waits.wait()
        link.later.set_result(answer(generation=4, settings=None))
        await following
        assert removed == [config.places]

    run(main)


def test_the_wait_ends_with_an_own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtep.evpn.speaker._ROUTER_ID_S", 0.001)

    async def main(speaker: Any, link: FakeLink) -> None:
        config = SpeakerConfig.parse(answer(SEGMENTS[1]))
        assert config.settings is not None
        waiting = asyncio.ensure_future(speaker._find_router_id(config, config.settings))
        await link.waits.wait()
        found = [IPv4Address("192.0.2.1")]
        speaker._own_addresses = lambda _: found
        assert await waiting is None
        assert speaker._router_id == found[0]
        with pytest.raises(asyncio.CancelledError):
            await link.later

    run(main)


def test_identifier_is_the_first_ipv4_address_or_no_group() -> None:
    first, second = ip_address("2001:db8::1"), IPv4Address("192.0.2.1")
    assert derive_router_id([first, second]) == second
    assert not any(
        derive_router_id([ip_address(f"2001:db8::{number}")]).is_multicast for number in range(99)
    )


def test_sigterm_ends_a_speaker_that_attaches() -> None:
    async def main(speaker: Any, link: FakeLink) -> None:
        running = asyncio.ensure_future(speaker.run())
        await link.attaches.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await running

    run(main)


def test_end_of_sessions_at_the_end_of_the_speaker_changes_no_entries() -> None:
    async def main(speaker: Any, _: FakeLink) -> None:
        taken: list[str] = []

        class FakeTables:
            def peer_down(self, *_: object) -> None:
                taken.append("peer_down")

            def tick(self, _: float) -> None:
                taken.append("tick")

        class EndingPeers:
            async def stop(self, _: str) -> None:
                speaker.on_down(SimpleNamespace(name="p"), "end", None)
                for _turn in range(3):
                    await asyncio.sleep(0)

        speaker._tables = FakeTables()
        speaker._peers = EndingPeers()
        await speaker._stop()
        assert taken == ["peer_down"]
        speaker._peers = None

    run(main)
