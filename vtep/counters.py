"""What was forwarded, and every way in which a frame can vanish.

The names of the reasons are part of the interface: scripts, tests and dashboards use them.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Self, TypeAlias

_NAMED = 3
"""How many names a line has at most."""


class _Explained(StrEnum):
    """Names, each with its explanation as `.meaning`."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Self:
        """Give each reason its explanation beside its name."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member


class Drop(_Explained):
    """Why a datagram or a frame went no further."""

    # From the underlay, in the order in which a datagram is judged.
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
        "at least one datagram that the kernel discarded because it was read too slowly",
    )
    OVERLAY_INGRESS = (
        "overlay_ingress",
        (
            "datagram that arrived through a TAP of pyvtep or its bridge, so it is no underlay "
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
        "question of a pyvtep doctor beyond those that are answered in a second",
    )
    GRO_BATCH_MISMATCH = (
        "gro_batch_mismatch",
        "datagram of another VNI in a GRO batch whose first inner packet claims the whole batch",
    )
    VNI_UNKNOWN = ("vni_unknown", "VXLAN header with a VNI that is not ours")
    RESERVED_BITS = (
        "reserved_bits",
        "VXLAN header with bits that --reserved-bits wants to be zero",
    )
    SOURCE_UNKNOWN = ("source_unknown", "datagram from an address that is no --remote")
    INNER_RUNT = ("inner_runt", "inner frame shorter than an Ethernet header")
    GROUP_DENIED = ("group_denied", "frame of a policy group that --gbp does not let in")
    INNER_TAGGED = ("inner_tagged", "inner frame with a VLAN tag, which --inner-vlan drop refuses")
    INNER_SOURCE_INVALID = (
        "inner_source_invalid",
        "inner frame whose source MAC is multicast or zero",
    )
    INNER_SOURCE_OWN = (
        "inner_source_own",
        "inner frame that has the TAP's own MAC as its source: a loop or a duplicate MAC",
    )
    INNER_SOURCE_STATIC = (
        "inner_source_static",
        "inner frame whose source MAC has a static entry behind another remote",
    )
    CONGESTION = (
        "congestion",
        "frame marked for congestion on the way, whose sender does not understand marks (RFC 6040)",
    )
    ANYCAST_GW_SUPPRESSED_TX = (
        "anycast_gw_suppressed_tx",
        "ARP or neighbour discovery from elsewhere about this host's own gateway",
    )
    TAP_DOWN = ("tap_down", "frame for a TAP device that is administratively down")
    TAP_REFUSED = ("tap_refused", "frame that the kernel refused to take from us at the TAP device")

    # From the TAP.
    TAP_QUEUE_FULL = (
        "tap_queue_full",
        "at least one frame that the kernel discarded because we read the TAP too slowly",
    )
    TX_RUNT = ("tx_runt", "frame from the TAP device shorter than an Ethernet header")
    TX_MALFORMED = (
        "tx_malformed",
        "frame from the TAP device whose virtio header contradicts it",
    )
    TX_TAGGED = (
        "tx_tagged",
        "frame from the TAP device with a VLAN tag, which --inner-vlan drop refuses",
    )
    NO_REMOTE = ("no_remote", "frame from the TAP device for which there is no destination")
    TX_TOO_BIG = (
        "tx_too_big",
        "packet larger than the tunnel carries that must not be fragmented: its sender is told",
    )
    ANYCAST_GW_SUPPRESSED_RX = (
        "anycast_gw_suppressed_rx",
        "ARP or neighbour discovery about this host's own gateway, which is nobody's business else",
    )
    UNDERLAY_FULL = ("underlay_full", "datagram for which the underlay had no buffer left")
    UNDERLAY_TOO_BIG = ("underlay_too_big", "datagram larger than the underlay carries")
    UNDERLAY_UNREACHABLE = (
        "underlay_unreachable",
        "datagram for a remote to which this host has no route, or no address to send from",
    )
    UNDERLAY_REFUSED = (
        "underlay_refused",
        "datagram that came back as an ICMP error: no VTEP listens there, or a firewall refuses",
    )
    UNDERLAY_DENIED = ("underlay_denied", "datagram that this host's own firewall forbade")
    UNDERLAY_FAILED = ("underlay_failed", "datagram that could not be sent for any other reason")


class Notice(_Explained):
    """Why nothing was learned from a frame that was delivered.

    The names are those of plain counters.
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
            "address of a neighbour not learned, as there are --max-addresses of them: requests "
            "for it are flooded"
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
    Drop.INNER_SOURCE_STATIC: lambda mac: f"source MAC {_mac(mac)}",
    Drop.TX_TAGGED: "VLAN {}".format,
    Drop.NO_REMOTE: lambda mac: f"destination MAC {_mac(mac)}",
}
"""How the log writes the detail of a drop, which is kept as it was found."""

BY_DESIGN = frozenset((Drop.ANYCAST_GW_SUPPRESSED_RX, Drop.ANYCAST_GW_SUPPRESSED_TX))
"""Reasons that nobody needs to be told of: such frames were not to arrive."""


class Counters:
    """Frames and octets both ways, and drops by reason.

    The plain attributes are added to by the hot path; octets are those of inner Ethernet frames.
    `tx_datagrams` counts what went to the underlay, so it exceeds `tx_frames` by head-end
    replication. A superframe counts as the frames that it stands for; `tx_superframes` and
    `rx_superframes` say how many were read from the TAP and merged for it, and `tx_tunnel_gso` how
    many of those read were sent with tunnel GSO. `flooded` are the frames
    from the TAP that went to every remote. `neigh_answered` are the requests from the TAP that were
    answered here and not flooded; `neigh_probed` of them were passed on to the neighbour alone, to
    confirm the answer. `neigh_unconfirmed` requests for a known neighbour were flooded, since it
    was not confirmed. Of `neigh_full` speakers the address was not kept for that. `fdb_full` and
    `fdb_quota` are the frames whose source MAC was not learned (see `Notice`).

    Of frames from the TAP that were larger than the tunnel carries, `tx_resegmented` counts the TCP
    segments that were cut, `tx_fragmented` the IPv4 packets, and `tx_oversize` those that went out
    as they are. `tx_too_big_answered` are the senders told of it by ICMP, and `mss_clamped` the
    SYNs, of both directions, in which a smaller MSS was written. `mtu_changes` is how often what
    the tunnel carries has changed.

    `tap_header_refused` counts the superframes, and the frames with an unfinished checksum, whose
    virtio header the kernel refused at the TAP; they were written as plain frames instead.

    Of the echo (see `vtep.wire.echo`), `probes_answered` counts questions, and `probes_heard` the
    answers to a doctor on this host, and to ourselves (see `vtep.tunnel_gso.state`).

    Counters only grow. `reset` sets a baseline instead, so that a monitoring system and a person
    can use them at the same time.
    """

    __slots__ = (
        "_baseline",
        "_noted",
        "drops",
        "fdb_full",
        "fdb_learned",
        "fdb_moved",
        "fdb_quota",
        "flooded",
        "last_detail",
        "last_drop",
        "last_source",
        "mss_clamped",
        "mtu_changes",
        "neigh_answered",
        "neigh_full",
        "neigh_probed",
        "neigh_unconfirmed",
        "partial_checksums",
        "probes_answered",
        "probes_heard",
        "rx_bytes",
        "rx_frames",
        "rx_superframes",
        "super_datagrams",
        "tap_header_refused",
        "tx_bytes",
        "tx_datagrams",
        "tx_fragmented",
        "tx_frames",
        "tx_oversize",
        "tx_resegmented",
        "tx_superframes",
        "tx_too_big_answered",
        "tx_tunnel_gso",
    )

    def __init__(self) -> None:
        self.rx_frames = 0
        self.rx_bytes = 0
        self.tx_frames = 0
        self.rx_superframes = 0
        self.tx_superframes = 0
        self.tx_bytes = 0
        self.tx_datagrams = 0
        self.flooded = 0
        self.fdb_learned = 0
        self.fdb_moved = 0
        self.fdb_full = 0
        self.fdb_quota = 0
        self.neigh_answered = 0
        self.neigh_full = 0
        self.neigh_probed = 0
        self.neigh_unconfirmed = 0
        self.partial_checksums = 0
        self.probes_answered = 0
        self.probes_heard = 0
        self.super_datagrams = 0
        self.tap_header_refused = 0
        self.mss_clamped = 0
        self.mtu_changes = 0
        self.tx_fragmented = 0
        self.tx_oversize = 0
        self.tx_resegmented = 0
        self.tx_too_big_answered = 0
        self.tx_tunnel_gso = 0
        self.drops = dict.fromkeys(Drop, 0)
        self.last_source: dict[Reason, str] = {}
        self.last_detail: dict[Drop, Detail] = {}
        self.last_drop: dict[Drop, float] = {}
        """By reason, when `note_drops` last found its counter increased."""
        self._noted: Mapping[Drop, int] = _NO_DROPS
        self._baseline: Mapping[str, int] = {}

    def drop(
        self,
        reason: Drop,
        source: str | None = None,
        count: int = 1,
        detail: Detail | None = None,
    ) -> None:
        """Count losses, for the log with the underlay address and the detail of the last one."""
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
        return counts

    def as_dict(self) -> dict[str, int]:
        """Every counter by name, drops as `drop_<reason>`."""
        plain = {
            name: getattr(self, name) for name in sorted(self.__slots__) if name not in _NO_COUNTERS
        }
        return plain | {f"drop_{reason}": count for reason, count in self.drops.items()}

    def note_drops(self, now: float) -> None:
        """Note `now` (seconds) as the time of the last increase of drop counters that grew.

        The hot path need not look at a clock, since this is called once a tick.
        """
        if self.drops != self._noted:
            for reason, count in self.drops.items():
                if count != self._noted[reason]:
                    self.last_drop[reason] = now
            self._noted = self.drops.copy()

    def reset(self) -> None:
        """Let `since_reset` count from now on."""
        self._baseline = self.as_dict()

    def since_reset(self) -> dict[str, int]:
        """Return what `as_dict` has counted since the last `reset`, or in all without one."""
        return {name: count - self._baseline.get(name, 0) for name, count in self.as_dict().items()}


_NO_COUNTERS = frozenset(
    ("drops", "last_detail", "last_drop", "last_source", "_baseline", "_noted")
)
_NO_DROPS = dict.fromkeys(Drop, 0)
_NOTHING: dict[Reason, int] = dict.fromkeys((*Drop, *Notice), 0)


def duration(seconds: float) -> str:
    """Return a duration as people say it: in the largest unit of which there are two or more."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


class DropLog:
    """Says once, and then at most once a minute for each reason, that something is being dropped.

    A loss that only a counter knows of is a silent one to whoever has not thought of looking.
    """

    def __init__(self, interval: float = 60.0) -> None:
        self._interval = interval
        self._silent_until: dict[Reason, float] = {}
        self._told: dict[Counters, dict[Reason, int]] = {}
        self._noted: dict[Counters, dict[Reason, int]] = {}
        self._different: list[tuple[str, Counters, dict[Reason, int]]] = []

    def note(self, name: str, counters: Counters) -> None:
        """Look at some counters before `news` is asked for; `name` says what they count, if at all.

        It has to be shown all that there are each time; who has time can do so one by one.
        """
        told = self._told.get(counters, _NOTHING)
        if counters.losses() != told:
            if told is _NOTHING:
                told = _NOTHING.copy()
            self._different.append((name, counters, told))
        self._noted[counters] = told

    def news(self, now: float, parts: Iterable[tuple[str, Counters]] = ()) -> list[str]:
        """Lines to log at `now` (seconds) for what was dropped and has not been told yet.

        `parts` are counters that were not noted, each with the name of what it counts, or none.
        """
        for part in parts:
            self.note(*part)
        self._told, self._noted = self._noted, {}
        different, self._different = self._different, []
        lost: dict[Reason, list[tuple[int, str, Counters]]] = {}
        for name, counters, before in different:
            for reason, count in counters.losses().items():
                if (
                    count != before[reason]
                    and now >= self._silent_until.get(reason, now)
                    and reason not in BY_DESIGN
                ):
                    lost.setdefault(reason, []).append((count - before[reason], name, counters))
                    before[reason] = count
        for reason in lost:
            self._silent_until[reason] = now + self._interval
        return [_line(reason, losses) for reason, losses in lost.items()]


def _line(reason: Reason, losses: list[tuple[int, str, Counters]]) -> str:
    total = sum(count for count, _, _ in losses)
    names = [name for _, name, _ in losses if name]
    about = ", ".join(names[:_NAMED])
    if len(names) > _NAMED:
        about += f" and {len(names) - _NAMED} more"
    last = _last(reason, losses[-1][2])
    details = "; ".join(filter(None, (about, f"last: {last}" if last else "")))
    what = f"dropped {total}" if isinstance(reason, Drop) else f"{total}"
    return f"{what} x {reason}: {reason.meaning}" + (f" ({details})" if details else "")


def _last(reason: Reason, counters: Counters) -> str:
    """Return the source and the detail of the last loss, as far as they are known."""
    parts = [counters.last_source.get(reason, "")]
    if isinstance(reason, Drop) and reason in _DETAILS and reason in counters.last_detail:
        parts.append(_DETAILS[reason](counters.last_detail[reason]))
    return ", ".join(filter(None, parts))
