"""Tables against a model that computes everything anew from all routes after each event.

The tables work incrementally: after any sequence of events, the changes that they returned must add
up to what follows from the routes and local entries of that moment.
"""

from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from attrs import evolve
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.unit.evpn_routes import (
    ASN,
    OWN,
    announced_text,
    distinguisher,
    ip,
    mac,
    segment,
    speaker,
    target,
)
from vtep.evpn.announcement import Announcement
from vtep.evpn.changes import Changes, EvpnFdbChange, EvpnNeighbourChange
from vtep.evpn.table_settings import SegmentSettings
from vtep.evpn.tables import Tables
from vtep.wire.address import Address
from vtep.wire.bgp.attributes import INGRESS_REPLICATION, PathAttributes, Pmsi
from vtep.wire.bgp.evpn import NO_ESI, MacIpRoute, MulticastRoute, Route, RouteKey
from vtep.wire.bgp.update import Update
from vtep.wire.ethernet import MAC_ZERO

PEERS = ("10.0.0.1", "10.0.0.2", "10.0.0.3")
VTEPS = ("192.0.2.2", "192.0.2.9", "192.0.2.10", "2001:db8::9", OWN)
TARGETS = ("65000:100", f"65001:{0x10000000 | 200}", "65000:200", "65000:7")
VNIS = (100, 200)
MACS = (1, 2, 3)
IPS = (1, 2)

CONFIGURATIONS = [
    {100: segment(100), 200: segment(200)},
    {100: segment(100, proxy=False)},
    {100: segment(100, import_targets=frozenset({target("65000:7")}))},
    {
        100: segment(100, import_targets=frozenset({target("65000:7")})),
        200: segment(200, import_targets=frozenset({target("65000:7")})),
    },
    {
        100: segment(100, own=(OWN, "2001:db8::5"), gateways=frozenset({ip(1)})),
        200: segment(200, rd=distinguisher(OWN, 201)),
    },
    {100: segment(100), 200: segment(200, own=())},
]


@dataclass
class Stored:
    """A route of a peer in the model."""

    route: MacIpRoute | MulticastRoute
    attributes: PathAttributes
    arrival: int
    is_stale: bool = False

    @property
    def vtep(self) -> Address:
        attributes = self.attributes
        if isinstance(self.route, MulticastRoute) and attributes.pmsi:
            assert attributes.pmsi.endpoint is not None
            return attributes.pmsi.endpoint
        assert attributes.next_hop is not None
        return attributes.next_hop


@dataclass
class Applied:
    """The state after all changes, as the daemon, the bridges and the sessions have it."""

    fdb: dict[tuple[int, bytes], tuple[Any, ...]] = field(default_factory=dict)
    floods: dict[tuple[int, Address], int | None] = field(default_factory=dict)
    neighbours: dict[tuple[int, Address], tuple[bytes, bool]] = field(default_factory=dict)
    bridge: dict[tuple[int, bytes], bool] = field(default_factory=dict)
    announced: dict[RouteKey, tuple[Route, PathAttributes]] = field(default_factory=dict)

    def apply(self, changes: Changes) -> None:
        for vni, fdb in changes.fdb.items():
            for change in fdb:
                if change.mac == MAC_ZERO:
                    self.apply_flood(vni, change)
                else:
                    self.apply_mac(vni, change)
        for vni, neighbours in changes.neighbours.items():
            for neighbour in neighbours:
                self.apply_neighbour(vni, neighbour)
        for vni, bridge in changes.bridge.items():
            for entry in bridge:
                if entry.is_present:
                    self.bridge[vni, entry.mac] = entry.sticky
                else:
                    del self.bridge[vni, entry.mac]
        for route in changes.withdraw:
            del self.announced[route.key]
        for announcement in changes.announce:
            key = announcement.route.key
            assert self.announced.get(key) != tuple(announcement)
            self.announced[key] = announcement.route, announcement.attributes

    def apply_flood(self, vni: int, change: EvpnFdbChange) -> None:
        if change.verb == "append":
            assert (vni, change.vtep) not in self.floods
            self.floods[vni, change.vtep] = change.dst_vni
        else:
            assert self.floods.pop((vni, change.vtep)) == change.dst_vni

    def apply_mac(self, vni: int, change: EvpnFdbChange) -> None:
        if change.verb == "replace":
            state = (change.vtep, change.dst_vni, change.sequence, change.sticky)
            assert self.fdb.get((vni, change.mac)) != state
            self.fdb[vni, change.mac] = state
        else:
            assert self.fdb.pop((vni, change.mac))[0] == change.vtep

    def apply_neighbour(self, vni: int, change: EvpnNeighbourChange) -> None:
        state = change.mac, change.router
        if change.verb == "replace":
            assert self.neighbours.get((vni, change.ip)) != state
            self.neighbours[vni, change.ip] = state
        else:
            assert self.neighbours.pop((vni, change.ip))[0] == change.mac


def imports(
    settings: SegmentSettings, stored: Stored, segments: dict[int, SegmentSettings]
) -> bool:
    """Return whether a VNI imports a route, told in another way than by the import policy."""
    route, attributes = stored.route, stored.attributes
    own = {address for each in segments.values() for address in each.locals}
    if stored.vtep in own or ASN in attributes.as_path:
        return False
    if isinstance(route, MacIpRoute):
        label: int | None = route.label
        if attributes.default_gateway and route.ip in settings.gateways:
            return False
    else:
        label = attributes.pmsi.label if attributes.pmsi else None

    def has_target(each: SegmentSettings) -> bool:
        if each.import_targets is not None:
            return bool(each.import_targets & attributes.route_targets)
        return any(found.vni_of_auto() == each.vni for found in attributes.route_targets)

    matching = [each for each in segments.values() if has_target(each)]
    if settings not in matching:
        return False
    if label == settings.vni:
        return True
    if any(each.vni == label for each in matching):
        return False
    configured = [each for each in matching if each.import_targets is not None]
    if label is None:
        return len(matching) == 1
    return configured == [settings] and route.ethernet_tag == 0


def order(vtep: Address) -> tuple[int, int]:
    return vtep.version, int(vtep)


attribute_sets = st.builds(
    PathAttributes,
    next_hop=st.sampled_from(VTEPS).map(ip_address),
    route_targets=st.sets(st.sampled_from(TARGETS).map(target), min_size=1, max_size=2).map(
        frozenset
    ),
    sequence=st.integers(0, 3),
    sticky=st.integers(0, 4).map(lambda number: number == 0),
    default_gateway=st.booleans(),
    router=st.booleans(),
    as_path=st.sampled_from([(), (65001,), (65001, ASN)]),
)
mac_routes = st.builds(
    MacIpRoute,
    rd=st.sampled_from(VTEPS).map(lambda vtep: distinguisher(vtep, 100)),
    esi=st.sampled_from([NO_ESI, bytes(range(10))]),
    ethernet_tag=st.sampled_from([0, 0, 5]),
    mac=st.sampled_from(MACS).map(mac),
    ip=st.sampled_from([None, *map(ip, IPS)]),
    label=st.sampled_from([100, 100, 200, 7]),
)
floods = st.builds(
    MulticastRoute,
    rd=st.just(distinguisher(OWN, 9)),
    ethernet_tag=st.sampled_from([0, 5]),
    ip=st.sampled_from(VTEPS).map(ip_address),
)
tunnels = st.none() | st.builds(
    Pmsi,
    flags=st.just(0),
    tunnel_type=st.just(INGRESS_REPLICATION),
    label=st.sampled_from([100, 200, 7]),
    endpoint=st.sampled_from(VTEPS).map(ip_address),
)


class TablesMachine(RuleBasedStateMachine):
    """Random events for one speaker."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.segments: dict[int, SegmentSettings] = CONFIGURATIONS[0]
        self.tables = Tables(speaker(duplicate_mac="off", neighbors=frozenset(PEERS)))
        self.tables.configure(self.segments, self.now)
        self.routes: dict[str, dict[RouteKey, Stored]] = {peer: {} for peer in PEERS}
        self.established: set[str] = set()
        self.retained: dict[str, float] = {}
        self.local: dict[tuple[int, bytes], tuple[int, bool, bool, bool]] = {}
        self.local_ips: dict[tuple[int, Address], tuple[bytes, bool]] = {}
        self.applied = Applied()
        self.arrivals = 0

    # Events.

    @rule(
        peer=st.sampled_from(PEERS),
        routes=st.lists(mac_routes, min_size=1, max_size=3, unique_by=lambda route: route.key),
        attributes=attribute_sets,
    )
    def announce(self, peer: str, routes: list[MacIpRoute], attributes: PathAttributes) -> None:
        self.receive(peer, routes, attributes)

    @rule(peer=st.sampled_from(PEERS), route=floods, attributes=attribute_sets, pmsi=tunnels)
    def announce_flood(
        self, peer: str, route: MulticastRoute, attributes: PathAttributes, pmsi: Pmsi | None
    ) -> None:
        self.receive(peer, [route], evolve(attributes, pmsi=pmsi))

    def receive(
        self,
        peer: str,
        routes: "list[MacIpRoute] | list[MulticastRoute]",
        attributes: PathAttributes,
    ) -> None:
        self.tables.update(peer, Update(tuple(routes), attributes=attributes), self.now)
        for route in routes:
            present = self.routes[peer].get(route.key)
            self.arrivals += 1
            if present and (present.route, present.attributes) == (route, attributes):
                present.is_stale = False
            else:
                self.routes[peer].pop(route.key, None)
                self.routes[peer][route.key] = Stored(route, attributes, self.arrivals)
        self.settle()

    @precondition(lambda self: any(self.routes.values()))
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        peer = data.draw(st.sampled_from([peer for peer in PEERS if self.routes[peer]]))
        keys = st.sampled_from(list(self.routes[peer]))
        chosen = data.draw(st.lists(keys, min_size=1, max_size=3, unique=True))
        withdrawn = tuple(self.routes[peer].pop(key).route for key in chosen)
        self.tables.update(peer, Update(withdrawn=withdrawn), self.now)
        self.settle()

    @rule(peer=st.sampled_from(PEERS), preserved=st.booleans())
    def establish(self, peer: str, preserved: bool) -> None:
        self.tables.peer_up(peer, self.now, preserved=preserved)
        self.established.add(peer)
        if not preserved:
            self.drop_stale(peer)
        self.settle()

    @rule(peer=st.sampled_from(PEERS))
    def end_of_rib(self, peer: str) -> None:
        self.tables.end_of_rib(peer, self.now)
        self.drop_stale(peer)
        self.settle()

    @rule(peer=st.sampled_from(PEERS), retain=st.sampled_from([None, 10.0]))
    def fail(self, peer: str, retain: float | None) -> None:
        self.tables.peer_down(peer, self.now, retain)
        if retain is None:
            self.routes[peer].clear()
            self.retained.pop(peer, None)
        elif peer in self.established:
            self.drop_stale(peer)
            for stored in self.routes[peer].values():
                stored.is_stale = True
            if self.routes[peer]:
                self.retained[peer] = self.now + retain
        self.established.discard(peer)
        self.settle()

    def drop_stale(self, peer: str) -> None:
        self.retained.pop(peer, None)
        for key, stored in list(self.routes[peer].items()):
            if stored.is_stale:
                del self.routes[peer][key]

    @rule(seconds=st.sampled_from([1.0, 5.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        following = self.tables.tick(self.now)
        for peer, until in list(self.retained.items()):
            if until <= self.now:
                self.drop_stale(peer)
        assert following == min(self.retained.values(), default=None)
        self.settle()

    @rule(
        vni=st.sampled_from(VNIS),
        number=st.sampled_from(MACS),
        kind=st.sampled_from(["", "", "", "static", "gateway", "own"]),
    )
    def learn(self, vni: int, number: int, kind: str) -> None:
        static, gateway, own = kind == "static", kind == "gateway", kind == "own"
        self.tables.mac_added(vni, mac(number), self.now, static=static, gateway=gateway, own=own)
        if vni not in self.segments:
            return
        key = vni, mac(number)
        present = self.local.get(key)
        if static or gateway:
            sequence = 0
        elif present and not (present[1] or present[2]):
            sequence = present[0]
        else:
            remote = [stored.attributes.sequence for stored in self.candidates(*key)]
            sequence = max(remote, default=-1) + 1
        self.local[key] = sequence, static, gateway, own
        self.settle()

    @rule(vni=st.sampled_from(VNIS), number=st.sampled_from(MACS))
    def forget(self, vni: int, number: int) -> None:
        self.tables.mac_removed(vni, mac(number), self.now)
        self.local.pop((vni, mac(number)), None)
        self.settle()

    @rule(
        vni=st.sampled_from(VNIS),
        which=st.sampled_from(IPS),
        number=st.sampled_from(MACS),
        router=st.booleans(),
    )
    def resolve(self, vni: int, which: int, number: int, router: bool) -> None:
        self.tables.neighbour_added(vni, ip(which), mac(number), self.now, router=router)
        if vni in self.segments:
            self.local_ips[vni, ip(which)] = mac(number), router

    @rule(vni=st.sampled_from(VNIS), which=st.sampled_from(IPS))
    def unresolve(self, vni: int, which: int) -> None:
        self.tables.neighbour_removed(vni, ip(which), self.now)
        self.local_ips.pop((vni, ip(which)), None)

    @rule(vni=st.sampled_from(VNIS))
    def lose_tap(self, vni: int) -> None:
        self.tables.segment_lost(vni, self.now)
        self.forget_local(vni)
        self.settle()

    def forget_local(self, vni: int) -> None:
        for key in [key for key in self.local if key[0] == vni]:
            del self.local[key]
        for address in [address for address in self.local_ips if address[0] == vni]:
            del self.local_ips[address]

    @rule(segments=st.sampled_from(CONFIGURATIONS))
    def configure(self, segments: dict[int, SegmentSettings]) -> None:
        self.tables.configure(segments, self.now)
        for vni in set(self.segments) - set(segments):
            self.forget_local(vni)
        # A route that is imported anew comes behind those that are there.
        for stored in self.all_routes():
            if self.vni_of(stored, self.segments) != self.vni_of(stored, segments):
                self.arrivals += 1
                stored.arrival = self.arrivals
        self.segments = segments
        self.settle()

    @rule(vni=st.sampled_from(VNIS))
    def flush(self, vni: int) -> None:
        self.applied.apply(self.tables.take())
        self.tables.reinstall(vni)
        applied = self.applied
        applied.fdb = {key: state for key, state in applied.fdb.items() if key[0] != vni}
        applied.floods = {key: state for key, state in applied.floods.items() if key[0] != vni}
        applied.neighbours = {
            key: state for key, state in applied.neighbours.items() if key[0] != vni
        }

    # The model.

    def all_routes(self) -> list[Stored]:
        return [stored for routes in self.routes.values() for stored in routes.values()]

    def vni_of(self, stored: Stored, segments: dict[int, SegmentSettings]) -> object:
        """Return what a route means under a configuration: the VNI, and whether it is reachable."""
        for vni, each in segments.items():
            if imports(each, stored, segments):
                return vni, stored.vtep.version in {address.version for address in each.locals}
        return None

    def candidates(self, vni: int, address: bytes) -> list[Stored]:
        return [
            stored
            for stored in self.all_routes()
            if isinstance(stored.route, MacIpRoute)
            and stored.route.mac == address
            and imports(self.segments[vni], stored, self.segments)
        ]

    def best(self, vni: int, address: bytes) -> Stored | None:
        return min(
            self.candidates(vni, address),
            key=lambda stored: (
                not stored.attributes.sticky,
                -stored.attributes.sequence,
                order(stored.vtep),
            ),
            default=None,
        )

    def place(self, vni: int, address: bytes) -> Stored | tuple[int, bool, bool, bool] | None:
        best, local = self.best(vni, address), self.local.get((vni, address))
        if best is None or local is None:
            return best or local
        sequence, *is_pinned = local
        if any(is_pinned):
            return local
        if best.attributes.sticky:
            return best
        own = self.segments[vni].locals
        ours = (-sequence, order(own[0]) if own else (7, 0))
        return best if (-best.attributes.sequence, order(best.vtep)) < ours else local

    def settle(self) -> None:
        """Forget local MACs that have moved away."""
        for vni, address in list(self.local):
            if isinstance(self.place(vni, address), Stored):
                del self.local[vni, address]

    def is_reachable(self, vni: int, stored: Stored) -> bool:
        return stored.vtep.version in {each.version for each in self.segments[vni].locals}

    # Invariants.

    @invariant()
    def changes_add_up(self) -> None:
        self.applied.apply(self.tables.take())
        fdb: dict[tuple[int, bytes], tuple[Any, ...]] = {}
        announced = []
        for vni, settings_ in self.segments.items():
            if settings_.locals:
                announced.append(f"{vni} flood {settings_.locals[0]} seq 0")
            for number in MACS:
                place = self.place(vni, mac(number))
                if isinstance(place, Stored):
                    if self.is_reachable(vni, place):
                        assert isinstance(place.route, MacIpRoute)
                        fdb[vni, mac(number)] = (
                            place.vtep,
                            None if place.route.label == vni else place.route.label,
                            place.attributes.sequence,
                            place.attributes.sticky,
                        )
                elif place is not None and settings_.locals:
                    announced += self.announced_of(vni, number, place)
        dst_vnis = {key: state[1] for key, state in fdb.items()}
        found = {key: (*state[:1], *state[2:]) for key, state in self.applied.fdb.items()}
        assert found == {key: (*state[:1], *state[2:]) for key, state in fdb.items()}
        for key, state in self.applied.fdb.items():
            # Of routes that are equal but for the label, any may be the best.
            assert state[1] == dst_vnis[key] or len(self.candidates(*key)) > 1
        assert self.applied.bridge == {key: state[3] for key, state in self.applied.fdb.items()}
        texts = announced_text_by_vni(self.applied.announced)
        assert sorted(texts) == sorted(announced)
        assert sorted(announced_text(self.tables.own_routes())) == sorted(
            text.split(" ", 1)[1] for text in texts
        )

    def announced_of(self, vni: int, number: int, local: tuple[int, bool, bool, bool]) -> list[str]:
        sequence, static, gateway, _ = local
        flags = " sticky" * static + " gateway" * gateway
        texts = [f"{vni} mac {number:02} seq {sequence}{flags}"]
        texts += [
            f"{vni} mac {number:02} {address} seq {sequence}{flags}" + " router" * router
            for (of, address), (owner, router) in self.local_ips.items()
            if (of, owner) == (vni, mac(number))
        ]
        return texts

    @invariant()
    def floods_add_up(self) -> None:
        expected = {
            (vni, stored.vtep)
            for vni, each in self.segments.items()
            for stored in self.all_routes()
            if isinstance(stored.route, MulticastRoute)
            and imports(each, stored, self.segments)
            and self.is_reachable(vni, stored)
        }
        assert set(self.applied.floods) == expected

    @invariant()
    def neighbours_add_up(self) -> None:
        expected: dict[tuple[int, Address], tuple[bytes, bool]] = {}
        for vni, each in self.segments.items():
            for address in set(map(ip, IPS)) - each.gateways if each.proxy else ():
                owner = self.local_ips.get((vni, address))
                if owner is not None and isinstance(self.place(vni, owner[0]), tuple):
                    continue
                usable = []
                for stored in self.all_routes():
                    if isinstance(stored.route, MacIpRoute) and stored.route.ip == address:
                        place = self.place(vni, stored.route.mac)
                        if (
                            imports(each, stored, self.segments)
                            and self.is_reachable(vni, stored)
                            and isinstance(place, Stored)
                            and place.vtep == stored.vtep
                        ):
                            usable.append(stored)
                if usable:
                    best = max(
                        usable,
                        key=lambda stored: (
                            stored.attributes.sticky,
                            stored.attributes.sequence,
                            stored.arrival,
                        ),
                    )
                    assert isinstance(best.route, MacIpRoute)
                    expected[vni, address] = best.route.mac, best.attributes.router
        assert self.applied.neighbours == expected

    @invariant()
    def counts_add_up(self) -> None:
        for view in self.tables.segments():
            vni = view["vni"]
            assert view["macs"] == sum(key[0] == vni for key in self.applied.fdb)
            assert view["vteps"] == sum(key[0] == vni for key in self.applied.floods)
            assert view["neighbours"] == sum(key[0] == vni for key in self.applied.neighbours)
            texts = announced_text_by_vni(self.applied.announced)
            assert view["announced"] == sum(text.startswith(f"{vni} ") for text in texts)
        refused = sum(self.tables.not_installed().values())
        usable = [
            vni
            for stored in self.all_routes()
            for vni, each in self.segments.items()
            if imports(each, stored, self.segments) and self.is_reachable(vni, stored)
        ]
        assert refused + len(usable) == len(self.all_routes())


def announced_text_by_vni(announced: dict[RouteKey, tuple[Route, PathAttributes]]) -> list[str]:
    texts = []
    for route, attributes in announced.values():
        label = route.label if isinstance(route, MacIpRoute) else attributes.pmsi
        vni = label.label if isinstance(label, Pmsi) else label
        texts.append(f"{vni} {announced_text([Announcement(route, attributes)])[0]}")
    return texts


TestTables = TablesMachine.TestCase
TestTables.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
