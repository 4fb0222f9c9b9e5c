"""The directory in which compiled code is kept from one start to the next.

A cache holds code that is executed, and numba reads it with pickle. So a directory that another
user can write to is never used.

Below it is one directory for each digest of everything that the code depends on. numba compares
only the source file of a function, and notices neither a change in a function that it calls from
another file, nor an update of llvmlite.

LLVM does not check the code that it loads: a damaged file, as after a power failure, crashes the
process. So the marker of a complete directory has a digest of every file, which is verified before
each load. A process that loads has a claim in the directory meanwhile. If the process dies, the
claim stays, and the next start lets a child load the code first.
"""

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import blake2b, sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Self

from attrs import frozen

import vtep
from vtep.errors import VtepError

VARIABLE: Final = "PYVTEP_CACHE_DIR"

SOURCES: Final = (
    *("fastpath/*.py", "wire/*.py"),
    *("io/path.py", "io/socket_constants.py", "offload/headers.py"),
)
"""Modules of pyvtep whose functions and constants are in the compiled code."""

_BASES = ("HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "TMPDIR")
"""Environment variables whose directory is not created."""

_LIBRARIES = ("numba", "llvmlite", "numpy")

_VERSION_FILES = ("_version.py", "version.py")

_CPU_KEYS = frozenset(
    (
        *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
        *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),
    )
)
"""Lines of /proc/cpuinfo that identify a model; others, such as its frequency, change."""

_DIGEST = re.compile(r"[0-9a-f]{16}")

_COMPLETE = "complete"

_CLAIM = "loading."
"""The beginning of names of claims; the rest is random, since containers have PIDs of their own."""

_KEPT = 2
"""Directories of other digests that are kept: two versions in turn need not be compiled again."""

_UNUSED_S = 3600.0
"""Seconds without use after which a directory may be removed. A process that has loaded the code
does not read the files again, and loading takes a second."""

_POLL_S = 0.2
"""Interval at which a process that waits for another one's compiler looks again, in seconds."""


class CacheError(VtepError):
    """There is no directory that can be used."""


# --- decisions --------------------------------------------------------------------------------


def candidates(environ: Mapping[str, str], uid: int, home: str | None) -> list[Path]:
    """Return the directories to try, the best one first. Relative paths are ignored."""
    explicit = environ.get(VARIABLE)
    if explicit:  # No other one: the user is to learn that this one cannot be used.
        return [Path(explicit)]
    found: list[Path] = []
    # Of a systemd unit with CacheDirectory=, which may name several.
    if of_unit := environ.get("CACHE_DIRECTORY", "").partition(":")[0]:
        found.append(Path(of_unit))
    if of_user := environ.get("XDG_CACHE_HOME"):
        found.append(Path(of_user, "pyvtep"))
    elif home:
        found.append(Path(home, ".cache/pyvtep"))
    if uid == 0:
        found.append(Path("/var/cache/pyvtep"))
    if of_session := environ.get("XDG_RUNTIME_DIR"):
        found.append(Path(of_session, "pyvtep"))
    found.append(Path(environ.get("TMPDIR") or "/tmp", f"pyvtep-{uid}"))  # noqa: S108  checked
    return [path for path in found if path.is_absolute()]


def refusal(path: Path, owner: int, mode: int, uid: int, *, is_parent: bool) -> str | None:
    """Return why a directory with this owner and mode is not safe for a user; None if it is.

    Whoever can write to a parent can replace the directory, unless the parent is sticky, as /tmp.
    """
    if owner != uid and not (is_parent and owner == 0):
        return f"{path} belongs to another user"
    if mode & (stat.S_IWGRP | stat.S_IWOTH) and not (is_parent and mode & stat.S_ISVTX):
        return f"{path} can be written by other users; chmod go-w {path}, or"
    return None


def digest_of(parts: Iterable[bytes]) -> str:
    """Return a digest over parts, each of which counts with its length."""
    total = sha256()
    for part in parts:
        total.update(b"%d:" % len(part))
        total.update(part)
    return total.hexdigest()[:16]


def superseded(last_used: Mapping[str, float], current: str, now: float) -> list[str]:
    """Return the digests whose directories can be removed, given when each was last used."""
    others = sorted(last_used.keys() - {current}, key=lambda name: last_used[name], reverse=True)
    return [name for name in others[_KEPT:] if now - last_used[name] > _UNUSED_S]


def cpu_model(cpuinfo: str) -> str:
    """Return the lines of /proc/cpuinfo that identify the model of the first processor."""
    first = cpuinfo.partition("\n\n")[0].splitlines()
    return "\n".join(line for line in first if line.partition(":")[0].strip() in _CPU_KEYS)


# --- the machine ------------------------------------------------------------------------------


def find_root() -> Path:
    """Return the first directory that is safe and writable, created if necessary.

    Raises: CacheError.
    """
    refusals = []
    for path in _candidates_here():
        try:
            _make(path)
            path = path.resolve(strict=True)  # noqa: PLW2901
            reason = _check(path)
        except NotADirectoryError as error:
            reason = f"{error.filename} is not a directory"
        except OSError as error:
            reason = f"{path}: {error.strerror}"
        if reason is None:
            return path
        refusals.append(reason)
    reason = refusals[0] if refusals else "no directory of this user exists"
    joint = "" if reason.endswith(", or") else ";"
    raise CacheError(
        f"there is no safe directory for compiled code: {reason}{joint} set {VARIABLE} to one that "
        "this user owns and no other can write"
    )


def _candidates_here() -> list[Path]:
    """Return the directories to try on this machine.

    Without those below a home directory, say, that does not exist: root would create it.
    """
    environ = {
        name: value
        for name, value in os.environ.items()
        if name == VARIABLE or name not in _BASES or Path(value).is_dir()
    }
    home = os.path.expanduser("~")  # noqa: PTH111  Path.home() raises without a home
    return candidates(environ, os.geteuid(), home if Path(home).is_dir() else None)


def _make(path: Path) -> None:
    """Create a directory and its parents, for this user alone whatever the umask is."""
    if path.is_dir():
        return
    if path.exists():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    _make(path.parent)
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)


def _check(path: Path) -> str | None:
    """Return why a directory cannot be used to keep code in; None if it can."""
    uid = os.geteuid()
    for each in (path, *path.parents):
        found = each.stat()
        if reason := refusal(each, found.st_uid, found.st_mode, uid, is_parent=each != path):
            return reason
    return None if os.access(path, os.W_OK | os.X_OK) else f"{path} is not writable"


def _check_for_reading(path: Path) -> str | None:
    """Return why code in a directory cannot be trusted; None if it can: root may own it, too."""
    uid = os.geteuid()
    for each in (path, *path.parents):
        found = each.stat()
        is_parent = each != path or found.st_uid == 0
        if each == path and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"{path} can be written by other users"
        if reason := refusal(each, found.st_uid, found.st_mode, uid, is_parent=is_parent):
            return reason
    return None


def find_digest() -> str:
    """Return the digest of everything that the compiled code depends on, on this machine."""
    return digest_of(_dependencies())


def _dependencies() -> Iterator[bytes]:
    package = Path(vtep.__file__).parent
    for path in sorted(path for pattern in SOURCES for path in package.glob(pattern)):
        yield os.fsencode(path)  # numba keeps the code of a function by the path of its file.
        yield path.read_bytes()
    yield os.uname().machine.encode()
    yield f"{sys.implementation.cache_tag} {sys.version}".encode()
    with suppress(OSError):
        yield cpu_model(Path("/proc/cpuinfo").read_text()).encode()
    for name in _LIBRARIES:
        spec = find_spec(name)
        if spec is not None and spec.origin is not None:
            yield os.fsencode(spec.origin)
            # Not by importlib.metadata, whose import takes longer than all the rest.
            for file in _VERSION_FILES:
                with suppress(OSError):
                    yield Path(spec.origin).with_name(file).read_bytes()
    for name, value in sorted(os.environ.items()):
        # They influence the code, but for this one, instead of which the caller sets another.
        if name.startswith("NUMBA_") and name != "NUMBA_CACHE_DIR":
            yield f"{name}={value}".encode(errors="surrogateescape")


@frozen
class Proof:
    """The content of a marker: what a child has loaded, so that this process can do so, too."""

    stamp: str
    """A random number, by which claims name the proof."""
    files: Mapping[str, str]
    """By path below the directory, the digest of each file."""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the proof in a marker; None if the marker is damaged."""
        stamp, *lines = text.split("\n")
        files = {path: digest for digest, _, path in (line.partition(" ") for line in lines)}
        proof = cls(stamp, files)
        return proof if stamp and str(proof) == text else None

    def __str__(self) -> str:
        """Return the text of the marker."""
        return "\n".join((self.stamp, *(f"{digest} {path}" for path, digest in self.files.items())))


@frozen
class CompileCache:
    """The compiled code of one digest, which is complete once its marker exists."""

    root: Path
    digest: str

    @classmethod
    def find(cls) -> Self:
        """Return the cache for this program on this machine: a complete one, if there is.

        Side effect: creates the directory for a new one.
        Raises: CacheError.
        """
        digest = find_digest()
        for path in _candidates_here():
            # A complete one may be read-only, as in the image of a container.
            with suppress(OSError):
                cache = cls(path.resolve(strict=True), digest)
                if cache.is_complete() and _check_for_reading(cache.directory) is None:
                    return cache
        return cls(find_root(), digest)

    @property
    def directory(self) -> Path:
        """The directory for numba."""
        return self.root / self.digest

    @property
    def _marker(self) -> Path:
        return self.directory / _COMPLETE

    def is_complete(self) -> bool:
        """Return whether there is a marker. It does not say whether the files are undamaged."""
        return self._marker.exists()

    def read_proof(self) -> Proof | None:
        """Return the proof in the marker, if all files are as they were when it was made.

        Side effect: notes the time of use.
        """
        try:
            proof = Proof.parse(self._marker.read_text())
            if proof is None:
                return None
            for name, digest in proof.files.items():
                if _digest_of_file((self.directory / name).read_bytes()) != digest:
                    return None
        except (OSError, ValueError):
            return None
        with suppress(OSError):
            os.utime(self._marker)
        return proof

    def mark_complete(self) -> Proof:
        """Note that the code can be loaded as it is. Raises: OSError."""
        files = {}
        for path in sorted(self.directory.rglob("*")):
            if path.is_file() and path.parent != self.directory:
                with path.open("rb") as file:
                    # Before the marker, so that after a power failure it has no other files.
                    os.fsync(file.fileno())
                    name = str(path.relative_to(self.directory))
                    files[name] = _digest_of_file(file.read())
        proof = Proof(secrets.token_hex(8), files)
        with tempfile.NamedTemporaryFile("w", dir=self.directory, delete=False) as marker:
            marker.write(str(proof))
            marker.flush()
            os.fsync(marker.fileno())
        Path(marker.name).replace(self._marker)
        return proof

    def discard(self) -> None:
        """Remove the compiled code, but not the claims."""
        with suppress(OSError):
            # The marker first: without the rest, it would be a marker of damaged code.
            self._marker.unlink(missing_ok=True)
            for path in tuple(self.directory.iterdir()):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif not path.name.startswith(_CLAIM):
                    path.unlink(missing_ok=True)

    # --- claims -------------------------------------------------------------------------------

    def claim(self, proof: Proof) -> "Claim":
        """Note that this process is loading the code."""
        try:
            descriptor, name = tempfile.mkstemp(dir=self.directory)
        except OSError:  # A read-only directory, whose files cannot be damaged by a crash either.
            return Claim(None, None)
        with suppress(OSError):
            os.write(descriptor, proof.stamp.encode())
        # Renamed when it is locked, so that no other process takes it for one of a dead process.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        path = self.directory / f"{_CLAIM}{Path(name).name}"
        Path(name).replace(path)
        return Claim(path, descriptor)

    def find_crashes(self) -> list[str]:
        """Return the stamps that the claims of dead processes name."""
        return [stamp for _, stamp in self._dead_claims()]

    def forget_crashes(self) -> None:
        """Remove the claims of dead processes, since the code could be loaded after all."""
        for path, _ in self._dead_claims():
            with suppress(OSError):
                path.unlink()

    def _dead_claims(self) -> Iterator[tuple[Path, str]]:
        for path in self.directory.glob(f"{_CLAIM}*"):
            with suppress(OSError), path.open() as file:
                # BlockingIOError if its process lives. Shared, since others may look now, too.
                fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
                # Without a link, its process has released it since the directory was read.
                if os.fstat(file.fileno()).st_nlink:
                    yield path, file.read()

    @contextmanager
    def locked(self, wait: Callable[[float], None]) -> Iterator[None]:
        """Hold the lock of the process that compiles.

        While another process holds it, `wait` is called again and again with a time in seconds; it
        may raise an exception to give up. The kernel releases the lock if a process dies.
        Raises: OSError.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.root / "lock", flags, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    wait(_POLL_S)
            self.directory.mkdir(mode=0o700, exist_ok=True)
            yield
        finally:
            os.close(descriptor)

    def prune(self) -> None:
        """Remove the directories of other digests that were not used for long."""
        last_used = {}
        for path in self.root.iterdir():
            if _DIGEST.fullmatch(path.name):
                with suppress(OSError):
                    marker = path / _COMPLETE
                    last_used[path.name] = (marker if marker.exists() else path).stat().st_mtime
        for name in superseded(last_used, self.digest, time.time()):
            shutil.rmtree(self.root / name, ignore_errors=True)


@frozen
class Claim:
    """A file that names the process that loads, by a lock that the kernel releases at its death."""

    _path: Path | None
    _descriptor: int | None

    def release(self) -> None:
        """Note that the process has survived."""
        if self._path is not None and self._descriptor is not None:
            with suppress(OSError):
                # Before the lock is released: without a link it is of no dead process.
                self._path.unlink(missing_ok=True)
                os.close(self._descriptor)


def _digest_of_file(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()
