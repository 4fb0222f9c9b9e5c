"""The values of options: each function keeps one as what it is, or says why it makes no sense.

All of them raise ConfigError with a line that begins with the option, and look at nothing but the
value. What two options say of each other is judged in `config`.
"""

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from ipaddress import (
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import TypeVar

from vtep.errors import ConfigError, OptionError
from vtep.wire import ethernet, vxlan
from vtep.wire.address import (
    DEVICE_NAME_MAX,
    Address,
    Interface,
    Network,
    check_unicast,
    is_address,
    is_device_name,
)

_T = TypeVar("_T")

MTU_MIN = 68
"""The least that IPv4 works with (RFC 791)."""

MTU_MAX = 65507 - vxlan.HEADER_LEN - ethernet.HEADER_LEN - ethernet.TAG_LEN
"""What one UDP datagram can carry of an inner frame with one VLAN tag."""

MSS_MIN, MSS_MAX = 8, 65535
"""The kernel cuts no segment to less (its TCP_MIN_GSO_SIZE); what the option has room for."""

OFFLOADS = frozenset(("tso", "uso", "gso", "gro", "tnl"))
"""Superframes of TCP and of UDP at the TAP, many datagrams in a send, many in a receive; and
superframes that are sent with tunnel GSO."""

AGEING_MAX = 1_000_000_000

HEADER_USED = vxlan.FLAG_I << 32 | vxlan.VNI_MAX << 8
"""What RFC 7348 defines of the 64 bits of a VXLAN header: the I flag and the VNI."""

RESERVED_ALL = (1 << 64) - 1 & ~HEADER_USED
"""All other bits of the header: those that the kernel driver demands to be zero."""


# --- numbers ----------------------------------------------------------------------------------


def _integer(option: str, value: object, low: int, high: int) -> int:
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise OptionError(option, value, f"is not a whole number{_meant(value)}")
    if not low <= value <= high:
        raise OptionError(option, value, f"must be from {low} to {high}")
    return value


def _meant(value: object) -> str:
    """Return what somebody probably meant by a text that is no whole number, for a message."""
    if not isinstance(value, str):
        return ""
    if re.fullmatch(r"0[xX][0-9a-fA-F]{1,12}", value):
        return f"; in decimal it is {int(value, 16)}"
    if re.fullmatch(r"[0-9]+([-,][0-9]+)+", value):
        return "; give one number"
    found = re.fullmatch(r"([0-9]{1,12})[ _]?[a-zA-Z]+", value)
    return f"; write it without a unit, such as {found[1]}" if found else ""


def _bits(option: str, value: object, high: int, wrong: str) -> int:
    """A number that people often write in hexadecimal; `wrong` says what another value is."""
    number = value
    if isinstance(value, str) and re.fullmatch(r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20}", value):
        number = int(value, 16 if value[:2] in ("0x", "0X") else 10)
    if not isinstance(number, int) or isinstance(number, bool):
        raise OptionError(option, value, f"is {wrong}")
    if not 0 <= number <= high:
        raise OptionError(option, value, f"must be from 0 to {high:#x}")
    return number


def vni(value: int | str) -> int:
    """A VXLAN network identifier."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]+([-,][0-9]+)+", value):
        reason = "is not a whole number; several VNIs are in a file (--config)"
        raise OptionError("--vni", value, reason)
    return _integer("--vni", value, 0, vxlan.VNI_MAX)


def dstport(value: int | str) -> int:
    """The UDP port of all VTEPs."""
    return _integer("--dstport", value, 1, 65535)


def mtu(value: int | str | None) -> int | None:
    """Return the MTU of a tunnel in octets; None where it follows the underlay."""
    return None if _is_default(value) else _integer("--mtu", value, MTU_MIN, MTU_MAX)


def mss_clamp(value: int | str) -> int | str:
    """The largest MSS that TCP may announce, `auto` or `off`."""
    if value in ("auto", "off"):
        return value
    try:
        return _integer("--mss-clamp", value, MSS_MIN, MSS_MAX)
    except ConfigError:
        reason = f"must be from {MSS_MIN} to {MSS_MAX}, or auto, or off"
        raise OptionError("--mss-clamp", value, reason) from None


def max_addresses(value: int | str) -> int:
    """How many entries an FDB may learn; 0 is no limit."""
    return _integer("--max-addresses", value, 0, 1 << 30)


def max_addresses_per_remote(value: int | str) -> int | str:
    """How many entries an FDB may learn from one remote; 0 is no limit, or `auto`."""
    if value == "auto":
        return "auto"
    option = "--max-addresses-per-remote"
    try:
        return _integer(option, value, 0, 1 << 30)
    except ConfigError:
        raise OptionError(option, value, f"must be from 0 to {1 << 30}, or auto") from None


def ageing(value: float | str) -> float:
    """Seconds; 0 is for ever."""
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        reason = f"is not a number of seconds{_seconds_meant(value)}"
        raise OptionError("--ageing", value, reason) from None
    if isinstance(value, bool):
        raise OptionError("--ageing", value, "is not a number of seconds")
    if not 0 <= seconds <= AGEING_MAX:
        raise OptionError("--ageing", value, f"must be from 0 to {AGEING_MAX} seconds")
    return seconds


_UNITS = {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def _seconds_meant(value: object) -> str:
    """Return what a text with a unit is in seconds, for a message."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]+)?) ?([a-z]+)", str(value))
    if found is None or found[2] not in _UNITS:
        return ""
    return f"; write {float(found[1]) * _UNITS[found[2]]:g}"


def srcport(value: object) -> tuple[int, int]:
    """The first and the last of a range of UDP ports."""
    ends = value.replace("-", " ").split() if isinstance(value, str) else _several(value)
    if len(ends) != 2:
        reason = "must be the first and the last port of a range"
        raise OptionError("--srcport", value, reason)
    first, last = (_integer("--srcport", end, 1, 65535) for end in ends)
    if first > last:
        raise OptionError("--srcport", (first, last), "the first port is above the last")
    return first, last


def ttl(value: int | str) -> int | str:
    """1 to 255, `auto` or `inherit`."""
    if value in ("auto", "inherit"):
        return value
    try:
        return _integer("--ttl", value, 1, 255)
    except ConfigError:
        reason = "must be from 1 to 255, or auto, or inherit"
        raise OptionError("--ttl", value, reason) from None


def tos(value: int | str) -> int | str:
    """The octet whose upper six bits are the DSCP, or `inherit`."""
    if value == "inherit":
        return value
    named = _dscp(value) if isinstance(value, str) else None
    if named is not None:
        reason = f"is neither a number nor inherit; write {named << 2:#x}"
        raise OptionError("--tos", value, reason)
    octet = _bits("--tos", value, 0xFF, "neither a number nor inherit")
    if octet & 0x03:
        raise OptionError(
            "--tos",
            value,
            "its two lowest bits are ECN's, which follow the inner header; "
            f"write {octet & 0xFC:#x}",
        )
    return octet


def _dscp(name: str) -> int | None:
    """Return the DSCP of a class by its name (RFC 4594), or None."""
    name = name.lower()
    if found := re.fullmatch(r"cs([0-7])", name):
        return int(found[1]) << 3
    if found := re.fullmatch(r"af([1-4])([1-3])", name):
        return int(found[1]) << 3 | int(found[2]) << 1
    return {"ef": 46, "be": 0}.get(name)


def flowlabel(value: int | str) -> int | str:
    """The 20 bits of the IPv6 flow label, or `inherit`."""
    return (
        value
        if value == "inherit"
        else _bits("--flowlabel", value, 0xFFFFF, "neither a number nor inherit")
    )


def reserved_bits(value: int | str) -> int:
    """The bits of the VXLAN header that must be zero in what is received, as a mask of 64 bits."""
    if value in ("ignore", "strict"):
        return 0 if value == "ignore" else RESERVED_ALL
    mask = _bits("--reserved-bits", value, (1 << 64) - 1, "neither a number, ignore nor strict")
    if mask & HEADER_USED:
        raise OptionError(
            "--reserved-bits",
            value,
            "has the I flag or the VNI in it, which are no "
            f"reserved bits; all that may be there is {RESERVED_ALL:#x}",
        )
    return mask


def gbp(value: int | str | None) -> int | None:
    """Return a group policy id; None where the extension is off."""
    return None if _is_default(value) else _bits("--gbp", value, 0xFFFF, "not a number")


def gbp_accept(value: int | str | Iterable[int | str]) -> frozenset[int]:
    """Return some group policy ids, of which 0 stands for frames without any; () is all."""
    ids = tuple(
        _bits("--gbp-accept", item, 0xFFFF, "not a number")
        for item in _items("--gbp-accept", value)
    )
    return frozenset(_different("--gbp-accept", ids))


# --- words ------------------------------------------------------------------------------------


def _one_of(option: str, value: object, *words: str) -> str:
    if not isinstance(value, str) or value not in words:
        raise OptionError(option, value, f"must be {', '.join(words[:-1])} or {words[-1]}")
    return value


def ecn(value: str) -> str:
    """The tables of RFC 6040 or those of the kernel driver."""
    return _one_of("--ecn", value, "rfc6040", "kernel")


def df(value: str) -> str:
    """How the outer Don't Fragment bit is set."""
    return _one_of("--df", value, "unset", "set", "inherit")


def inner_vlan(value: str) -> str:
    """What becomes of frames with a VLAN tag."""
    return _one_of("--inner-vlan", value, "pass", "strip", "drop")


def offload(value: str | Iterable[str]) -> frozenset[str]:
    """Some of `OFFLOADS`."""
    names = value.split(",") if isinstance(value, str) else list(_several(value))
    if names == ["auto"]:
        return OFFLOADS
    if names == ["none"]:
        return frozenset()
    for name in names:
        if not isinstance(name, str) or name not in OFFLOADS:
            known = ",".join(sorted(OFFLOADS))
            raise OptionError("--offload", name, f"must be auto, none, or some of {known}")
    _different("--offload", tuple(names))
    return frozenset(map(str, names))


def yes_or_no(option: str, value: object) -> None:
    """Raise ConfigError where a value is neither True nor False."""
    if not isinstance(value, bool):
        reason = "must be true or false"
        if value in ("true", "false"):
            reason += ", without quotes"
        raise OptionError(f"--{option.replace('_', '-')}", value, reason)


# --- addresses --------------------------------------------------------------------------------


def _several(value: object) -> tuple[object, ...]:
    """Return what was given as several values, even where it is one."""
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | Network):
        return tuple(value)
    return (value,)


def _is_default(value: object) -> bool:
    """Return whether a value stands for the default of an option that is otherwise not spelled."""
    return value is None or (isinstance(value, str) and value in _DEFAULT_WORDS)


def _items(option: str, value: object) -> tuple[object, ...]:
    """Return the values of a repeatable option; none where it was reset to its default."""
    items = () if value is None else _several(value)
    if len(items) == 1 and _is_default(items[0]) and isinstance(items[0], str):
        return ()
    for item in items:
        if isinstance(item, str) and item in _DEFAULT_WORDS:
            raise OptionError(option, item, "resets the option, so it must stand alone")
    return items


_DEFAULT_WORDS = ("none", "auto")


def address(option: str, value: object) -> Address:
    """The unicast address of a host; an IPv6 link-local one may have a scope."""
    given = None
    if isinstance(value, str | Address):  # An integer is an address to ip_address().
        with suppress(ValueError):
            given = ip_address(value)
    if given is None:
        raise not_an_address(option, value)
    try:
        check_unicast(given)
    except ValueError as error:
        raise OptionError(option, value, str(error)) from None
    if isinstance(given, IPv6Address) and given.scope_id is not None:
        if not given.is_link_local:
            raise OptionError(option, value, "only link-local addresses have a scope")
        if not is_device_name(given.scope_id):
            raise OptionError(option, value, "its scope must be the name of a device")
    return given


def not_an_address(option: str, value: object) -> OptionError:
    """Return the error for what is no IP address, with what was probably meant."""
    text = value.strip() if isinstance(value, str) else ""
    name = option.removeprefix("--")
    several = [part for part in re.split(r"[,;\s]+", text) if part]
    if len(several) > 1 and all(map(is_address, several)):
        reason = "is not an IP address but several; write them one by one"
        return OptionError(option, value, reason, {name: several})
    host, slash, length = text.partition("/")
    if slash and length.isdigit() and is_address(host):
        reason = "is not an IP address but a prefix; write the address alone"
        return OptionError(option, value, reason, {name: host})
    if found := re.fullmatch(
        r"\[([0-9a-fA-F:.%\w]+)\](?::([0-9]{1,5}))?|([0-9.]+):([0-9]{1,5})", text
    ):
        host, port = found[1] or found[3], found[2] or found[4]
        if is_address(host):
            reason = "is not an IP address; write it without brackets"
            if port is not None:
                reason = "is not an IP address; write the port as an option of its own"
            return OptionError(
                option, value, reason, {name: host} | ({"dstport": int(port)} if port else {})
            )
    if re.fullmatch(r"[0-9]+(\.[0-9]+){3}", text):
        plain = ".".join(str(int(part)) for part in text.split("."))
        if plain != text and is_address(plain):
            reason = "is not an IP address; write it without leading zeros"
            return OptionError(option, value, reason, {name: plain})
    if text != value and is_address(text):
        return OptionError(option, value, "is not an IP address; write it without blanks")
    reason = "is not an IP address (names are not looked up)"
    if re.fullmatch(r"[a-zA-Z][a-zA-Z0-9-]*(\.[a-zA-Z][a-zA-Z0-9-]*)+", text):
        reason += f"; look it up: getent ahosts {text}"
    return OptionError(option, value, reason)


def _different(option: str, items: tuple[_T, ...]) -> tuple[_T, ...]:
    """Return the items; raise OptionError where one of them is there twice."""
    seen: set[_T] = set()
    for item in items:
        if item in seen:
            raise OptionError(option, item, "is given twice; leave one out")
        seen.add(item)
    return items


def local(value: object) -> tuple[Address, ...]:
    """Own underlay addresses, at most one of each family; None is none."""
    items = _items("--local", value)
    own = _different("--local", tuple(address("--local", item) for item in items))
    for number, item in enumerate(own):
        for other in own[:number]:
            if other.version == item.version:
                raise OptionError(
                    "--local",
                    item,
                    f"is the second IPv{item.version} address, after {other}; "
                    "give one of each family",
                )
    return own


def remotes(value: str | Address | Iterable[str | Address]) -> tuple[Address, ...]:
    """Addresses of other VTEPs."""
    return _different(
        "--remote", tuple(address("--remote", item) for item in _items("--remote", value))
    )


def anycast_gateways(value: str | Address | Iterable[str | Address]) -> tuple[Address, ...]:
    """Addresses of a gateway on the segment; an IPv6 link-local one needs no scope there."""
    items = _items("--anycast-gateway", value)
    return _different(
        "--anycast-gateway", tuple(address("--anycast-gateway", item) for item in items)
    )


def group(value: str | Address | None) -> Address | None:
    """Return a multicast group, without a scope: `--dev` says where it is. None is none."""
    if _is_default(value):
        return None
    given = None
    if isinstance(value, str | Address):
        with suppress(ValueError):
            given = ip_address(value)
    if given is None or not given.is_multicast:
        reason = "is not the address of a multicast group, such as 239.1.1.1 or ff05::100"
        raise OptionError("--group", value, reason)
    if isinstance(given, IPv6Address) and given.scope_id is not None:
        reason = "give it without a scope, and its device with --dev"
        raise OptionError("--group", value, reason)
    return given


def accept(value: str | Network | Iterable[str | Network]) -> tuple[Network, ...]:
    """Prefixes of underlay addresses; an address alone is a prefix of full length."""
    prefixes = tuple(_prefix(item) for item in _items("--accept", value))
    return _different("--accept", prefixes)


def _prefix(value: object) -> Network:
    network = None
    if isinstance(value, str | Address | Network):
        try:
            network = ip_network(value)
        except ValueError as error:
            if "host bits" in str(error):
                wider = ip_network(value, strict=False)
                reason = f"has bits set beyond the prefix; write {wider}, or the address alone"
                raise OptionError("--accept", value, reason) from None
    if network is None or (isinstance(network, IPv6Network) and "%" in str(network)):
        reason = "is not a prefix such as 192.0.2.0/24 or 2001:db8::/32"
        raise OptionError("--accept", value, reason)
    return network


def interfaces(value: str | Interface | Iterable[str | Interface]) -> tuple[Interface, ...]:
    """Addresses for a TAP, with their prefix lengths."""
    items = tuple(_interface(item) for item in _items("--address", value))
    return _different("--address", items)


def _interface(value: object) -> Interface:
    interface = None
    # A host's address alone would be taken for a network of one.
    if isinstance(value, Interface) or (isinstance(value, str) and "/" in value):
        with suppress(ValueError):
            interface = ip_interface(value)
    if interface is None:
        reason = "is not an address with a prefix length, such as 10.0.0.1/24"
        raise OptionError("--address", value, reason)
    ip, network = interface.ip, interface.network
    scoped = isinstance(interface, IPv6Interface) and interface.scope_id is not None
    if ip.is_multicast or ip.is_unspecified or ip.is_loopback or scoped:
        raise OptionError("--address", value, "is not an address that a host can have there")
    if ip.version == 4 and network.prefixlen < 31:
        if ip == network.network_address:
            raise OptionError("--address", value, "is the network's address, not a host's")
        if ip == network.broadcast_address:
            raise OptionError("--address", value, "is the broadcast address, not a host's")
    return interface


def mac(value: str | bytes | None) -> bytes | None:
    """Return a unicast MAC address; None where the kernel is to choose one."""
    if _is_default(value):
        return None
    octets = None
    if isinstance(value, str):
        with suppress(ValueError):
            octets = ethernet.parse_mac(value)
    elif isinstance(value, bytes | bytearray):
        octets = bytes(value)
    if octets is None:
        reason = "is not a MAC address such as 02:00:00:00:00:01"
        if value == "random":
            reason += "; for a random one leave it out"
        raise OptionError("--mac", value, reason)
    if len(octets) != ethernet.MAC_LEN or ethernet.is_group(octets) or octets == ethernet.MAC_ZERO:
        raise OptionError("--mac", value, "must be a unicast MAC address")
    return octets


# --- devices ----------------------------------------------------------------------------------


def _device(option: str, name: object) -> str:
    if isinstance(name, str) and is_device_name(name):
        return name
    if isinstance(name, str) and name.isprintable() and len(os.fsencode(name)) > DEVICE_NAME_MAX:
        reason = f"is too long; a device name has at most {DEVICE_NAME_MAX} octets"
        raise OptionError(option, name, reason)
    raise OptionError(option, name, "is not a name that a network device can have", quoted=True)


def tap(name: str) -> str:
    """Return the name of a TAP device."""
    if name in _DEFAULT_WORDS:
        reason = "names no device here; the default name is vx and the VNI, such as vx1"
        raise OptionError("--tap", name, reason)
    return _device("--tap", name)


def dev(name: str | None) -> str | None:
    """Return the name of an underlay device; None where the routes choose one."""
    return None if name is None or _is_default(name) else _device("--dev", name)


def bridge(name: str | None) -> str | None:
    """Return the name of a bridge; None where the TAP is on none."""
    return None if name is None or _is_default(name) else _device("--bridge", name)


# --- files ------------------------------------------------------------------------------------


def control(value: str) -> str:
    """`auto`, `none`, or a path."""
    return _path("--control", value)


def state(value: str) -> str:
    """A path."""
    return _path("--state", value)


def _path(option: str, value: object) -> str:
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise OptionError(option, value, "is not the path of a file", quoted=True)
    return path
