"""What a VTEP is asked to be: one frozen object, checked when it is made.

The command line, and whatever else configures a VTEP, is generated from the fields of `Config`:
a field's metadata carries its help text. What can be judged without looking at the machine is
judged here, and only here.
"""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv6Address,
    IPv6Interface,
    ip_address,
    ip_interface,
)
from typing import Any

from attrs import Attribute, field, frozen
from attrs.converters import optional

from vtep.errors import ConfigError
from vtep.wire import ethernet, vxlan

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface

MTU_MIN = 68
"""The least that IPv4 works with (RFC 791)."""

MTU_MAX = 65507 - vxlan.HEADER_LEN - ethernet.HEADER_LEN - ethernet.TAG_LEN
"""What one UDP datagram can carry of an inner frame with one VLAN tag."""

OFFLOADS = frozenset(("tso", "uso", "gso", "gro"))
"""Superframes of TCP and of UDP at the TAP, many datagrams in a send, many in a receive."""

AGEING_MAX = 1_000_000_000

TAP_NAME_MAX = 15
"""Octets of an interface name (the kernel's IFNAMSIZ, less its final zero)."""


def _integer(option: str, value: int | str, low: int, high: int) -> int:
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{option} {value}: is not a whole number")
    if not low <= value <= high:
        raise ConfigError(f"{option} {value}: must be from {low} to {high}")
    return value


def _vni(value: int | str) -> int:
    return _integer("--vni", value, 0, vxlan.VNI_MAX)


def _dstport(value: int | str) -> int:
    return _integer("--dstport", value, 1, 65535)


def _mtu(value: int | str) -> int:
    return _integer("--mtu", value, MTU_MIN, MTU_MAX)


def _max_addresses(value: int | str) -> int:
    return _integer("--max-addresses", value, 0, 1 << 30)


def _ageing(value: float | str) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"--ageing {value}: is not a number of seconds") from None
    if not 0 <= seconds <= AGEING_MAX:
        raise ConfigError(f"--ageing {value}: must be from 0 to {AGEING_MAX} seconds")
    return seconds


def _several(value: object) -> tuple[object, ...]:
    """What was given, as several even where it is one."""
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return tuple(value)
    return (value,)


def _address(option: str, value: object) -> Address:
    address = None
    if isinstance(value, str | Address):  # An integer is an address to ip_address().
        with suppress(ValueError):
            address = ip_address(value)
    if address is None:
        raise ConfigError(f"{option} {value}: is not an IP address (names are not looked up)")
    if address.is_multicast:
        raise ConfigError(f"{option} {address}: is a multicast group; give the address of a VTEP")
    if address.is_unspecified or address == IPv4Address("255.255.255.255"):
        raise ConfigError(f"{option} {address}: is not the address of a host")
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            raise ConfigError(f"{option} {address}: write it as {address.ipv4_mapped}")
        if address.is_link_local or address.scope_id is not None:
            raise ConfigError(
                f"{option} {address}: link-local addresses are not supported yet; use a global or "
                "unique local one"
            )
    return address


def _local(value: str | Address) -> Address:
    return _address("--local", value)


def _remotes(value: str | Address | Iterable[str | Address]) -> tuple[Address, ...]:
    remotes = tuple(_address("--remote", item) for item in _several(value))
    if not remotes:
        raise ConfigError("--remote: give the address of at least one other VTEP")
    twice = {remote for remote in remotes if remotes.count(remote) > 1}
    if twice:
        raise ConfigError(f"--remote {twice.pop()}: is given twice")
    return remotes


def _interface(value: object) -> Interface:
    interface = None
    # A host's address alone would be taken for a network of one.
    if isinstance(value, Interface) or (isinstance(value, str) and "/" in value):
        with suppress(ValueError):
            interface = ip_interface(value)
    if interface is None:
        raise ConfigError(
            f"--address {value}: is not an address with a prefix length, such as 10.0.0.1/24"
        )
    ip, network = interface.ip, interface.network
    scoped = isinstance(interface, IPv6Interface) and interface.scope_id is not None
    if ip.is_multicast or ip.is_unspecified or ip.is_loopback or scoped:
        raise ConfigError(f"--address {interface}: is not an address that a host can have there")
    if ip.version == 4 and network.prefixlen < 31:
        if ip == network.network_address:
            raise ConfigError(f"--address {interface}: is the network's address, not a host's")
        if ip == network.broadcast_address:
            raise ConfigError(f"--address {interface}: is the broadcast address, not a host's")
    return interface


def _interfaces(value: str | Interface | Iterable[str | Interface]) -> tuple[Interface, ...]:
    return tuple(_interface(item) for item in _several(value))


def _mac(value: str | bytes) -> bytes:
    try:
        mac = ethernet.parse_mac(value) if isinstance(value, str) else bytes(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--mac {value!s}: {error}") from None
    if len(mac) != ethernet.MAC_LEN or ethernet.is_group(mac) or mac == ethernet.MAC_ZERO:
        raise ConfigError(f"--mac {ethernet.format_mac(mac)}: must be a unicast MAC address")
    return mac


def _device(option: str, name: object) -> str:
    if not isinstance(name, str) or not name.isprintable():  # Surrogates aren't, either.
        raise ConfigError(f"{option} {name!r}: is not a name that a network device can have")
    if len(os.fsencode(name)) > TAP_NAME_MAX:
        raise ConfigError(
            f"{option} {name}: is too long; a device name has at most {TAP_NAME_MAX} octets"
        )
    if not name or name in (".", "..") or any(c in "/:%\0" or c.isspace() for c in name):
        raise ConfigError(f"{option} {name!r}: is not a name that a network device can have")
    return name


def _offload(value: str | Iterable[str]) -> frozenset[str]:
    names = value.split(",") if isinstance(value, str) else list(value)
    if names == ["auto"]:
        return OFFLOADS
    if names == ["none"]:
        return frozenset()
    for name in names:
        if name not in OFFLOADS:
            known = ",".join(sorted(OFFLOADS))
            raise ConfigError(f"--offload {name}: must be auto, none, or some of {known}")
    return frozenset(names)


def _tap(name: str) -> str:
    return _device("--tap", name)


def _dev(name: str) -> str:
    return _device("--dev", name)


def _yes_or_no(_config: "Config", attribute: "Attribute[bool]", value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"--{attribute.name} {value}: must be True or False")


@frozen(kw_only=True)
class Config:
    """One segment: its VNI, its remotes and its TAP device.

    Values may be given as people write them (`remote="192.0.2.2"`, `mac="02:00:00:00:00:01"`);
    they are kept as what they are. Raises ConfigError, naming the option, where one makes no sense.
    """

    vni: int = field(
        converter=_vni,
        metadata={"metavar": "N", "help": "VXLAN network identifier, 0 to 16777215."},
    )
    remote: tuple[Address, ...] = field(
        converter=_remotes,
        metadata={
            "metavar": "IP",
            "help": "Address of another VTEP of this segment; repeat it for each of them.",
        },
    )
    tap: str = field(
        converter=_tap,
        metadata={
            "metavar": "NAME",
            "help": "Name of the TAP device [default: vx followed by the VNI].",
        },
    )
    local: Address | None = field(
        default=None,
        converter=optional(_local),
        metadata={
            "metavar": "IP",
            "help": "Own underlay address [default: the one that the route prefers].",
        },
    )
    dev: str | None = field(
        default=None,
        converter=optional(_dev),
        metadata={"metavar": "NAME", "help": "Underlay device to use, whatever the routes say."},
    )
    dstport: int = field(
        default=vxlan.PORT,
        converter=_dstport,
        metadata={
            "metavar": "PORT",
            "help": "UDP port of all VTEPs (kernel devices made without 'dstport' use 8472).",
        },
    )
    mtu: int | None = field(
        default=None,
        converter=optional(_mtu),
        metadata={
            "metavar": "OCTETS",
            "help": "MTU of the TAP [default: underlay MTU less 50 over IPv4, 70 over IPv6].",
        },
    )
    mac: bytes | None = field(
        default=None,
        converter=optional(_mac),
        metadata={"metavar": "MAC", "help": "MAC address of the TAP [default: a random one]."},
    )
    address: tuple[Interface, ...] = field(
        default=(),
        converter=_interfaces,
        metadata={
            "metavar": "IP/LEN",
            "help": "Address for the TAP, such as 10.0.0.1/24; may be repeated.",
        },
    )
    learning: bool = field(
        default=True,
        validator=_yes_or_no,
        metadata={"help": "Learn which remote a MAC is behind, from the frames that it sends."},
    )
    ageing: float = field(
        default=300,
        converter=_ageing,
        metadata={
            "metavar": "SECONDS",
            "help": "Seconds after which a silent MAC is forgotten; 0 is never.",
        },
    )
    max_addresses: int = field(
        default=65536,
        converter=_max_addresses,
        metadata={"metavar": "N", "help": "How many MACs are learned at most; 0 is no limit."},
    )

    offload: frozenset[str] = field(
        default="auto",
        converter=_offload,
        metadata={
            "metavar": "LIST",
            "help": "Which of tso,uso,gso,gro to use where the kernel has them; or auto, or none.",
        },
    )

    @tap.default
    def _tap_named_after_vni(self) -> str:
        return f"vx{self.vni}"

    @remote.validator
    def _one_family(self, _attribute: "Attribute[Any]", remotes: tuple[Address, ...]) -> None:
        versions = {address.version for address in remotes}
        if len(versions) > 1:
            raise ConfigError(
                "--remote: IPv4 and IPv6 addresses are mixed; a segment uses one of the two"
            )

    @local.validator
    def _local_of_same_family(self, _attribute: "Attribute[Any]", local: Address | None) -> None:
        if local is None:
            return
        if local.version != self.remote[0].version:
            raise ConfigError(
                f"--local {local}: is IPv{local.version}, but the remotes are "
                f"IPv{self.remote[0].version}"
            )
        if local in self.remote:
            raise ConfigError(f"--remote {local}: is the --local address of this host itself")
