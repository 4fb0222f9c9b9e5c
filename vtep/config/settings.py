"""`Settings`: the configuration of one process, as `options.Config` is that of a segment."""

from collections.abc import Iterable
from typing import Any

from attrs import Attribute, field, frozen
from attrs.converters import optional

from vtep.config import option_parsers
from vtep.config.conflicts import check_segments
from vtep.config.options import Config, flag
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
    state: str | None = field(
        default=None,
        converter=optional(option_parsers.state),
        metadata={"metavar": "FILE", "help": "File that keeps FDB entries across restarts."},
    )
    state_learned: bool = flag(default=False, help="Keep learned entries in --state as well.")
    segments: tuple[Config, ...] = field(converter=_as_tuple)

    @state_learned.validator
    def _check_state_learned(self, _attribute: "Attribute[Any]", _value: object) -> None:
        if self.state_learned and self.state is None:
            raise ConfigError("--state-learned: needs --state, with the file to keep them in")

    @segments.validator
    def _check_segments(self, _attribute: "Attribute[Any]", segments: tuple[Config, ...]) -> None:
        check_segments(segments)
