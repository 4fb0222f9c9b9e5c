"""Networks of the driver, as the engine describes them and as they are kept on disk. No I/O.

The options of `docker network create -o` are those of `Config`, which checks them. A description
comes from a request (`CreateNetwork`), or from the engine (`GET /networks/ID`) for a network that
the plug-in has forgotten.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from ipaddress import ip_interface, ip_network
from typing import Any

import attrs
from attrs import field, frozen

from vtep.config import Config, address_parsers, option_parsers
from vtep.docker.network import MTU_OPTION, PYVTEP_DRIVER, is_pyvtep_driver
from vtep.errors import ConfigError, OptionError, shown
from vtep.wire.address import Interface, Network, check_unicast

BRIDGE_OPTION = "com.docker.network.bridge.name"
_GENERIC = "com.docker.network.generic"
"""Key of the options of `docker network create -o` in a request."""
_INTERNAL = "com.docker.network.internal"

_EXAMPLE = "docker network create -d pyvtep -o vni=200 -o remote=192.0.2.2 mynetwork"

_OWN = frozenset(
    (
        *("tap", "bridge", "persist", "mac", "address"),
        *("netns", "tap_fd", "vlan", "docker_network", "docker_host"),
    )
)
"""Options of `Config` that the driver sets itself, or that make no sense on its bridge."""

_FIELDS = {each.name: each for each in attrs.fields(Config) if each.name not in _OWN}

_TRUE = frozenset(("", "1", "t", "true", "on", "yes"))
_FALSE = frozenset(("0", "f", "false", "off", "no"))
"""Words that Go's strconv.ParseBool and YAML take for a truth value; `-o NAME` alone is true."""

ID_DIGITS = 12
"""Digits of an ID that docker shows, and that its names of devices have."""


def _network(text: object) -> Network:
    return ip_network(str(text))


def _interface(text: object) -> Interface | None:
    return None if text is None else ip_interface(str(text))


@frozen
class NetworkPool:
    """A subnet of a network, and its gateway: the address of the bridge, the same on all hosts.

    `space` is the address space of the IPAM driver that assigns the addresses.
    """

    subnet: Network = field(converter=_network)
    gateway: Interface | None = field(default=None, converter=_interface)
    space: str = ""


@frozen
class PluginEndpoint:
    """The interface of a container on a network: its MAC and its addresses with prefix lengths."""

    mac: str
    addresses: tuple[str, ...] = ()


@frozen
class PluginNetwork:
    """A network that the engine has created with this driver.

    `options` are those of `docker network create -o`, unchanged.

    Raises: ConfigError with the words of the command line if an option makes no sense.
    """

    id: str
    options: Mapping[str, str]
    pools: tuple[NetworkPool, ...] = ()
    internal: bool = False
    segment: Mapping[str, Any] = field(init=False, repr=False)
    """The options of the VNI by name, as the control socket takes them."""
    config: Config = field(init=False, repr=False)
    """The same, checked."""
    bridge: str = field(init=False)
    chosen_mtu: int | None = field(init=False)
    """The MTU of containers that the user has chosen, in octets."""

    def __attrs_post_init__(self) -> None:
        """Parse the options."""
        given = dict(self.options)
        bridge = given.pop(BRIDGE_OPTION, "")
        chosen_mtu = given.pop(MTU_OPTION, None)
        for pool in self.pools:
            _check_pool(pool)
        with _as_driver_options():
            mtu = None if chosen_mtu is None else _mtu_of(chosen_mtu)
            bridge = _bridge_of(bridge or f"br-{self.id[:ID_DIGITS]}")
            options = parse_options(given)
            gateways = _addresses_of(options.get("anycast_gateway", ()))
            gateways += [text for text in self._gateways() if text not in gateways]
            options |= {"bridge": bridge, "anycast_gateway": gateways}
            config = Config(**options)
        derived = {"segment": options, "config": config, "bridge": bridge, "chosen_mtu": mtu}
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def _gateways(self) -> Iterator[str]:
        for pool in self.pools:
            if pool.gateway is not None:
                yield str(pool.gateway.ip)

    @property
    def vni(self) -> int:
        """The VNI of its segment."""
        return self.config.vni

    @property
    def addresses(self) -> list[Interface]:
        """The addresses of the bridge."""
        return [pool.gateway for pool in self.pools if pool.gateway is not None]

    def container_mtu(self, tunnel_mtu: int) -> int:
        """Return the MTU of containers: that of the tunnel, or a smaller one that was asked for."""
        return min(tunnel_mtu, self.chosen_mtu or tunnel_mtu)

    def check_mtu(self, tunnel_mtu: int) -> None:
        """Raise ConfigError if a tunnel does not carry the MTU that containers are to have."""
        if self.chosen_mtu is not None and self.chosen_mtu > tunnel_mtu:
            raise ConfigError(
                f"-o {MTU_OPTION}={self.chosen_mtu}: the tunnel carries {tunnel_mtu}; choose at "
                "most that, or leave the option out"
            )


def _check_pool(pool: NetworkPool) -> None:
    """Raise ConfigError for a subnet or gateway that no device can have an address of.

    Gateways become options of the VNI, whose messages would name an option that nobody has given.
    """
    gateway = None if pool.gateway is None else pool.gateway.ip
    for option, value, address in (
        ("--subnet", pool.subnet, pool.subnet.network_address),
        ("--gateway", gateway, gateway),
    ):
        if address is None:
            continue
        reason = "multicast" if address.is_multicast else "loopback" if address.is_loopback else ""
        if reason:
            raise ConfigError(
                f"{option} {value}: is for {reason}; choose a subnet of unicast addresses"
            )
        try:
            check_unicast(address)
        except ValueError as error:
            raise ConfigError(f"{option} {value}: {error}") from error


def _bridge_of(name: str) -> str:
    try:
        return address_parsers.bridge(name) or ""
    except OptionError as error:
        raise OptionError(f"--{BRIDGE_OPTION}", name, error.reason) from error


def _mtu_of(text: str) -> int | None:
    try:
        return option_parsers.mtu(text)
    except OptionError as error:
        raise OptionError(f"--{MTU_OPTION}", text, error.reason) from error


def _addresses_of(value: object) -> list[str]:
    return [value] if isinstance(value, str) else [str(item) for item in value]  # type: ignore[attr-defined]


@contextmanager
def _as_driver_options() -> Iterator[None]:
    """Name options in errors as `-o` spells them."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(spell_options(str(error))) from error


def spell_options(message: str) -> str:
    """Return an error of the command line with its options as `-o` spells them.

    An option at the beginning comes with its value: `--vni x: ...` is `-o vni=x: ...` then.
    """
    message = re.sub(r"^--([a-z0-9.-]+) (.*?): ", r"-o \1=\2: ", message, count=1)
    names = "|".join(sorted((name.replace("_", "-") for name in _FIELDS), key=len, reverse=True))
    return re.sub(rf"--({names})\b", r"-o \1", message)


def parse_options(given: Mapping[str, str]) -> dict[str, Any]:
    """Return options of `docker network create -o` as options of a VNI, by their names in `Config`.

    Their values are texts still, except of flags, and of those that may be repeated: these are
    separated by commas.

    Raises: ConfigError if there is no such option, or one is given twice.
    """
    options: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        negated = name.startswith("no_") and _is_flag(name[3:])
        name = name[3:] if negated else name
        if name not in _FIELDS:
            raise ConfigError(_describe_unknown(key))
        if name in options:
            raise ConfigError(f"-o {key}: is given twice; leave one out")
        if _is_flag(name):
            options[name] = _parse_flag(key, value) is not negated
        elif not value.strip():
            raise ConfigError(f"-o {key}: needs a value, as in -o {key}=VALUE")
        elif _FIELDS[name].metadata.get("repeatable", False):
            options[name] = value.replace(",", " ").split()
        else:
            options[name] = value.strip()
    if "vni" not in options:
        raise ConfigError(f"-o vni is missing; for example: {_EXAMPLE}")
    return options


def _is_flag(name: str) -> bool:
    return name in _FIELDS and _FIELDS[name].type is bool


def _parse_flag(key: str, value: str) -> bool:
    word = value.strip().lower()
    if word not in _TRUE | _FALSE:
        raise OptionError(f"-o {key}", value, "must be true or false")
    return word in _TRUE


def _describe_unknown(key: str) -> str:
    known = [name.replace("_", "-") for name in _FIELDS]
    plain = key.lower().replace("_", "-").lstrip("-")
    if plain.replace("-", "_") in _OWN:
        hint = "the driver sets it itself"
        if plain == "bridge":
            hint += f"; for a name of your own: -o {BRIDGE_OPTION}=NAME"
    elif close := get_close_matches(plain, known, 1):
        hint = f"did you mean -o {close[0]}?"
    else:
        hint = "those of pyvtep have the names of its command line (pyvtep --help)"
    return f"-o {shown(key)}: is not an option of the driver; {hint}"


# --- requests and descriptions ----------------------------------------------------------------


def parse_create(request: Mapping[str, Any]) -> PluginNetwork:
    """Parse the request of `NetworkDriver.CreateNetwork`. Raises: ConfigError."""
    options = request.get("Options") or {}
    pools = [*(request.get("IPv4Data") or ()), *(request.get("IPv6Data") or ())]
    return PluginNetwork(
        id=str(request["NetworkID"]),
        options=_texts(options.get(_GENERIC)),
        pools=tuple(
            NetworkPool(pool["Pool"], pool.get("Gateway") or None, pool.get("AddressSpace", ""))
            for pool in pools
            # The driver "null" of Docker, for containers that ask for their addresses by DHCP.
            if pool.get("Pool") and ip_network(pool["Pool"]).prefixlen
        ),
        internal=bool(options.get(_INTERNAL)),
    )


def is_ours(inspected: Mapping[str, Any]) -> bool:
    """Return True if the engine describes a network of this driver."""
    return is_pyvtep_driver(inspected.get("Driver"))


def parse_inspected(inspected: Mapping[str, Any]) -> PluginNetwork:
    """Parse the engine's description of a network of this driver. Raises: ConfigError."""
    ipam = inspected.get("IPAM") or {}
    # The name of its address space is the IPAM driver's own affair; that of ours is its name.
    space = PYVTEP_DRIVER if is_pyvtep_driver(ipam.get("Driver")) else ""
    return PluginNetwork(
        id=str(inspected["Id"]),
        options=_texts(inspected.get("Options")),
        pools=tuple(
            _pool_of(config, space) for config in ipam.get("Config") or () if config.get("Subnet")
        ),
        internal=bool(inspected.get("Internal")),
    )


def parse_endpoints(inspected: Mapping[str, Any]) -> dict[str, PluginEndpoint]:
    """Return the endpoints of running containers in the engine's description of a network."""
    return {
        str(each["EndpointID"]): PluginEndpoint(
            str(each.get("MacAddress") or ""),
            tuple(filter(None, (each.get("IPv4Address"), each.get("IPv6Address")))),
        )
        for each in (inspected.get("Containers") or {}).values()
        if each.get("EndpointID")
    }


def _pool_of(config: Mapping[str, Any], space: str) -> NetworkPool:
    subnet = ip_network(config["Subnet"])
    gateway = config.get("Gateway")
    if not gateway:
        # The engine omits a gateway that it has chosen: the first address that it assigns. The
        # first one of the subnet is its network address, and not assigned.
        ranged = ip_network(config.get("IPRange") or subnet)
        gateway = ranged[1 if ranged[0] == subnet[0] else 0]
    return NetworkPool(subnet, f"{str(gateway).partition('/')[0]}/{subnet.prefixlen}", space)


def _texts(options: object) -> dict[str, str]:
    """Return options as texts; values in the request of a program may be numbers or flags."""
    if not isinstance(options, Mapping):
        return {}
    return {
        str(name): str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in options.items()
    }


def was_refused(container: Mapping[str, Any]) -> bool:
    """Return True if the engine did not start a container since it did not find the plug-in.

    `container` is the engine's description (`GET /containers/ID/json`). Only one that the engine
    was to start by itself counts, by its restart policy.
    """
    policy = ((container.get("HostConfig") or {}).get("RestartPolicy") or {}).get("Name")
    state = container.get("State") or {}
    error = str(state.get("Error") or "")
    return (
        policy in ("always", "unless-stopped", "on-failure")
        and not state.get("Running")
        and "plugin" in error
        and PYVTEP_DRIVER in error
    )


# --- on disk ----------------------------------------------------------------------------------


def to_json(network: PluginNetwork) -> dict[str, Any]:
    """Return a network as a JSON object."""
    return {
        "options": dict(network.options),
        "pools": [
            {
                "subnet": str(pool.subnet),
                "gateway": None if pool.gateway is None else str(pool.gateway),
                "space": pool.space,
            }
            for pool in network.pools
        ],
        "internal": network.internal,
    }


def from_json(number: str, value: Mapping[str, Any]) -> PluginNetwork:
    """Return the network with an ID that `to_json` has made an object of. Raises: ConfigError."""
    return PluginNetwork(
        id=number,
        options=_texts(value["options"]),
        pools=tuple(NetworkPool(**pool) for pool in value["pools"]),
        internal=bool(value["internal"]),
    )


# --- checks between networks, and names ---------------------------------------------------------


def check_free(network: PluginNetwork, others: Iterable[PluginNetwork]) -> None:
    """Raise ConfigError if another network has the VNI or the bridge of a new one."""
    for other in others:
        if other.vni == network.vni:
            raise ConfigError(
                f"-o vni={network.vni}: network {other.id[:ID_DIGITS]} of this engine has it; "
                "each network has its own VNI"
            )
        if other.bridge == network.bridge:
            raise ConfigError(
                f"-o {BRIDGE_OPTION}={network.bridge}: network {other.id[:ID_DIGITS]} has it; "
                "each network has its own bridge"
            )


def device_names(endpoint: str) -> tuple[str, str]:
    """Return the names of the veth devices of an endpoint: on the bridge, and of the container.

    Names of devices have at most 15 characters (IFNAMSIZ in the kernel's linux/if.h).
    """
    return f"vxh{endpoint[:ID_DIGITS]}", f"vxc{endpoint[:ID_DIGITS]}"


def check_mac(text: str) -> str:
    """Return the MAC address that a container is to have. Raises: ConfigError."""
    try:
        address_parsers.mac(text)
    except OptionError as error:
        # The engine checks the syntax only, and the kernel would not say which address it refuses.
        raise OptionError("--mac-address", text, error.reason) from error
    return text


def mac_of(number: str) -> str:
    """Return the MAC address of a device of its own, from the ID of its network or endpoint.

    IDs are random, so it differs on each host, and remains when the device is made anew. It is not
    made from the IP address, as by Docker's bridge driver: if two containers had one address, they
    would have one MAC as well, and no neighbor could notice.
    """
    return "02:" + ":".join(number[at : at + 2] for at in range(0, 10, 2))
