"""How large an IP packet the tunnel carries now."""

from collections.abc import Hashable


class TunnelMtu:
    """`most` octets, or fewer while something is narrower than was asked for.

    That may be the path to some remote, or `tap`, the MTU of the TAP where its own host sends.
    There is one MTU for all remotes: TCP learns one MSS, and broadcasts go to each of them.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.tap: int | None = None
        self._paths: dict[Hashable, int] = {}

    @property
    def now(self) -> int:
        """The MTU in octets."""
        own = self.most if self.tap is None else min(self.most, self.tap)
        return min(own, *self._paths.values()) if self._paths else own

    def path(self, remote: Hashable, octets: int | None) -> None:
        """Note that the path to a remote leaves only so many octets, or (None) sets no limit."""
        if octets is None:
            self._paths.pop(remote, None)
        else:
            self._paths[remote] = octets
