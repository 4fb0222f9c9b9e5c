"""The options of BGP EVPN (RFC 7432, RFC 8365): those of a process, and rules for a segment.

A process with `EvpnSettings` runs a speaker that has a BGP session with each neighbour; a segment
takes part if its option `evpn` is on. Errors name options as the command line does; those that only
a file has are named in the same way, such as `--evpn-hold-time` for `hold-time`.
"""

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, ip_address
from typing import TYPE_CHECKING, Any, Final

from attrs import Attribute, evolve, field, fields, frozen
from attrs.converters import optional

from vtep.config import address_parsers, option_parsers
from vtep.config.flags import flag
from vtep.errors import ConfigError, OptionError
from vtep.wire.address import Address
from vtep.wire.bgp.communities import RouteTarget
from vtep.wire.bgp.evpn import RouteDistinguisher

if TYPE_CHECKING:
    from vtep.config.options import Config

BGP_PORT: Final = 179
"""The TCP port of BGP (RFC 4271, section 8.2.1)."""

AS_TRANS: Final = 23456
"""The AS number that stands for one of four octets at old speakers (RFC 6793, section 9)."""

_ASN_MAX = (1 << 32) - 1
_HOLD_TIME_MIN, _HOLD_TIME_MAX = 3, 65535
"""Range of the hold time in seconds, beside 0 for none (RFC 4271, section 4.2)."""

_PASSWORD_MAX = 80
"""Octets of a key (TCP_MD5SIG_MAXKEYLEN in the kernel's include/uapi/linux/tcp.h)."""

_MOVES_MAX = 1000

ACTIONS = ("warn", "hold", "off")
"""The ways to handle a duplicate MAC."""


# --- parsers --------------------------------------------------------------------------------------


def _asn(value: object) -> int:
    """Return the number of an autonomous system (RFC 6793), but none that is reserved."""
    if isinstance(value, str) and (found := re.fullmatch(r"([0-9]{1,5})\.([0-9]{1,5})", value)):
        number = int(found[1]) << 16 | int(found[2])
        raise OptionError("--asn", value, "is not a whole number", {"asn": number})
    number = option_parsers.integer("--asn", value, 1, _ASN_MAX)
    if number == AS_TRANS:
        raise OptionError("--asn", value, "is reserved (RFC 6793); give the AS number itself")
    return number


def _router_id(value: object) -> IPv4Address | None:
    """Return a BGP identifier (RFC 6286); None is to choose one."""
    if option_parsers.is_default(value):
        return None
    try:
        address = ip_address(value) if isinstance(value, str | IPv4Address) else None
    except ValueError:
        address = None
    if not isinstance(address, IPv4Address) or not int(address):
        raise OptionError("--evpn-router-id", value, "is not an IPv4 address such as 192.0.2.1")
    return address


def _password(value: object) -> str | None:
    """Return a password of TCP MD5 signatures (RFC 2385). Errors do not show it."""
    if value is None:
        return None
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ConfigError("--evpn-password: is not a text of printable characters")
    if len(value.encode()) > _PASSWORD_MAX:
        raise ConfigError(f"--evpn-password: is longer than {_PASSWORD_MAX} octets")
    return value


def _password_file(value: str) -> str:
    return option_parsers.path("--evpn-password-file", value)


def _hold_time(value: object) -> int:
    """Return a hold time in seconds; 0 is none."""
    seconds = option_parsers.integer("--evpn-hold-time", value, 0, _HOLD_TIME_MAX)
    if 0 < seconds < _HOLD_TIME_MIN:
        reason = f"must be 0, or from {_HOLD_TIME_MIN} to {_HOLD_TIME_MAX} (RFC 4271)"
        raise OptionError("--evpn-hold-time", value, reason)
    return seconds


def _stale_time(value: float | str) -> float:
    return option_parsers.seconds("--evpn-stale-time", value, 1)


def _duplicate_mac(value: str) -> str:
    return option_parsers.one_of("--evpn-duplicate-mac", value, *ACTIONS)


def _duplicate_moves(value: object) -> int:
    return option_parsers.integer("--evpn-duplicate-moves", value, 2, _MOVES_MAX)


def _duplicate_time(value: float | str) -> float:
    return option_parsers.seconds("--evpn-duplicate-time", value, 1)


def _port(value: object) -> int:
    return option_parsers.integer("--evpn-neighbor", value, 1, 65535)


def _targets(option: str, value: object) -> tuple[RouteTarget, ...]:
    """Return route targets; none stands for those that are derived from AS number and VNI."""
    given = (value,) if isinstance(value, RouteTarget) else option_parsers.items(option, value)
    found = tuple(_target(option, item) for item in given)
    option_parsers.distinct(option, tuple(each.text for each in found))
    return found


def _target(option: str, value: object) -> RouteTarget:
    if isinstance(value, RouteTarget):
        return value
    if isinstance(value, str):
        try:
            return RouteTarget.parse(value)
        except ValueError:
            pass
    reason = "is not a route target such as 65000:100 or 192.0.2.1:100"
    raise OptionError(option, value, reason)


def route_target(value: object) -> tuple[RouteTarget, ...]:
    """Return the route targets of `--route-target`."""
    return _targets("--route-target", value)


def route_target_import(value: object) -> tuple[RouteTarget, ...]:
    """Return the route targets of `--route-target-import`."""
    return _targets("--route-target-import", value)


def route_target_export(value: object) -> tuple[RouteTarget, ...]:
    """Return the route targets of `--route-target-export`."""
    return _targets("--route-target-export", value)


def _common_route_target(value: object) -> tuple[RouteTarget, ...]:
    return _targets("--evpn-route-target", value)


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
    raise OptionError("--rd", value, reason)


# --- neighbours -----------------------------------------------------------------------------------


def _neighbor_address(value: object) -> Address:
    address = address_parsers.address("--evpn-neighbor", value)
    if address.version == 6 and address.is_link_local and "%" not in str(address):
        reason = f"is link-local; add its device, as in {address}%eth0"
        raise OptionError("--evpn-neighbor", value, reason)
    return address


@frozen
class Neighbor:
    """A BGP speaker with which there is to be a session: a route reflector, or another leaf."""

    address: Address = field(
        converter=_neighbor_address,
        metadata={"metavar": "IP", "help": "Address; of a link-local one, with %device."},
    )
    asn: int | None = field(
        default=None,
        converter=optional(_asn),
        metadata={"metavar": "N", "help": "Its AS number [default: any]."},
    )
    password: str | None = field(
        default=None,
        converter=_password,
        repr=False,
        metadata={"metavar": "TEXT", "help": "Password of its session [default: that of [evpn]]."},
    )
    port: int = field(
        default=BGP_PORT,
        converter=_port,
        metadata={"metavar": "PORT", "help": "TCP port on which it listens."},
    )
    local: Address | None = field(
        default=None,
        converter=optional(_neighbor_address),
        metadata={
            "metavar": "IP",
            "help": "Own address of the session [default: --local, or that of the route].",
        },
    )
    passive: bool = flag(default=False, help="Wait for its connection, and open none.")

    @local.validator
    def _check_local(self, _attribute: "Attribute[Any]", value: Address | None) -> None:
        if value is not None and value.version != self.address.version:
            raise ConfigError(
                f"--evpn-neighbor {self.address}: cannot be reached from its local {value}, which "
                "is of another IP version"
            )

    def __str__(self) -> str:
        """Return the neighbour as the command line has it, without its password."""
        parts = [str(self.address)]
        if self.asn is not None:
            parts.append(f"asn={self.asn}")
        if self.port != BGP_PORT:
            parts.append(f"port={self.port}")
        if self.local is not None:
            parts.append(f"local={self.local}")
        return ",".join(parts + ["passive"] * self.passive)


def _neighbors(value: object) -> tuple[Neighbor, ...]:
    found = tuple(map(neighbor, option_parsers.items("--evpn-neighbor", value)))
    option_parsers.distinct("--evpn-neighbor", tuple(str(each.address) for each in found))
    return found


def neighbor(value: object) -> Neighbor:
    """Return a neighbour, given as its address, as `ADDRESS,asn=N`, or as a table."""
    if isinstance(value, Neighbor):
        return value
    if isinstance(value, Mapping):
        known = {each.name for each in fields(Neighbor)}
        for key in value:
            if key not in known:
                names = ", ".join(sorted(known))
                raise ConfigError(f"--evpn-neighbor: {key}: is none of {names}")
        if "address" not in value:
            raise ConfigError("--evpn-neighbor: address is missing")
        return Neighbor(**value)
    if not isinstance(value, str):
        return Neighbor(value)
    address, *rest = value.split(",")
    options: dict[str, Any] = {}
    for each in rest:
        name, separator, text = each.partition("=")
        if name == "passive" and not separator:
            options[name] = True
        elif name in ("asn", "port", "local") and separator:
            options[name] = text
        else:
            reason = (
                "takes asn=N, port=N, local=IP and passive behind the address, as in "
                "10.0.0.1,asn=65001"
            )
            raise OptionError("--evpn-neighbor", value, reason)
    return Neighbor(address, **options)


# --- the process ----------------------------------------------------------------------------------


@frozen(kw_only=True)
class EvpnSettings:
    """The BGP sessions of a process, and what all its segments have in common in the fabric.

    Raises: ConfigError if a value makes no sense on any host.
    """

    asn: int = field(
        converter=_asn,
        metadata={
            "metavar": "N",
            "cli": "asn",
            "help": "AS number of this host in the BGP EVPN fabric.",
        },
    )
    neighbor: tuple[Neighbor, ...] = field(
        converter=_neighbors,
        metadata={
            "metavar": "IP[,asn=N]",
            "repeatable": True,
            "cli": "evpn_neighbor",
            "help": "BGP speaker to have an EVPN session with, such as a route reflector; its AS "
            "may be any unless it is given; may be repeated.",
        },
    )
    router_id: IPv4Address | None = field(
        default=None,
        converter=_router_id,
        metadata={
            "metavar": "IP",
            "cli": "evpn_router_id",
            "help": "BGP identifier, an IPv4 address [default: the own IPv4 address on the "
            "underlay].",
        },
    )
    password: str | None = field(
        default=None,
        converter=_password,
        repr=False,
        metadata={
            "metavar": "TEXT",
            "help": "Password of the sessions (TCP MD5 signatures, RFC 2385).",
        },
    )
    password_file: str | None = field(
        default=None,
        converter=optional(_password_file),
        metadata={
            "metavar": "FILE",
            "cli": "evpn_password_file",
            "help": "File whose first line is the password of the BGP sessions (TCP MD5 "
            "signatures).",
        },
    )
    hold_time: int = field(
        default=90,
        converter=_hold_time,
        metadata={
            "metavar": "SECONDS",
            "help": "Time in seconds after which a silent neighbour is down; 0 is never.",
        },
    )
    listen: bool = flag(
        default=True, help="Accept connections of the neighbours on TCP port 179, too."
    )
    route_target: tuple[RouteTarget, ...] = field(
        default=(),
        converter=_common_route_target,
        metadata={
            "metavar": "TARGET",
            "repeatable": True,
            "help": "Route targets of VNIs that have none, for import and export [default: from "
            "AS number and VNI].",
        },
    )
    stale_time: float = field(
        default=120.0,
        converter=_stale_time,
        metadata={
            "metavar": "SECONDS",
            "help": "Time in seconds for which entries stay that are not confirmed after a restart "
            "of the speaker, or of a session.",
        },
    )
    duplicate_mac: str = field(
        default="warn",
        converter=_duplicate_mac,
        metadata={
            "metavar": "|".join(ACTIONS),
            "help": "What is done about a MAC that moves too often (RFC 7432, section 15.1).",
        },
    )
    duplicate_moves: int = field(
        default=5,
        converter=_duplicate_moves,
        metadata={
            "metavar": "N",
            "help": "Moves of a MAC within duplicate-time from which on it is a duplicate.",
        },
    )
    duplicate_time: float = field(
        default=180.0,
        converter=_duplicate_time,
        metadata={"metavar": "SECONDS", "help": "Time in seconds in which moves are counted."},
    )

    @neighbor.validator
    def _check_neighbor(self, _attribute: "Attribute[Any]", value: tuple[Neighbor, ...]) -> None:
        if not value:
            raise ConfigError("--evpn-neighbor: is missing; give the address of a BGP speaker")

    @password_file.validator
    def _check_password_file(self, _attribute: "Attribute[Any]", value: str | None) -> None:
        if value is not None and self.password is not None:
            raise ConfigError(
                f"--evpn-password-file {value}: there is a --evpn-password as well; leave one out"
            )

    def with_password(self, password: str) -> "EvpnSettings":
        """Return these settings with the password of the file, which only its reader knows."""
        return evolve(self, password=password, password_file=None)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as a JSON object of which `EvpnSettings(**object)` makes them again.

        It has the passwords.
        """
        return {each.name: _plain(getattr(self, each.name)) for each in fields(EvpnSettings)}


def _plain(value: object) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, RouteTarget):
        return value.text
    if isinstance(value, Neighbor):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(Neighbor)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else str(value)


CLI_OPTIONS: Final = {
    str(each.metadata["cli"]): each for each in fields(EvpnSettings) if "cli" in each.metadata
}
"""The fields of `EvpnSettings` that the command line has, by the names of their parameters."""


def from_options(given: Mapping[str, Any]) -> EvpnSettings:
    """Return the settings of a command line, by the names in `CLI_OPTIONS`. Raises: ConfigError."""
    options = {CLI_OPTIONS[name].name: value for name, value in given.items()}
    if "asn" not in options:
        raise ConfigError("--asn is missing; give the AS number of this host, such as --asn 65000")
    return EvpnSettings(**{"neighbor": ()} | options)


# --- segments -------------------------------------------------------------------------------------


def check_segment(config: "Config") -> None:
    """Raise ConfigError if a segment has options that contradict its option `evpn`."""
    if not config.evpn:
        for option in ("route_target", "route_target_import", "route_target_export", "rd"):
            if getattr(config, option):
                name = option.replace("_", "-")
                raise ConfigError(f"--{name}: is for a VNI of the EVPN fabric; needs --evpn")
        return
    if config.group is not None:
        raise ConfigError(
            f"--group {config.group}: the routes of the fabric say where frames are flooded to; "
            "leave out --group or --evpn"
        )
    for name, value, why in (
        ("vlan", config.vlan, "MACs of a VLAN of the bridge cannot be announced yet"),
        ("netns", config.netns, "MACs of another network namespace cannot be announced yet"),
        ("tap-fd", config.tap_fd, "MACs behind the TAP of another process cannot be announced yet"),
    ):
        if value is not None:
            raise ConfigError(f"--{name} {value}: {why}; leave out --{name} or --evpn")


def check_process(segments: "Iterable[Config]", settings: EvpnSettings | None) -> None:
    """Raise ConfigError if a segment takes part in a fabric, and the process has no session."""
    if settings is None:
        for config in segments:
            if config.evpn:
                raise ConfigError(
                    "--evpn: there is no BGP session; give --asn and --evpn-neighbor, or in a file "
                    "a table [evpn]"
                )


def import_targets(config: "Config", settings: EvpnSettings) -> frozenset[RouteTarget] | None:
    """Return the targets of the routes that a segment takes; None: both automatic forms of any AS.

    These are AS:VNI and AS:0x10000000|VNI (RFC 8365, section 5.1.2.1).
    """
    given = (*config.route_target, *config.route_target_import)
    return frozenset(given or settings.route_target) or None


def export_targets(config: "Config", settings: EvpnSettings) -> frozenset[RouteTarget]:
    """Return the targets that the routes of a segment are announced with; AS:VNI by default.

    Of an AS number of four octets, the lower two are used, as FRR does: there is no room for more
    beside a VNI.
    """
    given = (*config.route_target, *config.route_target_export)
    automatic = (RouteTarget.of(settings.asn & 0xFFFF, config.vni),)
    return frozenset(given or settings.route_target or automatic)
