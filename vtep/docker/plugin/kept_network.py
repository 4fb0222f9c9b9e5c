"""A network as the plug-in keeps it: what it is to be, and what is known of its devices. No I/O."""

from collections.abc import Mapping
from typing import Any

from attrs import define, field

from vtep.docker.plugin import network as networks
from vtep.docker.plugin.network import PluginEndpoint, PluginNetwork
from vtep.host import bridge_rules

_MTU = 1450
"""MTU of containers while it is not known: that of a tunnel over Ethernet and IPv4."""


@define
class KeptNetwork:
    """A network, its endpoints by ID, and what is known of its devices."""

    network: PluginNetwork
    own_bridge: bool
    """True if the bridge was made for the network, and is removed with it."""
    endpoints: dict[str, PluginEndpoint] = field(factory=dict)
    found_addresses: tuple[str, ...] = ()
    """Addresses that the bridge had before, with prefix lengths. They outlive the network."""
    mtu: int = _MTU
    """MTU of containers, in octets."""
    bridge_index: int = 0
    """Index of the bridge that listeners know of."""
    confirmed: bool = True
    """False for a network from disk, until the engine has shown that it still has it."""
    problem: str = ""
    """The last failure, which is logged once."""

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions of its subnets, and IPv4, which Docker's own rules are of"""
        return tuple(sorted({4, *(pool.subnet.version for pool in self.network.pools)}))

    @property
    def rules(self) -> list[bridge_rules.BridgeRule]:
        """The rules of the firewall that its bridge needs"""
        rules = bridge_rules.accept_bridged(self.network.bridge)
        if self.own_bridge:  # A bridge of the administrator may be routed by intent.
            rules += bridge_rules.drop_routed(self.network.bridge)
        return rules

    def to_json(self) -> dict[str, Any]:
        """Return its state as a JSON object."""
        return networks.to_json(self.network) | {
            "own_bridge": self.own_bridge,
            "found_addresses": list(self.found_addresses),
            "mtu": self.mtu,
            "endpoints": {
                number: {"mac": endpoint.mac, "addresses": list(endpoint.addresses)}
                for number, endpoint in self.endpoints.items()
            },
        }

    @classmethod
    def from_json(cls, number: str, value: Mapping[str, Any]) -> "KeptNetwork":
        """Return the network with an ID that `to_json` has made an object of.

        Raises: ConfigError, and the exceptions of an object with another structure.
        """
        return cls(
            networks.from_json(number, value),
            own_bridge=bool(value["own_bridge"]),
            found_addresses=tuple(value["found_addresses"]),
            endpoints={
                each: PluginEndpoint(made["mac"], tuple(made["addresses"]))
                for each, made in value["endpoints"].items()
            },
            mtu=int(value["mtu"]),
            confirmed=False,
        )
