"""BGP sessions with FRR and GoBGP: every way in which they begin, fail, end and come back."""

import socket
import struct
from ipaddress import ip_address
from pathlib import Path

import pytest
from attrs import evolve

from tests.netns.bgp_speaker import BgpSpeaker, macs, multicast, neighbor
from tests.netns.fabric import Fabric, Frr, GoBgp, GoBgpNeighbor, Neighbor, bgp_config
from tests.netns.hosts import address, link_local_address, wait_until
from vtep.testing.lab import Host, Lab

US, FRR = "192.0.2.1", "192.0.2.2"
_ICMPV6 = socket.IPPROTO_ICMPV6
US6, FRR6 = "2001:db8::1", "2001:db8::2"


class Place:
    """Our host, another router, and what runs there."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.fabric = Fabric(lab)
        self.folder = folder
        self.here = self.fabric.router("here", 1)
        self.there = self.fabric.router("there", 2)

    def frr(
        self, *neighbors: Neighbor, asn: int = 65000, host: Host | None = None, router_id: str = FRR
    ) -> Frr:
        """Start FRR on the other router."""
        config = bgp_config(asn, router_id, neighbors, evpn_lines=())
        return Frr(host or self.there, self.folder, config)


@pytest.fixture
def place(lab: Lab, tmp_path: Path) -> Place:
    """Return two routers on one link."""
    return Place(lab, tmp_path)


def test_frr_opens_the_connection_or_we_do(place: Place, subtests: pytest.Subtests) -> None:
    frr = place.frr(Neighbor(US, 65000, ("timers 3 9",)))
    own = [multicast(US), *macs(US, 1000)]
    with subtests.test("both connect"), BgpSpeaker(place.here, neighbor(FRR), own=own) as us:
        session = us.wait_established()
        assert session["remote_asn"] == 65000
        assert session["router_id"] == FRR
        assert session["local"] == US
        assert session["hold_time"] == 9
        frr.wait_established(US)
        wait_until(lambda: len(frr.routes()) == 1001, "our routes")
        wait_until(lambda: us.session()["end_of_rib"], "End-of-RIB of FRR")
        assert us.session()["routes_announced"] == 1001
        us.withdraw(own[1:])
        wait_until(lambda: len(frr.routes()) == 1, "withdrawals")
        us.announce(own[1:2])
        wait_until(lambda: len(frr.routes()) == 2, "an announcement")
        # FRR asks for all routes again (RFC 2918).
        frr.vtysh(f"clear bgp l2vpn evpn {US} soft in")
        ends = len(us.events)
        us.announce(own[2:3])
        wait_until(lambda: len(frr.routes()) == 3, "an announcement")
        assert len(us.events) == ends
        assert us.downs() == []
    wait_until(lambda: not frr.is_established(US), "our Cease")
    assert frr.routes() == []
    with (
        subtests.test("FRR connects"),
        BgpSpeaker(place.here, neighbor(FRR, passive=True)) as us,
    ):
        us.wait_established()
        frr.wait_established(US)
    frr.configure("router bgp 65000", f"neighbor {US} passive")
    with subtests.test("we connect"), BgpSpeaker(place.here, neighbor(FRR)) as us:
        us.wait_established()
        frr.wait_established(US)
    with (
        subtests.test("neither connects"),
        BgpSpeaker(place.here, neighbor(FRR, passive=True)) as us,
    ):
        assert us.session()["state"] == "active"


@pytest.mark.parametrize("ours", ["192.0.2.1", "192.0.2.9"])
def test_simultaneous_connections_leave_one(place: Place, ours: str) -> None:
    """FRR connects each second, and so do we; the higher router ID decides (RFC 4271, 6.8)."""
    with BgpSpeaker(place.here, neighbor(FRR), router_id=ours) as us:
        us.wait_error("connect-refused")
        frr = place.frr(Neighbor(US, 65000))
        us.wait_established()
        frr.wait_established(US)
        for resets in range(1, 6):
            frr.vtysh(f"clear bgp {US}")
            wait_until(lambda: len(us.downs()) >= resets, "the reset")  # noqa: B023
            us.wait_established()
            frr.wait_established(US)

        def connections() -> int:
            listed = place.here.run("ss", "-Htn", "state", "established", "dst", FRR)
            return len(listed.splitlines())

        wait_until(lambda: connections() == 1, "one connection")


def test_passwords(place: Place, subtests: pytest.Subtests) -> None:
    frr = place.frr(
        Neighbor(US, 65000, ("password secret",)), Neighbor(US6, 65000, ("password secret",))
    )
    for peer, own in ((FRR, US), (FRR6, US6)):
        for passive in (False, True):
            with (
                subtests.test(f"{peer}, passive {passive}"),
                BgpSpeaker(place.here, neighbor(peer, passive=passive), password="secret") as us,
            ):
                session = us.wait_established()
                frr.wait_established(own)
                assert session["password"]
                assert session["local"] == own
    for password in ("wrong", None):
        with (
            subtests.test(f"password {password}"),
            BgpSpeaker(place.here, neighbor(FRR), password=password) as us,
        ):
            # The kernel of either side drops what the other one sends.
            assert "no answer" in us.wait_error("timeout")
            assert us.events == []
            # The right one makes it work, without a restart.
            us.configure(neighbor(FRR, password="secret"))
            us.wait_established()
            frr.wait_established(US)
            # A password that changes ends the session, and the old one is of no use.
            us.configure(neighbor(FRR, password="another"))
            assert "other configuration change" in us.downs()[-1]
            us.wait_error("timeout")
    with (
        subtests.test("only ours has one"),
        BgpSpeaker(place.here, neighbor(FRR, password="secret")) as us,
    ):
        us.wait_established()
        frr.configure("router bgp 65000", f"no neighbor {US} password")
        us.wait_error("timeout")


def test_a_link_local_neighbour(place: Place) -> None:
    """FRR 8.4 never connects to such a neighbour ("Waiting for NHT"), but accepts connections."""
    ours, theirs = link_local_address(place.here), link_local_address(place.there)
    frr = place.frr(Neighbor(ours, 65000, ("interface eth0", "password secret")))
    near = neighbor(f"{theirs}%eth0", password="secret")
    with BgpSpeaker(place.here, near, own=[multicast(US)]) as us:
        session = us.wait_established()
        assert session["neighbor"] == f"{theirs}%eth0"
        assert session["local"] == ours
        wait_until(lambda: len(frr.routes()) == 1, "our route")


def advertise_router(host: Host) -> None:
    """Send a router advertisement (RFC 4861, section 4.2), by which FRR finds its neighbours."""
    with host.inside(), socket.socket(socket.AF_INET6, socket.SOCK_RAW, _ICMPV6) as sock:
        index = socket.if_nametoindex("eth0")
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        advertisement = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
        sock.sendto(advertisement, ("ff02::1", 0, 0, index))


@pytest.mark.parametrize("passive", [False, True])
def test_an_unnumbered_neighbour(place: Place, passive: bool) -> None:
    """`neighbor eth0 interface` of FRR waits for a router advertisement of ours."""
    ours, theirs = link_local_address(place.here), link_local_address(place.there)
    frr = place.frr(Neighbor("eth0", 65000, ("password secret",), interface=True))
    near = neighbor(f"{theirs}%eth0", passive=passive, password="secret")
    with BgpSpeaker(place.here, near, own=[multicast(US)]) as us:

        def is_established() -> bool:
            advertise_router(place.here)
            return us.is_established()

        wait_until(is_established, "the session")
        assert us.session()["local"] == ours
        wait_until(lambda: len(frr.routes()) == 1, "our route")


def test_a_frozen_peer_is_down_after_the_hold_time(place: Place) -> None:
    frr = place.frr(Neighbor(US, 65000, ("timers 3 9",)))
    with BgpSpeaker(place.here, neighbor(FRR), hold_time=3, own=[multicast(US)]) as us:
        session = us.wait_established()
        assert session["hold_time"] == 3
        frr.wait_established(US)
        frr.signal("STOP")
        text = us.wait_error("hold-expired")
        assert "no message of the neighbor for 3 s" in text
        assert us.downs() == [text]
        frr.signal("CONT")
        us.wait_established()
        frr.wait_established(US)
        wait_until(lambda: len(frr.routes()) == 1, "our route")


def test_a_speaker_that_was_stopped_comes_back(place: Place) -> None:
    frr = place.frr(Neighbor(US, 65000))
    with BgpSpeaker(place.here, neighbor(FRR), hold_time=3, own=[multicast(US)]) as us:
        us.wait_established()
        frr.wait_established(US)
        # The event loop stands still until FRR gives up.
        us.call(lambda: wait_until(lambda: not frr.is_established(US), "FRR's hold timer"))
        wait_until(us.downs, "the end of the session")
        assert "hold timer expired" in us.downs()[0]
        us.wait_established()
        wait_until(lambda: len(frr.routes()) == 1, "our route")


def test_routes_starve_no_keepalive(place: Place) -> None:
    """10,000 routes come and go again through a reflector, with a hold time of 3 s."""
    # Without collisions, which may end a session that was established just before.
    client = Neighbor(US, 65000, ("passive",), ("route-reflector-client",))
    frr = place.frr(client, evolve(client, address="192.0.2.3"))
    other = place.fabric.router("other", 3)
    routes = macs("192.0.2.3", 10_000)
    with (
        BgpSpeaker(place.here, neighbor(FRR), hold_time=3) as us,
        BgpSpeaker(other, neighbor(FRR), hold_time=3) as source,
    ):
        us.wait_established()
        source.wait_established()
        for _ in range(3):
            source.announce(routes)
            wait_until(lambda: us.session()["routes_received"] == 10_000, "the routes")
            (attributes,) = {each for each in us.routes[FRR].values() if each}
            assert attributes.next_hop == ip_address("192.0.2.3")
            assert attributes.originator_id == ip_address("192.0.2.3")
            source.withdraw(routes)
            wait_until(lambda: us.session()["routes_received"] == 0, "withdrawals")
        assert us.downs() == source.downs() == []
    assert frr.routes() == []


def test_bgpd_is_killed_and_starts_again(place: Place) -> None:
    frr = place.frr(Neighbor(US, 65000))
    with BgpSpeaker(place.here, neighbor(FRR), own=macs(US, 10)) as us:
        us.wait_established()
        frr.kill_bgpd()
        wait_until(us.downs, "the end of the session")
        assert "connection was lost" in us.downs()[0]
        us.wait_error("connect-refused")
        frr.start_bgpd()
        us.wait_established()
        wait_until(lambda: len(frr.routes()) == 10, "our routes")


def test_the_neighbour_ends_the_session(place: Place) -> None:
    frr = place.frr(Neighbor(US, 65000))
    with BgpSpeaker(place.here, neighbor(FRR)) as us:
        us.wait_established()
        frr.configure("router bgp 65000", f"neighbor {US} shutdown message planned maintenance")
        wait_until(us.downs, "the end of the session")
        assert 'Cease (6/2): administrative shutdown "planned maintenance"' in us.downs()[0]
        frr.configure("router bgp 65000", f"no neighbor {US} shutdown")
        us.wait_established()
        frr.configure("router bgp 65000", f"no neighbor {US}")
        wait_until(lambda: len(us.downs()) == 2, "the end of the session")
        # FRR accepts the connection of a stranger, and closes it.
        text = us.wait_error("closed-before-open")
        assert "it may not be configured there" in text


def test_wrong_as_and_missing_family(place: Place, subtests: pytest.Subtests) -> None:
    frr = place.frr(Neighbor(US, 65000))
    with (
        subtests.test("we expect another AS"),
        BgpSpeaker(place.here, neighbor(FRR, asn=65009)) as us,
    ):
        us.wait_error("wrong-asn")
        us.configure(neighbor(FRR, asn=65000))
        us.wait_established()
    with (
        subtests.test("FRR expects another AS"),
        BgpSpeaker(place.here, neighbor(FRR), asn=65001) as us,
    ):
        assert "expects another AS than 65001" in us.wait_error("wrong-asn")
    with subtests.test("family"):
        frr.configure(
            *("router bgp 65000", f"neighbor {US} remote-as 65000"),
            *("address-family ipv4 unicast", f"neighbor {US} activate", "exit"),
            *("address-family l2vpn evpn", f"no neighbor {US} activate"),
        )
        with BgpSpeaker(place.here, neighbor(FRR)) as us:
            us.wait_error("no-evpn-family")


@pytest.mark.parametrize(
    ("ours", "theirs"), [(65001, 65002), (4200000001, 65000), (4200000001, 4200000002)]
)
def test_external_sessions(place: Place, ours: int, theirs: int) -> None:
    frr = place.frr(Neighbor(US, ours), asn=theirs)
    other = place.fabric.router("other", 3)
    second = place.frr(Neighbor(US, ours), asn=theirs, host=other, router_id="192.0.2.3")
    with BgpSpeaker(
        place.here, neighbor(FRR), neighbor("192.0.2.3", asn=theirs), asn=ours, own=[multicast(US)]
    ) as us:
        for name, each in ((FRR, frr), ("192.0.2.3", second)):
            session = us.wait_established(name)
            assert session["remote_asn"] == theirs
            wait_until(lambda: len(each.routes()) == 1, "our route")  # noqa: B023
            (path,) = each.routes()
            assert path["path"] == str(ours)
            assert path["nexthops"][0]["ip"] == US


def test_routes_of_one_session_survive_the_end_of_another(place: Place) -> None:
    frr = place.frr(Neighbor(US, 65000))
    other = place.fabric.router("other", 3)
    second = place.frr(Neighbor(US, 65000), host=other, router_id="192.0.2.3")
    with BgpSpeaker(place.here, neighbor(FRR), neighbor("192.0.2.3"), own=macs(US, 100)) as us:
        for name in (FRR, "192.0.2.3"):
            us.wait_established(name)
        frr.kill_bgpd()
        wait_until(lambda: us.downs(FRR), "the end of one session")
        wait_until(lambda: len(second.routes()) == 100, "our routes")
        assert us.is_established("192.0.2.3")
        assert us.downs("192.0.2.3") == []
        us.configure(neighbor("192.0.2.3"))
        assert us.is_established("192.0.2.3")
        assert [each["neighbor"] for each in us.sessions()] == ["192.0.2.3"]


def test_the_source_address_of_a_session(place: Place) -> None:
    """Reflectors know leaves by an address of the loopback device."""
    address(place.here, "lo", "203.0.113.1/32")
    place.there.run("ip", "route", "add", "203.0.113.1/32", "via", US)
    frr = place.frr(Neighbor("203.0.113.1", 65000))
    with BgpSpeaker(place.here, neighbor(FRR)) as us:
        us.wait_error("closed-before-open")
        us.configure(neighbor(FRR, local="203.0.113.1"))
        assert us.wait_established()["local"] == "203.0.113.1"
        frr.wait_established("203.0.113.1")
    with BgpSpeaker(
        place.here, neighbor(FRR, passive=True), local=[ip_address("203.0.113.1")]
    ) as us:
        us.wait_established()


def test_unreachable_neighbours(place: Place, subtests: pytest.Subtests) -> None:
    for peer, kind, text in (
        (FRR, "connect-refused", "no BGP speaker listens there"),
        ("198.51.100.1", "no-route", "Network is unreachable"),
        ("192.0.2.77", "no-route", "No route to host"),
    ):
        with subtests.test(peer), BgpSpeaker(place.here, neighbor(peer)) as us:
            assert text in us.wait_error(kind)
    place.there.run("iptables", "-A", "INPUT", "-p", "tcp", "--dport", "179", "-j", "DROP")
    with subtests.test("filtered"), BgpSpeaker(place.here, neighbor(FRR)) as us:
        assert "no answer" in us.wait_error("timeout")


def test_gobgp(place: Place, subtests: pytest.Subtests) -> None:
    gobgp = GoBgp(
        place.there,
        place.folder,
        65000,
        FRR,
        [GoBgpNeighbor(US, 65000, password="secret"), GoBgpNeighbor("192.0.2.3", 65001)],
    )
    for passive in (False, True):
        with (
            subtests.test(f"passive {passive}"),
            BgpSpeaker(
                place.here,
                neighbor(FRR, passive=passive),
                password="secret",
                own=[multicast(US), *macs(US, 500)],
            ) as us,
        ):
            us.wait_established()
            gobgp.wait_established(US)
            wait_until(lambda: len(gobgp.routes()) == 501, "our routes")
    with (
        subtests.test("wrong password"),
        BgpSpeaker(place.here, neighbor(FRR), password="wrong") as us,
    ):
        us.wait_error("timeout")
    with subtests.test("external"):
        other = place.fabric.router("other", 3)
        with BgpSpeaker(other, neighbor(FRR), asn=65001, own=[multicast("192.0.2.3")]) as us:
            us.wait_established()
            wait_until(lambda: len(gobgp.routes()) == 1, "our route")
