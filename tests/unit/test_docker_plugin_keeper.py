"""The keeper of the driver's networks, on a host in memory."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_interface, ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vtep.docker.client import EngineClient, NoSuchNetworkError
from vtep.docker.ipam import guard
from vtep.docker.ipam.driver import IpamDriver
from vtep.docker.plugin import keeper as module
from vtep.docker.plugin.absences import GRACE_S
from vtep.docker.plugin.keeper import NetworkKeeper, NetworkListener
from vtep.docker.plugin.network import NetworkPool, PluginEndpoint, PluginNetwork
from vtep.docker.plugin.overlaps import HostSubnet
from vtep.docker.plugin.store import JsonStore
from vtep.errors import ConfigError, VtepError
from vtep.host import bridge_rules, netlink
from vtep.wire.address import Interface

FIRST, SECOND = "a" * 64, "b" * 64
ENDPOINT = "e" * 64
GONE = VtepError("no pyvtep")


class HostInMemory:
    """The devices, VNIs and rules of a host, and the networks of its engine."""

    def __init__(self) -> None:
        self.devices: set[str] = set()
        self.vnis: dict[int, str] = {}
        self.rules: set[str] = set()
        self.engine: dict[str, dict[str, Any]] = {}
        self.failure: Exception | None = None
        self.refused: list[str] = []
        self.addresses: set[tuple[str, str]] = set()
        self.subnets: list[HostSubnet] = []

    # The engine.

    def list_networks(self) -> list[Mapping[str, Any]]:
        return list(self.engine.values())

    def inspect(self, number: str) -> Mapping[str, Any]:
        if number not in self.engine:
            raise NoSuchNetworkError("no such network")
        return self.engine[number]

    def stopped_containers(self, network: str) -> list[Mapping[str, Any]]:
        if network not in self.engine:
            return []
        policy = {"RestartPolicy": {"Name": "always"}}
        state = {"Error": "legacy plugin: pyvtep.sock: connection refused"}
        return [{"Id": "box", "Name": "/box", "State": state, "HostConfig": policy}]

    def start_container(self, number: str) -> None:
        self.refused.append(number)

    # The daemon.

    def owners(self) -> dict[int, Path]:
        return {vni: Path("pyvtep.sock") for vni in self.vnis}

    def check_free(self, vni: int) -> None:
        if vni in self.vnis:
            raise ConfigError(f"-o vni={vni}: is in use")

    def ensure(self, network: PluginNetwork, _owner: Path | None) -> int:
        if self.failure is not None:
            raise self.failure
        self.vnis[network.vni] = network.bridge
        return 1450

    def remove(self, network: PluginNetwork) -> None:
        self.vnis.pop(network.vni, None)

    # The kernel.

    def ensure_bridge(
        self, _netlink: object, name: str, _mac: str, addresses: Iterable[Interface]
    ) -> int:
        self.devices.add(name)
        self.addresses |= {(name, str(each)) for each in addresses}
        return 1

    def bridge_addresses(self, _netlink: object, name: str) -> list[Interface]:
        return [ip_interface(text) for bridge, text in self.addresses if bridge == name]

    def remove_addresses(self, _netlink: object, name: str, addresses: Iterable[Interface]) -> None:
        self.addresses -= {(name, str(each)) for each in addresses}

    def add_veth(self, _netlink: object, name: str, peer: str, **_: object) -> None:
        self.devices |= {name, peer}

    def remove_device(self, _netlink: object, name: str) -> None:
        self.devices -= {name, name.replace("vxh", "vxc")}
        self.addresses = {each for each in self.addresses if each[0] != name}

    def run_iptables(self, version: int, table: str, *words: str) -> str:
        if words[0] == "-S":
            lines = (rule.split(" ", 2) for rule in sorted(self.rules))
            mine = [rest for v, t, rest in lines if (v, t) == (str(version), table)]
            return "".join(f"-A {rest}\n" for rest in mine)
        rule = f"{version} {table} {' '.join(words[1:])}"
        (self.rules.add if words[0] == "-I" else self.rules.remove)(rule)
        return ""

    def is_clean(self) -> bool:
        return not (self.devices or self.vnis or self.rules)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> HostInMemory:
    host = HostInMemory()

    @contextlib.contextmanager
    def session() -> Iterator[None]:
        yield

    setup = SimpleNamespace(
        ensure_bridge=host.ensure_bridge,
        bridge_addresses=host.bridge_addresses,
        remove_addresses=host.remove_addresses,
        add_veth=host.add_veth,
        remove_device=host.remove_device,
        set_master=lambda *_: None,
        set_mtu=lambda *_: None,
    )
    monkeypatch.setattr(module, "bridge_setup", setup)
    monkeypatch.setattr(netlink, "session", session)
    monkeypatch.setattr(bridge_rules, "_run", host.run_iptables)
    monkeypatch.setattr(module, "HostSegments", lambda *_: host)
    monkeypatch.setattr(module, "device_index", lambda name: 1 if name in host.devices else None)
    monkeypatch.setattr(module, "read_subnets", lambda *_: host.subnets)
    monkeypatch.setattr(module, "announce", lambda *_: None)
    return host


def start(
    host: HostInMemory, folder: Path, listeners: Iterable[NetworkListener] = ()
) -> NetworkKeeper:
    store = JsonStore(folder / "networks.json")
    return NetworkKeeper(store, cast("EngineClient", host), listeners)


def network(number: str = FIRST, vni: int = 200) -> PluginNetwork:
    return PluginNetwork(number, {"vni": str(vni)})


def known(host: HostInMemory, number: str, vni: int) -> None:
    """Add a network with one running container to the engine."""
    host.engine[number] = {
        "Id": number,
        "Driver": "pyvtep",
        "Options": {"vni": str(vni)},
        "Containers": {"box": {"EndpointID": ENDPOINT, "MacAddress": "02:00:00:00:00:01"}},
    }


def test_a_network_leaves_nothing_behind(host: HostInMemory, tmp_path: Path) -> None:
    keeper = start(host, tmp_path)
    for _ in range(2):  # The engine repeats a request that it has got no answer to.
        keeper.create(network())
    assert host.vnis == {200: "br-aaaaaaaaaaaa"}
    assert len(host.rules) == 3
    made = keeper.create_endpoint(FIRST, ENDPOINT, PluginEndpoint("", ("172.18.0.2/16",)))
    assert made.mac == "02:ee:ee:ee:ee:ee"
    assert keeper.join(FIRST, ENDPOINT)[1] == "vxceeeeeeeeeeee"
    # Over a restart, and for a device that a boot has taken away.
    host.devices.clear()
    keeper = start(host, tmp_path)
    assert keeper.join(FIRST, ENDPOINT)[1] in host.devices
    for _ in range(2):
        keeper.delete_endpoint(FIRST, ENDPOINT)
        keeper.delete(FIRST)
    assert host.is_clean()
    assert JsonStore(tmp_path / "networks.json").load("networks") == {}


@pytest.mark.parametrize("failure", [GONE, OSError("an error that was not expected")], ids=str)
def test_a_failure_of_create_is_rolled_back(
    host: HostInMemory, tmp_path: Path, failure: Exception
) -> None:
    keeper = start(host, tmp_path)
    host.failure = failure
    with pytest.raises(type(failure), match=str(failure)):
        keeper.create(network())
    assert host.is_clean()
    host.failure = None
    keeper.create(network(SECOND))
    with pytest.raises(ConfigError, match="-o vni=200: network bbbbbbbbbbbb of this engine has"):
        keeper.create(network())
    host.vnis[300] = "br0"
    with pytest.raises(ConfigError, match="-o vni=300: is in use"):
        keeper.create(network(vni=300))


def test_comparison_with_the_engine(host: HostInMemory, tmp_path: Path) -> None:
    keeper = start(host, tmp_path)
    keeper.create(network())
    keeper.on_engine_change()
    # The engine lists a network only after its creation: it is not taken for a leftover.
    assert keeper._put_right()
    assert 200 in host.vnis

    # After a restart, it would be one; and one that only the engine knows is made.
    keeper = start(host, tmp_path)
    known(host, SECOND, 201)
    keeper.on_engine_change()
    assert keeper._put_right()
    assert host.vnis == {201: "br-bbbbbbbbbbbb"}
    assert host.refused == ["box"]
    assert keeper.join(SECOND, ENDPOINT)[1] in host.devices

    # The engine lists a removed network until its own removal is done: it stays removed.
    keeper.delete(SECOND)
    keeper.on_engine_change()
    assert keeper._put_right()
    assert host.vnis == {}
    # But it is looked up if the engine uses it again.
    keeper.create_endpoint(SECOND, ENDPOINT, PluginEndpoint(""))
    assert host.vnis == {201: "br-bbbbbbbbbbbb"}
    with pytest.raises(NoSuchNetworkError):
        keeper.create_endpoint(FIRST, ENDPOINT, PluginEndpoint(""))
    assert host.refused == ["box"]


def test_what_is_gone_is_made_again(host: HostInMemory, tmp_path: Path) -> None:
    keeper = start(host, tmp_path)
    keeper.create(network())
    before = set(host.devices), dict(host.vnis), set(host.rules)
    host.devices.clear()
    host.vnis.clear()
    host.rules.clear()
    host.failure = GONE
    assert not keeper._put_right()
    host.failure = None
    assert keeper._put_right()
    assert (host.devices, host.vnis, host.rules) == before


def test_damaged_state_costs_no_other_network(host: HostInMemory, tmp_path: Path) -> None:
    keeper = start(host, tmp_path)
    keeper.create(network())
    store = JsonStore(tmp_path / "networks.json")
    state = store.load("networks")
    state[SECOND] = {"options": {"vni": "many"}, "pools": [], "internal": False}
    state["c" * 64] = 3
    store.save({"networks": state})
    host.vnis.clear()
    assert start(host, tmp_path)._put_right()
    assert 200 in host.vnis


@pytest.mark.parametrize("found", [set(), {("lan0", "172.18.0.1/16")}], ids=["added", "found"])
def test_a_bridge_of_the_administrator_stays_as_it_was(
    host: HostInMemory, tmp_path: Path, found: set[tuple[str, str]]
) -> None:
    host.devices.add("lan0")
    host.addresses |= found | {("lan0", "192.0.2.1/24")}
    before = set(host.addresses)
    options = {"vni": "200", "com.docker.network.bridge.name": "lan0"}
    pool = NetworkPool("172.18.0.0/16", "172.18.0.1/16")
    start(host, tmp_path).create(PluginNetwork(FIRST, options, (pool,)))
    assert ("lan0", "172.18.0.1/16") in host.addresses
    # Which addresses were there before outlives a restart.
    start(host, tmp_path).delete(FIRST)
    assert host.addresses == before
    assert host.devices == {"lan0"}


def test_only_create_refuses_subnets_that_overlap(host: HostInMemory, tmp_path: Path) -> None:
    keeper = start(host, tmp_path)
    made = PluginNetwork(FIRST, {"vni": "200"}, (NetworkPool("172.18.0.0/16"),))
    host.subnets = [HostSubnet(ip_network("172.18.0.0/16"), "docker_gwbridge")]
    with pytest.raises(ConfigError, match=r"172\.18\.0\.0/16 of the device docker_gwbridge"):
        keeper.create(made)
    assert host.is_clean()
    host.subnets.clear()
    keeper.create(made)
    # A device that comes later costs no network, whether its state is known or lost.
    host.subnets = [HostSubnet(ip_network("172.18.0.0/16"), "docker_gwbridge")]
    keeper.create(made)
    assert start(host, tmp_path)._put_right()
    known(host, FIRST, 200)
    host.engine[FIRST]["IPAM"] = {"Config": [{"Subnet": "172.18.0.0/16"}]}
    start(host, tmp_path / "lost").create_endpoint(FIRST, ENDPOINT, PluginEndpoint(""))
    assert host.vnis == {200: "br-aaaaaaaaaaaa"}


class Clock:
    """A clock that the test moves on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for patched in (module, guard):
            monkeypatch.setattr(patched, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@contextlib.contextmanager
def addresses(folder: Path) -> Iterator[tuple[IpamDriver, JsonStore]]:
    """Start an IPAM driver. Yields: the driver, and the file with its claims."""
    store = JsonStore(folder / "addresses.json")
    driver = IpamDriver(store)
    driver.start()
    yield driver, store
    driver.close()


def claims(store: JsonStore) -> dict[str, str | None]:
    (pool,) = store.load("pools").values()
    found: dict[str, str | None] = pool["claims"]
    return found


POOL = NetworkPool("172.18.0.0/16", "172.18.0.1/16", "pyvtep")
MAC = "02:00:00:00:00:01"


def test_what_the_engine_has_removed_without_us(
    host: HostInMemory, tmp_path: Path, clock: Clock
) -> None:
    made = PluginNetwork(FIRST, {"vni": "200"}, (POOL,))
    keeper = start(host, tmp_path)
    keeper.create(made)
    removed, late = "d" * 64, "f" * 64
    for number, address in ((ENDPOINT, "172.18.0.8/16"), (removed, "172.18.0.9/16")):
        keeper.create_endpoint(FIRST, number, PluginEndpoint(MAC, (address,)))
    # The engine has never released 172.18.0.50, and removed a container that had 172.18.0.9.
    claimed = {"172.18.0.1": None} | {f"172.18.0.{last}": MAC for last in (8, 9, 50)}
    state = {"172.18.0.0/16": {"bridge": made.bridge, "claims": claimed}}
    JsonStore(tmp_path / "addresses.json").save({"pools": state})
    known(host, FIRST, 200)

    with addresses(tmp_path) as (driver, store):
        keeper = start(host, tmp_path, [driver])
        assert keeper._put_right()
        assert {name for name in host.devices if name.startswith("vx")} == {
            "vxheeeeeeeeeeee",
            "vxceeeeeeeeeeee",
        }
        # A container that is being made may have an address already, or an endpoint.
        assert claims(store).keys() == {"172.18.0.1", "172.18.0.8", "172.18.0.50"}
        keeper.create_endpoint(FIRST, late, PluginEndpoint(MAC, ("172.18.0.10/16",)))
        clock.now += GRACE_S / 2
        assert keeper._put_right()
        assert "vxhffffffffffff" in host.devices
        clock.now += GRACE_S / 2
        assert keeper._put_right()
        assert claims(store).keys() == {"172.18.0.1", "172.18.0.8"}
        assert "vxhffffffffffff" in host.devices
        clock.now += GRACE_S
        assert keeper._put_right()
        assert "vxhffffffffffff" not in host.devices


def test_claims_of_running_containers_survive_the_loss_of_their_state(
    host: HostInMemory, tmp_path: Path
) -> None:
    known(host, FIRST, 200)
    host.engine[FIRST]["Containers"]["box"]["IPv4Address"] = "172.18.0.9/16"
    host.engine[FIRST]["IPAM"] = {"Driver": "pyvtep", "Config": [{"Subnet": "172.18.0.0/16"}]}
    for damaged in ({}, {"x": {}, "172.18.0.0/16": {"bridge": "br0", "claims": []}}):
        JsonStore(tmp_path / "addresses.json").save({"pools": damaged})
        with addresses(tmp_path) as (driver, store):
            keeper = start(host, tmp_path, [driver])
            keeper.on_engine_change()
            assert keeper._put_right()
            assert claims(store) == {"172.18.0.1": None, "172.18.0.9": MAC}


def test_an_mtu_that_the_tunnel_does_not_carry(host: HostInMemory, tmp_path: Path) -> None:
    options = {"vni": "200", "com.docker.network.driver.mtu": "9000"}
    with pytest.raises(ConfigError, match="the tunnel carries 1450"):
        start(host, tmp_path).create(PluginNetwork(FIRST, options))
    assert host.is_clean()


def test_an_excluded_address_is_never_the_gateway(tmp_path: Path) -> None:
    with addresses(tmp_path) as (driver, store):
        request = driver.methods["IpamDriver.RequestAddress"]
        pool = driver.methods["IpamDriver.RequestPool"]({"Pool": "172.18.0.0/16"})
        options = {"RequestAddressType": "com.docker.network.gateway"}
        gateway = {"PoolID": pool["PoolID"], "Options": options}
        assert request(gateway)["Address"] == "172.18.0.1/16"
        excluded = {"PoolID": pool["PoolID"], "Address": "172.18.0.2"}
        for _ in range(2):
            assert request(excluded)["Address"] == "172.18.0.2/16"
        with pytest.raises(VtepError, match=r"--aux-address 172\.18\.0\.1: is the gateway"):
            request(excluded | {"Address": "172.18.0.1"})
        assert claims(store) == {"172.18.0.1": None, "172.18.0.2": None}
