"""The speaker's own socket, for `pyvtep evpn show` and `evpn clear`.

Long answers, such as of 10,000 routes, thus never delay the daemon. Access is that of the control
socket.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vtep.control import socket_files
from vtep.control.access import Group, Policy
from vtep.control.evpn_schema import EVPN_VIEWS
from vtep.control.jsonrpc import Code, Pages, RpcError
from vtep.control.params import Params
from vtep.control.server import Server
from vtep.errors import ConfigError
from vtep.evpn.speaker_config import SOCKET_SUFFIX
from vtep.host.privileges import find_group

_PAGE = 100
"""Rows that are encoded at a time: a millisecond."""

Show = Callable[[str, int | None, int | None, bytes | None], Any]
"""Returns a view: its name, and the VNI, the route type and the MAC to select."""

Clear = Callable[[bytes, int | None], int]
"""Releases a duplicate MAC, in a VNI or in all. Returns: how many were released."""


class SpeakerSocket:
    """A server with the methods `ping`, `evpn.show` and `evpn.clear`."""

    def __init__(self, show: Show, clear: Clear) -> None:
        self._show = show
        self._clear = clear
        self._server: Server | None = None

    async def start(self, control: Path, readers: str | None, changers: str | None) -> None:
        """Listen beside a control socket. Raises: VtepError."""
        policy = Policy(
            os.geteuid(),
            _group("--control-group", readers),
            _group("--control-admin-group", changers),
        )
        path = control.with_suffix(SOCKET_SUFFIX)
        listening = socket_files.listen(path, [group.gid for group in policy.groups])
        server = Server(self._call, lambda _: _nothing, _flushed, policy)
        await server.start(listening)
        self._server = server

    async def stop(self) -> None:
        """Disconnect all clients, and remove the file."""
        if self._server is not None:
            await self._server.stop()

    async def _call(self, name: str, given: dict[str, Any]) -> Any:
        match name:
            case "ping":
                return True
            case "evpn.show":
                return self._view(_checked(name, given, ("what", "vni", "type", "mac")))
            case "evpn.clear":
                params = _checked(name, given, ("mac", "vni"))
                return {"cleared": self._clear(params.mac(), params.vni())}
        raise RpcError(Code.METHOD_NOT_FOUND, f"{name}: there is no such method")

    def _view(self, given: Params) -> Any:
        what = given.text("what") or "summary"
        if what not in EVPN_VIEWS:
            raise ConfigError(f"what {what}: must be one of {', '.join(EVPN_VIEWS)}")
        kind = given.number("type", 1, 255)
        mac = None if given.text("mac") is None else given.mac()
        found = self._show(what, given.vni(), kind, mac)
        return Pages(_pages(found)) if isinstance(found, list) else found


def _pages(rows: list[Any]) -> Iterator[list[Any]]:
    for begin in range(0, len(rows), _PAGE):
        yield rows[begin : begin + _PAGE]


def _checked(name: str, given: Mapping[str, Any], takes: tuple[str, ...]) -> Params:
    for parameter in given:
        if parameter not in takes:
            known = ", ".join(takes)
            raise ConfigError(f"{parameter}: is not a parameter of {name}, which takes {known}")
    return Params(given)


def _group(option: str, name: str | None) -> Group | None:
    return None if name is None else Group(name, find_group(f"{option} {name}", name))


async def _flushed() -> None:
    pass


def _nothing() -> None:
    pass
