"""The tunnels that are measured.

An `End` is one end of a tunnel, on its own host. A `Subject` is a named pair of ends; `SUBJECTS`
has all. To add a tunnel, write its `End`, add a line there, and one in `plan.py`.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

from attrs import frozen

from bench.processes import wait_until, with_descendants
from bench.underlay import CABLE, CABLE_MTU, Underlay
from vtep.errors import VtepError
from vtep.testing.lab import Host, Lab

ROOT = Path(__file__).parents[1]

VNI = 42
PORT = 4789

_COMPILE_S = 400.0
"""Seconds for the compilation of the fast path, which takes 30 on an idle machine."""


@frozen
class Side:
    """Addresses of an end and of its peer."""

    name: str
    underlay: str
    overlay: str
    peer_name: str
    peer_underlay: str
    peer_overlay: str


LEFT = Side("a", "192.0.2.1", "10.0.0.1", "b", "192.0.2.2", "10.0.0.2")
RIGHT = Side("b", "192.0.2.2", "10.0.0.2", "a", "192.0.2.1", "10.0.0.1")


@frozen
class Choices:
    """Options of the command line for the tunnels."""

    pyvtep_options: tuple[str, ...] = ()


class End(ABC):
    """One end of a tunnel. `prepare` runs at both ends before `start` at either."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Required commands."""
    mtu: ClassVar[int] = 1450
    """MTU of the tunnel: 1500 octets without the headers of the tunnel."""

    def __init__(self, host: Host, side: Side, folder: Path, choices: Choices) -> None:
        self.host = host
        self.side = side
        self.folder = folder
        self.choices = choices
        self._processes: dict[str, subprocess.Popen[Any]] = {}

    def prepare(self) -> None:  # noqa: B027  most have nothing to prepare
        """Prepare whatever the other end needs, such as keys."""

    @abstractmethod
    def start(self) -> None:
        """Start the end, and wait for everything that does not need the other end."""

    def settled(self) -> bool:
        """Return whether the tunnel, over which ping works already, is in its final state."""
        return True

    def verify(self) -> None:  # noqa: B027  most cannot be in another state
        """Raise VtepError if what has been measured is not what the end promises."""

    def pids(self) -> list[int]:
        """Return the PIDs of this end, whose CPU time and memory count; none for the kernel."""
        return with_descendants(process.pid for process in self._processes.values())

    def check(self) -> None:
        """Raise VtepError with its last message if a process has ended."""
        for name, process in self._processes.items():
            code = process.poll()
            if code is not None:
                said = self.log(name).strip().splitlines() or ["it said nothing"]
                raise VtepError(f"{name} ended with exit code {code}: {said[-1].strip()}")

    @classmethod
    @abstractmethod
    def versions(cls) -> dict[str, str]:
        """Return the versions of the programs of this end."""

    def log(self, name: str) -> str:
        path = self._log_path(name)
        return path.read_text(errors="replace") if path.exists() else ""

    def _log_path(self, name: str) -> Path:
        return self.folder / f"{name}-{self.side.name}.log"

    def _launch(self, name: str, *command: str, **popen: Any) -> int:
        """Start a process of the tunnel. Returns: its PID."""
        with self._log_path(name).open("w") as log:
            process = self.host.start(*command, stdout=log, stderr=log, **popen)
        self._processes[name] = process
        return process.pid

    def _await_device(self, device: str) -> None:
        def there() -> bool:
            self.check()
            return f" {device}: " in self.host.run("ip", "-o", "link")

        wait_until(there, f"device {device}")

    def _address(self, device: str) -> None:
        self.host.run("ip", "link", "set", device, "mtu", str(self.mtu), "up")
        self.host.run("ip", "addr", "add", f"{self.side.overlay}/24", "dev", device)


class PyvtepFast(End):
    """The pyvtep of this clone, run as users do, with its fast path."""

    fast_path: ClassVar[bool] = True

    def start(self) -> None:
        side = self.side
        self._launch(
            "pyvtep",
            *(sys.executable, "-m", "vtep", "--vni", str(VNI), "--remote", side.peer_underlay),
            *("--tap", "vx0", "--address", f"{side.overlay}/24"),
            "--fast-path" if self.fast_path else "--no-fast-path",
            *self.choices.pyvtep_options,
            cwd=ROOT,
        )
        self._await_device("vx0")
        self.await_fast_path()

    def await_fast_path(self) -> None:
        """Wait for the fast path. Until it is compiled and loaded, the slow path forwards."""
        if self.fast_path:
            wait_until(self._fast_path_is_on, "the fast path of pyvtep", _COMPILE_S)

    def verify(self) -> None:
        if self.fast_path and not self._fast_path_is_on():
            raise VtepError("the fast path of pyvtep did not stay on")

    def _fast_path_is_on(self) -> bool:
        """Ask the process for the state of its fast path. Raises: VtepError if it is off."""
        self.check()
        command = (sys.executable, "-m", "vtep", "vni", "show", "--json")
        (segment,) = json.loads(self.host.run("env", f"--chdir={ROOT}", *command))
        if segment["fast_path"] == "off":
            raise VtepError(f"the fast path of pyvtep is off: {segment['fast_path_reason']}")
        return bool(segment["fast_path"] == "on")

    @classmethod
    def versions(cls) -> dict[str, str]:
        names = ("numpy", "numba", "python-pytun", "uvloop")
        describe = first_line("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--tags")
        return {
            "pyvtep": f"{metadata.version('pyvtep')} ({describe})",
            "python": ".".join(map(str, sys.version_info[:3])),
            **{name: _distribution(name) for name in names},
        }


class PyvtepSlow(PyvtepFast):
    """The same without the fast path: as on a machine without numba."""

    fast_path = False


class Kernel(End):
    """The VXLAN driver of the kernel."""

    def start(self) -> None:
        side = self.side
        self.host.run(
            *("ip", "link", "add", "vx0", "type", "vxlan", "id", str(VNI), "dev", CABLE),
            *("local", side.underlay, "remote", side.peer_underlay, "dstport", str(PORT)),
        )
        self._address("vx0")

    @classmethod
    def versions(cls) -> dict[str, str]:
        return {"kernel": os.uname().release, "iproute2": first_line("ip", "-V")}


_OFFLOADS = (
    *("tx", "tso", "gso", "gro", "tx-udp-segmentation"),
    *("tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"),
)


class OpenVswitch(End):
    """The user-space datapath of Open vSwitch, with its own directories.

    It reads and writes the veth raw. So the veth must not use any offload, whatever the underlay.
    """

    needs = ("ovs-appctl", "ovs-vsctl", "ovs-vswitchd", "ovsdb-server", "ovsdb-tool")

    def prepare(self) -> None:
        self.host.run(
            "ethtool", "-K", CABLE, *(word for name in _OFFLOADS for word in (name, "off"))
        )
        self._directory = self.folder / f"ovs-{self.side.name}"
        self._directory.mkdir()

    def start(self) -> None:
        side = self.side
        database, socket = self._directory / "conf.db", self._directory / "db.sock"
        schema = "/usr/share/openvswitch/vswitch.ovsschema"
        self._tool("ovsdb-tool", "create", str(database), schema)
        self._daemon("ovsdb-server", str(database), f"--remote=punix:{socket}")
        self._await(socket.exists, "the socket of ovsdb-server")
        self._tool("ovs-vsctl", "--no-wait", "init")
        self._daemon("ovs-vswitchd", f"unix:{socket}", "--disable-system")
        # The datapath owns eth0; the kernel must not answer ARP requests too.
        self.host.run("ip", "addr", "flush", "dev", CABLE)
        self.host.run("sysctl", "-qw", f"net.ipv4.conf.{CABLE}.arp_ignore=8")
        userspace = ("datapath_type=netdev", "fail-mode=standalone")
        self._tool(
            *("ovs-vsctl", "--timeout=10", "--", "add-br", "br-phy", "--", "set", "bridge"),
            *("br-phy", *userspace, "--", "add-port", "br-phy", CABLE),
            *("--", "add-br", "br-int", "--", "set", "bridge", "br-int", *userspace),
            *("--", "add-port", "br-int", "vx0", "--", "set", "interface", "vx0", "type=vxlan"),
            *(f"options:remote_ip={side.peer_underlay}", f"options:local_ip={side.underlay}"),
            *(f"options:key={VNI}", f"options:dst_port={PORT}"),
        )
        self.host.run("ip", "addr", "add", f"{side.underlay}/24", "dev", "br-phy")
        self.host.run("ip", "link", "set", "br-phy", "up")
        self._address("br-int")
        self._await(lambda: "192.0.2.0/24" in self._ask("ovs/route/show"), "its route")
        self._await(lambda: str(PORT) in self._ask("tnl/ports/show"), "its tunnel port")

    def settled(self) -> bool:
        # It learns its neighbour only from an ARP reply.
        peer = self.side.peer_underlay
        self.host.run("ping", "-c1", "-W1", peer, check=False)
        return peer in self._ask("tnl/neigh/show")

    @classmethod
    def versions(cls) -> dict[str, str]:
        return {"openvswitch": first_line("ovs-vswitchd", "--version")}

    def _environment(self) -> list[str]:
        names = ("RUN", "LOG", "DB", "SYSCONF")
        return ["env", *(f"OVS_{name}DIR={self._directory}" for name in names)]

    def _tool(self, *command: str, check: bool = True) -> str:
        return self.host.run(*self._environment(), *command, check=check)

    def _ask(self, *command: str) -> str:
        control = str(self._directory / "ovs-vswitchd.ctl")
        return self._tool("ovs-appctl", "-t", control, *command, check=False)

    def _daemon(self, name: str, *arguments: str) -> None:
        quiet = ("--no-chdir", "-vsyslog:off", "-vfile:off", "-vconsole:warn")
        control = f"--unixctl={self._directory / name}.ctl"
        self._launch(name, *self._environment(), name, *arguments, control, *quiet)

    def _await(self, condition: Any, what: str) -> None:
        def met() -> bool:
            self.check()
            return bool(condition())

        wait_until(met, f"Open vSwitch: {what}")


class Tinc(End):
    """tinc 1.0 as an Ethernet switch, without encryption, authentication and compression."""

    needs = ("tincd",)

    def prepare(self) -> None:
        self._directory = self.folder / f"tinc-{self.side.name}"
        self._directory.mkdir()
        hosts = self.folder / "tinc-hosts"  # Shared: each end needs the public key of the other.
        hosts.mkdir(exist_ok=True)
        (self._directory / "hosts").symlink_to(hosts)
        settings = [
            f"Name = {self.side.name}",
            "Mode = switch",
            "Interface = tap0",
            "AddressFamily = ipv4",
        ]
        if self.side is LEFT:
            settings.append(f"ConnectTo = {self.side.peer_name}")
        (self._directory / "tinc.conf").write_text("\n".join(settings) + "\n")
        (hosts / self.side.name).write_text(
            f"Address = {self.side.underlay}\nCipher = none\nDigest = none\nCompression = 0\n"
        )
        # Without a terminal, it does not ask and uses the default files.
        self.host.run("tincd", f"--config={self._directory}", "--generate-keys=2048")

    def start(self) -> None:
        pid_file = f"--pidfile={self._directory / 'pid'}"
        self._launch("tincd", "tincd", f"--config={self._directory}", pid_file, "--no-detach")
        self._await_device("tap0")
        self._address("tap0")

    def settled(self) -> bool:
        """Return whether path MTU discovery is done; until then, tinc sends everything by TCP."""
        self._processes["tincd"].send_signal(signal.SIGUSR2)
        found = re.findall(rf"{self.side.peer_name} at .*pmtu (\d+) \(min (\d+)", self.log("tincd"))
        return bool(found) and found[-1][0] == found[-1][1] and int(found[-1][0]) >= self.mtu

    @classmethod
    def versions(cls) -> dict[str, str]:
        return {"tinc": first_line("tincd", "--version")}


class WireguardGo(End):
    """wireguard-go: a routed tunnel, and the only one here that encrypts, which is mandatory."""

    needs = ("wireguard-go", "wg")
    mtu = 1440

    def prepare(self) -> None:
        private = self.host.run("wg", "genkey")
        self._key = self.folder / f"wg-{self.side.name}.key"
        self._key.touch(mode=0o600)
        self._key.write_text(private)
        public = subprocess.run(
            ["wg", "pubkey"], input=private, capture_output=True, text=True, check=True
        )
        self._public_key_of(self.side.name).write_text(public.stdout)

    def start(self) -> None:
        # Its control socket has a fixed path in /run, so each end gets a /run of its own.
        pid = self._launch(
            "wireguard-go",
            *("unshare", "--mount", "--", "sh", "-c"),
            "mount -t tmpfs none /run && exec wireguard-go --foreground wg0",
        )

        def wg(*arguments: str) -> str:
            return self.host.run(
                "nsenter", f"--mount=/proc/{pid}/ns/mnt", "--", "wg", *arguments, check=False
            )

        self._await_device("wg0")
        wait_until(lambda: "interface: wg0" in wg("show", "wg0"), "wireguard-go to listen to wg")
        peer = self._public_key_of(self.side.peer_name).read_text().strip()
        wg(
            *("set", "wg0", "listen-port", "51820", "private-key", str(self._key)),
            *("peer", peer, "endpoint", f"{self.side.peer_underlay}:51820"),
            *("allowed-ips", f"{self.side.peer_overlay}/32"),
        )
        self._address("wg0")

    @classmethod
    def versions(cls) -> dict[str, str]:
        return {"wireguard-go": first_line("wireguard-go", "--version")}

    def _public_key_of(self, name: str) -> Path:
        return self.folder / f"wg-{name}.pub"


class Vdeplug(End):
    """The vxlan:// plug-in of libvdeplug, which supports multicast groups only.

    nftables on its host turns its multicast into unicast. Its address table is broken in Debian 12
    (every send to a learned address fails), so it runs without one.
    """

    needs = ("nft", "vde_plug")

    def prepare(self) -> None:
        rules = self.folder / f"vde-{self.side.name}.nft"
        rules.write_text(
            "table ip vde { chain out { type route hook output priority mangle\n"
            f"ip daddr 239.0.0.1 udp dport {PORT} ip daddr set {self.side.peer_underlay}\n}}\n}}\n"
        )
        self.host.run("nft", "-f", str(rules))

    def start(self) -> None:
        url = f"vxlan://239.0.0.1/v4/port={PORT}/vni={VNI}/ttl=64/hashsize=0/if={CABLE}"
        self._launch("vde_plug", "vde_plug", url, "tap://tap0", stdin=subprocess.PIPE)
        self._await_device("tap0")
        self._address("tap0")

    @classmethod
    def versions(cls) -> dict[str, str]:
        command = ("dpkg-query", "-W", "-f", "${Version}", "libvdeplug2")
        return {"vdeplug": first_line(*command)}


class Tunnel:
    """A running subject between two hosts."""

    def __init__(self, underlay: Underlay, left: End, right: End) -> None:
        self.underlay = underlay
        self.left = left
        self.right = right

    @property
    def mtu(self) -> int:
        return min(self.left.mtu, self.right.mtu)

    def pids(self) -> list[int]:
        """Return the processes of both ends."""
        return [*self.left.pids(), *self.right.pids()]

    def check(self) -> None:
        """Raise VtepError if a process of the tunnel has ended."""
        self.left.check()
        self.right.check()

    def verify(self) -> None:
        """Raise VtepError if what has been measured is not what the subject promises."""
        self.left.verify()
        self.right.verify()

    def answers(self) -> bool:
        """Return whether a ping is answered."""
        self.check()
        command = ("ping", "-c1", "-W1", self.left.side.peer_overlay)
        return " 1 received" in self.left.host.run(*command, check=False)


@frozen
class Subject:
    """A named pair of ends; flows go from left to right unless a workload differs."""

    name: str
    label: str
    left: type[End]
    right: type[End]

    def versions(self) -> dict[str, str]:
        return {**self.left.versions(), **self.right.versions()}

    @contextmanager
    def running(self, folder: Path, underlay: Underlay, choices: Choices) -> Iterator[Tunnel]:
        """Run this tunnel between two new hosts, which are removed after the block.

        Raises: VtepError with the reason if the underlay or the tunnel does not start.
        """
        for command in ("ethtool", *self.left.needs, *self.right.needs):
            if shutil.which(command) is None:
                raise VtepError(f"{command} is not installed")
        with Lab() as lab:
            hosts = (lab.host(LEFT.name), lab.host(RIGHT.name))
            lab.wire(*hosts, CABLE, CABLE_MTU)
            ends: list[End] = []
            for kind, host, side in zip((self.left, self.right), hosts, (LEFT, RIGHT), strict=True):
                underlay.apply(host)
                host.run("ip", "addr", "add", f"{side.underlay}/24", "dev", CABLE)
                ends.append(kind(host, side, folder, choices))
            for end in ends:
                end.prepare()
            for end in ends:
                end.start()
            tunnel = Tunnel(underlay, *ends)
            wait_until(tunnel.answers, "a ping through the tunnel", 20)
            for end in ends:
                wait_until(end.settled, "the tunnel to settle", 20)
            yield tunnel


def first_line(*command: str) -> str:
    """Return the first line of the output of a command, or the error that it caused."""
    if shutil.which(command[0]) is None:
        return "not installed"
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0].strip() if lines else "unknown"


def _distribution(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("kernel", "kernel driver", Kernel, Kernel),
        Subject("pyvtep-fast", "pyvtep, fast path", PyvtepFast, PyvtepFast),
        Subject("pyvtep-slow", "pyvtep, no fast path", PyvtepSlow, PyvtepSlow),
        Subject("observed", "pyvtep, observed", PyvtepFast, PyvtepFast),
        Subject("from-kernel", "kernel to pyvtep", Kernel, PyvtepFast),
        Subject("to-kernel", "pyvtep to kernel", PyvtepFast, Kernel),
        Subject("ovs", "Open vSwitch userspace", OpenVswitch, OpenVswitch),
        Subject("tinc", "tinc, no cipher", Tinc, Tinc),
        Subject("wireguard-go", "wireguard-go", WireguardGo, WireguardGo),
        Subject("vdeplug", "vdeplug", Vdeplug, Vdeplug),
    )
}
"""All subjects, in the order of the tables and of each round."""
