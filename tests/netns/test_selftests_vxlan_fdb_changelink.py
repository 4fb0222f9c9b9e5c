"""The assertions of the kernel's test_vxlan_fdb_changelink.sh: changes keep the flood list."""

import json
from contextlib import ExitStack

from scapy.layers.l2 import Ether

from tests.netns.hosts import (
    Pair,
    Start,
    packet_socket,
    udp_socket,
    wait_until,
)
from vtep.wire import vxlan

ZERO = "00:00:00:00:00:00"
STATIC, LEARNED = "02:00:00:00:00:01", "02:00:00:00:00:02"


def test_flood_list_survives_a_change_of_the_remote(pair: Pair, start: Start) -> None:
    vtep = start(pair[0], "--vni", "2000", "--tap", "vx0")

    def remotes() -> set[str]:
        found = json.loads(vtep.invoke("fdb show --json"))
        return {
            to["dst"] for entry in found if entry["mac"] == ZERO for to in entry["destinations"]
        }

    for remote in ("192.0.2.20", "192.0.2.30"):
        vtep.invoke(f"fdb append {ZERO} dst {remote} permanent")
    assert remotes() == {"192.0.2.20", "192.0.2.30"}
    vtep.invoke("set --remote 192.0.2.30")
    assert remotes() == {"192.0.2.20", "192.0.2.30"}
    # Only the remote that the configuration had named is removed.
    vtep.invoke("set --remote 192.0.2.40")
    assert remotes() == {"192.0.2.20", "192.0.2.40"}
    vtep.invoke("set --group 239.1.1.1 --dev eth0")
    assert remotes() == {"192.0.2.20", "192.0.2.40", "239.1.1.1"}
    vtep.invoke("set --group 239.1.1.2")
    assert remotes() == {"192.0.2.20", "192.0.2.40", "239.1.1.2"}


def test_entry_of_an_ip_version_without_a_listener(pair: Pair, start: Start) -> None:
    """Pyvtep sends to it nevertheless, and logs that it cannot receive replies."""
    a, b = pair
    with udp_socket(a, "2001:db8::1", 4790), udp_socket(b, "2001:db8::2", 4790) as receiver:
        vtep = start(a, "--vni", "1", "--tap", "vx0", "--dstport", "4790", "--local", "192.0.2.1")
        vtep.invoke(f"fdb append {ZERO} dst 2001:db8::2")
        wait_until(lambda: "cannot listen on IPv6: --dstport 4790: " in vtep.log, "a word")
        assert receiver.recv(2048)[:8] == bytes.fromhex("0800000000000100")


def test_learned_entries_follow_a_change_of_the_port(pair: Pair, start: Start) -> None:
    """Also from a host that only a static entry names; the port of that entry stays."""
    a, b = pair
    vtep = start(a, "--vni", "1", "--tap", "vx0")
    vtep.invoke(f"fdb add {STATIC} dst 192.0.2.2 port 4790 static")
    ports = (4789, 4790, 8472)
    with ExitStack() as stack:
        tap = stack.enter_context(packet_socket(a, "vx0"))
        sender = stack.enter_context(udp_socket(b, "192.0.2.2"))
        receivers = {port: stack.enter_context(udp_socket(b, "192.0.2.2", port)) for port in ports}

        def reaches(port: int, mac: str) -> None:
            frame = bytes(Ether(src="02:00:00:00:00:99", dst=mac, type=0x88B5)) + b"%050d" % port
            tap.send(frame)
            assert receivers[port].recv(2048)[8:] == frame

        for port in (4789, 8472):
            vtep.invoke(f"set --dstport {port}")
            frame = bytes(Ether(src=LEARNED, dst="ff:ff:ff:ff:ff:ff", type=0x88B5) / bytes(50))
            sender.sendto(vxlan.pack(1) + frame, ("192.0.2.1", port))
            wait_until(lambda: LEARNED in vtep.invoke("fdb show dynamic"), "it to be learned")
            reaches(port, LEARNED)
            reaches(4790, STATIC)
