"""The receiving sockets of one UDP port, and the demux that finds the segment of each datagram."""

import logging
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from attrs import frozen

from vtep.config import Config
from vtep.counters import Drop
from vtep.daemon.network import HostNetwork
from vtep.daemon.punt_socket import PuntSocket
from vtep.datapath import Ingress
from vtep.datapath.observers import IngressObserver
from vtep.errors import NotReadyError, VtepError
from vtep.forwarding.demux import Demux
from vtep.forwarding.ingress_filter import IngressFilter
from vtep.forwarding.policy import ANY_SOURCE
from vtep.forwarding.segment import Segment
from vtep.io.addresses import FAMILY
from vtep.io.binding import Binding
from vtep.io.error_queue import ICMP_ERRORS, ReturnedDatagram
from vtep.io.inherited import Inherited, group_role, guard_role, receiver_role
from vtep.io.interfaces import Receiver, SocketFactory, TapDevice
from vtep.io.receiver import UdpReceiver
from vtep.io.shared_socket import SharedSocket
from vtep.offload.sizing import TunnelSizing
from vtep.ratelimit import LineLimit
from vtep.tunnel_gso.ack_tracker import AckTracker
from vtep.wire.address import Address
from vtep.wire.echo import EchoMessage

if TYPE_CHECKING:
    from vtep.fastpath.table import FastPath

log = logging.getLogger("vtep")

_SOURCES_MAX = 8192
"""Known sources for which a filter is made, in 20 ms. With more, it accepts any source."""

_FLOOD_RATE = 2000
"""Datagrams a second from unknown sources at which the sockets of groups get a filter."""

_GROUP_SOURCES = 64
"""Prefixes in that filter, which is charged to the socket's option memory."""


@frozen
class Endpoint:
    """The properties of a receiver: segments that agree on all of them share one."""

    binding: Binding
    port: int
    gro: bool
    zero_checksums: bool

    @classmethod
    def of(cls, config: Config, version: int) -> "Endpoint":
        """Return the endpoint of a segment over one version of IP."""
        binding = Binding(FAMILY[version], config.local_for(version), config.dev)
        return cls(binding, config.dstport, "gro" in config.offload, config.udp6zerocsumrx)

    @property
    def role(self) -> str:
        """The role of the receiver, under which it can be inherited."""
        return receiver_role(
            self.binding, self.port, gro=self.gro, zero_checksums=self.zero_checksums
        )


class Listener:
    """The receiver of an endpoint, one socket for each multicast group, and the demux behind them.

    Sockets are bound to a device by its index, and to an own address while it exists. While the
    device or the address is absent, there is no socket; `reopen` opens it later, and binds it anew
    when a device was re-created.

    `receivers_on_port` returns the receivers that have the port of an endpoint. Another listener
    may have it for another device, or until it is replaced by this one. Sockets that are in
    `inherited` are taken from there. Echo replies are passed to
    `on_reply` (see `Demux`). Raises VtepError, with a remedy, if the port cannot be bound.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        receivers_on_port: Callable[[Endpoint], Iterable[Receiver]],
        on_reply: Callable[[EchoMessage, str, float], None],
        network: HostNetwork,
        sockets: SocketFactory,
        inherited: Inherited,
    ) -> None:
        self.endpoint = endpoint
        self._inherited = inherited
        self._receivers_on_port = receivers_on_port
        self._network = network
        self._sockets = sockets
        self.demux = Demux((), endpoint.port, self.send_echo, on_reply)
        self._dev_index: int | None = None
        self.refusal: str | None = None
        """Why the sockets could not be opened at the last try; None if they are open."""
        self._receiver: Receiver | None = None
        self._shared: SharedSocket | None = None
        self._groups: dict[Address, Receiver | None] = {}
        """The socket of each group; None if there is no receiver, or it could not be joined."""
        try:
            self._receiver = self._open()
            self._dev_index = self._find_dev()
        except NotReadyError as error:
            self.refusal = str(error)
        self._ingress = Ingress(self._receivers(), self.demux, self._on_receive_error)
        self._punt = PuntSocket(
            *(self.demux, self._ingress.handle_datagram, self._report_returned),
            inherited.take(guard_role(endpoint.role)),
        )
        self.on_reply_sent: Callable[[bytes, str, int], None] = _ignore
        """Called with each echo reply that was sent, and its destination, for an observer."""
        self.filter: IngressFilter | None = None
        """The sources and devices whose datagrams the kernel delivers; None until it is known."""
        self._groups_filtered = False
        self._unknown = 0
        self._kernel_drops: dict[Receiver, int] = {}
        self._lines = LineLimit()
        """The kernel's drop counter of each socket when it was last read."""
        # Drops that were read since the last count: before sockets without a filter, and with one.
        self._drops_unfiltered = 0
        self._drops_filtered = 0

    # --- sockets ------------------------------------------------------------------------------

    def _find_dev(self) -> int | None:
        dev = self.endpoint.binding.dev
        try:
            return self._network.device_index(dev) if dev else None
        except OSError:  # No descriptor to ask with: the next tick asks again.
            return None

    def _open(self) -> Receiver:
        at = self.endpoint
        fd = self._inherited.take(at.role)
        if fd is not None:
            return UdpReceiver.adopt(fd)
        receiver = self._sockets.open_receiver(
            *(at.binding, at.port),
            gro=at.gro,
            zero_checksums=at.zero_checksums,
            beside=self._receivers_on_port(at),
        )
        address = receiver.address[0]
        log.debug("listening on %s, UDP port %d, %s", address, at.port, at.binding.dev or "any dev")
        return receiver

    def _join(self, receiver: Receiver, group: Address) -> Receiver:
        at = self.endpoint
        fd = self._inherited.take(group_role(at.role, group))
        if fd is not None:
            return UdpReceiver.adopt(fd)
        return receiver.join_group(at.binding, group, self._receivers_on_port(at))

    def _receivers(self) -> list[Receiver]:
        return [sock for sock in (self._receiver, *self._groups.values()) if sock is not None]

    def use_fast_path(self, fast: "FastPath | None") -> None:
        """Receive with compiled turns, or without."""
        self._ingress.use_fast_path(fast)

    @property
    def receiving_descriptors(self) -> list[int]:
        """The descriptors of the sockets that are received from; empty without a segment."""
        return [sock.fileno() for sock in self._receivers()] if self.demux.segments else []

    @property
    def is_ready(self) -> bool:
        """True if all sockets are open."""
        return self._receiver is not None and None not in self._groups.values()

    @property
    def version(self) -> int:
        """The IP version of the endpoint."""
        return self.endpoint.binding.version

    @property
    def groups(self) -> frozenset[Address]:
        """The multicast groups that are joined, or will be once the device is there."""
        return frozenset(self._groups)

    @property
    def gro_enabled(self) -> bool:
        """True if the kernel coalesces datagrams (UDP_GRO); as configured if there is no socket."""
        return self.endpoint.gro if self._receiver is None else self._receiver.gro_enabled

    def join(self, group: Address) -> None:
        """Receive datagrams to a multicast group. Raises: VtepError."""
        if group not in self._groups:
            sock = None
            if self._receiver is not None:
                try:
                    sock = self._join(self._receiver, group)
                except NotReadyError as error:
                    self.refusal = str(error)
            self._groups[group] = sock
            self._filter_groups(on=False)
            self._ingress.rebind(self._receivers())

    def leave_all_but(self, groups: Container[Address | None]) -> None:
        """Leave the joined multicast groups that are not among these."""
        left = [group for group in self._groups if group not in groups]
        if left:
            sockets = [self._groups.pop(group) for group in left]
            self._ingress.rebind(self._receivers())
            self._discard(filter(None, sockets))

    def _discard(self, sockets: Iterable[Receiver]) -> None:
        """Close sockets, after their drops were read."""
        for sock in sockets:
            self._drops_unfiltered += self._new_drops(sock)
            self._kernel_drops.pop(sock, None)
            sock.close()

    def descriptors(self) -> Iterator[tuple[str, int]]:
        """Yield role and descriptor of each open socket."""
        for role, sock in self._sockets_by_role().items():
            yield role, sock.fileno()
        if (fd := self._punt.fd) is not None:
            yield guard_role(self.endpoint.role), fd

    def _sockets_by_role(self) -> dict[str, Receiver]:
        role = self.endpoint.role
        found = {group_role(role, group): sock for group, sock in self._groups.items()}
        return {
            role: sock for role, sock in {role: self._receiver, **found}.items() if sock is not None
        }

    def receivers_on_port(self, endpoint: Endpoint) -> list[Receiver]:
        """Return the receivers of this listener that are bound to the UDP port of an endpoint."""
        ours = self.endpoint
        same = ours.port == endpoint.port and ours.binding.family == endpoint.binding.family
        if not same or self._receiver is None:
            return []
        return [self._receiver, *self._punt.receivers]

    def shared_socket(self, binding: Binding, port: int) -> SharedSocket | None:
        """Return the receiver as a socket to send from, if it has this source port.

        `binding` is that of the sender. Returns: None if the receiver cannot send as that.
        """
        sock = self._receiver.sock if self._receiver is not None else None
        if port != self.endpoint.port or sock is None:
            return None
        if self._shared is None:
            self._shared = SharedSocket(
                *(sock, self.endpoint.binding),
                *(self._count_returned, self._rebind),
            )
        return self._shared if self._shared.can_send_as(binding) else None

    def rearm(self) -> None:
        """Register a shared socket with the event loop again: to be called once a second.

        uvloop drops a socket after an EPOLLERR, and the kernel wakes it shortly before it sets the
        error, so the drop may go unnoticed.
        """
        if self._shared is not None:
            self._rebind()

    def _rebind(self) -> None:
        self._ingress.rebind(self._receivers())

    def _stop_sharing(self) -> None:
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.close()

    def reopen(self) -> bool:
        """Open the sockets that are not open yet, and bind all anew if the device was re-created.

        Returns: whether other sockets that are bound to the former device are to be closed.
        """
        dev, index = self.endpoint.binding.dev, self._find_dev()
        moved = index not in (None, self._dev_index)
        if self.is_ready and not moved:
            return False
        before, was_bound = self._receivers(), self._dev_index is not None
        try:
            self._open_anew()
        except VtepError as error:
            # Each tick tries again, and the log has it once. The ports that wait for an absent
            # device or address log that themselves, unless it is the address on a new device.
            is_news = str(error) != self.refusal
            self.refusal = str(error)
            if is_news and moved and was_bound:
                log.warning("--dev %s was re-created, but is not ready: %s", dev, error)
            elif is_news and not isinstance(error, NotReadyError):
                log.warning("cannot listen yet: %s", error)
            return False
        self._dev_index, self.refusal = index, None
        self._stop_sharing()
        self._punt.close()  # The next update of the filter makes a new one.
        self._rebind()
        self._discard(before)
        if moved and was_bound:
            log.warning("--dev %s was re-created; rebinding", dev)
        return moved

    def _open_anew(self) -> None:
        """Open a receiver and a socket for each group, in place of the former ones.

        Raises: VtepError, and has opened nothing.
        """
        with ExitStack() as opened:
            receiver = self._open()
            opened.callback(receiver.close)
            groups: dict[Address, Receiver | None] = {}
            for group in self._groups:
                groups[group] = sock = self._join(receiver, group)
                opened.callback(sock.close)
            opened.pop_all()
        self._receiver, self._groups = receiver, groups

    def close(self) -> None:
        """Close all sockets."""
        self._punt.close()
        if self.demux.segments:
            self._ingress.stop()
            self.demux.segments.clear()
        self._stop_sharing()
        for sock in self._receivers():
            sock.close()

    def pause(self) -> None:
        """Leave all datagrams in the sockets until `resume`."""
        self._ingress.pause()
        self._punt.pause()

    def resume(self) -> None:
        """Receive again. The next `set_filter` applies the filter, whatever it was before."""
        self._ingress.resume()
        self._punt.resume()

    def release_guard(self) -> None:
        """Close the guard socket, and leave its filter to another process that has it, too."""
        self._punt.release()

    @property
    def kernel_drops(self) -> dict[str, int]:
        """The kernel's drop counter of each receiver and group when it was last read, by role."""
        return {
            role: self._kernel_drops.get(sock, 0) for role, sock in self._sockets_by_role().items()
        }

    @kernel_drops.setter
    def kernel_drops(self, drops: Mapping[str, int]) -> None:
        for role, sock in self._sockets_by_role().items():
            if role in drops:
                self._kernel_drops[sock] = drops[role]

    # --- segments -----------------------------------------------------------------------------

    def attach(
        self,
        segment: Segment,
        tap: TapDevice,
        sizing: TunnelSizing,
        tracker: AckTracker,
        turn: Callable[[], None],
        *,
        fast_path: bool,
    ) -> None:
        """Deliver the frames of a segment to a TAP (see `Ingress.attach`)."""
        if not self.demux.segments:
            self._ingress.start()
        self._ingress.attach(segment, tap, sizing, tracker, turn, fast_path=fast_path)

    def detach(self, segment: Segment) -> None:
        """Deliver no more frames of a segment."""
        if self.demux.segments.get(segment.vni) is segment:
            self._ingress.detach(segment)
            if not self.demux.segments:
                self._ingress.stop()
                self._punt.close()

    def send_echo(self, datagram: bytes, host: str, port: int) -> None:
        """Send an echo reply or request. If that fails, the sender of the request has no reply."""
        if self._receiver is None:
            return
        try:
            self._receiver.send_unfragmented(datagram, host, port)
        except OSError:
            self._drain_errors()
        else:
            self.on_reply_sent(datagram, host, port)

    def observe(self, observer: IngressObserver | None) -> None:
        """Show an observer all that is received; None ends that. See `Ingress.observe`."""
        self._ingress.observe(observer)
        if observer is None:
            self.on_reply_sent = _ignore

    # --- the ingress filter -------------------------------------------------------------------

    def set_filter(self, denied: Iterable[int]) -> None:
        """Keep datagrams from unknown sources, and from denied devices, away from the receiver.

        The kernel does so, by a filter that it runs for each datagram. `denied` are the indices of
        the devices.
        """
        segments = self.demux.segments.values()
        if not segments or self._receiver is None:
            return
        hosts = set[str]().union(*(segment.fdb.members.hosts for segment in segments))
        networks = {network for segment in segments for network in segment.accept}
        # The program has a limited length, so for very many sources it becomes so coarse that it
        # accepts nearly all, and takes long to make.
        sources = hosts if len(hosts) <= _SOURCES_MAX else ()
        if not sources and hosts:
            networks.update(ANY_SOURCE)
        wanted = IngressFilter.of(self.version, sources, networks, denied)
        if self._receiver.sock is not None:
            self._punt.update(self._receiver.sock, self.endpoint.binding, wanted, hosts)
        if wanted != self.filter:
            self.filter = wanted
            if self._groups_filtered:
                self._filter_groups(on=True)

    def take_suspects(self) -> dict[int, str]:
        """Return known sources whose datagrams arrived on a denied device, by device."""
        suspects, self._punt.suspects = self._punt.suspects, {}
        return suspects

    def tick(self) -> None:
        """Refill the budget of the punt socket, and update the filters of the groups.

        To be called once a second.
        """
        self._punt.tick()
        if self._groups and self.filter is not None:
            self._update_group_filters()

    def _update_group_filters(self) -> None:
        """Filter the groups' sockets while they are flooded from unknown sources.

        The kernel delivers a multicast datagram to each socket of its group, so it cannot be
        steered to the punt socket. A filter in front of a socket discards it, and the kernel counts
        that together with other losses, and without the source. So there is no filter while the
        rate is low, and the demux counts each datagram.
        """
        segments = self.demux.segments.values()
        unknown = sum(each.counters.drops[Drop.SOURCE_UNKNOWN] for each in segments)
        arrived, self._unknown = unknown - self._unknown, unknown
        if self._groups_filtered:
            arrived = self._new_drops(*self._group_sockets())
            self._drops_filtered += arrived
        if (arrived > _FLOOD_RATE) is not self._groups_filtered:
            self._filter_groups(on=not self._groups_filtered)

    def _group_sockets(self) -> list[Receiver]:
        return [sock for sock in self._groups.values() if sock is not None]

    def _filter_groups(self, *, on: bool) -> None:
        before, self._groups_filtered = self._groups_filtered, on
        drops = self._new_drops(*self._group_sockets())
        if before:
            self._drops_filtered += drops
        else:
            self._drops_unfiltered += drops
        for sock in self._group_sockets():
            with suppress(OSError):
                sock.set_filter(
                    self.filter.coarsened(_GROUP_SOURCES)
                    if on and self.filter is not None
                    else None
                )

    # --- the kernel's drop counters -----------------------------------------------------------

    def read_queue_drops(self) -> None:
        """Read how many datagrams the kernel has discarded in front of the sockets."""
        self._punt.read_drops()
        if self._receiver is not None:
            self._drops_unfiltered += self._new_drops(self._receiver)
        in_groups = self._new_drops(*self._group_sockets())
        if self._groups_filtered:
            self._drops_filtered += in_groups
        else:
            self._drops_unfiltered += in_groups

    def count_queue_drops(self, overflow: int) -> int:
        """Count the drops that were read, by reason.

        `overflow` is how many datagrams of the whole namespace found a queue full and are not
        attributed to a socket yet. Drops beyond that had other causes: a wrong checksum, which is
        counted for the namespace, or a filter.
        Returns: the rest of `overflow`.
        """
        unfiltered, filtered = self._drops_unfiltered, self._drops_filtered
        self._drops_unfiltered = self._drops_filtered = 0
        # The punt socket overflows by design: its datagrams are from unknown sources.
        unknown = min(self._punt.take_drops(), overflow)
        overflow -= unknown
        full = min(unfiltered, overflow)
        full_filtered = min(filtered, overflow - full)
        counts = self.demux.counters.drops
        counts[Drop.RX_QUEUE_FULL] += full + full_filtered
        counts[Drop.SOURCE_UNKNOWN] += unknown + filtered - full_filtered
        return overflow - full - full_filtered

    def _new_drops(self, *sockets: Receiver) -> int:
        """Return how many more datagrams were discarded in front of sockets since the last call."""
        drops = 0
        for sock in sockets:
            before = self._kernel_drops.get(sock, 0)
            with suppress(OSError):
                self._kernel_drops[sock] = sock.queue_drops()
                drops += self._kernel_drops[sock] - before
        return drops

    # --- socket errors ------------------------------------------------------------------------

    def _on_receive_error(self, error: OSError) -> None:
        """Handle an error of a receiving socket, which may concern datagrams sent from it."""
        self._drain_errors()
        if self._shared is None or error.errno not in ICMP_ERRORS:
            left_out = self._lines.admit(time.monotonic(), error.errno)
            if left_out is not None:
                log.warning("cannot receive from the underlay: %s%s", error.strerror, left_out)

    def _drain_errors(self) -> None:
        """Count the datagrams that came back as ICMP errors: they keep the socket readable."""
        if self._shared is not None:
            self._shared.report(self._shared.returned_datagrams())

    def _report_returned(self, returned: Iterable[ReturnedDatagram]) -> None:
        if self._shared is not None:
            self._shared.report(returned)

    def _count_returned(self, returned: ReturnedDatagram) -> None:
        self.demux.counters.drop(returned.reason, returned.host)


def _ignore(_datagram: bytes, _host: str, _port: int) -> None:
    """Ignore a reply: nothing observes it."""
