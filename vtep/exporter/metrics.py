"""The metrics: their names, labels and help texts, and their values from a status. No I/O.

Names follow the conventions of Prometheus: base units, `_total` for counters, `_info` for facts,
and times instead of ages. The values of a label are a closed set, VNIs, configured remotes, or BGP
neighbours, so that only the configuration determines the number of series. All values of a closed
set are always there, since `rate()` misses the first increment of a series that appears with it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from vtep.control.schema import RemoteStatus, SegmentStatus, Status
from vtep.counters import Drop
from vtep.exporter.evpn_metrics import EVPN_METRICS
from vtep.exporter.metric import NO_VNI, Metric, OtherTraffic, Snapshot, Values, states

OTHER: Final = "other"
"""The label `remote` of all hosts of a VNI that are not configured."""

PROBLEMS: Final = (
    *("remote-silent", "remote-refused", "port-down", "underlay-missing"),
    *("name-unresolved", "loop", "storm", "reload-failed", "fast-path-failed"),
    *("wrong-bridge", "evpn-speaker-failed", "evpn-session-down", "evpn-no-routes"),
    *("evpn-next-hop", "evpn-duplicate-mac"),
)
LIVENESS: Final = ("seen", "silent", "never-seen", "refused")
PORT_STATES: Final = ("up", "down", "missing", "waiting")
FAST_PATH_STATES: Final = ("on", "loading", "compiling", "off")


def _of_process(name: str, text: str, value: Callable[[Status], float]) -> Metric:
    """Define a metric of the process."""
    return Metric(name, (), text, lambda snapshot: iter([((), value(snapshot.status))]))


def _of_vni(name: str, text: str, value: Callable[[SegmentStatus], float | None]) -> Metric:
    """Define a metric of each VNI; a value of None is left out."""

    def values(snapshot: Snapshot) -> Values:
        for segment in snapshot.status["segments"]:
            if (number := value(segment)) is not None:
                yield (str(segment["vni"]),), number

    return Metric(name, ("vni",), text, values)


def _counter(name: str, counter: str, text: str) -> Metric:
    """Define a metric of each VNI that is one of its counters."""
    return _of_vni(name, text, lambda segment: segment["counters"].get(counter))


def _counters(name: str, label: str, counters: Mapping[str, str], text: str) -> Metric:
    """Define a metric of each VNI that is several counters, by the value of a label."""

    def values(snapshot: Snapshot) -> Values:
        for segment in snapshot.status["segments"]:
            for value, counter in counters.items():
                if counter in segment["counters"]:
                    yield (str(segment["vni"]), value), segment["counters"][counter]

    return Metric(name, ("vni", label), text, values)


def _of_remote(name: str, text: str, value: Callable[[RemoteStatus], float | None]) -> Metric:
    """Define a metric of each configured remote; a value of None is left out."""

    def values(snapshot: Snapshot) -> Values:
        for vni, remote in _configured(snapshot):
            if (number := value(remote)) is not None:
                yield (vni, remote["remote"]), number

    return Metric(name, ("vni", "remote"), text, values)


def _traffic(name: str, text: str, value: Callable[[OtherTraffic], int]) -> Metric:
    """Define a metric of each configured remote, and of all other hosts of a VNI together."""

    def values(snapshot: Snapshot) -> Values:
        for vni, remote in _configured(snapshot):
            yield (vni, remote["remote"]), value(remote)
        for number, other in snapshot.others.items():
            yield (str(number), OTHER), value(other)

    return Metric(name, ("vni", "remote"), text, values)


def _configured(snapshot: Snapshot) -> Iterator[tuple[str, RemoteStatus]]:
    for segment in snapshot.status["segments"]:
        for remote in segment["remotes"]:
            if remote["is_configured"]:
                yield str(segment["vni"]), remote


def _port_states(snapshot: Snapshot) -> Values:
    for segment in snapshot.status["segments"]:
        for state, value in states(PORT_STATES, segment["state"]):
            yield (str(segment["vni"]), state), value


def _fast_path_states(snapshot: Snapshot) -> Values:
    for segment in snapshot.status["segments"]:
        for state, value in states(FAST_PATH_STATES, segment["fast_path"]):
            yield (str(segment["vni"]), state), value


def _liveness(snapshot: Snapshot) -> Values:
    for vni, remote in _configured(snapshot):
        if not remote["is_group"]:  # A group sends nothing: it would be never-seen for ever.
            for state, value in states(LIVENESS, remote["liveness"]):
                yield (vni, remote["remote"], state), value


def _last_seen(snapshot: Snapshot) -> Values:
    for vni, remote in _configured(snapshot):
        if not remote["is_group"]:
            age = remote["last_seen"]
            seen = 0.0 if age is None else round(snapshot.status["time"] - age, 3)
            yield (vni, remote["remote"]), seen


def _build_info(snapshot: Snapshot) -> Values:
    yield (snapshot.status["version"],), 1


def _vni_info(snapshot: Snapshot) -> Values:
    for segment in snapshot.status["segments"]:
        yield (str(segment["vni"]), segment["dev"], segment["bridge"] or ""), 1


def _remote_info(snapshot: Snapshot) -> Values:
    for vni, remote in _configured(snapshot):
        yield (vni, remote["remote"], remote["underlay_dev"] or ""), 1


def _problems(snapshot: Snapshot) -> Values:
    vnis = [NO_VNI, *(str(segment["vni"]) for segment in snapshot.status["segments"])]
    counts = dict.fromkeys(((vni, problem) for vni in vnis for problem in PROBLEMS), 0)
    for each in snapshot.status["problems"]:
        labels = (NO_VNI if each["vni"] is None else str(each["vni"]), each["problem"])
        counts[labels] = counts.get(labels, 0) + 1
    yield from counts.items()


def _drops(snapshot: Snapshot) -> Values:
    rest = dict.fromkeys(map(str, Drop), 0) | snapshot.status["drops"]
    for segment in snapshot.status["segments"]:
        for reason, count in (dict.fromkeys(map(str, Drop), 0) | segment["drops"]).items():
            rest[reason] = rest.get(reason, 0) - count
            yield (str(segment["vni"]), reason), count
    for reason, count in rest.items():
        # Sums of one status, which is not made in one instant: never less than nothing.
        yield (NO_VNI, reason), max(0, count)


def _reload_time(status: Status) -> float:
    return status["reload"]["time"] if status["reload"] is not None else status["started"]


UP: Final = Metric(
    "pyvtep_up",
    (),
    "1 if pyvtep answered this scrape, 0 if not; without an answer, only this metric and "
    "pyvtep_scrape_duration_seconds are exposed.",
    lambda _: iter(()),
)

SCRAPE_DURATION: Final = Metric(
    "pyvtep_scrape_duration_seconds",
    (),
    "Time that pyvtep took to answer this scrape, or that the exporter waited in vain.",
    lambda _: iter(()),
)

METRICS: Final = (
    Metric("pyvtep_build_info", ("version",), "Version of the running pyvtep.", _build_info),
    _of_process(
        "pyvtep_start_time_seconds",
        "When forwarding began, since the Unix epoch; an upgrade does not change it, and counters "
        "go on.",
        lambda status: status["started"],
    ),
    _of_process(
        "pyvtep_config_last_reload_successful",
        "1 if the last reload of the configuration succeeded, or if there was none, else 0.",
        lambda status: float(status["reload"] is None or status["reload"]["successful"]),
    ),
    _of_process(
        "pyvtep_config_last_reload_timestamp_seconds",
        "When the configuration was last reloaded, successfully or not, since the Unix epoch; the "
        "start if it never was.",
        _reload_time,
    ),
    _of_process(
        "pyvtep_taps_lost_total",
        "TAP devices that were removed by another program while pyvtep ran.",
        lambda status: status["counters"].get("taps_lost", 0),
    ),
    _of_process(
        "pyvtep_receive_system_calls_total",
        "System calls that received datagrams, for all VNIs together.",
        lambda status: status["counters"].get("rx_syscalls", 0),
    ),
    # Echo messages have no VNI: one is answered for all VNIs of a host.
    _of_process(
        "pyvtep_echo_requests_answered_total",
        "Echo requests of other pyvteps that were answered, for all VNIs together.",
        lambda status: status["counters"].get("echo_requests_answered", 0),
    ),
    _of_process(
        "pyvtep_echo_replies_received_total",
        "Echo replies received from remotes, for all VNIs together.",
        lambda status: status["counters"].get("echo_replies_received", 0),
    ),
    Metric(
        "pyvtep_problems",
        ("vni", "problem"),
        "Problems that pyvtep status reports at present, by their kind; vni is none for those of "
        "the process.",
        _problems,
    ),
    Metric(
        "pyvtep_drops_total",
        ("vni", "reason"),
        "Frames and datagrams dropped, by the reason, as in pyvtep stats; vni is none for "
        "datagrams that belong to no VNI.",
        _drops,
    ),
    # --- each VNI -----------------------------------------------------------------------------
    Metric(
        "pyvtep_vni_info",
        ("vni", "device", "bridge"),
        "Names of the TAP device of the VNI and of its bridge, which is empty without one.",
        _vni_info,
    ),
    Metric(
        "pyvtep_vni_state",
        ("vni", "state"),
        "1 for the present state of the VNI, 0 for the others: up, down (the TAP device is down), "
        "missing (it was removed) or waiting (for its underlay).",
        _port_states,
    ),
    Metric(
        "pyvtep_fast_path_state",
        ("vni", "state"),
        "1 for the present state of the fast path of the VNI, 0 for the others.",
        _fast_path_states,
    ),
    _of_vni(
        "pyvtep_mtu_bytes",
        "Largest IP packet that the tunnel carries.",
        lambda segment: segment["mtu"],
    ),
    _of_vni(
        "pyvtep_tap_mtu_bytes",
        "MTU of the TAP device, which is larger than that of the tunnel on a bridge; absent if it "
        "is not known.",
        lambda segment: segment["tap_mtu"],
    ),
    _of_vni(
        "pyvtep_underlay_mtu_bytes",
        "Smallest path MTU to a remote of the VNI; absent if none is known.",
        lambda segment: segment["underlay_mtu"],
    ),
    _counter("pyvtep_receive_frames_total", "rx_frames", "Frames from remotes written to the TAP."),
    _counter(
        "pyvtep_receive_bytes_total",
        "rx_bytes",
        "Octets of frames from remotes written to the TAP, without outer headers.",
    ),
    _counter("pyvtep_transmit_frames_total", "tx_frames", "Frames read from the TAP."),
    _counter(
        "pyvtep_transmit_bytes_total",
        "tx_bytes",
        "Octets of frames read from the TAP, without outer headers.",
    ),
    _counter(
        "pyvtep_transmit_datagrams_total",
        "tx_datagrams",
        "Datagrams sent to the underlay; a frame to several remotes counts several times.",
    ),
    _counter(
        "pyvtep_transmit_system_calls_total",
        "tx_syscalls",
        "System calls that sent datagrams, one or many.",
    ),
    _counter(
        "pyvtep_flooded_frames_total",
        "flooded",
        "Frames from the TAP to an unknown destination or to a group, sent to all remotes.",
    ),
    _counter(
        "pyvtep_receive_superframes_total",
        "rx_superframes",
        "Superframes merged for the TAP; frames per superframe tell how well offloads work.",
    ),
    _counter(
        "pyvtep_transmit_superframes_total", "tx_superframes", "Superframes read from the TAP."
    ),
    _counter(
        "pyvtep_transmit_tunnel_gso_superframes_total",
        "tx_tunnel_gso",
        "Superframes sent with tunnel GSO: segmented by the NIC, or by the remote.",
    ),
    _counter(
        "pyvtep_receive_partial_checksum_frames_total",
        "partial_checksums",
        "Frames received with a partial checksum.",
    ),
    _counter(
        "pyvtep_receive_superframe_datagrams_total",
        "super_datagrams",
        "Superframes received in one datagram, with a partial checksum.",
    ),
    _counter(
        "pyvtep_tap_header_refused_total",
        "tap_header_refused",
        "Superframes and frames that the kernel refused at the TAP, and that were written as plain "
        "frames instead.",
    ),
    # --- the FDB and neighbours of each VNI ---------------------------------------------------
    _of_vni(
        "pyvtep_fdb_entries",
        "Entries of the forwarding database of the VNI, of all kinds.",
        lambda segment: segment["fdb_entries"],
    ),
    _of_vni(
        "pyvtep_fdb_limit_entries",
        "Most entries that the VNI learns (--max-addresses); absent without a limit.",
        lambda segment: segment["fdb_limit"],
    ),
    _counter("pyvtep_fdb_learned_total", "fdb_learned", "MAC addresses learned."),
    _counter("pyvtep_fdb_moved_total", "fdb_moved", "Moves of a MAC address to another remote."),
    _counters(
        "pyvtep_fdb_not_learned_frames_total",
        "limit",
        {"vni": "fdb_full", "remote": "fdb_quota"},
        "Frames whose source MAC was not learned, by the limit that was reached: vni "
        "(--max-addresses) or remote (--max-addresses-per-remote).",
    ),
    _counter(
        "pyvtep_neighbour_requests_answered_total",
        "neigh_answered",
        "ARP and ND requests from the TAP that were answered here (--proxy).",
    ),
    _counter(
        "pyvtep_neighbour_requests_probed_total",
        "neigh_probed",
        "Answered ARP and ND requests that were also sent to the neighbour, to confirm the answer.",
    ),
    _counter(
        "pyvtep_neighbour_requests_unconfirmed_total",
        "neigh_unconfirmed",
        "ARP and ND requests that were flooded, as the known neighbour was not confirmed.",
    ),
    _counter(
        "pyvtep_neighbour_not_learned_messages_total",
        "neigh_full",
        "ARP and ND messages of neighbours that were not learned, as the table was full.",
    ),
    # --- sizes and loops of each VNI ---------------------------------------------------------
    _counter(
        "pyvtep_mss_clamped_packets_total",
        "mss_clamped",
        "TCP SYNs whose MSS was lowered, in both directions.",
    ),
    _counter("pyvtep_mtu_changes_total", "mtu_changes", "Changes of the MTU of the tunnel."),
    _counters(
        "pyvtep_transmit_oversize_packets_total",
        "action",
        {
            "resegmented": "tx_resegmented",
            "fragmented": "tx_fragmented",
            "unchanged": "tx_oversize",
            "answered": "tx_too_big_answered",
        },
        "Packets from the TAP larger than the tunnel carries, by what became of them: resegmented "
        "(TCP), fragmented (IPv4), sent unchanged, or answered with an ICMP error.",
    ),
    _counter(
        "pyvtep_loop_probe_frames_total", "loop_probes", "Frames written to the TAP to find a loop."
    ),
    _counter(
        "pyvtep_loops_found_total",
        "loops_found",
        "Loops found, each of which stopped flooding with a remote for some time.",
    ),
    # --- each configured remote ---------------------------------------------------------------
    Metric(
        "pyvtep_remote_info",
        ("vni", "remote", "device"),
        "Name of the underlay device towards the remote, which is empty without a route.",
        _remote_info,
    ),
    Metric(
        "pyvtep_remote_liveness",
        ("vni", "remote", "state"),
        "1 for the present liveness of the remote, 0 for the others: seen, silent (it answered "
        "echo requests before), never-seen or refused (its host sends ICMP errors).",
        _liveness,
    ),
    Metric(
        "pyvtep_remote_last_seen_timestamp_seconds",
        ("vni", "remote"),
        "When a datagram or an echo reply of the remote was last received, since the Unix epoch; 0 "
        "if none was. A remote without traffic that is not a pyvtep is not heard of.",
        _last_seen,
    ),
    _of_remote(
        "pyvtep_remote_round_trip_seconds",
        "Round-trip time of the last echo reply of the remote; absent if there was none.",
        lambda remote: remote["rtt"],
    ),
    _of_remote(
        "pyvtep_remote_path_mtu_bytes",
        "Largest outer IP packet that is known to reach the remote; absent without a route.",
        lambda remote: remote["path_mtu"],
    ),
    _traffic(
        "pyvtep_remote_receive_frames_total",
        "Frames received from the remote; other sums all hosts of the VNI that are not configured, "
        "since the exporter began.",
        lambda traffic: traffic["rx_frames"],
    ),
    _traffic(
        "pyvtep_remote_receive_bytes_total",
        "Octets of frames received from the remote, without outer headers; other as in "
        "pyvtep_remote_receive_frames_total.",
        lambda traffic: traffic["rx_bytes"],
    ),
    _traffic(
        "pyvtep_remote_transmit_frames_total",
        "Frames sent to the remote; flooded frames count for each remote. other as in "
        "pyvtep_remote_receive_frames_total.",
        lambda traffic: traffic["tx_frames"],
    ),
    _traffic(
        "pyvtep_remote_transmit_bytes_total",
        "Octets of frames sent to the remote, without outer headers; other as in "
        "pyvtep_remote_receive_frames_total.",
        lambda traffic: traffic["tx_bytes"],
    ),
    _traffic(
        "pyvtep_remote_fdb_entries",
        "MAC addresses that are reached by the remote, or by the other hosts of the VNI.",
        lambda traffic: traffic["fdb_entries"],
    ),
    *EVPN_METRICS,
)
"""The metrics that are made from a status."""
