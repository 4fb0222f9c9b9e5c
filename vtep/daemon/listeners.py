"""The listeners of a process: opened when a VNI needs one, shared by VNIs, closed when idle."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from vtep.config import Config
from vtep.daemon.build import outer_header_options
from vtep.daemon.listener import Endpoint, Listener
from vtep.daemon.network import HostNetwork
from vtep.daemon.port import Port
from vtep.datapath.pool import Pool
from vtep.io.binding import Binding
from vtep.io.inherited import Inherited
from vtep.io.interfaces import Receiver, SocketFactory
from vtep.io.shared_socket import SharedSocket
from vtep.wire.echo import EchoMessage

if TYPE_CHECKING:
    from vtep.fastpath.table import FastPath


class Listeners:
    """The listeners of one process by endpoint.

    Echo replies are passed to `on_reply`.
    """

    def __init__(
        self,
        network: HostNetwork,
        sockets: SocketFactory,
        pool: Pool,
        on_reply: Callable[[EchoMessage, str, float], None],
        inherited: Inherited,
    ) -> None:
        self._inherited = inherited
        self._network = network
        self._sockets = sockets
        self._pool = pool
        self._on_reply = on_reply
        self._fast: FastPath | None = None
        self._is_paused = False
        self._by_endpoint: dict[Endpoint, Listener] = {}
        # With --srcport 4789 4789, a sender needs the port on which a listener receives.
        pool.senders.find_shared = self._shared_socket

    def __iter__(self) -> Iterator[Listener]:
        return iter(self._by_endpoint.values())

    def open_all(self, config: Config, versions: Iterable[int]) -> tuple[Listener, ...]:
        """Return the listeners of a segment over these IP versions, opened if needed.

        Raises: VtepError if a port cannot be bound, or if --srcport has no usable port.
        """
        listeners = tuple(self.open(config, version) for version in versions)
        ports = outer_header_options(config).srcport
        for listener in listeners:
            self._pool.senders.check(listener.endpoint.binding, ports)
        return listeners

    def open(self, config: Config, version: int) -> Listener:
        """Return the listener of a segment over one IP version, opened if needed.

        Side effect: joins the multicast group of the configuration.
        Raises: VtepError.
        """
        endpoint = Endpoint.of(config, version)
        listener = self._by_endpoint.get(endpoint)
        if listener is None:
            # A sender may have bound the port as one of --srcport.
            self._pool.senders.vacate(endpoint.binding.family, endpoint.port)
            listener = Listener(
                *(endpoint, self._receivers_on_port, self._on_reply),
                *(self._network, self._sockets, self._inherited),
            )
            listener.use_fast_path(self._fast)
            if self._is_paused:
                listener.pause()
            self._by_endpoint[endpoint] = listener
        if config.group is not None and config.group.version == version:
            listener.join(config.group)
        return listener

    def use_fast_path(self, fast: "FastPath | None") -> None:
        """Receive with compiled turns, or without; listeners that are opened later, too."""
        self._fast = fast
        for listener in self:
            listener.use_fast_path(fast)

    def pause(self) -> None:
        """Receive nothing until `resume`, also with listeners that are opened meanwhile."""
        self._is_paused = True
        for listener in self:
            listener.pause()

    def resume(self) -> None:
        """Receive again."""
        self._is_paused = False
        for listener in self:
            listener.resume()

    def close_idle(self, ports: Iterable[Port]) -> None:
        """Close the listeners that none of the ports uses, and leave the groups that none uses."""
        ports = tuple(ports)
        for endpoint, listener in tuple(self._by_endpoint.items()):
            if not listener.demux.segments:
                listener.close()
                del self._by_endpoint[endpoint]
            else:
                users = [port for port in ports if listener in port.listeners]
                listener.leave_all_but({port.config.group for port in users})

    def close(self) -> None:
        """Close all."""
        for listener in self:
            listener.close()

    def release_guards(self) -> None:
        """Close the guard sockets, and leave their filters to another process that has them."""
        for listener in self:
            listener.release_guard()

    def _shared_socket(self, binding: Binding, port: int) -> SharedSocket | None:
        """Return the receiving socket that can send from a port; None if there is none."""
        found = (listener.shared_socket(binding, port) for listener in self)
        return next(filter(None, found), None)

    def _receivers_on_port(self, endpoint: Endpoint) -> list[Receiver]:
        """Return the receivers that are bound to the UDP port of an endpoint."""
        return [each for other in self for each in other.receivers_on_port(endpoint)]
