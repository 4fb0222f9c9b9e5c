"""The options and descriptions of the networks of the Docker driver."""

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import attrs
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from vtep.cli.main import cli
from vtep.config import Config
from vtep.docker.plugin.announce import build_announcement
from vtep.docker.plugin.network import (
    NetworkPool,
    PluginNetwork,
    check_free,
    check_mac,
    device_names,
    from_json,
    is_ours,
    mac_of,
    parse_create,
    parse_inspected,
    parse_options,
    to_json,
    was_refused,
)
from vtep.docker.plugin.overlaps import HostSubnet, check_subnets
from vtep.errors import ConfigError
from vtep.forwarding import anycast
from vtep.wire.ethernet import parse_mac

ID = "b3d2c4a1f0e9" + "0" * 52
NAMES = [each.name.replace("_", "-") for each in attrs.fields(Config)]


def network(number: str = ID, **options: str) -> PluginNetwork:
    return PluginNetwork(number, {"vni": "200", "remote": "192.0.2.2"} | options)


def test_create_request() -> None:
    made = parse_create(
        {
            "NetworkID": ID,
            "Options": {
                "com.docker.network.enable_ipv6": True,
                "com.docker.network.generic": {
                    "vni": "200",
                    "remote": "192.0.2.2, 192.0.2.3",
                    "max-addresses": "100",
                    "anycast_gateway": "172.18.0.9",
                    "udp6zerocsumtx": "",
                    "no-udpcsum": "",
                    "learning": "False",
                },
            },
            "IPv4Data": [
                {"AddressSpace": "L", "Pool": "172.18.0.0/16", "Gateway": "172.18.0.1/16"}
            ],
            "IPv6Data": [{"AddressSpace": "L", "Pool": "fd00::/64", "Gateway": "fd00::1/64"}],
        }
    )
    assert made.bridge == "br-b3d2c4a1f0e9"
    assert made.segment == {
        "vni": "200",
        "remote": ["192.0.2.2", "192.0.2.3"],
        "max_addresses": "100",
        "udp6zerocsumtx": True,
        "udpcsum": False,
        "learning": False,
        "bridge": made.bridge,
        "anycast_gateway": ["172.18.0.9", "172.18.0.1", "fd00::1"],
    }
    assert made.config == Config(**made.segment)
    assert made.addresses == [ip_interface("172.18.0.1/16"), ip_interface("fd00::1/64")]
    assert not made.internal
    assert from_json(ID, to_json(made)) == made


def test_a_network_of_the_engine_equals_the_one_that_was_created() -> None:
    options = {"vni": "7", "com.docker.network.bridge.name": "br7"}
    created = parse_create(
        {
            "NetworkID": ID,
            "Options": {
                "com.docker.network.generic": options,
                "com.docker.network.internal": True,
            },
            "IPv4Data": [{"Pool": "172.18.0.0/16", "Gateway": "172.18.1.0/16"}],
            "IPv6Data": [{"Pool": "fd00::/64", "Gateway": "fd00::1/64"}],
        }
    )
    inspected = {
        "Id": ID,
        "Driver": "pyvtep:latest",
        "Internal": True,
        "Options": options,
        "IPAM": {
            "Config": [
                # The engine has chosen both gateways, and does not name them.
                {"Subnet": "172.18.0.0/16", "IPRange": "172.18.1.0/24"},
                {"Subnet": "fd00::/64"},
            ]
        },
    }
    assert is_ours(inspected)
    assert parse_inspected(inspected) == created
    assert created.bridge == "br7"


@pytest.mark.parametrize(
    ("driver", "ours"),
    [
        ("pyvtep", True),
        ("registry.example:5000/net/pyvtep:1.0", True),
        ("bridge", False),
        ("notpyvtep", False),
        (None, False),
    ],
)
def test_is_ours(driver: str | None, *, ours: bool) -> None:
    assert is_ours({"Driver": driver}) is ours


MISTAKES = [
    {"vni": "16777216"},
    {"vni": "0x10"},
    {"remote": "192.0.2"},
    {"remote": "192.0.2.2,192.0.2.2"},
    {"mtu": "67"},
    {"dstport": "0"},
    {"group": "192.0.2.9"},
    {"group": "239.1.1.1"},
    {"dev": "a/b"},
    {"local": "fd00::1"},
    {"ttl": "256"},
    {"srcport": "2 1"},
    {"flowlabel": "7"},
    {"offload": "tso,warp"},
    {"gbp-accept": "7"},
    {"anycast-gateway": "172.18.0"},
    {"storm-broadcast": "many"},
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_mistakes_have_the_words_of_the_command_line(mistake: dict[str, str]) -> None:
    options = {"vni": "200", "remote": "192.0.2.2"} | mistake
    words = [
        word
        for name, value in options.items()
        for item in (value.split(",") if name == "remote" else [value])
        for word in (f"--{name}", *(item.split() if name == "srcport" else [item]))
    ]
    with pytest.raises(ConfigError) as on_command_line:
        CliRunner().invoke(cli, words, standalone_mode=False, catch_exceptions=False)
    with pytest.raises(ConfigError) as refused:
        PluginNetwork(ID, options)
    told, reason = str(on_command_line.value), str(refused.value)
    (name,) = mistake
    assert reason.startswith(f"-o {name}=")
    assert "--" not in reason
    # The same words, but for the spelling of options.
    assert reason.partition(": ")[2].replace("-o ", "--") == told.partition(": ")[2]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "-o vni is missing; for example: docker network create -d pyvtep -o vni=200"),
        ({"vin": "200"}, "-o vin: is not an option of the driver; did you mean -o vni?"),
        ({"--vni": "200"}, "did you mean -o vni?"),
        ({"tap": "vx0"}, "-o tap: is not an option of the driver; the driver sets it itself"),
        ({"bridge": "br0"}, "-o com.docker.network.bridge.name=NAME"),
        ({"xyzzy": "1"}, "those of pyvtep have the names of its command line"),
        ({"vni": ""}, "-o vni: needs a value, as in -o vni=VALUE"),
        ({"vni": "1", "learning": "perhaps"}, "-o learning perhaps: must be true or false"),
        ({"vni": "1", "max-addresses": "1", "max_addresses": "2"}, "is given twice"),
        ({"vni": "1", "learning": "1", "no-learning": ""}, "is given twice"),
        (
            {"vni": "1", "com.docker.network.bridge.name": "a/b"},
            "-o com.docker.network.bridge.name=a/b: ",
        ),
    ],
)
def test_other_mistakes(options: dict[str, str], reason: str) -> None:
    with pytest.raises(ConfigError) as refused:
        PluginNetwork(ID, options)
    assert reason in str(refused.value)


OPTIONS = st.dictionaries(
    st.sampled_from([*NAMES, *(f"no-{name}" for name in NAMES), "com.docker.network.driver.mtu"])
    | st.text(max_size=8),
    st.sampled_from(["1", "200", "true", "192.0.2.2", "fd00::1,fd00::2", "auto", "none", "eth0"])
    | st.text(max_size=8),
)


@given(OPTIONS)
def test_any_options_make_a_network_or_a_mistake(options: dict[str, str]) -> None:
    try:
        made = PluginNetwork(ID, {"vni": "200"} | options)
    except ConfigError as error:
        if not str(error).startswith("-o "):
            raise
    else:
        assert from_json(ID, to_json(made)) == made
        assert 68 <= made.container_mtu(1450) <= 1450


@given(st.dictionaries(st.text(max_size=10), st.text(max_size=10)))
def test_parse_options_raises_nothing_else(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        parse_options({**options, "no such option": ""})


@given(
    st.ip_addresses(network="10.0.0.0/8") | st.ip_addresses(network="fd00::/8"),
    st.integers(min_value=8, max_value=30),
)
def test_an_unnamed_gateway_is_in_its_subnet(address: Any, length: int) -> None:
    subnet = ip_network(f"{address}/{length}", strict=False)
    inspected = {"Id": ID, "Options": {"vni": "1"}, "IPAM": {"Config": [{"Subnet": str(subnet)}]}}
    (pool,) = parse_inspected(inspected).pools
    assert pool.subnet == subnet
    assert pool.gateway is not None
    assert pool.gateway.ip == subnet[1]
    assert pool.gateway.network == subnet


def test_networks_share_neither_vni_nor_bridge() -> None:
    first = network()
    check_free(network("c" * 64, vni="201"), [first])
    with pytest.raises(ConfigError, match=r"-o vni=200: network b3d2c4a1f0e9 of this engine has"):
        check_free(network("c" * 64), [first])
    name = {"com.docker.network.bridge.name": first.bridge}
    with pytest.raises(ConfigError, match=f"bridge.name={first.bridge}: network b3d2c4a1f0e9"):
        check_free(network("c" * 64, vni="201", **name), [first])


def test_containers_have_the_mtu_of_the_tunnel_or_a_smaller_one() -> None:
    option = "com.docker.network.driver.mtu"
    assert network().container_mtu(1450) == 1450
    assert network(**{option: "1400"}).container_mtu(1450) == 1400
    # A tunnel that had this MTU at first may have a smaller one later.
    assert network(**{option: "9000"}).container_mtu(1450) == 1450
    network(**{option: "1450"}).check_mtu(1450)
    with pytest.raises(ConfigError, match=f"-o {option}=9000: the tunnel carries 1450"):
        network(**{option: "9000"}).check_mtu(1450)


@pytest.mark.parametrize("mtu", ["abc", "-5", "0", "67", "1e3", " 1400", "", "1" * 5000])
def test_an_mtu_that_makes_no_sense_is_refused(mtu: str) -> None:
    with pytest.raises(ConfigError, match=r"-o com\.docker\.network\.driver\.mtu="):
        network(**{"com.docker.network.driver.mtu": mtu})


@pytest.mark.parametrize(
    ("subnet", "gateway", "reason"),
    [
        ("224.0.0.0/24", "224.0.0.1/24", "--subnet 224.0.0.0/24: is for multicast"),
        ("ff05::/64", "ff05::1/64", "--subnet ff05::/64: is for multicast"),
        ("127.5.0.0/24", None, "--subnet 127.5.0.0/24: is for loopback"),
        ("0.0.0.0/8", "0.0.0.1/8", "--subnet 0.0.0.0/8: is not the address of a host"),
        ("::/64", "::1/64", "--subnet ::/64: is not the address of a host"),
        ("192.0.2.0/24", "0.0.0.0/24", "--gateway 0.0.0.0: is not the address of a host"),
    ],
)
def test_subnets_and_gateways_are_refused_by_their_own_names(
    subnet: str, gateway: str | None, reason: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{reason}"):
        PluginNetwork(ID, {"vni": "200"}, (NetworkPool(subnet, gateway),))


def test_devices_and_macs_of_endpoints() -> None:
    endpoint = "0123456789abcdef" * 4
    assert device_names(endpoint) == ("vxh0123456789ab", "vxc0123456789ab")
    assert all(len(name) <= 15 for name in device_names(endpoint))
    assert mac_of(endpoint) == check_mac("02:01:23:45:67:89")
    for mac in ("01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"):
        with pytest.raises(ConfigError, match=f"--mac-address {mac}: must be a unicast MAC"):
            check_mac(mac)


def test_pools_without_a_subnet_have_no_gateway() -> None:
    made = parse_create(
        {
            "NetworkID": ID,
            "Options": {"com.docker.network.generic": {"vni": "1"}},
            "IPv4Data": [{"Pool": "0.0.0.0/0", "AddressSpace": "null"}, {"Pool": "10.0.0.0/8"}],
        }
    )
    assert made.pools == (NetworkPool("10.0.0.0/8"),)
    assert made.addresses == []


@pytest.mark.parametrize(
    ("policy", "error", "refused"),
    [
        ("always", "legacy plugin: Post http://pyvtep.sock/Plugin.Activate: refused", True),
        ("unless-stopped", 'failed to find plugin "pyvtep" in v1 plugin registry', True),
        ("no", 'failed to find plugin "pyvtep" in v1 plugin registry', False),
        ("always", "exec format error", False),
        ("always", "", False),
    ],
)
def test_containers_that_were_refused(policy: str, error: str, *, refused: bool) -> None:
    container = {
        "State": {"Running": False, "Error": error},
        "HostConfig": {"RestartPolicy": {"Name": policy}},
    }
    assert was_refused(container) is refused
    assert not was_refused(container | {"State": {"Running": True, "Error": error}})


def test_announcements_claim_the_address() -> None:
    mac = parse_mac("02:00:00:00:00:01")
    for text in ("172.18.0.2", "fd00::2"):
        frame = build_announcement(mac, ip_address(text))
        message = anycast.read(frame)
        assert message is not None
        assert not message.is_probe
        assert message.claimed == ip_address(text).packed
        assert frame[6:12] == mac


@pytest.mark.parametrize(
    ("subnet", "reason"),
    [
        ("192.0.2.0/30", "has the address of the remote 192.0.2.2"),
        ("10.5.0.0/24", "overlaps with 10.5.0.0/16 of the network cccccccccccc"),
        ("10.0.0.0/8", "overlaps with 10.5.0.0/16 of the network cccccccccccc"),
        # The subnet of an address, whether wider or not.
        ("172.31.0.96/27", "overlaps with the subnet 172.31.0.0/24 of the device eth0"),
        ("172.31.0.0/24", "overlaps with the subnet 172.31.0.0/24 of the device eth0"),
        ("172.16.0.0/12", "overlaps with the subnet 172.31.0.0/24 of the device eth0"),
        # A route, unless it is wider.
        ("172.20.0.0/16", "overlaps with the route to 172.20.0.0/16 of the device wg0"),
        ("172.20.0.0/15", "overlaps with the route to 172.20.0.0/16 of the device wg0"),
        ("172.20.5.0/24", None),
        ("172.30.0.0/16", None),
        ("fd00::/64", None),
    ],
)
def test_subnets_that_are_in_use(subnet: str, reason: str | None) -> None:
    options = {"vni": "200", "remote": "192.0.2.2,vtep.example"}
    made = PluginNetwork(ID, options, (NetworkPool(subnet),))
    other = PluginNetwork("c" * 64, {"vni": "201"}, (NetworkPool("10.5.0.0/16"),))
    host = [
        HostSubnet(ip_network("172.31.0.0/24"), "eth0"),
        HostSubnet(ip_network("172.31.0.0/24"), "eth0", is_route=True),
        HostSubnet(ip_network("172.20.0.0/16"), "wg0", is_route=True),
        HostSubnet(ip_network("128.0.0.0/1"), "tun0", is_route=True),
        HostSubnet(ip_network("fe80::/64"), "eth0"),
    ]
    if reason is None:
        check_subnets(made, [other], host)
    else:
        with pytest.raises(ConfigError, match=f"^--subnet {subnet}: {reason}.*; choose"):
            check_subnets(made, [other], host)
