"""What an engine says of a network, and what will bite whoever joins it to others. No I/O.

The dictionaries are those of the Docker Engine API (`GET /networks/ID`): hostile they are not, but
of many versions, so that everything but the name and the id may be missing.
"""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from attrs import field, frozen

from vtep.errors import VtepError
from vtep.host.firewall import Verdict

_BRIDGE_OPTION = "com.docker.network.bridge.name"
_DEFAULT_OPTION = "com.docker.network.bridge.default_bridge"
_ICC_OPTION = "com.docker.network.bridge.enable_icc"
MTU_OPTION = "com.docker.network.driver.mtu"

_DEFAULT_MTU = 1500
"""What containers have on a network for which no MTU was given."""

_IPV6_LEAST = 1280
"""Octets that every link must carry in one packet (RFC 8200, section 5)."""

_RANGE_BITS = 8
"""A range that is suggested for a host is a subnet with a prefix longer by so much."""

_SMALLEST_RANGE = 29
"""Longest prefix of an IPv4 range that is worth suggesting."""

_UNFIT = {
    "overlay": "is Docker's own VXLAN, with a control plane that no other VTEP can join",
    "host": "has no bridge: its containers use the interfaces of the host",
    "null": "connects its containers to nothing",
    "macvlan": "has no bridge: its containers are on a device of the host",
    "ipvlan": "has no bridge: its containers are on a device of the host",
}
"""Why networks of other drivers than `bridge` can't be joined, as the end of a sentence."""


@frozen
class Container:
    """A running container's end on a network; addresses as the engine writes them."""

    name: str
    mac: str
    addresses: tuple[str, ...]


@frozen
class Network:
    """A bridge network of one engine."""

    name: str
    id: str
    bridge: str
    """Name of the bridge device."""
    mtu: int
    """MTU of containers, in octets."""
    default: bool
    """It is the engine's own, which is not created but configured in its daemon.json."""
    icc: bool
    """Whether the engine lets containers talk to each other."""
    subnets: tuple[IPv4Network | IPv6Network, ...]
    unranged: tuple[IPv4Network | IPv6Network, ...]
    """Subnets of which the engine hands out any address."""
    containers: tuple[Container, ...] = field(eq=False, repr=False)
    """As of now: they come and go, and the network is the same."""
    recipe: str = field(eq=False, repr=False)
    """The command that creates such a network."""


def read(inspected: Mapping[str, Any]) -> Network:
    """Read what the engine says of a network; raises VtepError where it is none that can be joined.

    Where an option has a value that the engine itself would not have taken, it is as if missing.
    """
    name, driver = inspected["Name"], inspected.get("Driver")
    if driver != "bridge":
        why = _UNFIT.get(str(driver), f"has the driver {driver}, of which pyvtep knows nothing")
        raise VtepError(
            f"network {name} {why}; attach a bridge network (docker network create --driver bridge)"
        )
    if inspected.get("ConfigOnly"):
        raise VtepError(f"network {name} is only a template for others (--config-only)")
    options = inspected.get("Options") or {}
    pools = (inspected.get("IPAM") or {}).get("Config") or []
    mtu = str(options.get(MTU_OPTION, ""))
    return Network(
        name=name,
        id=inspected["Id"],
        bridge=options.get(_BRIDGE_OPTION) or f"br-{inspected['Id'][:12]}",
        mtu=int(mtu) if mtu.isdecimal() and int(mtu) else _DEFAULT_MTU,
        default=str(options.get(_DEFAULT_OPTION)).lower() == "true",
        icc=str(options.get(_ICC_OPTION, "true")).lower() not in ("false", "0", "f"),
        subnets=tuple(ip_network(pool["Subnet"]) for pool in pools if pool.get("Subnet")),
        unranged=tuple(
            ip_network(pool["Subnet"])
            for pool in pools
            if pool.get("Subnet") and not pool.get("IPRange")
        ),
        containers=tuple(sorted(_containers(inspected), key=lambda one: one.name)),
        recipe=_recipe(inspected, options, pools),
    )


def _recipe(
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


def _containers(inspected: Mapping[str, Any]) -> Iterator[Container]:
    for end in (inspected.get("Containers") or {}).values():
        addresses = (end.get("IPv4Address"), end.get("IPv6Address"))
        yield Container(
            end.get("Name", ""), end.get("MacAddress", ""), tuple(filter(None, addresses))
        )


@frozen
class Tunnel:
    """What is attached: its MTU in octets, and whether that was chosen rather than found."""

    mtu: int
    chosen: bool = False


@frozen
class Host:
    """What of the host decides over frames on a bridge."""

    bridge_netfilter: bool
    """Bridged frames go through the host's iptables rules (net.bridge.bridge-nf-call-iptables)."""
    forward: Verdict | None
    """What of its firewall drops packets from the bridge to the bridge, if they go through it."""


def findings(network: Network, tunnel: Tunnel, host: Host) -> list[str]:
    """What will bite, or may, each with what to do about it: one line for each."""
    return [*_addresses(network), *_mtu(network, tunnel), *_netfilter(network, host)]


def _addresses(network: Network) -> Iterator[str]:
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
            f"network {network.name}: every engine hands out addresses of {subnet} without knowing "
            f"of the others, so two containers may get the same: {advice}"
        )


def _range(subnet: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network | None:
    """A part of a subnet for one host, None if it is too small for parts."""
    length = subnet.prefixlen + _RANGE_BITS
    if subnet.version == 4:
        length = min(length, _SMALLEST_RANGE)
    if length <= subnet.prefixlen or length > subnet.max_prefixlen:
        return None
    ranges: Iterator[Any] = subnet.subnets(new_prefix=length)
    next(ranges)  # The gateway is in the first.
    own: IPv4Network | IPv6Network = next(ranges)
    return own


def _mtu(network: Network, tunnel: Tunnel) -> Iterator[str]:
    if network.mtu > tunnel.mtu:
        option = f"create it with --opt {MTU_OPTION}={tunnel.mtu}"
        if network.default:
            option = f'set "mtu": {tunnel.mtu} in the daemon.json of the engine'
        raising = "--mtu" if tunnel.chosen else "the MTU of the underlay"
        yield (
            f"network {network.name}: its containers have an MTU of {network.mtu}, but the tunnel "
            f"carries {tunnel.mtu}: that works, but what is larger is cut, fragmented or sent back "
            f"on the way; to spare that, {option}, or raise {raising}"
        )
    if tunnel.mtu < _IPV6_LEAST:
        yield (
            f"network {network.name}: the tunnel carries {tunnel.mtu}, but IPv6 needs "
            f"{_IPV6_LEAST}: it does not work through the tunnel"
        )


def _netfilter(network: Network, host: Host) -> Iterator[str]:
    if not network.icc:
        yield (
            f"network {network.name}: containers are kept from each other (enable_icc=false), and "
            "from those on other hosts as well: "
            + ('"icc": true in daemon.json' if network.default else "create it without that option")
            if host.bridge_netfilter
            else f"network {network.name}: containers are to be kept from each other "
            "(enable_icc=false), but not from those on other hosts, since bridged frames pass by "
            "iptables: to change that, sysctl net.bridge.bridge-nf-call-iptables=1"
        )
    elif host.bridge_netfilter and host.forward is not None:
        does = "drops" if host.forward.certain else "may drop"
        yield (
            f"network {network.name}: this host's firewall {does} what crosses its bridge "
            f"(net.bridge.bridge-nf-call-iptables is 1), by {host.forward.rule}: {host.forward.fix}"
        )
