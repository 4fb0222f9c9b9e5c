"""The TAPs that several VNIs share, by VLAN."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from vtep.config import Config
from vtep.counters import Counters
from vtep.daemon.network import TapHost
from vtep.errors import VtepError
from vtep.io.inherited import Inherited, tap_role
from vtep.io.interfaces import TapDevice
from vtep.io.tap import tap_exists
from vtep.io.vlan_trunk import VlanTrunk


class Trunks:
    """Opens TAPs: each by itself or, with `--vlan`, once for all of its VLANs."""

    def __init__(self) -> None:
        self._by_name: dict[str, VlanTrunk] = {}

    def __iter__(self) -> Iterator[tuple[str, VlanTrunk]]:
        """Iterate over the trunks that are open, each with the configured name of its TAP."""
        return iter([(name, trunk) for name, trunk in self._by_name.items() if trunk.vlans])

    def counters(self) -> Iterator[tuple[str, Counters]]:
        """Iterate over the counters of all trunks, each with the configured name of its TAP.

        Those of a trunk that has ended are kept until another one has its name: totals must not
        fall, and the line at the end of the process is logged when no TAP is open any more.
        """
        return iter([(name, trunk.counters) for name, trunk in self._by_name.items()])

    def open(self, config: Config, host: TapHost, inherited: Inherited) -> tuple[TapDevice, bool]:
        """Open the TAP of a segment in the namespace of `host`, or its VLAN of the TAP.

        Returns: the device, and whether its descriptor was among `inherited`. Raises: VtepError.
        """
        if config.vlan is None:
            return _open_tap(config, host, inherited)
        trunk = self._by_name.get(config.tap)
        # One without VLANs is closed: the TAP is closed with the last of them.
        if trunk is None or not trunk.vlans:
            tap, is_inherited = _open_tap(config, host, inherited)
            trunk = self._by_name[config.tap] = VlanTrunk(tap, is_inherited=is_inherited)
            _disable_ipv6(tap)
        return trunk.open(config.vlan), trunk.is_inherited


def _open_tap(config: Config, host: TapHost, inherited: Inherited) -> tuple[TapDevice, bool]:
    fd = inherited.take(tap_role(config.tap))
    if fd is not None and not tap_exists(fd):
        os.close(fd)
        if inherited.in_use:
            raise VtepError(f"the TAP device {config.tap} was removed during the upgrade")
        if config.netns is not None or config.tap_fd is not None:
            raise VtepError(f"the TAP device {config.tap} was removed during the start")
        fd = None  # A new one takes the place of the one that was removed.
    offload = config.offload
    tap = host.open_tap(config.tap, tso="tso" in offload, uso="uso" in offload, inherited=fd)
    return tap, fd is not None


def _disable_ipv6(tap: TapDevice) -> None:
    """Disable IPv6 on the TAP itself, not on VLAN devices above it.

    The kernel would send router solicitations and MLD reports of the TAP's link-local address,
    which have no tag, so that each would be dropped.
    """
    # A container, or a unit with ProtectKernelTunables=, may not change it.
    with suppress(OSError):
        Path(f"/proc/sys/net/ipv6/conf/{tap.name}/disable_ipv6").write_text("1")
