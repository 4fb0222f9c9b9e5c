"""Names of remotes: they are looked up in the background, and changes are applied."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

from vtep.config import Config
from vtep.config.host_names import HostName, why_unusable
from vtep.daemon.network import HostNetwork, HostSession
from vtep.errors import VtepError
from vtep.host.name_schedule import RETRY_MAX_S, NameAnswer, NameSchedule, NameState
from vtep.wire.address import Address

log = logging.getLogger("vtep")

_LOOKUPS_MAX = 8
"""Names that are looked up at a time, each in a thread."""

_NAMED_MAX = 8
"""Addresses that a log line names."""

_Underlay = tuple[tuple[Address, ...], str | None]
"""The values of `--local` and `--dev`."""


class NameResolver:
    """Looks up the names among the remotes of a VTEP, again whenever that is due.

    `apply` is called when addresses have changed: it carries out a transaction with what `resolve`
    returns then.
    """

    def __init__(self, network: HostNetwork, apply: Callable[[], Awaitable[None]]) -> None:
        self._network = network
        self._apply = apply
        self._schedule = NameSchedule()
        self._left_out: set[tuple[str, Address, str]] = set()
        """Addresses of names that can be no remotes, with the reasons, as logged."""
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
            self._left_out = {each for each in self._left_out if each[0] in names}
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
        Others that can never be remotes are left out, too: an answer of a name server must not veto
        changes of the configuration.
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

        def find_unusable(session: HostSession) -> dict[_Underlay, dict[Address, str]]:
            routes, unusable = session.routes(), {}
            candidates = {each for some in found.values() for each in some}
            for underlay in {(config.local, config.dev) for config in configs}:
                reasons = {each: routes.why_no_remote(each, *underlay) for each in candidates}
                unusable[underlay] = {each: why for each, why in reasons.items() if why}
            return unusable

        by_host = await self._network.run(find_unusable)
        resolved, left_out = [], set()
        for config in configs:
            unusable = by_host[config.local, config.dev]
            for name in config.remote_names:
                for address in found.get(name, ()):
                    reason = unusable.get(address) or why_unusable(config, address)
                    if reason is not None:
                        left_out.add((name, address, reason))
            resolved.append(
                config.with_addresses(
                    {name: set(some) - unusable.keys() for name, some in found.items()}
                )
            )
        for name, address, reason in sorted(left_out - self._left_out, key=str):
            log.info("%s has %s, %s: left out", name, address, reason)
        self._left_out = left_out
        return resolved

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
