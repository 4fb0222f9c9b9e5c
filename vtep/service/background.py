"""Running in the background without a service manager: the double fork, and the PID file.

The command returns once the process forwards, or with its error.
"""

import errno
import fcntl
import os
import re
import stat
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from vtep import descriptors
from vtep.errors import VtepError

_READY = b"\0"
"""The message of a process that forwards; all other octets are exit codes."""

_SIZE_MAX = 20
"""Most octets of a PID file; only a file of another kind has more."""


class Background:
    """The background half of a command that was forked; its other half waits in the foreground.

    As a context manager, it reports how the start has failed. `ready` reports success, and raises
    VtepError if the other half was interrupted.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def enter(cls) -> Self:
        """Go on in the background. The foreground waits there, and exits as the start ends.

        Call it before any thread exists: threads do not survive a fork.
        """
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()  # Otherwise both processes would write it.
        reader, writer = os.pipe2(os.O_CLOEXEC)
        child = os.fork()
        if child:
            os.close(writer)
            _wait_for_start(reader)
        os.close(reader)
        # A session of its own, so that the end of the terminal does not end it. The second fork
        # gives up the lead of the session, whose terminal would be the next one that is opened.
        os.setsid()
        if os.fork():
            os._exit(0)
        return cls(writer)

    @classmethod
    def detach(cls) -> Self:
        """Go on as a child of process 1. The process that was started waits for this one's end.

        It keeps its streams, its session, its process group and its directory.
        """
        reader, writer = os.pipe2(os.O_CLOEXEC)
        if os.fork():
            os.close(writer)
            _wait_for_start(reader)
        os.close(reader)
        if os.fork():
            os._exit(0)
        return cls(writer)

    def ready(self) -> None:
        """Make the command return, and give up its terminal and its directory."""
        # A directory that is used could not be unmounted.
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        os.close(null)
        if self._descriptor is not None:
            try:
                os.write(self._descriptor, _READY)
            except BrokenPipeError as error:
                raise VtepError("the command was interrupted before it forwarded") from error
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Report the exit code, unless `ready` was called before."""
        if self._descriptor is not None:
            # Left open for the end of the process, which follows after it has printed the error.
            with suppress(BrokenPipeError):
                os.write(self._descriptor, bytes((getattr(exc, "exit_code", 1),)))


def _wait_for_start(reader: int) -> None:
    """Exit as the process in the background has started. Never returns."""
    code = b""
    try:
        # Up to the end of the pipe: the process prints its error after it has sent the code.
        while octets := os.read(reader, 1):
            code = octets
            if code == _READY:
                break
    except KeyboardInterrupt:
        os._exit(130)
    os._exit(code[0] if code else 1)


class PidFile:
    """The file that has the number of this process; it is locked as long as the process runs.

    A file that is not locked was left by a process that was killed, and is replaced. So a number
    that another process has got meanwhile is never taken for a running pyvtep.

    With `takeover`, another process has the file, and keeps it until `publish` is called.

    Raises: VtepError if another process has it, or if it cannot be written.
    """

    def __init__(self, path: Path, *, takeover: bool = False) -> None:
        self._is_left = False
        self._descriptor: int | None = None
        try:
            # Absolute, as the process changes its directory.
            self.path = path.absolute()
            if not takeover:
                self._descriptor = _write(self.path)
            elif not os.access(self.path.parent, os.W_OK | os.X_OK, effective_ids=True):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise VtepError(
                f"--pid-file {path}: cannot write it: {descriptors.reason(error)}; give another one"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.remove()

    def publish(self) -> None:
        """Put the file in place of that of the process that this one has taken over from.

        Raises: OSError.
        """
        if self._descriptor is None:
            # Written now, and not before, so that a process that is killed while it takes over
            # leaves no file behind. Renamed, so that there is a file at any time.
            written = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            self._descriptor = _write(written)
            try:
                written.replace(self.path)
            except OSError:
                written.unlink()
                raise

    def leave(self) -> None:
        """Leave the file to the process that takes over, which replaces it: there always is one."""
        self._is_left = True

    def remove(self) -> None:
        """Remove the file, unless it was left to another process, and unlock it."""
        if self._descriptor is None:
            return
        with suppress(OSError):
            # The user of --user may not be allowed to remove it: at least it names no process.
            if not self._is_left:
                os.ftruncate(self._descriptor, 0)
                if os.path.samestat(self.path.stat(), os.fstat(self._descriptor)):
                    self.path.unlink()
        os.close(self._descriptor)
        self._descriptor = None


def _write(path: Path) -> int:
    """Lock a PID file, and write it. Returns: its descriptor. Raises: OSError, VtepError."""
    descriptor = _lock(path)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    except OSError:
        with suppress(OSError):
            path.unlink()  # The disk is full: an empty file would stay.
        os.close(descriptor)
        raise
    return descriptor


def _lock(path: Path) -> int:
    """Open and lock a PID file. Returns: its descriptor, which holds the lock until it is closed.

    Raises: OSError; VtepError if a process has locked it.
    """
    while True:
        # Not through a link: in a directory that others can write to, it would lead anywhere.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its owner may have removed it between open and flock: lock a new one then.
            if os.fstat(descriptor).st_nlink:
                _check_contents(descriptor)
                return descriptor
        except BlockingIOError as error:
            pid = os.read(descriptor, _SIZE_MAX).decode(errors="replace").strip()
            os.close(descriptor)
            found, advice = "another process", ""
            if pid.isdecimal():
                found, advice = f"process {pid}", f" (kill {pid})"
            raise VtepError(
                f"--pid-file {path}: {found} has it; name another file with --pid-file, or "
                f"end that process if it is the one to be replaced{advice}"
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _check_contents(descriptor: int) -> None:
    """Raise OSError unless a file is empty, or has the number of a process.

    A file of another kind, such as the configuration, would be lost.
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    contents = os.read(descriptor, _SIZE_MAX + 1)
    # A process that was killed has left it, or one that was not allowed to remove it, empty.
    if len(contents) > _SIZE_MAX or not re.fullmatch(rb"\d*\s*", contents):
        raise OSError(errno.EEXIST, "it has other contents than a process ID")
    os.lseek(descriptor, 0, os.SEEK_SET)
