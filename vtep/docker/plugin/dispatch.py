"""The methods of the Docker plug-in protocol: JSON requests in, JSON responses out. No I/O.

The protocol is that of moby's daemon/libnetwork/docs/remote.md and ipam.md: each method is a path,
such as /NetworkDriver.Join, to which the engine posts a JSON object.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from attrs import frozen

from vtep.errors import VtepError

Method: TypeAlias = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""A function that takes the request of a method and returns its response.

It raises VtepError for a failure, which the engine shows to its user.
"""

CONTENT_TYPE = "application/vnd.docker.plugins.v1.2+json"

_OK, _BAD_REQUEST, _NOT_FOUND, _FAILED = 200, 400, 404, 500


@frozen
class PluginResponse:
    """The response to a request: its HTTP status and its body."""

    status: int
    body: bytes

    @classmethod
    def of_error(cls, status: int, text: str) -> "PluginResponse":
        """Return an answer whose text the engine shows to its user."""
        return cls(status, json.dumps({"Err": text}).encode() + b"\n")


class _Object(dict[str, Any]):
    """A JSON object of a request, whose missing members are mistakes of its sender."""

    def __missing__(self, name: str) -> Any:
        raise _IncompleteError(f"{name}: is missing")


class _IncompleteError(VtepError):
    """A request without a member that its method needs."""


class Dispatcher:
    """A table of methods by name, such as `NetworkDriver.Join`.

    The kinds of plug-in that it implements are the part of the names before the dot.
    """

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self._methods = {"Plugin.Activate": self._activate, **methods}

    def _activate(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        kinds = {name.partition(".")[0] for name in self._methods} - {"Plugin"}
        return {"Implements": sorted(kinds)}

    def answer(self, path: str, body: bytes) -> PluginResponse:
        """Execute the method that a path names. Returns: the answer, also for a failure.

        Only VtepError counts as a failure: any other exception is passed on.
        """
        method = self._methods.get(path.removeprefix("/"))
        if method is None:
            # The status tells the engine that an optional method does not exist; with any other
            # one, it would give up what it is doing.
            return PluginResponse.of_error(_NOT_FOUND, f"pyvtep has no method {path}")
        try:
            request = json.loads(body, object_hook=_Object) if body.strip() else _Object()
        except ValueError:
            request = None
        if not isinstance(request, dict):
            return PluginResponse.of_error(
                _BAD_REQUEST, f"{path}: the request is not a JSON object"
            )
        try:
            response = method(request)
        except _IncompleteError as error:
            return PluginResponse.of_error(_BAD_REQUEST, str(error))
        except VtepError as error:
            return PluginResponse.of_error(_FAILED, str(error))
        return PluginResponse(_OK, json.dumps(response).encode() + b"\n")
