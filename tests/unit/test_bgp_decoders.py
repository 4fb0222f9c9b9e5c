"""The BGP codec against other implementations.

tshark and exabgp decode what pyvtep encodes; pyvtep decodes what exabgp encodes, and what FRR and
gobgpd have sent (`tests/fixtures/bgp`).
"""

import json
import subprocess
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from struct import pack
from typing import Any

import attrs
import pytest
from exabgp.bgp.message.direction import Direction
from exabgp.bgp.message.notification import Notify
from exabgp.bgp.message.open import Open as ExaOpen
from exabgp.bgp.message.open.capability.negotiated import Negotiated
from exabgp.bgp.message.update import Update as ExaUpdate
from exabgp.bgp.message.update.eor import EOR
from exabgp.bgp.message.update.nlri.evpn.mac import MAC as EXA_MAC
from exabgp.bgp.message.update.nlri.evpn.multicast import Multicast as ExaMulticast
from exabgp.logger import log
from exabgp.protocol.family import AFI, SAFI
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit import bgp_strategies as bgp
from tests.unit.test_wire_pcapng import needs
from vtep.wire.bgp import EVPN
from vtep.wire.bgp.attributes import PathAttributes, Pmsi
from vtep.wire.bgp.capabilities import Capabilities, GracefulRestart
from vtep.wire.bgp.communities import RouteTarget
from vtep.wire.bgp.errors import pack_shutdown
from vtep.wire.bgp.evpn import (
    NO_ESI,
    MacIpRoute,
    MulticastRoute,
    OtherRoute,
    RouteDistinguisher,
    pack_routes,
)
from vtep.wire.bgp.message import (
    HEADER_LEN,
    KEEPALIVE,
    Deframer,
    MessageType,
    Notification,
    Open,
    RouteRefresh,
    pack_message,
)
from vtep.wire.bgp.update import (
    END_OF_RIB,
    Update,
    pack_updates,
    pack_withdrawals,
    parse_update,
)

FIXTURES = Path(__file__).parents[1] / "fixtures" / "bgp"

IPV4 = IPv4Address("192.0.2.1")
IPV6 = IPv6Address("2001:db8::1")
RD = RouteDistinguisher.of(IPV4, 100)
MAC = bytes.fromhex("020000000a01")
TARGETS = frozenset({RouteTarget.of(65000, 100), RouteTarget.parse("192.0.2.1:7")})
MAC_IP = MacIpRoute(RD, NO_ESI, 0, MAC, IPv4Address("10.0.0.1"), 100)
ATTRIBUTES = PathAttributes(IPV4, TARGETS)
OPEN = Open(
    4200000000,
    90,
    IPV4,
    Capabilities(
        frozenset({EVPN}),
        4200000000,
        route_refresh=True,
        graceful_restart=GracefulRestart(False, 120, {EVPN: True}),
    ),
)


def packed(
    *routes: MacIpRoute | MulticastRoute,
    attributes: PathAttributes = ATTRIBUTES,
    four_octet: bool = True,
    internal: bool = True,
    asn: int = 65000,
) -> bytes:
    """Return one UPDATE message."""
    (message,) = pack_updates(routes, attributes, four_octet=four_octet, internal=internal, asn=asn)
    return message


# exabgp


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    log.disable()  # Without it, or a set-up of its environment, exabgp fails to parse.


def negotiated(*, four_octet: bool = True) -> Negotiated:
    session = Negotiated({"capability": {"aigp": False}})
    session.asn4 = four_octet
    session.families = [(AFI.l2vpn, SAFI.evpn)]
    return session


def exabgp(message: bytes, **options: bool) -> Any:
    """Return what exabgp decodes from a whole UPDATE message."""
    return ExaUpdate.unpack_message(message[HEADER_LEN:], Direction.IN, negotiated(**options))


def fields(nlri: Any) -> MacIpRoute | MulticastRoute:
    """Return a route of exabgp as one of ours."""
    rd = RouteDistinguisher(bytes(nlri.rd.pack()))
    ip = None if nlri.ip is None else ip_address(str(nlri.ip))
    if isinstance(nlri, ExaMulticast):
        assert ip is not None
        return MulticastRoute(rd, nlri.etag.tag, ip)
    assert isinstance(nlri, EXA_MAC)
    (label,) = nlri.label.raw_labels
    esi, mac = bytes(nlri.esi.pack()), bytes(nlri.mac.pack())
    return MacIpRoute(rd, esi, nlri.etag.tag, mac, ip, label)


MAC_IPS = bgp.MAC_IP_ROUTES.map(lambda route: route._replace(label2=None))


@given(st.lists(st.one_of(MAC_IPS, bgp.MULTICAST_ROUTES), min_size=1, max_size=8))
def test_exabgp_decodes_our_routes(routes: list[MacIpRoute | MulticastRoute]) -> None:
    update = exabgp(packed(*routes))
    assert [fields(nlri) for nlri in update.nlris] == routes
    assert {str(nlri.nexthop) for nlri in update.nlris} == {str(IPV4)}
    (message,) = pack_withdrawals(routes)
    assert [fields(nlri) for nlri in exabgp(message).nlris] == routes


@given(MAC_IPS)
def test_exabgp_encodes_routes_that_we_decode(route: MacIpRoute) -> None:
    source = exabgp(packed(route))
    (nlri,) = source.nlris
    # Encoded again from its fields.
    copy = EXA_MAC(
        *(nlri.rd, nlri.esi, nlri.etag, nlri.mac, 48, nlri.label, nlri.ip),
        nexthop=nlri.nexthop,
        action=nlri.action,
    )
    (message,) = ExaUpdate([copy], source.attributes).messages(negotiated())
    assert parse_update(message[HEADER_LEN:], four_octet=True, internal=True) == Update(
        (route,), (), attrs.evolve(ATTRIBUTES, local_pref=100)
    )


def test_exabgp_decodes_our_attributes() -> None:
    attributes = attrs.evolve(
        ATTRIBUTES,
        sequence=5,
        sticky=True,
        as_path=(65001, 4200000001),
        pmsi=Pmsi(0, 6, 100, IPV4),
    )
    route = MulticastRoute(RD, 0, IPV4)
    for four_octet in (True, False):
        message = packed(
            route, attributes=attributes, four_octet=four_octet, internal=False, asn=4200000000
        )
        found = json.loads(f"{{{exabgp(message, four_octet=four_octet).attributes.json()}}}")
        assert found["origin"] == "igp"
        assert found["as-path"]["0"]["value"] == [4200000000, 65001, 4200000001]
        communities = [each["string"] for each in found["extended-community"]]
        assert communities[:3] == ["target:65000:100", "target:192.0.2.1:7", "encap:VXLAN"]
        assert communities[3].startswith("mac-mobility:5")
        assert found["pmsi"] == f"pmsi:ingressreplication:0:6(100):{IPV4}"


def test_exabgp_decodes_our_other_messages() -> None:
    assert isinstance(exabgp(END_OF_RIB), EOR)
    found = ExaOpen.unpack_message(OPEN.pack(), Direction.IN, negotiated())
    shown = str(found)
    assert "asn=23456 hold_time=90 router_id=192.0.2.1" in shown
    for capability in ("Multiprotocol(l2vpn evpn)", "ASN4(4200000000)", "Route Refresh"):
        assert capability in shown


def test_where_exabgp_differs() -> None:
    """The codec of exabgp would lose sessions to IPv6 VTEPs: docs/decisions/evpn-codec.md."""
    with pytest.raises(Notify, match="next-hop length 16 expected 4"):
        exabgp(packed(MAC_IP, attributes=attrs.evolve(ATTRIBUTES, next_hop=IPV6)))


# tshark

WARNING = 0x60_0000
"""The severity of expert information from which on there is a problem."""


def pcap(messages: list[bytes]) -> bytes:
    """Return a capture file in which a BGP speaker sends messages in one TCP connection."""
    records = [pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101)]  # Raw IP.
    sequence = 1
    for message in messages:
        tcp = pack("!HHIIBBHHH", 50000, 179, sequence, 1, 0x50, 0x18, 65535, 0, 0)
        total = 40 + len(message)
        addresses = IPV4.packed + IPv4Address("192.0.2.2").packed
        ip = pack("!BBHHHBBH", 0x45, 0, total, 0, 0x4000, 64, 6, 0) + addresses
        records.append(pack("<IIII", 0, 0, total, total) + ip + tcp + message)
        sequence += len(message)
    return b"".join(records)


def tshark(folder: Path, messages: list[bytes], *names: str) -> list[dict[str, list[str]]]:
    """Return fields of each message, and check that tshark finds nothing malformed."""
    file = folder / "bgp.pcap"
    file.write_bytes(pcap(messages))
    wanted = ("bgp.type", "_ws.malformed", "_ws.expert.severity", *names)
    found = subprocess.run(
        ["tshark", "-r", file, "-T", "json", *(each for name in wanted for each in ("-e", name))],
        capture_output=True,
        check=True,
        text=True,
    )
    rows = [each["_source"]["layers"] for each in json.loads(found.stdout)]
    assert len(rows) == len(messages)
    for row in rows:
        assert "_ws.malformed" not in row
        assert all(int(text) < WARNING for text in row.get("_ws.expert.severity", [])), row
    return rows


TSHARK_FIELDS = (
    *("bgp.cap.mp.safi", "bgp.cap.4as", "bgp.cap.gr.timers.restart_time", "bgp.cap.gr.flag.pfs"),
    *("bgp.evpn.nlri.rt", "bgp.evpn.nlri.rd", "bgp.evpn.nlri.esi", "bgp.evpn.nlri.etag"),
    *("bgp.evpn.nlri.mac_addr", "bgp.evpn.nlri.ip.addr", "bgp.evpn.nlri.ipv6.addr"),
    *("bgp.evpn.nlri.vni",),
    "bgp.update.path_attribute.mp_reach_nlri.next_hop.ipv4",
    "bgp.update.path_attribute.mp_reach_nlri.next_hop.ipv6",
    "bgp.update.path_attribute.as_path_segment.as4",
    "bgp.update.path_attribute.local_pref",
    "bgp.update.path_attribute.pmsi.tunnel.type",
    "bgp.update.path_attribute.pmsi.ingress_rep_ip",
    *("bgp.ext_com_evpn.mmac.seq", "bgp.ext_com_evpn.mmac.flags.sticky"),
    *("bgp.ext_com.tunnel_type", "bgp.notify.major_error", "bgp.notify.minor_error_cease"),
    *("bgp.notify.communication", "bgp.route_refresh.safi"),
)


@needs("tshark")
def test_tshark_decodes_our_messages(tmp_path: Path) -> None:
    moved = attrs.evolve(ATTRIBUTES, sequence=5, sticky=True, default_gateway=True, router=True)
    ipv6 = attrs.evolve(ATTRIBUTES, next_hop=IPV6, pmsi=Pmsi(0, 6, 100, IPV6))
    ipv6_target = frozenset({RouteTarget.parse("[2001:db8::1]:100")})
    messages = [
        pack_message(MessageType.OPEN, OPEN.pack()),
        KEEPALIVE,
        packed(
            MulticastRoute(RD, 0, IPV4),
            attributes=attrs.evolve(ATTRIBUTES, pmsi=Pmsi(0, 6, 100, IPV4)),
        ),
        packed(MAC_IP, MAC_IP._replace(ip=None), MAC_IP._replace(ip=IPV6), attributes=moved),
        packed(MAC_IP._replace(label2=200, ethernet_tag=7, esi=b"\1" * 10)),
        packed(MulticastRoute(RD, 0, IPV6), attributes=ipv6),
        packed(
            MAC_IP,
            internal=False,
            asn=4200000000,
            attributes=attrs.evolve(ATTRIBUTES, route_targets=ipv6_target),
        ),
        *pack_withdrawals([MAC_IP, MulticastRoute(RD, 0, IPV4)]),
        END_OF_RIB,
        pack_message(MessageType.ROUTE_REFRESH, RouteRefresh().pack()),
        pack_message(MessageType.NOTIFICATION, Notification(6, 2, pack_shutdown("bye")).pack()),
    ]
    rows = tshark(tmp_path, messages, *TSHARK_FIELDS)
    found = [
        {
            name.removeprefix("bgp.").removeprefix("update.path_attribute."): values
            for name, values in row.items()
            if name.startswith("bgp.")
        }
        for row in rows
    ]
    rd, mac, no_esi = RD.octets.hex(), "02:00:00:00:0a:01", ":".join(["00"] * 10)
    flood = {"type": ["2"], "evpn.nlri.rt": ["3"], "evpn.nlri.rd": [rd], "evpn.nlri.etag": ["0"]}
    flood |= {"evpn.nlri.vni": ["100"], "pmsi.tunnel.type": ["6"], "local_pref": ["100"]}
    flood |= {"ext_com.tunnel_type": ["8"]}
    next_hop = {"mp_reach_nlri.next_hop.ipv4": [str(IPV4)]}
    unicast = {"type": ["2"], "evpn.nlri.rt": ["2"], "evpn.nlri.rd": [rd], "evpn.nlri.etag": ["0"]}
    unicast |= {"evpn.nlri.esi": [no_esi], "evpn.nlri.mac_addr": [mac]}
    unicast |= {"evpn.nlri.ip.addr": ["10.0.0.1"]}
    internal = {"ext_com.tunnel_type": ["8"], "local_pref": ["100"]} | next_hop
    assert found == [
        {
            "type": ["1"],
            "cap.mp.safi": ["70"],
            "cap.4as": ["4200000000"],
            "cap.gr.timers.restart_time": ["120"],
            "cap.gr.flag.pfs": ["1"],
        },
        {"type": ["4"]},
        flood | next_hop | {"evpn.nlri.ip.addr": [str(IPV4)], "pmsi.ingress_rep_ip": [str(IPV4)]},
        {name: each * 3 for name, each in unicast.items()}
        | internal
        | {
            "type": ["2"],
            "evpn.nlri.ip.addr": ["10.0.0.1"],
            "evpn.nlri.ipv6.addr": [str(IPV6)],
            "ext_com_evpn.mmac.seq": ["5"],
            "ext_com_evpn.mmac.flags.sticky": ["1"],
        },
        unicast | internal | {"evpn.nlri.esi": [":".join(["01"] * 10)], "evpn.nlri.etag": ["7"]},
        flood
        | {
            "evpn.nlri.ipv6.addr": [str(IPV6)],
            "mp_reach_nlri.next_hop.ipv6": [str(IPV6)],
            "pmsi.ingress_rep_ip": ["32.1.13.184"],  # tshark shows only four octets of it.
        },
        unicast | next_hop | {"as_path_segment.as4": ["4200000000"], "ext_com.tunnel_type": ["8"]},
        {
            "type": ["2"],
            "evpn.nlri.rt": ["2", "3"],
            "evpn.nlri.rd": [rd, rd],
            "evpn.nlri.etag": ["0", "0"],
            "evpn.nlri.esi": [no_esi],
            "evpn.nlri.mac_addr": [mac],
            "evpn.nlri.ip.addr": ["10.0.0.1", str(IPV4)],
        },
        {"type": ["2"]},
        {"type": ["5"], "route_refresh.safi": ["70"]},
        {
            "type": ["3"],
            "notify.major_error": ["6"],
            "notify.minor_error_cease": ["2"],
            "notify.communication": ["bye"],
        },
    ]


@needs("tshark")
def test_tshark_finds_nothing_wrong(tmp_path: Path) -> None:
    """Generated messages, with every combination of attributes and kinds of speakers."""
    messages: list[bytes] = []

    @settings(max_examples=100)
    @given(st.lists(bgp.ROUTES_IN_USE, min_size=1, max_size=3), bgp.ATTRIBUTES, st.booleans())
    def collect(
        routes: list[MacIpRoute | MulticastRoute], attributes: PathAttributes, internal: bool
    ) -> None:
        # Other types of ESIs are malformed, for tshark.
        routes = [
            each._replace(esi=b"\0" + each.esi[1:]) if isinstance(each, MacIpRoute) else each
            for each in routes
        ]
        pmsi = attributes.pmsi
        if pmsi is not None and pmsi.endpoint is None:
            attributes = attrs.evolve(attributes, pmsi=None)  # The identifier may be malformed.
        messages.append(packed(*routes, attributes=attributes, internal=internal))
        messages.extend(pack_withdrawals(routes))

    collect()
    tshark(tmp_path, messages)


# What FRR and gobgpd have sent.


def sent_by(name: str) -> dict[str, list[tuple[MessageType, bytes]]]:
    """Return type and body of the messages in a fixture, by the session that it names."""
    sessions: dict[str, list[tuple[MessageType, bytes]]] = {}
    for line in (FIXTURES / f"{name}.txt").read_text().splitlines():
        if line.startswith("# "):
            session = sessions.setdefault(line[2:], [])
        else:
            session.extend(Deframer().feed(bytes.fromhex(line)))
    return sessions


def updates_of(
    session: list[tuple[MessageType, bytes]], *, four_octet: bool = True, internal: bool = True
) -> list[Update]:
    return [
        parse_update(body, four_octet=four_octet, internal=internal)
        for kind, body in session
        if kind is MessageType.UPDATE
    ]


def test_what_frr_sends() -> None:
    sessions = sent_by("frr-8.4.4")
    internal = sessions["iBGP over IPv4"]
    opened = Open.parse(internal[0][1])
    assert (opened.asn, opened.hold_time, str(opened.router_id)) == (65000, 9, "192.0.2.2")
    capabilities = opened.capabilities
    assert capabilities.families == {EVPN}
    assert capabilities.four_octet_asn == 65000
    assert (capabilities.route_refresh, capabilities.enhanced_route_refresh) == (True, True)
    # Without families: FRR keeps no EVPN routes while it restarts.
    assert capabilities.graceful_restart == GracefulRestart(True, 120, {}, True)
    assert RouteRefresh.parse(internal[-2][1]) == RouteRefresh()
    assert Notification.parse(internal[-1][1]).text == (
        'Cease (6/2): administrative shutdown "maintenance until 5"'
    )

    local, flood, moved, withdrawn = updates_of(internal)
    assert not any(each.problems for each in (local, flood, moved, withdrawn))
    rd = RouteDistinguisher.parse("192.0.2.2:2")
    host = bytes.fromhex("020000000b01")
    ips = [None, IPv6Address("fd00::2"), IPv4Address("10.0.0.2")]
    routes = [MacIpRoute(rd, NO_ESI, 0, host, ip, 100) for ip in ips]
    assert set(local.announced) > set(routes)
    next_hop = IPv4Address("192.0.2.2")
    targets = frozenset({RouteTarget.of(65000, 100)})
    attributes = PathAttributes(next_hop, targets, local_pref=100)
    assert local.attributes == attributes
    assert flood.announced == (MulticastRoute(rd, 0, next_hop),)
    assert flood.attributes == attrs.evolve(attributes, pmsi=Pmsi(0, 6, 100, next_hop))
    assert moved.announced == (MacIpRoute(rd, NO_ESI, 0, MAC, None, 100),)
    assert moved.attributes == attrs.evolve(attributes, sequence=1)
    # The labels of withdrawn routes are 0.
    assert {each.key for each in withdrawn.withdrawn} == {each.key for each in routes}

    # Routes of gobgpd on the way back: unchanged next hop, both AS numbers.
    reflected = updates_of(sessions["eBGP: AS 65000 and AS 4200000001"], internal=False)
    paths = {each.attributes.as_path for each in reflected if each.attributes is not None}
    assert paths == {(65000,), (65000, 4200000001)}
    kinds = {each.kind for one in reflected for each in one.announced if len(each) == 2}
    assert kinds == {1, 4, 5}
    # FRR 8.4 ends a session if the endpoint is an IPv6 address.
    refused = Notification.parse(sessions["iBGP over IPv6"][-1][1])
    assert refused.text == "UPDATE message error (3/5): attribute length error"


def test_as_numbers_of_four_octets_from_frr() -> None:
    """FRR sent the second route on; its AS_PATH and AS4_PATH came from `pack_updates`."""
    old = sent_by("frr-8.4.4")["eBGP, to a speaker without four-octet AS numbers"]
    updates = updates_of(old, four_octet=False, internal=False)
    assert [each.attributes and each.attributes.as_path for each in updates] == [
        (65000, 4200000001, 65001, 4200000009),
        (65000, 64998, 65001, 4200000009),
    ]
    assert not any(each.problems for each in updates)


def test_what_gobgpd_sends() -> None:
    sessions = sent_by("gobgpd-3.10.0")
    assert Open.parse(sessions["eBGP: AS 65000 and AS 4200000001"][0][1]).asn == 4200000001
    for name, next_hop in (("iBGP over IPv4", IPV4), ("iBGP over IPv6", IPV6)):
        updates = updates_of(sessions[name])
        assert not any(each.problems for each in updates)
        announced = {route: each.attributes for each in updates for route in each.announced}
        route = MacIpRoute(RD, NO_ESI, 0, MAC, IPv4Address("10.0.0.1"), 100)
        attributes = announced[route]
        assert attributes == PathAttributes(
            next_hop, frozenset({RouteTarget.of(65000, 100)}), origin=2, local_pref=100
        )
        flood = announced[MulticastRoute(RD, 0, next_hop)]
        assert flood == attrs.evolve(attributes, pmsi=Pmsi(0, 6, 100, next_hop))
        assert {each.kind for each in announced if isinstance(each, OtherRoute)} == {1, 4, 5}
    (update,) = updates_of(sessions["iBGP, PMSI with an IPv6 endpoint"])
    endpoint = IPv6Address("2001:db8::7")
    assert update.announced == (MulticastRoute(RouteDistinguisher.parse("65000:100"), 5, endpoint),)
    assert update.attributes is not None
    assert update.attributes.route_targets == {RouteTarget.parse("192.0.2.1:100")}
    assert update.attributes.pmsi == Pmsi(0, 6, 100, endpoint)
    assert update.attributes.next_hop == IPV4


@pytest.mark.parametrize("name", ["frr-8.4.4", "gobgpd-3.10.0"])
def test_routes_are_packed_as_others_pack_them(name: str) -> None:
    for title, session in sent_by(name).items():
        for update in updates_of(session, four_octet="without" not in title):
            for routes in (update.announced, update.withdrawn):
                assert pack_routes(routes) in b"".join(body for _, body in session)
