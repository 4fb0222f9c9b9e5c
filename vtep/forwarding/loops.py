"""Loop protection: find a second path between two hosts of a segment, and stop flooding over it.

If the bridges of two VTEPs are also connected by a cable, or by a second VNI, each flooded frame
circulates for ever. A VTEP cannot tell such frames from those of a busy network. So it asks: where
a segment floods much, a *probe* is written to the TAP, which the bridge floods as it does any
broadcast. Only through a loop can it come back from the underlay. Then frames to groups and to
unknown destinations are no longer exchanged with that remote, as by a bridge port that STP has
blocked. The other path serves instead.

A probe is an ARP request about 0.0.0.0, which no host answers. Storm control has a reserve for ARP
(see `vtep.wire.storm_class`): other broadcasts would hardly survive a storm. The source MAC is
random.

If two VNIs connect the same bridges, the probes of both come back by way of each other. One block
is enough: a second one would leave no path for broadcasts. So VNIs on one bridge take turns, a
second apart, the lowest VNI first, at both ends of the tunnel.
"""

from collections.abc import Callable, Iterator
from math import inf
from typing import Final

from attrs import evolve

from vtep.counters import Counters, Drop
from vtep.forwarding.fdb import Entry, Remote
from vtep.wire import arp, ethernet

FLOODED_PER_LOOK: Final = 500
"""Flooded frames between two looks, a second apart, from which on there may be a loop. A loop
exceeds it by far. A network that floods as much without one only receives a probe each second."""

BLOCK_MAX_S: Final = 300.0
"""Seconds of the longest block. A loop that is found again soon is blocked for twice as long."""

_HOSTS_MAX: Final = 1024
"""Remotes that are blocked at most: one more loop than that is not blocked."""

_SIGNS: Final = (Drop.INNER_SOURCE_OWN, Drop.INNER_SOURCE_HELD)
"""Drops of which one is a reason to look for a loop."""

Watcher = Callable[[str, str, float], None]


class LoopGuard:
    """The remotes of one segment with which a loop was found, and the search for more.

    Times are in seconds of any monotonic clock.
    """

    def __init__(self, watcher: Watcher) -> None:
        self.block = 0.0
        """Seconds for which flooding with a remote is stopped; 0 disables loop protection."""
        self.probe_mac = ethernet.MAC_ZERO
        """The source MAC of probes, 6 octets: random, so that no other frame has it."""
        self.is_suspect = False
        """True if there may be a loop, and no probe was sent since that was noticed."""
        self.probed = -inf
        """The time of the last probe."""
        self.blocked: dict[str, float] = {}
        """By the address of a remote, the time until which it is blocked.

        While there are any, compiled turns repeat no verdict about received frames: it depends on
        the destination MAC, which is not in the keys of rows.
        """
        self.watchers = [watcher]
        """Called with "blocked" or "unblocked", the address of the remote, and the seconds."""
        # By remote, the length of its last block, and the time until which that counts.
        self._last: dict[str, tuple[float, float]] = {}
        self._seen = 0
        self._signs = 0
        # What `without_blocked` has returned, and for which destinations.
        self._of: tuple[Remote, ...] | None = None
        self._left: Entry | None = None

    def look(self, counters: Counters) -> None:
        """Suspect a loop if what was counted since the last call may be the traffic of one."""
        drops = counters.drops
        seen = counters.flooded + sum(
            count for reason, count in drops.items() if reason.startswith("storm_")
        )
        signs = sum(drops[reason] for reason in _SIGNS)
        flooded, more = seen - self._seen, signs - self._signs
        self._seen, self._signs = seen, signs
        if not self.block:
            self.is_suspect = False
        elif flooded >= FLOODED_PER_LOOK or more > 0:
            self.is_suspect = True

    def probe(self, now: float) -> bytes:
        """Return the frame of a probe that is sent now, of 60 octets."""
        self.is_suspect, self.probed = False, now
        mac = self.probe_mac
        request = arp.pack(
            arp.Arp(arp.REQUEST, mac, arp.UNSPECIFIED, ethernet.MAC_ZERO, arp.UNSPECIFIED)
        )
        header = b"\xff" * ethernet.MAC_LEN + mac + arp.TYPE.to_bytes(2, "big")
        return (header + request).ljust(60, b"\0")

    def note_returned(self, host: str, now: float) -> bool:
        """Block the remote that a probe has come from. Returns: True if it was not blocked yet."""
        if not self.block or host in self.blocked or len(self.blocked) >= _HOSTS_MAX:
            return False
        seconds, until = self._last.pop(host, (0.0, 0.0))
        seconds = min(2 * seconds, max(BLOCK_MAX_S, self.block)) if now < until else self.block
        self.blocked[host] = now + seconds
        if len(self._last) >= _HOSTS_MAX:
            del self._last[next(iter(self._last))]
        # A loop that is still there floods at once, or with the next broadcast of a quiet network.
        self._last[host] = seconds, now + 2 * seconds + BLOCK_MAX_S
        self._report("blocked", host, seconds)
        return True

    def unblock(self, now: float) -> bool:
        """Unblock the remotes whose time is over. Returns: True if there were any."""
        if not self.blocked:
            return False
        over = [host for host, until in self.blocked.items() if until <= now]
        for host in over:
            del self.blocked[host]
            self._report("unblocked", host, 0.0)
        return bool(over)

    def export(self, now: float) -> Iterator[tuple[str, float, float, float]]:
        """Yield each remote with a block that has not ended, or that counts for the next one.

        It comes with the time left of the block, 0 if it has ended; the length of the block; and
        the time for which that length counts. Times are in seconds.
        """
        for host, (seconds, until) in self._last.items():
            left = max(0.0, self.blocked.get(host, now) - now)
            if left or until > now:
                yield host, left, seconds, until - now

    def restore(self, host: str, left: float, seconds: float, counts: float, now: float) -> None:
        """Restore the block of a remote, as `export` has yielded it elsewhere."""
        if not self.block or len(self._last) >= _HOSTS_MAX:
            return
        self._last[host] = seconds, now + counts
        if left > 0:
            self.blocked[host] = now + left
            self._report("blocked", host, left)

    def without_blocked(self, default: Entry | None) -> Entry | None:
        """Return a copy of the default entry without blocked remotes, or None if none is left.

        It is made once, since frames with the same route are recognised by its identity.
        """
        destinations = default.destinations if default is not None else ()
        if destinations is not self._of:
            left = tuple(to for to in destinations if to.host not in self.blocked)
            self._of = destinations
            self._left = evolve(default, destinations=left) if default and left else None
        return self._left

    def _report(self, what: str, host: str, seconds: float) -> None:
        self._of = None
        for watcher in tuple(self.watchers):
            watcher(what, host, seconds)
