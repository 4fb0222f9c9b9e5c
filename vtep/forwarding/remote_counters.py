"""Counters of the frames that one segment exchanges with each of its remotes."""

from collections.abc import Collection, Sequence

from vtep.forwarding.fdb import Remote

_LISTS_MAX = 64
"""Lists of destinations whose frames wait to be added to each of their remotes."""


class RemoteCounters:
    """Frames and octets exchanged with one remote, which only grow.

    Octets are those of inner frames. Frames that are flooded count for each remote that they are
    sent to.
    """

    __slots__ = ("last_rx", "rx_bytes", "rx_frames", "tx_bytes", "tx_frames")

    def __init__(self) -> None:
        self.rx_frames = self.rx_bytes = self.tx_frames = self.tx_bytes = 0
        self.last_rx: float | None = None
        """Time at which a frame from there was delivered last, in seconds of a monotonic clock."""


class CountersByHost(dict[str, RemoteCounters]):
    """The counters of the remotes of a segment, by address. A missing one begins at zero.

    Their owner removes those of hosts that it no longer knows.
    """

    def __init__(self) -> None:
        super().__init__()
        # By the identity of a list of destinations: the list, and its frames and octets that the
        # counters do not have yet. To flood a frame to a thousand remotes would take twice as long
        # if each of them were counted at once.
        self._unsettled: dict[int, tuple[Sequence[Remote], list[int]]] = {}

    def __missing__(self, host: str) -> RemoteCounters:
        counters = self[host] = RemoteCounters()
        return counters

    def count_sent_to_all(self, remotes: Sequence[Remote], frames: int, octets: int) -> None:
        """Count frames that are sent to each of several remotes. `settle` makes it visible.

        The cost does not depend on their number. The list must not change later.
        """
        unsettled = self._unsettled.get(id(remotes))
        if unsettled is None:
            if len(self._unsettled) >= _LISTS_MAX:
                self.settle()
            # It is kept together with the list, so that no other one gets the same identity.
            unsettled = self._unsettled[id(remotes)] = remotes, [0, 0]
        counts = unsettled[1]
        counts[0] += frames
        counts[1] += octets

    def settle(self) -> None:
        """Add what was sent to lists of remotes to the counters of each remote."""
        for remotes, (frames, octets) in self._unsettled.values():
            for remote in remotes:
                counters = self[remote.host]
                counters.tx_frames += frames
                counters.tx_bytes += octets
        self._unsettled.clear()

    def keep(self, hosts: Collection[str]) -> None:
        """Remove the counters of all but these hosts."""
        self.settle()
        for host in [each for each in self if each not in hosts]:
            del self[host]
