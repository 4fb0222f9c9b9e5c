"""A connection to rtnetlink, which the functions of this package take.

All that is needed of pyroute2 is imported from here, see `_defer_package`.
"""

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from typing import Any

from vtep import descriptors
from vtep.host.devices import index_by


def _defer_package(name: str) -> None:
    """Enter a package without running its `__init__` before a name of that is used.

    pyroute2's imports all of its 160 modules. The 60 that rtnetlink does not need cost a tenth of
    the time from the start to the first frame.
    """
    spec = find_spec(name)
    if name in sys.modules or spec is None or spec.loader is None:
        return
    package = module_from_spec(spec)
    loader = spec.loader

    def load(attribute: str) -> Any:
        if find_spec(f"{name}.{attribute}") is not None:
            return import_module(f"{name}.{attribute}")
        vars(package).pop("__getattr__", None)
        loader.exec_module(package)
        return getattr(package, attribute)

    vars(package)["__getattr__"] = load  # PEP 562
    sys.modules[name] = package


_defer_package("pyroute2")

from pyroute2.iproute.linux import IPRoute  # noqa: E402  see above
from pyroute2.netlink.exceptions import NetlinkError  # noqa: E402

__all__ = ["IPRoute", "NetlinkError", "device_index", "session"]

_SESSION_DESCRIPTORS = 6
"""An upper bound of the descriptors of one session: an event loop, and pyroute2's sockets."""


def device_index(connection: IPRoute, name: str) -> int | None:
    """Return the index of a device in the namespace of a connection; None if there is none."""
    return index_by(connection.asyncore.socket.fileno(), name)


@contextmanager
def session(sock: int | None = None) -> Iterator[IPRoute]:
    """Open a connection to rtnetlink and close it at the end of the block.

    `sock` is a netlink socket that is open already, and that of another network namespace: it stays
    open. Two sessions at a time must not share one, since each would read the other's replies.

    Raises:
        ShortageError: descriptors ran out, here or in the block.
    """
    # Not asyncio.new_event_loop(): with uvloop's policy installed that returns a uvloop, which
    # supports no netlink sockets.
    with descriptors.explained("look at this host's network"):
        descriptors.require(_SESSION_DESCRIPTORS)
        with closing(asyncio.SelectorEventLoop()) as loop:
            try:
                # pyroute2 owns the descriptor that it gets.
                own = None if sock is None else os.dup(sock)
                with IPRoute(use_event_loop=loop, fileno=own) as netlink:
                    yield netlink
            finally:
                # A closed transport closes its socket only in the next iteration of the loop.
                loop.run_until_complete(asyncio.sleep(0))
