"""The process of the plug-in: its drivers, its server, and its end."""

import logging
import signal
import socket
import threading
from pathlib import Path
from types import FrameType

from vtep.docker.client import EngineClient
from vtep.docker.plugin.dispatch import Dispatcher
from vtep.docker.plugin.driver import NetworkDriver
from vtep.docker.plugin.server import PluginServer
from vtep.docker.plugin.store import JsonStore

log = logging.getLogger("vtep")


def serve(
    plugin_socket: Path,
    engine: EngineClient,
    directory: Path,
    *,
    inherited: socket.socket | None = None,
) -> None:
    """Serve the engine until SIGTERM or SIGINT.

    Networks, bridges and containers stay as they are then. `inherited` is a listening socket of the
    service manager.

    Raises: VtepError if the socket or the state cannot be used.
    """
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    driver = NetworkDriver(JsonStore(directory / "networks.json"), engine)
    dispatcher = Dispatcher(driver.methods)
    with PluginServer(plugin_socket, dispatcher, inherited=inherited) as server:
        threading.Thread(target=server.serve_forever, name="plugin", daemon=True).start()
        log.info("serving the Docker engine at %s", plugin_socket)
        ended.wait()
        server.shutdown()
