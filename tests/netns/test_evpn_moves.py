"""MACs that move between FRR and pyvtep, sticky MACs, and duplicates."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.netns.fabric import Fabric, bgp_config, kernel_fdb, kernel_leaf
from tests.netns.fabric import Neighbor as Peer
from tests.netns.hosts import Start, packet_socket, ping, wait_until
from tests.netns.sites import LEAF, VNI, FrrSite, OwnSite, Site, frr_site, join_mesh, own_site
from vtep.testing.lab import Host

MAC = "02:00:00:00:0c:01"


def frame_of(mac: str) -> bytes:
    """Build a broadcast of an experimental EtherType."""
    return b"\xff" * 6 + bytes.fromhex(mac.replace(":", "")) + b"\x88\xb5" + bytes(46)


def speak(host: Host, mac: str = MAC) -> None:
    """Send a frame from a MAC."""
    with packet_socket(host, "eth0") as sock:
        sock.send(frame_of(mac))


def speak_until(host: Host, condition: Callable[[], object], what: str) -> None:
    """Send frames from `MAC` until a condition holds.

    A bridge ignores one frame if the route by which the MAC has moved away is not in it yet.
    """

    def holds() -> object:
        speak(host)
        return condition()

    wait_until(holds, what)


def place(site: OwnSite, mac: str = MAC, vni: int = VNI) -> tuple[str | None, int]:
    """Return the VTEP of a MAC, or None if it is local, and its sequence number."""
    said = json.loads(site.pyvtep.invoke(f"evpn show macs {mac} vni {vni} --json"))
    assert len(said) == 1, said
    return said[0]["vtep"], said[0]["sequence"]


def frr_mac(site: FrrSite, mac: str = MAC) -> dict[str, Any]:
    """Return a MAC in zebra."""
    return site.frr.evpn_macs(VNI).get(mac, {})


def is_at(
    sites: tuple[FrrSite, OwnSite, OwnSite], where: Site, sequence: int, mac: str = MAC
) -> bool:
    """Return whether all leaves, and what they forward by, have a MAC at one of them."""
    far, *own = sites
    entry = frr_mac(far, mac)
    if where is far:
        agree = entry.get("type") == "local" and entry["localSequence"] == sequence
    else:
        agree = entry.get("remoteVtep") == where.vtep and entry["remoteSequence"] == sequence
    for site in own:
        local = site is where
        agree = agree and _has(site, mac, None if local else where.vtep, sequence)
    return agree


def _has(site: OwnSite, mac: str, vtep: str | None, sequence: int) -> bool:
    said = json.loads(site.pyvtep.invoke(f"evpn show macs {mac} --json"))
    ports = [e for e in kernel_fdb(site.router, "br0") if e["mac"] == mac and "master" in e]
    return (
        [(one["vtep"], one["sequence"]) for one in said] == [(vtep, sequence)]
        and site.macs().get(mac) == vtep
        and [port["ifname"] == "vx0" for port in ports] == [vtep is not None]
    )


@pytest.fixture
def mesh(fabric: Fabric, start: Start, tmp_path: Path) -> tuple[FrrSite, OwnSite, OwnSite]:
    """Return three leaves: FRR, and two of pyvtep, that know each other."""
    far, near, third = join_mesh(fabric, start, tmp_path)
    assert isinstance(far, FrrSite)
    assert isinstance(near, OwnSite)
    assert isinstance(third, OwnSite)
    for one in (far, near, third):
        for other in (far, near, third):
            if one is not other:
                ping(one.host, other.ip)
    return far, near, third


def test_a_mac_moves_with_increasing_sequence(mesh: tuple[FrrSite, OwnSite, OwnSite]) -> None:
    """Between all three, in both directions; and back without a frame, by the loss of its port."""
    far, near, third = mesh
    for sequence, where in enumerate((near, far, near, third, far)):
        speak_until(
            where.host,
            lambda s=sequence, w=where: is_at(mesh, w, s),  # type: ignore[misc]
            f"{MAC} at {where.vtep} with sequence number {sequence}",
        )
    # FRR loses the port, and with it the MAC, which is nowhere then; it is heard of at another
    # leaf by its answer to a flooded frame only.
    far.router.run("bridge", "fdb", "del", MAC, "dev", far.host.name, "master")
    wait_until(lambda: MAC not in near.macs() and MAC not in third.macs(), "the withdrawal")
    speak(third.host)
    wait_until(lambda: near.macs().get(MAC) == third.vtep, "the MAC at the third leaf")


def test_a_host_moves_silently(mesh: tuple[FrrSite, OwnSite, OwnSite], fabric: Fabric) -> None:
    """A host that says nothing after its move is found again, in both directions."""
    far, near, _ = mesh
    near.router.run("ip", "link", "del", near.host.name)
    wait_until(lambda: near.mac not in far.frr.remote_macs(VNI), "the withdrawal")
    fabric.attach(near.host, far.router, far.bridge, near.mac, f"{near.ip}/24")
    ping(far.host, near.ip)
    ping(near.host, far.ip)
    far.router.run("ip", "link", "del", near.host.name)
    wait_until(lambda: near.mac not in near.macs(), "the withdrawal by FRR")
    fabric.attach(near.host, near.router, near.bridge, near.mac, f"{near.ip}/24")
    ping(far.host, near.ip)
    wait_until(lambda: far.frr.remote_macs(VNI).get(near.mac) == near.vtep, "the MAC in FRR")


def test_a_mac_of_a_bridge_fails_over(mesh: tuple[FrrSite, OwnSite, OwnSite]) -> None:
    """FRR and pyvtep follow a virtual MAC that another bridge gets before the first gives it up."""
    far, near, third = mesh
    virtual = "00:00:5e:00:01:07"
    near.router.run("ip", "link", "set", near.bridge, "address", virtual)
    wait_until(lambda: far.frr.remote_macs(VNI).get(virtual) == near.vtep, "the MAC in FRR")
    wait_until(lambda: third.macs().get(virtual) == near.vtep, "the MAC at the third leaf")
    third.router.run("ip", "link", "set", third.bridge, "address", virtual)
    wait_until(lambda: far.frr.remote_macs(VNI).get(virtual) == third.vtep, "its move in FRR")
    assert place(third, virtual) == (None, 1)
    assert place(near, virtual) == (None, 0)
    wait_until(lambda: _problems(near) == ["evpn-duplicate-mac"], "the conflict")
    near.router.run("ip", "link", "set", near.bridge, "address", near.bridge_mac)
    wait_until(lambda: near.macs().get(virtual) == third.vtep, "the MAC at the first leaf")
    for site in (near, third):
        wait_until(lambda s=site: _problems(s) == [], "the end of the conflict")  # type: ignore[misc]


def test_a_sticky_mac_stays(mesh: tuple[FrrSite, OwnSite, OwnSite]) -> None:
    """A static entry of a bridge, of pyvtep's or of FRR's, is not moved by frames elsewhere."""
    far, near, third = mesh
    ours, theirs = "02:00:00:00:0d:01", "02:00:00:00:0d:02"
    near.router.run("bridge", "fdb", "add", ours, "dev", near.host.name, "master", "static")
    static = ("master", "static", "sticky")
    far.router.run("bridge", "fdb", "add", theirs, "dev", far.host.name, *static)
    for site, mac, where in ((third, ours, near), (third, theirs, far), (near, theirs, far)):
        wait_until(lambda s=site, m=mac, w=where: s.macs().get(m) == w.vtep, f"{mac} sticky")  # type: ignore[misc]
        speak(site.host, mac)
    wait_until(lambda: far.frr.remote_macs(VNI).get(ours) == near.vtep, f"{ours} in FRR")
    speak(far.host, ours)
    # Frames that come later have been seen.
    for leaf in mesh:
        speak(leaf.host, f"02:00:00:00:0e:{leaf.number:02x}")
    wait_until(
        lambda: all(f"02:00:00:00:0e:{s.number:02x}" in near.macs() for s in (far, third)), "others"
    )
    assert near.macs()[theirs] == third.macs()[theirs] == far.vtep
    assert third.macs()[ours] == near.vtep
    assert place(near, ours) == (None, 0)
    for router, mac in ((third.router, ours), (third.router, theirs), (near.router, theirs)):
        (entry,) = (e for e in kernel_fdb(router, "vx0") if e["mac"] == mac)
        assert {"sticky", "extern_learn"} <= {*entry["flags"]}
    assert far.frr.remote_macs(VNI)[ours] == near.vtep


CONFIG = """
fast-path = false

[evpn]
asn = 65000
neighbor = ["192.0.2.2"]
duplicate-mac = "{duplicate}"

[[vni]]
id = 100
tap = "vx0"
bridge = "br0"
local = "192.0.2.1"
evpn = true

[[vni]]
id = 200
tap = "vx200"
bridge = "br1"
local = "192.0.2.1"
evpn = true
"""


def two_vnis(
    fabric: Fabric, start: Start, folder: Path, duplicate: str = "warn"
) -> tuple[OwnSite, FrrSite]:
    """Build a leaf of pyvtep and one of FRR, which have VNI 100 and VNI 200."""
    config = bgp_config(65000, "192.0.2.2", [Peer("192.0.2.1", 65000)], evpn_lines=LEAF)
    far = frr_site(fabric, folder, 2, config)
    kernel_leaf(far.router, 200, far.vtep)
    file = folder / "pyvtep.toml"
    file.write_text(CONFIG.format(duplicate=duplicate))
    near = own_site(fabric, start, 1, config=file)
    return near, far


def test_a_mac_in_two_vnis_moves_in_one(fabric: Fabric, start: Start, tmp_path: Path) -> None:
    """The other VNI keeps it: routes of both differ in nothing but the VNI."""
    near, far = two_vnis(fabric, start, tmp_path)
    other = fabric.host(near.router, "br1", "other", MAC)
    speak(near.host)
    speak(other)
    for vni in (100, 200):
        wait_until(lambda v=vni: far.frr.remote_macs(v).get(MAC) == near.vtep, f"VNI {vni}")  # type: ignore[misc]
    for sequence, where in enumerate((far, near, far), 1):
        vtep = None if where is near else far.vtep
        speak_until(
            where.host,
            lambda v=vtep, s=sequence: place(near) == (v, s),  # type: ignore[misc]
            f"move {sequence}",
        )
        assert place(near, vni=200) == (None, 0)
        assert far.frr.remote_macs(200)[MAC] == near.vtep
    assert MAC not in near.macs(200)


@pytest.mark.parametrize("duplicate", ["warn", "hold"])
def test_a_mac_that_moves_six_times_is_a_duplicate(
    duplicate: str, fabric: Fabric, start: Start, tmp_path: Path
) -> None:
    """It is reported; then it moves on, or is held until it is released, as configured."""
    near, far = two_vnis(fabric, start, tmp_path, duplicate)

    def duplicates() -> list[dict[str, Any]]:
        return list(json.loads(near.pyvtep.invoke("evpn show duplicates --json")))

    speak(near.host)
    wait_until(lambda: frr_mac(far).get("type") == "remote", "the MAC in FRR")
    moves = 0
    while not duplicates():
        assert moves < 8, "more moves than are permitted"
        where = (far, near)[moves % 2]
        moves += 1
        vtep = None if where is near else far.vtep
        speak_until(
            where.host,
            lambda v=vtep, s=moves: duplicates() or place(near) == (v, s),  # type: ignore[misc]
            f"move {moves}",
        )
    assert moves in (5, 6)
    (one,) = duplicates()
    assert (one["vni"], one["mac"]) == (VNI, MAC)
    assert one["state"] == {"warn": "warned", "hold": "held"}[duplicate]
    wait_until(lambda: MAC in near.pyvtep.log, "a line of the log")
    wait_until(lambda: "evpn-duplicate-mac" in _problems(near), "a problem in the status")
    before = place(near)
    elsewhere = far if before[0] is None else near
    if duplicate == "warn":
        speak_until(elsewhere.host, lambda: place(near)[0] != before[0], "the next move")
        return
    speak(elsewhere.host)
    # A frame of another MAC that comes later is taken.
    speak(elsewhere.host, "02:00:00:00:0e:01")
    mark = "02:00:00:00:0e:01"
    wait_until(lambda: json.loads(near.pyvtep.invoke(f"evpn show macs {mark} --json")), mark)
    assert place(near) == before
    near.pyvtep.run("evpn", "clear", "duplicate", MAC)
    wait_until(lambda: duplicates() == [], "the release")


def _problems(site: OwnSite) -> list[str]:
    with site.pyvtep.client() as client:
        return [problem["problem"] for problem in client.status()["problems"]]
