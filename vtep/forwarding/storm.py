"""Storm control: limits on frames that are flooded, in frames a second with a burst.

A loop or a faulty guest can flood a segment with frames that every host has to handle. Frames to
the broadcast address, to multicast groups, and to unknown unicast destinations each have a limit of
their own: for the frames from the TAP of a VNI, and for those from each remote of it.

A *meter* has the token buckets of one source of frames. Frames beyond a limit are dropped, before
anything is learned from them, unless the reserve of the meter has tokens for them (see
`vtep.wire.storm_class`).

A received frame to a unicast MAC has no limit. The bridge behind the TAP, and not this VTEP, knows
whether that MAC is known here.

While frames of a class from one source are dropped, that is a *storm*, which begins and ends once,
however often the limit is exceeded in between.
"""

from collections.abc import Callable, Iterator
from typing import Final

from attrs import define, frozen

from vtep.counters import Counters, Drop
from vtep.ratelimit import TokenBucket
from vtep.wire import Buffer
from vtep.wire.storm_class import MAC_BROADCAST, RESERVE, StormClass, has_reserve

RESERVE_RATE: Final = 1000
"""Frames a second, and the burst, of the reserve of a meter."""

UNLIMITED: Final = 1 << 62
"""Frames of a class without a limit that a compiled turn may pass."""

CALM_S: Final = 10.0
"""Seconds without a drop after which a storm has ended. A flood just above its limit is dropped in
some seconds and not in others, and is one storm all the same."""

_METERS_MAX = 4096
"""Remotes of a VNI with a meter of their own."""

_BURST_S = 0.1
"""Seconds of a rate that its burst is. What a burst lets pass delays the frames of all others:
10,000 broadcasts at once made them wait for 0.2 s without the fast path."""

_BURST_MIN = 100
"""Frames of a burst, unless the rate is lower: many guests may ask for addresses at one time."""


DROPS_TX: Final = (Drop.STORM_BROADCAST_TX, Drop.STORM_MULTICAST_TX, Drop.STORM_UNKNOWN_UNICAST_TX)
"""Drop reasons of frames from the TAP, by class."""

DROPS_RX: Final = (Drop.STORM_BROADCAST_RX, Drop.STORM_MULTICAST_RX)
"""Drop reasons of frames from the underlay, by class."""


@frozen
class Limit:
    """A limit of one class."""

    rate: int
    """Frames a second."""
    burst: int


def default_burst(rate: int) -> int:
    """Return the burst, in frames, for a rate in frames a second."""
    return min(rate, max(_BURST_MIN, int(rate * _BURST_S)))


@frozen
class StormLimits:
    """The limits of a VNI, by class. None is no limit."""

    broadcast: Limit | None = None
    multicast: Limit | None = None
    unknown_unicast: Limit | None = None

    def of(self, kind: StormClass) -> Limit | None:
        """Return the limit of a class."""
        return (self.broadcast, self.multicast, self.unknown_unicast)[kind]


NO_LIMITS: Final = StormLimits()


@frozen
class FloodSource:
    """A class of frames, and where they come from."""

    kind: StormClass
    from_tap: bool
    remote: str | None = None
    """The remote that sends them. None if they come from the TAP, or from one of the remotes that
    share a meter."""


LIMITED: Final = (
    *(FloodSource(kind, from_tap=True) for kind in StormClass),
    FloodSource(StormClass.BROADCAST, from_tap=False),
    FloodSource(StormClass.MULTICAST, from_tap=False),
)
"""The sources of frames that have a limit; each remote has one of its own."""


@define
class Storm:
    """Frames from one source that exceed their limit."""

    source: FloodSource
    began: float
    """Time at which the first drop was noticed, and `last_drop` that of the last one."""
    last_drop: float
    dropped: int = 0
    """Frames dropped since it began."""


StormWatcher = Callable[[str, Storm], None]


class StormMeter:
    """The token buckets of one source of frames: of the TAP of a VNI, or of one remote."""

    def __init__(self, limits: StormLimits) -> None:
        self._buckets = [
            TokenBucket(limit.rate, limit.burst) if limit is not None else None
            for limit in (limits.broadcast, limits.multicast, limits.unknown_unicast)
        ]
        self._reserve = TokenBucket(RESERVE_RATE, RESERVE_RATE)
        self.limits_unknown_unicast = limits.unknown_unicast is not None
        self.dropped = [0] * len(StormClass)
        """Frames dropped since they were last taken from here, by class."""
        self.is_used = True
        """True if tokens were taken since it was last set to False: the grants of compiled turns
        have to be renewed."""

    def excess(self, frame: Buffer, now: float, count: int = 1) -> StormClass | None:
        """Take tokens for a frame to a group, of at least 14 octets, at `now` (seconds).

        A superframe counts as its `count` segments.

        Returns: None if the frame is within the limits; otherwise the class whose limit it exceeds.
        """
        self.is_used = True
        kind = StormClass.BROADCAST if frame[:6] == MAC_BROADCAST else StormClass.MULTICAST
        bucket = self._buckets[kind]
        if bucket is None or bucket.take(now, count):
            return None
        if has_reserve(frame) and self._reserve.take(now, count):
            return None
        self.dropped[kind] += count
        return kind

    def take_unknown_unicast(self, now: float, count: int = 1) -> bool:
        """Take tokens for frames to an unknown unicast MAC. Returns: False if there are none."""
        self.is_used = True
        bucket = self._buckets[StormClass.UNKNOWN_UNICAST]
        if bucket is None or bucket.take(now, count):
            return True
        self.dropped[StormClass.UNKNOWN_UNICAST] += count
        return False

    def charge(self, kind: int, count: int, now: float) -> None:
        """Take tokens for frames of a class, or of the reserve, that have been forwarded."""
        self.is_used = True
        bucket = self._reserve if kind == RESERVE else self._buckets[kind]
        if bucket is not None:
            bucket.take(now, count)

    def grants(self, now: float) -> list[int]:
        """Return how many frames of each class, and from the reserve, are within the limits now."""
        self.is_used = False
        grants = []
        for bucket in (*self._buckets, self._reserve):
            if bucket is None:
                grants.append(UNLIMITED)
            else:
                grants.append(max(0, int(bucket.fill(now))))
                self.is_used = self.is_used or not bucket.is_full
        return grants

    def is_idle(self, now: float) -> bool:
        """Return True if the meter is as a new one would be."""
        buckets = [bucket for bucket in (*self._buckets, self._reserve) if bucket is not None]
        return all(bucket.fill(now) and bucket.is_full for bucket in buckets)


class StormControl:
    """The meters of one VNI: one for its TAP, and one for each remote that sends to groups.

    Drops are counted in `counters`.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self.watchers: list[StormWatcher] = []
        """Called with "began" or "ended", and the storm."""
        self._storms: dict[FloodSource, Storm] = {}
        self._drops_seen = 0
        self.set_limits(NO_LIMITS)

    def set_limits(self, limits: StormLimits) -> None:
        """Replace the limits. All buckets are full then."""
        self.limits = limits
        self.tap = StormMeter(limits) if limits != NO_LIMITS else None
        """The meter of frames from the TAP; None if there are no limits."""
        self.limits_remotes = limits.broadcast is not None or limits.multicast is not None
        """True if remotes have meters."""
        self._remotes: dict[str, StormMeter] = {}
        self._others = StormMeter(limits)
        self._forget_again = 0.0

    def limit_group(self, frame: Buffer, now: float, count: int = 1) -> bool:
        """Limit a frame from the TAP to a group, of at least 14 octets.

        A superframe counts as `count` frames.

        Returns: False if the frame was dropped and counted.
        """
        excess = self.tap.excess(frame, now, count) if self.tap is not None else None
        if excess is None:
            return True
        self._counters.drop(DROPS_TX[excess], count=count, detail=bytes(frame[6:12]))
        return False

    def limit_unknown_unicast(self, frame: Buffer, now: float, count: int = 1) -> bool:
        """Limit a frame from the TAP to a MAC that is not in the FDB. Returns: as `limit_group`."""
        if self.tap is None or self.tap.take_unknown_unicast(now, count):
            return True
        mac = bytes(frame[6:12])
        self._counters.drop(Drop.STORM_UNKNOWN_UNICAST_TX, count=count, detail=mac)
        return False

    def limit_remote(self, frame: Buffer, source: str, now: float, count: int) -> bool:
        """Limit a frame to a group that the remote `source` has sent. Returns: as `limit_group`."""
        excess = self.of_remote(source, now).excess(frame, now, count)
        if excess is None:
            return True
        self._counters.drop(DROPS_RX[excess], source, count, bytes(frame[6:12]))
        return False

    def of_remote(self, host: str, now: float) -> StormMeter:
        """Return the meter of a remote.

        Remotes beyond the first 4096 share one: where any source is accepted, forged addresses
        must neither fill the memory nor multiply the limit.
        """
        meter = self._remotes.get(host)
        if meter is None:
            if len(self._remotes) >= _METERS_MAX and not self._forget_idle(now):
                return self._others
            meter = self._remotes[host] = StormMeter(self.limits)
        return meter

    @property
    def storms(self) -> tuple[Storm, ...]:
        """The storms that have not ended, in the order of their beginnings."""
        return tuple(self._storms.values())

    def find_storms(self, now: float) -> None:
        """Notify the watchers of the storms that have begun and ended. Called once a second."""
        drops = self._counters.drops
        seen = sum(drops[reason] for reason in (*DROPS_TX, *DROPS_RX))
        if seen != self._drops_seen:  # Otherwise there is no need to look at all meters.
            self._drops_seen = seen
            for from_tap, remote, meter in self._sources():
                dropped, meter.dropped = meter.dropped, [0] * len(StormClass)
                for kind in StormClass:
                    if dropped[kind]:
                        source = FloodSource(kind, from_tap, remote)
                        self._note_dropped(source, dropped[kind], now)
        for key, storm in tuple(self._storms.items()):
            if now - storm.last_drop >= CALM_S:
                del self._storms[key]
                self._report("ended", storm)

    def _sources(self) -> Iterator[tuple[bool, str | None, StormMeter]]:
        """Yield each meter, with True if it is that of the TAP, and with its remote."""
        if self.tap is not None:
            yield True, None, self.tap
        for host, meter in self._remotes.items():
            yield False, host, meter
        yield False, None, self._others

    def _note_dropped(self, source: FloodSource, count: int, now: float) -> None:
        """Add what was dropped lately to a storm, or begin one."""
        storm = self._storms.get(source)
        if storm is None:
            storm = self._storms[source] = Storm(source, now, now, count)
            self._report("began", storm)
        else:
            storm.last_drop = now
            storm.dropped += count

    def _report(self, what: str, storm: Storm) -> None:
        for watcher in tuple(self.watchers):
            watcher(what, storm)

    def _forget_idle(self, now: float) -> bool:
        """Forget idle meters, at most once a second. Returns: True if there is room now."""
        if now < self._forget_again:
            return False  # A look at all meters takes some milliseconds.
        self._forget_again = now + 1
        self._remotes = {
            host: meter for host, meter in self._remotes.items() if not meter.is_idle(now)
        }
        return len(self._remotes) < _METERS_MAX
