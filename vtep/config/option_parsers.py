"""Parsers of option values: each returns the value in its normal form, or says what is wrong.

All of them raise OptionError, whose message begins with the option, and look at nothing but the
value. Rules for two options are in `options`, and rules for two segments in `conflicts`. Addresses
and names of devices have their parsers in `address_parsers`.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from vtep.errors import ConfigError, OptionError
from vtep.wire import ethernet, vxlan
from vtep.wire.address import Network

_T = TypeVar("_T")

MTU_MIN = 68
"""The smallest MTU that IPv4 works with (RFC 791)."""

MTU_MAX = 65507 - vxlan.HEADER_LEN - ethernet.HEADER_LEN - ethernet.TAG_LEN
"""The largest inner packet that fits into one UDP datagram, in a frame with one VLAN tag."""

MSS_MIN, MSS_MAX = 8, 65535
"""Range of an MSS: the kernel cuts no shorter segments (TCP_MIN_GSO_SIZE), and the TCP option has
16 bits."""

OFFLOADS = frozenset(("tso", "uso", "gso", "gro", "tnl"))
"""Names of offloads: TCP and UDP superframes at the TAP, UDP GSO for sending, UDP GRO for
receiving, and tunnel GSO."""

AGEING_MAX = 1_000_000_000

STORM_MAX = 1_000_000_000
"""The highest rate and burst of storm control, in frames."""

HEADER_USED = vxlan.FLAG_I << 32 | vxlan.VNI_MAX << 8
"""The bits of the 64-bit VXLAN header that RFC 7348 defines: the I flag and the VNI."""

RESERVED_ALL = (1 << 64) - 1 & ~HEADER_USED
"""All other bits of the header: those that the kernel driver demands to be zero."""


# --- default values and repeatable options ----------------------------------------------------

_DEFAULT_WORDS = ("none", "auto")
"""Words that reset an option whose default is not a value, as in `pyvtep set --group none`."""


def is_default(value: object) -> bool:
    """Return whether a value resets an option whose default is not a value."""
    return value is None or (isinstance(value, str) and value in _DEFAULT_WORDS)


def as_tuple(value: object) -> tuple[object, ...]:
    """Return the items of a collection, or a single value as a tuple of one.

    Texts, octets, tables and networks are iterable, but single values here.
    """
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | Network):
        return tuple(value)
    return (value,)


def items(option: str, value: object) -> tuple[object, ...]:
    """Return the values of a repeatable option; none if it was reset to its default.

    Raises: OptionError if a word that resets the option has other values beside it.
    """
    found = () if value is None else as_tuple(value)
    if len(found) == 1 and is_default(found[0]) and isinstance(found[0], str):
        return ()
    for item in found:
        if isinstance(item, str) and item in _DEFAULT_WORDS:
            raise OptionError(option, item, "resets the option, so it must stand alone")
    return found


def distinct(option: str, values: tuple[_T, ...]) -> tuple[_T, ...]:
    """Return the values unchanged. Raises: OptionError if one of them occurs twice."""
    # With a set: thousands of remotes would take seconds to compare with each other.
    seen: set[_T] = set()
    for value in values:
        if value in seen:
            raise OptionError(option, value, "is given twice; leave one out")
        seen.add(value)
    return values


# --- numbers ----------------------------------------------------------------------------------

VLAN_MIN, VLAN_MAX = 1, 4094
"""Range of a VLAN ID: 0 is a frame with a priority only, and 4095 is reserved (IEEE 802.1Q)."""


def integer(option: str, value: object, low: int, high: int) -> int:
    """Return a whole number from `low` to `high`."""
    # int() would also accept "1_000" and digits of other scripts.
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise OptionError(option, value, f"is not a whole number{_number_hint(value)}")
    if not low <= value <= high:
        raise OptionError(option, value, f"must be from {low} to {high}")
    return value


def _integer_or(option: str, value: object, low: int, high: int, *words: str) -> int | str:
    """Return one of some words, or else an integer."""
    if isinstance(value, str) and value in words:
        return value
    try:
        return integer(option, value, low, high)
    except ConfigError:
        reason = f"must be from {low} to {high}, or {', or '.join(words)}"
        raise OptionError(option, value, reason) from None


def _number_hint(value: object) -> str:
    """Return the end of a message for a text that is not an integer: what was probably meant."""
    if not isinstance(value, str):
        return ""
    if re.fullmatch(r"0[xX][0-9a-fA-F]{1,12}", value):
        return f"; in decimal it is {int(value, 16)}"
    if re.fullmatch(r"[0-9]+([-,][0-9]+)+", value):
        return "; give one number"
    found = re.fullmatch(r"([0-9]{1,12})[ _]?[a-zA-Z]+", value)
    return f"; write it without a unit, such as {found[1]}" if found else ""


def _bits(option: str, value: object, high: int, expected: str) -> int:
    """Return a number that may be written in hexadecimal; a message says "is `expected`" if not."""
    number = value
    if isinstance(value, str) and re.fullmatch(r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20}", value):
        number = int(value, 16 if value[:2] in ("0x", "0X") else 10)
    if not isinstance(number, int) or isinstance(number, bool):
        raise OptionError(option, value, f"is {expected}")
    if not 0 <= number <= high:
        raise OptionError(option, value, f"must be from 0 to {high:#x}")
    return number


def vni(value: int | str) -> int:
    """Return a VXLAN network identifier."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]+([-,][0-9]+)+", value):
        reason = "is not a whole number; several VNIs need a file (--config)"
        raise OptionError("--vni", value, reason)
    return integer("--vni", value, 0, vxlan.VNI_MAX)


def vlan(value: object) -> int | None:
    """Parse `--vlan` of a segment whose VNI is given: one VLAN ID, or None for frames as they are.

    Raises: OptionError, also for a mapping such as `10:1010`, which `vlans.parse` accepts.
    """
    found = items("--vlan", value)
    if not found:
        return None
    if len(found) > 1:
        raise OptionError("--vlan", found[1], "is a second VLAN; one VNI is carried by one VLAN")
    (one,) = found
    if isinstance(one, str) and ":" in one:
        raise OptionError(
            "--vlan", one, "names a VNI; leave out --vni, or give the VLAN ID alone, as in 10"
        )
    return integer("--vlan", one, VLAN_MIN, VLAN_MAX)


def dstport(value: int | str) -> int:
    """Return the UDP port that all VTEPs listen on."""
    return integer("--dstport", value, 1, 65535)


def mtu(value: int | str | None) -> int | None:
    """Return the MTU of a tunnel in octets; None if it follows the underlay."""
    return None if is_default(value) else integer("--mtu", value, MTU_MIN, MTU_MAX)


def mss_clamp(value: int | str) -> int | str:
    """Return the largest MSS that TCP may announce, `auto` or `off`."""
    return _integer_or("--mss-clamp", value, MSS_MIN, MSS_MAX, "auto", "off")


def max_addresses(value: int | str) -> int:
    """Return how many entries an FDB may learn; 0 means no limit."""
    return integer("--max-addresses", value, 0, 1 << 30)


def max_addresses_per_remote(value: int | str) -> int | str:
    """Return how many entries an FDB may learn from one remote; 0 means no limit, or `auto`."""
    return _integer_or("--max-addresses-per-remote", value, 0, 1 << 30, "auto")


def mac_move_limit(value: int | str) -> int:
    """Return how often a MAC may move within 180 seconds; 0 means no limit."""
    return integer("--mac-move-limit", value, 0, 1000)


def mac_move_hold(value: float | str) -> float:
    """Return for how many seconds a MAC that moves too often is held."""
    return seconds("--mac-move-hold", value, 1)


def loop_block(value: float | str) -> float:
    """Return for how many seconds flooding with a remote is stopped when a loop is found."""
    return seconds("--loop-block", value, 0)


def liveness_interval(value: float | str) -> float:
    """Return after how many seconds a quiet remote is sent an echo request; 0 is never."""
    return seconds("--liveness-interval", value, 0)


def ageing(value: float | str) -> float:
    """Return the lifetime of learned entries in seconds; 0 is for ever."""
    return seconds("--ageing", value, 0)


def seconds(option: str, value: float | str, least: int) -> float:
    """Return a number of seconds, `least` or more."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        reason = f"is not a number of seconds{_seconds_hint(value)}"
        raise OptionError(option, value, reason) from None
    if isinstance(value, bool):
        raise OptionError(option, value, "is not a number of seconds")
    if not least <= number <= AGEING_MAX:  # NaN, too, is not.
        raise OptionError(option, value, f"must be from {least} to {AGEING_MAX} seconds")
    return number


_UNITS = {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def _seconds_hint(value: object) -> str:
    """Return the end of a message for a time with a unit: the same in seconds."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]+)?) ?([a-z]+)", str(value))
    if found is None or found[2] not in _UNITS:
        return ""
    return f"; write {float(found[1]) * _UNITS[found[2]]:g}"


def srcport(value: object) -> tuple[int, int]:
    """Return the first and the last of a range of UDP ports."""
    ends = value.replace("-", " ").split() if isinstance(value, str) else as_tuple(value)
    if len(ends) != 2:
        reason = "must be the first and the last port of a range"
        raise OptionError("--srcport", value, reason)
    first, last = (integer("--srcport", end, 1, 65535) for end in ends)
    if first > last:
        raise OptionError("--srcport", (first, last), "the first port is above the last")
    return first, last


def ttl(value: int | str) -> int | str:
    """Return a TTL or hop limit, `auto` or `inherit`."""
    return _integer_or("--ttl", value, 1, 255, "auto", "inherit")


def tos(value: int | str) -> int | str:
    """Return a TOS octet, whose upper six bits are the DSCP, or `inherit`."""
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
            "its two lowest bits are the ECN field, which follows the inner header; "
            f"write {octet & 0xFC:#x}",
        )
    return octet


def _dscp(name: str) -> int | None:
    """Return the DSCP of a service class by its name (RFC 4594), or None."""
    name = name.lower()
    if found := re.fullmatch(r"cs([0-7])", name):
        return int(found[1]) << 3
    if found := re.fullmatch(r"af([1-4])([1-3])", name):
        return int(found[1]) << 3 | int(found[2]) << 1
    return {"ef": 46, "be": 0}.get(name)


def flowlabel(value: int | str) -> int | str:
    """Return the 20 bits of an IPv6 flow label, or `inherit`."""
    return (
        value
        if value == "inherit"
        else _bits("--flowlabel", value, 0xFFFFF, "neither a number nor inherit")
    )


def reserved_bits(value: int | str) -> int:
    """Return a mask of 64 bits: those of the VXLAN header that must be zero on receive."""
    if value in ("ignore", "strict"):
        return 0 if value == "ignore" else RESERVED_ALL
    mask = _bits("--reserved-bits", value, (1 << 64) - 1, "neither a number, ignore nor strict")
    if mask & HEADER_USED:
        raise OptionError(
            "--reserved-bits",
            value,
            "includes the I flag or the VNI, which are not reserved; "
            f"the largest mask is {RESERVED_ALL:#x}",
        )
    return mask


def gbp(value: int | str | None) -> int | None:
    """Return a group policy ID; None if the extension is off."""
    return None if is_default(value) else _bits("--gbp", value, 0xFFFF, "not a number")


def gbp_accept(value: int | str | Iterable[int | str]) -> frozenset[int]:
    """Return group policy IDs, where 0 stands for frames without one; none of them is all."""
    ids = tuple(
        _bits("--gbp-accept", item, 0xFFFF, "not a number") for item in items("--gbp-accept", value)
    )
    return frozenset(distinct("--gbp-accept", ids))


def _storm_limit(option: str, value: object, *words: str) -> int | str:
    """Return a number of frames a second, `RATE:BURST`, or one of some words."""
    if isinstance(value, str) and ":" in value:
        rate, _, burst = value.partition(":")
        try:
            frames = [integer(option, number, 1, STORM_MAX) for number in (rate, burst)]
        except OptionError as error:
            # Half of the value alone, such as '', would not be found on the command line.
            reason = f"is not RATE:BURST, two numbers from 1 to {STORM_MAX}, as in 1000:2000"
            raise OptionError(option, value, reason) from error
        return f"{frames[0]}:{frames[1]}"
    return _integer_or(option, value, 1, STORM_MAX, *words)


def storm_broadcast(value: int | str) -> int | str:
    """Return the limit of broadcasts: frames a second, `RATE:BURST` or `off`."""
    return _storm_limit("--storm-broadcast", value, "off")


def storm_multicast(value: int | str) -> int | str:
    """Return the limit of multicasts: frames a second, `RATE:BURST` or `off`."""
    return _storm_limit("--storm-multicast", value, "off")


def storm_unknown_unicast(value: int | str) -> int | str:
    """Return the limit of unknown unicast: frames a second, `RATE:BURST`, `auto` or `off`."""
    return _storm_limit("--storm-unknown-unicast", value, "auto", "off")


# --- words ------------------------------------------------------------------------------------


def one_of(option: str, value: object, *words: str) -> str:
    """Return one of some words."""
    if not isinstance(value, str) or value not in words:
        raise OptionError(option, value, f"must be {', '.join(words[:-1])} or {words[-1]}")
    return value


def ecn(value: str) -> str:
    """Return whose rules apply to ECN marks: those of RFC 6040 or of the kernel driver."""
    return one_of("--ecn", value, "rfc6040", "kernel")


def df(value: str) -> str:
    """Return how the outer Don't Fragment bit is set."""
    return one_of("--df", value, "unset", "set", "inherit")


def inner_vlan(value: str) -> str:
    """Return how frames with a VLAN tag are handled."""
    return one_of("--inner-vlan", value, "pass", "strip", "drop")


def offload(value: str | Iterable[str]) -> frozenset[str]:
    """Return a subset of `OFFLOADS`."""
    names = value.split(",") if isinstance(value, str) else list(as_tuple(value))
    if names == ["auto"]:
        return OFFLOADS
    if names == ["none"]:
        return frozenset()
    for name in names:
        if not isinstance(name, str) or name not in OFFLOADS:
            known = ",".join(sorted(OFFLOADS))
            raise OptionError("--offload", name, f"must be auto, none, or some of {known}")
    distinct("--offload", tuple(names))
    return frozenset(map(str, names))


def check_flag(option: str, value: object) -> None:
    """Raise OptionError if the value of an option, named without dashes, is not True or False."""
    if not isinstance(value, bool):
        reason = "must be true or false"
        if value in ("true", "false"):
            reason += ", without quotes"
        raise OptionError(f"--{option.replace('_', '-')}", value, reason)


# --- the namespace and the descriptor of a TAP ------------------------------------------------

PID_MAX = 1 << 22
"""PID_MAX_LIMIT in the kernel's include/linux/threads.h, for 64-bit machines."""


def netns(value: object) -> str | None:
    """Return a process ID in decimal or an absolute path; None is the namespace of pyvtep."""
    if is_default(value):
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # A file may have the number without quotes.
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise OptionError("--netns", value, "is no PID and no path of a file", quoted=True)
    if re.fullmatch("[0-9]+", text):
        return str(integer("--netns", text, 1, PID_MAX))
    if not text.startswith("/"):
        # Relative to what, if it came over the control socket or from a file?
        reason = "is no PID and no absolute path"
        if "/" not in text:
            reason += f"; of a namespace of ip netns, give /run/netns/{text}"
        raise OptionError("--netns", text, reason)
    return text


def tap_fd(value: object) -> int | None:
    """Return the number of a descriptor behind the standard streams; None is none."""
    return None if is_default(value) else integer("--tap-fd", value, 3, 1 << 20)


# --- files ------------------------------------------------------------------------------------


def control(value: str) -> str:
    """Return `auto`, `none`, or the path of a socket."""
    return path("--control", value)


def state(value: str) -> str:
    """Return the path of a state file."""
    return path("--state", value)


def control_group(value: str) -> str:
    """Return the name or number of a group."""
    return _account("--control-group", value, "GROUP")


def control_admin_group(value: str) -> str:
    """Return the name or number of a group."""
    return _account("--control-admin-group", value, "GROUP")


def user(value: str) -> str:
    """Return a user, by name or number, and perhaps a group behind a colon."""
    return _account("--user", value, "NAME|UID[:GROUP]")


_ACCOUNT = re.compile(r"[^\s:/,\0]+")
"""The name or number of a user or group: what useradd(8) and network directories may create."""


def _account(option: str, value: object, form: str) -> str:
    """Return the name of a group, or of a user with a group. The host may not have them."""
    names = value.split(":") if isinstance(value, str) else []
    if not 1 <= len(names) <= form.count(":") + 1 or not all(map(_ACCOUNT.fullmatch, names)):
        raise OptionError(option, value, f"is not a {form}", quoted=True)
    return str(value)


def path(option: str, value: object) -> str:
    """Return the path of a file."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise OptionError(option, value, "is not the path of a file", quoted=True)
    return text
