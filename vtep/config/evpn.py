"""The options of BGP EVPN (RFC 7432, RFC 8365): those of a process, and rules for a segment.

A process with `EvpnSettings` runs a speaker that has a BGP session with each neighbour; a segment
takes part if its option `evpn` is on.
"""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, Final

from attrs import Attribute, evolve, field, fields, frozen
from attrs.converters import optional

from vtep.config import evpn_parsers
from vtep.config.evpn_neighbors import Neighbor, neighbors
from vtep.config.flags import flag
from vtep.errors import ConfigError
from vtep.wire.bgp.communities import RouteTarget

if TYPE_CHECKING:
    from vtep.config.options import Config


@frozen(kw_only=True)
class EvpnSettings:
    """The BGP sessions of a process, and what all its segments have in common in the fabric.

    Raises: ConfigError if a value makes no sense on any host.
    """

    asn: int = field(
        converter=evpn_parsers.asn,
        metadata={
            "metavar": "N",
            "cli": "asn",
            "help": "AS number of this host in the BGP EVPN fabric.",
        },
    )
    neighbor: tuple[Neighbor, ...] = field(
        converter=neighbors,
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
        converter=evpn_parsers.router_id,
        metadata={
            "metavar": "IP",
            "cli": "evpn_router_id",
            "help": "BGP identifier, an IPv4 address [default: the own IPv4 address on the "
            "underlay].",
        },
    )
    password: str | None = field(
        default=None,
        converter=evpn_parsers.password,
        repr=False,
        metadata={
            "metavar": "TEXT",
            "help": "Password of the sessions (TCP MD5 signatures, RFC 2385).",
        },
    )
    password_file: str | None = field(
        default=None,
        converter=optional(evpn_parsers.password_file),
        metadata={
            "metavar": "FILE",
            "cli": "evpn_password_file",
            "help": "File whose first line is the password of the BGP sessions (TCP MD5 "
            "signatures).",
        },
    )
    """Kept once the password was read from it, so that others can say which file it is."""
    hold_time: int = field(
        default=90,
        converter=evpn_parsers.hold_time,
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
        converter=evpn_parsers.common_route_target,
        metadata={
            "metavar": "TARGET",
            "repeatable": True,
            "help": "Route targets of VNIs that have none, for import and export [default: from "
            "AS number and VNI].",
        },
    )
    stale_time: float = field(
        default=120.0,
        converter=evpn_parsers.stale_time,
        metadata={
            "metavar": "SECONDS",
            "help": "Time in seconds for which entries stay that are not confirmed after a restart "
            "of the speaker, or of a session.",
        },
    )
    duplicate_mac: str = field(
        default="warn",
        converter=evpn_parsers.duplicate_mac,
        metadata={
            "metavar": "|".join(evpn_parsers.ACTIONS),
            "help": "What is done about a MAC that moves too often (RFC 7432, section 15.1).",
        },
    )
    duplicate_moves: int = field(
        default=5,
        converter=evpn_parsers.duplicate_moves,
        metadata={
            "metavar": "N",
            "help": "Moves of a MAC within duplicate-time from which on it is a duplicate.",
        },
    )
    duplicate_time: float = field(
        default=180.0,
        converter=evpn_parsers.duplicate_time,
        metadata={"metavar": "SECONDS", "help": "Time in seconds in which moves are counted."},
    )

    @neighbor.validator
    def _check_neighbor(self, _attribute: "Attribute[Any]", value: tuple[Neighbor, ...]) -> None:
        if not value:
            raise ConfigError("--evpn-neighbor: is missing; give the address of a BGP speaker")

    @listen.validator
    def _check_listen(self, _attribute: "Attribute[Any]", value: object) -> None:
        waited_for = next((each for each in self.neighbor if each.passive), None)
        if not value and waited_for is not None:
            raise ConfigError(
                f"--evpn-neighbor {waited_for.address}: is passive, so it would have to connect "
                "to this host, which has listen = false; leave out one of both"
            )

    def with_password(self, password: str) -> "EvpnSettings":
        """Return these settings with the password that `password_file` has."""
        return evolve(self, password=password)

    def differences(self, former: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the keys of a file whose values were others in `former`, made by `to_json`."""
        return tuple(
            name.replace("_", "-")
            for name, value in self.to_json().items()
            if former.get(name, value) != value
        )

    def to_json(self) -> dict[str, Any]:
        """Return the settings as a JSON object of which `EvpnSettings(**object)` makes them again.

        It has the passwords.
        """
        return {each.name: _plain(getattr(self, each.name)) for each in fields(EvpnSettings)}


def describe_change(before: EvpnSettings | None, after: EvpnSettings | None) -> str:
    """Return what has changed about the table [evpn], without values: some are secret."""
    if before is None or after is None:
        return "[evpn] deleted" if after is None else "[evpn] added"
    return f"[evpn] changed ({', '.join(after.differences(before.to_json())) or 'nothing'})"


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
