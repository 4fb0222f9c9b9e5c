"""A VTEP that is run by a configuration file: reading it, and reading it again."""

import asyncio
import errno
import logging
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from vtep import descriptors
from vtep.config import Settings
from vtep.configfile import FileError, parse
from vtep.engine import Vtep
from vtep.errors import ConfigError, VtepError

log = logging.getLogger("vtep")

_SIZE_MAX = 16 << 20
"""Octets of a configuration file: a thousand VNIs with a thousand remotes each have that many."""


def read(path: Path) -> Settings:
    """What a configuration file asks for.

    Raises FileError where it makes no sense, and VtepError where it can't be read.
    """
    try:
        octets = _octets(path)
    except OSError as error:
        raise VtepError(f"--config {path}: cannot read it: {descriptors.reason(error)}") from error
    if len(octets) > _SIZE_MAX:
        raise VtepError(f"--config {path}: is larger than {_SIZE_MAX >> 20} MiB")
    try:
        text = octets.decode().removeprefix("\ufeff")  # Some editors begin with a byte order mark.
    except UnicodeDecodeError as error:
        line = octets.count(b"\n", 0, error.start) + 1
        raise FileError([f"{path}:{line}: is not UTF-8 text"]) from None
    return parse(text, str(path))


def _octets(path: Path) -> bytes:
    """What is in a file, or in /dev/stdin or a shell's <(...); not much more than there may be.

    Raises OSError, also for other things that are no regular files: who reads a FIFO may wait for
    ever.
    """
    if not stat.S_ISREG(path.stat().st_mode) and not path.is_relative_to("/dev"):
        raise OSError(errno.EINVAL, "it is no regular file")
    with path.open("rb") as file:
        return file.read(_SIZE_MAX + 1)


class Service:
    """A VTEP with the settings of its process, and the file that they are from, if any.

    The settings in `instead` hold, whatever the file says.
    """

    def __init__(
        self, settings: Settings, path: Path | None = None, instead: Mapping[str, Any] | None = None
    ) -> None:
        self._instead = instead or {}
        self.settings = settings = attrs.evolve(settings, **self._instead)
        self.path = path
        self._reloading = asyncio.Lock()
        self.vtep = Vtep(*settings.segments)

    async def reload(self) -> str:
        """Read the file again, and have what it says now; a line that says what is different.

        What did not change forwards on. Raises ConfigError or VtepError where the file or this host
        refuse, and then all is as it was.
        """
        if self.path is None:
            raise ConfigError("--config: there is none to be read again; it was run by options")
        async with self._reloading:
            return await self._reload(self.path)

    async def _reload(self, path: Path) -> str:
        # In a thread: a thousand VNIs take a tenth of a second to read.
        settings = attrs.evolve(await asyncio.to_thread(read, path), **self._instead)
        counts = dict.fromkeys(("added", "changed", "deleted"), 0)

        def count(event: str, *_: object) -> None:
            counts[event] += 1

        unwatch = self.vtep.watch(count)
        try:
            await self.vtep.reload(settings.segments)
        finally:
            unwatch()
        for name in ("control", "state", "state_learned"):
            if getattr(settings, name) != getattr(self.settings, name):
                log.warning("%s has changed in %s, which takes a restart", name, path)
        self.settings = settings
        done = ", ".join(f"{n} {event}" for event, n in counts.items() if n)
        line = f"read {path} again: {done or 'nothing is different'}"
        log.info("%s", line)
        return line
