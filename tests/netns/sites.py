"""Leaves of an EVPN fabric, with FRR or with pyvtep, and a host behind each."""

import re
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

from attrs import define

from tests.netns.fabric import (
    Fabric,
    Frr,
    GoBgp,
    GoBgpNeighbor,
    Neighbor,
    add_bridge,
    bgp_config,
    kernel_leaf,
)
from tests.netns.hosts import DEADLINE, Pyvtep, Start, ping, wait_until
from vtep.testing.lab import Host

VNI = 100
FLOOD = "00:00:00:00:00:00"


@define
class Site:
    """A leaf N at 192.0.2.N: its router, with the bridge of VNI 100, and a host on that.

    The host has the address 10.0.0.N, the bridge 10.0.0.10N.
    """

    number: int
    router: Host
    host: Host
    bridge: str

    @property
    def vtep(self) -> str:
        return f"192.0.2.{self.number}"

    @property
    def mac(self) -> str:
        return f"02:00:00:00:0a:{self.number:02x}"

    @property
    def ip(self) -> str:
        return f"10.0.0.{self.number}"

    @property
    def bridge_mac(self) -> str:
        return f"02:00:00:00:00:{self.number:02x}"

    @property
    def bridge_ip(self) -> str:
        return f"10.0.0.{100 + self.number}"

    def agrees(self, macs: dict[str, str], vteps: set[str], ips: dict[str, str]) -> bool:
        """Return whether all tables say the same.

        Args:
            macs: the VTEP of each remote MAC.
            vteps: those that get flooded frames.
            ips: the MAC of each remote IP address, without link-local ones.
        """
        raise NotImplementedError


@define
class FrrSite(Site):
    """A leaf with FRR and the kernel's VXLAN."""

    frr: Frr

    def agrees(self, macs: dict[str, str], vteps: set[str], ips: dict[str, str]) -> bool:
        """Compare `show evpn mac`, `show evpn arp-cache` and the flood list of FRR."""
        cache = {
            ip: (entry["mac"], entry["remoteVtep"])
            for ip, entry in self.frr.arp_cache(VNI).items()
            if entry["type"] == "remote" and not ip_address(ip).is_link_local
        }
        return (
            self.frr.remote_macs(VNI) == macs
            and self.frr.flood_vteps(VNI) == vteps
            and cache == {ip: (mac, macs[mac]) for ip, mac in ips.items()}
        )


@define
class OwnSite(Site):
    """A leaf with pyvtep."""

    pyvtep: Pyvtep

    def fdb(self, vni: int = VNI) -> dict[str, set[str]]:
        """Return the remote VTEPs of each MAC of the control plane."""
        with self.pyvtep.client() as client:
            return {
                entry["mac"]: {one["dst"] for one in entry["destinations"]}
                for entry in client.fdb.show(vni=vni, extern_learn=True)
            }

    def macs(self, vni: int = VNI) -> dict[str, str]:
        """Return the remote VTEP of each unicast MAC of the control plane."""
        return {mac: ",".join(dst) for mac, dst in self.fdb(vni).items() if mac != FLOOD}

    def neighbours(self) -> dict[str, str]:
        """Return the MAC of each neighbour of the control plane."""
        with self.pyvtep.client() as client:
            return {e["ip"]: e["mac"] for e in client.neigh.show() if e["extern_learn"]}

    def agrees(self, macs: dict[str, str], vteps: set[str], ips: dict[str, str]) -> bool:
        """Compare `fdb show` and `neigh show`."""
        found = self.neighbours().items()
        return (
            self.macs() == macs
            and self.fdb().get(FLOOD) == vteps
            and {ip: mac for ip, mac in found if not ip_address(ip).is_link_local} == ips
        )


def frr_site(fabric: Fabric, folder: Path, number: int, config: str) -> FrrSite:
    """Add a leaf with FRR."""
    router = fabric.router(f"leaf{number}", number)
    own = f"02:00:00:00:00:{number:02x}", f"10.0.0.{100 + number}/24"
    bridge = kernel_leaf(router, VNI, f"192.0.2.{number}", *own)
    return FrrSite(
        number, router, _host(fabric, router, bridge, number), bridge, Frr(router, folder, config)
    )


def own_site(
    fabric: Fabric, start: Start, number: int, *options: str, config: Path | None = None
) -> OwnSite:
    """Add a leaf with pyvtep: with options for VNI 100, or with a configuration for 100 and 200."""
    router = fabric.router(f"vtep{number}", number)
    add_bridge(router, "br0", f"02:00:00:00:00:{number:02x}", f"10.0.0.{100 + number}/24")
    host = _host(fabric, router, "br0", number)
    if config is not None:
        add_bridge(router, "br1")
        pyvtep = start(router, "--config", str(config))
    else:
        device = ("--vni", str(VNI), "--tap", "vx0", "--bridge", "br0", "--proxy")
        pyvtep = start(router, *device, *options)
    return OwnSite(number, router, host, "br0", pyvtep)


def _host(fabric: Fabric, router: Host, bridge: str, number: int) -> Host:
    mac = f"02:00:00:00:0a:{number:02x}"
    return fabric.host(router, bridge, f"host{number}", mac, f"10.0.0.{number}/24")


def speaks(asn: int, *neighbors: str) -> list[str]:
    """Build the options of EVPN."""
    return ["--asn", str(asn), *(word for one in neighbors for word in ("--evpn-neighbor", one))]


LEAF = ("advertise-all-vni", "advertise-svi-ip")


def join_mesh(fabric: Fabric, start: Start, folder: Path) -> list[Site]:
    """Build three leaves in AS 65000, each a neighbour of both others."""
    peers = [Neighbor(f"192.0.2.{number}", 65000) for number in (2, 3)]
    return [
        frr_site(fabric, folder, 1, bgp_config(65000, "192.0.2.1", peers, evpn_lines=LEAF)),
        own_site(fabric, start, 2, *speaks(65000, "192.0.2.1", "192.0.2.3")),
        own_site(fabric, start, 3, *speaks(65000, "192.0.2.1", "192.0.2.2")),
    ]


def ping_all(sites: Iterable[Site]) -> None:
    """Ping from each host to the host and to the bridge of each other site."""
    for one in sites:
        for other in sites:
            if one is not other:
                ping(one.host, other.ip)
                ping(one.host, other.bridge_ip)


def remote_macs(sites: Iterable[Site], here: Site) -> dict[str, str]:
    """Return the VTEP of each MAC of a host or bridge at other sites."""
    return {mac: s.vtep for s in sites if s is not here for mac in (s.mac, s.bridge_mac)}


class Injector:
    """A gobgpd at 192.0.2.9 that announces routes of VTEPs that do not exist, for VNI 100."""

    def __init__(self, fabric: Fabric, folder: Path, neighbor: str, asn: int = 65000) -> None:
        peers = [GoBgpNeighbor(neighbor, asn)]
        self.gobgp = GoBgp(fabric.router("injector", 9), folder, asn, "192.0.2.9", peers)
        self.gobgp.wait_established(neighbor)

    def multicast(self, verb: str, vtep: str, target: str = "65000:100") -> None:
        """Announce ("add") or withdraw ("del") a route of type 3."""
        pmsi = ("pmsi", "ingress-repl", str(VNI), vtep) if verb == "add" else ()
        self._send(verb, "multicast", vtep, *_of(vtep, target), *pmsi)

    def mac(
        self, verb: str, mac: str, ip: str | None = None, *, vtep: str, target: str = "65000:100"
    ) -> None:
        """Announce or withdraw a route of type 2, with or without an IP address."""
        head, *rest = _of(vtep, target)
        self._send(
            verb, "macadv", mac, ip or "0.0.0.0", head, rest[0], "label", str(VNI), *rest[1:]
        )

    def _send(self, verb: str, *words: str) -> None:
        self.gobgp.run("global", "rib", "-a", "evpn", verb, *words)


def _of(vtep: str, target: str) -> tuple[str, ...]:
    return ("etag", "0", "rd", f"{vtep}:{VNI}", "rt", target, "encap", "vxlan", "nexthop", vtep)


@contextmanager
def unbroken_pings(source: Site, sink: Site, folder: Path) -> Iterator[None]:
    """Ping a hundred times a second, and check that every request but the last ones is answered."""
    file = folder / "pings"
    with file.open("w") as output:
        process = source.host.start("ping", "-i", "0.01", sink.ip, stdout=output)
        wait_until(lambda: "icmp_seq" in file.read_text(), "a reply")
        yield
        process.send_signal(signal.SIGINT)
        process.wait(DEADLINE)
    answered = {int(number) for number in re.findall(r"icmp_seq=(\d+)", file.read_text())}
    assert answered == set(range(1, max(answered) + 1))
