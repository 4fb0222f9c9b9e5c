"""Attachment of a VTEP to the bridge of a Docker network, across changes of that network.

Networks are identified by name: one that was removed and created again is the same to its users,
although its bridge is another. While there is none, the VTEP waits and keeps its FDB.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, ip_interface
from typing import Any

from attrs import evolve, frozen

from vtep import descriptors
from vtep.daemon.port import Port
from vtep.daemon.vtep import Vtep
from vtep.descriptors import ShortageError
from vtep.docker.client import EngineClient, EngineUnreachableError, NoSuchNetworkError
from vtep.docker.network import (
    AttachedTunnel,
    BridgeFilter,
    DockerNetwork,
    find_problems,
    parse_network,
)
from vtep.errors import VtepError
from vtep.host import links, netlink
from vtep.host.address_probe import probe_addresses
from vtep.host.firewall import CROSSING, INCOMING, PacketPattern
from vtep.host.netfilter import Rules
from vtep.wire.address import Address, without_scope

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
    def options(self) -> dict[str, Any]:
        """Options of `Config` for a VTEP on this bridge."""
        # Docker gives each bridge fe80::1 as well, but containers don't route over it.
        gateway = [each for each in self.bridge.addresses if not each.is_link_local]
        return {"bridge": self.network.bridge, "anycast_gateway": tuple(gateway)}


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


class Attachment:
    """The attachment of one VTEP to one network; it owns the watch of the engine."""

    def __init__(self, client: EngineClient, local: AttachableNetwork) -> None:
        self._client = client
        self._initial = local
        self._name = local.network.name
        self._missing = False
        self._reachable = True
        self._duplicates: set[tuple[Address, str]] = set()
        """Duplicate addresses that were logged, each with the name of the container here."""

    def _find(self) -> AttachableNetwork:
        local = find_network(self._client, self._name)
        # The engine also finds networks by a prefix of their ID, which a name may be.
        if local.network.name != self._name:
            raise NoSuchNetworkError(f"there is no network {self._name}")
        return local

    async def follow(self, vtep: Vtep) -> None:
        """Keep a running VTEP on the bridge of the network, and log problems, until cancelled.

        The VTEP has one VNI, configured with the options of the initial network.
        """
        local = self._initial
        changed = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_change() -> None:
            self._log_reachability(reachable=True)
            changed.set()

        def in_loop(callback: Callable[[], None]) -> None:
            with suppress(RuntimeError):  # The loop is closed, and the process about to end.
                loop.call_soon_threadsafe(callback)

        callbacks = (
            partial(in_loop, on_change),
            partial(in_loop, partial(self._log_reachability, reachable=False)),
        )
        # A daemon thread, since the SDK offers no way to cancel a request.
        threading.Thread(
            target=self._client.watch, args=callbacks, name="docker", daemon=True
        ).start()
        checked = None
        while True:
            probing = asyncio.create_task(self._probe_for_duplicates(local, vtep.port))
            try:
                if local.network != checked:
                    await asyncio.to_thread(_log_problems, local, vtep.port)
                    checked = local.network
                local = await self._next_network(local, changed, vtep)
            finally:
                probing.cancel()

    def _log_reachability(self, *, reachable: bool) -> None:
        """Log once that the engine does not answer, and once that it answers again."""
        if reachable is self._reachable:
            return
        self._reachable = reachable
        if reachable:
            log.info("the Docker engine at %s answers again", self._client.url)
        else:
            log.warning(
                "the Docker engine at %s does not answer: network %s stays attached as it is",
                *(self._client.url, self._name),
            )

    async def _next_network(
        self, before: AttachableNetwork, changed: asyncio.Event, vtep: Vtep
    ) -> AttachableNetwork:
        """Wait until the network has changed, and move the VTEP to its bridge.

        Failures are logged and tried again.
        """
        while True:
            await changed.wait()
            changed.clear()
            try:
                local = await asyncio.to_thread(self._find)
                if local != before:  # Containers are no part of this comparison.
                    await vtep.change(evolve(vtep.port.config, **local.options))
            except EngineUnreachableError:
                pass  # Bridges and containers outlive the engine.
            except NoSuchNetworkError:
                if not self._missing:
                    log.warning(
                        "network %s is gone; waiting for one of that name: %s",
                        *(self._name, before.network.recipe),
                    )
                self._missing = True
            except VtepError as error:
                if isinstance(error, ShortageError):
                    descriptors.warn(str(error))
                else:
                    log.warning("%s", error)
                asyncio.get_running_loop().call_later(_RETRY_DELAY_S, changed.set)
            else:
                self._missing = False
                if local != before or local.network.containers != before.network.containers:
                    return local

    async def _probe_for_duplicates(self, local: AttachableNetwork, port: Port) -> None:
        """Probe other hosts for the addresses of this one, periodically, until cancelled.

        Duplicates of containers are logged. Replies of gateways on other hosts are handled by the
        segment, which they pass; a gateway that sends none for two rounds is forgotten there.
        """
        bridge = local.network.bridge
        gateways = [each for each in local.bridge.addresses if isinstance(each, IPv4Address)]
        here = {
            ip_interface(address).ip: container.name
            for container in local.network.containers
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
                *(self._name, name, address, mac),
            )


def _log_problems(local: AttachableNetwork, port: Port) -> None:
    """Log which bridge the VTEP is on, and problems of the network and of the host."""
    network = local.network
    log.info("network %s: %s is on its bridge %s", network.name, port.tap, network.bridge)
    rules = Rules.read()
    crossing = PacketPattern(4, device=network.bridge, out=network.bridge)
    bridge_filter = BridgeFilter(local.bridge.netfilter, rules.verdict(crossing, *CROSSING))
    tunnel = AttachedTunnel(port.mtu, chosen=port.mtu == port.config.mtu)
    for line in find_problems(network, tunnel, bridge_filter):
        log.warning("%s", line)
    dstport, devices = port.config.dstport, port.underlay_devices
    for remote in port.config.remote_addresses:
        packet = PacketPattern(
            *(remote.version, str(without_scope(remote)), dstport),
            devices[0] if len(devices) == 1 else None,
        )
        drop = rules.verdict(packet, *INCOMING)
        if drop is not None and drop.certain:
            log.warning(
                "this host's firewall drops UDP port %d from %s by %s: %s",
                *(dstport, remote, drop.rule, drop.fix),
            )
            return  # Most likely it drops those of the other remotes as well.
