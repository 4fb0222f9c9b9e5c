"""The TAP device of a port: opened or inherited, and followed while others rename and move it."""

import errno
import logging
import os
from collections.abc import Mapping

from vtep.config import Config
from vtep.daemon.network import HostNetwork
from vtep.errors import VtepError
from vtep.io.inherited import Inherited, tap_role
from vtep.io.interfaces import TapDevice
from vtep.io.tap import tap_exists

log = logging.getLogger("vtep")

_HERE = "is back in the network namespace of pyvtep"
_AWAY = (
    "is in another network namespace: it forwards, but pyvtep does not update its MTU and bridge"
)


class PortTap:
    """The TAP device of a port, and its name, index and namespace as the host has them now."""

    def __init__(self, vni: int, network: HostNetwork) -> None:
        self._vni = vni
        self._network = network
        self._device: TapDevice | None = None
        self._name = ""
        self._is_here = True
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
    def is_open(self) -> bool:
        """True if the TAP is open."""
        return self._device is not None

    @property
    def is_here(self) -> bool:
        """True if the TAP is in the network namespace of this process, as far as is known."""
        return self._device is not None and self._is_here

    @property
    def name(self) -> str | None:
        """The name of the device, which may have been renamed; None if it is not open."""
        return self._name if self._device is not None else None

    def open(self, config: Config, inherited: Inherited, queue_drops: Mapping[str, int]) -> None:
        """Open the device, or take the open one among `inherited`. Raises: VtepError.

        `queue_drops` has the transmit drops of each device so far.
        """
        fd = inherited.take(tap_role(config.tap))
        if fd is not None and not tap_exists(fd):
            os.close(fd)
            if inherited.in_use:
                raise VtepError(f"the TAP device {config.tap} was removed during the upgrade")
            fd = None  # A new one takes the place of the one that was removed.
        tap = self._network.open_tap(
            config.tap, tso="tso" in config.offload, uso="uso" in config.offload, inherited=fd
        )
        self.adopt(tap, config.tap, queue_drops)
        if fd is not None:
            self.is_inherited = True
            self._name = tap.name
            self._is_here = tap.index != 0
            self._drops_before = queue_drops.get(self._name, 0)

    def adopt(self, tap: TapDevice, name: str, queue_drops: Mapping[str, int]) -> None:
        """Use a device that is open already, with its transmit drops as in `open`."""
        self.index = tap.index
        self._name = name
        self._drops_before = queue_drops.get(name, 0)
        self._device = tap

    def release(self) -> TapDevice | None:
        """Return the device, which stays open, and use it no more; None if there is none."""
        tap, self._device = self._device, None
        return tap

    def state(self) -> dict[str, int]:
        """Return what another process needs to know to continue with the device."""
        return {"index": self.index, "queue_drops": self._drops_before}

    def set_state(self, index: int, queue_drops: int) -> None:
        """Continue with the device as another process has left it; see `state`."""
        self.index = index
        self._drops_before = queue_drops

    def new_queue_drops(self, drops: int) -> int:
        """Return how many of the transmit drops of the device are since it was opened."""
        return drops - self._drops_before

    def follow(self) -> bytes | None:
        """Follow the name and the namespace of the device, and log when the latter has changed.

        Returns: the MAC address of the device; None if it cannot be read now. Raises: OSError if
        the device was removed.
        """
        if self._device is None:
            return None
        try:
            self._name = self._device.name
            mac = self._device.mac
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise
            return None
        try:
            is_here = self._network.device_index(self._name) == self.index
        except OSError:  # No descriptor to ask with, which says nothing about the TAP.
            return mac
        if is_here != self._is_here:
            self._is_here = is_here
            log.warning("vni %d: %s %s", self._vni, self._name, _HERE if is_here else _AWAY)
        return mac
