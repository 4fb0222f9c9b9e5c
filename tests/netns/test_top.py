"""`pyvtep top` beside a pyvtep that runs: in a terminal, by the keys of a user, and as rows."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns.hosts import DEADLINE, Pair, Start, Tunnel, ping, pyvtep, segment, wait_until
from vtep.testing.lab import Host

Terminal = Callable[..., str]


@pytest.fixture
def terminal(tmp_path: Path, pair: Pair) -> Iterator[Terminal]:
    """Return a function that presses keys in a terminal of 80 x 24, and returns what it shows.

    Its first call has the command to run there.
    """
    host, _ = pair
    tmux = ("tmux", "-f", "/dev/null", "-S", str(tmp_path / "tmux"))

    def press(*keys: str, run: tuple[str, ...] = ()) -> str:
        if run:
            host.run(*tmux, "new-session", "-d", "-x", "80", "-y", "24", *run)
            host.run(*tmux, "set-option", "-g", "remain-on-exit", "on")
        for key in keys:
            host.run(*tmux, "send-keys", key)
        screen = host.run(*tmux, "capture-pane", "-p")
        # Its own message is missing from the screen if a program ends and closes at the same time.
        dead = host.run(*tmux, "list-panes", "-F", "#{pane_dead}").strip() == "1"
        return f"{screen}\nended" if dead else screen

    yield press
    host.run(*tmux, "kill-server", check=False)


def top(*options: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "vtep", "top", *options)


def carries(screen: str) -> bool:
    """Return whether the row of VNI 1 has a rate of received frames."""
    rows = [line.split() for line in screen.splitlines()]
    return any(row[:2] == ["1", "vx0"] and row[5] not in ("0", "-") for row in rows if len(row) > 5)


def test_a_screen_over_a_restart(
    tunnel: Tunnel, pair: Pair, start: Start, terminal: Terminal
) -> None:
    vtep, _ = tunnel
    host, _ = pair
    control = ("--control", str(vtep.control))
    terminal(run=(*("env", "TERM=screen"), *top("--socket", str(vtep.control))))
    wait_until(lambda: "VNIs of all VNIs" in terminal(), "the screen", 4 * DEADLINE)

    def seen() -> bool:
        ping(host, "10.0.0.2")
        return carries(terminal())

    wait_until(seen, "a rate")
    wait_until(lambda: "192.0.2.2" in terminal("Enter"), "the remotes")

    def macs() -> bool:
        ping(host, "10.0.0.2")
        row = next((each for each in terminal().splitlines() if " dynamic " in each), "")
        return row.split()[-1:] not in ([], ["-"], ["0"])

    terminal("m")
    wait_until(macs, "the rate of a MAC")
    vtep.stop()
    wait_until(lambda: "reconnecting: " in terminal("v"), "the end of the VTEP")
    again = start(host, *segment(1, "192.0.2.2", "10.0.0.1/24"), *control).ready()
    wait_until(lambda: f"pid {again.process.pid}," in terminal(), "the new process")
    assert "reconnecting" not in terminal()
    wait_until(seen, "a rate again")
    assert "drops -/s" not in terminal()
    terminal("q")
    wait_until(lambda: terminal().endswith("\nended"), "its end")


def rows_of(host: Host, *options: str) -> Iterator[dict[str, str]]:
    """Run batch mode to its end, and yield its rows by the names of their columns."""
    done = pyvtep(host, "top", "-b", *options)
    assert (done.returncode, done.stderr) == (0, "")
    columns: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        kind, *values = line.split(" ")
        if kind.startswith("#"):
            columns[kind[1:]] = values
        else:
            yield {"kind": kind, **dict(zip(columns[kind], values, strict=True))}


def test_batch_mode(tunnel: Tunnel, pair: Pair) -> None:
    vtep, _ = tunnel
    host, _ = pair
    traffic = host.start("ping", "-q", "-i", "0.01", "10.0.0.2", stdout=subprocess.DEVNULL)
    try:
        rows = list(
            rows_of(host, "-n", "2", "-d", "0.5", "--macs", "5", "--socket", str(vtep.control))
        )
        done = pyvtep(host, "top", "--json", "-n", "1", "-d", "0.5", "--socket", str(vtep.control))
    finally:
        traffic.kill()
        traffic.wait()
    vnis = [row for row in rows if row["kind"] == "vni"]
    assert [(row["vni"], row["dev"], row["state"]) for row in vnis] == [("1", "vx0", "up")] * 2
    assert all(float(row["rx_frames_rate"]) > 0 for row in vnis)
    assert {row["remote"] for row in rows if row["kind"] == "remote"} == {"192.0.2.2"}
    assert float([row for row in rows if row["kind"] == "mac"][-1]["rx_frames_rate"]) > 0
    report = json.loads(done.stdout)
    assert report["vnis"][0]["tx_bytes_rate"] > 0
    assert report["total"]["pid"] == vtep.process.pid


def test_batch_mode_over_a_restart_and_without_a_vtep(
    tunnel: Tunnel, pair: Pair, start: Start
) -> None:
    vtep, _ = tunnel
    host, _ = pair
    socket = ("--socket", str(vtep.control))
    with host.start(
        *top("-b", "-d", "0.2", *socket), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stderr is not None
            while not child.stdout.readline().startswith("total"):
                pass
            vtep.stop()
            assert child.stderr.readline().startswith("pyvtep: note: reconnecting: ")
            again = start(host, *segment(1, "192.0.2.2"), "--control", str(vtep.control)).ready()
            rates: list[str] = []
            while len(rates) < 2:
                kind, _time, _version, pid, *rest = child.stdout.readline().split()
                if kind == "total" and pid == str(again.process.pid):
                    rates.append(rest[4])
            assert rates[0] == "-"
            assert float(rates[1]) >= 0
        finally:
            child.kill()
    again.stop()
    done = pyvtep(host, "top", "-b", "-n", "1", *socket)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "no pyvtep answers there" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("top", 2, "there is none; print rows: top -b"),
        ("top -n 3", 2, "-n is for batch mode: add -b"),
        ("top -b -d 0", 2, "--delay 0.0: must be from 0.2 to 3600 seconds, as in: -d 2"),
    ],
)
def test_mistakes(pair: Pair, words: str, code: int, said: str) -> None:
    done = pyvtep(pair[0], *words.split())
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
