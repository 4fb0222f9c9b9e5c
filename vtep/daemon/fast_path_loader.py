"""Makes the compiled turns available to a VTEP that already forwards, without disturbing it.

A thread of its own loads the compiled code out of the cache. If it is not there, a child process
compiles it first, at the lowest priority. The event loop only learns of the result. Whatever fails,
pyvtep forwards on the slow path.
"""

import asyncio
import atexit
import errno
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtep.daemon.compile_cache import VARIABLE, CompileCache, Proof
from vtep.errors import VtepError
from vtep.fastpath.load import TURNS, load, release_memory
from vtep.fastpath.state import (
    COMPILING,
    DISABLED,
    LOADING,
    NOT_INSTALLED,
    ON,
    TURN_FAILED,
    WAITING,
    FastPathState,
    FastPathStatus,
    Turns,
    off,
)

if TYPE_CHECKING:
    from vtep.fastpath.table import FastPath

log = logging.getLogger("vtep")

_DELAY_S = 0.2
"""Seconds before the loader begins. The start of a VTEP has precedence: its control socket, the
first frames, and errors after which there is nothing to load."""

_COMPILE_S = 3600.0
"""Seconds after which a compiler is given up. On a busy host, one of the lowest priority takes
long; its processor time is limited to much less."""

_NEEDED_MIB = 3
"""MiB that the compiled code takes in the cache."""

_INSTALL_AGAIN = "install numba again (pip install --force-reinstall numba)"

_CRASHES_MAX = 2
"""Deaths while loading, without a success, after which loading is given up: the second one was of
code that a child had loaded just before."""

_EXIT_S = 1.0
"""Seconds for which the end of the process waits for a thread that is loading."""

_SWITCH_INTERVAL_S = 0.00005
"""Time slice of threads in seconds while the code is loaded. The event loop waits that long for the
interpreter after each system call, so it is shorter than usual."""

_CHILD = """
import sys
sys.path[:] = sys.argv[4:]
from vtep.fastpath.load import main
main()
"""
"""The program of the child: it finds the modules that this process would."""


class LoadError(VtepError):
    """The compiled turns are not available. The message says why, and what to do."""


class FastPathLoader:
    """The state of the fast path of a process, and the compiled turns once they are loaded.

    `reason` says why this VTEP can have no fast path; None if it can. `module` is that of the
    compiled entry points.
    """

    def __init__(self, reason: str | None = None, module: str = TURNS) -> None:
        self.state = DISABLED if reason is None else off(reason)
        self.turns: Turns | None = None
        """The compiled entry points; None unless the fast path is on."""
        self._module = module
        self._is_possible = reason is None
        self._on_changed: Callable[[], None] = lambda: None
        self._loaded: Turns | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._fast_path: FastPath | None = None
        self._job: _Job | None = None

    def start(self, on_changed: Callable[[], None]) -> None:
        """Load the compiled turns, unless that was begun already.

        `on_changed` is called in the running event loop when `turns` has changed.
        """
        if self.state is not DISABLED or not self._is_possible:
            return
        self._on_changed = on_changed
        if self._loaded is not None:  # The fast path was off for a while.
            self._finish(self._loaded)
            return
        if not _is_installed(self._module):
            self._finish(NOT_INSTALLED)
            return
        try:
            _check_platform()
            cache = CompileCache.find()
        except VtepError as error:
            self._finish(off(str(error)))
            return
        self._set(LOADING if cache.is_complete() else COMPILING)
        self._timer = asyncio.get_running_loop().call_later(_DELAY_S, self._begin, cache)

    def _begin(self, cache: CompileCache) -> None:
        self._job = job = _Job(cache, self._module, asyncio.get_running_loop(), self._on_progress)
        job.start()

    @property
    def fast_path(self) -> "FastPath | None":
        """The tables and turns that all VNIs share; None unless the fast path is on."""
        if self.turns is None:
            return None
        if self._fast_path is None:
            self._fast_path = self.turns.FastPath(self._on_turn_failed)
        return self._fast_path

    def _on_turn_failed(self, error: Exception) -> None:
        """Log an exception in a turn, and turn the fast path off when the slow path has gone on."""
        log.error(
            "fast path: off, since a compiled turn has failed: %r; forwarding continues on the "
            "slow path; please report it",
            error,
        )
        log.debug("traceback:", exc_info=error)
        asyncio.get_running_loop().call_soon(self.fail, TURN_FAILED)

    def stop(self) -> None:
        """Stop the compiler, and forget the compiled turns."""
        if self._timer is not None:
            self._timer.cancel()
        if self._job is not None:
            self._job.cancel()
            self._job = None
        if self._is_possible:
            self.state = DISABLED
            self.turns = None

    @property
    def has_failed(self) -> bool:
        """True if the fast path was to be on, and an error has kept it off."""
        expected = (DISABLED, NOT_INSTALLED)
        is_off = self.state.status is FastPathStatus.OFF and self.state not in expected
        return self._is_possible and is_off

    def retry(self) -> None:
        """Load once more when `start` is called, if that has failed."""
        if self._is_possible and self.state.status is FastPathStatus.OFF:
            importlib.invalidate_caches()  # numba may have been installed since.
            self.state = DISABLED

    def fail(self, state: FastPathState) -> None:
        """Turn the fast path off for good, after an error in a compiled turn."""
        self._loaded = self._fast_path = None
        self._finish(state)

    def _on_progress(self, job: "_Job", progress: FastPathState | Turns) -> None:
        """Take a message from the thread, unless it was told to stop since."""
        if job is not self._job:
            return
        if isinstance(progress, FastPathState) and progress.status is not FastPathStatus.OFF:
            self._set(progress)
            return
        self._job = None
        self._finish(progress)

    def _finish(self, result: FastPathState | Turns) -> None:
        if isinstance(result, Turns):
            self.turns = self._loaded = result
            self._set(ON)
        else:
            self.turns = None
            self._set(result)
        self._on_changed()

    def _set(self, state: FastPathState) -> None:
        """Change the state; log it, if a user should know."""
        if state == self.state:
            return
        self.state = state
        if state is LOADING:  # It takes less than a second.
            return
        quiet = state.status is not FastPathStatus.OFF or state is NOT_INSTALLED
        log.log(logging.INFO if quiet else logging.WARNING, "fast path: %s", state)


def _is_installed(module: str) -> bool:
    try:
        return find_spec("numba") is not None and find_spec(module) is not None
    except ValueError:  # Something else has imported it halfway.
        return False


def _check_platform() -> None:
    """Raise LoadError if the turns cannot be compiled, or not be used, on this platform."""
    if sys.byteorder != "little":
        raise LoadError("it is for little-endian processors only")
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        raise LoadError("NUMBA_DISABLE_JIT is set in the environment; unset it")
    if not sys.executable:
        raise LoadError("the Python interpreter is unknown, so no compiler can be started")


class _CancelledError(Exception):
    """The job was told to stop."""


class _Job(threading.Thread):
    """The thread that loads, and that waits for the child that compiles."""

    def __init__(
        self,
        cache: CompileCache,
        module: str,
        loop: asyncio.AbstractEventLoop,
        on_progress: "Callable[[_Job, FastPathState | Turns], None]",
    ) -> None:
        # A daemon thread: the end of the process waits for it for `_EXIT_S` only.
        super().__init__(name="fast-path-loader", daemon=True)
        self._cache = cache
        self._module = module
        self._loop = loop
        self._on_progress = on_progress
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None

    def cancel(self) -> None:
        """Stop as soon as possible, without a result. Side effect: kills the child."""
        with self._lock:
            self._cancelled.set()
            if self._child is not None:
                self._child.kill()

    def run(self) -> None:
        """Load the turns, and report the result to the event loop."""
        try:
            self._report(self._obtain())
        except _CancelledError:
            pass
        except LoadError as error:
            self._report(off(str(error)))
        except BaseException as error:  # Even SystemExit, of a broken installation.
            log.debug("traceback:", exc_info=error)
            self._report(off(_describe(error, self._cache.root)))

    def _report(self, progress: FastPathState | Turns) -> None:
        with suppress(RuntimeError):  # The loop is closed: the VTEP has ended.
            self._loop.call_soon_threadsafe(self._on_progress, self, progress)

    def _obtain(self) -> Turns:
        """Return the compiled turns.

        Raises: LoadError, _CancelledError; any exception that a broken installation raises.
        """
        proof, refused = self._find_trusted(), None
        if proof is not None:
            try:
                return self._load(proof)
            except Exception as error:  # noqa: BLE001  an unusable cache is compiled once more
                log.debug("the cache of compiled code is unusable: %r", error)
                refused = proof
        return self._load(self._compile(refused))

    def _find_trusted(self) -> Proof | None:
        """Return the proof that the compiled code can be loaded, if there is one.

        Raises: LoadError if the code was proven twice, and has crashed this program all the same.
        """
        proof, crashes = self._cache.read_proof(), self._cache.find_crashes()
        if len(crashes) >= _CRASHES_MAX:
            raise LoadError(
                f"pyvtep has died {len(crashes)} times while it loaded compiled code; "
                f"rm -r {self._cache.directory}"
            )
        return None if proof is None or proof.stamp in crashes else proof

    def _load(self, proof: Proof) -> Turns:
        self._check_cancelled()
        self._report(LOADING)
        began = time.perf_counter()
        claim = self._cache.claim(proof)
        # An end of the process that is in order is no crash, even if it does not wait for LLVM.
        atexit.register(claim.release)
        # The interpreter should not end while this thread is in LLVM, whose destructors then run.
        atexit.register(self.join, _EXIT_S)
        try:
            with _short_time_slices():
                turns = load(self._cache.directory, self._module, may_compile=False)
                release_memory()
        finally:
            claim.release()
            atexit.unregister(claim.release)
            atexit.unregister(self.join)
        self._cache.forget_crashes()
        log.debug("fast path: loaded in %.2f s", time.perf_counter() - began)
        return turns

    def _compile(self, refused: Proof | None) -> Proof:
        """Complete the cache by a child, or wait for the child of another pyvtep.

        `refused` is the proof of code that could not be loaded although it is undamaged.
        """
        self._report(COMPILING)
        with self._cache.locked(self._wait_for_lock):
            trusted = self._find_trusted()
            if trusted is not None and trusted != refused:
                return trusted
            self._report(COMPILING)
            # The claim of a dead process says little: it may have been killed. Its code is
            # undamaged, so it suffices that a child loads it.
            proof = self._cache.read_proof()
            try:
                if proof is None or proof == refused or not self._is_usable():
                    self._cache.discard()
                    self._run_child()
                    # This child only loads, as this process will: it crashes first if LLVM does.
                    self._run_child()
                    self._cache.prune()
                return self._cache.mark_complete()
            except (LoadError, OSError):
                self._cache.discard()  # A part of it would only take space.
                raise

    def _is_usable(self) -> bool:
        try:
            self._run_child()
        except LoadError as error:
            log.debug("the cache of compiled code is unusable: %s", error)
            return False
        return True

    def _wait_for_lock(self, seconds: float) -> None:
        self._report(WAITING)
        self._cancelled.wait(seconds)
        self._check_cancelled()

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise _CancelledError

    def _run_child(self) -> None:
        """Run a child that compiles what is missing, and loads the rest. Raises: LoadError."""
        with self._lock:
            self._check_cancelled()
            self._child = child = subprocess.Popen(  # noqa: S603  our own program
                [
                    *(sys.executable, "-c", _CHILD, str(os.getpid())),
                    *(str(self._cache.directory), self._module),
                    *map(os.path.abspath, sys.path),
                ],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C in a terminal is for this process.
            )
        try:
            output, errors = child.communicate(timeout=_COMPILE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            raise LoadError(
                f"the compiler has not finished within {_COMPILE_S / 60:.0f} minutes, since the "
                "host is too busy; restart pyvtep when it is not"
            ) from None
        finally:
            self._child = None
        self._check_cancelled()
        facts = _parse_facts(output)
        if child.returncode or facts.get("loaded") != self._module:
            log.debug("the compiler says: %s", errors)
            raise LoadError(describe_failure(child.returncode, facts, self._cache.root))


def _parse_facts(output: str) -> dict[str, Any]:
    """Return what a child has reported in its last line; libraries may have written others."""
    with suppress(ValueError, IndexError):
        facts = json.loads(output.splitlines()[-1])
        if isinstance(facts, dict):
            return facts
    return {}


def describe_failure(code: int, facts: Mapping[str, Any], root: Path) -> str:
    """Return why a compiler has failed, and what to do.

    Args:
        code: its exit code; that of a signal is negative.
        facts: what it has reported of an exception, if anything.
        root: the directory of the cache.
    """
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        if -code == signal.SIGKILL:
            return (
                f"the compiler was killed by {name}, perhaps for lack of memory; free 300 MiB of "
                "memory (the kernel's log names what it killed)"
            )
        return f"the compiler was killed by {name}; {_INSTALL_AGAIN}"
    if facts.get("errno") is not None or _is_full(root):
        error = OSError(facts.get("errno") or errno.ENOSPC, facts.get("text"), facts.get("file"))
        return _describe_os_error(error, root)
    if "type" not in facts:
        return f"the compiler has ended early with exit code {code}; {_INSTALL_AGAIN}"
    text = " ".join(str(facts["text"]).split())
    where = f" (of numba in {Path(facts['numba']).parent})" if facts.get("numba") else ""
    return f"the compiler has failed: {facts['type']}: {text}{where}; {_INSTALL_AGAIN}"


def _is_full(root: Path) -> bool:
    """Return whether a directory has no room: numba's own error then says something else."""
    try:
        found = os.statvfs(root)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < _NEEDED_MIB * 2**20 // 2


def _describe_os_error(error: OSError, root: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"no space left in {root} for compiled code; it needs {_NEEDED_MIB} MiB; free some, "
            f"or set {VARIABLE}"
        )
    return (
        f"cannot keep compiled code in {error.filename or root}: {error.strerror or error}; mend "
        f"that, or set {VARIABLE}"
    )


def _describe(error: BaseException, root: Path) -> str:
    """Return why loading has failed, and what to do."""
    if isinstance(error, OSError):
        return _describe_os_error(error, root)
    text = " ".join(str(error).split())
    name = type(error).__name__
    return f"cannot load the compiled code: {name}{text and f': {text}'}; {_INSTALL_AGAIN}"


@contextmanager
def _short_time_slices() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, _SWITCH_INTERVAL_S))
    try:
        yield
    finally:
        sys.setswitchinterval(before)
