"""The methods of the IPAM driver, without a bridge: pools, gateways, excluded addresses, state."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vtep.control.choice import Candidate, SegmentName
from vtep.docker.ipam import guard, tunnel
from vtep.docker.ipam.driver import ADDRESS_SPACE, IpamDriver
from vtep.docker.plugin.network import PluginNetwork, parse_create
from vtep.docker.plugin.store import JsonStore
from vtep.errors import VtepError

GATEWAY = {"RequestAddressType": "com.docker.network.gateway"}
MAC = {"com.docker.network.endpoint.macaddress": "02:42:00:00:00:01"}


@contextmanager
def running(folder: Path) -> Iterator[IpamDriver]:
    driver = IpamDriver(JsonStore(folder / "addresses.json"))
    driver.start()
    yield driver
    driver.close()


def call(driver: IpamDriver, method: str, **request: Any) -> Mapping[str, Any]:
    return driver.methods[f"IpamDriver.{method}"](request)


def request_pool(driver: IpamDriver, subnet: str, **more: Any) -> str:
    answer = call(driver, "RequestPool", Pool=subnet, Options={}, **more)
    assert answer["Pool"] == subnet
    return str(answer["PoolID"])


def network(subnet: str, vni: int = 200) -> PluginNetwork:
    pool = {"Pool": subnet, "Gateway": subnet.replace(".0/", ".1/"), "AddressSpace": ADDRESS_SPACE}
    return parse_create(
        {
            "NetworkID": f"{vni:064x}"[::-1],
            "Options": {
                "com.docker.network.generic": {"vni": str(vni), "remote": "192.0.2.2"},
            },
            "IPv4Data": [pool],
        }
    )


def test_capabilities_and_spaces(tmp_path: Path) -> None:
    with running(tmp_path) as driver:
        assert call(driver, "GetCapabilities")["RequiresMACAddress"]
        assert call(driver, "GetDefaultAddressSpaces")["LocalDefaultAddressSpace"] == ADDRESS_SPACE


def test_a_pool_and_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "TUNNEL_WAIT_S", 0.0)
    with running(tmp_path) as driver:
        pool = request_pool(driver, "172.18.0.0/16", SubPool="172.18.1.0/24")
        gateway = call(driver, "RequestAddress", PoolID=pool, Address="", Options=GATEWAY)
        assert gateway["Address"] == "172.18.0.1/16"
        excluded = call(driver, "RequestAddress", PoolID=pool, Address="172.18.0.9", Options=None)
        assert excluded["Address"] == "172.18.0.9/16"
        with pytest.raises(VtepError, match="no network of the driver pyvtep"):
            call(driver, "RequestAddress", PoolID=pool, Address="", Options=MAC)
        driver.on_network(network("172.18.0.0/16"), [])
        with pytest.raises(VtepError, match="has no tunnel that is up"):
            call(driver, "RequestAddress", PoolID=pool, Address="", Options=MAC)
        with pytest.raises(VtepError, match="is the subnet of the network on"):
            driver.on_network(network("172.18.0.0/16", 201), [])
        with pytest.raises(VtepError, match="is not in the subnet"):
            call(driver, "RequestAddress", PoolID=pool, Address="172.19.0.1", Options=MAC)
    with running(tmp_path) as driver:
        # The state survives, and the pool belongs to its network.
        with pytest.raises(VtepError, match="overlaps with 172"):
            request_pool(driver, "172.18.128.0/17")
        pools = JsonStore(tmp_path / "addresses.json").load("pools")
        assert pools[pool]["claims"] == {"172.18.0.1": None, "172.18.0.9": None}
        call(driver, "ReleaseAddress", PoolID=pool, Address="172.18.0.9")
        driver.on_network_removed(network("172.18.0.0/16"))
        call(driver, "ReleasePool", PoolID=pool)
        call(driver, "ReleasePool", PoolID=pool)
        call(driver, "ReleaseAddress", PoolID=pool, Address="172.18.0.1")
    assert JsonStore(tmp_path / "addresses.json").load("pools") == {}


def test_a_pool_of_a_network_that_was_never_created_is_replaced(tmp_path: Path) -> None:
    with running(tmp_path) as driver:
        request_pool(driver, "172.18.0.0/16")
        pool = request_pool(driver, "172.18.0.0/16")
        answer = call(
            driver, "RequestAddress", PoolID=pool, Address="172.18.0.254", Options=GATEWAY
        )
        assert answer["Address"] == "172.18.0.254/16"


def test_without_its_state_a_pool_is_known_from_its_id(tmp_path: Path) -> None:
    with running(tmp_path) as driver:
        driver.on_network(network("172.18.0.0/16"), [])
        pool = "172.18.0.0/16>172.18.1.0/24"
        call(driver, "RequestAddress", PoolID=pool, Address="172.18.1.9", Options={})
        (found,) = JsonStore(tmp_path / "addresses.json").load("pools").items()
        assert found[0] == pool
        assert found[1]["bridge"] == network("172.18.0.0/16").bridge
        assert set(found[1]["claims"]) == {"172.18.0.1", "172.18.1.9"}


def test_refused_requests(tmp_path: Path) -> None:
    with running(tmp_path) as driver:
        with pytest.raises(VtepError, match="--ipam-opt seed: "):
            call(driver, "RequestPool", Pool="172.18.0.0/16", Options={"seed": "1"})
        with pytest.raises(VtepError, match="no subnet for IPv6"):
            call(driver, "RequestPool", Pool="", V6=True)
        pool = request_pool(driver, "172.18.0.0/16")
        with pytest.raises(VtepError, match="names no MAC"):
            call(driver, "RequestAddress", PoolID=pool, Address="")
        with pytest.raises(VtepError, match="does not appear to be"):
            call(driver, "RequestAddress", PoolID=pool, Address="x")


@pytest.mark.parametrize(
    ("devices", "missing", "problem"),
    [
        ([], ["no interface has --local"], "the tunnel vx200 waits for its underlay (no interface"),
        (["eth0"], ["no route to 192.0.2.9"], None),
        (["eth0"], [], None),
    ],
)
def test_a_tunnel_without_underlay_reaches_no_other_host(
    monkeypatch: pytest.MonkeyPatch, devices: list[str], missing: list[str], problem: str | None
) -> None:
    names = (SegmentName(7, "vx7", "vx7"), SegmentName(200, "vx200", "vx200"))
    here = Candidate(Path("pyvtep.sock"), 1, here=True, segments=names)
    elsewhere = Candidate(Path("other.sock"), 2, here=False, segments=names)
    info = {"underlay_devices": devices, "underlay_missing": missing}

    @contextmanager
    def client(path: Path) -> Iterator[Any]:
        assert path == here.path
        yield SimpleNamespace(vni=SimpleNamespace(show=lambda vni: [info] if vni == 200 else []))

    monkeypatch.setattr(tunnel, "open_taps", lambda _: {"vx200"})
    monkeypatch.setattr(tunnel, "Client", client)
    monkeypatch.setattr(tunnel, "candidates", lambda **_: [elsewhere, here])
    found = tunnel.find_problem("br-a", 3)
    assert found == problem or (found and problem and found.startswith(problem))
    monkeypatch.setattr(tunnel, "open_taps", lambda _: set())
    assert tunnel.find_problem("br-a", 3) == "bridge br-a has no tunnel that is up"
