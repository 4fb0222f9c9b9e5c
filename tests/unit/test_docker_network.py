"""Descriptions of networks by the engine, and the problems found in them."""

from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtep.docker.network import (
    AttachedTunnel,
    BridgeFilter,
    Container,
    find_problems,
    parse_network,
)
from vtep.errors import VtepError
from vtep.host.firewall import Verdict

ID = "9d76e6474256616eadb10ffbabd685128f1f6b6337943fbc6e25f724d85995f1"
BRIDGE = "br-9d76e6474256"

INSPECTED: dict[str, Any] = {
    "Name": "mynetwork",
    "Id": ID,
    "Scope": "local",
    "Driver": "bridge",
    "IPAM": {
        "Driver": "default",
        "Options": {},
        "Config": [{"Subnet": "172.18.0.0/16", "IPRange": "172.18.1.0/24"}],
    },
    "Internal": False,
    "ConfigOnly": False,
    "Containers": {
        "b2": {
            "Name": "web",
            "MacAddress": "02:42:ac:12:00:03",
            "IPv4Address": "172.18.0.3/16",
            "IPv6Address": "fd00::3/64",
        },
        "a1": {
            "Name": "db",
            "MacAddress": "02:42:ac:12:00:02",
            "IPv4Address": "172.18.0.2/16",
            "IPv6Address": "",
        },
    },
    "Options": {"com.docker.network.driver.mtu": "1450"},
    "Labels": {},
}
"""The answer of an engine of version 20.10."""

OPEN = BridgeFilter(bridge_netfilter=False, forward=None)
THROUGH = BridgeFilter(bridge_netfilter=True, forward=None)


def inspected(**changes: Any) -> dict[str, Any]:
    return INSPECTED | changes


def options(**changes: str) -> dict[str, Any]:
    given = {f"com.docker.network.{key.replace('__', '.')}": text for key, text in changes.items()}
    return inspected(Options=INSPECTED["Options"] | given)


def said(
    answer: dict[str, Any], host: BridgeFilter = OPEN, mtu: int = 1450, *, chosen: bool = False
) -> str:
    return "\n".join(find_problems(parse_network(answer), AttachedTunnel(mtu, chosen), host))


def test_parse_network() -> None:
    network = parse_network(INSPECTED)
    assert network.name == "mynetwork"
    assert network.id == ID
    assert network.bridge == BRIDGE
    assert network.mtu == 1450
    assert network.icc
    assert network.subnets == (ip_network("172.18.0.0/16"),)
    assert network.unranged == ()
    assert network.containers == (
        Container("db", "02:42:ac:12:00:02", ("172.18.0.2/16",)),
        Container("web", "02:42:ac:12:00:03", ("172.18.0.3/16", "fd00::3/64")),
    )


def test_the_command_that_creates_a_network() -> None:
    assert parse_network(INSPECTED).recipe == (
        "docker network create --subnet 172.18.0.0/16 --ip-range 172.18.1.0/24 "
        "--opt com.docker.network.driver.mtu=1450 mynetwork"
    )
    pools = [{"Subnet": "10.0.0.0/8", "Gateway": "10.0.0.9"}, {"Subnet": "fd00::/64"}]
    more = inspected(IPAM={"Config": pools}, Options=None, EnableIPv6=True, Internal=True)
    assert parse_network(more).recipe == (
        "docker network create --ipv6 --internal --subnet 10.0.0.0/8 --gateway 10.0.0.9 "
        "--subnet fd00::/64 mynetwork"
    )


@pytest.mark.parametrize("missing", sorted(set(INSPECTED) - {"Name", "Id", "Driver"}))
def test_keys_may_be_missing(missing: str) -> None:
    without = {key: value for key, value in INSPECTED.items() if key != missing}
    assert parse_network(without).bridge == BRIDGE
    assert parse_network(inspected(**{missing: None})).bridge == BRIDGE


def test_the_default_network_has_a_bridge_of_its_own_name() -> None:
    assert parse_network(options(bridge__name="docker0")).bridge == "docker0"


@pytest.mark.parametrize("text", ["", "0", "-1", "1450.5", "many"])
def test_without_a_sensible_mtu_containers_have_1500(text: str) -> None:
    assert parse_network(options(driver__mtu=text)).mtu == 1500


@pytest.mark.parametrize(
    ("driver", "why"),
    [
        ("overlay", "network mynetwork is Docker's own VXLAN"),
        ("host", "network mynetwork has no bridge"),
        ("null", "network mynetwork connects its containers to nothing"),
        ("macvlan", "network mynetwork has no bridge"),
        ("ipvlan", "network mynetwork has no bridge"),
        ("weave", "network mynetwork has the driver weave"),
        (None, "network mynetwork has the driver None"),
    ],
)
def test_other_drivers_are_refused(driver: str | None, why: str) -> None:
    with pytest.raises(VtepError) as refused:
        parse_network(inspected(Driver=driver))
    assert why in str(refused.value)
    assert "docker network create --driver bridge" in str(refused.value)


@pytest.mark.parametrize("driver", ["pyvtep", "registry.example:5000/pyvtep:latest"])
def test_a_network_of_the_driver_pyvtep_needs_no_attach(driver: str) -> None:
    own = {"vni": "200", "remote": "192.0.2.2"}
    with pytest.raises(VtepError, match=r"needs no attach: .* \(-o vni=200 -o remote=192.0.2.2\)"):
        parse_network(inspected(Driver=driver, Options=own))


def test_a_template_is_refused() -> None:
    with pytest.raises(VtepError, match="--config-only"):
        parse_network(inspected(ConfigOnly=True))


def test_a_suitable_network_has_no_problems() -> None:
    assert said(INSPECTED) == ""
    assert said(INSPECTED, THROUGH) == ""
    assert (
        said(INSPECTED, BridgeFilter(bridge_netfilter=False, forward=Verdict("-j DROP", "fix")))
        == ""
    )


def pools(*subnets: str) -> dict[str, Any]:
    return inspected(IPAM={"Config": [{"Subnet": subnet} for subnet in subnets]})


@pytest.mark.parametrize(
    ("subnet", "suggested"),
    [
        ("172.18.0.0/16", "172.18.1.0/24"),
        ("10.0.0.0/8", "10.1.0.0/16"),
        ("192.168.7.0/24", "192.168.7.8/29"),
        ("fd00:1::/64", "fd00:1:0:0:100::/72"),
    ],
)
def test_a_range_for_each_host_is_suggested(subnet: str, suggested: str) -> None:
    line = said(pools(subnet))
    assert f"docker network create --subnet {subnet} --ip-range {suggested}, on the next" in line
    assert "docker run --ip" in line


@pytest.mark.parametrize("subnet", ["192.168.7.0/29", "192.168.7.0/30", "fd00::/126"])
def test_no_range_is_suggested_for_a_small_subnet(subnet: str) -> None:
    line = said(pools(subnet))
    assert "--ip-range" not in line
    assert "docker run --ip" in line


@given(st.ip_addresses(), st.integers(0, 128))
def test_a_suggested_range_is_part_of_the_subnet(address: Any, prefix: int) -> None:
    subnet = ip_network((address, min(prefix, address.max_prefixlen)), strict=False)
    line = said(pools(str(subnet)))
    if "--ip-range" in line:
        part: Any = ip_network(line.split("--ip-range ")[1].split(",")[0])
        assert subnet.network_address <= part.network_address
        assert part.broadcast_address <= subnet.broadcast_address
        assert part != subnet
        assert subnet.network_address not in part


def test_each_subnet_has_its_own_problem() -> None:
    both = pools("172.18.0.0/16", "fd00:1::/64")
    assert len(find_problems(parse_network(both), AttachedTunnel(1450), OPEN)) == 2


def test_an_mtu_above_that_of_the_tunnel() -> None:
    line = said(INSPECTED, mtu=1430)
    assert "MTU of 1450, but the tunnel carries 1430" in line
    assert "--opt com.docker.network.driver.mtu=1430, or raise the MTU of the underlay" in line
    line = said(INSPECTED, mtu=1430, chosen=True)
    assert "--opt com.docker.network.driver.mtu=1430, or raise --mtu" in line


def test_a_tunnel_too_narrow_for_ipv6() -> None:
    assert "IPv6 needs 1280" in said(INSPECTED, mtu=1279)
    assert "IPv6" not in said(INSPECTED, mtu=1280)


def test_the_default_network_is_configured_and_not_created() -> None:
    lines = said(
        inspected(
            IPAM=pools("172.17.0.0/16", "fd00:1::/64")["IPAM"],
            Options={"com.docker.network.bridge.default_bridge": "true"},
        )
    )
    assert "create --" not in lines
    assert "--ip)" not in lines
    assert '("fixed-cidr": "172.17.1.0/24" in the daemon.json of the engine, on' in lines
    assert '("fixed-cidr-v6": "fd00:1:0:0:100::/72" in the daemon.json' in lines
    assert 'set "mtu": 1450 in the daemon.json' in lines


def test_icc_off() -> None:
    closed = options(bridge__enable_icc="false")
    assert "from those on other hosts as well: create it without" in said(closed, THROUGH)
    assert "but not from those on other hosts" in said(closed, OPEN)


@pytest.mark.parametrize(("certain", "does"), [(True, "drops"), (False, "may drop")])
def test_a_firewall_that_drops_bridged_frames(certain: bool, does: str) -> None:
    host = BridgeFilter(bridge_netfilter=True, forward=Verdict("the rule X", "the fix", certain))
    line = said(INSPECTED, host)
    assert f"firewall {does} frames that cross its bridge" in line
    assert line.endswith("by the rule X: the fix")
