"""The field of an option that is on or off."""

from typing import Any

from attrs import Attribute, field

from vtep.config import option_parsers


def check_flag(_config: object, attribute: "Attribute[bool]", value: object) -> None:
    """Raise OptionError if the value of an option is not True or False."""
    option_parsers.check_flag(attribute.name, value)


def flag(*, default: bool, help: str) -> Any:  # noqa: A002  as it is named in the metadata
    """Return a field that is on or off."""
    return field(default=default, validator=check_flag, metadata={"help": help})
