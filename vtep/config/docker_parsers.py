"""Parsers of option values that are about Docker, as in `option_parsers`."""

import re

from vtep.config.option_parsers import is_default
from vtep.errors import OptionError

_DOCKER_SCHEMES = ("unix", "tcp", "http", "https", "ssh", "npipe", "http+unix")
"""Schemes of URLs that the Docker SDK takes."""


def docker_network(value: object) -> str | None:
    """Return a name that Docker accepts for a network; None is none."""
    if is_default(value):
        return None
    if not isinstance(value, str) or not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", value):
        reason = "is not a name that a Docker network can have"
        raise OptionError("--docker-network", value, reason, quoted=True)
    return value


def docker_host(value: object) -> str | None:
    """Return the URL of a Docker engine; None is that of the environment, or the local engine."""
    if is_default(value):
        return None
    scheme, separator, place = value.partition("://") if isinstance(value, str) else ("", "", "")
    if not isinstance(value, str) or not separator or not place or scheme not in _DOCKER_SCHEMES:
        reason = "is not the address of an engine, such as unix:///var/run/docker.sock"
        raise OptionError("--docker-host", value, reason)
    return value
