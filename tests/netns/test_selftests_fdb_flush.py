"""The assertions of the kernel's fdb_flush.sh for `pyvtep fdb flush`, compared with the driver.

Both tables get the same entries and the same flush; the remaining entries must be equal. pyvtep has
no counterpart to `src_vni`, `nhid` and `router`. The driver has no flush by `via`, which
test_fdb_configuration.py covers.
"""

import itertools
import random
import socket
from pathlib import Path

import pytest
from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST
from pyroute2.netlink.rtnl import RTM_DELNEIGH
from pyroute2.netlink.rtnl.ndmsg import ndmsg

from tests.netns.hosts import (
    Pyvtep,
    Start,
)
from tests.netns.test_fdb_kernel import VNI, Kernel, Row
from vtep.forwarding.fdb import EntryState
from vtep.testing.lab import Host, Lab

NLM_F_BULK = 0x200
NTF_SELF = 2
ZERO = "00:00:00:00:00:00"
ENTRIES = 24
PLACES = [
    f"dst 192.0.2.{host}{port}{vni}{via}"
    for host, port, vni, via in itertools.product(
        (8, 9), ("", " port 1111"), ("", " vni 3000"), ("", " via eth0")
    )
]
KINDS = ("permanent", "static", "dynamic", "permanent extern_learn", "dynamic extern_learn")
BY_KIND = [
    *("permanent", "nopermanent", "static", "nostatic", "dynamic", "nodynamic"),
    *("extern_learn", "noextern_learn", "dynamic extern_learn", "static noextern_learn"),
    *("nopermanent nodynamic", "noextern_learn nostatic"),
]
BY_PLACE = [
    *("dst 192.0.2.8", "port 1111", "port 4789", "vni 3000", f"vni {VNI}"),
    *("dst 192.0.2.9 port 1111", "port 1111 vni 3000", "dst 192.0.2.8 port 1111 vni 3000"),
    *("dst 192.0.2.99", "port 2222"),
]


class Driver(Kernel):
    """The kernel driver, with batched commands and flush filters that iproute2 6.1 lacks."""

    def __init__(self, host: Host, folder: Path) -> None:
        super().__init__(host)
        self._batch = folder / "batch"

    def has(self, lines: list[str]) -> None:
        words = [line.split() for line in lines]
        self._batch.write_text(
            "".join(
                f"fdb {verb} {mac} dev vx0 self {' '.join(rest)}\n" for verb, mac, *rest in words
            )
        )
        self.host.run("bridge", "-batch", str(self._batch))

    def flush(self, words: str) -> None:
        if words in BY_PLACE:
            self._flush_place(dict(zip(*[iter(words.split())] * 2, strict=True)))
        else:
            self.host.run("bridge", "fdb", "flush", "dev", "vx0", "self", *words.split())

    def _flush_place(self, wanted: dict[str, str]) -> None:
        with self.host.inside():
            index = socket.if_nametoindex("vx0")
            netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
        message = ndmsg()
        message["family"] = socket.AF_BRIDGE
        message["ifindex"] = index
        message["flags"] = NTF_SELF
        message["attrs"] = [
            (f"NDA_{name.upper()}", value if name == "dst" else int(value))
            for name, value in wanted.items()
        ]
        message["header"]["type"] = RTM_DELNEIGH
        message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | NLM_F_BULK
        message.encode()
        with netlink:
            netlink.send(message.data)
            assert netlink.recv(4096)[16:20] == bytes(4)  # No error.


def table(dice: random.Random) -> list[str]:
    """Return commands that add entries of every kind, many with several destinations."""
    lines = []
    for number in range(ENTRIES):
        group = "01" if number % 3 == 0 else "02"
        mac = ZERO if number == 0 else f"{group}:00:00:00:00:{number:02x}"
        kinds = KINDS[:1] if number == 0 else KINDS
        kind = dice.choice(kinds)
        several = dice.randint(1, 4) if number % 3 == 0 else 1
        lines += [f"append {mac} {place} {kind}" for place in dice.sample(PLACES, several)]
    return lines


def ours(vtep: Pyvtep) -> list[Row]:
    with vtep.client() as client:
        return sorted(
            (
                entry["mac"],
                to["dst"],
                to["port"],
                to["dst_vni"],
                to["via"] or "",
                EntryState(entry["state"]),
                entry["extern_learn"],
            )
            for entry in client.fdb.show()
            for to in entry["destinations"]
        )


@pytest.fixture
def driver(lab: Lab, tmp_path: Path) -> Driver:
    return Driver(lab.host("kernel"), tmp_path)


def test_flush(lab: Lab, driver: Driver, start: Start) -> None:
    host = lab.host("ours")
    host.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
    vtep = start(host, "--vni", str(VNI), "--tap", "vx0", "--ageing", "0")
    dice = random.Random(13)
    partial = 0
    for words in ("", *BY_KIND, *BY_PLACE, ""):
        lines = table(dice)
        driver.has(lines)
        for line in lines:
            vtep.invoke(f"fdb {line}")
        before = ours(vtep)
        assert before == driver.rows()
        driver.flush(words)
        said = vtep.invoke(f"fdb flush {words}")
        left = ours(vtep)
        assert left == driver.rows(), words
        assert said == f"{len(before) - len(left)} flushed\n"
        # Some entries have lost only part of their destinations.
        macs = [row[0] for row in before]
        kept = [row[0] for row in left]
        partial += sum(0 < kept.count(mac) < macs.count(mac) for mac in set(macs))
        driver.flush("")
        vtep.invoke("fdb flush")
        assert ours(vtep) == driver.rows() == []
    assert partial > 20
