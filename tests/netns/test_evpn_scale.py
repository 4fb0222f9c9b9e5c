"""10,000 routes in each direction, while pings cross the tunnel."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.netns.fabric import Fabric, Neighbor, bgp_config, kernel_fdb
from tests.netns.hosts import DEADLINE, Start, ping, wait_until
from tests.netns.sites import LEAF, VNI, OwnSite, Site, frr_site, own_site, speaks

MACS = 10_000


def macs_of(prefix: str) -> list[str]:
    return [f"{prefix}:00:00:{number >> 8:02x}:{number & 255:02x}" for number in range(MACS)]


def change_macs(site: Site, verb: str, prefix: str, folder: Path) -> None:
    """Add MACs to, or delete them from, the port of a site's host, as if they were learned."""
    state = "dynamic" if verb == "add" else ""
    file = folder / f"{verb} {prefix}"
    lines = [f"fdb {verb} {mac} dev {site.host.name} master {state}\n" for mac in macs_of(prefix)]
    file.write_text("".join(lines))
    site.router.run("bridge", "-batch", str(file))


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


def entries(site: OwnSite) -> int:
    """Return the number of entries in pyvtep's FDB, without reading them."""
    with site.pyvtep.client() as client:
        (segment,) = client.stats()["segments"]
        return segment["fdb_entries"]


def written(site: OwnSite, prefix: str) -> set[str]:
    """Return the MACs on the bridge port of the TAP."""
    return {e["mac"] for e in kernel_fdb(site.router, "vx0") if e["mac"].startswith(prefix)}


def test_ten_thousand_routes_in_each_direction(
    fabric: Fabric, start: Start, tmp_path: Path
) -> None:
    """They arrive at the other side, in its bridge too, and go again; no ping is lost."""
    neighbors = [Neighbor("192.0.2.1", 65000)]
    config = bgp_config(65000, "192.0.2.2", neighbors, evpn_lines=LEAF)
    far = frr_site(fabric, tmp_path, 2, config)
    near = own_site(fabric, start, 1, *speaks(65000, "192.0.2.2"))
    ping(near.host, far.ip)
    ping(far.host, near.ip)
    before = entries(near)
    theirs, ours = "02:01", "02:02"

    def in_frr() -> int:
        return sum(mac.startswith(ours) for mac in far.frr.remote_macs(VNI))

    with unbroken_pings(near, far, tmp_path):
        change_macs(far, "add", theirs, tmp_path)
        wait_until(lambda: entries(near) == before + MACS, "the MACs of FRR")
        wait_until(lambda: written(near, theirs) == set(macs_of(theirs)), "them in the bridge")
        change_macs(near, "add", ours, tmp_path)
        wait_until(lambda: in_frr() == MACS, "the MACs of pyvtep in FRR")
        change_macs(near, "del", ours, tmp_path)
        change_macs(far, "del", theirs, tmp_path)
        wait_until(lambda: entries(near) == before, "no MACs of FRR")
        wait_until(lambda: not written(near, theirs), "none in the bridge")
        wait_until(lambda: in_frr() == 0, "no MACs of pyvtep in FRR")
    assert set(near.macs()) == {far.mac, far.bridge_mac}
