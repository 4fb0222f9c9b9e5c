"""The verbs of the FDB compared with `bridge fdb` on the kernel driver: both tables must be equal.

Excluded are deliberate differences. In the kernel, `append` silently does nothing for a known
unicast MAC, `del` of a missing destination silently succeeds, and a `replace` that is refused for a
group changes the state of the entry nevertheless. Entries added as `extern_learn` over netlink
count as configured, which `extern_learn` may not change.
"""

import json
import random

from vtep.errors import FdbError, VtepError
from vtep.forwarding.fdb import EntryKind, EntryState, Fdb, Remote, parse_remote
from vtep.testing.lab import Host, Lab
from vtep.wire.ethernet import MAC_ZERO, parse_mac

VNI = 42
ZERO, GROUP = "00:00:00:00:00:00", "01:00:5e:00:00:09"
UNICAST = ("02:00:00:00:00:01", "02:00:00:00:00:02")
DESTINATIONS = (
    {"dst": "192.0.2.8"},
    {"dst": "192.0.2.9"},
    {"dst": "192.0.2.9", "port": 4790},
    {"dst": "192.0.2.9", "vni": 43},
    {"dst": "192.0.2.8", "via": "eth0"},
)
STATES = (EntryState.PERMANENT, EntryState.STATIC, EntryState.DYNAMIC)
Row = tuple[str, str, int, int, str, EntryState, bool]


class Kernel:
    """A VXLAN device of the kernel driver without a remote."""

    def __init__(self, host: Host) -> None:
        self.host = host
        host.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
        options = ("id", str(VNI), "dstport", "4789", "ageing", "0")
        host.run("ip", "link", "add", "vx0", "type", "vxlan", *options)

    def does(self, verb: str, mac: str, *words: str) -> bool:
        """Execute a verb. Returns: whether the kernel accepted it."""
        try:
            self.host.run("bridge", "fdb", verb, mac, "dev", "vx0", "self", *words)
        except VtepError:
            return False
        return True

    def rows(self) -> list[Row]:
        shown = json.loads(self.host.run("bridge", "-j", "fdb", "show", "dev", "vx0"))
        return sorted(
            (
                row["mac"],
                row["dst"],
                row.get("port", 4789),
                row.get("vni", VNI),
                row.get("viaIf", ""),
                EntryState(row.get("state") or "dynamic"),
                "extern_learn" in row["flags"],
            )
            for row in shown
            if "self" in row["flags"] and "dst" in row
        )


def ours(fdb: Fdb) -> list[Row]:
    return sorted(
        (
            entry.mac.hex(":"),
            remote.host,
            remote.port,
            VNI if remote.vni is None else remote.vni,
            remote.via or "",
            entry.kind.state,
            entry.kind.extern_learn,
        )
        for entry, remotes in fdb.select()
        for remote in remotes
    )


def remote_of(fields: dict[str, object]) -> Remote:
    return parse_remote(**fields)  # type: ignore[arg-type]


def comparable(fdb: Fdb, verb: str, mac: str, remote: Remote, kind: EntryKind) -> bool:
    """Return whether pyvtep and the kernel agree on this operation by design."""
    address = parse_mac(mac)
    entry = fdb.default if address == MAC_ZERO else fdb.lookup(address)
    if verb != "del" and kind.extern_learn and entry is not None:
        return verb == "add"
    if verb == "append":
        return mac not in UNICAST and not (mac == ZERO and kind.ages)
    if verb == "replace":
        return entry is None or mac in UNICAST
    if verb == "add":
        return not (mac == ZERO and kind.ages)
    if verb == "del":
        return entry is None or fdb.find_equal(entry.destinations, remote) is not None
    return True


def test_same_commands_give_the_same_table() -> None:
    dice = random.Random(20)
    fdb = Fdb(VNI, 4789, ageing=0, max_addresses=0)
    done = dict.fromkeys(("add", "append", "replace", "del"), 0)
    refused = dict(done)
    with Lab() as lab:
        kernel = Kernel(lab.host("a"))
        for _ in range(600):
            verb = dice.choice((*done, "del", "del"))
            mac = dice.choice((ZERO, GROUP, *UNICAST))
            fields = dice.choice(DESTINATIONS)
            kind = EntryKind(dice.choice(STATES), extern_learn=dice.random() < 0.2)
            remote = remote_of(dict(fields))
            if not comparable(fdb, verb, mac, remote, kind):
                continue
            whole = verb == "del" and dice.random() < 0.5
            words = [] if whole else [str(word) for field in fields.items() for word in field]
            if verb != "del":
                words += [kind.state] + ["extern_learn"] * kind.extern_learn
            address = parse_mac(mac)
            try:
                if verb == "del":
                    fdb.remove(address, None if whole else remote)
                else:
                    getattr(fdb, verb)(address, remote, 0.0, kind)
            except FdbError:
                refused[verb] += 1
                assert not kernel.does(verb, mac, *words), (verb, mac, words)
            else:
                done[verb] += 1
                assert kernel.does(verb, mac, *words), (verb, mac, words)
            assert ours(fdb) == kernel.rows(), (verb, mac, words)
    assert min(done.values()) > 10
    assert min(refused[verb] for verb in ("add", "replace", "del")) > 3
