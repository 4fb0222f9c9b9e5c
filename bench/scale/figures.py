"""The figures of scale, their labels and their bounds."""

from attrs import frozen


@frozen
class Figure:
    """The name, label and upper bound, if any, of a figure."""

    name: str
    label: str
    unit: str = ""
    digits: int = 2
    bound: float | None = None

    def verdict(self, value: float) -> str:
        """Compare a value with the bound."""
        if self.bound is None:
            return ""
        return "met" if value <= self.bound else f"missed by {value / self.bound - 1:.0%}"


def _stalls(name: str, label: str, bound: float | None) -> tuple[Figure, ...]:
    return (
        Figure(f"fdb_{name}_stall_usual", f"{label}: loop held up, 99.9 %", "ms CPU", 2, bound),
        Figure(f"fdb_{name}_stall", f"{label}: loop held up, longest", "ms CPU", 2, bound),
        Figure(f"fdb_{name}_stall_wall", f"{label}: the same, others' turns included", "ms", 1),
    )


FDB = (
    Figure("fdb_octets", "memory for each entry", "octets", 0, 300),
    Figure("fdb_new", "learn a new MAC", "us CPU", 2),
    Figure("fdb_new_ratio", "learn a new MAC / 1,000 entries", "x", 2, 2),
    Figure("fdb_leave", "a frame finds its remote", "us CPU", 2),
    Figure(
        "fdb_leave_ratio", "a frame finds its remote, 1,000 hosts talk / 1,000 entries", "x", 2, 2
    ),
    Figure("fdb_learn_ratio", "learn again, 1,000 hosts talk / 1,000 entries", "x", 2, 2),
    Figure("fdb_arrive", "a datagram is admitted and learned from", "us CPU", 2),
    Figure(
        "fdb_arrive_ratio", "admitted and learned from, 1,000 hosts talk / 1,000 entries", "x", 2, 2
    ),
    Figure("fdb_lookup_ratio", "dict alone, 1,000 hosts talk / 1,000 entries", "x", 2),
    Figure(
        "fdb_leave_random_ratio",
        "a frame finds its remote, any host in turn / 1,000 entries",
        "x",
        2,
        2,
    ),
    Figure("fdb_learn_random_ratio", "learn again, any host in turn / 1,000 entries", "x", 2, 2),
    Figure(
        "fdb_arrive_random_ratio",
        "admitted and learned from, any host in turn / 1,000 entries",
        "x",
        2,
        2,
    ),
    Figure("fdb_lookup_random_ratio", "dict alone, any host in turn / 1,000 entries", "x", 2),
    Figure("fdb_ageing_seconds", "all age at once", "s", 2),
    *_stalls("ageing", "ageing", 1),
    Figure("fdb_show_seconds", "pyvtep fdb show --json", "s", 1),
    *_stalls("show", "show", 5),
    Figure("fdb_flush_seconds", "pyvtep fdb flush", "s", 1),
    *_stalls("flush", "flush", 5),
    *_stalls("learn", "100 learned at once", None),
    *_stalls("idle", "nothing to do, to compare", None),
)

FLOOD = (
    Figure("flood_pyvtep_us", "a copy, by pyvtep from TAP to sink", "us CPU", 2, 10),
    Figure("flood_us", "a copy, sendmmsg", "us CPU", 2, 10),
    Figure("flood_single_us", "a copy, one send for each remote", "us CPU", 2),
    Figure("flood_ratio", "sendmmsg / one send for each remote", "x", 2, 1.1),
    Figure("flood_calls", "calls of sendmmsg for each broadcast", "", 1, 2),
)

VNIS = (
    Figure("vnis_start", "start", "s", 2, 10),
    Figure("vnis_start_cpu", "start", "s CPU", 2),
    Figure("vnis_idle", "idle", "% of a CPU", 2, 1),
    Figure("vnis_memory", "memory, most", "MiB", 0, 200),
    Figure("vnis_reload", "reload that changes one", "s", 2),
    Figure("vnis_reload_cpu", "reload that changes one", "s CPU", 2),
    Figure("vnis_stop", "end", "s", 2, 10),
)
