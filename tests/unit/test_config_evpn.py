"""The options of BGP EVPN: the table [evpn] of a file, neighbours, route targets and rules."""

from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest

from vtep.config import Config, Settings
from vtep.config.evpn import (
    EvpnSettings,
    describe_change,
    export_targets,
    from_options,
    import_targets,
)
from vtep.config.evpn_neighbors import Neighbor, neighbor
from vtep.config.file import FileError, parse, parse_all
from vtep.errors import ConfigError
from vtep.wire.bgp.communities import RouteTarget


def problems(text: str) -> list[str]:
    with pytest.raises(FileError) as caught:
        parse(text, "file")
    return list(caught.value.problems)


def test_a_table_has_the_sessions_of_the_process() -> None:
    settings = parse(
        """
        [evpn]
        asn = 65000
        neighbor = ["10.0.0.1", {address = "fe80::2%eth0", asn = 4200000000, password = "secret"}]
        router-id = "192.0.2.1"
        hold-time = 30
        listen = false
        route-target = "65000:7"
        duplicate-mac = "hold"
        stale-time = 5
        [[vni]]
        id = 100
        evpn = true
        [[vni]]
        id = 101
        evpn = true
        learning = true
        [[vni]]
        id = 102
        """,
        "file",
    )
    assert settings.evpn == EvpnSettings(
        asn=65000,
        neighbor=[
            Neighbor("10.0.0.1"),
            Neighbor("fe80::2%eth0", asn=4200000000, password="secret"),
        ],
        router_id="192.0.2.1",
        hold_time=30,
        listen=False,
        route_target=["65000:7"],
        duplicate_mac="hold",
        stale_time=5,
    )
    # What is learned on the data plane competes with routes, so it is off unless it is asked for.
    assert [config.learning for config in settings.segments] == [False, True, True]


def test_all_problems_are_reported_with_their_lines() -> None:
    assert problems(
        """
        [evpn]
        as = 65000
        neighbour = ["10.0.0.1"]
        route_target = "65000:1"
        hold-time = 2
        password = "two\\nlines"
        router_id = "x"
        duplicate-mac = "drop"
        [[vni]]
        id = 100
        evpn = true
        vlan = 5
        """
    ) == [
        "file:3: as: unknown key; did you mean asn?",
        "file:4: neighbour: unknown key; did you mean neighbor?",
        "file:5: route_target: unknown key; did you mean route-target?",
        "file:6: hold-time 2: must be 0, or from 3 to 65535 (RFC 4271)",
        "file:7: password: is not a text of printable characters",
        "file:8: router_id: unknown key; did you mean router-id?",
        "file:9: duplicate-mac drop: must be warn, hold or off",
        (
            "file:13: vlan 5: MACs of a VLAN of the bridge cannot be announced yet; leave out vlan "
            "or evpn"
        ),
    ]


def test_problems_of_neighbours() -> None:
    assert problems(
        """
        [evpn]
        asn = "1.10"
        [[evpn.neighbor]]
        address = "fe80::1"
        [[evpn.neighbor]]
        peer-as = 5
        ip = "10.0.0.1"
        [[evpn.neighbor]]
        asn = 23456
        [[vni]]
        id = 100
        """
    ) == [
        "file:3: asn 1.10: is not a whole number: asn = 65546",
        "file:5: neighbor fe80::1: is link-local; add its device, as in fe80::1%eth0",
        "file:7: peer-as: unknown key; did you mean asn?",
        "file:8: ip: unknown key; did you mean address?",
        "file:9: address is missing in this neighbor",
        "file:10: asn 23456: is reserved (RFC 6793); give the AS number itself",
    ]
    assert problems(
        """
        [evpn]
        asn = 65535
        listen = "yes"
        password = 12345678
        router-id = "224.1.1.1"
        [[evpn.neighbor]]
        address = "10.0.0.1"
        port = 0
        passive = 1
        [[evpn.neighbor]]
        address = "10.0.0.2:179"
        local = "10.0.0.0/8"
        [evnp]
        [[vni]]
        id = 100
        evpn = true
        route-target = ["70000:70000", "65000:99999999999", "192.0.2.1:65536", "4294967296:1"]
        rd = "70000:70000"
        """
    ) == [
        (
            "file:3: asn 65535: is reserved (RFC 7300); private AS numbers are 64512 to 65534 and "
            "4200000000 to 4294967294"
        ),
        "file:4: listen yes: must be true or false",
        "file:5: password: is not a text; write it in quotes",
        (
            "file:6: router-id 224.1.1.1: is not a unicast address, so that other BGP speakers "
            "refuse it"
        ),
        "file:9: port 0: must be from 1 to 65535",
        "file:10: passive 1: must be true or false",
        'file:12: neighbor 10.0.0.2:179: is not an IP address: neighbor = "10.0.0.2,port=179"',
        (
            "file:13: local 10.0.0.0/8: is not an IP address but a prefix; write the address alone"
            ': local = "10.0.0.0"'
        ),
        "file:14: evnp: unknown key; did you mean evpn?",
        (
            "file:18: route-target 192.0.2.1:65536: its number must be from 0 to 65535 behind an "
            "address"
        ),
        "file:18: route-target 4294967296:1: its AS number must be from 0 to 4294967295",
        "file:18: route-target 65000:99999999999: its number must be from 0 to 4294967295",
        (
            "file:18: route-target 70000:70000: its number must be from 0 to 65535 behind an AS "
            "number above 65535"
        ),
        (
            "file:19: rd 70000:70000: its number must be from 0 to 65535 behind an AS number above "
            "65535"
        ),
    ]
    text = '[evpn]\nasn = 1\nneighbor = ["10.0.0.1",\n"10.0.0.1/24",\n"10.0.0.2,as=5"]\n'
    text += "[[vni]]\nid = 5"
    assert problems(text) == [
        (
            "file:4: neighbor 10.0.0.1/24: is not an IP address but a prefix; write the address "
            'alone: neighbor = "10.0.0.1"'
        ),
        (
            "file:5: neighbor 10.0.0.2,as=5: takes asn=N, port=N, local=IP and passive behind the "
            "address, as in 10.0.0.1,asn=65001"
        ),
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "[evpn]\n[[vni]]\nid = 1",
            [
                "file:1: asn is missing in [evpn]; for example: asn = 65000",
                'file:1: neighbor is missing in [evpn]; for example: neighbor = ["10.0.0.1"]',
            ],
        ),
        (
            "evpn = true\n[[vni]]\nid = 1",
            [
                (
                    "file:1: evpn: write the BGP sessions as a table [evpn], with asn and "
                    "neighbor, and evpn = true into the [[vni]] tables"
                )
            ],
        ),
        (
            "[[vni]]\nid = 1\n[[vni]]\nid = 2\nevpn = true",
            ["file:5: evpn: needs a table [evpn] in this file, with asn and neighbor"],
        ),
        (
            '[evpn]\nasn = 1\nneighbor = ["10.0.0.1", "10.0.0.1"]\n[[vni]]\nid = 1',
            ["file:3: neighbor 10.0.0.1: is given twice; leave one out"],
        ),
        (
            "[evpn]\nasn = 1\nneighbor = []\n[[vni]]\nid = 1",
            ["file:3: neighbor: is missing; give the address of a BGP speaker"],
        ),
        (
            (
                '[evpn]\nasn = 1\nneighbor = ["10.0.0.1", "10.0.0.2,passive"]\nlisten = false\n'
                "[[vni]]\nid = 1"
            ),
            [
                (
                    "file:3: neighbor 10.0.0.2: is passive, so it would have to connect to this "
                    "host, which has listen = false; leave out one of both"
                )
            ],
        ),
        (
            (
                '[evpn]\nasn = 1\nneighbor = "10.0.0.1"\npassword = "a"\npassword-file = "/b"\n'
                "[[vni]]\nid = 1"
            ),
            ["file:5: password-file: there is a password as well; leave one out"],
        ),
    ],
)
def test_other_problems_of_a_file(text: str, found: list[str]) -> None:
    assert problems(text) == found


def test_two_vnis_with_one_route_distinguisher() -> None:
    text = '[evpn]\nasn = 1\nneighbor = "10.0.0.1"\n'
    for vni in (1, 2):
        text += f'[[vni]]\nid = {vni}\nevpn = true\nrd = "1:1"\n'
    assert problems(text) == [
        (
            "file:11: rd 1:1: is given to both vni 1 and vni 2, whose routes would replace each "
            "other; give each VNI its own, or leave it out"
        )
    ]


def test_changes_are_named_without_values() -> None:
    before = EvpnSettings(asn=1, neighbor="10.0.0.1", password="secret")
    after = EvpnSettings(asn=2, neighbor="10.0.0.1", password="geheim", hold_time=9)
    assert describe_change(before, after) == "[evpn] changed (asn, password, hold-time)"
    assert describe_change(before, None) == "[evpn] deleted"
    assert describe_change(None, after) == "[evpn] added"


def test_a_directory_has_one_table() -> None:
    sessions = '[evpn]\nasn = 1\nneighbor = "10.0.0.1"\n'
    segment = "[[vni]]\nid = {}\nevpn = true\n"
    settings = parse_all([("a", sessions + segment.format(4)), ("b", segment.format(5))])
    assert settings.evpn is not None
    assert len(settings.segments) == 2
    with pytest.raises(FileError, match=r"b:1: evpn: has another value in a:1; leave one of them"):
        parse_all(
            [
                ("a", sessions + segment.format(4)),
                ("b", sessions.replace("asn = 1", "asn = 2") + segment.format(5)),
            ]
        )


def test_neighbours() -> None:
    found = neighbor("10.0.0.1,asn=65001,port=1790,local=10.0.0.9,passive")
    assert found == Neighbor("10.0.0.1", asn=65001, port=1790, local="10.0.0.9", passive=True)
    assert neighbor(str(found)) == found
    assert neighbor(IPv4Address("10.0.0.1")) == Neighbor("10.0.0.1")
    assert neighbor({"address": "10.0.0.1", "password": "x"}).password == "x"
    for text, reason in (
        ("192.0.2.2:179", "is not an IP address: --evpn-neighbor 192.0.2.2,port=179"),
        ("[::1]:1790", "is not an IP address: --evpn-neighbor ::1,port=1790"),
        ("192.0.2.2,asn=0", "its asn 0 must be from 1 to 4294967295"),
        ("192.0.2.2,asn=", "its asn is not a whole number"),
        ("192.0.2.2,asn=1.10", "its asn 1.10 is not a whole number: asn=65546"),
        ("192.0.2.2,port=99999", "its port 99999 must be from 1 to 65535"),
        ("192.0.2.2,local=x", "its local x is not an IP address"),
        ("192.0.2.2,asn=1,asn=2", "asn is given twice; leave one out"),
        ("192.0.2.2,passive,passive", "passive is given twice; leave one out"),
        ("239.1.1.1", "is a multicast group; give the address of a BGP speaker"),
    ):
        with pytest.raises(ConfigError) as caught:
            neighbor(text)
        assert str(caught.value).startswith(f"--evpn-neighbor {text}: {reason}")
    with pytest.raises(ConfigError, match=r"^--evpn-neighbor 192.0.2.2: is its own local, that is"):
        neighbor("192.0.2.2,local=192.0.2.2")
    for wrong in ({"address": "10.0.0.1", "as": 1}, {"asn": 1}, "10.0.0.1,local=fe80::1%a"):
        with pytest.raises(ConfigError, match=r"--evpn-neighbor|--asn"):
            neighbor(wrong)


def test_passwords_appear_in_no_text() -> None:
    settings = EvpnSettings(
        asn=1, neighbor=[{"address": "10.0.0.1", "password": "secret"}], password="geheim"
    )
    assert "secret" not in f"{settings}{settings.neighbor[0]}"
    assert "geheim" not in f"{settings!r}"
    with pytest.raises(ConfigError) as caught:
        EvpnSettings(asn=1, neighbor="10.0.0.1", password="secret" * 20)
    assert str(caught.value) == "--evpn-password: is longer than 80 octets"


def test_settings_are_the_same_from_json() -> None:
    settings = EvpnSettings(
        asn=1,
        neighbor=[{"address": "fe80::1%eth0", "password": "secret"}, "10.0.0.1,asn=5"],
        router_id="192.0.2.1",
        route_target=["1:2", "192.0.2.1:3"],
        password="geheim",
    )
    assert EvpnSettings(**settings.to_json()) == settings
    assert settings.with_password("x").password == "x"


def test_the_command_line_has_some_of_them() -> None:
    given: dict[str, Any] = {"asn": "65000", "evpn_neighbor": ("10.0.0.1,asn=65000",)}
    assert from_options(given) == EvpnSettings(asn=65000, neighbor="10.0.0.1,asn=65000")
    with pytest.raises(ConfigError, match="--asn is missing"):
        from_options({"evpn_neighbor": ("10.0.0.1",)})
    with pytest.raises(ConfigError, match="--evpn-neighbor: is missing"):
        from_options({"asn": "65000"})


SESSIONS = EvpnSettings(asn=4200000001, neighbor="10.0.0.1")


def test_a_segment_needs_sessions() -> None:
    with pytest.raises(ConfigError, match="--evpn: there is no BGP session"):
        Settings(segments=[Config(vni=1, evpn=True)])
    Settings(segments=[Config(vni=1, evpn=True)], evpn=SESSIONS)
    with pytest.raises(ConfigError, match="--control none: EVPN needs the control socket"):
        Settings(segments=[], evpn=SESSIONS, control="none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": "239.1.1.1", "dev": "eth0"}, "--group 239.1.1.1: the routes of the fabric say"),
        ({"vlan": 5}, "--vlan 5: MACs of a VLAN"),
        ({"netns": "/run/netns/a"}, "--netns /run/netns/a: MACs of another network namespace"),
        ({"tap_fd": 5}, "--tap-fd 5: MACs behind the TAP"),
    ],
)
def test_options_that_contradict(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config(vni=1, evpn=True, **options)
    assert str(caught.value).startswith(message)


def test_route_targets() -> None:
    def of(text: str) -> RouteTarget:
        return RouteTarget.parse(text)

    plain = Config(vni=70000, evpn=True)
    assert import_targets(plain, SESSIONS) is None  # Those of any AS.
    assert export_targets(plain, SESSIONS) == frozenset({of(f"{4200000001 & 0xFFFF}:70000")})
    common = EvpnSettings(asn=1, neighbor="10.0.0.1", route_target="1:5")
    assert import_targets(plain, common) == export_targets(plain, common) == frozenset({of("1:5")})
    both = Config(vni=1, evpn=True, route_target="1:1", route_target_import=["1:2", "1:3"])
    assert import_targets(both, common) == frozenset({of("1:1"), of("1:2"), of("1:3")})
    assert export_targets(both, common) == frozenset({of("1:1")})
    single = Config(vni=1, evpn=True, route_target=RouteTarget.of(1, 1), route_target_export="1:9")
    assert import_targets(single, common) == frozenset({of("1:1")})
    assert export_targets(single, common) == frozenset({of("1:1"), of("1:9")})


def test_addresses_are_kept() -> None:
    assert SESSIONS.neighbor[0].address == ip_address("10.0.0.1")
