"""Load the compiled turns from a cache directory, or compile them into it.

The running pyvtep only loads. A child process, whose entry point is `main`, compiles: LLVM needs
20 to 40 s of processor time and 100 MiB more memory for that, and a broken LLVM may crash.
"""

import ctypes
import json
import mmap
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import get_ident
from typing import Any

from vtep.fastpath.state import Turns
from vtep.host import privileges

TURNS = "vtep.fastpath.turns"
"""The module of the entry points, whose import loads or compiles every function."""

_CPU_SECONDS_MAX = 600
"""Processor time after which the kernel ends a child that compiles. It needs 20 to 40 s."""

_PR_SET_PDEATHSIG = 1


class CacheMissError(Exception):
    """A function is not in the cache, and may not be compiled here."""


def load(cache: Path, module: str, *, may_compile: bool) -> Turns:
    """Import a module of compiled functions, with their code from a cache directory.

    With `may_compile`, functions that are missing in the cache are compiled and added to it.

    Returns: the module.
    Raises: CacheMissError if a function is missing and may not be compiled; any exception that a
    broken installation of numba raises.
    """
    _preload_llvm()
    # numba takes 0.15 s to import. The rest of this module works without it.
    from numba.core import config  # noqa: PLC0415

    # Set for this import only: in a program that uses Vtep as a library, other functions have
    # other caches. numba reads it when a function is decorated. An environment variable would do
    # the same, but children of this process would inherit it.
    before = config.CACHE_DIR
    config.CACHE_DIR = str(cache)
    # numba imports it with the first array that a compiled function gets. That takes 15 ms, in
    # which a new process that takes over from another one would not read.
    import_module("numpy.ma")
    try:
        if may_compile:
            return import_module(module)
        with _refusing_to_compile():
            return import_module(module)
    finally:
        config.CACHE_DIR = before


def _llvm_library() -> Path | None:
    """Return the file of the library that contains LLVM, 170 MB in size, if it can be found."""
    spec = find_spec("llvmlite")
    if spec is None or spec.origin is None:
        return None
    # Resolved, as the kernel shows it: an environment may be reached by a symbolic link.
    return (Path(spec.origin).with_name("binding") / "libllvmlite.so").resolve()


def _preload_llvm() -> None:
    """Map LLVM into memory before llvmlite does.

    llvmlite holds the interpreter lock meanwhile, so the event loop would stall for the 20 ms that
    relocation takes, or until a slow disk has delivered. A foreign function does not hold it.
    """
    library = _llvm_library()
    if library is not None:  # If this fails, llvmlite fails in the same way and says why.
        ctypes.CDLL(None).dlopen(os.fsencode(library), ctypes.c_int(os.RTLD_NOW))


def release_memory() -> None:
    """Return memory to the kernel that only loading needed: 50 MiB of LLVM, and free heap.

    Compiled functions do not call LLVM. Its code is a mapping of a file that nothing writes to, so
    a page that is used again is read again.
    """
    libc, library = ctypes.CDLL(None), _llvm_library()
    with suppress(OSError), open("/proc/self/maps") as maps:
        for line in maps:
            fields = line.split(maxsplit=5)
            # Not the other segments: they have relocated addresses, which would be lost.
            if fields[1] == "r-xp" and fields[-1].strip() == str(library):
                begin, end = (int(address, 16) for address in fields[0].split("-"))
                length = ctypes.c_size_t(end - begin)
                libc.madvise(ctypes.c_void_p(begin), length, mmap.MADV_DONTNEED)
    with suppress(AttributeError):  # Only the GNU C library has this.
        libc.malloc_trim(0)


@contextmanager
def _refusing_to_compile() -> Iterator[None]:
    """Raise CacheMissError where numba would compile: this process has frames to forward."""
    from numba.core.event import Listener, install_listener  # noqa: PLC0415  as above

    here = get_ident()

    class Refusal(Listener):  # type: ignore[misc]
        def on_start(self, event: Any) -> None:
            # In a program that uses Vtep as a library, other threads may compile functions.
            if get_ident() == here:
                raise CacheMissError(f"{event.data['dispatcher'].py_func.__name__} is missing")

        def on_end(self, event: object) -> None:
            pass

    with install_listener("numba:compile", Refusal()):
        yield


def main() -> None:
    """Compile a module into a cache directory, at the lowest priority.

    The arguments are the PID of the parent, with which this process ends; the directory; and the
    name of the module.
    """
    parent, cache, module = sys.argv[1:4]
    _end_with(int(parent))
    _yield_to_all_others()
    # A crash of LLVM is reported by its signal. A core dump of it would only fill a disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS_MAX, _CPU_SECONDS_MAX))
    # A compiler needs no capability. Before numpy is imported, which may start threads.
    privileges.drop(frozenset())
    try:
        load(Path(cache), module, may_compile=True)
    except BaseException as error:
        _tell_parent(_facts_of(error))
        raise
    # The exit code alone proves nothing: a library may end the process.
    _tell_parent({"loaded": module})


def _tell_parent(facts: dict[str, object]) -> None:
    """Write facts as a line of their own: libraries may have written to standard output, too."""
    sys.stdout.write(f"\n{json.dumps(facts)}\n")
    sys.stdout.flush()


def _facts_of(error: BaseException) -> dict[str, object]:
    """Return what the parent has to know of an exception."""
    numba = sys.modules.get("numba") or find_spec("numba")
    return {
        "type": type(error).__name__,
        "errno": error.errno if isinstance(error, OSError) else None,
        "text": (error.strerror if isinstance(error, OSError) else None) or str(error),
        "file": error.filename if isinstance(error, OSError) else None,
        "numba": getattr(numba, "__file__", None) or getattr(numba, "origin", None),
    }


def _end_with(parent: int) -> None:
    """Make the kernel kill this process when its parent ends, however that ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # It has ended before that call.
        os._exit(1)


def _yield_to_all_others() -> None:
    """Run only when a processor is idle."""
    with suppress(OSError):
        os.nice(19)
    # A task that wakes up preempts one of SCHED_IDLE at once, so frames do not wait for a time
    # slice to end. A sandbox may forbid it; then there is still nice(2).
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    # If memory runs out, the kernel kills this process before one that forwards.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
