"""Dumps of the kernel's tables that fail, by sockets of these tests in place of netlink."""

import asyncio
import socket
import struct
from errno import ENOBUFS, EOPNOTSUPP
from typing import Any

import pytest

from vtep.evpn import entry_reader
from vtep.evpn.entry_reader import EntryReader
from vtep.host.neighbour_messages import NLMSG_DONE, NLMSG_ERROR

DUMPS = len(entry_reader._DUMPS)


class FakeTable:
    """Counts the dumps that were begun and taken as complete."""

    is_uncertain = False

    def __init__(self) -> None:
        self.calls: list[str] = []

    def begin_dump(self) -> None:
        self.calls.append("begin")

    def end_dump(self) -> None:
        self.calls.append("end")


def _reply(request: bytes, error: int) -> bytes:
    """Return the end of a dump, or the refusal of one."""
    (sequence,) = struct.unpack_from("=I", request, 8)
    kind = NLMSG_ERROR if error else NLMSG_DONE
    return struct.pack("=IHHII", 20, kind, 0, sequence, 0) + struct.pack("=i", -error)


@pytest.mark.parametrize(
    ("error", "dumps", "calls"),
    [(ENOBUFS, 2 * DUMPS, ["begin", "begin", "end"]), (EOPNOTSUPP, DUMPS, ["begin", "end"])],
)
def test_refused_dump_is_repeated_and_nothing_deleted_meanwhile(
    error: int, dumps: int, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But entries of a kind that the kernel does not have are none."""

    async def main() -> None:
        events, _quiet = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for each in (events, ours, kernel):
            each.setblocking(False)
        monkeypatch.setattr(entry_reader, "subscribe_neighbours", lambda _: events)
        monkeypatch.setattr(entry_reader, "open_requests", lambda _: ours)
        monkeypatch.setattr(entry_reader, "count_lost_events", lambda _: 0)
        monkeypatch.setattr(entry_reader, "_RETRY_S", 0.0)
        table: Any = FakeTable()
        synced = asyncio.Event()
        reader = EntryReader(
            table, on_changed=lambda: None, on_synced=synced.set, receive_buffer=4096
        )
        loop = asyncio.get_running_loop()
        for number in range(dumps):
            request = await loop.sock_recv(kernel, 4096)
            await loop.sock_sendall(kernel, _reply(request, error if number == 1 else 0))
        await synced.wait()
        assert table.calls == calls
        reader.close()
        kernel.close()
        _quiet.close()

    async def limited() -> None:
        async with asyncio.timeout(60):
            await main()

    asyncio.run(limited())
