"""A connection to rtnetlink, which the functions of this package take."""

import asyncio
from collections.abc import Iterator
from contextlib import closing, contextmanager

from pyroute2 import IPRoute

from vtep import descriptors

_SESSION_DESCRIPTORS = 6
"""An upper bound of the descriptors of one session: an event loop, and pyroute2's sockets."""


@contextmanager
def session() -> Iterator[IPRoute]:
    """Open a connection to rtnetlink and close it at the end of the block.

    Raises:
        ShortageError: descriptors ran out, here or in the block.
    """
    # Not asyncio.new_event_loop(): with uvloop's policy installed that returns a uvloop, which
    # supports no netlink sockets.
    with descriptors.explained("look at this host's network"):
        descriptors.require(_SESSION_DESCRIPTORS)
        with closing(asyncio.SelectorEventLoop()) as loop:
            try:
                with IPRoute(use_event_loop=loop) as netlink:
                    yield netlink
            finally:
                # A closed transport closes its socket only in the next iteration of the loop.
                loop.run_until_complete(asyncio.sleep(0))
