"""Comparison of a packet's values with those that firewall rules name. No I/O.

Results have three values: True, False, and None if it is unknown (see `firewall`). Values are named
as in the JSON of nftables (libnftables-json(5)).
"""

from collections.abc import Iterable, Mapping
from enum import Enum
from ipaddress import ip_address, ip_network
from typing import Any

from vtep.host.firewall import both


class Absent(Enum):
    """The value of a field that a packet does not have, such as a TCP flag of a UDP datagram."""

    ABSENT = 0


Value = str | int | tuple[Any, ...] | Absent | None
"""A value of a packet: a tuple for a concatenation, None if it is unknown."""


def compare(op: str, value: Value, right: Any) -> bool | None:
    """Compare a value with a number; `op` is <, >, <= or >=."""
    if not isinstance(value, int) or not isinstance(right, int):
        return None
    return {
        "<": value < right,
        ">": value > right,
        "<=": value <= right,
        ">=": value >= right,
    }[op]


def matches(right: Any, value: Value, sets: Mapping[str, Any] | None = None) -> bool | None:
    """Return whether a value is the named one, or is in the named prefix, range or set.

    `right` is the right side of an expression of nftables: a value, a pattern ("eth*"), a list, or
    an object with one of the keys set, elem, range, prefix and concat. `sets` are the elements of
    named sets ("@name").
    """
    if isinstance(right, str) and right.startswith("@"):
        elements = (sets or {}).get(right[1:])
        return matches(elements, value) if elements is not None else None
    if isinstance(right, list):
        return _any(matches(each, value, sets) for each in right)
    if isinstance(right, Mapping) and "set" in right:
        return matches(right["set"], value, sets)
    if isinstance(right, Mapping) and "elem" in right:
        return matches(right["elem"].get("val"), value, sets)
    if isinstance(value, tuple):
        return _concatenation_matches(right, value)
    if value is None:
        return None
    if isinstance(right, Mapping):
        return _in_interval(right, value)
    if right == "*":
        return True
    if isinstance(right, str) and right.endswith("*"):
        return str(value).startswith(right[:-1])
    return str(right) == str(value)


def in_network(network: str, address: str) -> bool | None:
    """Return whether an address, perhaps with a scope, is in a network; None if either is odd."""
    try:
        return ip_address(address.partition("%")[0]) in ip_network(network, strict=False)
    except ValueError:
        return None


def _concatenation_matches(right: Any, values: tuple[Any, ...]) -> bool | None:
    """Return whether each value of a concatenation matches its part of the right side."""
    if not isinstance(right, Mapping) or len(right.get("concat", ())) != len(values):
        return None
    found: bool | None = True
    for each, value in zip(right["concat"], values, strict=True):
        found = both(found, matches(each, value))
    return found


def _in_interval(right: Mapping[str, Any], value: Value) -> bool | None:
    """Return whether a value is in a range of numbers or addresses, or in a prefix."""
    if "range" in right:
        low, high = right["range"]
        if all(isinstance(each, int) for each in (low, high, value)):
            return bool(low <= value <= high)
        return _in_address_range(str(low), str(high), str(value))
    if "prefix" in right:
        return in_network(f"{right['prefix']['addr']}/{right['prefix']['len']}", str(value))
    return None


def _in_address_range(low: str, high: str, address: str) -> bool | None:
    """Return whether an address is in a range; None if one of the three is not an address."""
    try:
        first, at, last = (ip_address(each) for each in (low, address, high))
    except ValueError:
        return None
    same = first.version == at.version == last.version
    return same and int(first) <= int(at) <= int(last)


def _any(conditions: Iterable[bool | None]) -> bool | None:
    """Return the disjunction of three-valued conditions."""
    found = list(conditions)
    return True if True in found else None if None in found else False
