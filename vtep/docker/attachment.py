"""Docker networks of this host: find their bridges, and keep the ports of a VTEP on them.

Networks are identified by name: one that was removed and created again is the same to its users,
although its bridge is another. While there is none, the port waits and keeps its FDB.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, ip_interface

from attrs import frozen

from vtep import descriptors
from vtep.config.network_bridge import NetworkBridge
from vtep.daemon.port import Port
from vtep.daemon.vtep import Vtep
from vtep.descriptors import ShortageError
from vtep.docker.advice import advise
from vtep.docker.client import EngineClient, EngineUnreachableError, NoSuchNetworkError
from vtep.docker.network import AttachedTunnel, DockerNetwork, parse_network
from vtep.errors import VtepError
from vtep.host import links, netlink
from vtep.host.address_probe import probe_addresses
from vtep.wire.address import Address

log = logging.getLogger("vtep")

_PROBES = 3
"""Number of probes in a round for own addresses on other hosts (RFC 5227: PROBE_NUM)."""
_PROBE_INTERVAL_S = 30.0
"""Pause between rounds: after two of them, a gateway that has gone is known to be."""

_RETRY_DELAY_S = 2.0
"""Delay before a failed change of the bridge is tried again."""


@frozen
class AttachableNetwork:
    """A Docker network and its bridge on this host."""

    network: DockerNetwork
    bridge: links.Bridge

    @property
    def gateways(self) -> tuple[Address, ...]:
        """The addresses of the bridge by which containers reach the outside."""
        # Docker gives each bridge fe80::1 as well, but containers don't route over it.
        return tuple(each for each in self.bridge.addresses if not each.is_link_local)


class NoBridgeError(VtepError):
    """A network whose bridge is not in the network namespace of this process."""


def wait_for(
    client: EngineClient, name: str, on_waiting: Callable[[str], None]
) -> AttachableNetwork:
    """Wait until the engine answers and the network and its bridge exist; blocks.

    Calls `on_waiting` with the reason whenever that is another one. Raises: VtepError as
    `find_network` does, if waiting cannot help.
    """
    last = ""
    while True:
        try:
            return find_network(client, name)
        except (EngineUnreachableError, NoSuchNetworkError, NoBridgeError) as error:
            if str(error) != last:
                last = str(error)
                on_waiting(last)
        time.sleep(_RETRY_DELAY_S)


def find_network(client: EngineClient, name: str) -> AttachableNetwork:
    """Find a network by its name or ID, and its bridge; blocks while the engine answers.

    Raises: VtepError if it cannot be joined, or is not on this host.
    """
    network = parse_network(client.inspect(name))
    with netlink.session() as connection:
        bridge = links.find_bridge(connection, network.bridge)
    if bridge is None:
        raise NoBridgeError(
            f"network {network.name}: its bridge {network.bridge} is not on this host; run pyvtep "
            "in the network namespace of the engine"
        )
    return AttachableNetwork(network, bridge)


class DockerNetworks:
    """Keeps each port with a `docker_network` on the bridge of that network.

    It owns a watch for each engine, and a follower for each such port. Without one, it has nothing
    to do.
    """

    def __init__(self, vtep: Vtep) -> None:
        self._vtep = vtep
        self._engines: dict[str | None, _Engine] = {}
        self._followers: dict[Port, tuple[_Follower, asyncio.Task[None]]] = {}

    async def run(self) -> None:
        """Follow all ports, those of now and those that are added later, until cancelled."""
        unwatch = self._vtep.watch(self._on_port)
        try:
            for port in tuple(self._vtep.ports.values()):
                self._on_port("added", port, {})
            await asyncio.get_running_loop().create_future()
        finally:
            unwatch()
            for port in tuple(self._followers):
                self._unfollow(port)

    def _on_port(self, event: str, port: Port, _values: Mapping[str, object]) -> None:
        config = port.config
        found = self._followers.get(port)
        wanted = None if event == "deleted" else config.docker_network
        if found is not None:
            follower, task = found
            if (follower.name, follower.host) == (wanted, config.docker_host) and not task.done():
                return
            self._unfollow(port)
        if wanted is not None:
            self._follow(port, wanted, config.docker_host)

    def _follow(self, port: Port, name: str, host: str | None) -> None:
        if (engine := self._engines.get(host)) is None:
            engine = self._engines[host] = _Engine(host)
        follower = _Follower(self._vtep, port, engine, name, host)
        task = asyncio.get_running_loop().create_task(follower.run())
        self._followers[port] = follower, task

    def _unfollow(self, port: Port) -> None:
        follower, task = self._followers.pop(port)
        follower.engine.changed.discard(follower.changed)
        task.cancel()
        port.network_problem = ""


class _Engine:
    """The watch of one engine, in a thread; `changed` are the events of its followers.

    It is never stopped: the SDK offers no way to cancel a request.
    """

    def __init__(self, host: str | None) -> None:
        self.changed: set[asyncio.Event] = set()
        self.is_reachable = True
        self._host = host
        self._connecting: asyncio.Task[EngineClient] | None = None

    async def client(self) -> EngineClient:
        """Return a client of the engine, which need not run. Raises: VtepError without the SDK."""
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> EngineClient:
        # In a thread: the SDK takes some 300 ms to import, for which frames would wait.
        client = await asyncio.to_thread(EngineClient, self._host)
        self._watch(client)
        return client

    def _watch(self, client: EngineClient) -> None:
        loop = asyncio.get_running_loop()

        def in_loop(callback: Callable[[], None]) -> None:
            with suppress(RuntimeError):  # The loop is closed, and the process about to end.
                loop.call_soon_threadsafe(callback)

        callbacks = (
            partial(in_loop, partial(self._on_change, client.url)),
            partial(in_loop, partial(self._on_unreachable, client.url)),
        )
        threading.Thread(target=client.watch, args=callbacks, name="docker", daemon=True).start()

    def _on_change(self, url: str) -> None:
        if not self.is_reachable:
            self.is_reachable = True
            log.info("the Docker engine at %s answers again", url)
        for event in self.changed:
            event.set()

    def _on_unreachable(self, url: str) -> None:
        if self.is_reachable and self.changed:
            self.is_reachable = False
            log.warning(
                "the Docker engine at %s does not answer: its networks stay attached as they are",
                url,
            )
            for event in self.changed:
                event.set()


class _Follower:
    """Keeps one port on the bridge of one network."""

    def __init__(
        self, vtep: Vtep, port: Port, engine: _Engine, name: str, host: str | None
    ) -> None:
        self.engine = engine
        self.name = name
        self.host = host
        self.changed = asyncio.Event()
        """Set when the network may have changed."""
        self.changed.set()
        engine.changed.add(self.changed)
        self._vtep = vtep
        self._port = port
        self._logged = ""
        """The last reason to wait that was logged."""
        self._duplicates: set[tuple[Address, str]] = set()
        """Duplicate addresses that were logged, each with the name of the container here."""

    async def run(self) -> None:
        """Keep the port on the bridge, and log problems, until cancelled."""
        try:
            client = await self.engine.client()
        except VtepError as error:  # The Docker SDK is missing, or $DOCKER_HOST makes no sense.
            self._wait(str(error))
            return
        current: AttachableNetwork | None = None
        advised: DockerNetwork | None = None
        while True:
            probing = None
            if current is not None:
                probing = asyncio.create_task(self._probe_for_duplicates(current))
            try:
                if current is not None and current.network != advised:
                    await asyncio.to_thread(_log_advice, current, self._port)
                    advised = current.network
                current = await self._next_network(client, current)
            finally:
                if probing is not None:
                    probing.cancel()

    async def _next_network(
        self, client: EngineClient, before: AttachableNetwork | None
    ) -> AttachableNetwork:
        """Wait until the network is another one, or has other containers, and move the port.

        Failures are logged and tried again.
        """
        while True:
            await self.changed.wait()
            self.changed.clear()
            try:
                found = await asyncio.to_thread(self._find, client)
                if found != before:  # Containers are no part of this comparison.
                    await self._vtep.attach(
                        self._port.config.vni,
                        NetworkBridge(self.name, self.host, found.network.bridge, found.gateways),
                    )
            except EngineUnreachableError as error:
                self._port.network_problem = str(error)  # Bridges outlive the engine.
                if self.engine.is_reachable:  # Else its return is noticed by the watch.
                    self._retry()
            except NoSuchNetworkError as error:
                if before is None:
                    self._wait(str(error))
                else:
                    recipe = before.network.recipe
                    self._wait(
                        f"network {self.name} is gone; waiting for one of that name: {recipe}"
                    )
            except VtepError as error:
                if isinstance(error, ShortageError):
                    descriptors.warn(str(error))
                else:
                    self._wait(str(error))
                self._retry()
            else:
                self._port.network_problem = self._logged = ""
                if (
                    before is None
                    or found != before
                    or found.network.containers != before.network.containers
                ):
                    return found

    def _find(self, client: EngineClient) -> AttachableNetwork:
        found = find_network(client, self.name)
        # The engine also finds networks by a prefix of their ID, which a name may be.
        if found.network.name != self.name:
            raise NoSuchNetworkError(f"there is no network {self.name}")
        return found

    def _retry(self) -> None:
        asyncio.get_running_loop().call_later(_RETRY_DELAY_S, self.changed.set)

    def _wait(self, reason: str) -> None:
        """Log once why the port is not on the bridge."""
        self._port.network_problem = reason
        if reason != self._logged:
            self._logged = reason
            log.warning("vni %d: %s", self._port.config.vni, reason)

    async def _probe_for_duplicates(self, current: AttachableNetwork) -> None:
        """Probe other hosts for the addresses of this one, periodically, until cancelled.

        Duplicates of containers are logged. Replies of gateways on other hosts are handled by the
        segment, which they pass; a gateway that sends none for two rounds is forgotten there.
        """
        port = self._port
        bridge = current.network.bridge
        gateways = [each for each in current.bridge.addresses if isinstance(each, IPv4Address)]
        here = {
            ip_interface(address).ip: container.name
            for container in current.network.containers
            for address in container.addresses
        }
        containers = list(here)
        while True:
            for _ in range(_PROBES):
                for address, mac in await probe_addresses(
                    port.tap, bridge, [*gateways, *containers]
                ):
                    if address in here:
                        self._log_duplicate(address, here[address], mac)
            containers = []  # This task is started again for new ones.
            if port.segment.gateways is not None:
                port.segment.gateways.expire()
            await asyncio.sleep(_PROBE_INTERVAL_S)

    def _log_duplicate(self, address: Address, name: str, mac: str) -> None:
        if (address, name) not in self._duplicates:
            self._duplicates.add((address, name))
            log.warning(
                "network %s: container %s has the address %s, and so has one on another host (%s);"
                " remove one of them, and give each host a range of its own (--ip-range)",
                *(self.name, name, address, mac),
            )


def _log_advice(current: AttachableNetwork, port: Port) -> None:
    """Log which bridge the port is on, and problems of the network and of the host."""
    network = current.network
    log.info("network %s: %s is on its bridge %s", network.name, port.tap, network.bridge)
    config, devices = port.config, port.underlay_devices
    tunnel = AttachedTunnel(port.mtu, chosen=port.mtu == config.mtu)
    remotes = [str(remote) for remote in config.remote_addresses]
    filtered = current.bridge.netfilter
    process = os.getpid()
    for line in advise(network, tunnel, filtered, remotes, config.dstport, devices, process):
        log.warning("%s", line)
