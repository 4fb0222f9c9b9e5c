"""A VTEP on the bridge of a network: put there, and kept there whatever becomes of the network.

Networks are known by name: one that was removed and created again is the same to people, though it
has another bridge. While there is none, the VTEP waits, and forgets nothing.
"""

import asyncio
import logging
import threading
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
from vtep.docker.client import Client, EngineGoneError, NoSuchNetworkError
from vtep.docker.network import Host, Network, Tunnel, findings, read
from vtep.errors import VtepError
from vtep.host import links, netlink
from vtep.host.address_probe import probe_addresses
from vtep.host.firewall import CROSSING, INCOMING, PacketPattern
from vtep.host.netfilter import Rules
from vtep.wire.address import Address, without_scope

log = logging.getLogger("vtep")

_PROBES = 3
"""Probes for addresses of ours on other hosts, in a row (RFC 5227: PROBE_NUM)."""
_PROBE_PAUSE = 30.0
"""Seconds from one row to the next: so soon it shows that a gateway is there no more."""

_RETRY = 2.0
"""Seconds after which what was in vain is tried again."""


@frozen
class Place:
    """A network, and what there is of it on this host."""

    network: Network
    bridge: links.Bridge

    @property
    def options(self) -> dict[str, Any]:
        """What the `Config` of a VTEP on it has to say."""
        # Engines give all bridges the link-local fe80::1 as well, but route nobody over it.
        gateway = [one for one in self.bridge.addresses if not one.is_link_local]
        return {"bridge": self.network.bridge, "anycast_gateway": tuple(gateway)}


def find(client: Client, name: str) -> Place:
    """Find a network, by its name or ID, and its bridge, which takes a moment.

    Raises VtepError where it can't be joined, or isn't on this host.
    """
    network = read(client.inspect(name))
    with netlink.session() as connection:
        bridge = links.find_bridge(connection, network.bridge)
    if bridge is None:
        raise VtepError(
            f"network {network.name}: its bridge {network.bridge} is not on this host: run "
            "pyvtep where the engine runs, in the same network namespace"
        )
    return Place(network, bridge)


class Attachment:
    """A network that was found, and that a VTEP is to `follow`."""

    def __init__(self, client: Client, place: Place) -> None:
        self._client = client
        self._place = place
        self._name = place.network.name
        self._gone = False
        self._answers = True
        self._twice: set[tuple[Address, str]] = set()
        """Addresses that two containers have, with the name of the one here: told already."""

    def _find(self) -> Place:
        place = find(self._client, self._name)
        if place.network.name != self._name:  # The ID of another one happens to begin so.
            raise NoSuchNetworkError(f"there is no network {self._name}")
        return place

    async def follow(self, vtep: Vtep) -> None:
        """Keep a running VTEP that is on the bridge there, for ever, and log what is to be known.

        It has one VNI, configured with the options of the place.
        """
        place = self._place
        changed = asyncio.Event()
        loop = asyncio.get_running_loop()

        def answers() -> None:
            self._hear(answers=True)
            changed.set()

        def tell(what: Callable[[], None]) -> None:
            with suppress(RuntimeError):  # The loop has ended, and soon the process will.
                loop.call_soon_threadsafe(what)

        watch = (partial(tell, answers), partial(tell, partial(self._hear, answers=False)))
        threading.Thread(target=self._client.watch, args=watch, name="docker", daemon=True).start()
        told = None
        while True:
            asking = asyncio.create_task(self._ask_others(place, vtep.port))
            try:
                if place.network != told:
                    await asyncio.to_thread(_say_what_will_bite, place, vtep.port)
                    told = place.network
                place = await self._another(place, changed, vtep)
            finally:
                asking.cancel()

    def _hear(self, *, answers: bool) -> None:
        """Say once that the engine does not answer, and once that it does again."""
        if answers is self._answers:
            return
        self._answers = answers
        if answers:
            log.info("the Docker engine at %s answers again", self._client.url)
        else:
            log.warning(
                "the Docker engine at %s does not answer: network %s stays attached as it is",
                *(self._client.url, self._name),
            )

    async def _another(self, before: Place, changed: asyncio.Event, vtep: Vtep) -> Place:
        """Wait until the network is another one, and join that; trouble is logged, and may pass."""
        while True:
            await changed.wait()
            changed.clear()
            try:
                place = await asyncio.to_thread(self._find)
                if place != before:
                    await vtep.change(evolve(vtep.port.config, **place.options))
            except EngineGoneError:
                pass  # Its networks go on without it.
            except NoSuchNetworkError:
                if not self._gone:
                    log.warning(
                        "network %s is gone: waiting for one of that name: %s",
                        *(self._name, before.network.recipe),
                    )
                self._gone = True
            except VtepError as error:
                if isinstance(error, ShortageError):
                    descriptors.warn(str(error))
                else:
                    log.warning("%s", error)
                asyncio.get_running_loop().call_later(_RETRY, changed.set)
            else:
                self._gone = False
                if place != before or place.network.containers != before.network.containers:
                    return place

    async def _ask_others(self, place: Place, port: Port) -> None:
        """Ask the other hosts, for ever, whether they have addresses that are ours.

        Whether their gateways do is told, and acted upon, where their answers pass by; whether
        their containers do, the person is told.
        """
        bridge = place.network.bridge
        gateways = [one for one in place.bridge.addresses if isinstance(one, IPv4Address)]
        here = {
            ip_interface(address).ip: container.name
            for container in place.network.containers
            for address in container.addresses
        }
        containers = list(here)
        while True:
            for _ in range(_PROBES):
                for address, mac in await probe_addresses(
                    port.tap, bridge, [*gateways, *containers]
                ):
                    if address in here:
                        self._say_twice(address, here[address], mac)
            containers = []  # Those that are new are asked for when they are.
            if port.segment.gateways is not None:
                port.segment.gateways.expire()
            await asyncio.sleep(_PROBE_PAUSE)

    def _say_twice(self, address: Address, name: str, mac: str) -> None:
        if (address, name) not in self._twice:
            self._twice.add((address, name))
            log.warning(
                "network %s: container %s has the address %s, and so has one on another host (%s):"
                " remove one of them, and give each host a range of its own (--ip-range)",
                *(self._name, name, address, mac),
            )


def _say_what_will_bite(place: Place, port: Port) -> None:
    """Log where the VTEP is, and what is not as it should be there."""
    network = place.network
    log.info("network %s: %s is on its bridge %s", network.name, port.tap, network.bridge)
    rules = Rules.read()
    crosses = PacketPattern(4, device=network.bridge, out=network.bridge)
    host = Host(place.bridge.netfilter, rules.verdict(crosses, *CROSSING))
    tunnel = Tunnel(port.mtu, chosen=port.mtu == port.config.mtu)
    for line in findings(network, tunnel, host):
        log.warning("%s", line)
    dstport, devices = port.config.dstport, port.underlay_devices
    for remote in port.config.remote:
        packet = PacketPattern(
            *(remote.version, str(without_scope(remote)), dstport),
            devices[0] if len(devices) == 1 else None,
        )
        shut = rules.verdict(packet, *INCOMING)
        if shut is not None and shut.certain:
            log.warning(
                "this host's firewall keeps UDP port %d closed to %s, dropped by %s: %s",
                *(dstport, remote, shut.rule, shut.fix),
            )
            return  # It is most likely the same with the others.
