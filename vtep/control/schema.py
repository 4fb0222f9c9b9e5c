"""The objects in the answers of the control socket: a stable interface.

`vni` and `dev` everywhere are those of the segment: its VNI, and its TAP as it is named now.
"""

from typing import Any, NotRequired, TypedDict


class Destination(TypedDict):
    """The remote VTEP, or group, that frames for a MAC are sent to."""

    dst: str
    port: int
    dst_vni: int
    """The VNI in datagrams to this destination."""
    via: str | None


class FdbEntry(TypedDict):
    """An FDB entry."""

    vni: int
    dev: str
    mac: str
    destinations: list[Destination]
    state: str
    """permanent, static or dynamic."""
    extern_learn: bool
    sticky: bool
    age: float | None
    """Seconds since a frame was received from the MAC; None if the entry does not age."""
    held: float | None
    """Seconds for which the MAC is still held, as it has moved too often; None if it may move."""
    tx_frames: int
    rx_frames: int


class RemoteEntry(Destination):
    """A destination of flooded frames: broadcast, unknown unicast and multicast."""

    vni: int
    dev: str


class LoopEntry(TypedDict):
    """A remote with which flooding is stopped, since a loop leads through it."""

    vni: int
    dev: str
    remote: str
    blocked: float
    """Seconds for which flooding is still stopped."""


class StormSource(TypedDict):
    """The frames of one limit of storm control: those of one class from one source."""

    traffic: str
    """broadcast, multicast or unknown-unicast."""
    direction: str
    """tx for frames from the TAP, and rx for frames from a remote."""
    remote: str | None
    """The remote; None for tx, and for the remotes of a VNI beyond the first 4096."""


class StormEntry(StormSource):
    """A limit of storm control, or a storm.

    For rx, there is a row without a remote for the limit that each remote has, and one for each
    remote that exceeds it.
    """

    vni: int
    dev: str
    rate: int | None
    """Frames a second; None for no limit."""
    burst: int | None
    """Frames; None for no limit."""
    state: str
    """dropping during a storm, or forwarding."""
    age: float | None
    """Seconds since the storm began; None if there is none."""
    dropped: int
    """Frames dropped since the storm began."""


class NeighbourEntry(TypedDict):
    """A neighbour, with whose MAC ARP and ND requests are answered."""

    vni: int
    dev: str
    ip: str
    mac: str
    vlan: list[int]
    """VLAN IDs of the tags, outermost first."""
    state: str
    """permanent, if a command has added it, or dynamic."""
    router: bool
    age: float | None
    """Seconds since it was last seen; None if it is permanent."""


class SegmentInfo(TypedDict):
    """A segment of the process."""

    vni: int
    dev: str
    mtu: int
    offload: list[str]
    fast_path: str
    """on, loading, compiling or off."""
    fast_path_reason: str | None
    """Why it is off, or when it is on; None if there is no more to say."""
    underlay_devices: list[str]
    underlay_missing: list[str]
    """Missing parts of the underlay on this host, such as a route; empty if it is ready."""
    fdb_entries: int
    remotes: list[Destination]
    """Destinations of flooded frames now: those of --remote, as changed by fdb commands."""
    options: dict[str, Any]
    """Options of the segment by name."""


class ProcessSegment(TypedDict):
    """A segment of a process, with the present and the configured name of its TAP."""

    vni: int
    dev: str
    tap: str


class ProcessInfo(TypedDict):
    """The identity of a running pyvtep."""

    pid: int
    """Process ID in its own PID namespace."""
    netns: str | None
    """Network namespace, as device and inode of /proc/PID/ns/net; None without a /proc."""
    segments: list[ProcessSegment]


class Counts(TypedDict):
    """Counters by name; `drops` are by reason."""

    counters: dict[str, int]
    drops: dict[str, int]


class CounterStats(Counts):
    """Counters since the start, which only grow."""

    since_reset: Counts
    """The same since the last `stats.reset`, or since the start."""
    last_sources: dict[str, str]
    """By drop reason, the underlay address of the sender of the last dropped datagram."""
    last_drops: dict[str, float]
    """By drop reason, seconds since its counter last increased."""


class SegmentStats(CounterStats):
    """The counters of one segment."""

    vni: int
    dev: str
    mtu: int
    fdb_entries: int


class Stats(TypedDict):
    """The counters of each segment, and of all together with datagrams for no segment."""

    total: CounterStats
    segments: list[SegmentStats]
    reset_age: float | None
    """Seconds since the last `stats.reset`; None if there was none."""


class MonitorEvent(TypedDict):
    """A change of the VTEP. `object` says what has changed, and which other keys there are.

    fdb: `mac`, `destinations`, `state`, `extern_learn`, `sticky`; remote: the same, of the all-zero
    MAC; vni: nothing more; mtu: `mtu`; config: `options`, those that changed.
    loop: `remote`, the address. storm: the keys of `StormSource`, and `dropped`.
    A MAC that is held is so until it is released, changed, deleted or expired.
    If a subscriber was too slow, `event` is "lost" and `count` is the number of missing events.
    """

    event: str
    """added, changed, moved, held, released, deleted or expired; of a loop, blocked or unblocked;
    of a storm, began or ended; or lost."""
    object: NotRequired[str]
    vni: NotRequired[int]
    dev: NotRequired[str]
    mac: NotRequired[str]
    destinations: NotRequired[list[Destination]]
    state: NotRequired[str]
    extern_learn: NotRequired[bool]
    sticky: NotRequired[bool]
    mtu: NotRequired[int]
    remote: NotRequired[str | None]
    traffic: NotRequired[str]
    direction: NotRequired[str]
    dropped: NotRequired[int]
    options: NotRequired[dict[str, Any]]
    count: NotRequired[int]
