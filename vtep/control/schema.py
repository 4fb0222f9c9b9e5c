"""The objects in the answers of the control socket: a stable interface.

`vni` and `dev` everywhere are those of the segment: its VNI, and its TAP as it is named now.
"""

from typing import Any, Final, Literal, NotRequired, Required, TypedDict

from vtep.control.evpn_schema import EvpnStatus

CAPTURE_HANDED_OVER: Final = "another process has taken over"
"""The end of a capture that goes on if it is asked for again, after an upgrade."""


class Destination(TypedDict):
    """The remote VTEP, or group, that frames for a MAC are sent to."""

    dst: str
    port: int
    dst_vni: int
    """The VNI in datagrams to this destination."""
    via: str | None
    extern_learn: bool
    """True if a control plane has given it."""
    sequence: int | None
    """The mobility sequence number that the control plane has given (RFC 7432, 7.7), or None."""


class FdbEntry(TypedDict):
    """An FDB entry."""

    vni: int
    dev: str
    mac: str
    destinations: list[Destination]
    state: str
    """permanent, static or dynamic."""
    extern_learn: bool
    """True if only a control plane has given the destinations."""
    sticky: bool
    age: float | None
    """Seconds since a frame was received from the MAC; None if the entry does not age."""
    held: float | None
    """Seconds for which the MAC is still held, as it has moved too often; None if it may move."""
    tx_frames: int
    rx_frames: int


class FdbChange(TypedDict, total=False):
    """A change of the FDB in a batch: a verb, with the parameters of the method `fdb.<verb>`."""

    verb: Required[Literal["add", "append", "replace", "del"]]
    mac: Required[str]
    dst: str | None
    """Only `del` can do without it."""
    port: int | None
    dst_vni: int | None
    via: str | None
    state: str | None
    extern_learn: bool | None
    """For `del`: True to withdraw only what a control plane has given, False only the rest."""
    sticky: bool | None
    sequence: int | None
    """Only with `extern_learn`."""


class NeighbourChange(TypedDict, total=False):
    """A change of the neighbours in a batch, with the parameters of the method `neigh.<verb>`."""

    verb: Required[Literal["add", "replace", "del"]]
    ip: Required[str]
    mac: str | None
    """Not for `del`."""
    vlan: int | None
    router: bool | None
    extern_learn: bool | None
    """For `del`: True to delete it only if a control plane has added it."""


class BatchError(TypedDict):
    """A change of a batch that was refused, and has changed nothing."""

    index: int
    """Position in the batch, from 0."""
    error: str


class BatchResult(TypedDict):
    """The result of a batch. Each change by itself is made or refused."""

    done: int
    errors: list[BatchError]
    """In the order of the changes."""


class FdbSampleEntry(TypedDict):
    """An FDB entry in the short form of `fdb.sample`."""

    mac: str
    dst: str | None
    """The first destination."""
    state: str
    age: float | None
    held: float | None
    moves: int
    """Moves to another remote within the last 180 seconds; 0 with --mac-move-limit 0."""
    tx_frames: int
    rx_frames: int


class FdbSample(TypedDict):
    """Some FDB entries of a segment: those of named MACs, and those of a few pages."""

    vni: int
    dev: str
    monotonic: float
    """When this was made, on the clock of `Status.monotonic`."""
    fdb_entries: int
    """Entries of the segment, which are mostly more than those here."""
    entries: list[FdbSampleEntry]
    next_page: int | None
    """The page to ask for next; None after the last page."""


class RemoteEntry(Destination):
    """A destination of flooded frames: broadcast, unknown unicast and multicast."""

    vni: int
    dev: str
    name: str | None
    """The host name among the remotes that has this address; None for an address by itself."""
    configured: bool
    """True if an option or a command has given it, perhaps besides a control plane."""


class NameEntry(TypedDict):
    """A host name among the remotes of a segment."""

    name: str
    addresses: list[str]
    """Its addresses that the segment uses now: neither own ones, nor of another IP version."""
    error: str | None
    """Why it could not be looked up the last time; None if it could, or was not yet."""


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
    extern_learn: bool
    """True if a control plane has added it: then it is permanent until that deletes it."""
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
    names: list[NameEntry]
    """The host names among --remote."""
    options: dict[str, Any]
    """Options of the segment by name."""
    docker_bridge: str | None
    """The bridge of its Docker network; None until it is known, or without such a network."""
    docker_problem: str | None
    """Why it does not follow its Docker network; None if it does."""


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
    remote-liveness: `remote`, the address; loop: the same.
    evpn-session: `remote`, the BGP neighbour; neither `vni` nor `dev`.
    storm: the keys of `StormSource`, and `dropped`.
    A MAC that is held is so until it is released, changed, deleted or expired.
    If a subscriber was too slow, `event` is "lost" and `count` is the number of missing events.
    """

    event: str
    """added, changed, moved, held, released, deleted or expired; of a loop, blocked or unblocked;
    of a storm, began or ended; of the liveness of a remote, seen, silent or refused; of a BGP
    session, established or down; or lost."""
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


class RemoteTraffic(TypedDict):
    """Frames and octets exchanged with a remote since the start, which only grow.

    Octets are those of inner frames, without the VXLAN and outer headers. Flooded frames count for
    each remote that they were sent to.
    """

    rx_frames: int
    rx_bytes: int
    tx_frames: int
    tx_bytes: int


class RemoteStatus(RemoteTraffic):
    """A remote of a segment: a destination of flooded frames, or a host that sends to it."""

    remote: str
    """The underlay address of the VTEP, or of the multicast group."""
    is_group: bool
    """True for a multicast group, which receives nothing by itself."""
    is_configured: bool
    """True for a destination of flooded frames; False for a host that is known by its FDB entries,
    or accepted, only."""
    underlay_dev: str | None
    """The device towards it; None if there is no route."""
    liveness: str
    """seen, silent, never-seen or refused."""
    is_pyvtep: bool
    """True if it has answered an echo request: only then it can be called silent."""
    last_seen: float | None
    """Seconds since it was last heard, by a datagram or an echo reply; None if it never was."""
    rtt: float | None
    """Round-trip time of the last echo reply in seconds; None if there was none."""
    path_mtu: int | None
    """Octets of the largest outer IP packet to it that is known to pass; None without a route."""
    fdb_entries: int
    """MACs with this remote as a destination."""


class RecentDrop(TypedDict):
    """A drop reason of a segment, or of the process, that has counted something lately."""

    reason: str
    """The name of the counter."""
    meaning: str
    count: int
    """Since the start."""
    age: float
    """Seconds since the last one."""
    last_source: str | None
    """The underlay address of the sender of the last one, or of the remote that it was for."""
    detail: str | None
    """The subject of the last one, such as "vni 42" or "source MAC 02:00:00:00:00:01"; or what
    explains it, such as route targets that the sender announces and no VNI imports."""


class Problem(TypedDict):
    """A reason for which `pyvtep status` ends with exit code 1."""

    problem: str
    """remote-silent, remote-refused, port-down, underlay-missing, name-unresolved, loop, storm,
    reload-failed, fast-path-failed, wrong-bridge, evpn-speaker-failed, evpn-session-down,
    evpn-no-routes, evpn-next-hop or evpn-duplicate-mac."""
    vni: int | None
    remote: str | None
    text: str
    """A line for the reader: what is wrong, and what to do."""


class SegmentStatus(TypedDict):
    """A segment, with its remotes."""

    vni: int
    evpn: bool
    """True if its remotes come by EVPN."""
    dev: str
    vlan: int | None
    """The VLAN of the TAP that carries the VNI (`--vlan`); None if the TAP has one VNI."""
    netns: str | None
    """The network namespace of the TAP (`--netns`); None if it is that of the process."""
    state: str
    """up, down (the TAP is down), missing (the TAP is gone) or waiting (for its underlay, or for
    the addresses of a host name)."""
    bridge: str | None
    """The bridge that the TAP is a port of."""
    address: list[str]
    """Addresses of the TAP, with their prefix lengths."""
    mtu: int
    """The largest IP packet that the tunnel carries, in octets, as in `SegmentInfo`."""
    tap_mtu: int | None
    """The MTU of the TAP in octets, which is larger on a bridge; None if it is not known."""
    underlay_mtu: int | None
    """The smallest path MTU to a remote in octets; None if none is known."""
    offload: list[str]
    fast_path: str
    fast_path_reason: str | None
    underlay_devices: list[str]
    underlay_missing: list[str]
    dstport: int
    fdb_entries: int
    fdb_limit: int | None
    """The most dynamic entries that are learned; None for no limit."""
    counters: dict[str, int]
    drops: dict[str, int]
    """By reason, all of them."""
    recent_drops: list[RecentDrop]
    """Those within the last five minutes, the latest first."""
    remotes: list[RemoteStatus]
    names: list[NameEntry]
    """The host names among --remote."""


class ReloadStatus(TypedDict):
    """The last reload of the configuration."""

    successful: bool
    time: float
    """Seconds since the epoch."""


class Status(TypedDict):
    """The state of a running pyvtep at one moment."""

    version: str
    pid: int
    time: float
    """When this was made, in seconds since the epoch."""
    started: float
    """When forwarding began, in seconds since the epoch; an upgrade does not change it."""
    monotonic: float
    """When this was made, on a clock that is never set: divide differences of counters by its
    differences."""
    reload: ReloadStatus | None
    """None if there was none."""
    counters: dict[str, int]
    """Counters of the process and of all segments together."""
    drops: dict[str, int]
    """All drops by reason, those of datagrams for no segment included."""
    recent_drops: list[RecentDrop]
    """Those that belong to no segment."""
    segments: list[SegmentStatus]
    evpn: EvpnStatus | None
    """The state of EVPN; None if no VNI has it."""
    problems: list[Problem]


class CaptureRequest(TypedDict, total=False):
    """The frames that a capture is to show: those that match all keys; all without any."""

    vni: int | None
    """The segment; or its TAP, `dev`. Without both, all segments, and datagrams for none."""
    dev: str | None
    remote: str | None
    """Underlay address of the other VTEP."""
    mac: str | None
    """Source or destination of the inner frame."""
    point: Literal["inner", "outer", "both"] | None
    """Frames at the TAP, datagrams at the underlay, or both, which is the default."""
    drops: bool | None
    """True for dropped frames only."""
    filter: str | None
    """An expression of tcpdump about the inner frame."""
    count: int | None
    """Frames after which the capture ends."""
    snaplen: int | None
    """Octets that are kept of each frame."""
    superframes: bool | None
    """True to leave superframes unsegmented."""
