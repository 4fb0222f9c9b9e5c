"""EVPN fabrics in network namespaces: FRR leaves with the kernel's VXLAN, reflectors, and GoBGP.

A `Fabric` is an underlay switch to which routers are connected: each is a host whose eth0 has the
addresses 192.0.2.N/24 and 2001:db8::N/64. An `Frr` runs zebra and bgpd on a router, a `GoBgp` runs
gobgpd. A leaf has a bridge for each VNI, and hosts on ports of the bridge.

Each FRR has mount and PID namespaces of its own, so that any number of them find their files at the
usual places. The first process in the PID namespace ends with the test process, however that dies;
then the kernel kills the daemons and drops the mounts.
"""

import json
import re
import shlex
import subprocess
from collections.abc import Iterable
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from attrs import frozen

from tests.netns.hosts import DEADLINE, address, wait_until
from vtep.testing.lab import Host, Lab

_DAEMONS = "/usr/lib/frr"
_RUN = "/run/frr"

# FRR gives up root, which clears the signal at the death of a parent: hence the PID namespace. Its
# first process runs what it reads. Bash, unlike dash, reaps its children while it reads.
_MACHINE = """
for folder in /run/frr /etc/frr /var/tmp; do
    mount -t tmpfs -o mode=755 tmpfs $folder || exit
done
chown frr:frr /run/frr /etc/frr && : > /etc/frr/vtysh.conf || exit
echo
while read -r command; do
    eval "$command" &
done
"""


@frozen
class Neighbor:
    """A BGP neighbour of an FRR, with more lines of its configuration.

    `lines` and `evpn_lines` follow "neighbor ADDRESS", the latter in the EVPN address family:
    `lines=("password secret",)`, `evpn_lines=("route-reflector-client",)`. The address of a
    link-local session is the name of a device: `Neighbor("eth0", 65000)` with `interface`.
    """

    address: str
    asn: int
    lines: tuple[str, ...] = ()
    evpn_lines: tuple[str, ...] = ()
    interface: bool = False


def bgp_config(
    asn: int,
    router_id: str,
    neighbors: Iterable[Neighbor],
    *,
    lines: Iterable[str] = (),
    evpn_lines: Iterable[str] = ("advertise-all-vni",),
    after: Iterable[str] = (),
) -> str:
    """Build a configuration of bgpd for the EVPN address family alone.

    `lines` and `evpn_lines` are those of the router and of its address family; `after` has lines
    behind the router, such as route maps.
    """
    said = [
        f"router bgp {asn}",
        f" bgp router-id {router_id}",
        " no bgp default ipv4-unicast",
        " no bgp ebgp-requires-policy",
        *(f" {line}" for line in lines),
    ]
    family = []
    for neighbor in neighbors:
        name = f" neighbor {neighbor.address}"
        interface = " interface" if neighbor.interface else ""
        said += [f"{name}{interface} remote-as {neighbor.asn}", f"{name} timers connect 1"]
        said += [f"{name} {line}" for line in neighbor.lines]
        family += [f" {name} {line}" for line in ("activate", *neighbor.evpn_lines)]
    said += [" address-family l2vpn evpn", *family, *(f"  {line}" for line in evpn_lines)]
    return "\n".join([*said, " exit-address-family", "!", *after, ""])


class Frr:
    """The daemons zebra and bgpd of FRR on a router. They are killed when the host is closed."""

    def __init__(self, host: Host, folder: Path, config: str) -> None:
        self.host = host
        self._log = folder / f"frr-{host.name}"
        self._machine = host.start(
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("--propagation", "private", "--", "bash", "-c", _MACHINE),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._machine.stdout is not None
        assert self._machine.stdout.readline() == b"\n", "no namespaces for FRR"
        children = Path(f"/proc/{self._machine.pid}/task/{self._machine.pid}/children")
        init = children.read_text().split()[0]
        self._enter = ("nsenter", f"--mount=/proc/{init}/ns/mnt", f"--pid=/proc/{init}/ns/pid")
        self._run("sh", "-c", 'printf "%s" "$0" > /etc/frr/bgpd.conf', config)
        # A VNI of 10,000 MACs overflows the default netlink buffer.
        self._start("zebra", "-s 90000000")
        self.start_bgpd()

    def _run(self, *command: str, check: bool = True) -> str:
        return self.host.run(*self._enter, "--", *command, check=check, timeout=4 * DEADLINE)

    def _start(self, daemon: str, arguments: str = "") -> None:
        """Start a daemon in the foreground and wait for its console."""
        command = f"{_DAEMONS}/{daemon} -A 127.0.0.1 --log stdout {arguments}"
        line = f"{command} < /dev/null >> {shlex.quote(str(self._log))}-{daemon} 2>&1\n"
        assert self._machine.stdin is not None
        self._machine.stdin.write(line.encode())
        self._machine.stdin.flush()

        def responds() -> bool:
            assert self._machine.poll() is None, "the namespace of FRR is gone"
            said = self._run("vtysh", "-d", daemon, "-c", "show version", check=False)
            return "FRRouting" in said

        wait_until(responds, f"{daemon} of {self.host.name}, see {self._log}-{daemon}")

    def start_bgpd(self) -> None:
        """Start bgpd, at the beginning or after `kill_bgpd`."""
        self._start("bgpd")

    def signal(self, name: str, daemon: str = "bgpd") -> None:
        """Send a signal to a daemon, such as KILL, STOP or CONT."""
        self._run("sh", "-c", f'kill -{name} "$(cat {_RUN}/{daemon}.pid)"')

    def kill_bgpd(self) -> None:
        """Kill bgpd without notice to its peers (SIGKILL)."""
        self.signal("KILL")

        def is_gone() -> bool:
            return self._run("sh", "-c", f'kill -0 "$(cat {_RUN}/bgpd.pid)" 2>&1; :') != ""

        wait_until(is_gone, "the end of bgpd")

    def log(self, daemon: str = "bgpd") -> str:
        """Return what a daemon has logged."""
        return Path(f"{self._log}-{daemon}").read_text()

    def vtysh(self, *commands: str) -> str:
        """Run commands of the console of FRR, and return their output."""
        return self._run("vtysh", *(word for command in commands for word in ("-c", command)))

    def show(self, what: str) -> Any:
        """Return the JSON of a show command: `show("bgp l2vpn evpn summary")`."""
        said = self.vtysh(f"show {what} json")
        return json.loads(said) if said.strip() else {}

    def configure(self, *lines: str) -> None:
        """Enter lines of configuration: `configure("router bgp 65000", "neighbor ...")`."""
        said = self.vtysh("configure terminal", *lines)
        assert "Unknown command" not in said, said
        assert "%" not in said, said

    def is_established(self, neighbor: str) -> bool:
        """Return whether the EVPN session with a neighbour is established."""
        peers = self.show("bgp l2vpn evpn summary").get("peers", {})
        return bool(peers.get(neighbor, {}).get("state") == "Established")

    def wait_established(self, *neighbors: str) -> None:
        """Wait until the sessions with neighbours are established."""
        for neighbor in neighbors:
            established = partial(self.is_established, neighbor)
            wait_until(established, f"the session of {self.host.name} with {neighbor}")

    def routes(self, kind: str = "") -> list[dict[str, Any]]:
        """Return the EVPN paths in the table of bgpd, of one type of route or of all.

        `kind` is "macip", "multicast", "es", "ead" or "prefix", or empty. Each path is that of
        FRR's JSON, and has "rd" besides.
        """
        said = self.show(f"bgp l2vpn evpn route{f' type {kind}' if kind else ''}")
        found = []
        for rd, prefixes in said.items():
            if not isinstance(prefixes, dict):
                continue
            for prefix, route in prefixes.items():
                if isinstance(route, dict) and prefix.startswith("["):
                    for path in route.get("paths", []):
                        some = path if isinstance(path, list) else [path]
                        found += [{**one, "rd": rd, "prefix": prefix} for one in some]
        return found

    def evpn_macs(self, vni: int) -> dict[str, dict[str, Any]]:
        """Return the MACs of a VNI in zebra: "type" local or remote, "remoteVtep", sequences."""
        said = self.show(f"evpn mac vni {vni}")
        return dict(said.get("macs", {}))

    def remote_macs(self, vni: int) -> dict[str, str]:
        """Return the VTEP of each remote MAC of a VNI in zebra."""
        return {
            mac: entry["remoteVtep"]
            for mac, entry in self.evpn_macs(vni).items()
            if entry.get("type") == "remote"
        }

    def local_macs(self, vni: int) -> set[str]:
        """Return the local MACs of a VNI in zebra."""
        return {mac for mac, entry in self.evpn_macs(vni).items() if entry.get("type") == "local"}

    def arp_cache(self, vni: int) -> dict[str, dict[str, Any]]:
        """Return the neighbours of a VNI in zebra by IP address: "type", "mac", "remoteVtep"."""
        said = self.show(f"evpn arp-cache vni {vni}")
        return {ip: entry for ip, entry in said.items() if isinstance(entry, dict)}

    def flood_vteps(self, vni: int) -> set[str]:
        """Return the remote VTEPs of a VNI in zebra, from type 3 routes."""
        # Without any, FRR says 0 in place of a list.
        return set(self.show(f"evpn vni {vni}").get("numRemoteVteps") or ())


@frozen
class GoBgpNeighbor:
    """A neighbour of gobgpd. It is a client if gobgpd is to reflect routes to it."""

    address: str
    asn: int
    client: bool = False
    password: str = ""


class GoBgp:
    """The daemon gobgpd on a router, for EVPN alone."""

    def __init__(
        self,
        host: Host,
        folder: Path,
        asn: int,
        local: str,
        neighbors: Iterable[GoBgpNeighbor],
        router_id: str | None = None,
    ) -> None:
        self.host = host
        router_id = router_id or local
        self._log = folder / f"gobgpd-{host.name}"
        config = {
            "global": {
                "config": {
                    "as": asn,
                    "router-id": router_id,
                    "port": 179,
                    "local-address-list": [local],
                }
            },
            "neighbors": [self._neighbor(one, local, router_id) for one in neighbors],
        }
        file = self._log.with_suffix(".json")
        file.write_text(json.dumps(config))
        with self._log.open("w") as log:
            self.process = host.start(
                *("gobgpd", "-t", "json", "-f", str(file), "--api-hosts", "127.0.0.1:50051"),
                stdout=log,
                stderr=log,
            )

        def responds() -> bool:
            assert self.process.poll() is None, self.log
            return "Router-ID" in self.host.run("gobgp", "global", check=False)

        wait_until(responds, f"gobgpd of {host.name}")

    @staticmethod
    def _neighbor(one: GoBgpNeighbor, local: str, router_id: str) -> dict[str, Any]:
        config: dict[str, Any] = {"neighbor-address": one.address, "peer-as": one.asn}
        if one.password:
            config["auth-password"] = one.password
        said: dict[str, Any] = {
            "config": config,
            "transport": {"config": {"local-address": local}},
            "timers": {"config": {"connect-retry": 1, "idle-hold-time-after-reset": 1}},
            "afi-safis": [{"config": {"afi-safi-name": "l2vpn-evpn"}}],
        }
        if one.client:
            said["route-reflector"] = {
                "config": {"route-reflector-client": True, "route-reflector-cluster-id": router_id}
            }
        return said

    @property
    def log(self) -> str:
        """Everything that gobgpd has logged."""
        return self._log.read_text()

    def run(self, *words: str) -> str:
        """Run a command of gobgp, and return its output."""
        return self.host.run("gobgp", *words, timeout=4 * DEADLINE)

    def add(self, *words: str) -> None:
        """Announce a route of gobgp's grammar: `add("multicast", "192.0.2.9", "etag", "0")`."""
        self.run("global", "rib", "-a", "evpn", "add", *words)

    def delete(self, *words: str) -> None:
        """Withdraw a route that was announced by the same words."""
        self.run("global", "rib", "-a", "evpn", "del", *words)

    def routes(self) -> list[dict[str, Any]]:
        """Return the EVPN paths in gobgpd's table, in the JSON of gobgp."""
        said = json.loads(self.run("global", "rib", "-a", "evpn", "-j") or "{}")
        return [path for paths in said.values() for path in paths]

    def is_established(self, neighbor: str) -> bool:
        """Return whether the session with a neighbour is established."""
        said = self.run("neighbor", neighbor)
        return re.search(r"BGP state = (BGP_FSM_)?ESTABLISHED", said, re.IGNORECASE) is not None

    def wait_established(self, *neighbors: str) -> None:
        """Wait until the sessions with neighbours are established."""
        for neighbor in neighbors:
            established = partial(self.is_established, neighbor)
            wait_until(established, f"the session of gobgpd with {neighbor}")


class Fabric:
    """Routers on one underlay link of MTU 1600, and the hosts behind them."""

    MTU = 1600

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.switch = lab.host("underlay")
        self.switch.run("ip", "link", "add", "br0", "mtu", str(self.MTU), "type", "bridge")
        self.switch.run("ip", "link", "set", "br0", "up")

    def router(self, name: str, number: int) -> Host:
        """Add a router with 192.0.2.NUMBER/24 and 2001:db8::NUMBER/64 on eth0."""
        host = self._lab.host(name)
        self.connect(host, number)
        return host

    def connect(self, host: Host, number: int) -> None:
        """Connect a host to the underlay by its device eth0."""
        mtu, port = str(self.MTU), f"port{number}"
        host.run(
            *("ip", "link", "add", "eth0", "mtu", mtu, "type", "veth"),
            *("peer", "name", port, "mtu", mtu, "netns", self.switch.pid),
        )
        self.switch.run("ip", "link", "set", port, "master", "br0", "up")
        host.run("ip", "link", "set", "eth0", "up")
        address(host, "eth0", f"192.0.2.{number}/24", f"2001:db8::{number}/64")

    def host(self, router: Host, bridge: str, name: str, mac: str, *addresses: str) -> Host:
        """Add a host on a new port of a bridge: its device is eth0, its port has its name."""
        host = self._lab.host(name)
        self.attach(host, router, bridge, mac, *addresses)
        return host

    @staticmethod
    def attach(host: Host, router: Host, bridge: str, mac: str, *addresses: str) -> None:
        """Connect a host to a port of a bridge, as `host` does.

        Deleting the port (`router.run("ip", "link", "del", NAME)`) disconnects the host, which can
        then be attached elsewhere.
        """
        router.run(
            *("ip", "link", "add", host.name, "type", "veth"),
            *("peer", "name", "eth0", "address", mac, "mtu", "1450", "netns", host.pid),
        )
        router.run("ip", "link", "set", host.name, "master", bridge, "up")
        host.run("ip", "link", "set", "eth0", "up")
        address(host, "eth0", *addresses)


def add_bridge(router: Host, name: str, mac: str | None = None, *addresses: str) -> None:
    """Add a bridge, which is up, and does not wait before it forwards."""
    given = ["address", mac] if mac else []
    router.run("ip", "link", "add", name, *given, "type", "bridge", "forward_delay", "0")
    router.run("ip", "link", "set", name, "up")
    address(router, name, *addresses)


def kernel_leaf(router: Host, vni: int, local: str, mac: str | None = None, *addresses: str) -> str:
    """Add the bridge brVNI with the kernel's VXLAN device vxlanVNI, as FRR demands.

    `mac` and `addresses` are those of the bridge. Returns: the name of the bridge.
    """
    bridge, device = f"br{vni}", f"vxlan{vni}"
    add_bridge(router, bridge, mac, *addresses)
    family = ip_address(local).version
    router.run(
        *("ip", "link", "add", device, "type", "vxlan", "id", str(vni), "local", local),
        *("dstport", "4789", "nolearning", *(["udp6zerocsumrx"] if family == 6 else [])),
    )
    router.run("ip", "link", "set", device, "master", bridge, "addrgenmode", "none", "up")
    router.run(
        *("ip", "link", "set", device, "type", "bridge_slave"),
        *("neigh_suppress", "on", "learning", "off"),
    )
    return bridge


def kernel_fdb(host: Host, device: str | None = None) -> list[dict[str, Any]]:
    """Return the FDB entries of a device, of all ports of a bridge, or of all devices.

    They are those of `bridge -j fdb`. A device whose name begins with "br" is a bridge.
    """
    which = ["br" if device.startswith("br") else "dev", device] if device else []
    return list(json.loads(host.run("bridge", "-j", "fdb", "show", *which) or "[]"))
