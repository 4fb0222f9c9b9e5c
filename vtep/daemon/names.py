"""Names of remotes: they are looked up in the background, and changes are applied."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress

from vtep.config import Config
from vtep.config.host_names import HostName
from vtep.daemon.network import HostNetwork, HostSession
from vtep.errors import VtepError
from vtep.host.name_schedule import RETRY_MAX_S, NameAnswer, NameSchedule, NameState
from vtep.wire.address import Address

log = logging.getLogger("vtep")

_LOOKUPS_MAX = 8
"""Names that are looked up at a time, each in a thread."""

_NAMED_MAX = 8
"""Addresses that a log line names."""


class NameResolver:
    """Looks up the names among the remotes of a VTEP, again whenever that is due.

    `apply` is called when addresses have changed: it carries out a transaction with what `resolve`
    returns then.
    """

    def __init__(self, network: HostNetwork, apply: Callable[[], Awaitable[None]]) -> None:
        self._network = network
        self._apply = apply
        self._schedule = NameSchedule()
        self._own: set[tuple[str, Address]] = set()
        """Own addresses of this host that names have, as logged."""
        self._task: asyncio.Task[None] | None = None
        self._lookups: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(_LOOKUPS_MAX)
        self._wake = asyncio.Event()
        self._is_changed = False
        self._apply_error = ""

    def error(self, name: str) -> str:
        """Return why a name could not be looked up the last time; empty if it could."""
        state = self._schedule.states.get(name)
        return "" if state is None else state.error

    def is_awaited(self, name: str) -> bool:
        """Return True for a name that has no address yet because it was never resolved."""
        state = self._schedule.states.get(name)
        return state is not None and not (state.is_resolved or state.addresses)

    # --- life -------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to look up names, in the running event loop."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """Look up no more names. A thread that waits for a name server ends by itself."""
        for task in (self._task, *self._lookups):
            if task is not None:
                task.cancel()

    def want(self, configs: Iterable[Config]) -> None:
        """Look up the names of these configurations, and no others, from now on.

        New names begin with the addresses that they have there.
        """
        names: dict[str, set[Address]] = {}
        for config in configs:
            for remote in config.remote:
                if isinstance(remote, HostName):
                    names.setdefault(remote.name, set()).update(remote.addresses)
        if names.keys() != self._schedule.states.keys():
            self._schedule.want(names, time.monotonic())
            self._own = {(name, own) for name, own in self._own if name in names}
            self._wake.set()

    def look_up_again(self) -> None:
        """Look up all names now."""
        self._schedule.look_up_again()
        self._wake.set()

    async def on_host_changed(self) -> None:
        """Retry failed lookups, since there may be a route to a name server now.

        An address of a name may be one of this host now, or no more: that is applied at once.
        """
        if self._schedule.states:
            self._schedule.retry_failed(time.monotonic())
            self._wake.set()
            await self._apply_changes()

    # --- answers ----------------------------------------------------------------------------

    async def resolve(self, configs: Iterable[Config]) -> list[Config]:
        """Return the configurations with the present addresses of their names.

        Own addresses of this host are left out: so all hosts can have one name for all of them.
        """
        configs = list(configs)
        states = self._schedule.states
        found = {
            name: states[name].addresses
            for config in configs
            for name in config.remote_names
            if name in states
        }
        if not any(found.values()):
            return [config.with_addresses(found) for config in configs]

        def find_own(session: HostSession) -> dict[str | None, set[Address]]:
            routes, own = session.routes(), {}
            for dev in {config.dev for config in configs}:
                candidates = {each for some in found.values() for each in some}
                own[dev] = {each for each in candidates if routes.is_own(each, dev)}
            return own

        own = await self._network.run(find_own)
        self._log_own(found.items(), set().union(*own.values()))
        return [
            config.with_addresses(
                {name: set(some) - own[config.dev] for name, some in found.items()}
            )
            for config in configs
        ]

    def _log_own(
        self, found: Iterable[tuple[str, Iterable[Address]]], own: Collection[Address]
    ) -> None:
        """Log once which addresses of names are own addresses."""
        present = {(name, each) for name, some in found for each in some if each in own}
        for name, address in sorted(present - self._own, key=str):
            log.info("%s has %s, an address of this host itself: left out", name, address)
        self._own = present

    async def _run(self) -> None:
        """Look up names when they are due, and apply changes."""
        while True:
            now = time.monotonic()
            for name in self._schedule.take_due(now):
                task = asyncio.create_task(self._look_up(name))
                self._lookups.add(task)
                task.add_done_callback(self._lookups.discard)
            if self._is_changed:
                self._is_changed = False
                await self._apply_changes()
            delay = self._schedule.delay(now)
            if self._apply_error:
                delay = min(RETRY_MAX_S, RETRY_MAX_S if delay is None else delay)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), delay)
            self._wake.clear()
            self._is_changed |= bool(self._apply_error)

    async def _apply_changes(self) -> None:
        try:
            await self._apply()
        # Forwarding goes on with the former addresses. A RuntimeError means that there is no room
        # for a thread.
        except (VtepError, OSError, RuntimeError) as error:
            if str(error) != self._apply_error:
                log.warning("cannot use the new addresses of names: %s", error)
            self._apply_error = str(error)
        else:
            self._apply_error = ""

    async def _look_up(self, name: str) -> None:
        state = self._schedule.states.get(name)
        versions = {each.version for each in state.addresses} if state is not None else set()
        try:
            async with self._slots:
                answer = await self._network.look_up(name, versions)
        except OSError as error:  # No descriptor for a socket, or no thread.
            answer = NameAnswer(error=error.strerror or str(error))
        self._take(name, answer)

    def _take(self, name: str, answer: NameAnswer) -> None:
        state = self._schedule.states.get(name)
        if state is None:
            return
        before, error, was_resolved = state.addresses, state.error, state.is_resolved
        self._is_changed |= self._schedule.on_answer(name, answer, time.monotonic())
        if state.error and not error:
            log.warning("%s", describe_failure(name, state))
        elif not state.error and (state.addresses != before or error or not was_resolved):
            was = f", was {_listed(before)}" if before and state.addresses != before else ""
            log.info("%s is %s%s", name, _listed(state.addresses), was)
        self._wake.set()


def describe_failure(name: str, state: NameState) -> str:
    """Return a line about a name that cannot be looked up."""
    goes_on = f"it keeps {_listed(state.addresses)}, and" if state.addresses else "it"
    return (
        f"--remote {name}: {state.error}; {goes_on} is looked up again and again; see what this "
        f"host finds: getent ahosts {name}"
    )


def _listed(addresses: tuple[Address, ...]) -> str:
    more = len(addresses) - _NAMED_MAX
    rest = f" and {more} more" if more > 0 else ""
    return ", ".join(map(str, addresses[:_NAMED_MAX])) + rest
