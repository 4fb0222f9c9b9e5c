"""The pipe between an upgrade and the process that it has started, and that process's end."""

import asyncio
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.netns.hosts import wait_until
from vtep.errors import VtepError
from vtep.upgrade import successor
from vtep.upgrade.starter import VARIABLE, Reports, Starter
from vtep.upgrade.successor import Successor

TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).map(
    lambda text: " ".join(text.split())
)


@given(st.lists(st.tuples(st.booleans(), TEXTS), max_size=5), st.integers(1, 50))
def test_reports_arrive_however_the_pipe_splits_them(
    reports: list[tuple[bool, str]], length: int
) -> None:
    reader, writer = os.pipe()
    starter = Starter.from_environment({VARIABLE: f"{writer} 1f"})
    for failed, text in reports:
        (starter.fail if failed else starter.report)(text)
    starter.close()
    starter.report("after the end")
    received = Reports()
    while octets := os.read(reader, length):
        received.feed(octets)
    os.close(reader)
    assert received.doing == next((text for failed, text in reversed(reports) if not failed), "")
    assert received.failure == next((text for failed, text in reversed(reports) if failed), "")


def test_reports_never_block_nor_fail() -> None:
    """Of a process whose starter does not read, or has ended; and a long reason is cut."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    starter = Starter.from_environment({VARIABLE: f"{writer} 1f"})
    for _ in range(1000):
        starter.fail("reason " * 1000)
    received = Reports()
    received.feed(os.read(reader, 1 << 16))
    assert received.failure.startswith("reason reason")
    os.close(reader)
    starter.fail("nobody reads")
    starter.close()


@pytest.mark.parametrize("value", ["", "x", "99999 token", "-1 token", "file"])
def test_a_process_that_no_upgrade_has_started(value: str, tmp_path: Path) -> None:
    """The variable may be a leftover, and the descriptor may be another one by now."""
    with (tmp_path / "file").open("w") as file:
        environ = {VARIABLE: value.replace("file", f"{file.fileno()} token")}
        starter = Starter.from_environment(environ)
        assert not starter.is_present
        starter.report("lost")
        starter.fail("lost")
        file.flush()
        assert environ == {}
    assert (tmp_path / "file").read_text() == ""


def descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


_CHILD = "import os, sys, time; n = int(os.environ['PYVTEP_UPGRADE'].split()[0]);"


@pytest.mark.parametrize(
    ("body", "silence", "outcome"),
    [
        ("os.write(n, b'failed no mind to\\n'); sys.exit(3)", 60, "exit code 3 .*: no mind to$"),
        ("sys.exit(0)", 60, "exit code 0 before it took over: it gave no reason; see the log"),
        ("os.kill(os.getpid(), 9)", 60, "signal 9 before it took over: it gave no reason"),
        ("time.sleep(600)", 1, "was to start, and has reported nothing for 1 s: killed"),
    ],
)
def test_a_new_process_that_does_not_take_over(
    body: str, silence: float, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outcome says why, and nothing is left: neither a process nor a descriptor."""
    monkeypatch.setattr(successor, "_SILENCE_S", silence)

    async def main() -> Successor:
        started = Successor([sys.executable, "-c", _CHILD + body], Path("/"))
        try:
            with pytest.raises(VtepError, match=outcome):
                await started.outcome
        finally:
            started.close(kill=True)
        return started

    before = descriptors()
    started = asyncio.run(main())
    assert descriptors() == before
    assert started._child.returncode is not None


def test_all_processes_of_the_new_one_are_killed(tmp_path: Path) -> None:
    """Also those that are no children of this process, such as the one that takes over."""
    body = (
        f"path = {str(tmp_path / 'pid')!r}\n"
        "if os.fork() == 0:\n"
        "    with open(path + '.new', 'w') as file: file.write(str(os.getpid()))\n"
        "    os.rename(path + '.new', path)\n"
        "time.sleep(600)\n"
    )

    async def main() -> None:
        started = Successor([sys.executable, "-c", f"{_CHILD}\n{body}"], Path("/"))
        await asyncio.to_thread(wait_until, (tmp_path / "pid").exists, "the grandchild")
        started.close(kill=True)

    asyncio.run(main())
    stat = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    wait_until(lambda: not stat.exists() or " Z " in stat.read_text(), "its end")


def test_a_program_that_cannot_be_started() -> None:
    async def main() -> None:
        with pytest.raises(VtepError, match="cannot start /no/such: No such file or directory"):
            Successor(["/no/such"], Path("/"))

    before = descriptors()
    asyncio.run(main())
    assert descriptors() == before
