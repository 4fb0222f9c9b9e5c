"""The methods of the IPAM driver, as the engine calls them (moby's daemon/libnetwork/docs/ipam.md).

The engine first requests a pool, then the gateway and excluded addresses of it; then it creates the
network, and with that the network driver names the bridge on which to probe. From then on it
requests addresses for containers, and names their MACs.
"""

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from vtep.docker.ipam.guard import GuardedPool, GuardThread, parse_address
from vtep.docker.ipam.pools import AddressPool
from vtep.docker.plugin.dispatch import Method
from vtep.docker.plugin.network import PluginEndpoint, PluginNetwork
from vtep.docker.plugin.store import JsonStore
from vtep.errors import VtepError
from vtep.wire import ethernet
from vtep.wire.address import Address

log = logging.getLogger("vtep")

ADDRESS_SPACE: Final = "pyvtep"
"""The address space of all pools, by which the network driver knows them from those of Docker."""

_ADDRESS_TYPE = "RequestAddressType"
_GATEWAY = "com.docker.network.gateway"
_MAC = "com.docker.network.endpoint.macaddress"
_DOCKER = "com.docker."
"""Begins the names of options that the engine adds."""


class IpamDriver:
    """The IPAM driver of one engine; it owns the pools, their claims and the guard thread."""

    def __init__(self, store: JsonStore) -> None:
        self._store = store
        self._guard = GuardThread()
        self._pools: dict[str, GuardedPool] = {}
        # Of the dictionary of pools and the file; the claims belong to the guard thread.
        self._lock = threading.RLock()
        # A new one at each start is good enough: the order need not be the same again. Cloned
        # machines would have one machine ID.
        self._seed = os.urandom(16)

    @property
    def methods(self) -> dict[str, Method]:
        """The methods by their names"""
        methods: dict[str, Method] = {
            "GetCapabilities": self._get_capabilities,
            "GetDefaultAddressSpaces": self._get_default_address_spaces,
            "RequestPool": self._request_pool,
            "ReleasePool": self._release_pool,
            "RequestAddress": self._request_address,
            "ReleaseAddress": self._release_address,
        }
        return {f"IpamDriver.{name}": method for name, method in methods.items()}

    def start(self) -> None:
        """Read the state and begin to defend its addresses. Raises: VtepError."""
        self._guard.start()
        for pool_id, state in self._store.load("pools").items():
            try:
                parsed = AddressPool.from_id(pool_id)
                bridge = state["bridge"]
                claims = {
                    parse_address(text): None if mac is None else ethernet.parse_mac(mac)
                    for text, mac in state["claims"].items()
                }
            except (VtepError, AttributeError, KeyError, TypeError, ValueError) as error:
                # Its network names it again, with the addresses of its containers.
                log.warning("%s: the pool %r is damaged: %r", self._store.path, pool_id, error)
            else:
                self._guard.call(self._add(parsed).restore, bridge, claims)

    def close(self) -> None:
        """Stop the guard thread. The state remains."""
        for pool in self._pools.values():
            self._guard.call(pool.close)
        self._guard.close()

    def bind(self, subnet: str, bridge: str, gateway: Address | None = None) -> None:
        """Probe for the addresses of a pool on a bridge, that of the network with this subnet.

        To be called again when the bridge was made anew. `gateway` is not assigned to containers.

        Raises: VtepError if the pool belongs to another network.
        """
        with self._lock:
            pool = self._find_subnet(subnet)
            if pool.bridge not in (None, bridge):
                raise VtepError(f"--subnet {subnet} is the subnet of the network on {pool.bridge}")
            is_new = pool.bridge is None
            self._guard.call(pool.bind, bridge)
            if gateway is not None:
                self._guard.call(pool.reserve, gateway, is_gateway=True)
            if is_new:
                self._save()

    def unbind(self, bridge: str) -> None:
        """Stop probing on a bridge, whose network is removed."""
        with self._lock:
            bound = self._on_bridge(bridge)
            for pool in bound:
                self._guard.call(pool.bind, None)
            if bound:
                self._save()

    def on_network(self, network: PluginNetwork, endpoints: Iterable[PluginEndpoint]) -> None:
        """Bind the pools of a network, and claim the addresses of its containers.

        They are claimed already, unless the state is lost (`NetworkListener`).
        """
        for pool in network.pools:
            if pool.space == ADDRESS_SPACE:
                gateway = None if pool.gateway is None else pool.gateway.ip
                self.bind(str(pool.subnet), network.bridge, gateway)
        with self._lock:
            # Not `any`, which would end with the first one.
            lost = sum(
                self._guard.call(bound.claim_again, address, mac)
                for bound in self._on_bridge(network.bridge)
                for address, mac in _addresses(endpoints)
            )
            if lost:
                self._save()

    def on_endpoints(
        self,
        network: PluginNetwork,
        endpoints: Iterable[PluginEndpoint],
        gone: Iterable[PluginEndpoint],
    ) -> None:
        """Release what no container has any more, but the engine did not (`NetworkListener`)."""
        used, ended = ({address for address, _ in _addresses(each)} for each in (endpoints, gone))
        with self._lock:
            bound = self._on_bridge(network.bridge)
            if sum(self._guard.call(pool.release_unused, used, ended) for pool in bound):
                self._save()

    def on_network_removed(self, network: PluginNetwork) -> None:
        """Unbind the pools of a network (`NetworkListener`)."""
        self.unbind(network.bridge)

    def _get_capabilities(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        # The MAC is what an address is defended with. The state survives, so that the engine need
        # not request it again after a restart.
        return {"RequiresMACAddress": True, "RequiresRequestReplay": False}

    def _get_default_address_spaces(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        return {
            "LocalDefaultAddressSpace": ADDRESS_SPACE,
            "GlobalDefaultAddressSpace": ADDRESS_SPACE,
        }

    def _request_pool(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        for name in request.get("Options") or {}:
            if not name.startswith(_DOCKER):
                raise VtepError(f"--ipam-opt {name}: the IPAM driver pyvtep has no options")
        version = 6 if request.get("V6") else 4
        pool = AddressPool.parse(
            request.get("Pool") or "", request.get("SubPool") or "", version=version
        )
        with self._lock:
            for pool_id, other in list(self._pools.items()):
                if not pool.overlaps(other.pool):
                    continue
                if other.bridge is not None:
                    raise VtepError(
                        f"--subnet {pool.subnet} overlaps with {other.pool.subnet}, the subnet of "
                        f"the network on {other.bridge}"
                    )
                # Of a network that was never created, such as one with a mistake in its options,
                # or whose engine was killed meanwhile.
                self._remove(pool_id)
            self._add(pool)
            self._save()
        return {"PoolID": pool.id, "Pool": str(pool.subnet), "Data": {}}

    def _release_pool(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        with self._lock:
            if request["PoolID"] in self._pools:
                self._remove(request["PoolID"])
                self._save()
        return {}

    def _request_address(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        pool = self._find(request["PoolID"])
        text, options = request.get("Address") or "", request.get("Options") or {}
        address = parse_address(text) if text else None
        if address is not None:
            pool.pool.check(address)
        mac = options.get(_MAC)
        if mac is not None:
            try:
                octets = ethernet.parse_mac(mac)
            except ValueError as error:
                raise VtepError(str(error)) from error
            # The engine requests the IPv6 address only after the IPv4 address.
            with self._lock:
                later = [
                    each
                    for each in self._on_bridge(pool.bridge)
                    if each.pool.subnet.version > pool.pool.subnet.version
                ]
            address = self._guard.run(pool.request(address, octets, later))
        else:
            # The gateway, which is the same on all hosts, or an address that the user excludes
            # (--aux-address): there is no bridge yet, and other devices may have them.
            is_gateway = options.get(_ADDRESS_TYPE) == _GATEWAY
            if address is None:
                if not is_gateway:
                    raise VtepError("the request names no MAC; Docker 1.13 or later is needed")
                address = pool.pool.gateway
            self._guard.call(pool.reserve, address, is_gateway=is_gateway)
        try:
            self._save()
        except VtepError:
            self._guard.call(pool.release, address)
            raise
        return {"Address": pool.pool.interface(address), "Data": {}}

    def _release_address(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        with self._lock:
            pool = self._pools.get(request["PoolID"])
        # Of a pool that is gone, its addresses are free.
        if pool is not None:
            self._guard.call(pool.release, parse_address(request["Address"]))
            self._save()
        return {}

    def _find(self, pool_id: str) -> GuardedPool:
        """Return the pool with an ID; if the state was lost, it is known from the ID again."""
        with self._lock:
            if (found := self._pools.get(pool_id)) is not None:
                return found
            pool = AddressPool.from_id(pool_id)
            known = next((each for each in self._pools.values() if each.pool.overlaps(pool)), None)
            found = self._add(pool)
            if known is not None:
                # The network driver has named the subnet before, without its range.
                self._guard.call(found.restore, known.bridge, known.claims.claimed)
                self._remove(known.pool.id)
            return found

    def _find_subnet(self, subnet: str) -> GuardedPool:
        for pool in self._pools.values():
            if str(pool.pool.subnet) == subnet:
                return pool
        # Without its state, its range is unknown until the engine names its ID.
        return self._add(AddressPool.from_id(subnet))

    def _on_bridge(self, bridge: str | None) -> list[GuardedPool]:
        return [
            pool for pool in self._pools.values() if bridge is not None and pool.bridge == bridge
        ]

    def _add(self, pool: AddressPool) -> GuardedPool:
        guarded = self._pools[pool.id] = GuardedPool(pool, self._seed)
        return guarded

    def _remove(self, pool_id: str) -> None:
        self._guard.call(self._pools.pop(pool_id).close)

    def _save(self) -> None:
        with self._lock:
            pools = list(self._pools.values())
            self._store.save({"pools": self._guard.call(_snapshot, pools)})


def _addresses(endpoints: Iterable[PluginEndpoint]) -> Iterator[tuple[Address, bytes]]:
    """Yield the addresses of endpoints, each with the MAC of its container."""
    for endpoint in endpoints:
        with suppress(ValueError):
            mac = ethernet.parse_mac(endpoint.mac)
            for text in endpoint.addresses:
                yield parse_address(text), mac


def _snapshot(pools: Iterable[GuardedPool]) -> dict[str, Any]:
    """Return the state of pools, for the file."""
    return {
        guarded.pool.id: {
            "bridge": guarded.bridge,
            "claims": {
                str(address): None if mac is None else ethernet.format_mac(mac)
                for address, mac in guarded.claims.claimed.items()
            },
        }
        for guarded in pools
    }
