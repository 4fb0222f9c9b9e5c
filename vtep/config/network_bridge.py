"""The bridge of a Docker network, which stands for the options `bridge` and `anycast_gateway`."""

from attrs import evolve, frozen

from vtep.config.options import Config
from vtep.wire.address import Address


@frozen
class NetworkBridge:
    """The bridge of a Docker network on this host, and the gateway addresses that it has.

    `network` and `host` are the options by which the network was found.
    """

    network: str
    host: str | None
    bridge: str
    gateways: tuple[Address, ...]

    def apply_to(self, config: Config) -> Config:
        """Return a configuration with this bridge; as it is if it names another network."""
        if (config.docker_network, config.docker_host) != (self.network, self.host):
            return config
        return evolve(
            config,
            docker_network=None,
            docker_host=None,
            bridge=self.bridge,
            anycast_gateway=self.gateways,
        )
