"""What the control socket answers with: the keys of its objects, which stay what they are.

`vni` and `dev` everywhere are those of the segment: its VNI, and its TAP as it is named now.
"""

from typing import Any, NotRequired, TypedDict


class Destination(TypedDict):
    """Where frames for a MAC go."""

    dst: str
    port: int
    dst_vni: int
    """What the far end calls the segment."""
    via: str | None


class FdbEntry(TypedDict):
    """What is known of one MAC."""

    vni: int
    dev: str
    mac: str
    destinations: list[Destination]
    state: str
    """permanent, static or dynamic."""
    extern_learn: bool
    sticky: bool
    age: float | None
    """Seconds since it was heard, or put in; None where that does not matter."""
    tx_frames: int
    rx_frames: int


class RemoteRow(Destination):
    """One destination of broadcasts, and of what no entry knows."""

    vni: int
    dev: str


class Neighbour(TypedDict):
    """What ARP and ND requests are answered with."""

    vni: int
    dev: str
    ip: str
    mac: str
    vlan: list[int]
    """Ids of the VLAN tags, the outer one first."""
    state: str
    """permanent, if it was put in, or dynamic."""
    router: bool
    age: float | None
    """Seconds since it was seen; None where that does not matter."""


class Segment(TypedDict):
    """One VNI of the process."""

    vni: int
    dev: str
    mtu: int
    offload: list[str]
    underlay_devices: list[str]
    underlay_missing: list[str]
    """What the underlay lacks on this host now, such as a route; empty if it is ready."""
    fdb_entries: int
    remotes: list[Destination]
    """Where broadcasts go now: also what was put in besides the option, not what was deleted."""
    options: dict[str, Any]
    """Every option of the segment by its name."""


class ProcessSegment(TypedDict):
    """A VNI of a process, with its TAP as it is named now and as it was configured."""

    vni: int
    dev: str
    tap: str


class Process(TypedDict):
    """Who a running pyvtep is."""

    pid: int
    """In its own PID namespace."""
    netns: str | None
    """Its network namespace, as device and inode of /proc/PID/ns/net; None without a /proc."""
    segments: list[ProcessSegment]


class Counts(TypedDict):
    """Counters by name; `drops` are by reason."""

    counters: dict[str, int]
    drops: dict[str, int]


class Counted(Counts):
    """What has been counted since the start, which only grows."""

    since_reset: Counts
    """What of that was counted since the last `stats.reset`; all of it without one."""
    last_sources: dict[str, str]
    """By reason, the underlay address of what was dropped last, where it has one."""
    last_drops: dict[str, float]
    """By reason, seconds since its counter last increased."""


class SegmentStats(Counted):
    """What has been counted of one segment."""

    vni: int
    dev: str
    mtu: int
    fdb_entries: int


class Stats(TypedDict):
    """What has been counted: in all, with what came for no segment, and of each segment."""

    total: Counted
    segments: list[SegmentStats]
    reset_age: float | None
    """Seconds since the last `stats.reset`; None without one."""


class Event(TypedDict):
    """One change. `object` says of what, and which other keys there are.

    fdb: `mac`, `destinations`, `state`, `extern_learn`, `sticky`; remote: the same, of the all-zero
    MAC; vni: nothing more; mtu: `mtu`; config: `options`, those that changed.
    Where a subscriber was too slow, `event` is "lost" and `count` says how many are missing.
    """

    event: str
    """added, changed, moved, deleted or expired; or lost."""
    object: NotRequired[str]
    vni: NotRequired[int]
    dev: NotRequired[str]
    mac: NotRequired[str]
    destinations: NotRequired[list[Destination]]
    state: NotRequired[str]
    extern_learn: NotRequired[bool]
    sticky: NotRequired[bool]
    mtu: NotRequired[int]
    options: NotRequired[dict[str, Any]]
    count: NotRequired[int]
