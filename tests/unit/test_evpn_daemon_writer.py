"""Changes that wait for the daemon: the last one of each entry is written."""

import asyncio
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, cast

from vtep.evpn.changes import Changes, EvpnFdbChange, EvpnNeighbourChange
from vtep.evpn.daemon_writer import DaemonWriter
from vtep.wire.ethernet import MAC_ZERO, format_mac

if TYPE_CHECKING:
    from vtep.evpn.daemon_link import DaemonLink

NEAR, FAR = ip_address("192.0.2.2"), ip_address("192.0.2.9")
IP = ip_address("10.0.0.1")


def mac(number: int) -> bytes:
    return b"\2" + number.to_bytes(5)


def fdb(vni: int, *changes: EvpnFdbChange) -> Changes:
    return Changes(fdb={vni: list(changes)})


class Daemon:
    """Takes batches, and calls a function after the first one."""

    def __init__(self, after_first: Callable[[], None] = lambda: None) -> None:
        self.batches: list[tuple[str, int, list[dict[str, Any]]]] = []
        self._after_first = after_first
        self.refuses = b""
        """The MAC that is refused."""
        self.refused: list[tuple[int, EvpnFdbChange | EvpnNeighbourChange, str]] = []
        """The changes of which the writer has said that they are."""

    async def batch(
        self, method: str, vni: int, changes: Sequence[dict[str, Any]]
    ) -> list[tuple[dict[str, Any], str]]:
        self.batches.append((method, vni, list(changes)))
        if len(self.batches) == 1:
            self._after_first()
        return [(each, "no") for each in changes if each.get("mac") == format_mac(self.refuses)]

    @property
    def changes(self) -> list[dict[str, Any]]:
        return [change for _, _, changes in self.batches for change in changes]


def write(daemon: Daemon, fill: Callable[[DaemonWriter], None]) -> None:
    """Write until nothing waits."""

    async def main() -> None:
        link = cast("DaemonLink", daemon)
        refused = daemon.refused
        writer = DaemonWriter(link, lambda _vni: True, lambda *each: refused.append(each))
        fill(writer)
        running = asyncio.ensure_future(writer.run())
        async with asyncio.timeout(30):
            await writer.drain()
        running.cancel()

    asyncio.run(main())


def test_what_was_withdrawn_meanwhile_is_not_written_first() -> None:
    """The end of a session with many routes that the daemon has not taken yet."""
    writers: list[DaemonWriter] = []
    macs = range(10_000)

    def withdraw() -> None:
        gone = (EvpnFdbChange("del", mac(number), NEAR) for number in macs)
        writers[0].add(fdb(100, *gone))

    def fill(writer: DaemonWriter) -> None:
        writers.append(writer)
        new = (EvpnFdbChange("replace", mac(number), NEAR, None, 0) for number in macs)
        writer.add(fdb(100, *new))

    daemon = Daemon(withdraw)
    write(daemon, fill)
    verbs = [change["verb"] for change in daemon.changes]
    assert verbs.count("replace") == 1000
    assert verbs[1000:] == ["del"] * len(macs)


def test_the_former_destination_is_deleted_if_the_next_one_was_never_written() -> None:
    def fill(writer: DaemonWriter) -> None:
        writer.add(fdb(100, EvpnFdbChange("replace", mac(1), FAR, 7, 1)))
        writer.add(fdb(100, EvpnFdbChange("del", mac(1), FAR, 7)))

    daemon = Daemon()
    write(daemon, fill)
    assert daemon.changes == [{"verb": "del", "mac": "02:00:00:00:00:01", "extern_learn": True}]


def test_destinations_of_flooding_are_entries_of_their_own() -> None:
    def fill(writer: DaemonWriter) -> None:
        writer.add(fdb(100, *(EvpnFdbChange("append", MAC_ZERO, vtep) for vtep in (NEAR, FAR))))
        writer.add(fdb(100, EvpnFdbChange("del", MAC_ZERO, NEAR)))

    daemon = Daemon()
    write(daemon, fill)
    found = [(change["verb"], change["dst"]) for change in daemon.changes]
    assert found == [("append", str(FAR)), ("del", str(NEAR))]


def test_segments_and_tables_take_turns() -> None:
    def fill(writer: DaemonWriter) -> None:
        for vni in (100, 200):
            new = (EvpnFdbChange("replace", mac(number), NEAR, None, 0) for number in range(1500))
            writer.add(fdb(vni, *new))
        writer.add(Changes(neighbours={100: [EvpnNeighbourChange("replace", IP, mac(1))]}))
        writer.add(Changes(neighbours={100: [EvpnNeighbourChange("del", IP, mac(1))]}))

    daemon = Daemon()
    write(daemon, fill)
    order = [(method, vni, len(changes)) for method, vni, changes in daemon.batches]
    assert order == [
        ("fdb.batch", 100, 1000),
        ("neigh.batch", 100, 1),
        ("fdb.batch", 200, 1000),
        ("fdb.batch", 100, 500),
        ("fdb.batch", 200, 500),
    ]


def test_refused_changes_are_reported_unless_they_are_outdated() -> None:
    writers: list[DaemonWriter] = []
    change = EvpnFdbChange("replace", mac(1), NEAR, None, 0)
    other = change._replace(vtep=FAR)

    def fill(writer: DaemonWriter) -> None:
        writers.append(writer)
        writer.add(fdb(100, change, change._replace(mac=mac(2))))

    daemon = Daemon(lambda: writers[0].add(fdb(100, other)))
    daemon.refuses = mac(1)
    write(daemon, fill)
    assert daemon.refused == [(100, other, "no")]

    daemon = Daemon()
    daemon.refuses = mac(1)
    write(daemon, lambda writer: writer.add(fdb(100, EvpnFdbChange("del", mac(1), NEAR))))
    assert daemon.refused == [], "a deletion was reported"
