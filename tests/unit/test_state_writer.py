"""The state writer: what it restores, what it writes, and when."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from vtep import Config, Vtep
from vtep.config import Settings
from vtep.daemon import state_writer
from vtep.daemon.port import Port
from vtep.daemon.state_file import SavedEntry, StateFile
from vtep.daemon.state_writer import StateWriter, restore
from vtep.errors import FdbError, VtepError
from vtep.forwarding.fdb import (
    EXTERN_LEARN,
    LEARNED,
    LOCAL,
    DestinationOrigin,
    EntryKind,
    EntryState,
    Filter,
    Remote,
)
from vtep.wire.ethernet import MAC_ZERO

NOW = 1000.0
STATIC = EntryKind(EntryState.STATIC)
Flush = Callable[[], Awaitable[None]]


def mac(number: int) -> bytes:
    return b"\x02" + number.to_bytes(5, "big")


def port(**options: object) -> Port:
    config = Config(**{"vni": 1, "remote": "192.0.2.2", **options})  # type: ignore[arg-type]
    return Vtep(config).port


def learned(number: int, host: str = "192.0.2.2", age: float = 10) -> SavedEntry:
    return SavedEntry(1, mac(number), (Remote(host, 4789),), LEARNED, NOW - age)


def static(address: bytes, *hosts: str) -> SavedEntry:
    return SavedEntry(1, address, tuple(Remote(host, 4789) for host in hosts), STATIC, None)


def shown(port: Port) -> dict[bytes, list[str]]:
    return {entry.mac: [to.host for to in entry.destinations] for entry in port.fdb.entries()}


# --- what is restored ---------------------------------------------------------------------------


def test_static_entries_are_restored_as_they_were() -> None:
    one = port()
    saved = [
        static(mac(1), "192.0.2.7", "192.0.2.8"),
        static(MAC_ZERO, "192.0.2.9"),
        static(b"\x01\x00\x5e\x00\x00\x01", "192.0.2.8"),
    ]
    assert restore(one, saved, NOW, learned=False) == state_writer.Restored()
    assert shown(one) == {
        MAC_ZERO: ["192.0.2.2", "192.0.2.9"],
        mac(1): ["192.0.2.7", "192.0.2.8"],
        b"\x01\x00\x5e\x00\x00\x01": ["192.0.2.8"],
    }
    assert one.fdb.get(mac(1)).kind == STATIC


def test_static_entries_replace_what_was_learned_meanwhile() -> None:
    one = port()
    one.fdb.learn(mac(1), one.segment.remotes[0], NOW)
    restore(one, [static(mac(1), "192.0.2.7")], NOW, learned=True)
    assert shown(one)[mac(1)] == ["192.0.2.7"]


def test_learned_entries_are_restored_on_demand() -> None:
    one = port()
    restore(one, [learned(1)], NOW, learned=False)
    assert mac(1) not in shown(one)
    restore(one, [learned(1)], NOW + 5, learned=True)
    entry = one.fdb.get(mac(1))
    assert (entry.kind, entry.updated) == (LEARNED, NOW - 10)
    assert entry.destinations[0] is one.segment.remotes[0]


def test_learned_entries_age_while_nothing_runs() -> None:
    one = port(ageing=300)
    restored = restore(one, [learned(1, age=10), learned(2, age=100)], NOW + 250, learned=True)
    assert restored == state_writer.Restored()
    assert set(shown(one)) == {MAC_ZERO, mac(1)}
    one.fdb.sweep(NOW + 289)
    assert mac(1) in shown(one)
    one.fdb.sweep(NOW + 291)
    assert mac(1) not in shown(one)


def test_learned_entries_of_a_former_remote_are_not_restored() -> None:
    """Frames for them would go to a host that is no part of the segment any more."""
    one = port(accept="198.51.100.0/24")
    saved = [learned(1, "192.0.2.9"), learned(2, "198.51.100.7"), learned(3)]
    assert restore(one, saved, NOW, learned=True).unknown_remote == 1
    assert set(shown(one)) == {MAC_ZERO, mac(2), mac(3)}


def test_destinations_of_static_entries_are_part_of_the_segment() -> None:
    one = port()
    saved = [learned(1, "192.0.2.9"), static(mac(2), "192.0.2.9")]
    restore(one, saved, NOW, learned=True)
    assert mac(1) in shown(one)


def test_no_more_are_restored_than_may_be_learned() -> None:
    one = port(max_addresses=3)
    saved = [learned(number) for number in range(10)]
    assert restore(one, saved, NOW, learned=True).over_limit == 7
    assert len(one.fdb) == 3


def test_an_entry_that_is_refused_is_reported() -> None:
    one = port()
    wrong = SavedEntry(
        1, MAC_ZERO, (Remote("192.0.2.7", 4789),), EntryKind(EntryState.DYNAMIC), NOW
    )
    restored = restore(one, [wrong, static(mac(1), "192.0.2.7")], NOW, learned=True)
    assert mac(1) in shown(one)
    assert [refusal[:8] for refusal in restored.refused] == ["dynamic:"]


# --- what is written, and when ------------------------------------------------------------------


@asynccontextmanager
async def writing(vtep: Vtep, path: Path, *, learned: bool = False) -> AsyncIterator[Flush]:
    settings = Settings(segments=(), state=str(path), state_learned=learned)
    with StateWriter.open(settings) as writer:
        async with writer.attached(vtep):
            yield writer.flush


def kept(path: Path) -> dict[bytes, list[str]]:
    """Return what the file has, by MAC, as another program sees it."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        entries: dict[bytes, list[str]] = {}
        for text, dst in db.execute("SELECT mac, dst FROM fdb ORDER BY vni, mac, position"):
            entries.setdefault(bytes.fromhex(text.replace(":", "")), []).append(dst)
        return entries


def remove(path: Path) -> None:
    path.unlink(missing_ok=True)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_writer, "_DELAY_S", 0.01)
    monkeypatch.setattr(state_writer, "_RETRY_S", 0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def vtep() -> Vtep:
    return Vtep(Config(vni=1, remote="192.0.2.2"))


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await main()

    asyncio.run(bounded())


def test_a_change_is_written_soon_and_at_the_end(vtep: Vtep, path: Path) -> None:
    async def main() -> None:
        async with writing(vtep, path):
            vtep.fdb.add(mac(1), Remote("192.0.2.7", 4789), NOW)
            await until(lambda: path.exists() and kept(path) == {mac(1): ["192.0.2.7"]})
            vtep.fdb.append(MAC_ZERO, Remote("192.0.2.8", 4789), NOW)
            await until(lambda: len(kept(path)) == 2)
            vtep.fdb.remove(mac(1))
            vtep.fdb.learn(mac(2), vtep.port.segment.remotes[0], NOW)
        # Not the configured remote, nor what was learned.
        assert kept(path) == {MAC_ZERO: ["192.0.2.8"]}
        assert sorted(file.name for file in path.parent.iterdir()) == ["state"]

    run(main)


def test_learning_alone_causes_no_write(vtep: Vtep, path: Path) -> None:
    async def main() -> None:
        async with writing(vtep, path):
            for number in range(100):
                vtep.fdb.learn(mac(number), vtep.port.segment.remotes[0], NOW)
                await asyncio.sleep(0.001)
            assert not path.exists()  # noqa: ASYNC240
        assert kept(path) == {}

    run(main)


def test_learned_entries_are_written_on_demand(vtep: Vtep, path: Path) -> None:
    async def main() -> None:
        async with writing(vtep, path, learned=True):
            vtep.fdb.learn(mac(1), vtep.port.segment.remotes[0], time.monotonic())
            await until(lambda: path.exists() and kept(path) == {mac(1): ["192.0.2.2"]})
        again = Vtep(vtep.port.config)
        async with writing(again, path, learned=True):
            assert mac(1) in shown(again.port)

    run(main)


def test_ages_are_written_again(vtep: Vtep, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame from a known MAC is no change; yet its age has to be true after a restart."""
    monkeypatch.setattr(state_writer, "_REFRESH_S", 0.01)
    remote = vtep.port.segment.remotes[0]

    def age() -> float:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            ((seconds,),) = db.execute("SELECT time - updated FROM fdb, last_commit")
        return float(seconds)

    async def main() -> None:
        vtep.fdb.learn(mac(1), remote, time.monotonic() - 200)
        async with writing(vtep, path, learned=True):
            vtep.fdb.learn(mac(2), remote, time.monotonic())
            vtep.fdb.remove(mac(2))
            await until(lambda: path.exists() and set(kept(path)) == {mac(1)})
            assert age() > 190
            vtep.fdb.learn(mac(1), remote, time.monotonic())
            await until(lambda: age() < 190)
            vtep.fdb.learn(mac(1), remote, time.monotonic() + 1000)
        assert age() < -900

    run(main)


def test_entries_of_an_absent_vni_stay_in_the_file(path: Path) -> None:
    async def main() -> None:
        both = Vtep(Config(vni=1, remote="192.0.2.2"), Config(vni=2, remote="192.0.2.2"))
        async with writing(both, path):
            both.ports[2].fdb.add(mac(2), Remote("192.0.2.7", 4789), NOW)
        one = Vtep(Config(vni=1, remote="192.0.2.2"))
        async with writing(one, path) as flush:
            one.fdb.add(mac(1), Remote("192.0.2.7", 4789), NOW)
            await flush()
            assert set(kept(path)) == {mac(1), mac(2)}
            fresh = one._make_port(Config(vni=2, remote="192.0.2.3"))
            one._ports.put(fresh)
            one._ports.notify("added", fresh, {})
            assert shown(fresh) == {MAC_ZERO: ["192.0.2.3"], mac(2): ["192.0.2.7"]}
            fresh.fdb.remove(mac(2))
            fresh.fdb.add(mac(3), Remote("192.0.2.7", 4789), NOW)
            one._ports.discard(fresh)
            await flush()
            assert set(kept(path)) == {mac(1), mac(3)}
            remove(path)  # All of it is written again, entries of absent VNIs included.
            one.fdb.add(mac(4), Remote("192.0.2.7", 4789), NOW)
            await flush()
            assert set(kept(path)) == {mac(1), mac(3), mac(4)}
        assert set(kept(path)) == {mac(1), mac(3), mac(4)}

    run(main)


def test_what_is_not_restored_is_logged_and_removed(
    vtep: Vtep, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        remote = vtep.port.segment.remotes[0]
        async with writing(vtep, path, learned=True):
            for number in range(5):
                vtep.fdb.learn(mac(number), remote, time.monotonic())
            vtep.fdb.add(mac(9), Remote("192.0.2.9", 4789), NOW)
        assert len(kept(path)) == 6
        other = Vtep(Config(vni=1, remote="192.0.2.3"))
        async with writing(other, path, learned=True):
            pass
        assert kept(path) == {mac(9): ["192.0.2.9"]}

    with caplog.at_level(logging.INFO):
        run(main)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"--state {path}: 5 learned entries of vni 1 were not restored: their remotes are no part "
        "of the segment any more"
    )


def test_a_remote_that_becomes_a_configured_one_is_not_kept(vtep: Vtep, path: Path) -> None:
    async def main() -> None:
        async with writing(vtep, path) as flush:
            vtep.fdb.append(MAC_ZERO, Remote("192.0.2.8", 4789), NOW)
            await flush()
            assert kept(path) == {MAC_ZERO: ["192.0.2.8"]}
            vtep.port.segment.set_remotes(
                (*vtep.port.segment.configured, *vtep.fdb.get(MAC_ZERO).destinations), NOW
            )
            vtep._ports.notify("changed", vtep.port, {"remote": ()})
        assert kept(path) == {}

    run(main)


# --- any sequence of changes --------------------------------------------------------------------

_MACS = st.sampled_from([MAC_ZERO, mac(1), mac(2), mac(3), b"\x01\x00\x5e\x00\x00\x01"])
_REMOTES = st.builds(
    Remote, st.sampled_from(["192.0.2.2", "192.0.2.7", "192.0.2.8"]), st.just(4789)
)
_KINDS = st.builds(
    lambda state, sticky, origin: EntryKind(state, sticky=sticky).with_origins((origin,)),
    st.sampled_from(EntryState),
    st.booleans(),
    st.sampled_from([LOCAL, LOCAL, EXTERN_LEARN, DestinationOrigin(False, True, 7)]),
)
_CHANGES = st.one_of(
    st.tuples(st.sampled_from(["add", "append", "replace"]), _MACS, _REMOTES, _KINDS),
    st.tuples(st.just("remove"), _MACS, st.none() | _REMOTES),
    st.tuples(st.just("learn"), _MACS, _REMOTES),
    st.tuples(
        st.just("flush"),
        st.builds(
            Filter,
            dst=st.sampled_from([None, "192.0.2.7"]),
            extern_learn=st.sampled_from([None, None, True]),
        ),
    ),
    st.tuples(st.just("expire")),
    st.tuples(st.sampled_from(["commit", "unlink", "yield"])),
)


_Kept = tuple[EntryKind | None, list[tuple[str, DestinationOrigin]]]


def entries(port: Port, *, learned: bool) -> dict[bytes, _Kept]:
    """Return the entries that are to be kept: state and flags, and hosts with their origins.

    The configuration adds its remotes to the default entry, in front of others. So of that entry,
    only what a control plane has given is kept of them, and its kind only if it has others.
    """
    configured = {remote.host for remote in port.segment.configured}
    table: dict[bytes, _Kept] = {}
    for entry in port.fdb.entries():
        kind: EntryKind | None = EntryKind(entry.kind.state, sticky=entry.kind.sticky)
        hosts = [(to.host, origin) for to, origin in entry.origins()]
        if entry.mac == MAC_ZERO:
            hosts = [
                (host, left)
                for host, origin in hosts
                if (left := origin.withdraw(extern_learn=False) if host in configured else origin)
            ]
            kind = kind if any(origin.is_local for _, origin in hosts) else None
        if hosts and (learned or not entry.kind.ages):
            table[entry.mac] = kind, hosts
    return table


def in_any_order(table: dict[bytes, _Kept]) -> dict[bytes, tuple[EntryKind | None, object]]:
    return {mac: (kind, dict(hosts)) for mac, (kind, hosts) in table.items()}


async def apply(vtep: Vtep, path: Path, flush: Flush, change: tuple[object, ...]) -> None:
    what, *arguments = change
    fdb, now = vtep.fdb, time.monotonic()
    if what == "commit":
        await flush()
    elif what == "yield":
        await asyncio.sleep(0)
    elif what == "unlink":
        remove(path)
    elif what == "expire":
        fdb.sweep(now + 10_000)
    elif what == "learn":
        address, remote = arguments
        if address not in (MAC_ZERO, b"\x01\x00\x5e\x00\x00\x01"):
            known = vtep.port.segment.source_remote(remote.host)  # type: ignore[attr-defined]
            assert known is not None
            fdb.learn(address, known, now)  # type: ignore[arg-type]
    elif what in ("add", "append", "replace"):
        address, remote, kind = arguments
        getattr(fdb, str(what))(address, remote, now, kind)
    else:
        getattr(fdb, str(what))(*arguments)


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.lists(_CHANGES, max_size=12), st.booleans(), st.booleans())
def test_a_restart_restores_the_table_after_any_changes(
    tmp_path_factory: pytest.TempPathFactory,
    changes: list[tuple[object, ...]],
    learned: bool,
    killed: bool,
) -> None:
    path = tmp_path_factory.mktemp("state") / "state"
    crash = path.with_name("crash")
    config = Config(vni=1, remote="192.0.2.2", accept="192.0.2.0/24", ageing=300)

    async def main() -> None:
        vtep = Vtep(config)
        async with writing(vtep, path, learned=learned) as flush:
            for change in changes:
                with suppress(FdbError):
                    await apply(vtep, path, flush, change)
            if killed:  # What the disk has then.
                vtep.fdb.append(mac(9), Remote("192.0.2.7", 4789), NOW)
                await flush()
                for suffix in ("", "-wal"):
                    copy = path.with_name(f"crash{suffix}")
                    copy.write_bytes(path.with_name(f"state{suffix}").read_bytes())
        expected = entries(vtep.port, learned=learned)
        hosts = {mac: [host for host, _ in hosts] for mac, (_, hosts) in expected.items()}
        assert hosts == kept(path)
        again = Vtep(config)
        async with writing(again, crash if killed else path, learned=learned):
            restored = entries(again.port, learned=learned)
            assert in_any_order(restored) == in_any_order(expected)

    run(main)


# --- when the disk fails ------------------------------------------------------------------------


def test_a_full_disk_is_logged_once_and_tried_again(
    vtep: Vtep, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commit, tries = StateFile.commit, 0

    def full(file: StateFile, now: float, wall_clock: float) -> None:
        nonlocal tries
        tries += 1
        if tries <= 3:
            raise VtepError(f"--state {path}: cannot be written: No space left on device")
        commit(file, now, wall_clock)

    monkeypatch.setattr(StateFile, "commit", full)

    async def main() -> None:
        async with writing(vtep, path):
            vtep.fdb.add(mac(1), Remote("192.0.2.7", 4789), NOW)
            await until(lambda: path.exists() and kept(path) == {mac(1): ["192.0.2.7"]})

    with caplog.at_level(logging.INFO):
        run(main)
    assert [record.getMessage() for record in caplog.records] == [
        f"--state {path}: cannot be written: No space left on device",
        f"--state {path}: can be written again; every change is saved",
    ]


def test_flush_waits_for_the_commit(
    vtep: Vtep, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_writer, "_DELAY_S", 3600)
    remote = Remote("192.0.2.7", 4789)

    async def main() -> None:
        async with writing(vtep, path) as flush:
            for number in range(3):
                vtep.fdb.add(mac(number), remote, NOW)
                await flush()
                assert len(kept(path)) == number + 1
            vtep.fdb.learn(mac(5), vtep.port.segment.remotes[0], NOW)
            await flush()
            assert set(kept(path)) == {mac(0), mac(1), mac(2)}

    run(main)


def test_many_changes_do_not_wait_for_as_many_commits(
    vtep: Vtep, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_writer, "_DELAY_S", 3600)
    monkeypatch.setattr(state_writer, "_WRITE_BUDGET_S", 1e-6)
    monkeypatch.setattr(state_writer, "_WRITE_BUDGET_SHARE", 0)

    async def main() -> None:
        async with writing(vtep, path) as flush:
            for number in range(3):
                vtep.fdb.add(mac(number), Remote("192.0.2.7", 4789), NOW)
                await flush()
            assert len(kept(path)) == 1
        assert len(kept(path)) == 3

    run(main)


def test_a_full_disk_is_reported_to_the_caller_and_at_the_end(
    vtep: Vtep, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(state_writer, "_RETRY_S", 3600)
    line = f"--state {path}: cannot be written: No space left on device"

    def full(_file: StateFile) -> bool:
        raise VtepError(line)

    monkeypatch.setattr(StateFile, "begin", full)

    async def main() -> None:
        async with writing(vtep, path) as flush:
            vtep.fdb.add(mac(1), Remote("192.0.2.7", 4789), NOW)
            with pytest.raises(VtepError, match=f"done, but not saved yet: {line}"):
                await flush()
            await flush()  # A caller that has changed nothing since is not told.

    with pytest.raises(VtepError, match=f"^{line}$"):
        run(main)
    assert [record.getMessage() for record in caplog.records] == [line]
    assert list(path.parent.iterdir()) == []


def test_changes_during_a_commit_are_written_as_well(vtep: Vtep, path: Path) -> None:
    async def main() -> None:
        for number in range(1000):
            vtep.fdb.add(mac(number), Remote("192.0.2.7", 4789), NOW)
        async with writing(vtep, path):
            for number in range(1000, 1200):
                vtep.fdb.add(mac(number), Remote("192.0.2.7", 4789), NOW)
                vtep.fdb.remove(mac(number - 1000))
                await asyncio.sleep(0.001)
            await until(
                lambda: path.exists() and set(kept(path)) == set(shown(vtep.port)) - {MAC_ZERO}
            )

    run(main)
