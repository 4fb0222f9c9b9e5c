"""The pyvtep that serves the Docker networks of this host: found, or started if none runs.

One process has the UDP port, so all networks of a host are VNIs of one process. `docker attach` and
the network driver both find it by `join`, and may call that at the same time.
"""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from vtep import descriptors
from vtep.control import socket_files
from vtep.control.choice import Candidate
from vtep.control.client import Client, DisconnectedError, candidates
from vtep.errors import ConfigError, VtepError

_LOCK = "on-demand.lock"
"""File that is locked while a process is started, in the directory of the control sockets."""

_LOCK_TIMEOUT_S = 60.0
"""Time for another caller to start the process: Python takes seconds to load on a busy host."""

_LOCK_INTERVAL_S = 0.05

_TRIES = 3
"""Attempts to connect: a process that ends meanwhile is found by the first, but not by the next."""

_PREFIX = "pyvtep: error: "

_OF_UNIT = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS")
"""Variables by which systemd addresses the unit of the caller, and not a process that it starts."""


def join(*, dstport: int, socket: Path | None = None) -> Client:
    """Connect to the pyvtep of this host and network namespace; start one if none runs.

    That is the one at `socket` or, without it, the one whose VNIs use the UDP port `dstport`; else
    the only one. A process that is started here has no VNI yet (`pyvtep --on-demand`), and lives
    at least as long as the connection that is returned.

    Returns: a connected client, whose process has answered.

    Raises: ConfigError, which names them, if there are several to choose from; VtepError if the
    process does not answer or cannot be started.
    """
    if socket is not None:
        return _connect(socket)
    for _ in range(_TRIES):
        try:
            return _connect(_find(dstport) or _start(dstport))
        except DisconnectedError as error:
            last = error
    raise last


def _connect(path: Path) -> Client:
    """Return a client. Raises: DisconnectedError if its process ends now, or has ended."""
    client = Client(path)
    try:
        # Accepted by now, and so counted as a client: the process does not end without it.
        client.call("ping")
    except BaseException:
        client.close()
        raise
    return client


def running() -> list[Candidate]:
    """Return the pyvteps of this network namespace to which this user may connect."""
    return [each for each in candidates() if each.here]


def _find(dstport: int) -> Path | None:
    """Return the control socket of the process to join; None if none runs.

    Raises: ConfigError if there are several.
    """
    found = running()
    if len(found) > 1:
        found = [each for each in found if dstport in _ports(each.path)] or found
    if len(found) > 1:
        listed = "; ".join(map(str, found))
        raise ConfigError(
            f"several pyvteps are running; choose one with --socket PATH: there is {listed}"
        )
    return found[0].path if found else None


def _ports(path: Path) -> set[int]:
    """Return the UDP ports of the VNIs of a process; none if it does not answer."""
    try:
        with Client(path) as client:
            return {segment["options"]["dstport"] for segment in client.vni.show()}
    except VtepError:
        return set()


def _start(dstport: int) -> Path:
    """Start a process, unless another caller has done so meanwhile. Returns: its socket."""
    with _locked():
        if (path := _find(dstport)) is not None:
            return path
        _run([sys.executable, "-m", "vtep", "--on-demand", "--background"])
        if (path := _find(dstport)) is not None:
            return path
    raise DisconnectedError(
        "a pyvtep was started for the Docker networks of this host, but its control socket was not "
        "found; its log has the reason (journalctl, or syslog)"
    )


@contextmanager
def _locked() -> Iterator[None]:
    """Lock the start of a process against other callers. Raises: VtepError."""
    place = socket_files.folder()
    if place is None:
        raise VtepError(
            "cannot start a pyvtep: XDG_RUNTIME_DIR is not set, so there is no place for its "
            "control socket; run as root, or start one with --control PATH, and name it: --socket "
            "PATH"
        )
    path = place / _LOCK
    try:
        place.mkdir(mode=0o755 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise VtepError(
            f"cannot start a pyvtep: {path}: {descriptors.reason(error)}; run as root"
        ) from error
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise VtepError(
                        f"cannot start a pyvtep: another process keeps {path} locked; is it "
                        f"stopped? (see: fuser {path})"
                    ) from None
                time.sleep(_LOCK_INTERVAL_S)
        yield
    finally:
        os.close(lock)


def _run(command: Sequence[str]) -> None:
    """Run a command that returns once its process forwards. Raises: VtepError with its error."""
    # A file, not a pipe: the process that stays would keep a pipe open, and it would be read for
    # ever.
    with TemporaryFile() as said:
        done = subprocess.run(  # noqa: S603  this very program
            command,
            env={name: value for name, value in os.environ.items() if name not in _OF_UNIT},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            cwd="/",  # Python would import `vtep` of the working directory.
            check=False,
        )
        if done.returncode:
            raise VtepError(f"cannot start a pyvtep: {_reason(said)}")


def _reason(said: IO[bytes]) -> str:
    """Return the last error of what a command has written."""
    said.seek(0)
    lines = said.read().decode(errors="replace").splitlines() or ["it gave no reason"]
    errors = [line.removeprefix(_PREFIX) for line in lines if line.startswith(_PREFIX)]
    return (errors or lines)[-1]
