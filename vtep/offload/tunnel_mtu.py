"""The MTU of a tunnel: the largest inner IP packet that it carries now."""

from collections.abc import Hashable


class TunnelMtu:
    """The smallest of several limits, in octets.

    They are `most`, which is the configured MTU, `tap`, which is the MTU of the TAP device if its
    host sends through it, and the MTU of the path to each remote.

    There is one MTU for all remotes, because TCP learns one MSS and broadcasts go to all of them.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.tap: int | None = None
        self._paths: dict[Hashable, int] = {}

    @property
    def now(self) -> int:
        """The present MTU in octets."""
        own = self.most if self.tap is None else min(self.most, self.tap)
        return min(own, *self._paths.values()) if self._paths else own

    def set_path(self, remote: Hashable, octets: int | None) -> None:
        """Set the MTU of the path to a remote, or None for no limit."""
        if octets is None:
            self._paths.pop(remote, None)
        else:
            self._paths[remote] = octets
