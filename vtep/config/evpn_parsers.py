"""Parsers of the options of BGP EVPN (RFC 7432, RFC 8365), as in `option_parsers`.

Errors name options as the command line does; those that only a file has are named in the same way,
such as `--evpn-hold-time` for `hold-time`.
"""

import re
from ipaddress import IPv4Address, ip_address
from typing import Final

from vtep.config import option_parsers
from vtep.errors import ConfigError, OptionError
from vtep.wire.bgp import AS_TRANS
from vtep.wire.bgp.communities import ASN_MAX, RouteTarget
from vtep.wire.bgp.evpn import RouteDistinguisher

_ASN_LAST: Final = (0xFFFF, ASN_MAX)
"""The last AS numbers of two and of four octets, which no network may have (RFC 7300)."""

_MULTICAST_MIN: Final = IPv4Address("224.0.0.0")
"""The first IPv4 address that is not one of unicast."""

_HOLD_TIME_MIN, _HOLD_TIME_MAX = 3, 65535
"""Range of the hold time in seconds, beside 0 for none (RFC 4271, section 4.2)."""

PASSWORD_MAX: Final = 80
"""Octets of a key (TCP_MD5SIG_MAXKEYLEN in the kernel's include/uapi/linux/tcp.h)."""

_MOVES_MAX = 1000

EXPORTED_MAX: Final = 200
"""Route targets of one option that routes are announced with. Those of two options, and the longest
route, fit into a message of 4096 octets (RFC 4271, section 4.1)."""

ACTIONS = ("warn", "hold", "off")
"""The ways to handle a duplicate MAC."""


def asn(value: object) -> int:
    """Return the number of an autonomous system (RFC 6793), but none that is reserved."""
    if isinstance(value, str) and (found := re.fullmatch(r"([0-9]{1,5})\.([0-9]{1,5})", value)):
        number = int(found[1]) << 16 | int(found[2])
        raise OptionError("--asn", value, "is not a whole number", {"asn": number})
    number = option_parsers.integer("--asn", value, 1, ASN_MAX)
    if number == AS_TRANS:
        raise OptionError("--asn", value, "is reserved (RFC 6793); give the AS number itself")
    if number in _ASN_LAST:
        reason = (
            "is reserved (RFC 7300); private AS numbers are 64512 to 65534 and 4200000000 to "
            "4294967294"
        )
        raise OptionError("--asn", value, reason)
    return number


def router_id(value: object) -> IPv4Address | None:
    """Return a BGP identifier (RFC 6286); None is to choose one."""
    if option_parsers.is_default(value):
        return None
    try:
        address = ip_address(value) if isinstance(value, str | IPv4Address) else None
    except ValueError:
        address = None
    if not isinstance(address, IPv4Address) or not int(address):
        raise OptionError("--evpn-router-id", value, "is not an IPv4 address such as 192.0.2.1")
    if address >= _MULTICAST_MIN:
        # RFC 6286 allows it, but FRR refuses the OPEN message: bad BGP identifier.
        reason = "is not a unicast address, so that other BGP speakers refuse it"
        raise OptionError("--evpn-router-id", value, reason)
    return address


def password(value: object) -> str | None:
    """Return a password of TCP MD5 signatures (RFC 2385). Errors do not show it."""
    if value is None:
        return None
    if isinstance(value, int | float):
        raise ConfigError("--evpn-password: is not a text; write it in quotes")
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ConfigError("--evpn-password: is not a text of printable characters")
    if len(value.encode()) > PASSWORD_MAX:
        raise ConfigError(f"--evpn-password: is longer than {PASSWORD_MAX} octets")
    return value


def password_file(value: str) -> str:
    """Return the path of a file with a password."""
    return option_parsers.path("--evpn-password-file", value)


def hold_time(value: object) -> int:
    """Return a hold time in seconds; 0 is none."""
    seconds = option_parsers.integer("--evpn-hold-time", value, 0, _HOLD_TIME_MAX)
    if 0 < seconds < _HOLD_TIME_MIN:
        reason = f"must be 0, or from {_HOLD_TIME_MIN} to {_HOLD_TIME_MAX} (RFC 4271)"
        raise OptionError("--evpn-hold-time", value, reason)
    return seconds


def stale_time(value: float | str) -> float:
    """Return for how many seconds entries stay that are not confirmed."""
    return option_parsers.seconds("--evpn-stale-time", value, 1)


def duplicate_mac(value: str) -> str:
    """Return what is done about a duplicate MAC."""
    return option_parsers.one_of("--evpn-duplicate-mac", value, *ACTIONS)


def duplicate_moves(value: object) -> int:
    """Return how many moves of a MAC are not yet too many."""
    return option_parsers.integer("--evpn-duplicate-moves", value, 2, _MOVES_MAX)


def duplicate_time(value: float | str) -> float:
    """Return the time in seconds in which moves are counted."""
    return option_parsers.seconds("--evpn-duplicate-time", value, 1)


def port(value: object) -> int:
    """Return the TCP port of a neighbour."""
    return option_parsers.integer("--evpn-neighbor-port", value, 1, 65535)


def _targets(option: str, value: object) -> tuple[RouteTarget, ...]:
    """Return route targets; none stands for those that are derived from AS number and VNI."""
    given = (value,) if isinstance(value, RouteTarget) else option_parsers.items(option, value)
    found = tuple(_target(option, item) for item in given)
    option_parsers.distinct(option, tuple(each.text for each in found))
    return found


def _target(option: str, value: object) -> RouteTarget:
    if isinstance(value, RouteTarget):
        return value
    try:
        if isinstance(value, str):
            return RouteTarget.parse(value)
    except ValueError:
        pass
    reason = _out_of_range(value) or "is not a route target such as 65000:100 or 192.0.2.1:100"
    raise OptionError(option, value, reason)


def _out_of_range(value: object) -> str | None:
    """Return which number of a route target or route distinguisher is too large; None: none is."""
    found = re.fullmatch(r"([0-9]{1,20})((?:\.[0-9]{1,3}){3})?:[0-9]{1,20}", str(value))
    if found is None:
        return None
    if found[2] is not None:
        return "its number must be from 0 to 65535 behind an address"
    asn = int(found[1])
    if asn > ASN_MAX:
        return f"its AS number must be from 0 to {ASN_MAX}"
    if asn > 0xFFFF:
        return "its number must be from 0 to 65535 behind an AS number above 65535"
    return f"its number must be from 0 to {ASN_MAX}"


def _exported(option: str, value: object) -> tuple[RouteTarget, ...]:
    """Return route targets that routes are announced with."""
    found = _targets(option, value)
    if len(found) > EXPORTED_MAX:
        reason = f"a route is announced with {EXPORTED_MAX} at most; give fewer"
        raise OptionError(option, f"({len(found)} route targets)", reason)
    return found


def route_target(value: object) -> tuple[RouteTarget, ...]:
    """Return the route targets of `--route-target`."""
    return _exported("--route-target", value)


def route_target_import(value: object) -> tuple[RouteTarget, ...]:
    """Return the route targets of `--route-target-import`."""
    return _targets("--route-target-import", value)


def route_target_export(value: object) -> tuple[RouteTarget, ...]:
    """Return the route targets of `--route-target-export`."""
    return _exported("--route-target-export", value)


def common_route_target(value: object) -> tuple[RouteTarget, ...]:
    """Return the route targets of VNIs that have none."""
    return _exported("--evpn-route-target", value)


def rd(value: object) -> str | None:
    """Return a route distinguisher (RFC 4364, section 4.2) as text; None is to derive one."""
    if option_parsers.is_default(value):
        return None
    try:
        if isinstance(value, str):
            return RouteDistinguisher.parse(value).text
    except ValueError:
        pass
    reason = "is not a route distinguisher such as 192.0.2.1:100 or 65000:100"
    raise OptionError("--rd", value, _out_of_range(value) or reason)
