"""What a VTEP is asked to be: one frozen object, checked when it is made.

The command line, and whatever else configures a VTEP, is generated from the fields of `Config`:
a field's metadata carries its help text. What can be judged without looking at the machine is
judged here, and only here.
"""

import os
from collections.abc import Iterable
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv6Address,
    IPv6Interface,
    ip_address,
    ip_interface,
)
from operator import index
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
    try:
        number = int(value) if isinstance(value, str) else index(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{option} {value}: is not a whole number") from None
    if not low <= number <= high:
        raise ConfigError(f"{option} {value}: must be from {low} to {high}")
    return number


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


def _address(option: str, value: str | Address) -> Address:
    try:
        address = ip_address(value)
    except ValueError:
        raise ConfigError(
            f"{option} {value}: is not an IP address (names are not looked up)"
        ) from None
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
    several = (value,) if isinstance(value, str | Address) else value
    remotes = tuple(_address("--remote", item) for item in several)
    if not remotes:
        raise ConfigError("--remote: give the address of at least one other VTEP")
    twice = {remote for remote in remotes if remotes.count(remote) > 1}
    if twice:
        raise ConfigError(f"--remote {twice.pop()}: is given twice")
    return remotes


def _interfaces(value: str | Interface | Iterable[str | Interface]) -> tuple[Interface, ...]:
    interfaces = []
    for item in (value,) if isinstance(value, str | Interface) else value:
        try:
            interfaces.append(ip_interface(item))
        except ValueError:
            raise ConfigError(
                f"--address {item}: is not an address with a prefix length, such as 10.0.0.1/24"
            ) from None
    return tuple(interfaces)


def _mac(value: str | bytes) -> bytes:
    try:
        mac = ethernet.parse_mac(value) if isinstance(value, str) else bytes(value)
    except ValueError as error:
        raise ConfigError(f"--mac {value!s}: {error}") from None
    if len(mac) != ethernet.MAC_LEN or ethernet.is_group(mac) or mac == ethernet.MAC_ZERO:
        raise ConfigError(f"--mac {ethernet.format_mac(mac)}: must be a unicast MAC address")
    return mac


def _device(option: str, name: str) -> str:
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
