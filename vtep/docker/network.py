"""Docker networks as the engine describes them, and problems of joining them. No I/O.

The dictionaries are those of the Docker Engine API (`GET /networks/ID`). They are trusted, but come
from many versions: everything except the name and the ID may be missing.
"""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from attrs import field, frozen

from vtep.errors import VtepError
from vtep.host.firewall import Verdict
from vtep.wire.icmp import MTU_MIN_V6

_BRIDGE_OPTION = "com.docker.network.bridge.name"
_DEFAULT_OPTION = "com.docker.network.bridge.default_bridge"
_ICC_OPTION = "com.docker.network.bridge.enable_icc"
MTU_OPTION = "com.docker.network.driver.mtu"

PYVTEP_DRIVER = "pyvtep"
"""Name of the network driver of this project, and of its IPAM driver and address space."""

_DEFAULT_MTU = 1500
"""MTU of containers on a network without the option."""

_RANGE_BITS = 8
"""Number of bits by which the prefix of a suggested range is longer than the subnet's."""

_SMALLEST_RANGE = 29
"""Longest prefix of an IPv4 range that is worth a suggestion."""

_UNSUPPORTED_DRIVERS = {
    "overlay": "is Docker's own VXLAN, with a control plane that no other VTEP can join",
    "host": "has no bridge: its containers use the interfaces of the host",
    "null": "connects its containers to nothing",
    "macvlan": "has no bridge: its containers are on a device of the host",
    "ipvlan": "has no bridge: its containers are on a device of the host",
}
"""Reasons why networks of other drivers cannot be joined, as ends of a sentence."""


@frozen
class Container:
    """The endpoint of a running container on a network; addresses have prefix lengths."""

    name: str
    mac: str
    addresses: tuple[str, ...]


@frozen
class DockerNetwork:
    """A bridge network of one engine."""

    name: str
    id: str
    bridge: str
    """Name of the bridge device."""
    mtu: int
    """MTU of containers, in octets."""
    default: bool
    """True for the engine's default network, which is configured in its daemon.json."""
    icc: bool
    """Inter-container communication: False if the engine isolates containers."""
    subnets: tuple[IPv4Network | IPv6Network, ...]
    unranged: tuple[IPv4Network | IPv6Network, ...]
    """Subnets without an --ip-range, of which the engine assigns any address."""
    containers: tuple[Container, ...] = field(eq=False, repr=False)
    """Containers at present; not a part of the network's identity, as they come and go."""
    recipe: str = field(eq=False, repr=False)
    """The command that creates the same network again."""


def parse_network(inspected: Mapping[str, Any]) -> DockerNetwork:
    """Parse the engine's description of a network.

    Options with values that the engine itself would refuse are ignored.

    Raises: VtepError if the network is of a kind that cannot be joined.
    """
    name, driver = inspected["Name"], inspected.get("Driver")
    if is_pyvtep_driver(driver):
        options = inspected.get("Options") or {}
        own = " ".join(f"-o {key}={options[key]}" for key in ("vni", "remote") if key in options)
        raise VtepError(
            f"network {name} needs no attach: it is of the driver pyvtep, which has joined it by "
            f"its own options ({own}); see: pyvtep docker status"
        )
    if driver != "bridge":
        why = _UNSUPPORTED_DRIVERS.get(
            str(driver), f"has the driver {driver}, which pyvtep does not support"
        )
        raise VtepError(
            f"network {name} {why}; attach a bridge network (docker network create --driver bridge)"
        )
    if inspected.get("ConfigOnly"):
        raise VtepError(
            f"network {name} is only a template for others (--config-only); attach one of those"
        )
    options = inspected.get("Options") or {}
    pools = (inspected.get("IPAM") or {}).get("Config") or []
    mtu = str(options.get(MTU_OPTION, ""))
    return DockerNetwork(
        name=name,
        id=inspected["Id"],
        # Without the option, the engine names the bridge after the ID.
        bridge=options.get(_BRIDGE_OPTION) or f"br-{inspected['Id'][:12]}",
        mtu=int(mtu) if mtu.isdecimal() and int(mtu) else _DEFAULT_MTU,
        default=str(options.get(_DEFAULT_OPTION)).lower() == "true",
        # Words that Go's strconv.ParseBool takes for false.
        icc=str(options.get(_ICC_OPTION, "true")).lower() not in ("false", "0", "f"),
        subnets=tuple(ip_network(pool["Subnet"]) for pool in pools if pool.get("Subnet")),
        unranged=tuple(
            ip_network(pool["Subnet"])
            for pool in pools
            if pool.get("Subnet") and not pool.get("IPRange")
        ),
        containers=parse_containers(inspected),
        recipe=_create_command(inspected, options, pools),
    )


def is_pyvtep_driver(driver: object) -> bool:
    """Return True for the name by which an engine knows the driver pyvtep."""
    # A managed plug-in has a tag and maybe a registry: registry.example/pyvtep:latest.
    return str(driver or "").rpartition("/")[2].partition(":")[0] == PYVTEP_DRIVER


def _create_command(
    inspected: Mapping[str, Any], options: Mapping[str, Any], pools: Iterable[Mapping[str, Any]]
) -> str:
    words = ["docker", "network", "create"]
    words += ["--ipv6"] if inspected.get("EnableIPv6") else []
    words += ["--internal"] if inspected.get("Internal") else []
    for pool in pools:
        for option, key in (("subnet", "Subnet"), ("ip-range", "IPRange"), ("gateway", "Gateway")):
            words += [f"--{option}", str(pool[key])] if pool.get(key) else []
    for name, value in options.items():
        words += ["--opt", f"{name}={value}"]
    return shlex.join([*words, inspected["Name"]])


def parse_containers(inspected: Mapping[str, Any]) -> tuple[Container, ...]:
    """Return the running containers of a network by name, from the engine's description of it."""
    return tuple(sorted(_containers(inspected), key=lambda container: container.name))


def _containers(inspected: Mapping[str, Any]) -> Iterator[Container]:
    for endpoint in (inspected.get("Containers") or {}).values():
        addresses = (endpoint.get("IPv4Address"), endpoint.get("IPv6Address"))
        yield Container(
            endpoint.get("Name", ""), endpoint.get("MacAddress", ""), tuple(filter(None, addresses))
        )


@frozen
class AttachedTunnel:
    """The tunnel that a network is attached to: its MTU in octets, `chosen` by --mtu or derived."""

    mtu: int
    chosen: bool = False


@frozen
class BridgeFilter:
    """Filtering of the frames that cross a bridge, by the host's netfilter rules."""

    bridge_netfilter: bool
    """True if bridged frames pass the iptables rules (net.bridge.bridge-nf-call-iptables)."""
    forward: Verdict | None
    """The rule that drops packets from the bridge to the same bridge, if they pass the rules."""


def find_problems(
    network: DockerNetwork, tunnel: AttachedTunnel, bridge_filter: BridgeFilter
) -> list[str]:
    """Return one line for each problem of a network, present or possible, with its solution."""
    return [
        *_address_problems(network),
        *_mtu_problems(network, tunnel),
        *_filter_problems(network, bridge_filter),
    ]


def _address_problems(network: DockerNetwork) -> Iterator[str]:
    for subnet in network.unranged:
        part = _range(subnet)
        advice = "choose addresses by hand (docker run --ip)"
        own = f"docker network create --subnet {subnet} --ip-range {part}"
        if network.default:
            advice = "attach a network that you create, where addresses can be chosen"
            key = "fixed-cidr" if subnet.version == 4 else "fixed-cidr-v6"
            own = f'"{key}": "{part}" in the daemon.json of the engine'
        if part is not None:
            advice = (
                f"give each host a range of its own ({own}, on the next host another), or {advice}"
            )
        yield (
            f"network {network.name}: each engine assigns addresses of {subnet} without knowing "
            f"those of the others, so two containers may get the same: {advice}"
        )


def _range(subnet: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network | None:
    """Return a part of a subnet for one host; None if the subnet is too small."""
    length = subnet.prefixlen + _RANGE_BITS
    if subnet.version == 4:
        length = min(length, _SMALLEST_RANGE)
    if length <= subnet.prefixlen or length > subnet.max_prefixlen:
        return None
    ranges: Iterator[Any] = subnet.subnets(new_prefix=length)
    next(ranges)  # By default the gateway has the first address of the subnet.
    own: IPv4Network | IPv6Network = next(ranges)
    return own


def _mtu_problems(network: DockerNetwork, tunnel: AttachedTunnel) -> Iterator[str]:
    raising = "--mtu" if tunnel.chosen else "the MTU of the underlay"
    if network.mtu > tunnel.mtu:
        option = f"create it with --opt {MTU_OPTION}={tunnel.mtu}"
        if network.default:
            option = f'set "mtu": {tunnel.mtu} in the daemon.json of the engine'
        yield (
            f"network {network.name}: its containers have an MTU of {network.mtu}, but the tunnel "
            f"carries {tunnel.mtu}: that works, but larger packets are segmented, fragmented or "
            f"answered with an ICMP error; to avoid that, {option}, or raise {raising}"
        )
    if tunnel.mtu < MTU_MIN_V6:
        yield (
            f"network {network.name}: the tunnel carries {tunnel.mtu}, but IPv6 needs "
            f"{MTU_MIN_V6} and will not work: raise {raising}"
        )


def _filter_problems(network: DockerNetwork, bridge_filter: BridgeFilter) -> Iterator[str]:
    if not network.icc:
        yield (
            f"network {network.name}: containers are isolated from each other (enable_icc=false), "
            "and from those on other hosts as well: "
            + ('"icc": true in daemon.json' if network.default else "create it without that option")
            if bridge_filter.bridge_netfilter
            else f"network {network.name}: containers are isolated from each other "
            "(enable_icc=false), but not from those on other hosts, since bridged frames bypass "
            "iptables: to change that, sysctl net.bridge.bridge-nf-call-iptables=1"
        )
    elif bridge_filter.bridge_netfilter and (rule := bridge_filter.forward) is not None:
        verb = "drops" if rule.certain else "may drop"
        yield (
            f"network {network.name}: this host's firewall {verb} frames that cross its bridge "
            f"(net.bridge.bridge-nf-call-iptables is 1), by {rule.rule}: {rule.fix}"
        )
