"""Thousands of EVPN routes between pyvtep and FRR at once, and the pings that cross meanwhile.

Used by `test_evpn_scale.py`, which asserts what arrives, and by `bench/evpn.py`, which also prints
how long it takes.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from ipaddress import IPv4Address
from itertools import pairwise
from pathlib import Path

from attrs import define, field, frozen

from bench.processes import cpu_seconds, resident_memory
from tests.netns.fabric import Fabric, Frr, Neighbor, add_bridge, bgp_config, kernel_leaf
from tests.netns.hosts import DEADLINE, Pyvtep, Start, kernel_vtep, ping
from vtep.control.evpn_schema import EvpnStatus
from vtep.testing.lab import Host

_INTERVAL_S = 0.01
"""Interval of the pings, in seconds."""

_UNANSWERED = 100
"""Requests at the end of a stream whose replies may be on their way, on a busy machine."""

_REPLY = re.compile(r"^\[(\d+\.\d+)\] .* icmp_seq=(\d+) .*time=([\d.]+) ms", re.MULTILINE)

DEADLINE_S = 4 * DEADLINE
"""Seconds for all routes to arrive."""

_POLL_S = 0.1
"""Interval of looks at the tables. A look costs FRR and the daemon time, too."""


@frozen
class Address:
    """A MAC of a host that is announced, with its IP address or without."""

    mac: str
    ip: str | None


def addresses(site: int, vni: int, count: int, *, with_ip: bool = True) -> list[Address]:
    """Return MACs of a site, each second one with an IP address."""
    found = []
    for at in range(count):
        mac = f"02:{site:02x}:{vni >> 8:02x}:{vni & 255:02x}:{at >> 8:02x}:{at & 255:02x}"
        ip = str(IPv4Address(f"10.{site}.0.0") + at) if with_ip and at % 2 else None
        found.append(Address(mac, ip))
    return found


@define
class Gaps:
    """Counts and gaps of the pings in one direction."""

    sent: int = 0
    lost: int = 0
    longest_ms: float = 0.0
    """The longest time from one reply to the next, less the interval of the requests, in ms."""

    rtt_ms: float = 0.0
    """The longest time from a request to its reply, in ms."""


class Pings:
    """A stream of pings every 10 ms from a host to another one."""

    def __init__(self, host: Host, destination: str) -> None:
        self._process = host.start(
            *("ping", "-n", "-D", "-i", str(_INTERVAL_S), "-W", "2", destination),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def stop(self) -> Gaps:
        """End the stream. Returns: what became of it."""
        time.sleep(0.3)  # The replies on their way, of a tunnel that is slow under load.
        self._process.send_signal(2)
        said, _ = self._process.communicate(timeout=DEADLINE)
        replies = [(float(at), int(seq), float(rtt)) for at, seq, rtt in _REPLY.findall(said)]
        found = re.search(r"(\d+) packets transmitted, (\d+) received", said)
        assert found, said
        sent, numbers = int(found[1]), {seq for _, seq, _ in replies}
        last = max(numbers, default=0)
        times = sorted(at for at, _, _ in replies)
        gaps = [after - before for before, after in pairwise(times)]
        return Gaps(
            sent=sent,
            # Replies to the last requests were on their way.
            lost=len(set(range(1, last + 1)) - numbers) + max(0, sent - last - _UNANSWERED),
            longest_ms=max((max(gaps, default=0.0) - _INTERVAL_S) * 1e3, 0.0),
            rtt_ms=max((rtt for _, _, rtt in replies), default=0.0),
        )


@define
class Storm:
    """Measurements while many routes came or went."""

    name: str
    seconds: dict[str, float] = field(factory=dict)
    """Seconds from the beginning until a table had all."""

    pings: dict[str, Gaps] = field(factory=dict)
    """By direction: "out" is from the host of pyvtep to that of FRR, "in" is from there, and
    "steady" is to a VTEP without BGP, "machine" to the own bridge, without pyvtep: gaps there are
    those of a busy machine."""

    daemon_cpu: float = 0.0
    speaker_cpu: float = 0.0
    daemon_mib: float = 0.0
    speaker_mib: float = 0.0

    @property
    def text(self) -> str:
        """One line with everything."""
        times = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.seconds.items())
        pings = ", ".join(
            f"{name} {each.sent} lost {each.lost} gap {each.longest_ms:.0f} ms"
            for name, each in self.pings.items()
        )
        return (
            f"{self.name}: {times}; pings: {pings}; "
            f"daemon {self.daemon_cpu:.2f} s {self.daemon_mib:.0f} MiB, "
            f"speaker {self.speaker_cpu:.2f} s {self.speaker_mib:.0f} MiB"
        )


class Watch:
    """Polls several tables, and notes when each has all."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.seconds: dict[str, float] = {}

    def until(self, conditions: Mapping[str, Callable[[], object]], deadline: float) -> None:
        """Wait for all conditions; note for each when it was first true."""
        left = dict(conditions)
        while left:
            for name in [name for name, holds in left.items() if holds()]:
                self.seconds[name] = time.monotonic() - self._began
                del left[name]
            waited = time.monotonic() - self._began
            assert not left or waited < deadline, f"waited {waited:.0f} s for {', '.join(left)}"
            time.sleep(_POLL_S)


class ScaleFabric:
    """pyvtep (192.0.2.1) and FRR (192.0.2.2) in AS 65000, with a bridge for each VNI.

    The first VNI has a host at each end: 10.0.0.1 and 10.0.0.2.
    """

    def __init__(
        self,
        fabric: Fabric,
        start: Start,
        folder: Path,
        *options: str,
        vnis: Iterable[int] = (100,),
        is_started: bool = True,
    ) -> None:
        self.vnis = list(vnis)
        self._folder = folder
        self._start = start
        self.router, self.leaf = fabric.router("vtep", 1), fabric.router("leaf", 2)
        for vni in self.vnis:
            add_bridge(self.router, f"br{vni}", None, f"10.0.{vni & 255}.101/24")
            kernel_leaf(self.leaf, vni, "192.0.2.2", None, f"10.0.{vni & 255}.102/24")
            for router in (self.router, self.leaf):
                # Entries of the storm are on a port of their own, which carries no frames.
                peer = ("peer", "name", f"end{vni}")
                router.run("ip", "link", "add", f"storm{vni}", "type", "veth", *peer)
                router.run("ip", "link", "set", f"end{vni}", "up")
                router.run("ip", "link", "set", f"storm{vni}", "master", f"br{vni}", "up")
        first = self.vnis[0]
        ips = [f"10.0.{first & 255}.{number}" for number in (1, 2)]
        macs = ("02:00:00:00:0a:01", "02:00:00:00:0a:02")
        self.host = fabric.host(self.router, f"br{first}", "near", macs[0], f"{ips[0]}/24")
        self.far = fabric.host(self.leaf, f"br{first}", "far", macs[1], f"{ips[1]}/24")
        self.ips = ips
        # A VTEP without BGP: pings to its host depend on nothing but the forwarding of pyvtep.
        self.steady = fabric.router("steady", 3)
        self.bridge_ip = f"10.0.{first & 255}.101"
        self.steady_ip = f"10.0.{first & 255}.3"
        kernel_vtep(self.steady, first, "192.0.2.3", "192.0.2.1", f"{self.steady_ip}/24")
        peers = [Neighbor("192.0.2.1", 65000)]
        self.frr = Frr(self.leaf, folder, bgp_config(65000, "192.0.2.2", peers))
        self._options = options
        if is_started:
            self.start()

    def start(self) -> None:
        """Start pyvtep, and wait until pings cross."""
        file = self._folder / "pyvtep.toml"
        lines = ["fast-path = false", "[evpn]", "asn = 65000", 'neighbor = ["192.0.2.2"]']
        for vni in self.vnis:
            lines += ["[[vni]]", f"id = {vni}", f'tap = "vx{vni}"', f'bridge = "br{vni}"']
            lines += ['local = "192.0.2.1"', "proxy = true", "evpn = true"]
            if vni == self.vnis[0]:
                lines.append('remote = "192.0.2.3"')
        file.write_text("\n".join([*lines, ""]))
        self.pyvtep: Pyvtep = self._start(self.router, "--config", str(file), *self._options)
        ping(self.host, self.ips[1])
        ping(self.far, self.ips[0])
        ping(self.host, self.steady_ip)

    # What there is.

    @property
    def evpn(self) -> EvpnStatus:
        """The state of EVPN at pyvtep."""
        with self.pyvtep.client() as client:
            evpn = client.status()["evpn"]
        assert evpn is not None
        return evpn

    @property
    def speaker_pid(self) -> int:
        """The process of the speaker."""
        pid = self.evpn["speaker"]["pid"]
        assert pid is not None
        return pid

    @property
    def daemon_pid(self) -> int:
        """The process of the daemon, which an upgrade changes."""
        with self.pyvtep.client() as client:
            return client.status()["pid"]

    def fdb_count(self, vni: int) -> int:
        """Return the number of FDB entries of pyvtep."""
        with self.pyvtep.client() as client:
            vnis = client.status()["segments"]
        return next(each["fdb_entries"] for each in vnis if each["vni"] == vni)

    def fdb(self, vni: int) -> set[str]:
        """Return the MACs that EVPN has put into the FDB of pyvtep, with FRR as their VTEP."""
        with self.pyvtep.client() as client:
            return {
                each["mac"]
                for each in client.fdb.show(vni=vni, extern_learn=True)
                if [one["dst"] for one in each["destinations"]] == ["192.0.2.2"]
            }

    def neighbours(self, vni: int) -> dict[str, str]:
        """Return the MAC of each neighbour that EVPN has given to pyvtep."""
        with self.pyvtep.client() as client:
            return {e["ip"]: e["mac"] for e in client.neigh.show(vni=vni) if e["extern_learn"]}

    def bridge_port(self, vni: int) -> set[str]:
        """Return the MACs that EVPN has put on the bridge port of the TAP."""
        lines = self.router.run("bridge", "fdb", "show", "dev", f"vx{vni}").splitlines()
        return {line.split()[0] for line in lines if "extern_learn" in line}

    def frr_fdb(self, vni: int) -> set[str]:
        """Return the MACs that FRR has put into the kernel's VXLAN device."""
        lines = self.leaf.run("bridge", "fdb", "show", "dev", f"vxlan{vni}").splitlines()
        return {line.split()[0] for line in lines if "dst 192.0.2.1" in line}

    # Storms.

    def add(self, router: Host, vni: int, entries: Iterable[Address]) -> None:
        """Add entries to the bridge of a router, as if its hosts had sent frames."""
        self._change(router, vni, entries, "add", "replace")

    def delete(self, router: Host, vni: int, entries: Iterable[Address]) -> None:
        """Delete entries from the bridge of a router."""
        self._change(router, vni, entries, "del", "del")

    def _change(
        self, router: Host, vni: int, entries: Iterable[Address], fdb: str, neigh: str
    ) -> None:
        macs, ips = [], []
        for each in entries:
            macs.append(f"fdb {fdb} {each.mac} dev storm{vni} master dynamic")
            if each.ip is not None:
                # Permanent ones are exempt from the limit of the machine's neighbour tables.
                what = "" if neigh == "del" else f" lladdr {each.mac} nud permanent"
                ips.append(f"neigh {neigh} {each.ip} dev br{vni}{what}")
        for command, lines in (("bridge", macs), ("ip", ips)):
            if lines:
                file = self._folder / f"{router.name}-{command}-{vni}"
                file.write_text("\n".join([*lines, ""]))
                router.run(command, "-batch", str(file))

    @contextmanager
    def measured(self, name: str) -> Iterator[tuple[Storm, Watch]]:
        """Ping in both directions during the block, and measure both processes."""
        pids = self.daemon_pid, self.speaker_pid
        before = [cpu_seconds([pid]) for pid in pids]
        storm = Storm(name)
        with ExitStack() as stack:
            streams = {
                "out": Pings(self.host, self.ips[1]),
                "in": Pings(self.far, self.ips[0]),
                "steady": Pings(self.host, self.steady_ip),
                "machine": Pings(self.host, self.bridge_ip),
            }
            stack.callback(
                lambda: storm.pings.update({name: each.stop() for name, each in streams.items()})
            )
            time.sleep(0.2)  # Without the storm, for the first pings.
            watch = Watch()
            yield storm, watch
            storm.seconds = watch.seconds
        now = self.daemon_pid, self.speaker_pid
        used = [cpu_seconds([pid]) for pid in now]
        # Of a new process, all of its time counts.
        used = [
            each - (first if pid == old else 0.0)
            for each, first, pid, old in zip(used, before, now, pids, strict=True)
        ]
        storm.daemon_cpu, storm.speaker_cpu = used
        storm.daemon_mib, storm.speaker_mib = (resident_memory(pid)[0] for pid in now)
        print(storm.text, flush=True)

    def near_has(self, vni: int, far: Iterable[Address]) -> dict[str, Callable[[], object]]:
        """Return conditions: pyvtep has the entries of FRR's side."""
        macs = {each.mac for each in far}
        ips = {each.ip: each.mac for each in far if each.ip is not None}
        return {
            "fdb": lambda: self.fdb_count(vni) >= len(macs) and self.fdb(vni) >= macs,
            "bridge port": lambda: self.bridge_port(vni) >= macs,
            "neighbours": lambda: self.neighbours(vni).items() >= ips.items(),
        }

    def near_lacks(self, vni: int, far: Iterable[Address]) -> dict[str, Callable[[], object]]:
        """Return conditions: pyvtep has none of these."""
        macs = {each.mac for each in far}
        ips = {each.ip for each in far if each.ip is not None}
        return {
            "fdb": lambda: not self.fdb(vni) & macs,
            "bridge port": lambda: not self.bridge_port(vni) & macs,
            "neighbours": lambda: not self.neighbours(vni).keys() & ips,
        }

    def far_has(self, vni: int, near: Iterable[Address]) -> dict[str, Callable[[], object]]:
        """Return conditions: FRR has the entries of pyvtep's side."""
        macs = {each.mac for each in near}
        ips = {each.ip: each.mac for each in near if each.ip is not None}

        def cache() -> bool:
            found = self.frr.arp_cache(vni)
            return {
                ip: entry["mac"] for ip, entry in found.items() if entry["type"] == "remote"
            }.items() >= ips.items()

        return {
            "FRR kernel": lambda: self.frr_fdb(vni) >= macs,
            "FRR mac": lambda: self.frr.remote_macs(vni).keys() >= macs,
            "FRR arp-cache": cache,
        }

    def far_lacks(self, vni: int, near: Iterable[Address]) -> dict[str, Callable[[], object]]:
        """Return conditions: FRR has none of these."""
        macs = {each.mac for each in near}
        return {"FRR mac": lambda: not self.frr.remote_macs(vni).keys() & macs}

    def near_has_all(self, count: int) -> dict[str, Callable[[], object]]:
        """Return conditions: pyvtep has `count` entries of FRR in each VNI."""
        return _join(self.near_has(vni, addresses(2, vni, count)) for vni in self.vnis)

    def near_lacks_all(self, count: int) -> dict[str, Callable[[], object]]:
        """Return conditions: pyvtep has none of these."""
        return _join(self.near_lacks(vni, addresses(2, vni, count)) for vni in self.vnis)

    def far_has_all(self, count: int) -> dict[str, Callable[[], object]]:
        """Return conditions: FRR has `count` entries of pyvtep in each VNI."""
        return _join(self.far_has(vni, addresses(1, vni, count)) for vni in self.vnis)

    def both_lack_all(self, count: int) -> dict[str, Callable[[], object]]:
        """Return conditions: neither has entries of the other one."""
        far = _join(self.far_lacks(vni, addresses(1, vni, count)) for vni in self.vnis)
        return self.near_lacks_all(count) | far

    def is_complete(self, former: int) -> bool:
        """Return whether a speaker other than the former one has all routes of FRR."""
        evpn = self.evpn
        is_other = evpn["speaker"]["pid"] not in (None, former)
        return is_other and any(each["end_of_rib"] for each in evpn["sessions"])


def _join(
    conditions: Iterable[Mapping[str, Callable[[], object]]],
) -> dict[str, Callable[[], object]]:
    """Combine conditions of the same names: each holds once all of a name have held."""
    by_name: dict[str, list[Callable[[], object]]] = {}
    for each in conditions:
        for name, condition in each.items():
            by_name.setdefault(name, []).append(condition)

    def all_have_held(left: list[Callable[[], object]]) -> bool:
        while left and left[-1]():
            left.pop()
        return not left

    return {name: partial(all_have_held, left) for name, left in by_name.items()}


def far_appear(scale: ScaleFabric, count: int) -> Storm:
    """Add MACs behind FRR."""
    with scale.measured("MACs appear behind FRR") as (storm, watch):
        for vni in scale.vnis:
            scale.add(scale.leaf, vni, addresses(2, vni, count))
        watch.until(scale.near_has_all(count), DEADLINE_S)
    return storm


def near_appear(scale: ScaleFabric, count: int) -> Storm:
    """Add MACs to the bridge of pyvtep."""
    with scale.measured("MACs appear behind pyvtep") as (storm, watch):
        for vni in scale.vnis:
            scale.add(scale.router, vni, addresses(1, vni, count))
        watch.until(scale.far_has_all(count), DEADLINE_S)
    return storm


def both_disappear(scale: ScaleFabric, count: int) -> Storm:
    """Delete all MACs at both ends."""
    with scale.measured("all disappear") as (storm, watch):
        for vni in scale.vnis:
            scale.delete(scale.leaf, vni, addresses(2, vni, count))
            scale.delete(scale.router, vni, addresses(1, vni, count))
        watch.until(scale.both_lack_all(count), DEADLINE_S)
    return storm


def both_appear(scale: ScaleFabric, count: int) -> Storm:
    """Add MACs at both ends."""
    with scale.measured("MACs appear behind both") as (storm, watch):
        for vni in scale.vnis:
            scale.add(scale.leaf, vni, addresses(2, vni, count))
            scale.add(scale.router, vni, addresses(1, vni, count))
        watch.until(scale.near_has_all(count) | scale.far_has_all(count), DEADLINE_S)
    return storm


def bgpd_killed(scale: ScaleFabric, count: int) -> Storm:
    """Kill bgpd: its routes are withdrawn."""
    with scale.measured("bgpd is killed") as (storm, watch):
        scale.frr.signal("KILL")
        watch.until(scale.near_lacks_all(count), DEADLINE_S)
    return storm


def bgpd_returns(scale: ScaleFabric, count: int) -> Storm:
    """Start bgpd: the session comes up with all routes in both directions."""
    with scale.measured("bgpd returns") as (storm, watch):
        scale.frr.start_bgpd()
        watch.until(scale.near_has_all(count) | scale.far_has_all(count), DEADLINE_S)
    return storm


def speaker_killed(scale: ScaleFabric, count: int) -> Storm:
    """Kill the speaker: all entries stay, and another one announces everything again."""
    before = scale.speaker_pid
    fewest = [scale.fdb_count(scale.vnis[0])]
    with scale.measured("the speaker is killed") as (storm, watch):
        os.kill(before, signal.SIGKILL)

        def is_confirmed() -> bool:
            fewest.append(scale.fdb_count(scale.vnis[0]))
            return scale.is_complete(before)

        watch.until({"end of RIB": is_confirmed} | scale.far_has_all(count), DEADLINE_S)
        watch.until(scale.near_has_all(count), DEADLINE_S)
    assert min(fewest) == fewest[0], f"{fewest[0]} entries became {min(fewest)}"
    return storm


def upgraded(scale: ScaleFabric, count: int) -> Storm:
    """Upgrade the daemon: the session stays, and so do all entries."""
    speaker = scale.speaker_pid
    with scale.measured("the daemon is upgraded") as (storm, watch):
        scale.pyvtep.run("upgrade")
        watch.until({"upgrade": lambda: scale.speaker_pid == speaker}, DEADLINE_S)
        watch.until(scale.near_has_all(count) | scale.far_has_all(count), DEADLINE_S)
    return storm
