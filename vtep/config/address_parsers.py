"""Parsers of option values that are addresses or names of devices, as in `option_parsers`."""

import re
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import (
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import NoReturn

from vtep.config.host_names import HostName, host_name_mistake, parse_host_name
from vtep.config.option_parsers import distinct, is_default, items
from vtep.errors import ConfigError, OptionError
from vtep.wire import ethernet
from vtep.wire.address import (
    DEVICE_NAME_MAX,
    Address,
    Interface,
    Network,
    check_unicast,
    is_address,
    is_device_name,
    scope_of,
)

# --- IP addresses -----------------------------------------------------------------------------


def address(option: str, value: object) -> Address:
    """Return the unicast address of a host; an IPv6 link-local one may have a scope."""
    given = _parse(value)
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


def _parse(value: object) -> Address | None:
    """Return an address of any kind, or None for what is not one."""
    if isinstance(value, str | Address):  # ip_address() also takes integers and packed octets.
        with suppress(ValueError):
            return ip_address(value)
    return None


def not_an_address(option: str, value: object) -> OptionError:
    """Return the error for a value that is not an IP address, with what was probably meant."""
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
        # Python refuses leading zeros, since C libraries take such a number for octal.
        plain = ".".join(str(int(part)) for part in text.split("."))
        if plain != text and is_address(plain):
            reason = "is not an IP address; write it without leading zeros"
            return OptionError(option, value, reason, {name: plain})
    if text != value and is_address(text):
        return OptionError(option, value, "is not an IP address; write it without blanks")
    reason = "is not an IP address (names are looked up for --remote only)"
    if re.fullmatch(r"[a-zA-Z][a-zA-Z0-9-]*(\.[a-zA-Z][a-zA-Z0-9-]*)+", text):
        reason += f"; look it up: getent ahosts {text}"
    return OptionError(option, value, reason)


def local(value: object) -> tuple[Address, ...]:
    """Return own underlay addresses, at most one for each family."""
    own = _addresses("--local", value)
    for number, item in enumerate(own):
        for other in own[:number]:
            if other.version == item.version:
                raise OptionError(
                    "--local",
                    item,
                    f"is the second IPv{item.version} address, after {other}; "
                    "give one for each family",
                )
    return own


def remote(value: object) -> Address | HostName:
    """Return an address of another VTEP, or a name that stands for some."""
    if isinstance(value, HostName):
        return value
    if not isinstance(value, str) or _parse(value) is not None:
        return address("--remote", value)
    name = parse_host_name(value)
    return name if name is not None else _not_a_remote(value)


def _not_a_remote(value: str) -> NoReturn:
    """Raise OptionError for a value that is neither an address nor a name."""
    text = value.strip()
    error = not_an_address("--remote", value)
    if error.instead or is_address(text) or not text:
        raise error
    parts = [part for part in re.split(r"[,;\s]+", text) if part]
    if len(parts) > 1 and all(is_address(part) or parse_host_name(part) for part in parts):
        reason = "is not one remote but several; write them one by one"
        raise OptionError("--remote", value, reason, {"remote": parts})
    if text != value and parse_host_name(text) is not None:
        raise OptionError("--remote", value, "is not a host name; write it without blanks")
    raise OptionError("--remote", value, *host_name_mistake(text))


def remotes(value: object) -> tuple[Address | HostName, ...]:
    """Return addresses of other VTEPs, and names that stand for them."""
    return distinct("--remote", tuple(remote(item) for item in items("--remote", value)))


def anycast_gateways(value: str | Address | Iterable[str | Address]) -> tuple[Address, ...]:
    """Return addresses of a gateway on the segment; an IPv6 link-local one needs no scope there."""
    return _addresses("--anycast-gateway", value)


def _addresses(option: str, value: object) -> tuple[Address, ...]:
    return distinct(option, tuple(address(option, item) for item in items(option, value)))


def group(value: str | Address | None) -> Address | None:
    """Return a multicast group, without a scope since `--dev` says where it is; None is none."""
    if is_default(value):
        return None
    given = _parse(value)
    if given is None or not given.is_multicast:
        reason = "is not the address of a multicast group, such as 239.1.1.1 or ff05::100"
        raise OptionError("--group", value, reason)
    if isinstance(given, IPv6Address) and given.scope_id is not None:
        reason = "give it without a scope, and its device with --dev"
        raise OptionError("--group", value, reason)
    return given


# --- prefixes ---------------------------------------------------------------------------------


def accept(value: str | Network | Iterable[str | Network]) -> tuple[Network, ...]:
    """Return prefixes of underlay addresses; an address alone is a prefix of full length."""
    return distinct("--accept", tuple(_prefix(item) for item in items("--accept", value)))


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
    """Return addresses for a TAP, with their prefix lengths."""
    return distinct("--address", tuple(_interface(item) for item in items("--address", value)))


def _interface(value: object) -> Interface:
    interface = None
    # ip_interface() takes an address without a length for a network of one.
    if isinstance(value, Interface) or (isinstance(value, str) and "/" in value):
        with suppress(ValueError):
            interface = ip_interface(value)
    if interface is None:
        reason = "is not an address with a prefix length, such as 10.0.0.1/24"
        raise OptionError("--address", value, reason)
    ip, network = interface.ip, interface.network
    scoped = isinstance(interface, IPv6Interface) and interface.scope_id is not None
    if ip.is_multicast or ip.is_unspecified or ip.is_loopback or scoped:
        raise OptionError("--address", value, "is not an address that a TAP can have")
    if ip.version == 4 and network.prefixlen < 31:  # /31 has no such addresses (RFC 3021).
        if ip == network.network_address:
            raise OptionError("--address", value, "is the network's address, not a host's")
        if ip == network.broadcast_address:
            raise OptionError("--address", value, "is the broadcast address, not a host's")
    return interface


# --- MAC addresses and devices ----------------------------------------------------------------


def mac(value: str | bytes | None) -> bytes | None:
    """Return a unicast MAC address; None if the kernel is to choose one."""
    if is_default(value):
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


def _device(option: str, name: object) -> str:
    if isinstance(name, str) and is_device_name(name):
        return name
    if isinstance(name, str) and name.isprintable() and len(name.encode()) > DEVICE_NAME_MAX:
        reason = f"is too long; a device name has at most {DEVICE_NAME_MAX} octets"
        raise OptionError(option, name, reason)
    raise OptionError(option, name, "is not a name that a network device can have", quoted=True)


def tap(name: str) -> str:
    """Return the name of a TAP device."""
    if name in ("none", "auto"):
        # There could be such a device, but a user who types this wants the default back.
        reason = "does not reset the name; the default is vx and the VNI, such as vx1"
        raise OptionError("--tap", name, reason)
    return _device("--tap", name)


def dev(name: str | None) -> str | None:
    """Return the name of an underlay device; None if routes choose one."""
    return None if name is None or is_default(name) else _device("--dev", name)


def bridge(name: str | None) -> str | None:
    """Return the name of a bridge; None if the TAP is not on one."""
    return None if name is None or is_default(name) else _device("--bridge", name)


def check_scope(option: str, address: Address, dev: str | None) -> None:
    """Raise ConfigError if a link-local address has no device, or another one than `--dev`."""
    # Each link has fe80::/10 (RFC 4291, section 2.5.6), so the address alone names no link.
    scope = scope_of(address, dev)
    if scope is None and address.is_link_local and address.version == 6:
        raise ConfigError(
            f"{option} {address}: is link-local; add its device, as in {address}%eth0, or give "
            "--dev"
        )
    if scope is not None and dev not in (None, scope):
        raise ConfigError(f"{option} {address}: is not on the underlay --dev {dev}")
