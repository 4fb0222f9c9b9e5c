"""The networks of the driver on this host, kept as they are to be.

A network consists of a bridge, a VNI of a daemon on it, rules of the firewall, and a veth pair for
each endpoint. All of that is made when the engine asks for it, and made again when it is gone:
after a boot, after the daemon has ended, or when the plug-in starts anew.
"""

import logging
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from vtep.docker.client import EngineClient, EngineUnreachableError, NoSuchNetworkError
from vtep.docker.plugin import network as networks
from vtep.docker.plugin.absences import Absences
from vtep.docker.plugin.announce import announce
from vtep.docker.plugin.host_subnets import read_subnets
from vtep.docker.plugin.kept_network import KeptNetwork
from vtep.docker.plugin.network import PluginEndpoint, PluginNetwork
from vtep.docker.plugin.overlaps import check_subnets
from vtep.docker.plugin.segments import HostSegments
from vtep.docker.plugin.store import JsonStore
from vtep.errors import ConfigError, VtepError
from vtep.host import bridge_rules, bridge_setup, netlink
from vtep.host.devices import device_index
from vtep.wire.icmp import MTU_MIN_V6

log = logging.getLogger("vtep")

_RETRY_S = 2.0
"""Delay before something that failed is tried again."""

_CHECK_S = 30.0
"""Interval of checks of what sends no events when it changes, such as rules of the firewall, and
endpoints that were removed while this process could not be reached."""


class NetworkListener(Protocol):
    """A part of the plug-in that is notified of networks and their bridges."""

    def on_network(self, network: PluginNetwork, endpoints: Iterable[PluginEndpoint]) -> None:
        """Take note of a network whose bridge exists; also called for a bridge made anew."""

    def on_endpoints(
        self,
        network: PluginNetwork,
        endpoints: Iterable[PluginEndpoint],
        gone: Iterable[PluginEndpoint],
    ) -> None:
        """Take note of all endpoints of a network, and of those that have turned out to be gone."""

    def on_network_removed(self, network: PluginNetwork) -> None:
        """Take note that a network is removed."""


class NetworkKeeper:
    """The networks of one engine; it owns their devices, their VNIs and their state on disk.

    Methods are called by threads of the server; one that changes something holds the lock.
    """

    def __init__(
        self,
        store: JsonStore,
        engine: EngineClient,
        listeners: Iterable[NetworkListener] = (),
        *,
        daemon_socket: Path | None = None,
    ) -> None:
        self._store = store
        self._engine = engine
        self._listeners = tuple(listeners)
        self._segments = HostSegments(self.wake, daemon_socket)
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._engine_changed = threading.Event()
        self._restarted = False
        self._rules_problem = ""
        self._removed: set[str] = set()
        """IDs of networks that were removed, which the engine may list for a moment."""
        self._kept: dict[str, KeptNetwork] = {}
        for number, value in store.load("networks").items():
            try:
                self._kept[number] = KeptNetwork.from_json(number, value)
            except (ConfigError, AttributeError, KeyError, TypeError, ValueError) as error:
                log.warning(
                    "network %.12s: its state in %s is damaged (%r); it is looked up at the engine",
                    *(number, store.path, error),
                )
        self._check_due = 0.0
        self._absent_endpoints = Absences(
            endpoint for kept in self._kept.values() for endpoint in kept.endpoints
        )

    # --- the life of networks and endpoints ---------------------------------------------------

    def create(self, network: PluginNetwork) -> None:
        """Make a network. Raises: VtepError if that fails; nothing is left behind then."""
        with self._lock:
            # The engine repeats a request that it has got no answer to.
            if network.id not in self._kept:
                others = [kept.network for kept in self._kept.values()]
                networks.check_free(network, others)
                self._segments.check_free(network.vni)
                with netlink.session() as connection:
                    check_subnets(network, others, read_subnets(connection, network.bridge))
                own = device_index(network.bridge) is None
                # On disk first: after a crash, it is removed if the engine has not got it.
                self._kept[network.id] = KeptNetwork(network, own, found_addresses=_found(network))
                self._save()
            try:
                network.check_mtu(self._apply(self._kept[network.id], self._segments.owners()))
                self._ensure_rules([self._kept[network.id]])
                self._save()
            except BaseException:
                self.delete(network.id)
                raise
            self._removed.discard(network.id)

    def delete(self, number: str) -> None:
        """Remove a network with all that belongs to it; one that is unknown is removed already."""
        with self._lock:
            kept = self._kept.get(number)
            if kept is None:
                return
            network = kept.network
            with suppress(VtepError):  # It may not exist, and then it is not there to be removed.
                self._segments.remove(network)
            for version in kept.versions:
                try:
                    bridge_rules.remove_rules(kept.rules, version)
                except VtepError as error:
                    log.warning("network %.12s: %s", number, error)
            with netlink.session() as connection:
                for endpoint in kept.endpoints:
                    bridge_setup.remove_device(connection, networks.device_names(endpoint)[0])
                if kept.own_bridge:
                    bridge_setup.remove_device(connection, network.bridge)
                else:
                    added = [
                        each for each in network.addresses if str(each) not in kept.found_addresses
                    ]
                    bridge_setup.remove_addresses(connection, network.bridge, added)
            del self._kept[number]
            self._removed.add(number)
            self._save()
            for listener in self._listeners:
                listener.on_network_removed(network)
            log.info("network %.12s: removed, with vni %d", number, network.vni)

    def create_endpoint(self, number: str, endpoint: str, wanted: PluginEndpoint) -> PluginEndpoint:
        """Make the interface of a container. Returns: it, with its MAC address.

        Raises: VtepError if there is no such network, or the interface cannot be made.
        """
        self._need(number)
        mac = networks.check_mac(wanted.mac) if wanted.mac else networks.mac_of(endpoint)
        made = PluginEndpoint(mac, wanted.addresses)
        with self._lock:
            kept = self._need(number)
            self._add_devices(kept, endpoint, made)
            kept.endpoints[endpoint] = made
            self._save()
        return made

    def delete_endpoint(self, number: str, endpoint: str) -> None:
        """Remove the interface of a container; one that is unknown is removed already."""
        with self._lock:
            with netlink.session() as connection:
                bridge_setup.remove_device(connection, networks.device_names(endpoint)[0])
            kept = self._kept.get(number)
            if kept is not None and kept.endpoints.pop(endpoint, None) is not None:
                self._save()

    def join(self, number: str, endpoint: str) -> tuple[PluginNetwork, str]:
        """Return a network, and the device that a container gets.

        Raises: VtepError if there is no such network or endpoint.
        """
        self._need(number)
        device = networks.device_names(endpoint)[1]
        with self._lock:
            kept = self._need(number)
            known = kept.endpoints.get(endpoint)
            if known is None:
                raise VtepError(f"endpoint {endpoint:.12}: there is none on network {number:.12}")
            if device_index(device) is None:
                # Endpoints outlive their devices: over a boot, for example.
                self._add_devices(kept, endpoint, known)
            announce(kept.network.bridge, known.mac, known.addresses)
            return kept.network, device

    def _add_devices(self, kept: KeptNetwork, endpoint: str, made: PluginEndpoint) -> None:
        network = kept.network
        with netlink.session() as connection:
            bridge = _make_bridge(connection, network)
            on_bridge, inside = networks.device_names(endpoint)
            bridge_setup.add_veth(
                connection, on_bridge, inside, bridge=bridge, mac=made.mac, mtu=kept.mtu
            )

    def _need(self, number: str) -> KeptNetwork:
        """Return a network; the engine is asked for one that is unknown.

        Raises: VtepError if there is none.
        """
        with self._lock:
            kept = self._kept.get(number)
        if kept is not None:
            return kept
        # Without the lock: the engine may take its time, or wait for other methods of ours.
        inspected = self._engine.inspect(number)
        if not networks.is_ours(inspected):
            raise VtepError(f"network {number:.12}: is not of the driver pyvtep")
        return self._adopt(inspected)

    def _adopt(self, inspected: Mapping[str, Any]) -> KeptNetwork:
        """Make a network that the engine has, but that is unknown here. Raises: VtepError."""
        network = networks.parse_inspected(inspected)
        with self._lock:
            if network.id not in self._kept:
                log.info("network %.12s: found at the engine", network.id)
                # Endpoints of running containers, whose devices may be there.
                endpoints = networks.parse_endpoints(inspected)
                own = networks.BRIDGE_OPTION not in network.options
                own = own or device_index(network.bridge) is None
                # Which addresses the network has brought is unknown: all of them stay.
                self._kept[network.id] = KeptNetwork(network, own, endpoints, _found(network))
                self._save()
            kept = self._kept[network.id]
            self._apply(kept, self._segments.owners())
            self._ensure_rules([kept])
        return kept

    # --- keeping ------------------------------------------------------------------------------

    def wake(self) -> None:
        """Request a pass of `keep`; never blocks."""
        self._wake.set()

    def on_engine_change(self) -> None:
        """Take note that the networks of the engine may have changed; never blocks."""
        self._engine_changed.set()
        self._wake.set()

    def keep(self) -> None:
        """Put right what is not as it is to be, for ever: call it in a thread of its own."""
        while True:
            try:
                done = self._put_right()
            except Exception:
                # One failure must not end this thread, which all networks need.
                log.exception("keeping the networks failed")
                done = False
            self._wake.wait(_CHECK_S if done else _RETRY_S)
            self._wake.clear()

    def _put_right(self) -> bool:
        """Put right what is not as it is to be, once. Returns: False to be called again soon."""
        compared = True
        if self._engine_changed.is_set():
            self._engine_changed.clear()
            compared = self._compare_with_engine()
            if not compared:
                self._engine_changed.set()
        done = self._apply_all() and compared
        # Afterwards: an engine that does not answer makes nothing else wait.
        if monotonic() >= self._check_due and self._check_endpoints():
            self._check_due = monotonic() + _CHECK_S
        return done

    def _compare_with_engine(self) -> bool:
        """Make networks that only the engine knows, and remove those that it has not got any more.

        Only networks that were on disk when this process started can be such leftovers. Returns:
        False if that is to be tried again.
        """
        try:
            listed = self._engine.list_networks()
        except VtepError as error:
            log.debug("cannot list networks: %s", error)
            # One that is unreachable is connected to by `EngineClient.watch`, which calls then.
            return isinstance(error, EngineUnreachableError)
        done = True
        found = {str(each["Id"]) for each in listed if networks.is_ours(each)}
        with self._lock:
            leftovers = [
                number
                for number, kept in self._kept.items()
                if not kept.confirmed and number not in found
            ]
            for kept in self._kept.values():
                kept.confirmed = True
            unknown = found - self._kept.keys() - self._removed
            self._removed &= found
        for number in leftovers:
            log.info("network %.12s: the engine has it no more", number)
            self.delete(number)
        for number in unknown:
            try:
                self._adopt(self._engine.inspect(number))  # A list has no endpoints.
            except VtepError as error:
                log.warning("network %.12s: %s", number, error)
                done = False
        if not self._restarted:
            self._restarted = self._start_refused()
        return done

    def _check_endpoints(self) -> bool:
        """Remove endpoints and addresses that the engine has forgotten.

        The engine removes a container also if this process does not answer, and tells it never
        again. Returns: False if that is to be tried again.
        """
        with self._lock:
            numbers = list(self._kept)
        listed: dict[str, dict[str, PluginEndpoint]] = {}
        for number in numbers:
            try:
                listed[number] = networks.parse_endpoints(self._engine.inspect(number))
            except NoSuchNetworkError:
                continue  # The engine creates or removes it at this moment.
            except VtepError as error:
                log.debug("network %.12s: cannot compare its endpoints: %s", number, error)
                return False
        with self._lock:
            found = [
                (self._kept[number], listed[number]) for number in listed if number in self._kept
            ]
            absent = [each for kept, there in found for each in kept.endpoints if each not in there]
            overdue = self._absent_endpoints.overdue(absent, monotonic())
            for kept, there in found:
                gone = [kept.endpoints.pop(each) for each in overdue & kept.endpoints.keys()]
                for listener in self._listeners:
                    listener.on_endpoints(
                        kept.network, [*there.values(), *kept.endpoints.values()], gone
                    )
            self._remove_endpoints(overdue)
        return True

    def _remove_endpoints(self, numbers: set[str]) -> None:
        """Remove the devices of endpoints that are not kept any more."""
        for number in numbers:
            log.info("endpoint %.12s: the engine has it no more", number)
            with netlink.session() as connection:
                bridge_setup.remove_device(connection, networks.device_names(number)[0])
        if numbers:
            self._save()

    def _start_refused(self) -> bool:
        """Start containers whose restart policy failed without this plug-in.

        At its start, the engine waits 15 s for a plug-in, and starts such containers never again.
        Returns: False if that is to be tried again.
        """
        try:
            for number in list(self._kept):
                for container in self._engine.stopped_containers(number):
                    if networks.was_refused(container):
                        name = str(container.get("Name", "")).lstrip("/")
                        log.info("starting container %s, which was refused without us", name)
                        self._engine.start_container(container["Id"])
        except VtepError as error:
            log.warning("cannot start a container: %s", error)
            return False
        return True

    def _apply_all(self) -> bool:
        """Make all networks as they are to be. Returns: True if none failed."""
        done = True
        with self._lock:
            if not self._kept:
                return True
            owners = self._segments.owners()
            for kept in self._kept.values():
                try:
                    self._apply(kept, owners)
                    kept.problem = ""
                except VtepError as error:
                    if str(error) != kept.problem:
                        log.warning("network %.12s: %s", kept.network.id, error)
                    kept.problem = str(error)
                    done = False
            self._ensure_rules(self._kept.values())
        return done

    def _ensure_rules(self, kept: Iterable[KeptNetwork]) -> None:
        """Add missing rules of the firewall. A failure is logged once, and costs no network."""
        for version in (4, 6):
            rules = [rule for each in kept if version in each.versions for rule in each.rules]
            try:
                bridge_rules.ensure_rules(rules, version)
            except VtepError as error:
                if str(error) != self._rules_problem:
                    log.warning("the firewall may drop frames between containers: %s", error)
                self._rules_problem = str(error)

    def _apply(self, kept: KeptNetwork, owners: Mapping[int, Any]) -> int:
        """Make a network as it is to be. Returns: the MTU of its tunnel. Raises: VtepError."""
        network = kept.network
        if not kept.own_bridge and device_index(network.bridge) is None:
            raise VtepError(
                f"there is no bridge {network.bridge}; create it: ip link add {network.bridge} "
                "type bridge"
            )
        with netlink.session() as connection:
            # The bridge first: the TAP then joins it as soon as it exists.
            bridge = _make_bridge(connection, network)
        if bridge != kept.bridge_index:
            for listener in self._listeners:
                listener.on_network(network, kept.endpoints.values())
            kept.bridge_index = bridge
        tunnel_mtu = self._segments.ensure(network, owners.get(network.vni))
        mtu = network.container_mtu(tunnel_mtu)
        if mtu < MTU_MIN_V6 and 6 in kept.versions:
            raise ConfigError(
                f"-o mtu: the tunnel carries {mtu}, but IPv6 needs an MTU of at least {MTU_MIN_V6}"
            )
        if mtu != kept.mtu:
            kept.mtu = mtu
            self._save()
        with netlink.session() as connection:
            if kept.own_bridge:
                # Also for this host's own packets to containers, which are as large as the bridge.
                bridge_setup.set_mtu(connection, bridge, mtu)
            for endpoint in kept.endpoints:
                bridge_setup.set_master(connection, networks.device_names(endpoint)[0], bridge)
        return tunnel_mtu

    def _save(self) -> None:
        self._store.save(
            {"networks": {number: kept.to_json() for number, kept in self._kept.items()}}
        )


def _make_bridge(connection: netlink.IPRoute, network: PluginNetwork) -> int:
    """Make the bridge of a network with its addresses, if it is not there. Returns: its index."""
    mac = networks.mac_of(network.id)
    return bridge_setup.ensure_bridge(connection, network.bridge, mac, network.addresses)


def _found(network: PluginNetwork) -> tuple[str, ...]:
    """Return the addresses that the bridge of a network has already."""
    with netlink.session() as connection:
        return tuple(map(str, bridge_setup.bridge_addresses(connection, network.bridge)))
