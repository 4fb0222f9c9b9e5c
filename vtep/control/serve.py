"""The control socket of a running VTEP, from its file to its end."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from vtep.control import socket_files
from vtep.control.events import Events
from vtep.control.methods import Methods, Reload
from vtep.control.server import Flush, Server
from vtep.control.socket_files import Listener
from vtep.daemon.vtep import Vtep
from vtep.errors import VtepError

log = logging.getLogger("vtep")

AUTO = "auto"
NONE = "none"


@asynccontextmanager
async def serve(vtep: Vtep, where: str, reload: Reload, flush: Flush) -> AsyncIterator[None]:
    """Let a VTEP be steered meanwhile, through the socket PATH, or `auto`, or `none`.

    `flush` waits until changes are kept: see `Server`.

    Raises VtepError where a PATH can't be had. That there can be no socket in the default place is
    said, and no reason not to forward.
    """
    listener = _listen(vtep, where)
    if listener is None:
        yield
        return
    server = Server(Methods(vtep, reload).call, Events(vtep).watch, flush)
    await server.start(listener)
    try:
        yield
    finally:
        await server.stop()


def _listen(vtep: Vtep, where: str) -> Listener | None:
    if where == NONE:
        return None
    if where != AUTO:
        return socket_files.listen(Path(where))
    first = next(iter(vtep.ports.values()), None)
    name = first.config.tap if first is not None else "pyvtep"
    try:
        listener, taken = socket_files.listen_by_default(name)
    except VtepError as error:
        log.warning("there is no control socket: %s", error)
        return None
    if taken is not None:
        # Of another network namespace, most likely: TAPs of one namespace differ.
        log.warning("%s; the control socket is %s", taken, listener.path)
    return listener
