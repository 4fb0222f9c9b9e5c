"""Error messages at the start: one line that names the option, and an exit code."""

import subprocess
import sys

import pytest

from tests.netns.hosts import (
    Pair,
    Start,
    address,
    has_device,
    kernel_vtep,
    ping,
    segment,
    udp_socket,
)
from vtep.testing.lab import Host

GOOD = segment(1, "192.0.2.2")
UNPRIVILEGED = ("setpriv", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs")


def run_refused(host: Host, *arguments: str, code: int, prefix: tuple[str, ...] = ()) -> str:
    """Run pyvtep and return its messages; it must exit with `code`."""
    child = host.start(
        *(*prefix, sys.executable, "-m", "vtep", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = child.communicate(timeout=20)
    assert child.returncode == code, err
    assert out == ""
    said: str = err
    return said


def refusal(host: Host, *arguments: str, code: int = 1, prefix: tuple[str, ...] = ()) -> str:
    """Run pyvtep and return its only line; it must exit with `code`."""
    err = run_refused(host, *arguments, code=code, prefix=prefix)
    assert err.count("\n") == 1, err
    assert err.startswith("pyvtep: error: ")
    assert not has_device(host)
    return err.strip()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--remote", "192.0.2.2"], "--vni is missing"),
        (segment(1 << 24, "192.0.2.2"), "--vni 16777216: must be from 0 to 16777215"),
        (segment(-1, "192.0.2.2"), "--vni -1"),
        (["--vni", "one", "--remote", "192.0.2.2"], "--vni one: is not a whole number"),
        (["--vnii", "1"], "No such option"),
        (["--vni"], "requires an argument"),
        ([*GOOD, "--remote", "192.0.2.2"], "--remote 192.0.2.2: is given twice"),
        ([*GOOD, "--local", "2001:db8::1"], "--local 2001:db8::1: is IPv6"),
        ([*GOOD, "--local", "192.0.2.2"], "--local address of this host"),
        (segment(1, "host example"), "--remote host example: is not one remote but several"),
        (segment(1, "239.1.1.1"), "--remote 239.1.1.1: is a multicast group"),
        ([*GOOD[:-1], "a-name-of-16-oct"], "--tap a-name-of-16-oct: is too long"),
        ([*GOOD[:-1], "vx/0"], "--tap 'vx/0': is not a name"),
        ([*GOOD, "--dstport", "65536"], "--dstport 65536"),
        ([*GOOD, "--mtu", "67"], "--mtu 67: must be from 68"),
        ([*GOOD, "--mac", "01:00:00:00:00:01"], "--mac 01:00:00:00:00:01: must be a unicast"),
        ([*GOOD, "--address", "10.0.0.1/33"], "--address 10.0.0.1/33"),
        ([*GOOD, "--ageing", "nan"], "--ageing nan"),
        ([*GOOD, "stray"], "No such command 'stray'"),
        ([*GOOD, "demo"], "demo takes no --"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_usage_error(pair: Pair, arguments: list[str], words: str) -> None:
    assert words in refusal(pair[0], *arguments, code=2)


def test_no_privilege(pair: Pair) -> None:
    line = refusal(pair[0], *GOOD, prefix=UNPRIVILEGED)
    assert "no privilege" in line
    assert "ip tuntap add vx0 mode tap user" in line


def test_no_tun_device(pair: Pair) -> None:
    without = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net; exec "$@"', "sh")
    line = refusal(pair[0], *GOOD, prefix=without)
    assert "cannot open /dev/net/tun: no such file" in line
    assert "modprobe tun" in line


def test_port_in_use_by_a_program(pair: Pair) -> None:
    with udp_socket(pair[0], "192.0.2.1", 4789):
        line = refusal(pair[0], *GOOD)
    assert line.startswith("pyvtep: error: --dstport 4789: this UDP port is taken")


def test_port_in_use_by_the_kernel_driver(pair: Pair) -> None:
    kernel_vtep(pair[0], 9, "192.0.2.1", "192.0.2.2", device="kernel0")
    assert "kernel VXLAN device" in refusal(pair[0], *GOOD)


def test_tap_in_use_by_another_process(pair: Pair, start: Start) -> None:
    start(pair[0], *segment(1, "192.0.2.2")[:-1], "vx9")
    arguments = ["--vni", "2", "--remote", "192.0.2.2", "--tap", "vx9", "--dstport", "4790"]
    assert "--tap vx9: another process has this device" in refusal(pair[0], *arguments)


def test_tap_name_taken_by_another_kind_of_device(pair: Pair) -> None:
    line = refusal(pair[0], *GOOD[:-1], "eth0")
    assert "--tap eth0: a network device of this name exists and is not a free TAP" in line


def test_remote_is_an_address_of_this_host(pair: Pair) -> None:
    for own in ("192.0.2.1", "2001:db8::1"):
        line = refusal(pair[0], *segment(1, own))
        assert f"--remote {own} is an address of this host itself" in line


def test_mtu_that_does_not_fit(pair: Pair) -> None:
    """With DF set; otherwise the underlay fragments (see test_mtu.py)."""
    line = refusal(pair[0], *GOOD, "--df", "set", "--mtu", "1451")
    assert "--mtu 1451: does not fit" in line
    assert "leaves 1450" in line
    line = refusal(pair[0], *segment(1, "2001:db8::2"), "--df", "set", "--mtu", "1431")
    assert "leaves 1430" in line


def test_underlay_mtu_too_small(pair: Pair) -> None:
    pair[0].run("ip", "link", "set", "eth0", "mtu", "100")
    assert "too small for VXLAN" in refusal(pair[0], *GOOD)


def test_address_that_the_kernel_refuses(pair: Pair) -> None:
    pair[0].run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
    line = refusal(pair[0], *GOOD, "--address", "fd00::1/64")
    assert "--address fd00::1/64: the kernel refused it for vx0" in line
    assert "is IPv6 disabled" in line


def test_debug_shows_a_traceback(pair: Pair) -> None:
    child = pair[0].start(
        *(sys.executable, "-m", "vtep", *segment(1, "192.0.2.1"), "--debug"),
        stderr=subprocess.PIPE,
        text=True,
    )
    _, err = child.communicate(timeout=20)
    assert child.returncode == 1
    assert "Traceback" in err
    assert "--remote 192.0.2.1 is an address of this host itself" in err


def test_a_prepared_tap_needs_no_privilege(pair: Pair, start: Start) -> None:
    a, b = pair
    a.run("ip", "tuntap", "add", "vx0", "mode", "tap", "user", "root")
    line = refusal_with_tap(a)
    assert "no privilege to set it up" in line
    assert "ip link set vx0 up mtu 1450" in line
    a.run("ip", "link", "set", "vx0", "up", "mtu", "1450")
    line = refusal_with_tap(a, "--address", "10.0.0.1/24")
    assert "--address 10.0.0.1/24: no privilege to add it" in line
    assert "ip address add 10.0.0.1/24 dev vx0" in line
    address(a, "vx0", "10.0.0.1/24")
    vtep = start(a, *GOOD, "--address", "10.0.0.1/24", prefix=UNPRIVILEGED)
    line = vtep.run("set", "--address", "10.0.0.2/24", code=1)
    assert line.startswith("--address 10.0.0.2/24: no privilege to add it")
    line = vtep.run("set", "--mtu", "1300", "--address", "10.0.0.2/24", code=1)
    assert "no privilege to set it up" in line
    assert "rollback" not in vtep.log  # Nothing was done that would have to be rolled back.
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    ping(a, "10.0.0.2")
    assert vtep.stop() == 0
    assert has_device(a)  # pyvtep must not remove a device that it did not create.


def refusal_with_tap(host: Host, *arguments: str) -> str:
    child = host.start(
        *(*UNPRIVILEGED, sys.executable, "-m", "vtep", *GOOD, *arguments),
        stderr=subprocess.PIPE,
        text=True,
    )
    _, err = child.communicate(timeout=20)
    assert child.returncode == 1
    line: str = err
    return line
