"""Hosts that move between leaves of FRR and of pyvtep, while others talk to them."""

import json
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from tests.netns.fabric import Fabric
from tests.netns.hosts import Start, packet_socket, ping, wait_until
from tests.netns.sites import VNI, FrrSite, OwnSite, Site, join_mesh, ping_all
from tests.netns.test_evpn_moves import is_at, place, two_vnis
from vtep.testing.lab import Host

MAC, IP, IP6 = "02:00:00:00:0c:01", "10.0.0.77", "fd00::77"


class Rover:
    """A host with one MAC and one address that is at one leaf at a time, as a virtual machine is.

    Each leaf has a port for it that stays up, so no leaf is told by a carrier that it has left.
    """

    def __init__(self, fabric: Fabric, sites: Iterable[Site]) -> None:
        self.homes: dict[str, Host] = {}
        for site in sites:
            host = fabric.host(site.router, site.bridge, f"rover{site.number}", MAC)
            # Nothing is sent there until the rover arrives.
            host.run("sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1")
            site.router.run("bridge", "fdb", "del", MAC, "dev", host.name, "master", check=False)
            self.homes[site.vtep] = host
        self._at: Host | None = None

    @property
    def host(self) -> Host:
        """The host where it is."""
        assert self._at is not None
        return self._at

    def move(self, site: Site) -> None:
        """Leave the present leaf, arrive at another one, and announce the address there."""
        if self._at is not None:
            self._at.run("ip", "addr", "flush", "dev", "eth0")
            self._at.run("sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1")
        self._at = self.homes[site.vtep]
        self._at.run("sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=0")
        self._at.run("ip", "addr", "add", f"{IP}/24", "dev", "eth0")
        self._at.run("ip", "addr", "add", f"{IP6}/64", "dev", "eth0", "nodad")
        self.announce()

    def announce(self) -> None:
        """Announce the address."""
        with packet_socket(self.host, "eth0") as sock:
            sock.send(gratuitous_arp(MAC))


def gratuitous_arp(mac: str = MAC) -> bytes:
    """Build the announcement of the rover's address (RFC 5227, section 2.3)."""
    sha, ip = bytes.fromhex(mac.replace(":", "")), ip_address(IP).packed
    head = b"\xff" * 6 + sha + bytes.fromhex("0806 0001 0800 06 04 0001")
    return head + sha + ip + bytes(6) + ip


def is_known(sites: list[Site], where: Site) -> bool:
    """Return whether all leaves but the rover's have its addresses as remote ones of its MAC."""
    for site in sites:
        if isinstance(site, OwnSite):
            known = site.neighbours()
            found = {ip: known.get(ip) for ip in (IP, IP6)}
            wanted = None if site is where else MAC
            if found != {IP: wanted, IP6: wanted}:
                return False
        elif isinstance(site, FrrSite):
            cache = site.frr.arp_cache(VNI)
            for ip in (IP, IP6):
                entry = cache.get(ip, {})
                vtep = None if site is where else where.vtep
                if (entry.get("mac"), entry.get("remoteVtep")) != (MAC, vtep):
                    return False
    return True


def test_a_host_that_moves_stays_reachable(fabric: Fabric, start: Start, tmp_path: Path) -> None:
    """All six moves between FRR and two pyvteps, in which no port loses its carrier."""
    sites = join_mesh(fabric, start, tmp_path)
    far, near, third = sites
    assert isinstance(far, FrrSite)
    assert isinstance(near, OwnSite)
    assert isinstance(third, OwnSite)
    mesh = far, near, third
    for site in sites:
        number = site.number
        site.host.run("ip", "addr", "add", f"fd00::{number}/64", "dev", "eth0", "nodad")
        site.router.run("ip", "addr", "add", f"fd00::10{number}/64", "dev", site.bridge, "nodad")
    ping_all(sites)
    rover = Rover(fabric, sites)
    for sequence, where in enumerate((far, near, third, far, third, near, far)):
        rover.move(where)
        at = f"move {sequence} to {where.vtep}"
        wait_until(lambda: is_at(mesh, where, sequence, MAC), at)  # noqa: B023
        for site in sites:
            for address in (IP, IP6):
                ping(site.host, address, count=1)
        # A bridge that hears of an address has a neighbour, whose route names the address.
        for address in (where.bridge_ip, f"fd00::10{where.number}"):
            ping(rover.host, address, count=1)
        wait_until(lambda: is_known(sites, where), f"the addresses after {at}")  # noqa: B023


def test_a_held_host_is_reached_when_it_is_released(
    fabric: Fabric, start: Start, tmp_path: Path
) -> None:
    """Wherever it was held, and wherever it is by then."""
    near, far = two_vnis(fabric, start, tmp_path, "hold")
    ping(near.host, far.ip)
    rover = Rover(fabric, [near, far])

    def duplicates() -> list[dict[str, Any]]:
        return list(json.loads(near.pyvtep.invoke("evpn show duplicates --json")))

    for last in (near, far):
        # The move that makes it a duplicate does not happen.
        where: Site = far if last is near else near
        moves = 0
        while not duplicates():
            where = far if where is near else near
            moves += 1
            assert moves < 9, "more moves than are permitted"
            rover.move(where)
            vtep = None if where is near else far.vtep

            def has_moved() -> bool:
                # Until the bridge has the route of the last move, it takes no note of a frame.
                rover.announce()
                return bool(duplicates()) or place(near)[0] == vtep  # noqa: B023

            wait_until(has_moved, f"move {moves}")
        # It is held at the place from which the last move was.
        assert (place(near)[0] is None) is (where is far)
        if where is not last:
            rover.move(last)
        near.pyvtep.run("evpn", "clear", "duplicate", MAC)
        for site in (near, far):
            ping(site.host, IP)
            ping(rover.host, site.ip)
        vtep = None if last is near else far.vtep
        wait_until(lambda: place(near)[0] == vtep, "the right place")  # noqa: B023
        assert duplicates() == []
        entry = far.frr.evpn_macs(VNI)[MAC]
        assert entry.get("remoteVtep") == (near.vtep if last is near else None)


def test_an_address_moves_to_another_host(fabric: Fabric, start: Start, tmp_path: Path) -> None:
    """Another MAC takes over an address: no leaf goes on answering with the former one.

    An FRR leaf does not flood the announcement, so nothing moves there.
    """
    sites = join_mesh(fabric, start, tmp_path)
    ping_all(sites)
    for old, new in (sites[:2], sites[1:]):
        old.host.run("ip", "addr", "add", f"{IP}/24", "dev", "eth0")
        # The bridge of the old leaf asks for the address, which is announced then.
        ping(old.router, IP, count=1)
        own = [site for site in sites if isinstance(site, OwnSite)]
        others = [site for site in own if site is not old]
        wait_until(
            lambda: all(s.neighbours().get(IP) == old.mac for s in others),  # noqa: B023
            "the address",
        )
        ping(new.host, IP)
        old.host.run("ip", "addr", "del", f"{IP}/24", "dev", "eth0")
        new.host.run("ip", "addr", "add", f"{IP}/24", "dev", "eth0")
        with packet_socket(new.host, "eth0") as sock:
            sock.send(gratuitous_arp(new.mac))
        for site in sites:
            if site is not new:
                ping(site.host, IP)
                assert new.mac in site.host.run("ip", "neigh", "show", IP)
        wait_until(
            lambda: all(s.neighbours().get(IP) != old.mac for s in own),  # noqa: B023
            "the withdrawal",
        )
        new.host.run("ip", "addr", "del", f"{IP}/24", "dev", "eth0")
