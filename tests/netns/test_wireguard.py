"""The page about WireGuard, command by command, with WireGuard in userspace."""

import json
import re
import shlex
import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.netns.hosts import Pyvtep, mtu_of, ping, pyvtep, wait_for_mtu, wait_until
from tests.netns.test_documentation import commands, hosts
from vtep.testing.lab import Host

pytestmark = pytest.mark.skipif(
    shutil.which("wireguard-go") is None or shutil.which("wg") is None,
    reason="needs wireguard-go and wireguard-tools",
)

__all__ = ["hosts"]


def test_a_segment_inside_wireguard(hosts: dict[str, Host], tmp_path: Path) -> None:
    a, b = hosts.values()
    running: list[Pyvtep] = []
    for prompt, command, _ in commands("docs/wireguard.md", "Two hosts"):
        host = hosts[prompt]
        # Keys and keys' paths of the page are those of one host: here, of a test.
        local = re.sub(r"/etc/wireguard|/tmp(?=/host)", str(tmp_path), command)
        program, *words = shlex.split(local)
        if program == "pyvtep":
            running.append(Pyvtep(host, tmp_path, *words).ready())
        elif program == "ping":
            ping(host, *words)
        elif program == "wireguard-go":
            # In the background, it would outlive the test and keep its control socket.
            host.start("env", "WG_PROCESS_FOREGROUND=1", program, *words)
            wait_until(partial(host.run, "wg", "show", *words, check=False), "wireguard-go")
        else:
            # The lines of wireguard-go about the kernel's own driver are no errors.
            host.run("sh", "-ec", local)
    assert mtu_of(a) == mtu_of(b) == 1370
    control = str(running[0].control)
    report = json.loads(pyvtep(a, "doctor", "--json", "--socket", control).stdout)
    assert [each["encryption"] for each in report["facts"]["remotes"]] == ["wireguard"]
    assert "not encrypted" in pyvtep(a, "doctor", "--remote", "172.31.0.107").stdout
    a.run("ip", "link", "set", "wg106", "mtu", "1440")
    wait_for_mtu(a, 1390)
    for vtep in running:
        assert vtep.stop() == 0
