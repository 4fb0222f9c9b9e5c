"""Loading of compiled code: out of a cache, or after a child process has compiled it."""

import asyncio
import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import pytest

from vtep.daemon import fast_path_loader
from vtep.daemon.compile_cache import VARIABLE
from vtep.daemon.fast_path_loader import FastPathLoader, describe_failure
from vtep.fastpath.state import (
    DISABLED,
    NOT_INSTALLED,
    ON,
    TURN_FAILED,
    FastPathState,
)

ROOT = Path(__file__).parents[2]
SMALL = "tests.unit.small_turns"
DEADLINE = 120.0

FAKE = {
    "numba/__init__.py": """
        import os, signal, sys, time
        with open(os.environ["FAKE_LOG"], "a") as log:
            print(os.getpid(), file=log)
        match os.environ.get("FAKE_MODE"):
            case "raise":
                raise ImportError("Numba needs NumPy 2.3 or less. Got NumPy 9.9.")
            case "exit in the parent" if "-c" not in sys.orig_argv:
                raise SystemExit(0)
            case "exit":
                raise SystemExit(0)
            case "no space":
                raise OSError(28, "No space left on device")
            case "end":
                os._exit(0)
            case "crash":
                signal.raise_signal(signal.SIGSEGV)  # Of this thread, and so at once.
            case "hang":
                time.sleep(1000)
    """,
    "numba/core/__init__.py": "",
    "numba/core/config.py": "CACHE_DIR = ''",
    "numba/core/event.py": """
        from contextlib import nullcontext

        class Listener:
            pass

        def install_listener(kind, listener):
            return nullcontext()
    """,
    "fake_turns.py": """
        import os, signal, sys

        import numba

        def answer(number):
            return 2 * number + 1

        if os.environ["FAKE_MODE"] == "crash in the parent" and "-c" not in sys.orig_argv:
            signal.raise_signal(signal.SIGSEGV)  # Of this thread, and so at once.
    """,
}
"""An installation of numba that compiles nothing, and fails on request."""


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Loading:
    """A process that loads compiled code; each one in the test has the same cache."""

    def __init__(self, folder: Path, *, fake: str | None = None) -> None:
        self.log = folder / "fake.log"
        self._errors = folder / "errors"
        environ = {**os.environ, VARIABLE: str(folder / "cache"), "PYTHONPATH": str(ROOT)}
        del environ["NUMBA_CACHE_DIR"]
        module = SMALL
        if fake is not None:
            for name, text in FAKE.items():
                path = folder / "fake" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(dedent(text))
            environ["PYTHONPATH"] = f"{folder / 'fake'}:{ROOT}"
            environ |= {"FAKE_LOG": str(self.log), "FAKE_MODE": fake}
            module = "fake_turns"
        self._command = [sys.executable, "-m", "tests.unit.loading_process", module]
        self._environ = environ

    def start(self, end: str = "exit") -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*self._command, end], env=self._environ, stdout=subprocess.PIPE, text=True, cwd="/"
        )

    def run(self, code: int = 0) -> list[str]:
        """Load to the end. Returns: the states, and a last line with a result of the code."""
        with self.start() as process:
            output, _ = process.communicate(timeout=DEADLINE)
        assert process.returncode == code
        return output.splitlines()

    def set_mode(self, fake: str) -> None:
        """Change how the fake numba behaves."""
        self._environ["FAKE_MODE"] = fake

    def importers(self) -> list[int]:
        """Return the processes that have imported the fake numba so far."""
        return [int(line) for line in self.log.read_text().split()] if self.log.exists() else []


COMPILING = "compiling, on in about half a minute"
LOADED = ["loading", "on", "41 ''"]


def without_loading(lines: list[str]) -> list[str]:
    """Return lines without those that may have come and gone between two looks."""
    return [line for line in lines if line != "loading" and not line.startswith("compiling, on wh")]


def test_a_cold_cache_is_compiled_and_a_warm_one_is_loaded(tmp_path: Path) -> None:
    loading = Loading(tmp_path)
    assert without_loading(loading.run()) == [COMPILING, *LOADED[1:]]
    assert without_loading(loading.run()) == LOADED[1:]
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    # Neither a missing nor a damaged file may be compiled by the process that forwards.
    for damage in (Path.unlink, lambda path: os.truncate(path, 100)):
        for path in (tmp_path / "cache").rglob("*.nbc"):
            damage(path)
        assert without_loading(loading.run()) == [COMPILING, *LOADED[1:]]


def test_code_that_would_crash_llvm_is_compiled_once_more(tmp_path: Path) -> None:
    loading = Loading(tmp_path)
    loading.run()
    for path in (tmp_path / "cache").rglob("*.nbc"):
        content = path.read_bytes()
        # As after a power failure: pages of the object file are zero, but its pickle is whole.
        begin = content.index(b"\x7fELF") + 64
        path.write_bytes(content[:begin] + bytes(512) + content[begin + 512 :])
    assert without_loading(loading.run()) == [COMPILING, *LOADED[1:]]
    assert without_loading(loading.run()) == LOADED[1:]


def test_a_crash_while_loading_is_not_repeated_at_every_start(tmp_path: Path) -> None:
    loading = Loading(tmp_path, fake="crash in the parent")
    loading.run(-signal.SIGSEGV)
    children = len(loading.importers()) - 1
    assert children == 2
    # A child loads it once more, with success.
    loading.run(-signal.SIGSEGV)
    assert len(loading.importers()) == 2 * children + 1
    (line,) = without_loading(loading.run())
    assert line.startswith("off: pyvtep has died 2 times while it loaded compiled code; rm -r ")
    # An installation that works has another directory, or the user has removed this one.
    loading.set_mode("works")
    for path in (tmp_path / "cache").rglob("loading.*"):
        path.unlink()
    assert loading.run()[-2:] == LOADED[1:]


def test_another_version_has_another_directory(tmp_path: Path) -> None:
    loading = Loading(tmp_path, fake="works")
    assert without_loading(loading.run()) == [COMPILING, *LOADED[1:]]
    (tmp_path / "fake/numba/_version.py").write_text("version = '9.9'")
    assert without_loading(loading.run()) == [COMPILING, *LOADED[1:]]
    assert len(list((tmp_path / "cache").glob("*/complete"))) == 2


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("raise", "the compiler has failed: ImportError: Numba needs NumPy 2.3 or less."),
        ("exit", "the compiler has failed: SystemExit: 0 (of numba in "),
        ("end", "the compiler has ended early with exit code 0"),
        ("crash", "the compiler was killed by SIGSEGV"),
    ],
)
def test_a_broken_installation_fails_in_the_child(tmp_path: Path, mode: str, reason: str) -> None:
    loading = Loading(tmp_path, fake=mode)
    *_, last = loading.run()
    assert last.startswith(f"off: {reason}")
    assert "pip install --force-reinstall" in last
    assert len(loading.importers()) == 1
    assert not list((tmp_path / "cache").rglob("complete"))


def test_a_library_that_ends_the_interpreter_ends_only_the_loading(tmp_path: Path) -> None:
    *_, last = Loading(tmp_path, fake="exit in the parent").run()
    assert last.startswith("off: cannot load the compiled code: SystemExit: 0; install numba again")


def test_without_space_nothing_is_left_behind(tmp_path: Path) -> None:
    *_, last = Loading(tmp_path, fake="no space").run()
    assert last.startswith(
        f"off: no space left in {tmp_path / 'cache'} for compiled code; it needs"
    )
    (directory,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    assert list(directory.iterdir()) == []


def test_two_that_start_cold_compile_once(tmp_path: Path) -> None:
    loading = Loading(tmp_path, fake="works")
    with loading.start() as first, loading.start() as second:
        for process in (first, second):
            output, _ = process.communicate(timeout=DEADLINE)
            assert without_loading(output.splitlines())[-2:] == LOADED[1:]
    # Two children of the first one: one that compiles, and one that loads.
    assert len(set(loading.importers()) - {first.pid, second.pid}) == 2
    assert len(loading.importers()) == 4


@contextmanager
def hanging(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """Yield a process that waits for a compiler, and the PID of the compiler, which hangs."""
    loading = Loading(tmp_path, fake="hang")
    with loading.start("wait") as process:
        wait_until(loading.importers)
        yield process, loading.importers()[0]


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:1]
    except FileNotFoundError:
        return False


def test_the_compiler_has_the_lowest_priority(tmp_path: Path) -> None:
    with hanging(tmp_path) as (process, child):
        assert os.getpriority(os.PRIO_PROCESS, child) == 19
        assert os.sched_getscheduler(child) == os.SCHED_IDLE
        assert Path(f"/proc/{child}/oom_score_adj").read_text() == "1000\n"
        assert os.getpriority(os.PRIO_PROCESS, process.pid) < 19
        process.terminate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_compiler_outlives_its_parent(tmp_path: Path, number: int) -> None:
    with hanging(tmp_path) as (process, child):
        process.send_signal(number)
        assert process.wait(DEADLINE) == (0 if number == signal.SIGTERM else -number)
        wait_until(lambda: not is_running(child))


def test_an_unsafe_directory_is_refused(tmp_path: Path) -> None:
    loading = Loading(tmp_path, fake="works")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    (line,) = without_loading(loading.run())
    assert line.startswith("off: there is no safe directory for compiled code: ")
    assert "can be written by other users; chmod go-w" in line
    assert loading.importers() == []


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (ON, "on"),
        (FastPathState.of("compiling", "on in about half a minute"), COMPILING),
        (FastPathState.of("off", "--no-fast-path"), "off: --no-fast-path"),
    ],
)
def test_states_as_text(state: FastPathState, text: str) -> None:
    assert str(state) == text
    assert FastPathState.of(str(state.status), state.reason) == state


def load_to_the_end(loader: FastPathLoader) -> FastPathState:
    """Start a loader. Returns: the state in which it calls back."""

    async def main() -> FastPathState:
        finished = asyncio.Event()
        loader.start(finished.set)
        assert loader.state is not DISABLED  # It is known when the start is logged.
        async with asyncio.timeout(DEADLINE):
            await finished.wait()
        return loader.state

    return asyncio.run(main())


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_path_loader, "find_spec", lambda _: None)
    loader = FastPathLoader()
    assert load_to_the_end(loader) is NOT_INSTALLED
    assert loader.turns is None
    loader.stop()
    assert loader.state is DISABLED


def test_with_the_jit_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    state = load_to_the_end(FastPathLoader(module=SMALL))
    assert str(state).startswith("off: NUMBA_DISABLE_JIT is set")


def test_a_loader_that_is_stopped_at_once_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_path_loader, "_DELAY_S", 0.0)
    loader = FastPathLoader(module=SMALL)

    async def main() -> None:
        loader.start(pytest.fail)
        loader.stop()
        for _ in range(10):
            await asyncio.sleep(0)

    asyncio.run(main())
    assert loader.state is DISABLED


def test_an_error_in_a_turn_is_final_until_the_option_is_set_again() -> None:
    loader = FastPathLoader()
    loader.fail(TURN_FAILED)
    loader.start(lambda: None)
    assert loader.state is TURN_FAILED
    loader.stop()
    assert loader.state is DISABLED


def test_a_vtep_that_can_have_no_fast_path_says_why() -> None:
    loader = FastPathLoader("its sockets are in memory")
    loader.start(lambda: None)
    loader.stop()
    assert str(loader.state) == "off: its sockets are in memory"


def test_a_failure_is_tried_again_when_the_option_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_path_loader, "find_spec", lambda _: None)
    loader = FastPathLoader()
    for _ in range(2):
        loader.retry()
        assert load_to_the_end(loader) is NOT_INSTALLED


FACTS = {"type": "ImportError", "text": "no\nLLVM", "numba": "/lib/numba/__init__.py"}
NO_SPACE = "no space left in /c for compiled code; it needs 3 MiB; free some, or set PYVTEP_CACHE"


@pytest.mark.parametrize(
    ("code", "facts", "reason"),
    [
        (1, FACTS, "the compiler has failed: ImportError: no LLVM (of numba in /lib/numba); ins"),
        (3, {}, "the compiler has ended early with exit code 3; install numba again"),
        (0, {}, "the compiler has ended early with exit code 0; install numba again"),
        (1, {"errno": errno.ENOSPC, "text": "No space left"}, NO_SPACE),
        (1, {"errno": errno.EDQUOT, "text": "Quota"}, NO_SPACE),
        (
            1,
            {"errno": errno.EROFS, "text": "Read-only", "file": "/c/x"},
            "cannot keep compiled code in /c/x: Read-only; mend that, or set PYVTEP_CACHE_DIR",
        ),
        (-11, {}, "the compiler was killed by SIGSEGV; "),
        (-9, {}, "the compiler was killed by SIGKILL, perhaps for lack of memory; free 300 MiB"),
        (-60, {}, "the compiler was killed by signal 60; "),
    ],
)
def test_the_reason_of_a_failure(code: int, facts: dict[str, object], reason: str) -> None:
    assert describe_failure(code, facts, Path("/c")).startswith(reason)


def test_a_full_file_system_is_named_though_numba_names_no_locator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=1, f_frsize=4096))
    facts = {"type": "RuntimeError", "text": "cannot cache function: no locator available"}
    assert describe_failure(1, facts, Path("/c")).startswith(NO_SPACE)
