"""A session with the kernel's network: functions of `vtep.host` over one rtnetlink connection."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from vtep.daemon.network import HostSession, Routes, Undo
from vtep.errors import VtepError
from vtep.host import netlink, tap_setup
from vtep.host.netlink import IPRoute, NetlinkError
from vtep.host.routes import HostRoutes
from vtep.host.tap_setup import TapAttachment, TapSetup
from vtep.io.path import superframe_max
from vtep.tunnel_gso.device import TunnelGsoDevice

_T = TypeVar("_T")


class KernelSession:
    """A session of `KernelNetwork`: an rtnetlink connection, for one thread."""

    def __init__(self, connection: IPRoute) -> None:
        self._connection = connection

    def routes(self) -> Routes:
        """Take a snapshot of the host's addresses and routes."""
        return HostRoutes(self._connection)

    def bring_up(self, tap: str, setup: TapSetup, undo: list[Undo]) -> None:
        """Configure a new TAP and set it up. Raises: VtepError."""
        tap_setup.bring_up(self._connection, tap, setup, undo)

    def change(self, tap: str, before: TapSetup, after: TapSetup, undo: list[Undo]) -> None:
        """Change a TAP from one setup to another. Raises: VtepError."""
        tap_setup.change(self._connection, tap, before, after, undo)

    def revert(self, undo: Undo) -> None:
        """Revert one change of a TAP. Raises: OSError."""
        try:
            undo(self._connection)
        except NetlinkError as error:
            raise OSError(error.code, error.args[1]) from error

    def adapt(
        self, tap: str, index: int, attachment: TapAttachment, setup: TapSetup
    ) -> TapAttachment:
        """Adapt the MTU and the offloads of a TAP to where it is attached now."""
        return tap_setup.adapt(self._connection, tap, index, attachment, setup, superframe_max)

    def remove(self, devices: Iterable[str]) -> None:
        """Remove devices by one request. Raises: VtepError."""
        tap_setup.remove_devices(self._connection, devices)

    def open_tunnel_gso_device(self) -> TunnelGsoDevice:
        """Open the device for tunnel GSO. Raises: OSError or VtepError."""
        return TunnelGsoDevice(self._connection)


def call_with_session(function: Callable[[HostSession], _T], sock: int | None = None) -> _T:
    """Call a function with a new session, by a netlink socket of another namespace if one is given.

    Raises: what the function raises; VtepError if the kernel refuses a change.
    """
    with netlink.session(sock) as connection:
        try:
            return function(KernelSession(connection))
        except NetlinkError as error:  # E.g. the device was removed in between.
            raise VtepError(f"the kernel refused a change: {error.args[1]}") from error
