"""What comes back from a state file, and when it is written."""

import asyncio
import errno
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from vtep import Config, Vtep
from vtep.config import Settings
from vtep.daemon import state_file, state_writer
from vtep.daemon.port import Port
from vtep.daemon.state_file import Saved
from vtep.daemon.state_writer import Settle, keep, load, restore
from vtep.errors import VtepError
from vtep.forwarding.fdb import LEARNED, EntryKind, EntryState, Remote
from vtep.wire.ethernet import MAC_ZERO

NOW = 1000.0
STATIC = EntryKind(EntryState.STATIC)


def mac(number: int) -> bytes:
    return b"\x02" + number.to_bytes(5, "big")


def port(**options: object) -> Port:
    config = Config(**{"vni": 1, "remote": "192.0.2.2", **options})  # type: ignore[arg-type]
    return Vtep(config).port


def learned(number: int, host: str = "192.0.2.2", age: float = 10) -> Saved:
    return Saved(1, mac(number), (Remote(host, 4789),), LEARNED, age)


def static(address: bytes, *hosts: str) -> Saved:
    return Saved(1, address, tuple(Remote(host, 4789) for host in hosts), STATIC, 0)


def shown(port: Port) -> dict[bytes, list[str]]:
    return {entry.mac: [to.host for to in entry.destinations] for entry in port.fdb.entries()}


# --- what comes back ----------------------------------------------------------------------------


def test_what_was_put_in_comes_back_as_it_was() -> None:
    one = port()
    saved = [
        static(mac(1), "192.0.2.7", "192.0.2.8"),
        static(MAC_ZERO, "192.0.2.9"),
        static(b"\x01\x00\x5e\x00\x00\x01", "192.0.2.8"),
    ]
    assert restore(one, saved, NOW, NOW, learned=False) == []
    assert shown(one) == {
        MAC_ZERO: ["192.0.2.2", "192.0.2.9"],
        mac(1): ["192.0.2.7", "192.0.2.8"],
        b"\x01\x00\x5e\x00\x00\x01": ["192.0.2.8"],
    }
    assert one.fdb.get(mac(1)).kind == STATIC


def test_what_was_put_in_replaces_what_was_learned_meanwhile() -> None:
    one = port()
    one.fdb.learn(mac(1), one.segment.remotes[0], NOW)
    restore(one, [static(mac(1), "192.0.2.7")], NOW, NOW, learned=True)
    assert shown(one)[mac(1)] == ["192.0.2.7"]


def test_what_was_learned_comes_back_if_it_is_wanted() -> None:
    one = port()
    restore(one, [learned(1)], NOW, NOW, learned=False)
    assert mac(1) not in shown(one)
    restore(one, [learned(1)], NOW, NOW + 5, learned=True)
    entry = one.fdb.get(mac(1))
    assert (entry.kind, entry.updated) == (LEARNED, NOW - 10)
    assert entry.destinations[0] is one.segment.remotes[0]


def test_what_was_learned_ages_while_nothing_runs() -> None:
    one = port(ageing=300)
    restore(one, [learned(1, age=10), learned(2, age=100)], NOW, NOW + 250, learned=True)
    assert set(shown(one)) == {MAC_ZERO, mac(1)}
    one.fdb.sweep(NOW + 289)
    assert mac(1) in shown(one)
    one.fdb.sweep(NOW + 291)
    assert mac(1) not in shown(one)


def test_what_was_learned_of_strangers_does_not_come_back() -> None:
    """Frames for it would go to a host that is no part of the segment any more."""
    one = port(accept="198.51.100.0/24")
    saved = [learned(1, "192.0.2.9"), learned(2, "198.51.100.7"), learned(3)]
    restore(one, saved, NOW, NOW, learned=True)
    assert set(shown(one)) == {MAC_ZERO, mac(2), mac(3)}


def test_hosts_of_static_entries_are_no_strangers() -> None:
    one = port()
    saved = [learned(1, "192.0.2.9"), static(mac(2), "192.0.2.9")]
    restore(one, saved, NOW, NOW, learned=True)
    assert mac(1) in shown(one)


def test_no_more_come_back_than_may_be_learned() -> None:
    one = port(max_addresses=3)
    restore(one, [learned(number) for number in range(10)], NOW, NOW, learned=True)
    assert len(one.fdb) == 3


def test_what_makes_no_sense_is_left_out_and_told() -> None:
    one = port()
    wrong = Saved(1, MAC_ZERO, (Remote("192.0.2.7", 4789),), EntryKind(EntryState.DYNAMIC), 0)
    told = restore(one, [wrong, static(mac(1), "192.0.2.7")], NOW, NOW, learned=True)
    assert mac(1) in shown(one)
    assert (len(told), told[0][:8]) == (1, "dynamic:")


# --- when it is written -------------------------------------------------------------------------


@asynccontextmanager
async def keeping(vtep: Vtep, path: Path, *, learned: bool = False) -> AsyncIterator[Settle]:
    settings = Settings(segments=(), state=str(path), state_learned=learned)
    async with keep(vtep, settings, load(settings)) as settle:
        yield settle


def kept(path: Path) -> dict[bytes, list[str]]:
    _, entries = state_file.decode(path.read_bytes())
    return {saved.mac: [to.host for to in saved.destinations] for saved in entries}


def written(path: Path) -> bool:
    return path.exists()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_writer, "_DELAY", 0.01)
    monkeypatch.setattr(state_writer, "_RETRY", 0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def vtep() -> Vtep:
    return Vtep(Config(vni=1, remote="192.0.2.2"))


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await main()

    asyncio.run(bounded())


def test_a_change_is_written_and_the_end_too(vtep: Vtep, path: Path) -> None:
    async def main() -> None:
        async with keeping(vtep, path):
            vtep.fdb.add(mac(1), Remote("192.0.2.7", 4789), NOW)
            await until(path.exists)
            assert kept(path) == {mac(1): ["192.0.2.7"]}
            vtep.fdb.append(MAC_ZERO, Remote("192.0.2.8", 4789), NOW)
            await until(lambda: len(kept(path)) == 2)
            vtep.fdb.remove(mac(1))
            vtep.fdb.learn(mac(2), vtep.port.segment.remotes[0], NOW)
        # Not the configured remote, nor what was learned.
        assert kept(path) == {MAC_ZERO: ["192.0.2.8"]}
        assert sorted(file.name for file in path.parent.iterdir()) == ["state"]

    run(main)


def test_learning_alone_is_no_reason_to_write(vtep: Vtep, path: Path) -> None:
    async def main() -> None:
        async with keeping(vtep, path):
            for number in range(100):
                vtep.fdb.learn(mac(number), vtep.port.segment.remotes[0], NOW)
                await asyncio.sleep(0.001)
            assert not written(path)
        assert kept(path) == {}

    run(main)


def test_learned_entries_are_written_if_wanted(vtep: Vtep, path: Path) -> None:
    async def main() -> None:
        async with keeping(vtep, path, learned=True):
            vtep.fdb.learn(mac(1), vtep.port.segment.remotes[0], asyncio.get_running_loop().time())
            await until(path.exists)
            assert kept(path) == {mac(1): ["192.0.2.2"]}
        again = Vtep(vtep.port.config)
        async with keeping(again, path, learned=True):
            assert mac(1) in shown(again.port)

    run(main)


def test_entries_of_a_vni_that_is_not_there_are_kept_for_it(path: Path) -> None:
    async def main() -> None:
        both = Vtep(Config(vni=1, remote="192.0.2.2"), Config(vni=2, remote="192.0.2.2"))
        async with keeping(both, path):
            both.ports[2].fdb.add(mac(2), Remote("192.0.2.7", 4789), NOW)
        one = Vtep(Config(vni=1, remote="192.0.2.2"))
        async with keeping(one, path):
            one.fdb.add(mac(1), Remote("192.0.2.7", 4789), NOW)
            await until(lambda: set(kept(path)) == {mac(1), mac(2)})
            fresh = one._make_port(Config(vni=2, remote="192.0.2.3"))
            one._ports.put(fresh)
            one._ports.notify("added", fresh, {})
            assert shown(fresh) == {MAC_ZERO: ["192.0.2.3"], mac(2): ["192.0.2.7"]}
            fresh.fdb.remove(mac(2))
            fresh.fdb.add(mac(3), Remote("192.0.2.7", 4789), NOW)
            one._ports.discard(fresh)
        assert set(kept(path)) == {mac(1), mac(3)}

    run(main)


def test_a_disk_that_is_full_is_told_once_and_tried_again(
    vtep: Vtep, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replacing, tries = state_file.replacing, 0

    def full(target: Path) -> object:
        nonlocal tries
        tries += 1
        if tries <= 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replacing(target)

    monkeypatch.setattr(state_file, "replacing", full)

    async def main() -> None:
        async with keeping(vtep, path):
            vtep.fdb.add(mac(1), Remote("192.0.2.7", 4789), NOW)
            await until(path.exists)
            assert kept(path) == {mac(1): ["192.0.2.7"]}

    with caplog.at_level(logging.INFO):
        run(main)
    assert [record.getMessage() for record in caplog.records] == [
        f"--state {path}: cannot be written: No space left on device",
        f"--state {path}: is written again",
    ]


def test_who_waits_for_a_change_waits_for_the_file(
    vtep: Vtep, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_writer, "_DELAY", 3600)
    remote = Remote("192.0.2.7", 4789)

    async def main() -> None:
        async with keeping(vtep, path) as settle:
            for number in range(3):
                vtep.fdb.add(mac(number), remote, NOW)
                await settle()
                assert len(kept(path)) == number + 1
            vtep.fdb.learn(mac(5), vtep.port.segment.remotes[0], NOW)
            await settle()
            assert set(kept(path)) == {mac(0), mac(1), mac(2)}

    run(main)


def test_many_changes_do_not_wait_for_as_many_files(
    vtep: Vtep, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_writer, "_DELAY", 3600)
    monkeypatch.setattr(state_writer, "_PATIENCE", 1e-6)
    monkeypatch.setattr(state_writer, "_PATIENCE_SHARE", 0)

    async def main() -> None:
        async with keeping(vtep, path) as settle:
            for number in range(3):
                vtep.fdb.add(mac(number), Remote("192.0.2.7", 4789), NOW)
                await settle()
            assert len(kept(path)) == 1
        assert len(kept(path)) == 3

    run(main)


def test_a_disk_that_is_full_is_told_to_who_waits_and_at_the_end(
    vtep: Vtep, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(state_writer, "_RETRY", 3600)

    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    words = f"--state {path}: cannot be written: No space left on device"

    async def main() -> None:
        async with keeping(vtep, path) as settle:
            vtep.fdb.add(mac(1), Remote("192.0.2.7", 4789), NOW)
            with pytest.raises(VtepError, match=f"done, but not for long: {words}"):
                await settle()
            await settle()  # Who asks for something else is not told.

    with pytest.raises(VtepError, match=f"^{words}$"):
        run(main)
    assert [record.getMessage() for record in caplog.records] == [words]
    assert list(path.parent.iterdir()) == []


def test_changes_in_the_middle_of_writing_are_written_as_well(vtep: Vtep, path: Path) -> None:
    async def main() -> None:
        for number in range(1000):
            vtep.fdb.add(mac(number), Remote("192.0.2.7", 4789), NOW)
        async with keeping(vtep, path):
            for number in range(1000, 1200):
                vtep.fdb.add(mac(number), Remote("192.0.2.7", 4789), NOW)
                vtep.fdb.remove(mac(number - 1000))
                await asyncio.sleep(0.001)
            await until(
                lambda: path.exists() and set(kept(path)) == set(shown(vtep.port)) - {MAC_ZERO}
            )

    run(main)
