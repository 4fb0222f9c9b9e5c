"""The process of the plug-in: its drivers, its server, its threads and its end."""

import logging
import select
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from vtep.docker.client import EngineClient
from vtep.docker.ipam.driver import IpamDriver
from vtep.docker.plugin.dispatch import Dispatcher
from vtep.docker.plugin.driver import NetworkDriver
from vtep.docker.plugin.keeper import NetworkKeeper
from vtep.docker.plugin.server import PluginServer
from vtep.docker.plugin.store import JsonStore
from vtep.host.netlink_events import subscribe_links

log = logging.getLogger("vtep")

_DEBOUNCE_S = 0.5
"""Interval for link events: each start of a container brings a dozen of them."""


def serve(
    plugin_socket: Path,
    engine: EngineClient,
    directory: Path,
    *,
    daemon_socket: Path | None = None,
    on_ready: Callable[[], object] = lambda: None,
) -> None:
    """Serve the engine until SIGTERM or SIGINT.

    Networks, bridges and containers stay as they are then. VNIs are added to the daemon at
    `daemon_socket`; without it, `host_daemon.join` finds one. `on_ready` is called once the
    engine can connect.

    Raises: VtepError if the socket or the state cannot be used.
    """
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    addresses = IpamDriver(JsonStore(directory / "addresses.json"))
    keeper = NetworkKeeper(
        *(JsonStore(directory / "networks.json"), engine, [addresses]), daemon_socket=daemon_socket
    )
    dispatcher = Dispatcher(NetworkDriver(keeper).methods | addresses.methods)
    with PluginServer(plugin_socket, dispatcher) as server:
        addresses.start()
        # Daemon threads: they wait for the engine, for daemons and for the kernel, maybe for ever.
        # The engine is served first: it waits for us before it answers to others.
        _start(server.serve_forever)
        _start(keeper.keep)
        _start(lambda: _watch_links(keeper.wake))
        _start(lambda: engine.watch(keeper.on_engine_change, lambda: None))
        log.info("serving the Docker engine at %s", plugin_socket)
        on_ready()
        ended.wait()
        server.shutdown()
        addresses.close()


def _start(function: Callable[[], object]) -> None:
    threading.Thread(target=function, daemon=True).start()


def _watch_links(on_change: Callable[[], object]) -> None:
    """Call a function after changes of the network devices of this host, for ever."""
    with subscribe_links() as events:
        while True:
            select.select([events], [], [])
            threading.Event().wait(_DEBOUNCE_S)
            while select.select([events], [], [], 0)[0]:
                events.recv(1 << 16)
            on_change()
