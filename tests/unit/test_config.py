"""Config: what is kept, what is refused, and whether a person is told which option it was."""

import math
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.craft import mac
from vtep.config import AGEING_MAX, MTU_MAX, MTU_MIN, TAP_NAME_MAX, Config
from vtep.errors import ConfigError, VtepError

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


def test_what_errors_are() -> None:
    assert issubclass(ConfigError, VtepError)
    assert issubclass(ConfigError, ValueError)
    assert not issubclass(VtepError, ValueError)


# --- normal forms -----------------------------------------------------------------------------


def test_defaults() -> None:
    assert attrs.asdict(config(), recurse=False) == {
        "vni": 1,
        "remote": (IPv4Address(V4),),
        "tap": "vx1",
        "local": None,
        "dev": None,
        "dstport": 4789,
        "mtu": None,
        "mac": None,
        "address": (),
        "learning": True,
        "ageing": 300.0,
        "max_addresses": 65536,
        "offload": frozenset(("tso", "uso", "gso", "gro")),
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
    ("remote", "2001:DB8:0:0::1", (IPv6Address(V6),)),
    ("remote", "::1", (IPv6Address("::1"),)),
    ("remote", "127.0.0.1", (IPv4Address("127.0.0.1"),)),
    ("remote", "169.254.0.1", (IPv4Address("169.254.0.1"),)),
    ("remote", "fd00::1", (IPv6Address("fd00::1"),)),
    ("remote", ("192.0.2.2", IPv4Address(V4)), (IPv4Address("192.0.2.2"), IPv4Address(V4))),
    ("remote", iter([V4]), (IPv4Address(V4),)),
    ("tap", "a", "a"),
    ("tap", "x" * TAP_NAME_MAX, "x" * TAP_NAME_MAX),
    ("tap", "vx-1.2_3", "vx-1.2_3"),
    ("tap", "...", "..."),
    ("tap", "ééééééé", "ééééééé"),
    ("local", "192.0.2.9", IPv4Address("192.0.2.9")),
    ("local", None, None),
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
    ("ageing", 0, 0.0),
    ("ageing", "0.5", 0.5),
    ("ageing", AGEING_MAX, 1e9),
    ("max_addresses", 0, 0),
    ("max_addresses", 1 << 30, 1 << 30),
    ("max_addresses", "10", 10),
    ("offload", "auto", frozenset(("tso", "uso", "gso", "gro"))),
    ("offload", "none", frozenset()),
    ("offload", "gro,tso", frozenset(("tso", "gro"))),
    ("offload", ["gso"], frozenset(("gso",))),
]


@pytest.mark.parametrize(("name", "value", "kept"), ACCEPTED)
def test_accepted(name: str, value: object, kept: object) -> None:
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
    ("remote", [], "at least one"),
    ("remote", "", NO_ADDRESS),
    ("remote", "host.example", "names are not looked up"),
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
    ("remote", "fe80::1%eth0", "link-local"),
    ("remote", "2001:db8::1%eth0", "link-local"),
    ("remote", "::ffff:192.0.2.1", "write it as 192.0.2.1"),
    ("remote", [V4, V4], "given twice"),
    ("remote", [V6, "192.0.2.1", "2001:db8:0::1"], "given twice"),
    ("remote", [V4, IPv4Address(V4)], "given twice"),
    ("remote", [V4, V6], "mixed"),
    ("remote", [V6, V4], "mixed"),
    ("remote", [V4, "nonsense"], NO_ADDRESS),
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
    ("local", "fe80::1", "link-local"),
    ("local", "::ffff:192.0.2.9", "write it as 192.0.2.9"),
    ("local", V6, "is IPv6, but the remotes are IPv4"),
    ("dev", "", NO_NAME),
    ("dev", "eth/0", NO_NAME),
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
    ("offload", "tso,lro", "--offload lro: must be auto, none, or some of gro,gso,tso,uso"),
    ("offload", "", "--offload : must be"),
    ("offload", "auto,tso", "--offload auto: must be"),
    ("address", "10.0.0.1", "with a prefix length"),
    ("address", "0.0.0.0/0", "is not an address that a host can have"),
    ("address", "224.0.0.1/24", "is not an address that a host can have"),
    ("address", "127.0.0.1/8", "is not an address that a host can have"),
    ("address", "::1/128", "is not an address that a host can have"),
    ("address", "fe80::1%eth0/64", "is not an address that a host can have"),
    ("address", "10.0.0.0/24", "is the network's address"),
    ("address", "10.0.0.255/24", "is the broadcast address"),
    ("vni", "1_0", "is not a whole number"),
    ("vni", "\u0661", "is not a whole number"),
    ("vni", True, "is not a whole number"),
    ("remote", 1, "is not an IP address"),
    ("remote", b"abcd", "is not an IP address"),
    ("remote", "192.0.2.2\n", "192.0.2.2?: is not an IP address"),
    ("tap", None, "is not a name"),
    ("tap", "\udcff", "is not a name"),
    ("learning", "no", "must be True or False"),
    ("max_addresses", -1, RANGE),
    ("max_addresses", (1 << 30) + 1, RANGE),
    ("max_addresses", "many", "is not a whole number"),
    ("max_addresses", None, "is not a whole number"),
]


@pytest.mark.parametrize(("name", "value", "why"), REFUSED, ids=lambda value: str(value)[:30])
def test_refused(name: str, value: object, why: str) -> None:
    message = refusal(**{name: value})
    assert message.startswith(option(name))
    assert why in message
    assert "\n" not in message


def test_limits() -> None:
    assert (MTU_MIN, MTU_MAX) == (68, 65481)
    assert TAP_NAME_MAX == 15
    assert AGEING_MAX == 10**9


def test_message_names_the_value() -> None:
    assert refusal(vni=16777216) == "--vni 16777216: must be from 0 to 16777215"
    assert refusal(ageing="5m") == "--ageing 5m: is not a number of seconds"
    assert refusal(remote=[V4, "nonsense"]).startswith("--remote nonsense: ")
    assert refusal(address=["10.0.0.1/24", "nonsense"]).startswith("--address nonsense: ")
    assert refusal(remote=[V4, "192.0.2.2", V4]) == f"--remote {V4}: is given twice"
    assert refusal(mac="01:00:00:00:00:01").startswith("--mac 01:00:00:00:00:01: ")


def test_own_address_among_the_remotes() -> None:
    for local in (V4, "192.0.2.2"):
        message = refusal(remote=[V4, "192.0.2.2"], local=local)
        assert message == f"--remote {local}: is the --local address of this host itself"


def test_local_of_the_other_family() -> None:
    message = refusal(remote=V6, local="192.0.2.9")
    assert message == "--local 192.0.2.9: is IPv4, but the remotes are IPv6"
    assert config(remote=V6, local="2001:db8::9").local == IPv6Address("2001:db8::9")


@pytest.mark.parametrize("missing", ["vni", "remote"])
def test_what_has_no_default(missing: str) -> None:
    with pytest.raises(TypeError, match=missing):
        Config(**{name: value for name, value in GOOD.items() if name != missing})


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


@pytest.mark.parametrize("name", ["remote", "local", "address", "mac", "tap", "dev"])
@given(value=SPELLED)
def test_any_text_is_kept_or_refused(name: str, value: str) -> None:
    try:
        config(**{name: value})
    except ConfigError as error:
        message = str(error)  # Of two addresses that do not fit, the other one may be named.
        assert message.startswith((option(name), "--remote"))
