"""Counters of frames and datagrams, the reasons for which they are dropped, and the log of drops.

Names of counters and drop reasons are part of the interface: scripts, tests and dashboards use
them.
"""

from collections.abc import Callable, Container, Mapping
from enum import StrEnum
from typing import Any, Final, Self, TypeAlias

from attrs import define, field, fields


class _Explained(StrEnum):
    """Names, each with its explanation as `meaning`."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Self:
        """Store the explanation beside the name."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member


class Drop(_Explained):
    """The reason for which a datagram or a frame was dropped."""

    # Datagrams from the underlay, in the order of the checks.
    UDP_CHECKSUM = (
        "udp_checksum",
        (
            "datagrams in this network namespace with a wrong UDP checksum, discarded by the "
            "kernel: a NAT on the way, or checksum offload that fills in none, at the sender or "
            "here; the sender can leave checksums out (--no-udpcsum)"
        ),
    )
    RX_QUEUE_FULL = (
        "rx_queue_full",
        "at least one datagram that the kernel discarded because the socket was read too slowly",
    )
    RX_FLOW_LIMITED = (
        "rx_flow_limited",
        (
            "datagram of a flow that took more than its share while more arrived than can be "
            "forwarded"
        ),
    )
    OVERLAY_INGRESS = (
        "overlay_ingress",
        (
            "datagram that arrived through a TAP of pyvtep or its bridge, so it is not underlay "
            "traffic: a guest forges VXLAN; or the underlay is that device: --dev"
        ),
    )
    HEADER_TRUNCATED = ("header_truncated", "datagram shorter than a VXLAN header")
    FLAGS_INVALID = ("flags_invalid", "VXLAN header without the I flag")
    HEADER_GPE = (
        "header_gpe",
        "VXLAN-GPE header (version, P, B or O bits), whose payload need not be Ethernet",
    )
    PROBE_LIMITED = (
        "probe_limited",
        "echo request beyond the number that is answered in a second",
    )
    GRO_BATCH_MISMATCH = (
        "gro_batch_mismatch",
        "datagram of another VNI in a GRO batch whose first inner packet claims the whole batch",
    )
    VNI_UNKNOWN = ("vni_unknown", "VXLAN header with a VNI that is not configured")
    RESERVED_BITS = (
        "reserved_bits",
        "VXLAN header with bits that --reserved-bits requires to be zero",
    )
    SOURCE_UNKNOWN = ("source_unknown", "datagram from an address that is no --remote")
    STORM_BROADCAST_RX = (
        "storm_broadcast_rx",
        "broadcast from a remote beyond the --storm-broadcast limit: a loop, or a faulty guest",
    )
    STORM_MULTICAST_RX = (
        "storm_multicast_rx",
        "multicast from a remote beyond the --storm-multicast limit: a loop, or a faulty guest",
    )
    INNER_RUNT = ("inner_runt", "inner frame shorter than an Ethernet header")
    GROUP_DENIED = ("group_denied", "frame of a policy group that --gbp does not accept")
    INNER_TAGGED = ("inner_tagged", "inner frame with a VLAN tag, which --inner-vlan drop refuses")
    INNER_SOURCE_INVALID = (
        "inner_source_invalid",
        "inner frame whose source MAC is multicast or zero",
    )
    INNER_SOURCE_OWN = (
        "inner_source_own",
        "inner frame that has the TAP's own MAC as its source: a loop or a duplicate MAC",
    )
    INNER_SOURCE_HELD = (
        "inner_source_held",
        (
            "inner frame whose source MAC is held at another remote, as it moved too often: two "
            "hosts have it, or there is a loop"
        ),
    )
    LOOP_BLOCKED_RX = (
        "loop_blocked_rx",
        "frame to a group from a remote with which flooding is stopped because of a loop",
    )
    INNER_SOURCE_STATIC = (
        "inner_source_static",
        "inner frame whose source MAC has a static entry with another remote",
    )
    CONGESTION = (
        "congestion",
        "frame with a congestion mark (CE) whose sender does not support ECN (RFC 6040)",
    )
    ANYCAST_GW_SUPPRESSED_RX = (
        "anycast_gw_suppressed_rx",
        "ARP or neighbour discovery from a remote about this host's anycast gateway",
    )
    FAST_PATH_FAILED = (
        "fast_path_failed",
        "frame, in either direction, that was in a compiled turn when that failed: a bug",
    )
    TAP_DOWN = ("tap_down", "frame for a TAP device that is administratively down")
    TAP_REFUSED = ("tap_refused", "frame that the kernel refused at the TAP device")

    # Frames from the TAP, in the order of the checks.
    TAP_QUEUE_FULL = (
        "tap_queue_full",
        "at least one frame that the kernel discarded because the TAP was read too slowly",
    )
    TX_RUNT = ("tx_runt", "frame from the TAP device shorter than an Ethernet header")
    TX_UNTAGGED = (
        "tx_untagged",
        "frame from the TAP device without the 802.1Q tag of a VLAN, although --vlan is given",
    )
    TX_VLAN_UNKNOWN = (
        "tx_vlan_unknown",
        "frame from the TAP device in a VLAN that is mapped to no VNI by --vlan",
    )
    TX_MALFORMED = (
        "tx_malformed",
        "frame from the TAP device whose virtio header contradicts it",
    )
    TX_TAGGED = (
        "tx_tagged",
        "frame from the TAP device with a VLAN tag, which --inner-vlan drop refuses",
    )
    STORM_BROADCAST_TX = (
        "storm_broadcast_tx",
        (
            "broadcast from the TAP device beyond the --storm-broadcast limit: a loop, or a faulty "
            "guest"
        ),
    )
    STORM_MULTICAST_TX = (
        "storm_multicast_tx",
        (
            "multicast from the TAP device beyond the --storm-multicast limit: a loop, or a faulty "
            "guest"
        ),
    )
    STORM_UNKNOWN_UNICAST_TX = (
        "storm_unknown_unicast_tx",
        (
            "frame from the TAP device to a MAC that is not in the FDB, beyond the "
            "--storm-unknown-unicast limit"
        ),
    )
    NO_REMOTE = ("no_remote", "frame from the TAP device without a destination: there is no remote")
    TX_TOO_BIG = (
        "tx_too_big",
        "packet too large for the tunnel, with DF or over IPv6: its sender gets an ICMP error",
    )
    LOOP_BLOCKED_TX = (
        "loop_blocked_tx",
        "flooded frame when flooding with all remotes is stopped because of a loop",
    )
    ANYCAST_GW_SUPPRESSED_TX = (
        "anycast_gw_suppressed_tx",
        "ARP or neighbour discovery from this host about its own anycast gateway",
    )
    UNDERLAY_FULL = ("underlay_full", "datagram for which the underlay had no buffer space")
    UNDERLAY_TOO_BIG = ("underlay_too_big", "datagram larger than the underlay carries")
    UNDERLAY_UNREACHABLE = (
        "underlay_unreachable",
        "datagram for a remote to which this host has no route, or no address to send from",
    )
    UNDERLAY_REFUSED = (
        "underlay_refused",
        "datagram rejected by an ICMP error: no VTEP receives there, or a firewall rejects it",
    )
    UNDERLAY_DENIED = ("underlay_denied", "datagram that the firewall of this host rejected")
    UNDERLAY_FAILED = ("underlay_failed", "datagram that could not be sent for any other reason")


class Notice(_Explained):
    """The reason for which nothing was learned from a frame that was delivered.

    The names are those of counters.
    """

    FDB_FULL = (
        "fdb_full",
        (
            "source MAC not learned, as the FDB has --max-addresses entries: frames to it are "
            "flooded"
        ),
    )
    FDB_QUOTA = (
        "fdb_quota",
        (
            "source MAC not learned, as its remote has --max-addresses-per-remote entries: "
            "frames to it are flooded"
        ),
    )
    NEIGH_FULL = (
        "neigh_full",
        (
            "neighbour not learned, as the table has --max-addresses entries: requests for it are "
            "flooded"
        ),
    )


Reason: TypeAlias = Drop | Notice
Detail: TypeAlias = int | bytes | str


def _mac(detail: Detail) -> str:
    return detail.hex(":") if isinstance(detail, bytes) else str(detail)


_DETAILS: dict[Drop, Callable[[Detail], str]] = {
    Drop.OVERLAY_INGRESS: "over {}".format,
    Drop.HEADER_TRUNCATED: "{} octets".format,
    Drop.FLAGS_INVALID: "header {:016x}".format,
    Drop.HEADER_GPE: "header {:016x}".format,
    Drop.VNI_UNKNOWN: "vni {}".format,
    Drop.RESERVED_BITS: "header {:016x}".format,
    Drop.INNER_RUNT: "inner frame of {} octets".format,
    Drop.GROUP_DENIED: "policy group {}".format,
    Drop.INNER_TAGGED: "VLAN {}".format,
    Drop.INNER_SOURCE_INVALID: lambda mac: f"source MAC {_mac(mac)}",
    Drop.INNER_SOURCE_OWN: lambda mac: f"source MAC {_mac(mac)}",
    Drop.INNER_SOURCE_HELD: lambda mac: f"source MAC {_mac(mac)}",
    Drop.INNER_SOURCE_STATIC: lambda mac: f"source MAC {_mac(mac)}",
    Drop.TX_UNTAGGED: "EtherType {:#06x}".format,
    Drop.TX_VLAN_UNKNOWN: "VLAN {}".format,
    Drop.TX_TAGGED: "VLAN {}".format,
    Drop.STORM_BROADCAST_TX: lambda mac: f"source MAC {_mac(mac)}",
    Drop.STORM_MULTICAST_TX: lambda mac: f"source MAC {_mac(mac)}",
    Drop.STORM_UNKNOWN_UNICAST_TX: lambda mac: f"source MAC {_mac(mac)}",
    Drop.STORM_BROADCAST_RX: lambda mac: f"source MAC {_mac(mac)}",
    Drop.STORM_MULTICAST_RX: lambda mac: f"source MAC {_mac(mac)}",
    Drop.NO_REMOTE: lambda mac: f"destination MAC {_mac(mac)}",
}
"""Formats of the detail of a drop in the log. It is stored unformatted, which costs less."""

BY_DESIGN = frozenset((Drop.ANYCAST_GW_SUPPRESSED_TX, Drop.ANYCAST_GW_SUPPRESSED_RX))
"""Reasons that the log does not report, because such drops are intended."""


_NO_DROPS: Mapping[Drop, int] = dict.fromkeys(Drop, 0)


class Unit(StrEnum):
    """The unit of a counter."""

    FRAMES = "frames"
    """Inner Ethernet frames. A superframe counts as the frames that it stands for."""
    OCTETS = "octets"
    """Octets of inner Ethernet frames."""
    SUPERFRAMES = "superframes"
    DATAGRAMS = "datagrams"
    """Datagrams of the underlay. A frame to several remotes counts several times."""
    PACKETS = "packets"
    """Inner IP packets."""
    MESSAGES = "messages"
    """Inner ARP packets and ND messages, and echo messages."""
    CALLS = "calls"
    """System calls. Frames for each of them tell how well batches work."""
    EVENTS = "events"


def _counter(unit: Unit, text: str) -> Any:
    """Define a counter with its unit and its help text. Its name is that of the field."""
    return field(default=0, metadata={"unit": unit, "help": text})


@define(eq=False)
class Counters:
    """The counters of one VNI, or of datagrams that belong to no VNI.

    The data path increments the fields directly. They only grow: `reset` sets a baseline instead,
    so that a monitoring system and an administrator can use them at the same time.
    """

    # Frames.
    rx_frames: int = _counter(Unit.FRAMES, "written to the TAP")
    rx_bytes: int = _counter(Unit.OCTETS, "written to the TAP")
    rx_superframes: int = _counter(Unit.SUPERFRAMES, "merged for the TAP")
    tx_frames: int = _counter(Unit.FRAMES, "read from the TAP")
    tx_bytes: int = _counter(Unit.OCTETS, "read from the TAP")
    tx_superframes: int = _counter(Unit.SUPERFRAMES, "read from the TAP")
    tx_tunnel_gso: int = _counter(Unit.SUPERFRAMES, "sent with tunnel GSO")
    tx_datagrams: int = _counter(Unit.DATAGRAMS, "sent to the underlay")
    tx_syscalls: int = _counter(Unit.CALLS, "that sent datagrams, one or many")
    rx_syscalls: int = _counter(Unit.CALLS, "that received datagrams, for any VNI")
    flooded: int = _counter(Unit.FRAMES, "from the TAP to an unknown destination or a group")

    # Loop protection.
    loop_probes: int = _counter(Unit.FRAMES, "written to the TAP to find a loop")
    loops_found: int = _counter(Unit.EVENTS, "loop found, and flooding with a remote stopped")

    # FDB.
    fdb_learned: int = _counter(Unit.EVENTS, "MAC learned")
    fdb_moved: int = _counter(Unit.EVENTS, "MAC moved to another remote")
    fdb_full: int = _counter(Unit.FRAMES, "with a source MAC not learned: the FDB is full")
    fdb_quota: int = _counter(
        Unit.FRAMES, "with a source MAC not learned: the remote has used up its quota"
    )

    # ARP and ND suppression.
    neigh_answered: int = _counter(Unit.MESSAGES, "request from the TAP answered here")
    neigh_probed: int = _counter(
        Unit.MESSAGES, "answered request also sent to the neighbour, to confirm the answer"
    )
    neigh_unconfirmed: int = _counter(
        Unit.MESSAGES, "request flooded although the neighbour is known, but not confirmed"
    )
    neigh_full: int = _counter(Unit.MESSAGES, "from a neighbour not learned: the table is full")

    # Offloads.
    partial_checksums: int = _counter(Unit.FRAMES, "received with a partial checksum")
    super_datagrams: int = _counter(
        Unit.SUPERFRAMES, "received in one datagram, with a partial checksum"
    )
    tap_header_refused: int = _counter(
        Unit.SUPERFRAMES, "or frames, refused at the TAP and written as plain frames instead"
    )

    # Sizes.
    mss_clamped: int = _counter(Unit.PACKETS, "SYN with a lowered MSS, in both directions")
    mtu_changes: int = _counter(Unit.EVENTS, "change of the MTU of the tunnel")
    tx_resegmented: int = _counter(Unit.PACKETS, "oversize TCP cut into smaller segments")
    tx_fragmented: int = _counter(Unit.PACKETS, "oversize IPv4 fragmented")
    tx_oversize: int = _counter(Unit.PACKETS, "oversize, sent as they were")
    tx_too_big_answered: int = _counter(Unit.PACKETS, "oversize, answered with an ICMP error")

    # Echo (see `vtep.wire.echo`).
    echo_requests_answered: int = _counter(Unit.MESSAGES, "echo request answered")
    echo_replies_received: int = _counter(Unit.MESSAGES, "echo reply received")

    drops: dict[Drop, int] = field(init=False, factory=lambda: dict.fromkeys(Drop, 0))
    """Frames and datagrams dropped, by reason."""
    last_source: dict[Reason, str] = field(init=False, factory=dict)
    """By reason, the underlay address that the last drop came from."""
    last_detail: dict[Drop, Detail] = field(init=False, factory=dict)
    """By reason, the detail of the last drop."""
    last_drop: dict[Drop, float] = field(init=False, factory=dict)
    """By reason, when `note_drops` last found its counter increased, in seconds."""
    _noted: Mapping[Drop, int] = field(init=False, factory=lambda: _NO_DROPS)
    _baseline: Mapping[str, int] = field(init=False, factory=dict)
    _logged: dict[Reason, int] = field(init=False, factory=dict)

    def drop(
        self,
        reason: Drop,
        source: str | None = None,
        count: int = 1,
        detail: Detail | None = None,
    ) -> None:
        """Count drops. The log shows the underlay address and the detail of the last one."""
        self.drops[reason] += count
        if source is not None:
            self.last_source[reason] = source
        if detail is not None:
            self.last_detail[reason] = detail

    def losses(self) -> dict[Reason, int]:
        """Return the counts that the log reports, by reason."""
        counts: dict[Reason, int] = {}
        counts.update(self.drops.items())
        counts[Notice.FDB_FULL] = self.fdb_full
        counts[Notice.FDB_QUOTA] = self.fdb_quota
        counts[Notice.NEIGH_FULL] = self.neigh_full
        for reason, count in self._logged.items():
            counts[reason] -= count
        return counts

    def mark_logged(self, before: Mapping[Reason, int]) -> None:
        """Leave out of `losses` what was added since it returned `before`.

        The counts are those of another process, which has logged them.
        """
        for reason, count in self.losses().items():
            self._logged[reason] = self._logged.get(reason, 0) + count - before[reason]

    def as_dict(self) -> dict[str, int]:
        """Return every counter by name, drops as `drop_<reason>`."""
        drops = {f"drop_{reason}": count for reason, count in self.drops.items()}
        return self.numbers() | drops

    def numbers(self) -> dict[str, int]:
        """Return every counter by name, but for `drops`."""
        return {name: getattr(self, name) for name in _NAMES}

    def describe_last(self, reason: Drop) -> str | None:
        """Return the detail of the last drop in words, such as "vni 42"; None if there is none."""
        if reason not in _DETAILS or reason not in self.last_detail:
            return None
        return _DETAILS[reason](self.last_detail[reason])

    def note_drops(self, now: float, expected: Container[Reason] = ()) -> None:
        """Note `now` (seconds) as the time of the last drop for reasons whose counters grew.

        Reasons that are `expected` are left out: these drops are no fault.

        It is called once a tick, so that the data path need not read a clock for each drop.
        """
        if self.drops != self._noted:
            for reason, count in self.drops.items():
                if count != self._noted[reason] and reason not in expected:
                    self.last_drop[reason] = now
            self._noted = self.drops.copy()

    def reset(self) -> None:
        """Set the baseline of `since_reset`."""
        self._baseline = self.as_dict()

    def set_baseline(self, baseline: Mapping[str, int]) -> None:
        """Set the baseline of `since_reset` to what another process has set."""
        self._baseline = dict(baseline)

    def since_reset(self) -> dict[str, int]:
        """Return the counters of `as_dict` since the last `reset`, if there was one."""
        return {name: count - self._baseline.get(name, 0) for name, count in self.as_dict().items()}


_NAMES: Final = tuple(sorted(each.name for each in fields(Counters) if "unit" in each.metadata))


def duration(seconds: float) -> str:
    """Return a duration in the largest unit of which there are two or more."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
