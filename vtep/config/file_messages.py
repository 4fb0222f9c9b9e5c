"""Messages of errors in a configuration file, with options spelled as its keys."""

import json
import re
from typing import TYPE_CHECKING, Any, Final

from vtep.config import option_parsers
from vtep.config.file_keys import (
    CONFIG_KEYS,
    EVPN,
    EVPN_KEYS,
    ID,
    NEIGHBOR_KEYS,
    PROCESS_KEYS,
)
from vtep.errors import ConfigError, OptionError, shown

if TYPE_CHECKING:
    import attrs

_SAME_IN_EVPN: Final = {"asn", "listen", "passive"}
"""Keys of the table [evpn] that errors name without `evpn-`."""


def value_error(field: "attrs.Attribute[Any]", value: object) -> ConfigError | None:
    """Return the error of a value for an option, or None if it is valid."""
    convert: Any = field.converter
    try:
        if convert is not None:
            convert(value)
        else:
            option_parsers.check_flag(field.name, value)
    except ConfigError as error:
        return error
    return None


def in_keys(error: ConfigError, written: str | None = None) -> str:
    """Return the message of an error, with options spelled as keys of a file.

    `written` is the value as it is written in the file, if known.
    """
    if not isinstance(error, OptionError):
        return _keys_in(str(error))
    if written is None:
        quoted = error.quoted and isinstance(error.value, str)
        written = repr(error.value) if quoted else shown(error.value)
    message = f"{_keys_in(error.option)} {written}: {_keys_in(error.reason)}"
    pairs = [f"{_key(name)} = {json.dumps(value)}" for name, value in error.instead.items()]
    return f"{message}: {' and '.join(pairs)}" if pairs else message


def _keys_in(text: str) -> str:
    """Return a text with `--option` replaced by the key of that option."""
    return re.sub(r"--([a-z0-9-]+)", lambda found: _key(found[1], found[0]), text)


def _key(name: str, otherwise: str = "") -> str:
    """Return the key of an option, or `otherwise` if it has none."""
    if name == "vni":
        return ID
    if name in CONFIG_KEYS | PROCESS_KEYS or name in _SAME_IN_EVPN:
        return name
    # Options of the table [evpn]: `--evpn-hold-time` is `hold-time` there.
    for prefix, keys in ((f"{EVPN}-neighbor-", NEIGHBOR_KEYS), (f"{EVPN}-", EVPN_KEYS)):
        within = name.removeprefix(prefix)
        if within in keys and within != name:
            return within
    return otherwise


def key_of(what: str) -> str:
    """Return the key that a message begins with."""
    return re.split("[: ]", what, maxsplit=1)[0]
