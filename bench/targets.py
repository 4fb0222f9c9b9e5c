"""Required figures: ratios to other figures of the same run, or limits."""

from attrs import frozen

from bench.results import Run, Spread

_MEMORY_LIMIT = 80.0


@frozen
class Target:
    """A figure of a subject, its baseline, and the ratio or limit that it must reach.

    Without `baseline`, the bound applies to the figure itself. With `at_most`, less is better.
    """

    name: str
    figure: tuple[str, str]
    bound: float
    baseline: tuple[str, str] | None = None
    at_most: bool = False

    def measure(self, run: Run) -> Spread | None:
        if self.baseline is None:
            return run.spread(*self.figure)
        return run.ratio(self.figure, self.baseline)

    def met(self, value: float) -> bool:
        return value <= self.bound if self.at_most else value >= self.bound

    def miss(self, value: float) -> float:
        """Return the relative distance by which a value misses the bound."""
        return abs(value - self.bound) / self.bound


def _own(metric: str, label: str, bound: float, baseline: str) -> Target:
    return Target(label, ("pyvtep", metric), bound, ("pyvtep", baseline))


TARGETS = (
    Target("TCP 1 flow / kernel, offloads on", ("pyvtep", "tcp1"), 0.55, ("kernel", "tcp1")),
    Target("TCP 1 flow / kernel, offloads off", ("pyvtep", "tcp1"), 1.6, ("kernel-off", "tcp1")),
    Target("TCP 1 flow / Open vSwitch", ("pyvtep", "tcp1"), 7, ("ovs", "tcp1")),
    _own("tcp_reverse", "TCP reverse / 1 flow", 0.9, "tcp1"),
    _own("tcp4", "TCP 4 flows / 1 flow", 0.9, "tcp1"),
    _own("tcp_both", "TCP both ways, sum / 1 flow", 1.0, "tcp1"),
    Target("TCP from kernel / kernel to kernel", ("from-kernel", "tcp1"), 0.9, ("kernel", "tcp1")),
    Target("TCP to kernel / kernel to kernel", ("to-kernel", "tcp1"), 0.3, ("kernel", "tcp1")),
    Target("UDP 64 B / Open vSwitch", ("pyvtep", "udp64"), 2, ("ovs", "udp64")),
    Target("UDP 1400 B / Open vSwitch", ("pyvtep", "udp1400"), 1.6, ("ovs", "udp1400")),
    _own("udp64_overload", "UDP 64 B, overload / < 1 % loss", 0.8, "udp64"),
    _own("udp1400_overload", "UDP 1400 B, overload / < 1 % loss", 0.8, "udp1400"),
    Target("RTT p50 / Open vSwitch", ("pyvtep", "rtt_p50"), 0.6, ("ovs", "rtt_p50"), at_most=True),
    Target("RTT p99 / Open vSwitch", ("pyvtep", "rtt_p99"), 0.6, ("ovs", "rtt_p99"), at_most=True),
    Target(
        "CPU per GB / Open vSwitch",
        ("pyvtep", "cpu_per_gb"),
        0.12,
        ("ovs", "cpu_per_gb"),
        at_most=True,
    ),
    Target("memory per process, MiB", ("pyvtep", "memory"), _MEMORY_LIMIT, at_most=True),
)
