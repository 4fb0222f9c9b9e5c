"""The workloads, and the metrics that they measure.

Each workload returns figures by the name of their metric, and remarks that qualify them.
"""

import json
import math
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from attrs import frozen

from bench.observers import attached
from bench.processes import (
    cpu_seconds,
    device_counters,
    listens,
    machine_cpu_seconds,
    resident_memory,
    wait_until,
)
from bench.subjects import ROOT, Tunnel
from bench.underlay import CABLE, CABLE_MTU
from vtep.errors import VtepError

_IPERF_PORT = 5201
_TIMEOUT_S = 15.0
"""Seconds that a program may overrun its given duration."""

LOSS_LIMIT = 0.01
_WORTH_A_SECOND_TRY = 0.05
"""Loss ratio above which a probe is not repeated: the loss is no accident."""

_SENDER_TIRED = 0.95
"""Part of the requested rate below which the sender itself is the limit."""

_UDP_LARGE, _UDP_SMALL = 1400, 64
_FLOWS = 64
_IP_AND_UDP = 28
_ETHERNET = 14

_FLOW_MIN = 10e6 / 8
"""Octets a second below which a TCP flow does not count as a load."""

_FIRST_STEP, _STEP_GROWTH, _STEP_MAX = 1.2, 1.6, 2.0
"""Factor between the first two rates of a search, its growth as an exponent, and its maximum."""

_DATAGRAMS_PORT = 5202
_STRAGGLERS = 0.2
"""Seconds for datagrams in queues to arrive after the sender has ended."""


@frozen
class Metric:
    """A figure: its name in files, label and unit."""

    name: str
    label: str
    unit: str
    digits: int = 2


METRICS = {
    metric.name: metric
    for metric in (
        Metric("tcp1", "TCP, 1 flow", "Gbit/s"),
        Metric("tcp4", "TCP, 4 flows", "Gbit/s"),
        Metric("tcp_reverse", "TCP, reverse", "Gbit/s"),
        Metric("tcp_both", "TCP, both ways (sum)", "Gbit/s"),
        Metric("udp1400", "UDP 1400 B, < 1 % loss", "Mbit/s", 0),
        Metric("udp1400_overload", "UDP 1400 B, overload", "Mbit/s", 0),
        Metric("udp64", "UDP 64 B, < 1 % loss", "kpackets/s", 1),
        Metric("udp64_overload", "UDP 64 B, overload", "kpackets/s", 1),
        Metric("udp64x64", "UDP 64 B, 64 flows, < 1 % loss", "kpackets/s", 1),
        Metric("udp64x64_overload", "UDP 64 B, 64 flows, overload", "kpackets/s", 1),
        Metric("observed_tcp1_alone", "TCP, 1 flow, alone", "Gbit/s"),
        Metric("observed_tcp1", "TCP, 1 flow, observed", "Gbit/s"),
        Metric("observed_udp64_alone", "UDP 64 B, overload, alone", "kpackets/s", 1),
        Metric("observed_udp64", "UDP 64 B, overload, observed", "kpackets/s", 1),
        Metric("observed_cpu", "CPU, observers", "% of a CPU", 1),
        Metric("rtt_p50", "RTT p50", "µs", 0),
        Metric("rtt_p99", "RTT p99", "µs", 0),
        Metric("rtt_load_p50", "RTT p50 beside a TCP flow", "µs", 0),
        Metric("rtt_load_p99", "RTT p99 beside a TCP flow", "µs", 0),
        Metric("cpu_per_gb", "CPU, tunnel", "s/GB"),
        Metric("machine_cpu_per_gb", "CPU, machine", "s/GB"),
        Metric("memory", "memory", "MiB", 1),
        Metric("memory_peak", "peak memory", "MiB", 1),
    )
}


@frozen
class Effort:
    """The durations of a run."""

    tcp_seconds: int
    probe_seconds: float
    probes: int
    tolerance: float
    """The search for a UDP rate ends when the lowest bad one is this much above the best good."""
    overload_seconds: float
    pings: int
    ping_interval: float = 0.002

    def __str__(self) -> str:
        return (
            f"TCP {self.tcp_seconds} s, UDP {self.probes} probes of {self.probe_seconds:g} s or "
            f"until {self.tolerance:.0%} are left, overload {self.overload_seconds:g} s, "
            f"{self.pings} pings every {self.ping_interval * 1000:g} ms"
        )


FULL = Effort(3, 0.6, 7, 0.08, 1.0, 1000)
QUICK = Effort(1, 0.3, 4, 0.25, 0.5, 250)


@frozen
class Setting:
    """Parameters of all workloads."""

    effort: Effort
    cpus: tuple[int, ...]
    congestion: str = "cubic"
    """Congestion control of TCP: by default that of Linux, not of this machine."""


@frozen
class Outcome:
    """Figures by metric, and remarks that qualify them.

    A remark says the same thing in the same words each time: it is counted over the rounds.
    """

    figures: dict[str, float]
    remarks: tuple[str, ...] = ()


Workload = Callable[[Tunnel, Setting], Outcome]


# --- TCP ------------------------------------------------------------------------------------


def tcp1(tunnel: Tunnel, setting: Setting) -> Outcome:
    """Measure one TCP flow and its CPU cost.

    Raises: VtepError if packets above the MTU crossed an underlay that is to segment.
    """
    pids = tunnel.pids()
    octets, packets = device_counters(tunnel.left.host, CABLE)
    own, machine = cpu_seconds(pids), machine_cpu_seconds(setting.cpus)
    end = _tcp(tunnel, setting)
    own, machine = cpu_seconds(pids) - own, machine_cpu_seconds(setting.cpus) - machine
    octets, packets = (
        now - before
        for now, before in zip(
            device_counters(tunnel.left.host, CABLE), (octets, packets), strict=True
        )
    )
    # A superframe is one packet for the counters of a veth.
    mean = octets / max(1, packets)
    if tunnel.underlay.segmented and mean > CABLE_MTU + _ETHERNET:
        raise VtepError(
            f"superframes cross the underlay {tunnel.underlay.name!r}: {mean:.0f} octets a packet"
        )
    gigabytes = end["sum_received"]["bytes"] / 1e9
    figures = {"tcp1": _gigabits(end), "machine_cpu_per_gb": machine / gigabytes}
    if pids:
        figures["cpu_per_gb"] = own / gigabytes
    return Outcome(figures)


def tcp4(tunnel: Tunnel, setting: Setting) -> Outcome:
    """Measure four TCP flows."""
    return Outcome({"tcp4": _gigabits(_tcp(tunnel, setting, "--parallel", "4"))})


def tcp_reverse(tunnel: Tunnel, setting: Setting) -> Outcome:
    """Measure one TCP flow from right to left."""
    return Outcome({"tcp_reverse": _gigabits(_tcp(tunnel, setting, "--reverse"))})


def tcp_both(tunnel: Tunnel, setting: Setting) -> Outcome:
    """Measure the sum of two simultaneous TCP flows in opposite directions."""
    end = _tcp(tunnel, setting, "--bidir")
    return Outcome({"tcp_both": _gigabits(end) + _gigabits(end, "_bidir_reverse")})


def _tcp(tunnel: Tunnel, setting: Setting, *options: str) -> dict[str, Any]:
    seconds = setting.effort.tcp_seconds
    settings = ("--time", str(seconds), "--congestion", setting.congestion)
    return iperf(tunnel, seconds, *settings, *options)


def _gigabits(end: dict[str, Any], way: str = "") -> float:
    return float(end[f"sum_received{way}"]["bits_per_second"]) / 1e9


# --- UDP ------------------------------------------------------------------------------------


@frozen
class Probe:
    """A stream of datagrams of one size at one rate, in packets per second; 0 is unpaced.

    `good` considers all datagrams sent, whenever they arrived. `delivered` is a rate over the time
    from the first to the last arrival, so that a long queue does not raise the figure.
    """

    asked: float
    sent: float
    delivered: float
    loss: float

    @property
    def good(self) -> bool:
        return self.loss < LOSS_LIMIT

    @property
    def sender_limited(self) -> bool:
        return self.sent < _SENDER_TIRED * self.asked


def udp1400(tunnel: Tunnel, setting: Setting) -> Outcome:
    """Measure datagrams of the usual size of 1400 octets."""
    size = min(_UDP_LARGE, tunnel.mtu - _IP_AND_UDP)
    outcome = _udp(tunnel, setting, "udp1400", size, size * 8 / 1e6)
    if size == _UDP_LARGE:
        return outcome
    remark = f"udp1400: datagrams of {size} B, which is all that its MTU allows"
    return Outcome(outcome.figures, (*outcome.remarks, remark))


def udp64(tunnel: Tunnel, setting: Setting) -> Outcome:
    """Measure datagrams of 64 octets, each of which costs as much as a large one."""
    return _udp(tunnel, setting, "udp64", _UDP_SMALL, 1e-3)


def udp64x64(tunnel: Tunnel, setting: Setting) -> Outcome:
    """Measure 64 flows of them, one datagram each in turn, so that no two can be handled as one."""
    return _udp(tunnel, setting, "udp64x64", _UDP_SMALL, 1e-3, _FLOWS)


def _udp(
    tunnel: Tunnel, setting: Setting, metric: str, size: int, scale: float, flows: int = 1
) -> Outcome:
    effort = setting.effort
    overload = probe(tunnel, size, 0, effort.overload_seconds, flows)

    def at(rate: float) -> Probe:
        return probe(tunnel, size, rate, effort.probe_seconds, flows)

    best, remarks = overload.delivered, []
    if overload.good:  # The sender is slower than the tunnel: no search.
        tired = True
    else:
        best, probes, converged = search(at, best, effort.probes, effort.tolerance)
        tired = probes[-1].good and probes[-1].sender_limited
        if not converged:
            remarks.append(f"{metric}: the search ran out of probes; this is the best rate found")
    if tired:
        remarks.append(f"{metric}: the sender was the limit; the tunnel may carry more")
    figures = {metric: best * scale, f"{metric}_overload": overload.delivered * scale}
    return Outcome(figures, tuple(remarks))


def search(
    at: Callable[[float], Probe], start: float, limit: int, tolerance: float
) -> tuple[float, list[Probe], bool]:
    """Search for the highest rate that arrives with less than 1 % loss, in packets per second.

    The search widens from `start` until a good and a bad rate are known, and then bisects. Returns:
    the rate delivered at the best good rate, the probes, and whether the search ended within
    `limit` probes, with good and bad close together or the sender at its limit.
    """
    probes: list[Probe] = []
    best, good, bad = 0.0, 0.0, math.inf
    rate = max(start, 100.0)
    # `start` is the rate that survives an overload, mostly just below the result.
    step = _FIRST_STEP
    while len(probes) < limit:
        one = at(rate)
        probes.append(one)
        # On a busy machine a short pause causes a small loss: repeat the probe.
        if not one.good and one.loss < _WORTH_A_SECOND_TRY and len(probes) < limit:
            one = at(rate)
            probes.append(one)
        if one.good:
            good, best = rate, max(best, one.delivered)
            if one.sender_limited:
                return best, probes, True
        else:
            bad = rate
        if good and bad / good <= 1 + tolerance:
            return best, probes, True
        if good and bad < math.inf:
            rate = math.sqrt(good * bad)
        else:
            rate = rate * step if good else rate / step
            step = min(step**_STEP_GROWTH, _STEP_MAX)
    return best, probes, False


def probe(tunnel: Tunnel, size: int, rate: float, seconds: float, flows: int) -> Probe:
    """Send datagrams with `size` octets of payload for some seconds and count the arrivals."""
    source, sink = tunnel.left, tunnel.right
    program = (sys.executable, "-m", "bench.datagrams")
    address = (sink.side.overlay, str(_DATAGRAMS_PORT))
    with sink.host.start(
        *(*program, "receive", *address),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as receiver:
        try:
            if receiver.stdout is None or receiver.stdout.readline() != "ready\n":
                raise VtepError("the receiver of datagrams did not start")
            with source.host.start(
                *(*program, "send", *address, *map(str, (size, rate, seconds, flows))),
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            ) as sender:
                sender_output, _ = sender.communicate(timeout=seconds + _TIMEOUT_S)
            time.sleep(_STRAGGLERS)
            receiver_output, _ = receiver.communicate(timeout=_TIMEOUT_S)
        finally:
            receiver.kill()
    try:
        sent, received = json.loads(sender_output), json.loads(receiver_output)
    except json.JSONDecodeError as error:
        raise VtepError("the sender or the receiver of datagrams has failed") from error
    return Probe(
        asked=rate,
        sent=sent["datagrams"] / sent["seconds"],
        delivered=received["datagrams"] / max(received["seconds"], 1e-9),
        loss=max(0.0, 1 - received["datagrams"] / max(1, sent["datagrams"])),
    )


# --- observers ------------------------------------------------------------------------------


def observed(tunnel: Tunnel, setting: Setting) -> Outcome:
    """Measure with and without observers at both ends: the exporter, top and the web page.

    Both are measured in one tunnel, in the order ABBA, so that a drift of the machine cancels out.
    """
    figures: dict[str, list[float]] = {}

    def measure(how: str = "") -> None:
        figures.setdefault(f"observed_tcp1{how}", []).append(_gigabits(_tcp(tunnel, setting)))
        seconds = float(setting.effort.tcp_seconds)
        rate = probe(tunnel, _UDP_SMALL, 0, seconds, 1).delivered / 1e3
        figures.setdefault(f"observed_udp64{how}", []).append(rate)

    measure("_alone")
    with attached(tunnel.left.host, tunnel.right.host) as observers:
        began, before = time.monotonic(), observers.cpu_seconds()
        measure()
        measure()
        cpu = (observers.cpu_seconds() - before) / (time.monotonic() - began)
    measure("_alone")
    means = {name: statistics.fmean(values) for name, values in figures.items()}
    return Outcome({**means, "observed_cpu": cpu * 100})


# --- round trips, memory --------------------------------------------------------------------


def rtt(tunnel: Tunnel, setting: Setting) -> Outcome:
    """Measure the round-trip time of a ping on an idle tunnel."""
    return _round_trips(tunnel, setting, "rtt")


def rtt_load(tunnel: Tunnel, setting: Setting) -> Outcome:
    """Measure the round-trip time of a ping beside one TCP flow in the same direction."""
    with _endless_flow(tunnel, setting):
        return _round_trips(tunnel, setting, "rtt_load")


def _round_trips(tunnel: Tunnel, setting: Setting, metric: str) -> Outcome:
    effort = setting.effort
    sender_output = tunnel.left.host.run(
        *("ping", "-i", str(effort.ping_interval), "-c", str(effort.pings), "-W", "1"),
        tunnel.left.side.peer_overlay,
        check=False,
        timeout=effort.pings * max(0.02, effort.ping_interval) + _TIMEOUT_S,
    )
    times = [float(found) * 1000 for found in re.findall(r"time=([\d.]+) ms", sender_output)]
    if len(times) < 2:
        raise VtepError("no answers to ping")
    percentiles = statistics.quantiles(times, n=100, method="inclusive")
    # A lost ping has no time: beyond 1 %, the percentile is one of the lucky ones.
    lossy = len(times) < effort.pings * (1 - LOSS_LIMIT)
    return Outcome(
        {f"{metric}_p50": percentiles[49], f"{metric}_p99": percentiles[98]},
        (f"{metric}: more than 1 % of the pings had no answer",) if lossy else (),
    )


def memory(tunnel: Tunnel, _setting: Setting) -> Outcome:
    """Measure the resident memory of any process of the tunnel, after the workloads and at most.

    While compiled code is loaded, a process needs more for a moment.
    """
    resident = [resident_memory(pid) for pid in tunnel.pids()]
    if not resident:
        return Outcome({})
    now, peak = (max(figures) for figures in zip(*resident, strict=True))
    return Outcome({"memory": now, "memory_peak": peak})


# --- iperf3 ---------------------------------------------------------------------------------


def iperf(tunnel: Tunnel, seconds: float, *options: str) -> dict[str, Any]:
    """Run iperf3 from left to right. Returns: its JSON report.

    It is tried twice, since its control connection shares the tunnel with its traffic. Raises:
    VtepError with the error of iperf3.
    """
    try:
        return _iperf(tunnel, seconds, *options)
    except VtepError:
        tunnel.check()
        return _iperf(tunnel, seconds, *options)


def _iperf(tunnel: Tunnel, seconds: float, *options: str) -> dict[str, Any]:
    with _iperf_server(tunnel) as server:
        try:
            sender_output = tunnel.left.host.run(
                *_iperf_client(tunnel, *options), timeout=seconds + _TIMEOUT_S
            )
            server.wait(_TIMEOUT_S)
            client = json.loads(sender_output)
        except subprocess.TimeoutExpired as error:
            raise VtepError(f"iperf3 had not ended after {error.timeout:g} s") from error
        except json.JSONDecodeError as error:
            raise VtepError("iperf3 gave no report") from error
    if "error" in client:
        raise VtepError(f"iperf3: {client['error']}")
    end: dict[str, Any] = client["end"]
    return end


@contextmanager
def _endless_flow(tunnel: Tunnel, setting: Setting) -> Iterator[None]:
    """Keep one TCP flow running within the block. Raises: VtepError if it was not a load."""
    source = tunnel.left.host
    command = _iperf_client(tunnel, "--time", "0", "--congestion", setting.congestion)

    def sent() -> int:
        return device_counters(source, CABLE)[0]

    with _iperf_server(tunnel):
        client = source.start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            before = sent()
            # The connection is up, and slow start is over.
            wait_until(lambda: sent() - before > _FLOW_MIN, "a TCP flow")
            began, before = time.monotonic(), sent()
            yield
            rate = (sent() - before) / (time.monotonic() - began)
            if client.poll() is not None or rate < _FLOW_MIN:
                raise VtepError(f"the TCP flow carried only {rate * 8 / 1e6:.1f} Mbit/s")
        finally:
            client.kill()
            client.wait()


def _iperf_client(tunnel: Tunnel, *options: str) -> tuple[str, ...]:
    address = tunnel.right.side.overlay
    return ("iperf3", "--client", address, "--port", str(_IPERF_PORT), "--json", *options)


@contextmanager
def _iperf_server(tunnel: Tunnel) -> Iterator["subprocess.Popen[Any]"]:
    """Run a server for one test on the right."""
    sink = tunnel.right
    server = sink.host.start(
        *("iperf3", "--server", "--one-off"),
        *("--bind", sink.side.overlay, "--port", str(_IPERF_PORT)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: listens(sink.host, _IPERF_PORT), "iperf3's server")
        yield server
    finally:
        server.kill()
        server.wait()


WORKLOADS: dict[str, Workload] = {
    "tcp1": tcp1,
    "tcp4": tcp4,
    "tcp-reverse": tcp_reverse,
    "tcp-both": tcp_both,
    "rtt": rtt,
    "rtt-load": rtt_load,
    "udp1400": udp1400,
    "udp64": udp64,
    "udp64x64": udp64x64,
    "observed": observed,
}
"""In order; the most disturbing is last, and `memory` follows them all."""
