"""Configuration files: the settings they hold, and the lines of their problems."""

import tomllib
from ipaddress import IPv4Address
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtep.config import Config, Settings
from vtep.config.file import FileError, parse
from vtep.config.toml_lines import locate
from vtep.errors import ConfigError

# --- settings -----------------------------------------------------------------------------------


def test_defaults_and_segments() -> None:
    settings = parse(
        """
        control = "none"
        state = "/var/lib/pyvtep.json"
        remote = ["192.0.2.2", "192.0.2.3"]
        max-addresses = 100
        learning = false
        srcport = [50000, 50010]

        [[vni]]
        id = 5
        bridge = "br0"
        ageing = 12.5

        [[vni]]
        id = 6
        remote = "192.0.2.4"
        tap = "other"
        learning = true
        """,
        "file",
    )
    common: dict[str, Any] = {"max_addresses": 100, "srcport": (50000, 50010)}
    both = [IPv4Address("192.0.2.2"), IPv4Address("192.0.2.3")]
    assert settings == Settings(
        control="none",
        state="/var/lib/pyvtep.json",
        segments=[
            Config(vni=5, remote=both, bridge="br0", ageing=12.5, learning=False, **common),
            Config(vni=6, remote="192.0.2.4", tap="other", **common),
        ],
    )


@pytest.mark.parametrize("text", ["", "# only a word\n", "dstport = 4789\n"])
def test_a_file_without_a_vni_is_refused(text: str) -> None:
    """Read again, it would end every VNI that there is."""
    with pytest.raises(FileError, match=r"^file:1: there is no \[\[vni\]\] table"):
        parse(text, "file")
    assert parse(f"{text}vni = []\n", "file") == Settings(segments=[])


EXAMPLES: dict[str, Any] = {
    "remote": "192.0.2.9",
    "group": "239.1.1.1",
    "tap": "other",
    "netns": "/run/netns/blue",
    "tap_fd": "3",
    "vlan": 10,
    "bridge": "br0",
    "docker_network": "mynetwork",
    "docker_host": "tcp://192.0.2.9:2375",
    "persist": True,
    "local": ["192.0.2.1"],
    "dev": "eth0",
    "dstport": 8472,
    "srcport": [1000, 2000],
    "ttl": "inherit",
    "tos": 0xB8,
    "ecn": "kernel",
    "mss_clamp": 1300,
    "gbp_accept": [7],
    "df": "set",
    "flowlabel": "inherit",
    "udpcsum": False,
    "udp6zerocsumtx": True,
    "udp6zerocsumrx": False,
    "mtu": 1400,
    "mac": "02:00:00:00:00:01",
    "address": ["10.0.0.1/24", "fd00::1/64"],
    "anycast_gateway": ["10.0.0.1"],
    "evpn": True,
    "route_target": ["65000:100"],
    "route_target_import": ["65000:101", "192.0.2.1:5"],
    "route_target_export": ["4200000000:7"],
    "rd": "192.0.2.1:100",
    "learning": False,
    "ageing": 5,
    "max_addresses": 7,
    "max_addresses_per_remote": 5,
    "mac_move_limit": 3,
    "mac_move_hold": 60,
    "storm_broadcast": 100,
    "storm_multicast": "200:50",
    "storm_unknown_unicast": "off",
    "liveness_interval": 3,
    "loop_block": 10,
    "proxy": True,
    "accept": ["192.0.2.0/24"],
    "accept_any": True,
    "reserved_bits": "strict",
    "gbp": 3,
    "inner_vlan": "drop",
    "offload": ["gso"],
    "fast_path": False,
}


FABRIC = ("evpn", "route_target", "route_target_import", "route_target_export", "rd")
"""Options of a VNI that need the BGP sessions of a table [evpn], and can't be defaults of all."""


SESSIONS = '[evpn]\nasn = 65000\nneighbor = "192.0.2.9"\n'


def toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


@pytest.mark.parametrize("field", attrs.fields(Config), ids=lambda field: field.name)
def test_every_option_is_a_key(field: "attrs.Attribute[Any]") -> None:
    if field.name == "vni":
        return
    options = {field.name: EXAMPLES[field.name]}
    if field.name == "group":
        options["dev"] = "eth0"
    if field.name == "docker_host":
        options["docker_network"] = "mynetwork"
    if field.name in FABRIC[1:]:
        options["evpn"] = True
    if field.name == "gbp_accept":
        options["gbp"] = 7
    keys = [f"{name.replace('_', '-')} = {toml(value)}" for name, value in options.items()]
    text = "\n".join(["[[vni]]", "id = 1", *keys])
    expected = Config(vni=1, **options)
    assert parse(SESSIONS + text, "file").segments == (expected,)
    assert getattr(expected, field.name) != field.default
    # For all VNIs, too, unless there can be only one.
    above = "\n".join([*keys, "[[vni]]", "id = 1"])
    if field.name in FABRIC:
        assert problems(f"{keys[0]}\n[[vni]]\nid = 1")[0].startswith(
            f"file:1: {keys[0].split()[0]}: "
        )
        return
    if field.name in ("tap", "vlan", "mac", "address"):
        assert problems(above) == [f"file:1: {field.name}: belongs in a [[vni]] table"]
    else:
        assert parse(above, "file").segments == (expected,)


def test_a_table_maps_vlans_to_vnis() -> None:
    text = """
    remote = "192.0.2.2"
    [[vni]]
    tap = "vx0"
    vlan = ["10:1010", "20-21:1020-1021"]
    [[vni]]
    id = 30
    tap = "vx0"
    vlan = 30
    """
    assert [(each.vni, each.vlan, each.tap) for each in parse(text, "file").segments] == [
        *((1010, 10, "vx0"), (1020, 20, "vx0"), (1021, 21, "vx0"), (30, 30, "vx0"))
    ]


# --- problems ---------------------------------------------------------------------------------


def problems(text: str) -> list[str]:
    with pytest.raises(FileError) as caught:
        parse(text, "file")
    assert caught.value.exit_code == ConfigError.exit_code
    assert str(caught.value).startswith(caught.value.problems[0])
    return list(caught.value.problems)


def test_all_problems_are_reported_with_their_lines() -> None:
    text = """control = ""
remots = "192.0.2.2"
remote = [
  "192.0.2.2",
  "172.31.0.300",   # such as this

  "fe80::1%",
]
[[vni]]
id = 5
learning = "no"
[[vni]]
idd = 6
[[vni]]
id = 16777216
max_addresses = 1
"""
    assert problems(text) == [
        "file:1: control '': is not the path of a file",
        "file:2: remots: unknown key; did you mean remote?",
        "file:5: remote 172.31.0.300: is not an IP address; each of its numbers is at most 255",
        "file:7: remote fe80::1%: is neither an IP address nor a host name",
        "file:11: learning no: must be true or false",
        "file:12: id is missing; give the VNI, such as id = 100",
        "file:13: idd: unknown key; did you mean id?",
        "file:15: id 16777216: must be from 0 to 16777215",
        "file:16: max_addresses: unknown key; did you mean max-addresses?",
    ]


SEGMENT = "[[vni]]\nid = 5\n"

BAD = [
    ("a =", "file:1: is not TOML: invalid value"),
    ("\n\nremote = 'x", 'file:3: is not TOML: expected "\'"'),
    ("vni = 5", "file:1: vni: write each VNI as a table, below a line [[vni]]"),
    ("\n[vni]\nid = 5", "file:2: vni: write each VNI as a table, below a line [[vni]]"),
    ("vni = [1]", "file:1: vni: write each VNI as a table, below a line [[vni]]"),
    ("id = 5", "file:1: id: belongs in a [[vni]] table"),
    (f"{SEGMENT}vni = 5", "file:3: vni: unknown key; did you mean id?"),
    (f"{SEGMENT}[xyz]", "file:3: xyz: unknown key"),
    (f"{SEGMENT}[[vni]]\ntap='a'\nid = 5", "file:5: id 5: defined twice; each VNI can be"),
    (f"{SEGMENT}[[vni]]\nid = 6\ntap='vx5'", "file:5: tap vx5: is given twice"),
    (f"{SEGMENT}[[vni]]\nid = 6\nlocal='192.0.2.1'", "file:3: dstport 4789: vni 5 and vni 6 share"),
    (
        f"dstport = 4790\n{SEGMENT}[[vni]]\nid = 6\noffload='none'",
        "file:6: offload: gro must be on or off for both vni 5 and vni 6",
    ),
    (f"{SEGMENT}remote=['192.0.2.2',\n'192.0.2.2']", "file:3: remote 192.0.2.2: is given twice"),
    (
        f"local = '192.0.2.2'\n{SEGMENT}remote = '192.0.2.2'",
        "file:4: remote 192.0.2.2: is the local address of this host",
    ),
    (
        f"local = '2001:db8::1'\n\n{SEGMENT}remote = '192.0.2.2'",
        "file:1: local 2001:db8::1: is IPv6, but the remotes are IPv4",
    ),
    (
        f"{SEGMENT}group = '239.1.1.1'",
        "file:3: group 239.1.1.1: needs dev, the device to join it on",
    ),
    (
        f"remote = '192.0.2.7'\n{SEGMENT}address = '192.0.2.1/24'",
        "file:4: address 192.0.2.1/24: remote 192.0.2.7 is in its subnet 192.0.2.0/24, and would",
    ),
    (f"\nstate-learned = true\n{SEGMENT}", "file:2: state-learned: needs state, with the file"),
    (
        f"{SEGMENT}state = '/x'",
        "file:3: state: is an option of the process; move it above the first",
    ),
    (f"{SEGMENT}tos = 1979-05-27 07:32:00", "file:3: tos 1979-05-27 07:32:00: is neither"),
    (f"{SEGMENT}mac = {{a = 1}}", "file:3: mac {a = 1}: is not a MAC address such as"),
    (f"{SEGMENT}mtu = 0x{'f' * 9999}", f"file:3: mtu 0x{'f' * 48}...: must be from 68"),
    (f"{SEGMENT}mtu = {'9' * 9999}", "file:3: a number has too many digits"),
    ("a = " + "[" * 5000 + "]" * 5000, "file:1: is nested too deeply"),
]


BAD += [
    ("dstport = 1\n\ndstport = 1", "file:3: dstport: is given twice, in line 1 too; leave one out"),
    (f"{SEGMENT}mtu = 1400\nid = 5", "file:4: id: is given twice, in line 2 too"),
    (f"vni = 5\n{SEGMENT}", "file:2: vni: write each VNI as a table, below a line [[vni]]"),
    (f"vni = []\n{SEGMENT}", "file:2: vni: write each VNI as a table, below a line [[vni]]"),
    (f"{SEGMENT}[vni]\nid = 6", "file:3: vni: write each VNI as a table, below a line [[vni]]"),
    (f"[vni]\nid = 6\n{SEGMENT}", "file:3: vni: write each VNI as a table, below a line [[vni]]"),
    (
        "[[vni]\nid = 5",
        "file:1: is not TOML: expected ']]' at the end of an array declaration; wri",
    ),
    (
        f"{SEGMENT}dev = eth0 # x",
        'file:3: is not TOML: invalid value; quote text: dev = "eth0"',
    ),
    (f"{SEGMENT}learning = No", "file:3: is not TOML: invalid value; write learning = false"),
    (
        f"{SEGMENT}mtu: 1400",
        "file:3: is not TOML: expected '=' after a key in a key/value pair; wri",
    ),
    (f"{SEGMENT}--mtu = 1400", "file:3: --mtu: unknown key; did you mean mtu?"),
    (f"{SEGMENT}peer = '192.0.2.1'", "file:3: peer: unknown key; did you mean remote?"),
    (
        f"{SEGMENT}remote = '192.0.2.1,192.0.2.2'",
        (
            "file:3: remote 192.0.2.1,192.0.2.2: is not an IP address but several; write them one "
            'by one: remote = ["192.0.2.1", "192.0.2.2"]'
        ),
    ),
    (
        f"{SEGMENT}remote = '192.0.2.1:4790'",
        (
            "file:3: remote 192.0.2.1:4790: is not an IP address; write the port as an option of "
            'its own: remote = "192.0.2.1" and dstport = 4790'
        ),
    ),
    # Values in their own spelling, where another option makes no sense of them, too.
    (f"{SEGMENT}[[vni]]\nid = 0x5", "file:4: id 0x5: defined twice"),
    (f"{SEGMENT}flowlabel = 0x0_7", "file:3: flowlabel 0x0_7: is for IPv6"),
    (f"{SEGMENT}gbp-accept = [0x10]", "file:3: gbp-accept 0x10: needs gbp"),
    (f"{SEGMENT}remote = ['FE80::1']", "file:3: remote FE80::1: is link-local"),
]


@pytest.mark.parametrize(("text", "problem"), BAD, ids=[problem[:40] for _, problem in BAD])
def test_problem(text: str, problem: str) -> None:
    (found,) = problems(text)
    assert found.startswith(problem)
    assert "--" not in found.replace("--mtu: unknown", "")


WRITTEN = [
    *("5", "-0", "0x10", "1_000", "5.50", "1e9", "inf", "true", "1979-05-27", "07:32:00"),
    *("1979-05-27T07:32:00Z", "{ a = 1 }", "{}", "[]", "[ 1,2 ]", '[["a"], "b"]', "[{ a=1 }]"),
    "9" * 45,
]


@pytest.mark.parametrize("field", attrs.fields(Config), ids=lambda field: field.name)
def test_a_value_is_quoted_as_it_is_written(field: "attrs.Attribute[Any]") -> None:
    key = "id" if field.name == "vni" else field.name.replace("_", "-")
    refused = 0
    for written in WRITTEN:
        identity = "" if key == "id" else "id = 5\n"
        try:
            parse(f"{SESSIONS}[[vni]]\n{identity}{key} = {written}", "file")
        except FileError as error:
            refused += 1
            for problem in error.problems:
                quoted = problem.split(f": {key} ")[1].split(": ")[0]
                # Of an array, an item may be meant.
                assert quoted == written or (written[0] == "[" and quoted in written), problem
    assert refused > 5


TEXTS = st.lists(
    st.sampled_from(
        [
            *("[[vni]]\n", "[vni]\n", "id = ", "remote = ", "vni.", "a.b = ", "ttl = ", "mac = "),
            *("local = ", "learning = ", "srcport = ", "5", "'192.0.2.2'", "'x'", "'''", '"""'),
            *(
                "[",
                "]",
                "{",
                "}",
                ",",
                "\n",
                "\n",
                "=",
                "# x\n",
                "true",
                "1e9",
                "07:32:00",
                '"\\u00e9"',
            ),
            *("nan", "'fe80::1%a'", "['192.0.2.2', '192.0.2.3']", "1.5", "-1", "'239.1.1.1'"),
        ]
    )
    | st.text(max_size=3),
    max_size=30,
).map("".join)


@given(TEXTS)
def test_any_text_is_kept_or_refused(text: str) -> None:
    try:
        settings = parse(text, "file")
    except FileError as error:
        lines = text.count("\n") + 1
        for problem in error.problems:
            name, line, _ = problem.split(":", 2)
            assert name == "file"
            assert 1 <= int(line) <= lines
    else:
        assert len(settings.segments) == len(tomllib.loads(text).get("vni", []))


# --- positions of keys ---------------------------------------------------------------------------


def test_lines_of_all_that_toml_has() -> None:
    text = '''
a = 1
"b c".'d' . e = """
x = 5 # ""\\"
""""
[t] # [no.table]
h = [ 1.5, [ # [
  "]", '#'],
  {x = [1,
  2], "y\\u0041" = 07:32:00},
]
[t.u.v]
i = 1979-05-27 07:32:00Z
[[w]]
j = +inf
[[w]]
[w.x]
k = \'\'\'
\'\'\'\'
[[w.y]]
l = true
[[w.y]]
'''
    tomllib.loads(text)
    assert locate(text) == {
        ("a",): 2,
        ("b c",): 3,
        ("b c", "d"): 3,
        ("b c", "d", "e"): 3,
        ("t",): 6,
        ("t", "h"): 7,
        ("t", "h", 0): 7,
        ("t", "h", 1): 7,
        ("t", "h", 1, 0): 8,
        ("t", "h", 1, 1): 8,
        ("t", "h", 2): 9,
        ("t", "h", 2, "x"): 9,
        ("t", "h", 2, "x", 0): 9,
        ("t", "h", 2, "x", 1): 10,
        ("t", "h", 2, "yA"): 10,
        ("t", "u"): 12,
        ("t", "u", "v"): 12,
        ("t", "u", "v", "i"): 13,
        ("w",): 14,
        ("w", 0): 14,
        ("w", 0, "j"): 15,
        ("w", 1): 16,
        ("w", 1, "x"): 17,
        ("w", 1, "x", "k"): 18,
        ("w", 1, "y"): 20,
        ("w", 1, "y", 0): 20,
        ("w", 1, "y", 0, "l"): 21,
        ("w", 1, "y", 1): 22,
    }


def paths(value: object, at: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    """Return the paths of all values in a document."""
    inside: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        inside = list(value.items())
    elif isinstance(value, list):
        inside = list(enumerate(value))
    found = {(*at, key) for key, _ in inside}
    return found.union(*(paths(item, (*at, key)) for key, item in inside))


@given(TEXTS)
def test_the_same_keys_are_found_as_by_the_parser(text: str) -> None:
    try:
        document = tomllib.loads(text)
    except ValueError:
        return
    assert set(locate(text)) == paths(document)


VALUES = st.recursive(
    st.sampled_from(["1", "'a'", '"b]"', "[]", "1.5", '"""\n#"""', "2001-01-01 00:00:00"]),
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(
        lambda items: "[ # [\n" + ",\n".join(items) + "\n]"
    ),
    max_leaves=5,
)


@given(st.lists(VALUES, max_size=8))
def test_lines_count_whatever_stands_between(items: list[str]) -> None:
    text = "".join(f"key{number} = {value}\n" for number, value in enumerate(items))
    lines = locate(text)
    before = 1
    for number, value in enumerate(items):
        assert lines[(f"key{number}",)] == before
        before += value.count("\n") + 1


@pytest.mark.parametrize("array", ["[", '["192.0.2.2"', "[1,", "[}]", "[[,]", "[{]"])
def test_a_file_with_a_damaged_array_is_refused_at_once(array: str) -> None:
    """The search for repeated keys in such a text once did not end."""
    with pytest.raises(FileError, match=r"^file:"):
        parse(f"remote = {array}\n[[vni]\nid = 1\nid = 2\naccept = {array}", "file")


VLAN_PROBLEMS = (
    ('vlan = ["10"]', ":2: vlan 10: is no VLAN with its VNI"),
    ('vlan = ["10-12:1010-1011"]', ":2: vlan 10-12:1010-1011: has 3 VLANs, but 2 VNIs"),
    ('vlan = ["12-10:1"]', ":2: vlan 12-10:1: 12-10 is no range; write 10-12"),
    ('vlan = ["0:1"]', ":2: vlan 0:1: a VLAN ID must be from 1 to 4094"),
    ('vlan = ["1:16777216"]', ":2: vlan 1:16777216: a VNI must be from 0 to 16777215"),
    ('vlan = ["1:1", "1:2"]', ":2: vlan 1:2: VLAN 1 is given twice"),
    ("vlan = []", ":2: vlan []: names no VLAN"),
    (
        'vlan = ["1:5", "2:5"]',
        ":2: vlan 2:5: VNI 5 is given twice; each VNI is carried by one VLAN",
    ),
    ('id = 5\n[[vni]]\ntap = "v"\nvlan = ["1:5"]', ":5: id 5: defined twice"),
    ('id = 5\nvlan = ["1:5"]', ":3: vlan 1:5: names a VNI; leave out id"),
    ('vlan = ["1:5"]\naddress = "10.0.0.1/24"', ":3: address 10.0.0.1/24: belongs to no VLAN"),
    ('tap = "v"\nvlan = ["1:5"]\n[[vni]]\nid = 6\ntap = "v"', ":6: tap v: is shared by vni 5"),
    (
        'tap = "v"\nvlan = ["1:5"]\n[[vni]]\nid = 6\ntap = "v"\nvlan = 1',
        ":7: vlan 1: is given twice for tap v",
    ),
    (
        'tap = "v"\nvlan = ["1:5"]\n[[vni]]\nid = 6\ntap = "v"\nvlan = 2\npersist = true',
        ":8: persist: must be the same for vni 5 and vni 6",
    ),
)


@pytest.mark.parametrize(("table", "problem"), VLAN_PROBLEMS)
def test_vlans_that_conflict(table: str, problem: str) -> None:
    found = problems(f"[[vni]]\n{table}")
    assert f"file{problem}" in found[0], found
