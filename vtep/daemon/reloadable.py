"""A VTEP with its process settings and configuration file, which can be reloaded."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from vtep.config import Settings
from vtep.config.evpn import describe_change
from vtep.daemon.vtep import Reload, Vtep
from vtep.errors import ConfigError
from vtep.io.inherited import Inherited

log = logging.getLogger("vtep")

_FIXED = ("control", "control_group", "control_admin_group", "user", "state", "state_learned")
"""Settings that a process keeps from its start to its end."""


class ReloadableVtep:
    """A VTEP, the settings of its process, and the file that they come from, if any.

    `overrides` are settings from the command line, which take precedence over the file. `inherited`
    are descriptors that are open already. `check` raises VtepError for settings that this host
    refuses.
    """

    def __init__(
        self,
        settings: Settings,
        path: Path | None = None,
        overrides: Mapping[str, Any] | None = None,
        inherited: Inherited | None = None,
        check: Callable[[Settings], None] = lambda _: None,
    ) -> None:
        self._overrides = overrides or {}
        self.settings = settings = attrs.evolve(settings, **self._overrides)
        self._check = check
        check(settings)
        self.path = path
        self._reloading = asyncio.Lock()
        self._watchers: list[Callable[[Settings], None]] = []
        self.vtep = Vtep(*settings.segments, inherited=inherited)

    def watch(self, watcher: Callable[[Settings], None]) -> Callable[[], None]:
        """Call `watcher` with the settings after each reload.

        Returns: a function that ends this.
        """
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    async def reload(self) -> str:
        """Read the file again and apply it. Segments that did not change forward on.

        Returns: a line that summarizes the changes.
        Raises: ConfigError or VtepError if the file or the host refuses: nothing is changed then.
        """
        if self.path is None:
            raise ConfigError(
                "cannot reload: pyvtep was started without --config; use pyvtep set, or pyvtep vni"
            )
        async with self._reloading:
            successful = False
            try:
                line = await self._reload(self.path)
                successful = True
            finally:
                self.vtep.last_reload = Reload(successful, time.time())
            return line

    async def _reload(self, path: Path) -> str:
        # In a thread: a file with a thousand VNIs takes a tenth of a second to parse.
        # Imported already if there is a file; a VTEP without one does without a TOML parser.
        from vtep.config.loader import exposed_secrets, read, with_password  # noqa: PLC0415

        settings = attrs.evolve(await asyncio.to_thread(read, path), **self._overrides)
        settings = await asyncio.to_thread(with_password, settings, path)
        self._check(settings)
        counts = dict.fromkeys(("added", "changed", "deleted"), 0)

        def count(event: str, *_: object) -> None:
            counts[event] += 1

        unwatch = self.vtep.watch(count)
        try:
            await self.vtep.reload(settings.segments)
        finally:
            unwatch()
        for name in _FIXED:
            if getattr(settings, name) != getattr(self.settings, name):
                log.warning("%s has changed in %s, which takes a restart", name, path)
        done = [f"{n} {event}" for event, n in counts.items() if n]
        if settings.evpn != self.settings.evpn:
            done.append(describe_change(self.settings.evpn, settings.evpn))
        for warning in exposed_secrets(settings, path):
            log.warning("%s", warning)
        self.settings = settings
        for watcher in self._watchers:
            watcher(settings)
        line = f"read {path} again: {', '.join(done) or 'nothing is different'}"
        log.info("%s", line)
        return line
