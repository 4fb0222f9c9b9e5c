"""The underlay of a port, as the last look at the routes of this host has found it."""

from attrs import evolve

from vtep.config import Config
from vtep.host.routes import Underlay
from vtep.wire.address import Address


class PortUnderlay:
    """The devices over which the remotes of a port are reached, and their MTU."""

    def __init__(self) -> None:
        self.devices: tuple[str, ...] = ()
        """The names of the devices."""
        self.mtu: int | None = None
        """The smallest MTU of the devices in octets, which is kept while there is no device; None
        if there has been none."""
        self._dev: str | None = None
        self._device_of: dict[str, str] = {}
        self._configured: frozenset[str] = frozenset()
        self._last: Underlay | None = None

    def with_last_mtu(self, underlay: Underlay) -> Underlay:
        """Return an underlay, with the last known MTU if it has no device."""
        if underlay.devices or self.mtu is None:
            return underlay
        return evolve(underlay, mtu=self.mtu)

    def take_over(self, config: Config, underlay: Underlay) -> None:
        """Take over what was found for the configuration of the port."""
        self.devices = underlay.devices
        self.mtu = underlay.mtu if underlay.devices else self.mtu
        self._dev = config.dev
        self._device_of = {str(ip): dev for ip, dev in underlay.remote_devices.items()}
        self._configured = frozenset(map(str, config.remote_addresses))
        self._last = underlay

    def is_own(self, address: Address) -> bool:
        """Return True if this host has an address, as far as is known."""
        return self._last is not None and self._last.is_own(address)

    def device_to(self, host: str) -> str | None:
        """Return the device towards a remote; None if there is no route, or if it is not known.

        Only the routes of configured remotes, and of those of EVPN, are looked up. The device to
        another one is known if there is no choice.
        """
        if self._dev is not None or host in self._configured or host in self._device_of:
            return self._dev or self._device_of.get(host)
        return self.devices[0] if len(self.devices) == 1 else None
