"""A VTEP that is run by a configuration file: reading it, and reading it again."""

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from vtep.config import Settings
from vtep.config.loader import read
from vtep.daemon.vtep import Vtep
from vtep.errors import ConfigError

log = logging.getLogger("vtep")


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
