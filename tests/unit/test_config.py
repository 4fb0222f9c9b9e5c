"""Config and Settings: normal forms of values, refused values, and their messages."""

import math
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.craft import mac
from vtep.config import Config, Settings, check_segments, conflicts
from vtep.config.network_bridge import NetworkBridge
from vtep.config.option_parsers import AGEING_MAX, MTU_MAX, MTU_MIN
from vtep.errors import ConfigError, VtepError
from vtep.wire.address import DEVICE_NAME_MAX

V4, V6 = "192.0.2.1", "2001:db8::1"
GOOD: dict[str, Any] = {"vni": 1, "remote": V4}


def config(**options: Any) -> Config:
    return Config(**(GOOD | options))


def refusal(**options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config(**options)
    return str(caught.value)


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


# --- errors -----------------------------------------------------------------------------------


def test_exit_codes() -> None:
    assert VtepError.exit_code == 1
    assert ConfigError.exit_code == 2
    assert VtepError("x").exit_code == 1
    assert ConfigError("x").exit_code == 2


def test_error_classes() -> None:
    assert issubclass(ConfigError, VtepError)
    assert issubclass(ConfigError, ValueError)
    assert not issubclass(VtepError, ValueError)


# --- normal forms -----------------------------------------------------------------------------


def test_defaults() -> None:
    assert attrs.asdict(config(), recurse=False) == {
        "vni": 1,
        "remote": (IPv4Address(V4),),
        "group": None,
        "tap": "vx1",
        "netns": None,
        "tap_fd": None,
        "vlan": None,
        "bridge": None,
        "docker_network": None,
        "docker_host": None,
        "persist": False,
        "local": (),
        "dev": None,
        "dstport": 4789,
        "srcport": (49152, 65535),
        "ttl": "auto",
        "tos": 0,
        "ecn": "rfc6040",
        "df": "unset",
        "flowlabel": 0,
        "udpcsum": True,
        "udp6zerocsumtx": False,
        "udp6zerocsumrx": True,
        "mtu": None,
        "mac": None,
        "address": (),
        "anycast_gateway": (),
        "evpn": False,
        "route_target": (),
        "route_target_import": (),
        "route_target_export": (),
        "rd": None,
        "learning": True,
        "ageing": 300.0,
        "max_addresses": 65536,
        "max_addresses_per_remote": "auto",
        "mac_move_limit": 5,
        "mac_move_hold": 300,
        "liveness_interval": 10,
        "loop_block": 30,
        "mss_clamp": "auto",
        "storm_broadcast": 10000,
        "storm_multicast": 20000,
        "storm_unknown_unicast": "auto",
        "proxy": False,
        "accept": (),
        "accept_any": False,
        "reserved_bits": 0,
        "gbp": None,
        "gbp_accept": frozenset(),
        "inner_vlan": "pass",
        "offload": frozenset(("tso", "uso", "gso", "gro", "tnl")),
        "fast_path": True,
    }


ACCEPTED = [
    ("vni", 0, 0),
    ("vni", 16777215, 16777215),
    ("vni", "42", 42),
    ("remote", V4, (IPv4Address(V4),)),
    ("remote", [V4], (IPv4Address(V4),)),
    ("remote", IPv4Address(V4), (IPv4Address(V4),)),
    ("remote", V6, (IPv6Address(V6),)),
    ("remote", IPv6Address(V6), (IPv6Address(V6),)),
    ("anycast_gateway", "10.0.0.1", (IPv4Address("10.0.0.1"),)),
    ("anycast_gateway", ["10.0.0.1", "fe80::1"], (IPv4Address("10.0.0.1"), IPv6Address("fe80::1"))),
    ("remote", "2001:DB8:0:0::1", (IPv6Address(V6),)),
    ("remote", "::1", (IPv6Address("::1"),)),
    ("remote", "127.0.0.1", (IPv4Address("127.0.0.1"),)),
    ("remote", "169.254.0.1", (IPv4Address("169.254.0.1"),)),
    ("remote", "fd00::1", (IPv6Address("fd00::1"),)),
    ("remote", ("192.0.2.2", IPv4Address(V4)), (IPv4Address("192.0.2.2"), IPv4Address(V4))),
    ("remote", iter([V4]), (IPv4Address(V4),)),
    ("remote", [], ()),
    ("remote", [V4, V6], (IPv4Address(V4), IPv6Address(V6))),
    ("remote", "fe80::1%eth0", (IPv6Address("fe80::1%eth0"),)),
    ("tap", "a", "a"),
    ("tap", "x" * DEVICE_NAME_MAX, "x" * DEVICE_NAME_MAX),
    ("tap", "vx-1.2_3", "vx-1.2_3"),
    ("tap", "...", "..."),
    ("tap", "ééééééé", "ééééééé"),
    ("local", "192.0.2.9", (IPv4Address("192.0.2.9"),)),
    ("local", ["192.0.2.9"], (IPv4Address("192.0.2.9"),)),
    ("local", None, ()),
    ("netns", "4711", "4711"),
    ("netns", 4711, "4711"),
    ("netns", "/run/netns/blue", "/run/netns/blue"),
    ("netns", "none", None),
    ("tap_fd", "3", 3),
    ("tap_fd", None, None),
    ("vlan", "10", 10),
    ("vlan", ("4094",), 4094),
    ("vlan", "none", None),
    ("bridge", "br-1f2e3d4c5b6a", "br-1f2e3d4c5b6a"),
    ("bridge", None, None),
    ("docker_network", "my_net.1-a", "my_net.1-a"),
    ("docker_network", "none", None),
    ("docker_host", None, None),
    ("persist", True, True),
    ("srcport", (1, 65535), (1, 65535)),
    ("srcport", ["5000", "5000"], (5000, 5000)),
    ("srcport", "5000-5100", (5000, 5100)),
    ("srcport", "5000 5100", (5000, 5100)),
    ("mss_clamp", "auto", "auto"),
    ("mss_clamp", "off", "off"),
    ("mss_clamp", "1360", 1360),
    ("mss_clamp", 8, 8),
    ("mss_clamp", 65535, 65535),
    ("ttl", 1, 1),
    ("ttl", "255", 255),
    ("ttl", "inherit", "inherit"),
    ("ttl", "auto", "auto"),
    ("tos", 0xB8, 0xB8),
    ("tos", "0xB8", 0xB8),
    ("tos", "184", 0xB8),
    ("tos", "inherit", "inherit"),
    ("ecn", "kernel", "kernel"),
    ("df", "set", "set"),
    ("df", "inherit", "inherit"),
    ("flowlabel", "0", 0),
    ("flowlabel", "inherit", "inherit"),
    ("udpcsum", False, False),
    ("udp6zerocsumtx", True, True),
    ("udp6zerocsumrx", False, False),
    ("proxy", True, True),
    ("accept", "192.0.2.0/24", (IPv4Network("192.0.2.0/24"),)),
    ("accept", "192.0.2.7", (IPv4Network("192.0.2.7/32"),)),
    (
        "accept",
        ["2001:db8::/32", IPv4Network("0.0.0.0/0")],
        (IPv6Network("2001:db8::/32"), IPv4Network("0.0.0.0/0")),
    ),
    ("accept_any", True, True),
    ("reserved_bits", "ignore", 0),
    ("reserved_bits", "strict", 0xF7FFFFFF000000FF),
    ("reserved_bits", "0xff", 0xFF),
    ("reserved_bits", 0xFF << 32, 0xFF << 32),
    ("gbp", 0, 0),
    ("gbp", "0xffff", 65535),
    ("gbp", None, None),
    ("inner_vlan", "strip", "strip"),
    ("inner_vlan", "drop", "drop"),
    ("dev", "eth0", "eth0"),
    ("dev", None, None),
    ("dstport", 1, 1),
    ("dstport", 65535, 65535),
    ("dstport", "8472", 8472),
    ("mtu", MTU_MIN, MTU_MIN),
    ("mtu", MTU_MAX, MTU_MAX),
    ("mtu", "1450", 1450),
    ("mtu", None, None),
    ("mac", "02:00:00:00:00:01", mac("02:00:00:00:00:01")),
    ("mac", "FE-FF-FF-FF-FF-FF", mac("fe:ff:ff:ff:ff:ff")),
    ("mac", mac("02:00:00:00:00:01"), mac("02:00:00:00:00:01")),
    ("mac", bytearray(mac("02:00:00:00:00:01")), mac("02:00:00:00:00:01")),
    ("mac", None, None),
    ("address", "10.0.0.1/24", (IPv4Interface("10.0.0.1/24"),)),
    ("address", "fd00::1/64", (IPv6Interface("fd00::1/64"),)),
    (
        "address",
        ["10.0.0.1/24", IPv6Interface("fd00::1/64")],
        (IPv4Interface("10.0.0.1/24"), IPv6Interface("fd00::1/64")),
    ),
    ("address", [], ()),
    ("learning", False, False),
    ("evpn", True, True),
    ("ageing", 0, 0.0),
    ("ageing", "0.5", 0.5),
    ("ageing", AGEING_MAX, 1e9),
    ("max_addresses", 0, 0),
    ("max_addresses", 1 << 30, 1 << 30),
    ("max_addresses", "10", 10),
    ("mac_move_limit", "0", 0),
    ("mac_move_hold", "1", 1.0),
    ("liveness_interval", "0.5", 0.5),
    ("loop_block", "0", 0.0),
    ("max_addresses_per_remote", "auto", "auto"),
    ("max_addresses_per_remote", 0, 0),
    ("max_addresses_per_remote", "10", 10),
    ("storm_broadcast", "500", 500),
    ("storm_broadcast", "0500:07", "500:7"),
    ("storm_multicast", "off", "off"),
    ("storm_unknown_unicast", "auto", "auto"),
    ("storm_unknown_unicast", 1_000_000_000, 1_000_000_000),
    ("offload", "auto", frozenset(("tso", "uso", "gso", "gro", "tnl"))),
    ("offload", "none", frozenset()),
    ("offload", "gro,tso", frozenset(("tso", "gro"))),
    ("offload", ["gso"], frozenset(("gso",))),
    ("fast_path", False, False),
]


def test_accepted(subtests: pytest.Subtests) -> None:
    for name, value, kept in ACCEPTED:
        with subtests.test(name, value=value):
            found = getattr(config(**{name: value}), name)
            assert found == kept
            assert type(found) is type(kept)


@pytest.mark.parametrize(("vni", "name"), [(0, "vx0"), ("7", "vx7"), (16777215, "vx16777215")])
def test_tap_is_named_after_the_vni(vni: int | str, name: str) -> None:
    assert config(vni=vni).tap == name


def test_frozen() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        config().vni = 2  # type: ignore[misc]


def test_same_options_same_config() -> None:
    assert config(remote=[V4], mac="02-00-00-00-00-01") == config(mac=mac("02:00:00:00:00:01"))
    assert config() != config(vni=2)
    assert len({config(), config()}) == 1


def test_changed_copy_is_checked_too() -> None:
    assert attrs.evolve(config(), remote=V6).remote == (IPv6Address(V6),)
    with pytest.raises(ConfigError, match="--vni"):
        attrs.evolve(config(), vni=-1)


def test_every_option_has_its_help() -> None:
    for attribute in attrs.fields(Config):
        assert attribute.metadata["help"].endswith(".")
        assert attribute.kw_only


@given(st.integers(0, (1 << 24) - 1))
def test_every_vni(vni: int) -> None:
    assert config(vni=vni) == config(vni=str(vni))
    assert config(vni=vni).tap == f"vx{vni}"


# --- refusals ---------------------------------------------------------------------------------

NOT_A_HOST = "is not the address of a host"
RANGE = "must be from"
NO_NAME = "is not a name that a network device can have"
NO_ADDRESS = "is not an IP address"

REFUSED = [
    ("vni", -1, RANGE),
    ("vni", 16777216, RANGE),
    ("vni", "16777216", RANGE),
    ("vni", "", "is not a whole number"),
    ("vni", "one", "is not a whole number"),
    ("vni", "1.0", "is not a whole number"),
    ("vni", 1.0, "is not a whole number"),
    ("vni", math.nan, "is not a whole number"),
    ("vni", None, "is not a whole number"),
    ("remote", "", NO_ADDRESS),
    ("remote", "host.example.7", "its last part is a number"),
    ("remote", "-host", "is neither an IP address nor a host name"),
    ("remote", "a..b", "is neither an IP address nor a host name"),
    ("remote", "a" * 64, "is neither an IP address nor a host name"),
    ("remote", "a." * 130 + "b", "is neither an IP address nor a host name"),
    ("remote", " host", "write it without blanks"),
    ("remote", ["host", "HOST"], "--remote host: is given twice"),
    ("remote", "10.0.0", "one has four numbers"),
    ("remote", "1.2.3.4.5", "one has four numbers"),
    ("remote", "192.0.2.2.", "one has four numbers"),
    ("remote", "0x7f", "is neither an IP address nor a host name"),
    ("local", "host.example", "names are looked up for --remote only"),
    ("remote", "192.0.2.256", NO_ADDRESS),
    ("remote", "192.0.2.1:4789", NO_ADDRESS),
    ("remote", "192.0.2.0/24", NO_ADDRESS),
    ("remote", "192.0.2.01", NO_ADDRESS),
    ("remote", "[2001:db8::1]", NO_ADDRESS),
    ("remote", " 192.0.2.1", NO_ADDRESS),
    ("remote", "0.0.0.0", NOT_A_HOST),
    ("remote", "::", NOT_A_HOST),
    ("remote", "255.255.255.255", NOT_A_HOST),
    ("remote", "239.1.1.1", "multicast"),
    ("remote", "224.0.0.1", "multicast"),
    ("remote", "ff02::1", "multicast"),
    ("remote", "ff05::1%eth0", "multicast"),
    ("remote", "fe80::1", "link-local"),
    ("remote", "fe80::1%", "is neither an IP address nor a host name"),
    ("remote", "fe80::1%a:b", "its scope must be the name of a device"),
    ("remote", "2001:db8::1%eth0", "only link-local addresses have a scope"),
    ("remote", "::ffff:192.0.2.1", "write it as 192.0.2.1"),
    ("remote", [V4, V4], "given twice"),
    ("remote", [V6, "192.0.2.1", "2001:db8:0::1"], "given twice"),
    ("remote", [V4, IPv4Address(V4)], "given twice"),
    ("remote", [V4, "non sense!"], "is neither an IP address nor a host name"),
    ("tap", "", NO_NAME),
    ("tap", ".", NO_NAME),
    ("tap", "..", NO_NAME),
    ("tap", "a/b", NO_NAME),
    ("tap", "a:b", NO_NAME),
    ("tap", "vx%d", NO_NAME),
    ("tap", "a b", NO_NAME),
    ("tap", "a\tb", NO_NAME),
    ("tap", "a\n", NO_NAME),
    ("tap", "a\0b", NO_NAME),
    ("tap", "x" * 16, "too long"),
    ("tap", "é" * 8, "too long"),
    ("local", "", NO_ADDRESS),
    ("local", "0.0.0.0", NOT_A_HOST),
    ("local", "239.1.1.1", "multicast"),
    ("local", "fe80::1", "--local fe80::1: is IPv6, but the remotes are IPv4"),
    ("local", "::ffff:192.0.2.9", "write it as 192.0.2.9"),
    ("local", V6, "is IPv6, but the remotes are IPv4"),
    ("local", ["192.0.2.8", "192.0.2.9"], "is the second IPv4 address, after 192.0.2.8"),
    ("local", ["192.0.2.9", "192.0.2.9"], "given twice"),
    ("anycast_gateway", "", "is not an IP address"),
    ("anycast_gateway", ["10.0.0.1", "0.0.0.0"], "is not the address of a host"),
    ("anycast_gateway", ["10.0.0.1", "10.0.0.1"], "given twice"),
    ("anycast_gateway", "224.0.0.1", "is a multicast group"),
    ("group", V4, "is not the address of a multicast group"),
    ("group", "", "is not the address of a multicast group"),
    ("group", ["239.1.1.1"], "is not the address of a multicast group"),
    ("group", "ff02::1%eth0", "give it without a scope"),
    ("group", "239.1.1.1", "needs --dev, the device to join it on"),
    ("netns", "blue", "of a namespace of ip netns, give /run/netns/blue"),
    ("netns", "./blue", "is no PID and no absolute path"),
    ("netns", 0, "must be from 1 to 4194304"),
    ("netns", "", "is no PID and no path of a file"),
    ("netns", True, "is no PID and no path of a file"),
    ("netns", "/run/\0", "is no PID and no path of a file"),
    ("tap_fd", 2, "must be from 3 to 1048576"),
    ("vlan", 0, "must be from 1 to 4094"),
    ("vlan", "4095", "must be from 1 to 4094"),
    ("vlan", "10:1010", "names a VNI; leave out --vni"),
    ("vlan", ("10", "11"), "is a second VLAN; one VNI is carried by one VLAN"),
    ("evpn", "yes", "must be true or false"),
    ("route_target", "65000:100", "is for a VNI of the EVPN fabric; needs --evpn"),
    ("route_target", "65000", "is not a route target such as 65000:100 or 192.0.2.1:100"),
    ("route_target", ["1:1", "1:1"], "1:1: is given twice; leave one out"),
    (
        "route_target_export",
        [f"1:{number}" for number in range(201)],
        "(201 route targets): a route is announced with 200 at most; give fewer",
    ),
    ("route_target_import", 5, "is not a route target such as 65000:100 or 192.0.2.1:100"),
    ("route_target_export", "1:x", "is not a route target such as 65000:100 or 192.0.2.1:100"),
    ("rd", 5, "is not a route distinguisher such as 192.0.2.1:100 or 65000:100"),
    ("docker_network", "-net", "'-net': is not a name that a Docker network can have"),
    ("docker_network", 7, "is not a name that a Docker network can have"),
    ("docker_host", "/run/docker.sock", "is not the address of an engine, such as unix:///"),
    ("docker_host", 7, "is not the address of an engine"),
    ("docker_host", "tcp://", "is not the address of an engine"),
    ("docker_host", "tcp://192.0.2.9:2375", "needs --docker-network, with a network there"),
    ("bridge", "", NO_NAME),
    ("bridge", "x" * 16, "too long"),
    ("bridge", "vx1", "is the TAP itself; name another device"),
    ("persist", 1, "must be true or false"),
    ("srcport", 5000, "must be the first and the last port"),
    ("srcport", "", "must be the first and the last port"),
    ("srcport", (1, 2, 3), "must be the first and the last port"),
    ("srcport", (0, 5), RANGE),
    ("srcport", (5, 65536), RANGE),
    ("srcport", ("a", "b"), "is not a whole number"),
    ("srcport", (6000, 5000), "--srcport 6000 5000: the first port is above the last"),
    ("mss_clamp", 7, "must be from 8 to 65535, or auto, or off"),
    ("mss_clamp", 65536, "must be from 8 to 65535, or auto, or off"),
    ("mss_clamp", "on", "must be from 8 to 65535, or auto, or off"),
    ("mss_clamp", True, "must be from 8 to 65535, or auto, or off"),
    ("mss_clamp", None, "must be from 8 to 65535, or auto, or off"),
    ("ttl", 0, "must be from 1 to 255, or auto, or inherit"),
    ("ttl", 256, "must be from 1 to 255, or auto, or inherit"),
    ("ttl", "AUTO", "must be from 1 to 255, or auto, or inherit"),
    ("tos", 256, RANGE),
    ("tos", -4, RANGE),
    ("tos", "EF", "is neither a number nor inherit"),
    ("tos", 0xBB, "write 0xb8"),
    ("ecn", "rfc", "must be rfc6040 or kernel"),
    ("df", True, "must be unset, set or inherit"),
    ("flowlabel", 1 << 20, RANGE),
    ("flowlabel", "x", "is neither a number nor inherit"),
    ("flowlabel", 5, "is for IPv6, but the underlay is IPv4"),
    ("udpcsum", "yes", "must be true or false"),
    ("udp6zerocsumtx", None, "must be true or false"),
    ("udp6zerocsumrx", 0, "must be true or false"),
    ("proxy", "on", "must be true or false"),
    ("accept", "", "is not a prefix"),
    ("accept", "192.0.2.1/24", "write 192.0.2.0/24, or the address alone"),
    ("accept", "fe80::%eth0/64", "is not a prefix"),
    ("accept", 1, "is not a prefix"),
    ("accept_any", "any", "must be true or false"),
    ("reserved_bits", "lax", "is neither a number, ignore nor strict"),
    ("reserved_bits", 1 << 64, RANGE),
    ("reserved_bits", 1 << 59, "the I flag or the VNI"),
    ("reserved_bits", "0x100", "the I flag or the VNI"),
    ("gbp", 65536, RANGE),
    ("gbp_accept", 65536, RANGE),
    ("gbp_accept", [1, "red"], "is not a number"),
    ("gbp", -1, RANGE),
    ("gbp", "red", "is not a number"),
    ("inner_vlan", "keep", "must be pass, strip or drop"),
    ("dev", "", NO_NAME),
    ("dev", "eth/0", NO_NAME),
    ("dev", "vx1", "is the TAP"),
    ("dev", "x" * 16, "too long"),
    ("dstport", 0, RANGE),
    ("dstport", 65536, RANGE),
    ("dstport", "vxlan", "is not a whole number"),
    ("mtu", MTU_MIN - 1, RANGE),
    ("mtu", MTU_MAX + 1, RANGE),
    ("mtu", "big", "is not a whole number"),
    ("mac", "", "is not a MAC address"),
    ("mac", "02:00:00:00:00", "is not a MAC address"),
    ("mac", "020000000001", "is not a MAC address"),
    ("mac", "01:00:00:00:00:01", "unicast"),
    ("mac", "ff:ff:ff:ff:ff:ff", "unicast"),
    ("mac", "00:00:00:00:00:00", "unicast"),
    ("mac", b"", "unicast"),
    ("mac", bytes((2, 0, 0, 0, 0)), "unicast"),
    ("mac", bytes((2, 0, 0, 0, 0, 0, 1)), "unicast"),
    ("address", "", "prefix length"),
    ("address", ["10.0.0.1/24", "10.0.0.1/24"], "is given twice"),
    ("accept", ["192.0.2.0/24", "192.0.2.0/24"], "is given twice"),
    ("gbp_accept", [7, "0x7"], "is given twice"),
    ("offload", "tso,tso", "is given twice"),
    ("address", "10.0.0.1/33", "prefix length"),
    ("address", "10.0.0.256/24", "prefix length"),
    ("address", "fd00::1/129", "prefix length"),
    ("address", ["10.0.0.1/24", "nonsense"], "prefix length"),
    ("ageing", -1, RANGE),
    ("ageing", -0.001, RANGE),
    ("ageing", AGEING_MAX + 1, RANGE),
    ("ageing", math.nan, RANGE),
    ("ageing", "nan", RANGE),
    ("ageing", math.inf, RANGE),
    ("ageing", -math.inf, RANGE),
    ("ageing", "5m", "is not a number of seconds"),
    ("ageing", "", "is not a number of seconds"),
    ("ageing", None, "is not a number of seconds"),
    ("ageing", 10**400, "--ageing 1000000"),
    ("offload", "tso,lro", "--offload lro: must be auto, none, or some of gro,gso,tnl,tso,uso"),
    ("offload", "", "--offload '': must be"),
    ("offload", "auto,tso", "--offload auto: must be"),
    ("fast_path", "auto", "must be true or false"),
    ("address", "10.0.0.1", "with a prefix length"),
    ("address", "0.0.0.0/0", "is not an address that a TAP can have"),
    ("address", "224.0.0.1/24", "is not an address that a TAP can have"),
    ("address", "127.0.0.1/8", "is not an address that a TAP can have"),
    ("address", "::1/128", "is not an address that a TAP can have"),
    ("address", "fe80::1%eth0/64", "is not an address that a TAP can have"),
    ("address", "10.0.0.0/24", "is the network's address"),
    ("address", "10.0.0.255/24", "is the broadcast address"),
    ("vni", "1_0", "is not a whole number"),
    ("vni", "\u0661", "is not a whole number"),
    ("vni", True, "is not a whole number"),
    ("remote", 1, "is not an IP address"),
    ("remote", b"abcd", "is not an IP address"),
    ("remote", "192.0.2.2\n", "'192.0.2.2\\n': is not an IP address"),
    ("tap", None, "is not a name"),
    ("tap", "\udcff", "is not a name"),
    ("learning", "no", "must be true or false"),
    ("max_addresses", -1, RANGE),
    ("max_addresses", (1 << 30) + 1, RANGE),
    ("max_addresses", "many", "is not a whole number"),
    ("max_addresses", None, "is not a whole number"),
    ("mac_move_limit", -1, "must be from 0 to 1000"),
    ("mac_move_hold", 0, "must be from 1 to 1000000000 seconds"),
    ("liveness_interval", -1, "must be from 0 to 1000000000 seconds"),
    ("loop_block", -1, "must be from 0 to 1000000000 seconds"),
    ("max_addresses_per_remote", -1, "must be from 0 to 1073741824, or auto"),
    ("max_addresses_per_remote", "off", "must be from 0 to 1073741824, or auto"),
    ("max_addresses_per_remote", True, "must be from 0 to 1073741824, or auto"),
    ("storm_broadcast", 0, "must be from 1 to 1000000000, or off"),
    ("storm_broadcast", "auto", "must be from 1 to 1000000000, or off"),
    ("storm_broadcast", "5:", "5:: is not RATE:BURST, two numbers"),
    ("storm_multicast", "5:0", "5:0: is not RATE:BURST, two numbers from 1"),
    ("storm_multicast", "1:2:3", "1:2:3: is not RATE:BURST, two numbers"),
    ("storm_unknown_unicast", None, "must be from 1 to 1000000000, or auto, or off"),
]


def test_refused(subtests: pytest.Subtests) -> None:
    for name, value, why in REFUSED:
        with subtests.test(name, value=value):
            message = refusal(**{name: value})
            assert message.startswith(option(name))
            assert why in message
            assert "\n" not in message


def test_limits() -> None:
    assert (MTU_MIN, MTU_MAX) == (68, 65481)
    assert DEVICE_NAME_MAX == 15
    assert AGEING_MAX == 10**9


def test_message_names_the_value() -> None:
    assert refusal(vni=16777216) == "--vni 16777216: must be from 0 to 16777215"
    assert refusal(ageing="5m") == "--ageing 5m: is not a number of seconds; write 300"
    assert refusal(remote=[V4, "nonsense!"]).startswith("--remote nonsense!: ")
    assert refusal(address=["10.0.0.1/24", "nonsense"]).startswith("--address nonsense: ")
    assert refusal(remote=[V4, "192.0.2.2", V4]) == f"--remote {V4}: is given twice; leave one out"
    assert refusal(mac="01:00:00:00:00:01").startswith("--mac 01:00:00:00:00:01: ")


RESETTABLE = (
    *(
        "remote",
        "group",
        "netns",
        "tap_fd",
        "vlan",
        "bridge",
        "docker_network",
        "docker_host",
        "route_target",
        "route_target_import",
        "route_target_export",
        "rd",
        "local",
        "dev",
        "mtu",
        "mac",
        "address",
        "anycast_gateway",
        "accept",
    ),
    *("gbp", "gbp_accept"),
)


@pytest.mark.parametrize("word", ["none", "auto"])
@pytest.mark.parametrize("name", RESETTABLE)
def test_none_and_auto_reset_an_option(name: str, word: str) -> None:
    default = getattr(Config(vni=1), name)
    assert getattr(config(**{"remote": (), name: word}), name) == default
    assert not default
    if "repeatable" in attrs.fields_dict(Config)[name].metadata:
        with pytest.raises(ConfigError, match="resets the option, so it must stand alone"):
            config(**{name: [word, EXAMPLE_OF[name]]})


EXAMPLE_OF = {
    "remote": V4,
    "local": V4,
    "address": "10.0.0.1/24",
    "anycast_gateway": "10.0.0.1",
    "route_target": "65000:1",
    "route_target_import": "65000:2",
    "route_target_export": "65000:3",
    "rd": "192.0.2.1:1",
    "accept": V4,
    "gbp_accept": 1,
    "vlan": 10,
}


def test_every_default_can_be_spelled() -> None:
    """So `pyvtep set` can lead back to it."""
    for field in attrs.fields(Config):
        if field.name not in (*RESETTABLE, "vni", "tap"):
            default = getattr(Config(vni=1), field.name)
            assert default is not None
            assert getattr(config(**{field.name: default}), field.name) == default


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("remote", f"{V4}:4790", f"write the port as an option of its own: --remote {V4} --dstp"),
        ("remote", "[2001:db8::1]:1", "of its own: --remote 2001:db8::1 --dstport 1"),
        ("remote", "[2001:db8::1]", "write it without brackets: --remote 2001:db8::1"),
        ("remote", f"{V4},{V6}", f"write them one by one: --remote {V4} --remote {V6}"),
        ("local", f"{V4}/24", f"write the address alone: --local {V4}"),
        ("remote", "192.0.2.01", "write it without leading zeros: --remote 192.0.2.1"),
        ("local", "vtep.example", "look it up: getent ahosts vtep.example"),
        ("remote", "vtep.example:1", "of its own: --remote vtep.example --dstport 1"),
        ("remote", "http://b/c", "write the address or the name alone: --remote b"),
        ("remote", "b\u00fccher.example", "as DNS has it: --remote xn--bcher-kva.example"),
        ("vni", "0x10", "is not a whole number; in decimal it is 16"),
        ("vni", "1-5", "several VNIs need a file (--config)"),
        ("ageing", "1.5h", "write 5400"),
        ("tos", "af11", "write 0x28"),
        ("tos", "cs6", "write 0xc0"),
        ("learning", "true", "must be true or false, without quotes"),
        ("mac", "random", "for a random one leave it out"),
        ("remote", "x" * 500, "x...: is neither an IP address nor a host name"),
    ],
)
def test_a_message_suggests_a_value(name: str, value: str, message: str) -> None:
    assert message in refusal(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mac", 5, "--mac 5: is not a MAC address"),
        ("mac", [2, 0, 0, 0, 0, 1], "--mac [2, 0, 0, 0, 0, 1]: is not a MAC address"),
        ("mac", True, "--mac true: is not a MAC address"),
        ("mtu", False, "--mtu false: is not a whole number"),
        ("vni", None, "--vni null: is not a whole number"),
        ("remote", {V4: 1}, "--remote a table: is not an IP address"),
        ("remote", [[V4]], f'--remote ["{V4}"]: is not an IP address'),
        ("remote", [[[V4]]], "--remote an array of 1: is not an IP address"),
        ("srcport", {"a": 1, "b": 2}, "--srcport a table: must be the first"),
        ("offload", {"tso": True}, "--offload a table: must be"),
        ("df", ["set"], '--df ["set"]: must be'),
    ],
)
def test_a_message_quotes_the_value(name: str, value: Any, message: str) -> None:
    assert refusal(**{name: value}).startswith(message)


def test_own_address_among_the_remotes() -> None:
    for local in (V4, "192.0.2.2"):
        message = refusal(remote=[V4, "192.0.2.2"], local=local)
        assert message == f"--remote {local}: is the --local address of this host"


def test_local_of_the_other_family() -> None:
    message = refusal(remote=V6, local="192.0.2.9")
    assert message == "--local 192.0.2.9: is IPv4, but the remotes are IPv6"
    assert config(remote=V6, local="2001:db8::9").local == (IPv6Address("2001:db8::9"),)


def test_only_the_vni_is_required() -> None:
    with pytest.raises(TypeError, match="vni"):
        Config(remote=V4)  # type: ignore[call-arg]
    assert Config(vni=1).remote == ()


# --- what two options say of each other -------------------------------------------------------


def test_link_local_addresses_have_a_device() -> None:
    assert config(remote="fe80::1", dev="eth0").remote == (IPv6Address("fe80::1"),)
    assert config(remote="fe80::1%eth0", dev="eth0").remote == (IPv6Address("fe80::1%eth0"),)
    assert "is not on the underlay --dev eth1" in refusal(remote="fe80::1%eth0", dev="eth1")
    assert config(remote=V6, local="fe80::9%eth0").local == (IPv6Address("fe80::9%eth0"),)
    assert "or give --dev" in refusal(remote=V6, local="fe80::9")
    message = refusal(remote=V6, local="fe80::9%eth0", dev="eth1")
    assert message == "--local fe80::9%eth0: is not on the underlay --dev eth1"


def test_one_own_address_for_each_family() -> None:
    both = config(remote=[V4, V6], local=["192.0.2.9", "2001:db8::9"])
    assert both.local_for(4) == IPv4Address("192.0.2.9")
    assert both.local_for(6) == IPv6Address("2001:db8::9")
    one = config(remote=[V4, V6], local="2001:db8::9")
    assert (one.local_for(4), one.local_for(6)) == (None, IPv6Address("2001:db8::9"))


def test_a_descriptor_is_the_tap_of_one_vni() -> None:
    configs = [Config(vni=vni, remote="192.0.2.2", tap_fd=9) for vni in (1, 2)]
    with pytest.raises(ConfigError, match="--tap-fd 9: is given twice"):
        check_segments(configs)
    check_segments([configs[0], attrs.evolve(configs[1], tap_fd=8)])


@pytest.mark.parametrize(
    ("options", "versions"),
    [
        ({"remote": ()}, (4,)),
        ({"remote": V6}, (6,)),
        ({"remote": [V6, V4]}, (4, 6)),
        ({"remote": V4, "group": "ff05::100", "dev": "eth0"}, (4, 6)),
        ({"remote": (), "accept": "fd00::/8"}, (6,)),
        ({"remote": (), "local": "2001:db8::9"}, (6,)),
        ({"remote": (), "accept_any": True, "local": ["192.0.2.9", "2001:db8::9"]}, (4, 6)),
    ],
)
def test_ip_versions_in_use(options: dict[str, Any], versions: tuple[int, ...]) -> None:
    assert config(**options).versions == versions


def test_a_flow_label_needs_an_ipv6_underlay() -> None:
    assert config(remote=V6, flowlabel=0xFFFFF).flowlabel == 0xFFFFF
    assert config(remote=[V4, V6], flowlabel="0x10").flowlabel == 16


def test_gbp_accept() -> None:
    assert config(gbp=0, gbp_accept=["7", 0x10]).gbp_accept == {7, 16}
    assert refusal(gbp_accept=7).startswith("--gbp-accept 7: needs --gbp")


@pytest.mark.parametrize(
    ("address", "remote"), [("10.0.0.1/8", "10.9.9.9"), ("fd00::1/64", "fd00::9")]
)
def test_a_remote_in_the_subnet_of_the_tap(address: str, remote: str) -> None:
    message = refusal(remote=[V4, remote], address=address)
    assert message.startswith(f"--address {address}: --remote {remote} is in its subnet ")
    assert "would be routed into the tunnel" in message


def test_accept_any_excludes_prefixes() -> None:
    assert "is redundant with --accept-any" in refusal(accept="192.0.2.0/24", accept_any=True)


def test_a_tap_elsewhere_has_nothing_in_common_with_the_underlay() -> None:
    address = "192.0.2.9/24"
    given = Config(vni=1, remote=V4, netns="7", tap="eth0", dev="eth0", address=address)
    assert given.netns == "7"
    with pytest.raises(ConfigError, match="--tap-fd 3: is the TAP of a network namespace already"):
        Config(vni=1, netns="7", tap_fd=3)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"bridge": "br0"}, "the network says which bridge it is; leave out --bridge"),
        ({"anycast_gateway": "10.0.0.1"}, "the network says which gateways it has"),
        ({"netns": "7"}, "leave out --netns, or give --bridge instead"),
        ({"vlan": 10, "tap": "vx0"}, "leave out --vlan"),
        ({"tap_fd": 3}, "leave out --tap-fd, or give --bridge instead"),
    ],
)
def test_a_docker_network_excludes_what_it_says_itself(other: dict[str, Any], why: str) -> None:
    said = refusal(docker_network="mynetwork", **other)
    assert said.startswith("--docker-network mynetwork: ")
    assert why in said


def test_the_bridge_of_a_docker_network_applies_to_that_network_only() -> None:
    gateway = IPv4Address("172.18.0.1")
    bridge = NetworkBridge("mynetwork", None, "br-1f2e3d4c5b6a", (gateway,))
    applied = bridge.apply_to(Config(vni=1, remote=V4, docker_network="mynetwork", ageing=5))
    assert applied == Config(
        vni=1, remote=V4, bridge="br-1f2e3d4c5b6a", anycast_gateway=gateway, ageing=5
    )
    for other in (Config(vni=1, docker_network="other"), Config(vni=1, bridge="br0")):
        assert bridge.apply_to(other) is other
    elsewhere = Config(vni=1, docker_network="mynetwork", docker_host="tcp://192.0.2.9:2375")
    assert bridge.apply_to(elsewhere) is elsewhere


def test_a_docker_network_is_in_one_segment_only() -> None:
    one, two = (Config(vni=vni, docker_network="mynetwork") for vni in (1, 2))
    with pytest.raises(ConfigError, match="mynetwork: is attached already, as vni 1; a network"):
        check_segments([one, two])
    check_segments([one, attrs.evolve(two, docker_host="tcp://192.0.2.9:2375")])


def test_a_bridge_may_be_the_underlay_device() -> None:
    assert Config(vni=1, bridge="br0", dev="br0").bridge == "br0"


# --- settings ---------------------------------------------------------------------------------


def test_settings() -> None:
    settings = Settings(segments=[config(), config(vni=2)])
    assert (settings.control, settings.state) == ("auto", None)
    assert settings.segments == (config(), config(vni=2))
    for field in attrs.fields(Settings):
        assert field.name in ("segments", "evpn") or field.metadata["help"].endswith(".")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"control": ""}, "--control '': is not the path of a file"),
        ({"state": 1}, "--state 1: is not the path of a file"),
        (
            {"state_learned": True},
            "--state-learned: needs --state, with the file to keep them in",
        ),
        (
            {"segments": [config(), config()]},
            "--vni 1: defined twice; each VNI can be defined once",
        ),
        (
            {"segments": [config(), config(vni=2, tap="vx1")]},
            "--tap vx1: is given twice; each VNI has its own TAP",
        ),
    ],
)
def test_settings_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(**({"segments": [config()]} | settings))
    assert str(caught.value) == message


def test_every_option_is_refused_by_some_test() -> None:
    assert {name for name, _, _ in REFUSED} == {
        attribute.name for attribute in attrs.fields(Config)
    }


@pytest.mark.parametrize("name", ["vni", "dstport", "mtu", "max_addresses"])
@given(value=st.one_of(st.integers(), st.text(max_size=8), st.floats()))
def test_any_number_is_kept_or_refused(name: str, value: object) -> None:
    try:
        kept = getattr(config(**{name: value}), name)
    except ConfigError as error:
        assert str(error).startswith(option(name))  # noqa: PT017  some values are good
    else:
        if (name, value) not in (("mtu", "auto"), ("mtu", "none")):
            assert type(kept) is int
            assert kept == int(str(value))


@given(value=st.one_of(st.integers(), st.text(max_size=8), st.floats()))
def test_any_ageing_is_kept_or_refused(value: float | str) -> None:
    try:
        kept = config(ageing=value).ageing
    except ConfigError as error:
        assert str(error).startswith("--ageing")  # noqa: PT017  some values are good
    else:
        assert 0 <= kept <= AGEING_MAX


SPELLED = st.text(alphabet="0123456789abf.:/-%xz ", max_size=20)


@pytest.mark.parametrize(
    "name", ["remote", "local", "group", "accept", "address", "mac", "tap", "dev", "bridge"]
)
@given(value=SPELLED)
def test_any_text_is_kept_or_refused(name: str, value: str) -> None:
    try:
        config(**{name: value})
    except ConfigError as error:
        message = str(error)  # Of two addresses that do not fit, the other one may be named.
        assert message.startswith((option(name), "--remote"))


# --- what segments say of each other ----------------------------------------------------------

SHARED = [
    ({}, {}, None),
    ({"local": "192.0.2.8"}, {"local": "192.0.2.8"}, None),
    ({"local": "192.0.2.8"}, {"local": "192.0.2.9"}, None),
    ({"dev": "eth0"}, {"dev": "eth1"}, None),
    ({"local": "192.0.2.8"}, {"local": "192.0.2.9", "dev": "eth0"}, None),
    ({"local": "192.0.2.8"}, {"dstport": 4790}, None),
    ({"local": "192.0.2.8"}, {"remote": V6}, None),
    ({"offload": "none"}, {"remote": V6}, None),
    ({"offload": "gro"}, {"offload": "gro,tso"}, None),
    ({"ttl": 5, "mtu": 1400}, {"ageing": 0}, None),
    ({"local": "192.0.2.8"}, {}, "--dstport 4789: vni 1 and vni 2 share it"),
    ({}, {"dev": "eth0"}, "--dstport 4789: vni 1 and vni 2 share it"),
    (
        {"local": "192.0.2.8"},
        {"local": "192.0.2.8", "dev": "eth0"},
        "--dstport 4789: vni 1 and vni 2 share it",
    ),
    (
        {"remote": [V4, V6]},
        {"remote": V6, "local": "2001:db8::8"},
        "--dstport 4789: vni 1 and vni 2 share it",
    ),
    ({"offload": "none"}, {}, "--offload: gro must be on or off for both vni 1 and vni 2"),
    (
        {"remote": V6, "udp6zerocsumrx": False},
        {"remote": V6},
        "--udp6zerocsumrx: zero checksums must be on or off for both vni 1 and vni 2",
    ),
    ({}, {"tap": "vx1"}, "--tap vx1: is given twice"),
    (
        {"evpn": True, "rd": "65000:1"},
        {"evpn": True, "rd": "65000:01"},
        "--rd 65000:1: is given to both vni 1 and vni 2, whose routes would replace each other",
    ),
    ({"evpn": True}, {"evpn": True}, None),
    ({"evpn": True, "rd": "65000:1"}, {"evpn": True, "rd": "65000:2"}, None),
]


@pytest.mark.parametrize(("one", "two", "why"), SHARED, ids=lambda value: str(value)[:40])
def test_two_segments_of_one_process(
    one: dict[str, Any], two: dict[str, Any], why: str | None
) -> None:
    first, second = config(**one), config(**({"vni": 2} | two))
    if why is None:
        check_segments([first, second])
    else:
        with pytest.raises(ConfigError) as caught:
            check_segments([first, second])
        assert str(caught.value).startswith(why)
    found = [each.config for each in conflicts([first, second, config(vni=3, dstport=5)])]
    assert found == ([] if why is None else [second])
