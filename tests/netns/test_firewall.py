"""Firewall rules that drop datagrams are found on a real host, and the suggested fix works."""

import socket
from typing import Self

import pytest

from tests.netns.hosts import udp_socket, wait_until
from vtep.host.firewall import ARP, CROSSING, INCOMING, OUTGOING, PacketPattern, Verdict
from vtep.host.netfilter import Rules
from vtep.testing.lab import Host, Lab

PORT = 4789
HERE = {4: "192.0.2.1", 6: "2001:db8::1"}
THERE = {4: "192.0.2.2", 6: "2001:db8::2"}


def base(family: str, hook: str, *rules: str, policy: str = "accept", name: str = "fw") -> str:
    """Build the nft command that adds a table with one base chain."""
    device = "device eth0" if hook in ("ingress", "egress") else ""
    head = f"type filter hook {hook} {device} priority 0; policy {policy};"
    return f"add table {family} {name} {{ chain guard {{ {head} {'; '.join(rules)}; }}; }}"


def drops(*options: str) -> str:
    return f"-p udp --dport {PORT} {' '.join(options)} -j DROP"


THREE_CHAINS = (
    "nft " + base("inet", "input", "udp dport { 53, 4789 } drop"),
    "nft " + base("IP", "input", "th dport >= 4000 drop", name="other"),
    "nft " + base("inet", "prerouting", "udp dport vmap { 53 : accept, 4789 : drop }", name="x"),
)
INCOMING_DROPPED: list[tuple[str, ...]] = [
    ("nft " + base("IP", "prerouting", "udp dport 4789 drop"),),
    ("nft " + base("inet", "input", "ct state established accept", policy="drop"),),
    ("nft " + base("netdev", "ingress", "udp dport 4789 drop"),),
    ("nft " + base("inet", "ingress", "udp dport 4789 drop"),),
    ("nft " + base("inet", "input", "meta l4proto udp reject"),),
    THREE_CHAINS,
    (f"IPTABLES -A INPUT {drops()}",),
    (f"IPTABLES -t raw -A PREROUTING {drops('-i eth0')}",),
    (f"IPTABLES-legacy -A INPUT {drops()}", "IPTABLES -A INPUT -j ACCEPT"),
]
OUTGOING_DROPPED: list[tuple[str, ...]] = [
    ("nft " + base("inet", "output", "udp dport 4789 drop"),),
    ("nft " + base("IP", "output", "meta l4proto udp reject"),),
    ("nft " + base("inet", "postrouting", "oifname eth0 th dport 4789 drop"),),
    ("nft " + base("netdev", "egress", "udp dport 4789 drop"),),
    (f"IPTABLES -A OUTPUT {drops()}",),
    ("IPTABLES -N mine", f"IPTABLES -A mine {drops()}", "IPTABLES -A OUTPUT -j mine"),
    (f"IPTABLES -t mangle -A POSTROUTING {drops('-o eth0')}",),
    (f"IPTABLES-legacy -t mangle -A OUTPUT {drops()}",),
]


def wall(host: Host, version: int, *commands: str) -> None:
    for command in commands:
        words = command.replace("IPTABLES", "iptables" if version == 4 else "ip6tables")
        program, _, rest = words.replace(" IP ", " ip " if version == 4 else " ip6 ").partition(" ")
        # nft gets braces and semicolons directly; only the suggested fix goes through a shell.
        host.run(program, *([rest] if program == "nft" else rest.split()))


class Datagrams:
    """Sends datagrams to the VXLAN port between two hosts."""

    def __init__(self, a: Host, b: Host, version: int, *, come: bool) -> None:
        source, sink = (b, a) if come else (a, b)
        self._to = (HERE if come else THERE)[version]
        self._receiver = udp_socket(sink, self._to, PORT)
        with source.inside():
            self._sender = socket.socket(self._receiver.family, socket.SOCK_DGRAM)
        self._number = 0

    def arrive(self, timeout: float = 0.2) -> bool:
        """Send a datagram. Returns: whether it arrives within `timeout` seconds."""
        self._number += 1
        sent = self._number.to_bytes(4)
        try:
            self._sender.sendto(sent, (self._to, PORT))
        except (PermissionError, ConnectionRefusedError):
            return False
        self._receiver.settimeout(timeout)
        try:
            while self._receiver.recv(10) != sent:  # An earlier one may arrive late.
                pass
        except TimeoutError:
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._receiver.close()
        self._sender.close()


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def version(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


def verdict(host: Host, packet: PacketPattern, *hooks: str) -> Verdict | None:
    with host.inside():
        return Rules.read().verdict(packet, *hooks)


def test_dropping_rule_is_named_and_its_fix_works(pair: tuple[Host, Host], version: int) -> None:
    a, b = pair
    here, there = HERE[version], THERE[version]
    received = PacketPattern(version, there, PORT, "eth0", destination=here)
    sent = PacketPattern(version, here, PORT, out="eth0", destination=there)
    walls = [(commands, received, INCOMING) for commands in INCOMING_DROPPED]
    walls += [(commands, sent, OUTGOING) for commands in OUTGOING_DROPPED]
    for commands, packet, hooks in walls:
        with Datagrams(a, b, version, come=packet is received) as datagrams:
            wait_until(datagrams.arrive, "a host without firewall")
            wall(a, version, *commands)
            assert not datagrams.arrive(timeout=0.05), commands
            found = verdict(a, packet, *hooks)
            assert found is not None, commands
            assert found.certain, (commands, found)
            a.run("sh", "-c", found.fix)
            wait_until(datagrams.arrive, f"{commands}: {found.fix}")
            assert verdict(a, packet, *hooks) is None, commands
        a.run("nft", "flush", "ruleset")
        for table in ("filter", "mangle") if "legacy" in commands[0] else ():
            program = "iptables-legacy" if version == 4 else "ip6tables-legacy"
            a.run(program, "-t", table, "-F")


@pytest.fixture
def bridged(lab: Lab) -> tuple[Host, Host]:
    """Return a host with a bridge, and a guest on it; the other port of the bridge is p0."""
    a, guest = lab.host("a"), lab.host("guest")
    a.run("ip", "link", "add", "br0", "up", "type", "bridge", "forward_delay", "0")
    a.run("ip", "link", "add", "p1", "type", "veth", "peer", "name", "eth0", "netns", guest.pid)
    a.run("ip", "link", "add", "p0", "type", "veth", "peer", "name", "far")
    for device in ("p0", "p1"):
        a.run("ip", "link", "set", device, "up", "master", "br0")
    a.run("ip", "link", "set", "far", "up")
    guest.run("ip", "link", "set", "eth0", "up")
    return a, guest


FRAME = bytes.fromhex("ffffffffffff020000000001")
ARP_REQUEST = FRAME + bytes.fromhex("0806000108000604000102000000000110000001000000000000ffffffff")


@pytest.mark.parametrize("hook", ["prerouting", "forward", "postrouting"])
def test_rule_that_drops_bridged_frames_is_named(bridged: tuple[Host, Host], hook: str) -> None:
    a, guest = bridged
    with a.inside():
        far = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        far.bind(("far", 0))
    with guest.inside():
        receiver = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
        receiver.bind(("eth0", 0x0806))

    def passes(timeout: float = 0.2) -> bool:
        receiver.settimeout(timeout)
        far.send(ARP_REQUEST.ljust(60, b"\0"))
        try:
            return receiver.recv(1500).startswith(ARP_REQUEST)
        except TimeoutError:
            return False

    with far, receiver:
        wait_until(passes, "a bridge without firewall")
        a.run("nft", base("bridge", hook, "ether type arp drop"))
        assert not passes(0.05)
        packet = PacketPattern(ARP, device="p0", out="p1", bridge="br0", accept_by="p0")
        found = verdict(a, packet, *CROSSING)
        assert found is not None
        assert "“ether type arp drop” (handle 2) in chain guard of the nftables table bridge" in (
            found.rule
        )
        a.run("sh", "-c", found.fix)
        wait_until(passes, found.fix)
