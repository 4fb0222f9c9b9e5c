"""Records of the attachments on this host: a JSON file for each, locked by its process.

A record is valid while it is locked. So the record of a process that was killed is not, even if
another process has got its PID.
"""

import fcntl
import json
import os
import select
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from vtep import descriptors
from vtep.control.socket_files import namespace
from vtep.errors import ConfigError, VtepError

RECORD_DIRECTORY = Path("/run/pyvtep/docker")
"""The directory of processes that root has started. Those of a systemd unit are in a directory
`docker` of the directory of that unit, such as /run/pyvtep/pyvtep-docker@mynetwork/docker."""

_END_TIMEOUT_S = 10.0
"""Timeout for the end of a process after SIGTERM."""


@frozen
class AttachmentRecord:
    """An attachment as it was when it started."""

    pid: int
    network: str
    id: str
    """ID of the network in the engine; commands accept a prefix of it, as docker does."""
    vni: int
    tap: str
    remotes: tuple[str, ...]
    docker_host: str
    recipe: str
    """The command that creates the same network again."""
    netns: str | None = None
    """Network namespace of the process, in the format of `control.socket_files.namespace`."""


def own_directory(environ: Mapping[str, str]) -> Path:
    """Return the directory in which this process publishes its attachment."""
    of_unit = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return Path(of_unit, "docker") if of_unit else RECORD_DIRECTORY


def _directories(directory: Path) -> list[Path]:
    """Return all directories of records, those of units after that of root."""
    of_units = directory.parent.glob(f"*/{directory.name}")
    return [directory, *sorted(of_units)]


@contextmanager
def publish(
    record: AttachmentRecord, directory: Path = RECORD_DIRECTORY, *, owner: int | None = None
) -> Iterator[None]:
    """Publish an attachment within the context. Raises: VtepError if the network has one.

    `owner` is the UID that the process will have: a successor, which starts with that, can open
    the file.
    """
    path = _path(record.network, directory)
    # Root and the units have directories of their own.
    others = {*_directories(RECORD_DIRECTORY)} - {directory}
    if any(_read(_path(record.network, other)) is not None for other in others):
        raise _attached_already(record.network)
    descriptor = _lock(path, record.network)
    try:
        if owner is not None:
            os.fchown(descriptor, owner, -1)
        # Written in place: a new file under this name would not be the one that is locked.
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(asdict(record)).encode())
        yield
    finally:
        # With --user, the directory is not ours any more. An unlocked record is not valid, and a
        # later attachment takes the file over.
        with suppress(PermissionError):
            path.unlink()
        os.close(descriptor)


def _lock(path: Path, network: str) -> int:
    """Open and lock the file of a record.

    Returns: its descriptor, which holds the lock until it is closed.
    """
    while True:
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise VtepError(
                f"cannot write {path}: {descriptors.reason(error)}; run as root"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise _attached_already(network) from error
        # Its owner may have removed the file between open and flock: lock a new one then.
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)


def _attached_already(network: str) -> VtepError:
    return VtepError(
        f"network {network} is attached already; to end that: pyvtep docker detach {network}"
    )


def list_records(directory: Path = RECORD_DIRECTORY) -> list[AttachmentRecord]:
    """Return the records of this host, sorted by the name of the network."""
    paths: list[Path] = []
    for place in _directories(directory):
        try:
            paths += place.iterdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise VtepError(
                f"cannot read {place}: {descriptors.reason(error)}; run as root"
            ) from error
    records = (_read(path) for path in sorted(paths, key=lambda path: path.name))
    return [record for record in records if record is not None]


def detach(network: str, directory: Path = RECORD_DIRECTORY) -> None:
    """End the attachment of a network, given by name or prefix of the ID, and wait for its end.

    Raises: VtepError if there is none, or if its process does not end.
    """
    path = _path(network, directory)
    record = _read(path)
    own = namespace()
    if record is None:
        found = [each for each in list_records(directory) if each.id.startswith(network)]
        if len(found) == 1:
            (record,) = found
            path = _path(record.network, directory)
    if record is not None:
        if record.netns is not None and record.netns != own:
            raise VtepError(
                f"network {record.network} is attached by process {record.pid} in another network "
                "namespace; end it there: "
                f"nsenter -t {record.pid} -n pyvtep docker detach {record.network}"
            )
        with suppress(ProcessLookupError), _process(record.pid) as process:
            # The pidfd is open: if the lock is still held now, it is of this process, not of
            # a later one with the same PID.
            if _read(path) == record:
                try:
                    signal.pidfd_send_signal(process, signal.SIGTERM)
                except PermissionError as error:
                    raise VtepError(
                        f"process {record.pid}, which attached network {network}, belongs to "
                        "another user; run as root"
                    ) from error
                if not select.select([process], [], [], _END_TIMEOUT_S)[0]:
                    raise VtepError(
                        f"process {record.pid}, which attached network {network}, does not "
                        f"end; to end it at once: kill -9 {record.pid}"
                    )
                return
    for unit in _directories(directory)[1:]:
        # The file is written by the user of the unit, who must not choose what root ends.
        for other in filter(None, map(_read, unit.glob("*.json"))):
            if other.network == network or other.id.startswith(network):
                raise VtepError(
                    f"network {other.network} is attached by a systemd unit; to end that: "
                    f"systemctl stop {unit.parent.name}"
                )
    raise VtepError(f"network {network} is not attached on this host; see: pyvtep docker status")


@contextmanager
def _process(pid: int) -> Iterator[int]:
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _path(network: str, directory: Path) -> Path:
    check_name(network)
    return directory / f"{network}.json"


def check_name(network: str) -> None:
    """Raise ConfigError unless Docker accepts a name, which is then also safe as a file name."""
    if not network or network[0] in "._-" or not _is_plain(network):
        raise ConfigError(f"network {network!r}: is not a name that a Docker network can have")


def _is_plain(network: str) -> bool:
    return network.isascii() and all(char.isalnum() or char in "._-" for char in network)


def _read(path: Path) -> AttachmentRecord | None:
    """Return the record in a file; None if no process has locked it."""
    try:
        with path.open() as file:
            try:
                # A shared lock can be had unless the owner still holds its exclusive one.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found: dict[str, Any] = json.load(file)
                return AttachmentRecord(**found | {"remotes": tuple(found["remotes"])})
    except (OSError, ValueError, TypeError, KeyError):  # Removed, or not written yet.
        pass
    return None
