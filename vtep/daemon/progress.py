"""The progress of the data path, by which a watchdog tells that it is stuck.

A descriptor that stays readable while nothing is read from it means a fault, such as a reader that
the event loop has lost. The counters say whether something was read: every frame and datagram is
counted, also one that is dropped.
"""

from collections.abc import Iterator

from attrs import frozen

from vtep.counters import Counters, Drop
from vtep.daemon.parts import Parts

_BY_KERNEL = frozenset(
    f"drop_{reason}" for reason in (Drop.TAP_QUEUE_FULL, Drop.RX_QUEUE_FULL, Drop.UDP_CHECKSUM)
)
"""Counters that the kernel increases, also while nothing is read."""


@frozen
class Reader:
    """A descriptor that the data path waits for."""

    name: str
    """Its description in messages."""
    fd: int
    handled: int
    """A number that changes whenever something was handled."""
    to_write: bool = False
    """True if it is waited for until it is writable, not readable."""


def readers(parts: Parts) -> Iterator[Reader]:
    """Yield the descriptors that the data path waits for at present."""
    writable = parts.pool.writable
    waiting = writable.descriptors
    for fd in waiting:
        yield Reader(f"the sending socket {fd}", fd, writable.wakes, to_write=True)
    for port in parts.ports:
        # While datagrams wait for room, TAPs are not read: frames queue where senders notice it.
        if not waiting and port.is_open and port.config.vlan is None:
            handled = _handled(port.segment.counters, without="rx_")
            yield Reader(port.tap, port.device.fd, handled)
    for name, trunk in parts.trunks:
        if not waiting:
            handled = _handled(trunk.counters, without="rx_") + sum(
                _handled(port.segment.counters, without="rx_")
                for port in parts.ports
                if port.config.tap == name
            )
            yield Reader(name, trunk.tap.fd, handled)
    for listener in parts.listeners:
        handled = _handled(listener.demux.counters, without="tx_")
        for segment in listener.demux.segments.values():
            handled += _handled(segment.counters, without="tx_")
        for fd in listener.receiving_descriptors:
            yield Reader(f"the socket of UDP port {listener.endpoint.port}", fd, handled)


def _handled(counters: Counters, *, without: str) -> int:
    """Return the sum of the counters, except those of one direction and of the kernel."""
    return sum(
        count
        for name, count in counters.as_dict().items()
        if not name.startswith(without) and name not in _BY_KERNEL
    )
