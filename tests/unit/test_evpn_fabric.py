"""Three leaves and two reflectors: after all messages have arrived, the leaves agree.

Each leaf has tables and a bridge in memory. Messages are delayed as the test likes, but keep their
order in each of the two directions of a session between a leaf and a reflector, as in TCP.
"""

from collections import deque
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.unit.evpn_routes import ip, mac, segment, speaker
from vtep.evpn.changes import Changes
from vtep.evpn.tables import Tables
from vtep.wire.bgp.update import Update
from vtep.wire.ethernet import MAC_ZERO

if TYPE_CHECKING:
    from vtep.wire.bgp.evpn import RouteKey

VNI = 100
LEAVES = ("192.0.2.1", "192.0.2.2", "192.0.2.3")
HOSTS = (1, 2)

REFLECTORS = ("10.0.0.1", "10.0.0.2")


class Session:
    """The messages on their way between a leaf and a reflector."""

    def __init__(self) -> None:
        self.sent: deque[Update] = deque()
        self.received: deque[Update] = deque()


class Leaf:
    """A leaf: tables, the bridge that learns local MACs, and the FDB that follows."""

    def __init__(self, vtep: str, duplicates: str = "off") -> None:
        self.vtep = vtep
        self.tables = Tables(speaker(vtep, duplicate_mac=duplicates))
        self.tables.configure({VNI: segment(VNI, own=vtep)}, 0.0)
        self.bridge: dict[bytes, str] = {}
        """The port of each MAC: "local", or "tap" for an entry that was written."""
        self.fdb: dict[bytes, str] = {}
        self.floods: set[str] = set()
        self.neighbours: dict[str, bytes] = {}
        self.logs: list[str] = []
        self.sessions = {reflector: Session() for reflector in REFLECTORS}

    def hear(self, address: bytes, now: float) -> None:
        """Let a local host send a frame. The bridge reports only what is new to it."""
        if self.bridge.get(address) != "local":
            self.bridge[address] = "local"
            self.tables.mac_added(VNI, address, now)
            self.tables.neighbour_added(VNI, ip(address[-1]), address, now)

    def age_out(self, address: bytes, now: float) -> None:
        """Let the bridge forget a local MAC."""
        if self.bridge.get(address) == "local":
            del self.bridge[address]
            self.tables.mac_removed(VNI, address, now)
            self.tables.neighbour_removed(VNI, ip(address[-1]), now)

    def flush(self, now: float) -> None:
        """Take changes: write the bridge and the FDB, and send messages."""
        changes = self.tables.take()
        self.logs += changes.log
        for change in changes.fdb.get(VNI, []):
            if change.mac == MAC_ZERO:
                verb = self.floods.add if change.verb == "append" else self.floods.remove
                verb(str(change.vtep))
            elif change.verb == "replace":
                self.fdb[change.mac] = str(change.vtep)
            else:
                del self.fdb[change.mac]
        for neighbour in changes.neighbours.get(VNI, []):
            if neighbour.verb == "replace":
                self.neighbours[str(neighbour.ip)] = neighbour.mac
            else:
                del self.neighbours[str(neighbour.ip)]
        self.write_bridge(changes, now)
        self.send(changes)

    def write_bridge(self, changes: Changes, now: float) -> None:
        for entry in changes.bridge.get(VNI, []):
            if entry.is_present:
                was_local = self.bridge.get(entry.mac) == "local"
                self.bridge[entry.mac] = "tap"
                if was_local:
                    self.tables.mac_removed(VNI, entry.mac, now)
            elif self.bridge.get(entry.mac) == "tap":
                del self.bridge[entry.mac]

    def send(self, changes: Changes) -> None:
        for session in self.sessions.values():
            if changes.withdraw:
                session.sent.append(Update(withdrawn=tuple(changes.withdraw)))
            for route, attributes in changes.announce:
                session.sent.append(Update((route,), attributes=attributes))

    def place_of(self, address: bytes) -> str | None:
        """Return where this leaf sends frames for a MAC: a VTEP, itself, or None to flood."""
        if self.bridge.get(address) == "local":
            return self.vtep
        return self.fdb.get(address)


class Fabric:
    """Leaves, and reflectors that pass the routes of each leaf to the others."""

    def __init__(self, duplicates: str = "off") -> None:
        self.now = 0.0
        self.leaves = {vtep: Leaf(vtep, duplicates) for vtep in LEAVES}
        self.routes: dict[tuple[str, str], dict[RouteKey, Update]] = {
            (reflector, vtep): {} for reflector in REFLECTORS for vtep in LEAVES
        }
        """The routes that a reflector has of a leaf, each as a message."""
        for leaf in self.leaves.values():
            leaf.flush(self.now)

    def deliver(self, vtep: str, reflector: str, *, up: bool) -> None:
        """Deliver the next message of a leaf, or to it, if there is one."""
        leaf = self.leaves[vtep]
        session = leaf.sessions[reflector]
        if up and session.sent:
            update = session.sent.popleft()
            routes = self.routes[reflector, vtep]
            for route in update.withdrawn:
                routes.pop(route.key, None)
            for route in update.announced:
                routes[route.key] = update
            self.reflect(vtep, reflector, update)
        elif not up and session.received:
            self.now += 0.001
            leaf.tables.update(reflector, session.received.popleft(), self.now)
            leaf.flush(self.now)

    def reflect(self, vtep: str, reflector: str, update: Update) -> None:
        for other in self.leaves.values():
            if other.vtep != vtep:
                other.sessions[reflector].received.append(update)

    def reset(self, vtep: str, reflector: str) -> None:
        """Break a session, and establish it again: both sides send all that they have."""
        leaf = self.leaves[vtep]
        session = leaf.sessions[reflector] = Session()
        routes = self.routes[reflector, vtep]
        if routes:
            withdrawn = tuple(update.announced[0] for update in routes.values())
            self.reflect(vtep, reflector, Update(withdrawn=withdrawn))
            routes.clear()
        leaf.tables.peer_down(reflector, self.now)
        leaf.flush(self.now)
        session.sent.clear()  # Sent on the session that broke.
        leaf.tables.peer_up(reflector, self.now)
        for route, attributes in leaf.tables.own_routes():
            session.sent.append(Update((route,), attributes=attributes))
        for other in LEAVES:
            if other != vtep:
                session.received.extend(self.routes[reflector, other].values())
        session.received.append(Update(is_end_of_rib=True))

    def hear(self, vtep: str, number: int) -> None:
        self.now += 1.0
        leaf = self.leaves[vtep]
        leaf.hear(mac(number), self.now)
        leaf.flush(self.now)

    def age_out(self, vtep: str, number: int) -> None:
        self.now += 1.0
        leaf = self.leaves[vtep]
        leaf.age_out(mac(number), self.now)
        leaf.flush(self.now)

    def settle(self) -> None:
        """Deliver all messages. It ends, since each move needs a frame."""
        for _ in range(10_000):
            waiting = [
                (vtep, reflector)
                for vtep, leaf in self.leaves.items()
                for reflector, session in leaf.sessions.items()
                if session.sent or session.received
            ]
            if not waiting:
                return
            for vtep, reflector in waiting:
                self.deliver(vtep, reflector, up=True)
                self.deliver(vtep, reflector, up=False)
        raise AssertionError("the leaves go on to contradict each other")

    def places(self, number: int) -> set[str | None]:
        return {leaf.place_of(mac(number)) for leaf in self.leaves.values()}

    def sequence(self, number: int) -> int:
        leaf = self.leaves[LEAVES[0]]
        return next(view["sequence"] for view in leaf.tables.macs(self.now, mac=mac(number)))


class FabricMachine(RuleBasedStateMachine):
    """Hosts that move as they like, and messages that take their time."""

    def __init__(self) -> None:
        super().__init__()
        self.fabric = Fabric()
        self.at = dict.fromkeys(HOSTS, LEAVES[0])

    @rule(number=st.sampled_from(HOSTS), vtep=st.sampled_from(LEAVES), is_silent=st.booleans())
    def move(self, number: int, vtep: str, is_silent: bool) -> None:
        self.at[number] = vtep
        if not is_silent:
            self.fabric.hear(vtep, number)

    @rule(number=st.sampled_from(HOSTS))
    def send(self, number: int) -> None:
        self.fabric.hear(self.at[number], number)

    @rule(number=st.sampled_from(HOSTS), vtep=st.sampled_from(LEAVES))
    def age_out(self, number: int, vtep: str) -> None:
        if self.at[number] != vtep:
            self.fabric.age_out(vtep, number)

    @rule(
        vtep=st.sampled_from(LEAVES),
        reflector=st.sampled_from(REFLECTORS),
        up=st.booleans(),
        count=st.integers(1, 4),
    )
    def deliver(self, vtep: str, reflector: str, up: bool, count: int) -> None:
        for _ in range(count):
            self.fabric.deliver(vtep, reflector, up=up)

    @rule(vtep=st.sampled_from(LEAVES), reflector=st.sampled_from(REFLECTORS))
    def reset(self, vtep: str, reflector: str) -> None:
        self.fabric.reset(vtep, reflector)

    @rule()
    def agree(self) -> None:
        """All agree when all messages have arrived, and on the truth after the next frame."""
        self.fabric.settle()
        for number in HOSTS:
            assert len(self.fabric.places(number)) == 1
        for number in HOSTS:
            self.fabric.hear(self.at[number], number)
        self.fabric.settle()
        for number in HOSTS:
            assert self.fabric.places(number) == {self.at[number]}
        self.check_tables()

    def check_tables(self) -> None:
        for vtep, leaf in self.fabric.leaves.items():
            assert leaf.floods == {other for other in LEAVES if other != vtep}
            remote = {number for number in HOSTS if self.at[number] != vtep}
            assert leaf.neighbours == {str(ip(number)): mac(number) for number in remote}
            assert {address for address, port in leaf.bridge.items() if port == "tap"} == {
                mac(number) for number in remote
            }
            own = {
                view["mac"]
                for view in leaf.tables.routes(self.fabric.now, kind=2)
                if view["neighbor"] is None
            }
            assert len(own) == len(HOSTS) - len(remote)

    @invariant()
    def no_leaf_sends_to_itself(self) -> None:
        for vtep, leaf in self.fabric.leaves.items():
            assert vtep not in leaf.fdb.values()
            assert vtep not in leaf.floods

    def teardown(self) -> None:
        self.agree()


TestFabric = FabricMachine.TestCase
TestFabric.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_sequence_increases_with_each_move_in_both_directions() -> None:
    fabric = Fabric()
    sequences = []
    for turn in range(5):
        fabric.hear(LEAVES[turn % 2], 1)
        fabric.settle()
        assert fabric.places(1) == {LEAVES[turn % 2]}
        sequences.append(fabric.sequence(1))
    assert sequences == [0, 1, 2, 3, 4]


def test_two_hosts_with_one_mac_are_held_until_one_is_gone() -> None:
    fabric = Fabric("hold")
    for turn in range(20):
        fabric.hear(LEAVES[turn % 2], 1)
        fabric.settle()
    # The leaf that finds it first announces no change, so that the others see no more moves.
    lines = [line for leaf in fabric.leaves.values() for line in leaf.logs]
    assert len([line for line in lines if "has moved more than 5 times" in line]) == 1
    first, second, third = fabric.leaves.values()
    assert second.fdb == {}
    assert first.fdb == third.fdb == {mac(1): LEAVES[1]}
    fabric.age_out(LEAVES[1], 1)
    fabric.settle()
    assert first.tables.clear_duplicate(mac(1), VNI, fabric.now) == 1
    first.flush(fabric.now)
    fabric.settle()
    assert fabric.places(1) == {LEAVES[0]}
