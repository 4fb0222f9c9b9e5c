"""The ports of a VTEP by VNI, and the watchers of their changes."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TypeAlias

from attrs import evolve, fields

from vtep.config import Config
from vtep.daemon.port import Port
from vtep.daemon.tap_plan import combine_setups
from vtep.datapath.pool import Pool
from vtep.errors import VtepError
from vtep.forwarding.fdb import LEARNED, DestinationOrigin
from vtep.host.tap_setup import TapSetup
from vtep.wire import ethernet

Watcher: TypeAlias = Callable[[str, Port, Mapping[str, object]], None]
"""Called with `added`, `deleted` or `changed`, the port, and the new values of a change by name."""


class Ports:
    """The ports of one process, and the watchers that are notified of changes."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._by_vni: dict[int, Port] = {}
        self._watchers: list[Watcher] = []
        self.by_vni: Mapping[int, Port] = MappingProxyType(self._by_vni)
        """A read-only view."""

    def __iter__(self) -> Iterator[Port]:
        return iter(self._by_vni.values())

    def __len__(self) -> int:
        return len(self._by_vni)

    def __contains__(self, port: Port) -> bool:
        return self._by_vni.get(port.config.vni) is port

    def get(self, vni: int) -> Port:
        """Return the port of a VNI. Raises: VtepError if there is none."""
        port = self._by_vni.get(vni)
        if port is None:
            raise VtepError(f"vni {vni}: there is no such VNI here")
        return port

    def put(self, port: Port) -> None:
        """Add a port, or replace that of the same VNI. No watcher is notified."""
        self._by_vni[port.config.vni] = port

    def clear(self) -> None:
        """Remove all ports, of which none is open. No watcher is notified."""
        self._by_vni.clear()

    def discard(self, port: Port) -> None:
        """Remove a port, if it has not been replaced, and notify the watchers."""
        if port in self:
            del self._by_vni[port.config.vni]
            self.notify("deleted", port, {})

    def sharing(self, port: Port) -> list[Port]:
        """Return the ports that have the TAP of a port: all of its VLANs, or itself only."""
        if port.config.vlan is None:
            return [port]
        return [other for other in self if other.config.tap == port.config.tap] or [port]

    def configs(self) -> list[Config]:
        """Return the configurations of all ports."""
        return [port.config for port in self]

    def expect_remotes(self, *more: Config) -> None:
        """Tell the pool the number of remotes, including those of `more`: they share its ports."""
        configs = [*self.configs(), *more]
        self._pool.remotes = len(
            {(ip, config.dstport) for config in configs for ip in config.remote_addresses}
        )

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Notify a watcher of each complete change of a port.

        Returns: a function that ends this.
        """
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    def notify(self, event: str, port: Port, values: Mapping[str, object]) -> None:
        """Notify all watchers of a change."""
        for watcher in tuple(self._watchers):
            watcher(event, port, values)


def shared_setup(ports: Iterable[Port]) -> TapSetup:
    """Return the setup of a TAP that these ports share, or that one of them has."""
    return combine_setups([port.setup() for port in ports])


def changed_options(before: Config, after: Config) -> dict[str, object]:
    """Return the options that differ, with their new values."""
    names = (field.name for field in fields(Config))
    return {
        name: getattr(after, name)
        for name in names
        if getattr(after, name) != getattr(before, name)
    }


def take_over(port: Port, former: Port) -> None:
    """Copy FDB entries and permanent neighbours from another port of the same VNI, which has ended.

    The entries are added as a user would add them, so watchers are notified of each.
    """
    before = former.segment
    configured = before.fdb.keys_of(before.configured)
    for entry in tuple(before.fdb.entries()):
        for remote, given in entry.origins():
            origin: DestinationOrigin | None = given
            is_default = entry.mac == ethernet.MAC_ZERO
            if is_default and not configured.isdisjoint(before.fdb.keys_of((remote,))):
                origin = given.withdraw(extern_learn=False)  # The new configuration has its own.
            if origin is None:
                continue
            if remote.port == former.config.dstport:
                remote = evolve(remote, port=port.config.dstport)  # noqa: PLW2901
            known = port.segment.source_remote(remote.host)
            if entry.kind != LEARNED or known is not None:
                kind = entry.kind.with_origins((origin,))
                port.fdb.append(entry.mac, remote, entry.updated, kind)
    if port.segment.neighbours is not None and before.neighbours is not None:
        port.segment.neighbours.copy_permanent(before.neighbours)


@contextmanager
def naming_vni(config: Config, *, several: bool) -> Iterator[None]:
    """Prefix the message of a VtepError with the VNI, if there are several."""
    try:
        yield
    except VtepError as error:
        if not several:
            raise
        raise type(error)(f"vni {config.vni}: {error}") from error
