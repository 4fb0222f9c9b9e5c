"""Required figures: ratios to other figures of the same mode and round, or limits."""

from attrs import frozen

from bench.results import Run, Spread

_FAST, _SLOW, _KERNEL, _OVS = "pyvtep-fast", "pyvtep-slow", "kernel", "ovs"

_RTT_P50 = 270.0
"""Largest median of an idle round trip, in microseconds, from before there was a fast path."""


@frozen
class Target:
    """A figure of a subject in a mode, its baseline, and the ratio or limit that it must reach.

    Without `baseline`, the bound applies to the figure itself. With `at_most`, less is better.
    """

    name: str
    mode: str
    figure: tuple[str, str]
    bound: float
    baseline: tuple[str, str] | None = None
    at_most: bool = False

    def measure(self, run: Run) -> Spread | None:
        if self.baseline is None:
            return run.spread(self.mode, *self.figure)
        return run.ratio(self.mode, self.figure, self.baseline)

    def met(self, value: float) -> bool:
        return value <= self.bound if self.at_most else value >= self.bound

    def miss(self, value: float) -> float:
        """Return the relative distance by which a value misses the bound."""
        return abs(value - self.bound) / self.bound


def _of(mode: str, name: str, subject: str, metric: str, bound: float, baseline: str) -> Target:
    """Return a target for the ratio to the same metric of another subject."""
    return Target(name, mode, (subject, metric), bound, (baseline, metric))


def _most(
    mode: str, name: str, subject: str, metric: str, bound: float, baseline: str | None = None
) -> Target:
    """Return a target for a figure of which less is better."""
    under = None if baseline is None else (baseline, metric)
    return Target(name, mode, (subject, metric), bound, under, at_most=True)


TARGETS = (
    _of("nic", "TCP 1 flow, fast path / kernel", _FAST, "tcp1", 0.55, _KERNEL),
    _of("nic", "TCP 1 flow, no fast path / kernel", _SLOW, "tcp1", 0.35, _KERNEL),
    _of("nogro", "TCP 1 flow, fast path / kernel", _FAST, "tcp1", 0.45, _KERNEL),
    _of("nogro", "TCP 1 flow, no fast path / kernel", _SLOW, "tcp1", 0.18, _KERNEL),
    _of("veth", "TCP 1 flow, fast path / kernel", _FAST, "tcp1", 0.38, _KERNEL),
    _of("veth", "TCP 1 flow, fast path / no fast path", _FAST, "tcp1", 1.0, _SLOW),
    _of("veth", "TCP 1 flow, no fast path / kernel", _SLOW, "tcp1", 0.24, _KERNEL),
    *(
        Target(f"TCP {what} / 1 flow, {path}", mode, (subject, metric), bound, (subject, "tcp1"))
        for mode in ("nic", "nogro", "veth")
        for what, metric in (("4 flows", "tcp4"), ("both ways", "tcp_both"))
        for path, subject, bound in (("fast path", _FAST, 0.95), ("no fast path", _SLOW, 0.9))
    ),
    Target("UDP 64 B, fast path, kpackets/s", "nic", (_FAST, "udp64"), 300),
    Target("UDP 64 B, 64 flows, fast path, kpackets/s", "nic", (_FAST, "udp64x64"), 200),
    _of("nic", "UDP 64 B, fast path / kernel", _FAST, "udp64", 0.8, _KERNEL),
    _of("nic", "UDP 64 B, 64 flows, fast path / kernel", _FAST, "udp64x64", 0.8, _KERNEL),
    Target("UDP 64 B, no fast path, kpackets/s", "nic", (_SLOW, "udp64"), 190),
    Target("UDP 64 B, 64 flows, no fast path, kpackets/s", "nic", (_SLOW, "udp64x64"), 80),
    # The slow path stands for the program without a fast path, measured in the same round.
    _most("nic", "RTT p50, fast path / no fast path", _FAST, "rtt_p50", 0.45, _SLOW),
    _most("nic", "RTT p99 beside TCP, fast / no fast path", _FAST, "rtt_load_p99", 0.5, _SLOW),
    _most("nic", "RTT p50, no fast path, µs", _SLOW, "rtt_p50", _RTT_P50),
    _most("nic", "CPU, fast path, s/GB", _FAST, "cpu_per_gb", 2.2),
    _most("nic", "CPU, no fast path, s/GB", _SLOW, "cpu_per_gb", 4.0),
    _most("nic", "memory per process, fast path, MiB", _FAST, "memory", 160),
    _most("nic", "memory per process, no fast path, MiB", _SLOW, "memory", 80),
    # With the exporter, top and the web page attached.
    *(
        Target(
            f"{what}, observed / alone",
            "nic",
            ("observed", f"observed_{metric}"),
            0.97,
            ("observed", f"observed_{metric}_alone"),
        )
        for what, metric in (("TCP 1 flow", "tcp1"), ("UDP 64 B", "udp64"))
    ),
    # Beside the other tunnel in user space that forwards Ethernet by VXLAN.
    _of("nic", "TCP 1 flow, no fast path / Open vSwitch", _SLOW, "tcp1", 3, _OVS),
    _of("veth", "TCP 1 flow, no fast path / Open vSwitch", _SLOW, "tcp1", 7, _OVS),
    _of("nic", "UDP 64 B, no fast path / Open vSwitch", _SLOW, "udp64", 2, _OVS),
    _of("nic", "UDP 1400 B, no fast path / Open vSwitch", _SLOW, "udp1400", 1.6, _OVS),
)
