"""The events of a port, as callbacks of its owner."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import frozen

from vtep.errors import VtepError

if TYPE_CHECKING:
    from vtep.daemon.port import Port


@frozen
class PortEvents:
    """The callbacks by which a port notifies its owner."""

    on_tap_lost: Callable[["Port", OSError | VtepError], None]
    """The TAP was removed from outside, or its network namespace has ended."""
    on_mtu_changed: Callable[["Port"], None]
    """The MTU of the tunnel has changed, with that of the underlay or of the path to a remote."""
    on_family_needed: Callable[["Port", int], None]
    """An FDB entry has a remote of an IP version for which the port has no listener."""
    on_remotes_changed: Callable[["Port"], None]
    """EVPN has brought a remote, whose route is not known yet."""
    on_namespace_changed: Callable[["Port"], None]
    """A link or an address has changed in the network namespace of a TAP that is elsewhere."""
