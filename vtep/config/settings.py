"""`Settings`: the configuration of one process, as `options.Config` is that of a segment."""

from collections.abc import Iterable
from typing import Any

from attrs import Attribute, field, frozen
from attrs.converters import optional

from vtep.config import evpn as evpn_options
from vtep.config import option_parsers
from vtep.config.conflicts import check_segments
from vtep.config.evpn import EvpnSettings
from vtep.config.flags import flag
from vtep.config.options import Config
from vtep.errors import ConfigError


def _as_tuple(value: Iterable[Config]) -> tuple[Config, ...]:
    # The attrs plugin of mypy understands a function, but not the type `tuple` itself.
    return tuple(value)


@frozen(kw_only=True)
class Settings:
    """The configuration of one process: its segments, and the options that they share.

    Raises: ConfigError if an option makes no sense, or if two segments conflict.
    """

    control: str = field(
        default="auto",
        converter=option_parsers.control,
        metadata={
            "metavar": "PATH",
            "help": "Control socket; auto is a path below /run/pyvtep, none disables it.",
        },
    )
    control_group: str | None = field(
        default=None,
        converter=optional(option_parsers.control_group),
        metadata={
            "metavar": "GROUP",
            "help": "Group whose members may read by the control socket, as with fdb show.",
        },
    )
    control_admin_group: str | None = field(
        default=None,
        converter=optional(option_parsers.control_admin_group),
        metadata={
            "metavar": "GROUP",
            "help": "Group whose members may read and change by the control socket.",
        },
    )
    user: str | None = field(
        default=None,
        converter=optional(option_parsers.user),
        metadata={
            "metavar": "NAME|UID[:GROUP]",
            "help": "User and group to run as, once started by root [default: as started].",
        },
    )
    state: str | None = field(
        default=None,
        converter=optional(option_parsers.state),
        metadata={"metavar": "FILE", "help": "File that keeps FDB entries across restarts."},
    )
    state_learned: bool = flag(default=False, help="Keep learned entries in --state as well.")
    segments: tuple[Config, ...] = field(converter=_as_tuple)
    evpn: EvpnSettings | None = field(default=None)
    """The BGP sessions, for the segments with `evpn`: the table [evpn] of a file."""

    @control_group.validator
    @control_admin_group.validator
    def _check_control_group(self, attribute: "Attribute[Any]", value: object) -> None:
        if value is not None and self.control == "none":
            option = f"--{attribute.name.replace('_', '-')}"
            raise ConfigError(f"{option} {value}: there is no control socket with --control none")

    @state_learned.validator
    def _check_state_learned(self, _attribute: "Attribute[Any]", _value: object) -> None:
        if self.state_learned and self.state is None:
            raise ConfigError("--state-learned: needs --state, with the file to keep them in")

    @segments.validator
    def _check_segments(self, _attribute: "Attribute[Any]", segments: tuple[Config, ...]) -> None:
        check_segments(segments)

    @evpn.validator
    def _check_evpn(self, _attribute: "Attribute[Any]", value: EvpnSettings | None) -> None:
        evpn_options.check_process(self.segments, value)
        if value is not None and self.control == "none":
            raise ConfigError(
                "--control none: EVPN needs the control socket; leave out --control none"
            )
