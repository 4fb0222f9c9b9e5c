"""Local MACs and addresses of EVPN segments, from messages of rtnetlink."""

from ipaddress import ip_address
from struct import pack

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_neighbour_messages import attribute, message
from vtep.evpn.local_entries import LocalHost, TapPlace
from vtep.evpn.local_table import LocalTable
from vtep.host.neighbour_messages import (
    AF_BRIDGE,
    NTF_EXT_LEARNED,
    NTF_ROUTER,
    NUD_NOARP,
    NUD_PERMANENT,
    NUD_REACHABLE,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    NetlinkMessage,
    split_messages,
)
from vtep.wire.address import Address

BRIDGE, TAP, PORT = 2, 3, 4
NUD_FAILED = 0x20
BRIDGE_MAC, TAP_MAC = (bytes((2, 0, 0, 0, 0, index)) for index in (BRIDGE, TAP))


def parsed(octets: bytes) -> NetlinkMessage:
    (found,) = split_messages(octets)
    return found


def link(
    index: int,
    name: str,
    kind: str,
    master: int = 0,
    lower: int = 0,
    data: bytes = b"",
    mac_index: int | None = None,
) -> NetlinkMessage:
    """Build an RTM_NEWLINK message; `data` is IFLA_INFO_DATA."""
    body = pack("=BxHiII", 0, 1, index, 1, 0) + attribute(3, name.encode() + b"\0")
    body += attribute(1, bytes((2, 0, 0, 0, 0, mac_index or index)))
    body += attribute(18, attribute(1, kind.encode()) + attribute(2, data))
    body += attribute(5, pack("=I", lower)) if lower else b""
    body += attribute(10, pack("=I", master)) if master else b""
    return parsed(message(RTM_NEWLINK, body))


def unlink(index: int) -> NetlinkMessage:
    return parsed(message(RTM_DELLINK, pack("=BxHiII", 0, 1, index, 1, 0)))


def pvid(index: int, vlan: int) -> NetlinkMessage:
    """Build a message of a bridge about a port in VLANs 7, and `vlan` untagged."""
    body = pack("=BxHiII", AF_BRIDGE, 1, index, 1, 0)
    vlans = attribute(2, pack("=HH", 0, 7)) + attribute(2, pack("=HH", 6, vlan))
    return parsed(message(RTM_NEWLINK, body + attribute(26 | 0x8000, vlans)))


def entry(
    mac: bytes,
    port: int = PORT,
    *,
    state: int = NUD_REACHABLE,
    flags: int = 0,
    gone: bool = False,
    vlan: int = 0,
) -> NetlinkMessage:
    body = pack("=BxxxiHBB", AF_BRIDGE, port, state, flags, 0) + attribute(2, mac)
    body += attribute(5, pack("=H", vlan)) if vlan else b""
    kind = RTM_DELNEIGH if gone else RTM_NEWNEIGH
    return parsed(message(kind, body + attribute(9, pack("=I", BRIDGE))))


class Reports:
    """The MACs and addresses that have been reported, which must not be reported twice."""

    def __init__(self) -> None:
        self.macs: dict[bytes, set[str]] = {}
        self.neighbours: dict[str, tuple[bytes, bool]] = {}
        self.lost = 0
        self.host = LocalHost()

    def mac_added(self, _vni: int, mac: bytes, *, static: bool, gateway: bool, own: bool) -> None:
        flags = {"static": static, "gateway": gateway, "own": own}
        now = {name for name, is_set in flags.items() if is_set}
        assert self.macs.get(mac) != now
        self.macs[mac] = now

    def mac_removed(self, _vni: int, mac: bytes) -> None:
        del self.macs[mac]

    def neighbour_added(self, _vni: int, ip: Address, mac: bytes, *, router: bool) -> None:
        assert self.neighbours.get(str(ip)) != (mac, router)
        self.neighbours[str(ip)] = mac, router

    def neighbour_removed(self, _vni: int, ip: Address) -> None:
        del self.neighbours[str(ip)]

    def synced(self, _vni: int) -> None:
        raise NotImplementedError

    def host_changed(self, host: LocalHost) -> None:
        self.host = host

    def segment_lost(self, _vni: int) -> None:
        self.lost += 1


LINKS = (
    link(BRIDGE, "br0", "bridge"),
    link(TAP, "vx0", "tun", BRIDGE),
    link(PORT, "p0", "veth", BRIDGE),
)


def new_table(*messages: NetlinkMessage) -> tuple[LocalTable, Reports]:
    reports = Reports()
    table = LocalTable(reports)
    table.configure({100: TapPlace("vx0")})
    for one in (*LINKS, *messages):
        table.update(one)
    return table, reports


MACS = st.integers(1, 4).map(lambda number: bytes((2, 0, 0, 1, 0, number)))
ENTRIES = st.builds(
    entry,
    MACS,
    st.sampled_from([TAP, PORT, 5]),
    state=st.sampled_from([NUD_REACHABLE, NUD_NOARP, NUD_PERMANENT]),
    flags=st.sampled_from([0, NTF_EXT_LEARNED]),
    gone=st.booleans(),
)


def expected(messages: list[NetlinkMessage]) -> dict[bytes, set[str]]:
    """Return the local MACs after messages about entries, from the last about each MAC."""
    found: dict[bytes, set[str]] = {BRIDGE_MAC: {"own"}}
    for one in messages:
        at = one.begin
        mac = one.data[at + 16 : at + 22]
        port = int.from_bytes(one.data[at + 4 : at + 8], "little")
        state, flags = one.data[at + 8], one.data[at + 10]
        found.pop(mac, None)
        if one.kind == RTM_NEWNEIGH and port != TAP and not flags and state != NUD_PERMANENT:
            found[mac] = {"static"} if state == NUD_NOARP else set()
    return found


@given(st.lists(ENTRIES, max_size=30))
def test_events_make_macs_local_or_not(events: list[NetlinkMessage]) -> None:
    """Whatever their order, reports agree with the last event of each MAC."""
    _, reports = new_table(*events)
    assert reports.macs == expected(events)


@given(history=st.lists(ENTRIES, max_size=20), data=st.data())
def test_a_dump_repairs_what_was_lost(history: list[NetlinkMessage], data: st.DataObject) -> None:
    """Events are lost until a dump begins, which is read from there on, between events."""
    begin = data.draw(st.integers(0, len(history)))
    table, reports = new_table(*history[: data.draw(st.integers(0, begin))])
    later = history[begin:]
    table.begin_dump()
    # The kernel reads each MAC at some time, and the reply is read between any two events.
    replies: dict[int, list[NetlinkMessage]] = {}
    for mac in dict.fromkeys(map(_mac, history)):
        time, position = (data.draw(st.integers(0, len(later))) for _ in range(2))
        if reply := _present(history[: begin + time], mac):
            replies.setdefault(position, []).append(reply)
    for position in range(len(later) + 1):
        for reply in replies.get(position, ()):
            table.update(reply, is_reply=True)
        for event in later[position : position + 1]:
            table.update(event)
    for one in LINKS:
        table.update(one, is_reply=True)
    table.end_dump()
    assert reports.macs == expected(history)


def _mac(one: NetlinkMessage) -> bytes:
    return one.data[one.begin + 16 : one.begin + 22]


def _present(history: list[NetlinkMessage], mac: bytes) -> NetlinkMessage | None:
    """Return the present entry of a MAC."""
    last = None
    for one in history:
        if _mac(one) == mac:
            last = one if one.kind == RTM_NEWNEIGH else None
    return last


def test_a_tap_is_followed_by_index_and_name() -> None:
    """A bridge that vanishes takes its MACs along; a device of another kind is no bridge."""
    mac = bytes((2, 0, 0, 1, 0, 1))
    table, reports = new_table(entry(mac))
    assert reports.macs == {mac: set(), BRIDGE_MAC: {"own"}}
    assert table.moved == {100}
    table.update(link(TAP, "vx0", "tun"))
    assert reports.macs == {TAP_MAC: {"own"}}
    table.update(link(TAP, "vx0", "tun", BRIDGE))
    assert mac in reports.macs
    table.update(unlink(BRIDGE))
    assert reports.macs == {TAP_MAC: {"own"}}
    table.update(link(BRIDGE, "bond0", "bond"))
    assert table.attachment(100) == (TAP, 0)
    table.update(link(TAP, "other", "tun", BRIDGE))
    assert (reports.macs, reports.lost) == ({}, 1)
    table.configure({})
    assert table.attachment(100) == (0, 0)


def test_a_gateway_on_a_macvlan_is_one_of_the_host() -> None:
    """As routers with a virtual MAC are made: a macvlan device on the bridge."""
    table, reports = new_table(link(9, "gw0", "macvlan", lower=BRIDGE))
    own = bytes((2, 0, 0, 0, 0, 9))
    assert reports.macs == {BRIDGE_MAC: {"own"}, own: {"own"}}
    table.update(unlink(9))
    assert reports.macs == {BRIDGE_MAC: {"own"}}


def test_only_the_vlan_of_the_tap_counts() -> None:
    """On a bridge that separates VLANs; the host takes part by a VLAN device."""
    macs = [bytes((2, 0, 0, 1, 0, number)) for number in (1, 2)]
    filtering = link(BRIDGE, "br0", "bridge", data=attribute(7, b"\1"))
    table, reports = new_table(
        *(entry(mac, vlan=vlan) for mac, vlan in zip(macs, (1, 20), strict=True)),
        link(9, "svi20", "vlan", lower=BRIDGE, data=attribute(1, pack("=H", 20))),
    )
    assert set(reports.macs) == {*macs, BRIDGE_MAC}
    for one in (filtering, pvid(BRIDGE, 1), pvid(TAP, 1)):
        table.update(one)
    assert set(reports.macs) == {macs[0], BRIDGE_MAC}
    table.update(pvid(TAP, 20))
    assert set(reports.macs) == {macs[1], bytes((2, 0, 0, 0, 0, 9))}
    table.update(link(BRIDGE, "br0", "bridge", data=attribute(7, b"\0")))
    assert set(reports.macs) == {*macs, BRIDGE_MAC}


def neighbour(
    ip: str, mac: bytes, device: int = BRIDGE, *, state: int = NUD_REACHABLE, flags: int = 0
) -> NetlinkMessage:
    """Build a message about a neighbour; with the state 0, about its deletion."""
    octets = ip_address(ip).packed
    body = pack("=BxxxiHBB", 2 if len(octets) == 4 else 10, device, state, flags, 1)
    body += attribute(1, octets) + attribute(2, mac)
    return parsed(message(RTM_NEWNEIGH if state else RTM_DELNEIGH, body))


def own_address(ip: str, device: int = BRIDGE, *, gone: bool = False) -> NetlinkMessage:
    """Build a message about an address of this host."""
    octets = ip_address(ip).packed
    body = pack("=BBBBI", 2 if len(octets) == 4 else 10, 24, 0, 0, device) + attribute(1, octets)
    return parsed(message(RTM_DELADDR if gone else RTM_NEWADDR, body))


def test_addresses_are_those_of_the_host_and_of_neighbours() -> None:
    """An address of the host comes first; one without a MAC, or of a control plane, is none."""
    mac = bytes((2, 0, 0, 1, 0, 1))
    table, reports = new_table(
        neighbour("10.0.0.9", mac),
        neighbour("fd00::9", mac, flags=NTF_ROUTER),
        neighbour("10.0.0.8", mac, flags=NTF_EXT_LEARNED),
        neighbour("10.0.0.7", mac, PORT),
        neighbour("10.0.0.6", b""),
        neighbour("ff02::1", mac),
        own_address("10.0.0.1"),
    )
    known = {"10.0.0.9": (mac, False), "fd00::9": (mac, True), "10.0.0.1": (BRIDGE_MAC, False)}
    assert reports.neighbours == known
    table.update(neighbour("10.0.0.9", mac))
    table.update(own_address("10.0.0.9"))
    assert reports.neighbours["10.0.0.9"] == (BRIDGE_MAC, False)
    table.update(own_address("10.0.0.9", gone=True))
    assert reports.neighbours == known
    table.update(neighbour("10.0.0.9", mac, state=NUD_FAILED))
    table.update(neighbour("fd00::9", mac, state=0))
    table.update(neighbour("fd00::9", mac, state=0))
    assert reports.neighbours == {"10.0.0.1": (BRIDGE_MAC, False)}
    # The TAP takes part alone, with its own addresses.
    table.update(neighbour("10.0.0.5", mac, TAP))
    table.update(link(TAP, "vx0", "tun"))
    assert reports.neighbours == {"10.0.0.5": (mac, False)}


def test_a_dump_without_an_address_removes_it() -> None:
    """Of the host or of a neighbour; a device that is not in it is gone, with its entries."""
    mac = bytes((2, 0, 0, 1, 0, 1))
    table, reports = new_table(
        *(neighbour(ip, mac) for ip in ("10.0.0.8", "10.0.0.9")),
        *(own_address(ip) for ip in ("10.0.0.1", "10.0.0.2")),
        entry(mac),
    )
    table.begin_dump()
    for one in (*LINKS, neighbour("10.0.0.9", mac), own_address("10.0.0.2")):
        table.update(one, is_reply=True)
    table.end_dump()
    table.end_dump()
    assert reports.neighbours == {"10.0.0.9": (mac, False), "10.0.0.2": (BRIDGE_MAC, False)}
    assert reports.macs == {BRIDGE_MAC: {"own"}}
    table.begin_dump()
    for one in LINKS[1:]:
        table.update(one, is_reply=True)
    table.end_dump()
    assert table.attachment(100) == (TAP, 0)
    assert reports.neighbours == {}


def test_the_mac_of_a_gateway_is_marked() -> None:
    """It is that of a device with an address of --anycast-gateway, while it has the address."""
    table, reports = new_table()
    gateway = ip_address("fd00::254")
    table.configure({100: TapPlace("vx0", "br0", frozenset([gateway]))})
    table.update(own_address("fd00::254"))
    assert reports.macs == {BRIDGE_MAC: {"own", "gateway"}}
    assert reports.neighbours == {"fd00::254": (BRIDGE_MAC, True)}
    table.update(own_address("fd00::254", gone=True))
    assert reports.macs == {BRIDGE_MAC: {"own"}}
    table.update(link(BRIDGE, "br0", "bridge", mac_index=77))
    assert set(reports.macs) == {bytes((2, 0, 0, 0, 0, 77))}


def test_whose_entry_is_on_the_port_of_the_tap() -> None:
    """That of EVPN may be written and deleted, but not those of the bridge and of users."""
    macs = [bytes((2, 0, 0, 1, 0, number)) for number in range(5)]
    table, _ = new_table(
        entry(macs[0], TAP, flags=NTF_EXT_LEARNED),
        entry(macs[1], TAP, state=NUD_NOARP),
        entry(macs[2], BRIDGE, state=NUD_PERMANENT),
        entry(macs[3], TAP),
    )
    owners = [table.entry_owner(100, mac) for mac in macs]
    assert owners == ["evpn", "other", "other", None, None]
    assert set(table.remote_macs(100)) == {macs[0]}
    assert table.device("vx0") == TAP
    assert table.device("vx1") == 0
    assert not table.is_local(100, macs[3])
    assert set(table.remote_macs(200)) == set()


def test_addresses_and_the_mac_of_the_tap_are_reported() -> None:
    """No remote VTEP has them. Those of the host itself on the bridge are local MACs."""
    own = pack("=BBBBI", 2, 24, 0, 0, PORT) + attribute(1, bytes((10, 0, 0, 1)))
    local = pack("=BBBBI", 10, 64, 0, 0, PORT) + attribute(1, ip_address("fe80::1").packed)
    table, reports = new_table(
        parsed(message(RTM_NEWADDR, own)), parsed(message(RTM_NEWADDR, local))
    )
    table.report_host()
    expected = LocalHost(
        frozenset({ip_address("10.0.0.1")}),
        frozenset({ip_address("10.0.0.255")}),
        {100: TAP_MAC},
    )
    assert reports.host == expected
    table.update(parsed(message(RTM_DELADDR, own)))
    table.report_host()
    assert reports.host == LocalHost(tap_macs={100: TAP_MAC})
    # Without a bridge, the TAP is the host itself.
    table.update(link(TAP, "vx0", "tun"))
    table.report_host()
    assert (reports.host, set(reports.macs)) == (LocalHost(), {TAP_MAC})
