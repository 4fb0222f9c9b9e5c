"""The control socket of a running VTEP: opens it, and connects server, methods and events."""

import logging
import os
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from vtep.control import socket_files
from vtep.control.access import Group, Policy
from vtep.control.events import Events
from vtep.control.methods import Method, Methods, Reload
from vtep.control.server import Flush, Server
from vtep.control.socket_files import ControlSocket
from vtep.daemon.vtep import Vtep
from vtep.errors import VtepError
from vtep.host.privileges import find_group

log = logging.getLogger("vtep")

AUTO = "auto"
NONE = "none"


@asynccontextmanager
async def serve(  # noqa: PLR0913  keywords, each for a part of the process
    vtep: Vtep,
    where: str,
    reload: Reload,
    flush: Flush,
    *,
    readers: str | None = None,
    changers: str | None = None,
    inherited: ControlSocket | None = None,
    more: Mapping[str, Method] | None = None,
    on_serving: Callable[[Server], None] = lambda _server: None,
) -> AsyncIterator[None]:
    """Serve a control socket meanwhile: `where` is a path, or `auto`, or `none`.

    Members of the group `readers` may read, and those of the group `changers` may change as well.

    `inherited` is a socket that listens already, instead of at `where`. `more` are further
    methods, and `on_serving` is called with the server.

    `flush` waits until changes are on the disk: see `Server`.

    Raises: VtepError if a path cannot be used, or a group does not exist. If the default directory
    cannot be used, a warning is logged, and the VTEP forwards without a control socket.
    """
    policy = Policy(
        os.geteuid(),
        _group("--control-group", readers),
        _group("--control-admin-group", changers),
    )
    gids = [group.gid for group in policy.groups]
    listener = inherited or _listen(vtep, where, gids)
    if listener is None:
        yield
        return
    if inherited is not None:
        inherited.name_this_process()
    methods = Methods(vtep, reload, more)
    server = Server(methods.call, Events(vtep).watch, flush, policy, methods.lasting)
    await server.start(listener)
    on_serving(server)
    try:
        yield
    finally:
        await server.stop()


def _group(option: str, name: str | None) -> Group | None:
    return None if name is None else Group(name, find_group(f"{option} {name}", name))


def _listen(vtep: Vtep, where: str, gids: Collection[int]) -> ControlSocket | None:
    if where == NONE:
        return None
    if where != AUTO:
        return socket_files.listen(Path(where), gids)
    first = next(iter(vtep.ports.values()), None)
    name = first.config.tap if first is not None else "pyvtep"
    try:
        listener, taken = socket_files.listen_by_default(name, gids)
    except VtepError as error:
        log.warning("cannot open a control socket: %s", error)
        return None
    if taken is not None:
        # Most likely by a pyvtep of another network namespace, which shares /run.
        log.warning("%s; using %s instead", taken.problem, listener.path)
    return listener
