"""The TAP device of a port: opened or inherited, and followed while others rename and move it."""

import errno
import logging
from collections.abc import Callable, Mapping

from vtep.config import Config
from vtep.counters import Counters, Drop
from vtep.daemon.network import HostNetwork, TapHost, TapNamespace
from vtep.daemon.trunks import Trunks
from vtep.errors import VtepError
from vtep.host import privileges
from vtep.host.privileges import Capability
from vtep.io.inherited import Inherited
from vtep.io.interfaces import TapDevice
from vtep.io.vlan_trunk import VlanTap, VlanTrunk

log = logging.getLogger("vtep")

_HERE = "is back in the network namespace of pyvtep"
_THERE = "is back in the network namespace of --netns"
_AWAY = (
    "is in another network namespace: it forwards, but pyvtep does not update its MTU and bridge"
)


class PortTap:
    """The TAP device of a port, and its name, index and namespace as the host has them now."""

    def __init__(self, vni: int, network: HostNetwork, trunks: Trunks) -> None:
        self._vni = vni
        self._network = network
        self._trunks = trunks
        self.namespace: TapNamespace | None = None
        """The network namespace of the TAP; None if it is to be in that of this process."""
        self._device: TapDevice | None = None
        self._name = ""
        self._is_home = True
        self._is_owners = False
        self._drops_before = 0
        self.index = 0
        """The index of the device; it is still known after the device was closed."""
        self.is_inherited = False
        """True if the TAP was open before the port was: its setup may be one that is in use."""

    @property
    def device(self) -> TapDevice:
        """The open TAP device. Raises: VtepError if it is not open."""
        if self._device is None:
            raise VtepError(f"vni {self._vni} is not open")
        return self._device

    @property
    def is_unreachable(self) -> bool:
        """True if its setup is left to the owner of the TAP, who has passed its descriptor.

        It is in another network namespace that cannot be entered, or in this one without the
        privilege to change it.
        """
        return self.namespace is None and (not self._is_home or self._is_owners)

    @property
    def is_open(self) -> bool:
        """True if the TAP is open."""
        return self._device is not None

    @property
    def host(self) -> TapHost:
        """The network namespace of the TAP, as an interface."""
        return self.namespace or self._network

    @property
    def is_here(self) -> bool:
        """True if the TAP is in the network namespace of this process, as far as is known."""
        return self.is_home and self.namespace is None

    @property
    def is_home(self) -> bool:
        """True if the TAP is in the network namespace that it is to be in, as far as is known."""
        return self._device is not None and self._is_home

    @property
    def name(self) -> str | None:
        """The name of the device, which may have been renamed; None if it is not open."""
        return self._name if self._device is not None else None

    def open(self, config: Config, inherited: Inherited, queue_drops: Mapping[str, int]) -> None:
        """Open the device, or take the open one among `inherited`. Raises: VtepError.

        `queue_drops` has the transmit drops of each device of this host so far.
        """
        self.namespace = self._network.tap_namespace(config, inherited)
        if self.namespace is not None:
            queue_drops = dict(self.namespace.tap_queue_drops())
        tap, self.is_inherited = self._trunks.open(config, self.host, inherited)
        self.adopt(tap, config.tap, queue_drops, self.namespace)
        if self.is_inherited:
            self._name = tap.name
            self._is_home = tap.index != 0
            self._is_owners = config.tap_fd is not None and not privileges.has(Capability.NET_ADMIN)
            self._drops_before = queue_drops.get(self._name, 0)

    def adopt(
        self,
        tap: TapDevice,
        name: str,
        queue_drops: Mapping[str, int],
        namespace: TapNamespace | None,
    ) -> None:
        """Use a device that is open already, with its transmit drops as in `open`."""
        self.namespace = namespace
        self.index = tap.index
        self._name = name
        self._drops_before = queue_drops.get(name, 0)
        if isinstance(tap, VlanTap):  # Those of a trunk count from its first VLAN on.
            if tap.trunk.drops_before is None:
                tap.trunk.drops_before = self._drops_before
            self._drops_before = tap.trunk.drops_before
        self._device = tap

    def watch(self, on_changed: Callable[[], None]) -> None:
        """Call a function now and for each change in the namespace of the device, if not here."""
        if self.namespace is not None:
            self.namespace.watch(on_changed)

    def unwatch(self) -> None:
        """End that, until the next `watch`."""
        if self.namespace is not None:
            self.namespace.unwatch()

    def release_namespace(self) -> TapNamespace | None:
        """Return the namespace of the device, and use it no more."""
        namespace, self.namespace = self.namespace, None
        if namespace is not None:
            namespace.unwatch()
        return namespace

    def release(self) -> TapDevice | None:
        """Return the device, which stays open, and use it no more; None if there is none."""
        if self.namespace is not None:
            self.namespace.close()
        tap, self._device = self._device, None
        return tap

    def state(self) -> dict[str, int]:
        """Return what another process needs to know to continue with the device."""
        return {"index": self.index, "queue_drops": self._drops_before}

    def set_state(self, index: int, queue_drops: int) -> None:
        """Continue with the device as another process has left it; see `state`."""
        self.index = index
        self._drops_before = queue_drops

    @property
    def trunk(self) -> VlanTrunk | None:
        """The trunk that the device is a VLAN of; None if it is none, or not open."""
        return self._device.trunk if isinstance(self._device, VlanTap) else None

    def count_queue_drops(self, drops: int, counters: Counters) -> None:
        """Count the transmit drops of the device that are later than its opening.

        The kernel does not say in which VLANs of a trunk they were, so those are the trunk's.
        """
        counts = (counters if self.trunk is None else self.trunk.counters).drops
        since = drops - self._drops_before
        counts[Drop.TAP_QUEUE_FULL] = max(counts[Drop.TAP_QUEUE_FULL], since)

    def follow(self) -> bytes | None:
        """Follow the name and the namespace of the device, and log when the latter has changed.

        Returns: the MAC address of the device; None if it cannot be read now.
        Raises: OSError if the device was removed; VtepError if its namespace has ended.
        """
        if self._device is None:
            return None
        if self.namespace is not None and (end := self.namespace.end) is not None:
            raise VtepError(end)
        try:
            self._name = self._device.name
            mac = self._device.mac
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise
            return None
        try:
            is_home = self.host.device_index(self._name) == self.index
        except OSError:  # No descriptor to ask with, which says nothing about the TAP.
            return mac
        if is_home != self._is_home:
            self._is_home = is_home
            home = _HERE if self.namespace is None else _THERE
            log.warning("vni %d: %s %s", self._vni, self._name, home if is_home else _AWAY)
        return mac
