"""A control plane that keeps thousands of entries of a running pyvtep by batches."""

import json
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.netns.hosts import Pair, Start, ping, segment, wait_until
from tests.netns.steady_traffic import SteadyTraffic
from vtep.control import Client
from vtep.control.schema import FdbEntry

COUNT = 3000
ZERO = "00:00:00:00:00:00"


def mac(number: int) -> str:
    return f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"


def changes(verb: str, **fields: Any) -> list[Any]:
    return [{"verb": verb, "mac": mac(number), **fields} for number in range(COUNT)]


def kept(entries: Iterable[FdbEntry]) -> dict[str, object]:
    """Return the entries by MAC, without ages and counts."""
    return {each["mac"]: (each["destinations"], each["state"]) for each in entries}


def test_entries_are_kept_and_withdrawn(pair: Pair, start: Start, tmp_path: Path) -> None:
    """Frames pass during batches, a kill keeps all, and what a user has given is never touched."""
    a, b = pair
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    arguments = [*segment(1, "192.0.2.2", "10.0.0.1/24"), "--proxy", "--state", str(tmp_path / "s")]
    vtep = start(a, *arguments)
    ping(a, "10.0.0.2")
    vtep.run("fdb", "add", "02:00:00:00:ff:ff", "dst", "192.0.2.9", "static")
    line = vtep.run("fdb", "append", ZERO, "dst", "192.0.2.1", code=1)
    assert line.startswith("dst 192.0.2.1: is an address of this host itself")

    traffic = SteadyTraffic(a, b, "10.0.0.1", "10.0.0.2", rate=200)
    with Client(vtep.control) as client:
        for sequence in (0, 1):
            fields = {"dst": "192.0.2.3", "extern_learn": True, "sequence": sequence}
            result = client.fdb.batch(changes("replace", **fields))
            assert result == {"done": COUNT, "errors": []}
        for dst in ("192.0.2.2", "192.0.2.3"):
            client.fdb.append(ZERO, dst, extern_learn=True)
        shown = kept(client.fdb.show(extern_learn=True))
        assert kept(client.items("fdb.show", extern_learn=True)) == shown
    report = traffic.stop()
    assert report.lost == report.pings_lost == 0, report
    assert report.tcp_alive, report

    lines = vtep.run("fdb", "show", "extern_learn").splitlines()
    assert len(lines) == 1 + 2 + COUNT
    assert lines[-1].split()[2:7] == ["vx0", "permanent", "extern_learn", "seq", "1"]
    assert kept(json.loads(vtep.run("fdb", "show", "extern_learn", "--json"))) == shown

    vtep.stop(signal.SIGKILL)
    again = start(a, *arguments)
    with Client(again.control) as client:
        assert kept(client.fdb.show(extern_learn=True)) == shown
        withdrawn = changes("del", extern_learn=True)
        assert client.fdb.batch(withdrawn)["done"] == COUNT
        assert client.fdb.flush(extern_learn=True) == 1  # 192.0.2.2 is a --remote, too.
        assert [to["dst"] for to in client.remote.show()] == ["192.0.2.2"]
        assert client.fdb.get("02:00:00:00:ff:ff")["state"] == "static"
    wait_until(lambda: "extern_learn" not in again.run("fdb", "show"), "the entries to be gone")
    ping(a, "10.0.0.2")
