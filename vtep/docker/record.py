"""Which networks are attached on this host, and by which process: a file for each.

A record holds while its process has it locked, so that one whose process was killed holds no more,
whatever other process has its number by now.
"""

import fcntl
import json
import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from vtep import descriptors
from vtep.control.socket_files import namespace
from vtep.errors import ConfigError, VtepError

FOLDER = Path("/run/pyvtep/docker")

_ENDS_WITHIN = 10.0
"""Seconds that a process may take to end when it is asked to."""


@frozen
class Record:
    """An attachment, as of its beginning."""

    pid: int
    network: str
    id: str
    """The engine's name for the network, of which people may write the beginning."""
    vni: int
    tap: str
    remotes: tuple[str, ...]
    docker_host: str
    recipe: str
    """The command that creates such a network."""
    netns: str | None = None
    """The network namespace of the process, as `control.paths.namespace` has it."""


@contextmanager
def keep(record: Record, folder: Path = FOLDER) -> Iterator[None]:
    """Let others know of an attachment; raises VtepError where the network has one already."""
    path = _path(record.network, folder)
    descriptor = _lock(path, record.network)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(asdict(record)).encode())
        yield
    finally:
        path.unlink()
        os.close(descriptor)


def _lock(path: Path, network: str) -> int:
    while True:
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise VtepError(
                f"cannot write {path} ({descriptors.reason(error)}): run as root"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise VtepError(
                f"network {network} is attached already; to end that: pyvtep docker detach "
                f"{network}"
            ) from error
        # Its owner may have ended, and removed it, since it was opened.
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)


def attached(folder: Path = FOLDER) -> list[Record]:
    """The attachments of this host, by name of the network."""
    try:
        paths = sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise VtepError(
            f"cannot read {folder} ({descriptors.reason(error)}): run as root"
        ) from error
    records = (_read(path) for path in paths)
    return [record for record in records if record is not None]


def detach(network: str, folder: Path = FOLDER) -> None:
    """End the attachment of a network, by its name or the beginning of its ID, and wait for that.

    Raises VtepError where there is none, or where its process does not end.
    """
    path = _path(network, folder)
    record = _read(path)
    own = namespace()
    if record is None:
        found = [one for one in attached(folder) if one.id.startswith(network)]
        if len(found) == 1:
            (record,) = found
            path = _path(record.network, folder)
    if record is not None:
        if record.netns is not None and record.netns != own:
            raise VtepError(
                f"network {record.network} is attached by process {record.pid} in another network "
                "namespace; end it there: "
                f"nsenter -t {record.pid} -n pyvtep docker detach {record.network}"
            )
        with suppress(ProcessLookupError), _process(record.pid) as process:
            # Only now it is sure that this number is that of the process that has the lock.
            if _read(path) == record:
                try:
                    signal.pidfd_send_signal(process, signal.SIGTERM)
                except PermissionError as error:
                    raise VtepError(
                        f"process {record.pid} has network {network} attached, and is another "
                        "user's: run as root"
                    ) from error
                if not select.select([process], [], [], _ENDS_WITHIN)[0]:
                    raise VtepError(
                        f"process {record.pid}, which has network {network} attached, does not end"
                    )
                return
    raise VtepError(f"network {network} is not attached on this host (pyvtep docker status)")


@contextmanager
def _process(pid: int) -> Iterator[int]:
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _path(network: str, folder: Path) -> Path:
    check(network)
    return folder / f"{network}.json"


def check(network: str) -> None:
    """Raise ConfigError for what can't be a name of a network, and hence none of a file here."""
    # As the engine has it.
    if not network or network[0] in "._-" or not _plain(network):
        raise ConfigError(f"network {network!r}: is not a name that a Docker network can have")


def _plain(network: str) -> bool:
    return network.isascii() and all(char.isalnum() or char in "._-" for char in network)


def _read(path: Path) -> Record | None:
    """The record in a file, or None if nobody holds it."""
    try:
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found: dict[str, Any] = json.load(file)
                return Record(**found | {"remotes": tuple(found["remotes"])})
    except (OSError, ValueError, TypeError, KeyError):  # Gone, or not written yet.
        pass
    return None
