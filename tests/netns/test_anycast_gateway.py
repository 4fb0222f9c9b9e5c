"""Two hosts whose bridges have the same gateway address, which both must keep."""

from collections.abc import Callable
from functools import partial

from tests.netns.hosts import Pyvtep, wait_until
from vtep.testing.lab import Host

GATEWAY = "fd00:18::1"


def bridge(host: Host) -> None:
    host.run("ip", "link", "add", "br0", "type", "bridge")
    # Long enough for both to probe at the same time, however busy the machine is.
    host.run("sysctl", "-qw", "net.ipv6.conf.br0.dad_transmits=4")
    host.run("ip", "link", "set", "br0", "up")


def gateway(host: Host) -> str:
    """Return the gateway address of a host, with its flags."""
    return host.run("ip", "-6", "addr", "show", "dev", "br0", "to", f"{GATEWAY}/128")


def is_checked(host: Host) -> bool:
    return "tentative" not in gateway(host)


def test_simultaneous_duplicate_address_detection_keeps_both(
    pair: tuple[Host, Host], start: Callable[..., Pyvtep]
) -> None:
    """As when two hosts with an IPv6 network of Docker start at the same time."""
    remotes = ("192.0.2.2", "192.0.2.1")
    vteps = []
    for host, remote in zip(pair, remotes, strict=True):
        bridge(host)
        options = ("--bridge", "br0", "--anycast-gateway", GATEWAY)
        vteps.append(start(host, "--vni", "1", "--remote", remote, "--tap", "vx0", *options))
    for host in pair:
        host.run("ip", "addr", "add", f"{GATEWAY}/64", "dev", "br0")
    for host in pair:
        assert not is_checked(host)
    for host, vtep in zip(pair, vteps, strict=True):
        wait_until(partial(is_checked, host), "the end of the check")
        assert GATEWAY in gateway(host)
        assert "dadfailed" not in gateway(host)
        assert vtep.counter("anycast_gw_suppressed_rx") > 0
