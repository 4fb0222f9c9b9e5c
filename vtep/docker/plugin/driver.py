"""The methods of the network driver, as the engine calls them."""

from collections.abc import Mapping
from typing import Any

from vtep.docker.plugin.dispatch import Method
from vtep.docker.plugin.keeper import NetworkKeeper
from vtep.docker.plugin.network import PluginEndpoint, parse_create

_CONTAINER_PREFIX = "eth"
"""Beginning of the names of interfaces in containers, as of those of Docker's own drivers."""


class NetworkDriver:
    """The network driver of one engine: requests and responses for a `NetworkKeeper`.

    Containers reach the outside, and are reached at their published ports, by a second interface on
    the bridge docker_gwbridge, which the engine adds where a driver names no gateway. Their default
    route is over that one, as with Docker's overlay driver.
    """

    def __init__(self, keeper: NetworkKeeper) -> None:
        self._keeper = keeper

    @property
    def methods(self) -> dict[str, Method]:
        """The methods by their names."""
        methods: dict[str, Method] = {
            "GetCapabilities": self._get_capabilities,
            "CreateNetwork": self._create_network,
            "DeleteNetwork": self._delete_network,
            "CreateEndpoint": self._create_endpoint,
            "DeleteEndpoint": self._delete_endpoint,
            "EndpointOperInfo": self._endpoint_info,
            "Join": self._join,
            "Leave": _do_nothing,
            "DiscoverNew": _do_nothing,
            "DiscoverDelete": _do_nothing,
            "ProgramExternalConnectivity": _do_nothing,
            "RevokeExternalConnectivity": _do_nothing,
        }
        return {f"NetworkDriver.{name}": method for name, method in methods.items()}

    def _get_capabilities(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        # Local: each engine has its own networks, which need no swarm. Their containers reach
        # those of other hosts all the same, which is what the second scope says.
        return {"Scope": "local", "ConnectivityScope": "global"}

    def _create_network(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        self._keeper.create(parse_create(request))
        return {}

    def _delete_network(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        self._keeper.delete(request["NetworkID"])
        return {}

    def _create_endpoint(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        given = request.get("Interface") or {}
        addresses = (given.get("Address"), given.get("AddressIPv6"))
        wanted = PluginEndpoint(given.get("MacAddress") or "", tuple(filter(None, addresses)))
        made = self._keeper.create_endpoint(request["NetworkID"], request["EndpointID"], wanted)
        # The engine refuses a response that repeats what it has given.
        return {"Interface": {} if wanted.mac else {"MacAddress": made.mac}}

    def _delete_endpoint(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        self._keeper.delete_endpoint(request["NetworkID"], request["EndpointID"])
        return {}

    def _endpoint_info(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        # Empty: the engine knows all of it, and takes a MAC address here for one of its own types.
        return {"Value": {}}

    def _join(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        network, device = self._keeper.join(request["NetworkID"], request["EndpointID"])
        return {
            "InterfaceName": {"SrcName": device, "DstPrefix": _CONTAINER_PREFIX},
            "DisableGatewayService": network.internal,
        }


def _do_nothing(_request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an empty response.

    Leave: the engine has taken the device out of the container, and deletes its endpoint next.
    Discover: all nodes of a swarm are told of; remotes are options of the network. External
    connectivity is that of docker_gwbridge.
    """
    return {}
