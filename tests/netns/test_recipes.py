"""The recipes of the documentation, step by step, with the real daemons on two hosts."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.netns.engines import Engine
from tests.netns.hosts import DEADLINE, Pyvtep, has_device, mtu_of, ping, wait_until
from tests.netns.sandboxes import Sandbox, busybox
from tests.netns.test_documentation import ROOT, hosts
from tests.packages import run
from vtep.errors import VtepError
from vtep.testing.lab import Host

__all__ = ["hosts"]

Shell = Callable[[str], str]

_BOOT = 120.0
"""Seconds that an emulated machine may take to boot on a busy one; it takes five on an idle one."""

_IMAGE = "docker.io/library/busybox"

_DOMAIN = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>box</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>/boot/ipxe.lkrn</kernel><cmdline>dhcp || dhcp || dhcp &amp;&amp; shell</cmdline>
  </os>
  <qemu:commandline>
    <qemu:arg value='-global'/><qemu:arg value='virtio-net-pci.romfile='/>
  </qemu:commandline>
</domain>
"""
"""A machine whose system is iPXE: it requests an address, and responds to echo requests.
Without the iPXE in the ROM of its NIC, which first waits for a key, it boots twice as fast."""

_LIBVIRT = """
mkdir -p /var/lib/libvirt/dnsmasq
printf 'auth_unix_ro = "none"\\nauth_unix_rw = "none"\\n' >/etc/libvirt/libvirtd.conf
cat >/etc/libvirt/qemu.conf <<'END'
user = "root"
group = "root"
stdio_handler = "file"
security_driver = "none"
cgroup_controllers = []
namespaces = []
END
"""
"""The parts of libvirt's installation that are in packages with units and users."""


class Recipe:
    """A section of the page, and the hosts on which its steps are done."""

    def __init__(self, heading: str, hosts: dict[str, Host], folder: Path) -> None:
        text = (ROOT / "docs/recipes.md").read_text()
        (self._body,) = re.findall(
            rf"^## {heading}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
        )
        self._hosts = hosts
        self.folders = {prompt: folder / prompt for prompt in hosts}
        """The working directory on each host."""
        for each in self.folders.values():
            each.mkdir(exist_ok=True)

    @contextmanager
    def follow(self, shells: Mapping[str, Shell], instead: Mapping[str, str] = {}) -> Iterator[str]:
        """Write the files of the recipe and run its commands, with some words replaced.

        Yields: the output of the last command, while pyvtep is running.
        """
        running: list[Pyvtep] = []
        output = ""
        for language, block in re.findall(
            r"^```(\w+)\n(.*?)^```$", self._body, re.MULTILINE | re.DOTALL
        ):
            if language != "console":
                self._write(block)
                continue
            for prompt, command, shown in _commands(block):
                program, *words = shlex.split(command)
                if program == "pyvtep":
                    running.append(self._start(prompt, words))
                    continue
                spoken = command
                for word, other in instead.items():
                    spoken = spoken.replace(word, other)
                here = f"cd {self.folders[prompt]} && {spoken}"
                if " ping " in command:
                    wait_until(partial(_succeeds, partial(shells[prompt], here)), command)
                else:
                    output = shells[prompt](here)
                    assert shown in output
        assert len(running) in (0, 2)
        yield output
        for vtep in running:
            assert vtep.stop() == 0

    def _start(self, prompt: str, words: list[str]) -> Pyvtep:
        folder = self.folders[prompt]
        here = [word.replace("/etc/", f"{folder}/") for word in words]
        return Pyvtep(self._hosts[prompt], folder, *here).ready()

    def _write(self, block: str) -> None:
        """Write a file to the hosts that its first line names, which is a comment."""
        named = re.match(r"(?:#|<!--) (\S+) on (host-\d+|both hosts)", block)
        assert named, block
        for prompt, folder in self.folders.items():
            if named[2] in (prompt, "both hosts"):
                (folder / Path(named[1]).name).write_text(block)


def _commands(block: str) -> Iterator[tuple[str, str, str]]:
    """Yield the prompt, the text and the output of each command in a block."""
    joined = re.sub(r"\\\n\s*", "", block)
    for part in re.split(r"^(?=[\w-]+# )", joined, flags=re.MULTILINE)[1:]:
        typed, _, output = part.partition("\n")
        prompt, command = typed.split("# ", maxsplit=1)
        yield prompt, command, output


def _succeeds(run: Callable[[], str]) -> bool:
    try:
        run()
    except VtepError:
        return False
    return True


@pytest.fixture
def recipe(hosts: dict[str, Host], tmp_path: Path) -> Callable[[str], Recipe]:
    """Return a function that finds a recipe by its heading."""
    return lambda heading: Recipe(heading, hosts, tmp_path)


@pytest.fixture
def sandboxes(hosts: dict[str, Host]) -> Iterator[Callable[..., dict[str, Sandbox]]]:
    """Return a function that makes a sandbox of each host."""
    with ExitStack() as stack:
        yield lambda *directories: {
            prompt: stack.enter_context(Sandbox(host, *directories))
            for prompt, host in hosts.items()
        }


def test_docker_and_compose(
    hosts: dict[str, Host], recipe: Callable[[str], Recipe], tmp_path: Path
) -> None:
    # Debian 12 has version 1 of compose, a program of its own.
    instead = {"docker compose": "docker-compose"}
    with ExitStack() as stack:
        engines = {prompt: stack.enter_context(Engine(host)) for prompt, host in hosts.items()}
        plugins = [_start_plugin(engine, tmp_path) for engine in engines.values()]
        shells = {prompt: partial(engine.shell, "sh", "-ec") for prompt, engine in engines.items()}
        with recipe("Docker").follow(shells):
            assert mtu_of(hosts["host-106"], "br-blue") == 1450
        with recipe("Compose without the driver").follow(shells, instead):
            assert mtu_of(hosts["host-106"], "br-green") == 1450
        for engine in engines.values():
            engine.clear()
            wait_until(partial(engine.shell, "sh", "-c", _PLUGIN), "the plug-in")
        with recipe("Compose").follow(shells, instead):
            pass
        for engine, plugin in zip(engines.values(), plugins, strict=True):
            engine.clear()
            plugin.terminate()
            assert plugin.wait(DEADLINE) == 0


_PLUGIN = "ls /run/docker/plugins/pyvtep.sock || true"
"""Prints something while the network driver runs."""


def _start_plugin(engine: Engine, folder: Path) -> "subprocess.Popen[bytes]":
    return engine.host.start(
        *(*engine.enter, sys.executable, "-m", "vtep", "docker", "plugin"),
        *("--state-directory", str(folder / f"state-{engine.host.name}")),
    )


def test_podman(
    hosts: dict[str, Host],
    recipe: Callable[[str], Recipe],
    sandboxes: Callable[..., dict[str, Sandbox]],
    tmp_path: Path,
) -> None:
    a = hosts["host-106"]
    config = tmp_path / "containers.conf"
    # To limit devices, crun first raises a limit of memory, which not every root may do.
    config.write_text('[containers]\ncgroups = "disabled"\n[network]\nnetwork_backend = "netavark"')
    busybox(tmp_path / "root", "ping", "sleep")
    archive = f"tar -C {tmp_path}/root -c ."
    boxes = sandboxes("/var/lib/containers")
    shells = {}
    for prompt, box in boxes.items():
        box.run(f"{archive} | podman import --quiet - {_IMAGE}")
        shells[prompt] = partial(_with_config, box, config)
    with recipe("Podman").follow(shells):
        assert mtu_of(a, "podman1") == 1450
        shells["host-106"]("podman rm --force --time 0 web")
        assert has_device(a, "podman1")  # Without pyvtep, it would end with its last container.


def _with_config(box: Sandbox, config: Path, command: str) -> str:
    return box.run(f"export CONTAINERS_CONF={config}; {command}")


def test_libvirt(
    recipe: Callable[[str], Recipe], sandboxes: Callable[..., dict[str, Sandbox]]
) -> None:
    boxes = sandboxes("/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt")
    for box in boxes.values():
        box.run(f"useradd --system --user-group libvirt-qemu; {_LIBVIRT}")
        box.start("libvirtd", stderr=subprocess.DEVNULL)
    for box in boxes.values():
        wait_until(partial(_succeeds, partial(box.run, "virsh version")), "libvirtd", _BOOT)
    shells = {prompt: box.run for prompt, box in boxes.items()}
    for shell in shells.values():
        shell(f"cat >/run/box.xml <<'END'\n{_DOMAIN}END\nvirsh define /run/box.xml")
    leases = partial(shells["host-106"], "virsh net-dhcp-leases segment")
    with recipe("libvirt").follow(shells):
        wait_until(lambda: leases().count("ipv4") == 2, "the addresses of both machines", _BOOT)
        for address in re.findall(r"[\d.]+(?=/24)", leases()):
            for box in boxes.values():
                ping(box.host, address)


# Not by its program: Ubuntu has one of that name, which installs a snap.
@pytest.mark.skipif(
    not Path("/usr/share/doc/lxd").is_dir(), reason="LXD is no package of this distribution"
)
def test_incus_and_lxd(
    recipe: Callable[[str], Recipe], sandboxes: Callable[..., dict[str, Sandbox]], tmp_path: Path
) -> None:
    image = _lxd_image(tmp_path)
    boxes = sandboxes("/var/lib/lxd")
    for box in boxes.values():
        box.start("lxd", "--group", "root", stderr=subprocess.DEVNULL)
        box.run(
            "lxd waitready --timeout 120; lxc storage create default dir; "
            "lxc profile device add default root disk path=/ pool=default; "
            f"lxc image import {image} --alias alpine"
        )
    shells = {prompt: box.run for prompt, box in boxes.items()}
    instead = {"images:alpine/3.22": "alpine", "web.incus": "web.lxd", "incus": "lxc"}
    with recipe("Incus and LXD").follow(shells, instead):
        said = shells["host-107"]("lxc exec client -- cat /sys/class/net/eth0/mtu")
        assert said.strip() == "1450"


_LEASE = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip link set eth0 mtu ${mtu:-1500}
ip address add $ip/$mask dev eth0
ip route add default via $router
echo nameserver $dns >/etc/resolv.conf
"""


def _lxd_image(folder: Path) -> Path:
    """Make an image whose containers request an address, an MTU and a DNS server."""
    root = folder / "image/rootfs"
    busybox(root, "cat", "init", "ip", "ping", "sh", "udhcpc")
    for each in ("dev", "etc/init.d", "proc", "root", "run", "sbin", "sys", "tmp", "var"):
        (root / each).mkdir(parents=True)
    (root / "sbin/init").symlink_to("/bin/busybox")
    for name, script in (
        ("etc/init.d/rcS", "#!/bin/sh\nexec udhcpc -i eth0 -b -s /etc/lease\n"),
        ("etc/lease", _LEASE),
    ):
        (root / name).write_text(script)
        (root / name).chmod(0o755)
    (folder / "image/metadata.yaml").write_text("architecture: x86_64\ncreation_date: 1\n")
    run("tar", "-C", folder / "image", "-cf", folder / "image.tar", "metadata.yaml", "rootfs")
    return folder / "image.tar"
