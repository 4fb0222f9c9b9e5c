"""The fast path comes, goes and fails while frames pass. All else about it is tested with it on."""

import os
import re
from pathlib import Path

import pytest

from tests.netns.hosts import (
    DEADLINE,
    Pair,
    Pyvtep,
    Start,
    kernel_vtep,
    ping,
    pyvtep,
    segment,
    wait_until,
)
from vtep.daemon.compile_cache import VARIABLE


@pytest.fixture(autouse=True)
def _peer(pair: Pair) -> None:
    kernel_vtep(pair[1], 1, "192.0.2.2", "192.0.2.1", "10.0.0.2/24")


def start_with_cache(pair: Pair, start: Start, cache: Path | str) -> Pyvtep:
    """Start pyvtep on host a with a cache directory of its own."""
    return start(
        pair[0],
        *segment(1, "192.0.2.2", "10.0.0.1/24"),
        "--fast-path",
        prefix=("env", f"{VARIABLE}={cache}"),
    )


def state_of(vtep: Pyvtep) -> tuple[str, str | None]:
    with vtep.client() as client:
        (shown,) = client.vni.show()
    return shown["fast_path"], shown["fast_path_reason"]


@pytest.mark.usefixtures("compiled_turns")
def test_it_is_turned_off_and_on_while_frames_pass(pair: Pair, start: Start) -> None:
    a, _ = pair
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), "--no-fast-path")
    ping(a, "10.0.0.2")
    assert state_of(vtep) == ("off", "--no-fast-path")
    assert ", fast path off: --no-fast-path\n" in vtep.log
    pinging = a.start("ping", "-i", "0.01", "-c", "100000", "10.0.0.2", stdout=-1, text=True)
    try:
        for _ in range(2):
            vtep.run("set", "--fast-path")
            wait_until(lambda: state_of(vtep) == ("on", None), "the fast path")
            ping(a, "10.0.0.2")
            vtep.run("set", "--no-fast-path")
            assert state_of(vtep) == ("off", "--no-fast-path")
            ping(a, "10.0.0.2")
    finally:
        pinging.send_signal(2)
        said, _ = pinging.communicate(timeout=DEADLINE)
    sent, received = re.findall(r"(\d+) packets transmitted, (\d+) received", said)[0]
    # The last request may have been sent as ping was told to stop.
    assert int(received) >= int(sent) - 1, said
    assert vtep.stop() == 0


def test_frames_pass_while_it_is_compiled(pair: Pair, start: Start, tmp_path: Path) -> None:
    a, _ = pair
    vtep = start_with_cache(pair, start, tmp_path / "cache")
    compiling = ("compiling", "on in about half a minute")
    wait_until(lambda: state_of(vtep) == compiling, "the compiler")
    ping(a, "10.0.0.2")
    assert "fast path: compiling, on in about half a minute" in vtep.log
    assert vtep.run("vni", "show").rstrip().endswith("compiling, on in about half a minute")
    threads = Path(f"/proc/{vtep.process.pid}/task")

    def children() -> list[str]:
        return " ".join(path.read_text() for path in threads.glob("*/children")).split()

    wait_until(children, "the compiler")
    (child,) = children()
    wait_until(lambda: os.sched_getscheduler(int(child)) == os.SCHED_IDLE, "the priority")
    assert vtep.stop() == 0
    wait_until(lambda: not Path(f"/proc/{child}").exists(), "the end of the compiler")
    assert "Traceback" not in vtep.log


def test_without_a_directory_it_is_off(pair: Pair, start: Start) -> None:
    a, _ = pair
    vtep = start_with_cache(pair, start, "/proc/nowhere")
    wait_until(lambda: state_of(vtep)[0] == "off", "the refusal")
    ping(a, "10.0.0.2")
    status, reason = state_of(vtep)
    assert (status, str(reason).partition(": ")[0]) == (
        "off",
        "there is no safe directory for compiled code",
    )
    assert f"WARNING pyvtep: fast path: off: {reason}" in vtep.log
    done = pyvtep(a, "doctor", "--socket", str(vtep.control))
    assert "WARNING: the fast path of pyvtep is off: there is no safe directory" in done.stdout
    assert f"To fix it: set {VARIABLE}" in done.stdout
