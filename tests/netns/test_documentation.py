"""The examples of the documentation, run on hosts that have the addresses of the examples."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.fabric import Frr
from tests.netns.hosts import Pyvtep, address, ping, wait_until
from vtep.testing.lab import Host, Lab

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hosts(lab: Lab) -> dict[str, Host]:
    """Return the hosts of the examples by their prompts."""
    a, b = lab.host("host-106"), lab.host("host-107")
    lab.wire(a, b)
    address(a, "eth0", "172.31.0.106/24")
    address(b, "eth0", "172.31.0.107/24")
    return {"host-106": a, "host-107": b}


def section(page: str, heading: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield the prompt, the words and the output of each command in a section of a page."""
    for prompt, command, output in commands(page, heading):
        yield prompt, shlex.split(command), output


def commands(page: str, heading: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield the prompt, the text and the output of each command in a section of a page."""
    text = (ROOT / page).read_text()
    (body,) = re.findall(rf"^## {heading}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    for block in re.findall(r"^```console\n(.*?)^```$", body, re.MULTILINE | re.DOTALL):
        joined = re.sub(r"\\\n\s*", "", block)
        for part in re.split(r"^(?=[\w-]*[#$] )", joined, flags=re.MULTILINE)[1:]:
            typed, *output = part.splitlines()
            prompt, command = re.split("[#$] ", typed, maxsplit=1)
            yield prompt, command, output


@pytest.mark.parametrize(
    ("page", "heading"),
    [
        ("README.md", "Two hosts"),
        ("docs/getting-started.md", "A segment between two hosts"),
    ],
)
def test_two_hosts(page: str, heading: str, hosts: dict[str, Host], tmp_path: Path) -> None:
    running: list[Pyvtep] = []
    pinged = False
    for prompt, (program, *words), output in section(page, heading):
        host = hosts[prompt]
        if program == "pyvtep":
            vtep = Pyvtep(host, tmp_path, *words).ready()
            running.append(vtep)
            for shown in output:  # Which offloads there are depends on the kernel.
                line = shown.removeprefix("pyvtep: ").rpartition(" ")[0]
                assert line in vtep.log
        elif program == "ping":
            ping(host, *words)
            pinged = True
        else:
            host.run(program, *words)
    assert len(running) == 2
    assert pinged
    for vtep in running:
        assert vtep.stop() == 0


def test_the_kernel_driver_as_remote(hosts: dict[str, Host], tmp_path: Path) -> None:
    a, b = hosts.values()
    for _, (program, *words), _ in section("docs/interoperability.md", "The kernel driver"):
        b.run(program, *words)
    address(b, "vx0", "10.0.0.2/24")
    arguments = ("--vni", "1", "--remote", "172.31.0.107", "--tap", "vx0")
    vtep = Pyvtep(a, tmp_path, *arguments, "--address", "10.0.0.1/24").ready()
    ping(a, "10.0.0.2")
    assert vtep.stop() == 0


def test_a_leaf_next_to_frr(hosts: dict[str, Host], tmp_path: Path) -> None:
    frr = Frr(hosts["host-107"], tmp_path, "")
    running: list[Pyvtep] = []
    pinged = False
    for prompt, (program, *words), _ in section("docs/evpn.md", "A leaf next to FRR"):
        host = hosts[prompt]
        if program == "pyvtep":
            running.append(Pyvtep(host, tmp_path, *words).ready())
        elif program == "vtysh":
            assert "%" not in frr.vtysh(*(word for word in words if word != "-c"))
        elif program == "ping":
            ping(host, words[-1])
            pinged = True
        else:
            host.run(program, *words)
    (vtep,) = running
    assert pinged
    assert "172.31.0.107" in vtep.run("evpn", "show", "macs")
    assert set(frr.remote_macs(100).values()) == {"172.31.0.106"}
    assert vtep.stop() == 0


def test_reflectors(hosts: dict[str, Host], tmp_path: Path) -> None:
    """Each configuration of a reflector brings up a session with a leaf."""
    leaf, reflector = hosts.values()
    page = (ROOT / "docs/evpn.md").read_text()
    (body,) = re.findall(r"^## Route reflectors$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    frr_config, gobgp_config = re.findall(r"^```\w+\n(.*?)^```$", body, re.MULTILINE | re.DOTALL)
    arguments = ("--vni", "100", "--asn", "65000", "--evpn-neighbor", "172.31.0.107")
    vtep = Pyvtep(leaf, tmp_path, *arguments).ready()

    def is_established() -> bool:
        with vtep.client() as client:
            evpn = client.status()["evpn"]
        assert evpn is not None
        return any(session["state"] == "established" for session in evpn["sessions"])

    frr = Frr(reflector, tmp_path, frr_config)
    wait_until(is_established, "the session with FRR")
    frr.kill_bgpd()
    wait_until(lambda: not is_established(), "the end of the session with FRR")
    file = tmp_path / "gobgpd.conf"
    file.write_text(gobgp_config)
    with reflector.start("gobgpd", "-f", str(file)) as gobgpd:
        wait_until(is_established, "the session with gobgpd")
        gobgpd.terminate()
    assert vtep.stop() == 0
