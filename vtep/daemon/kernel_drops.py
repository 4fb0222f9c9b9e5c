"""Counts the frames and datagrams that the kernel discarded before this process could read them."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from vtep.counters import Counters, Drop
from vtep.daemon.listeners import Listeners
from vtep.daemon.network import HostNetwork
from vtep.daemon.ports import Ports

if TYPE_CHECKING:
    from vtep.io.udp_statistics import UdpErrors

_VERSIONS = (4, 6)


class KernelDrops:
    """Moves the kernel's drop counters into those of the ports, the listeners and the namespace."""

    def __init__(self, network: HostNetwork, ports: Ports, listeners: Listeners) -> None:
        self.namespace = Counters()
        """Drops of the whole network namespace, which no listener or port can be charged with."""
        self._network = network
        self._ports = ports
        self._listeners = listeners
        self._udp_errors: dict[int, UdpErrors] = {}
        self._overflow: dict[int, int] = {}

    def start(self) -> None:
        """Read the counters of the namespace, so that only what follows is counted."""
        self._read_udp_errors()

    def count(self) -> None:
        """Count all drops up to now."""
        for _ in self.counting():
            pass

    def counting(self) -> Iterator[None]:
        """Count all drops up to now, in steps of some ten microseconds."""
        self._count_datagrams()
        yield
        for each in tuple(self._ports):
            if each.place.namespace is not None:  # With counters of its own.
                each.counters()
                yield
        ports = {port.tap: port for port in self._ports if port.place.namespace is None}
        with suppress(OSError):
            for name, drops in self._network.tap_queue_drops():
                port = ports.get(name)
                if port is not None:
                    port.count_queue_drops(drops)
                yield

    def _read_udp_errors(self) -> None:
        for version in _VERSIONS:
            with suppress(OSError, ValueError):  # There may be no /proc, or no IPv6.
                self._udp_errors[version] = self._network.udp_errors(version)

    def _count_datagrams(self) -> None:
        """Count the discarded datagrams, each under one reason.

        The kernel has one drop counter for each socket, which has several causes (full queue, wrong
        checksum, a filter), and one counter for each cause, but only for the whole namespace. So
        the drops of the sockets are attributed to a full queue as far as the namespace has that
        many, and the rest to other causes.
        """
        for listener in self._listeners:
            listener.read_queue_drops()
        before = self._udp_errors.copy()
        self._read_udp_errors()
        for version in _VERSIONS:
            listeners = [each for each in self._listeners if each.version == version]
            now = self._udp_errors.get(version)
            if now is None:  # Unknown: attribute all drops to a full queue.
                overflow = sys.maxsize
            else:
                was = before.get(version, now)
                overflow = max(0, now.overflow - was.overflow)
                if listeners:
                    wrong = max(0, now.checksum - was.checksum)
                    self.namespace.drops[Drop.UDP_CHECKSUM] += wrong
            # The two kinds of counters are not read at one instant: a datagram may be in this one
            # already and in that of its socket the next time. So one remainder is carried over.
            left = self._overflow.get(version, 0) + overflow
            for listener in listeners:
                left = listener.count_queue_drops(left)
            self._overflow[version] = min(left, overflow)
