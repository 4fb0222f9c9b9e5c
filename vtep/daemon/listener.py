"""One socket on the VXLAN port, and the segments that are found behind it by their VNI."""

import logging
import socket
from collections.abc import Callable, Container, Iterable
from contextlib import ExitStack, suppress

from attrs import frozen

from vtep.config import Config
from vtep.counters import Drop
from vtep.daemon.screen import Screen
from vtep.datapath import Inbound
from vtep.errors import NotReadyError, VtepError
from vtep.forwarding.ingress_filter import IngressFilter
from vtep.forwarding.switch import ANYBODY, Segment, Switch
from vtep.host.devices import device_index
from vtep.io.binding import Binding
from vtep.io.error_queue import ICMP_ERRORS, ReturnedDatagram
from vtep.io.interfaces import Receiver, SocketFactory
from vtep.io.shared_socket import SharedSocket
from vtep.io.tap import Tap
from vtep.io.udp import UdpSockets
from vtep.offload.sizing import TunnelSizing
from vtep.tunnel_gso.ack_tracker import AckTracker
from vtep.wire.address import Address
from vtep.wire.echo import EchoMessage

log = logging.getLogger("vtep")

_HOSTS_MAX = 8192
"""Named hosts for which a filter is made: 20 ms of work. With more, it accepts any source."""

_FLOOD = 2000
"""Datagrams a second from unknown sources at which the sockets of groups get a filter."""

_GROUP_SOURCES = 64
"""Prefixes in that filter, which is charged to the socket's option memory."""

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


@frozen
class Endpoint:
    """Where a socket listens: segments that agree on all of it share one."""

    binding: Binding
    port: int
    gro: bool
    zero_checksums: bool

    @classmethod
    def of(cls, config: Config, version: int) -> "Endpoint":
        """Where a segment is listened for over one version of IP."""
        binding = Binding(FAMILY[version], config.local_for(version), config.dev)
        return cls(binding, config.dstport, "gro" in config.offload, config.udp6zerocsumrx)


class Listener:
    """A receiving socket, the switch behind it, and what it takes to keep it the right one.

    Beside that socket there is one for each multicast group that was joined, and one for what is
    to be kept away from them (see `Screen`).

    It may have the port that the sockets `beside` it have: one is to replace the other, or they are
    for different devices. Answers to questions of ours go to `heard` (see `Switch`). Raises
    VtepError, saying what to do, where the port cannot be had. While the own address or the device
    is absent, there is no socket: `follow` opens it when they appear.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        beside: Callable[[Endpoint], Iterable[socket.socket]],
        heard: Callable[[EchoMessage, str, float], None],
        sockets: SocketFactory | None = None,
    ) -> None:
        self._sockets: SocketFactory = sockets if sockets is not None else UdpSockets()
        self.endpoint = endpoint
        self._beside = beside
        self.switch = Switch((), endpoint.port, self._reply, heard)
        self._dev_index: int | None = None
        self.refusal: str | None = None
        """Why the sockets are not all open, or could not be opened anew."""
        self._receiver: Receiver | None = None
        self._shared: SharedSocket | None = None
        self._groups: dict[Address, Receiver | None] = {}
        """The socket of each group; None while there is no receiver, or it could not be joined."""
        try:
            self._receiver = self._open()
            self._dev_index = self._index()
        except NotReadyError as error:
            self.refusal = str(error)
        self._inbound = Inbound(self._receivers(), self.switch, self._cannot_receive)
        self._screen = Screen(self.switch, self._inbound.take, self._report_returned)
        self._filter: IngressFilter | None = None
        self._groups_filtered = False
        self._unknown = 0
        # What the kernel had discarded in front of each socket when it was last asked; and what
        # was found since the last count, of which a filter discarded the second.
        self._drops: dict[Receiver, int] = {}
        self._drops_before = 0
        self._discarded = 0

    def _index(self) -> int | None:
        dev = self.endpoint.binding.dev
        try:
            return device_index(dev) if dev else None
        except OSError:  # Out of descriptors: it is asked again with the next tick.
            return None

    def _open(self) -> Receiver:
        at = self.endpoint
        receiver = self._sockets.open_receiver(
            *(at.binding, at.port),
            gro=at.gro,
            zero_checksums=at.zero_checksums,
            beside=self._beside(at),
        )
        address = receiver.address[0]
        log.debug("listening on %s, UDP port %d, %s", address, at.port, at.binding.dev or "any dev")
        return receiver

    def _join(self, receiver: Receiver, group: Address) -> Receiver:
        at = self.endpoint
        return receiver.join_group(at.binding, group, self._beside(at))

    def _receivers(self) -> list[Receiver]:
        return [sock for sock in (self._receiver, *self._groups.values()) if sock is not None]

    @property
    def is_ready(self) -> bool:
        """Whether all sockets are open."""
        return self._receiver is not None and None not in self._groups.values()

    def join(self, group: Address) -> None:
        """Receive what is sent to a multicast group from now on; raises VtepError."""
        if group not in self._groups:
            sock = None
            if self._receiver is not None:
                try:
                    sock = self._join(self._receiver, group)
                except NotReadyError as error:
                    self.refusal = str(error)
            self._groups[group] = sock
            self._filter_groups(on=False)
            self._inbound.rebind(self._receivers())

    def leave_all_but(self, groups: Container[Address | None]) -> None:
        """Hear only these of the groups that were joined."""
        left = [group for group in self._groups if group not in groups]
        if left:
            sockets = [self._groups.pop(group) for group in left]
            self._inbound.rebind(self._receivers())
            self._discard(filter(None, sockets))

    def _discard(self, sockets: Iterable[Receiver]) -> None:
        for sock in sockets:
            self._drops_before += self._new_drops(sock)
            self._drops.pop(sock, None)
            sock.close()

    def sockets(self, endpoint: Endpoint) -> list[socket.socket]:
        """Return the sockets that have the port that another endpoint is to have."""
        ours = self.endpoint
        same = ours.port == endpoint.port and ours.binding.family == endpoint.binding.family
        if not same or self._receiver is None or self._receiver.sock is None:
            return []
        return [self._receiver.sock, *self._screen.sockets]

    def shared_socket(self, binding: Binding, port: int) -> SharedSocket | None:
        """Return the receiving socket to send from it, if it has this port and can stand in.

        `binding` is that of the socket that would be opened otherwise.
        """
        sock = self._receiver.sock if self._receiver is not None else None
        if port != self.endpoint.port or sock is None:
            return None
        if self._shared is None:
            self._shared = SharedSocket(
                *(sock, self.endpoint.binding),
                *(self._count_returned, self._watch_again),
            )
        return self._shared if self._shared.can_send_as(binding) else None

    def rearm(self) -> None:
        """Watch a shared socket again if that has ended unnoticed: to be called now and then.

        The kernel wakes the event loop some instructions before it sets the error that would be
        noticed.
        """
        if self._shared is not None:
            self._watch_again()

    def _watch_again(self) -> None:
        self._inbound.rebind(self._receivers())

    def _stop_sharing(self) -> None:
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.close()

    @property
    def version(self) -> int:
        """The IP version on which it listens."""
        return 6 if self.endpoint.binding.family == socket.AF_INET6 else 4

    @property
    def joins(self) -> bool:
        """Whether the kernel joins datagrams of one sender, as far as it can be asked."""
        return self.endpoint.gro if self._receiver is None else self._receiver.gro_enabled

    def attach(
        self,
        segment: Segment,
        tap: Tap,
        fit: TunnelSizing,
        tracker: AckTracker,
        turn: Callable[[], None],
    ) -> None:
        """Deliver the frames of a segment to this TAP from now on."""
        if not self.switch.segments:
            self._inbound.start()
        self._inbound.attach(segment, tap, fit, tracker, turn)

    def detach(self, segment: Segment) -> None:
        """Deliver nothing to this segment any more."""
        if self.switch.segments.get(segment.vni) is segment:
            self._inbound.detach(segment)
            if not self.switch.segments:
                self._inbound.stop()
                self._screen.close()

    def close(self) -> None:
        """Receive no more."""
        self._screen.close()
        if self.switch.segments:
            self._inbound.stop()
            self.switch.segments.clear()
        self._stop_sharing()
        for sock in self._receivers():
            sock.close()

    def follow(self) -> bool:
        """Listen on the device that has the name of `--dev` now, and open what was not ready.

        Returns whether sockets that were bound to the device of before are to be closed. Sockets
        are bound to devices by their number.
        """
        dev, index = self.endpoint.binding.dev, self._index()
        moved = index not in (None, self._dev_index)
        if self.is_ready and not moved:
            return False
        before, was_bound = self._receivers(), self._dev_index is not None
        try:
            self._open_anew()
        except VtepError as error:
            # It is tried again with every tick, and logged once. That something is absent is
            # logged by the VNIs that wait for it, unless it is the address on a new device.
            told = str(error) != self.refusal
            self.refusal = str(error)
            if told and moved and was_bound:
                log.warning("--dev %s is another device now, but not ready: %s", dev, error)
            elif told and not isinstance(error, NotReadyError):
                log.warning("cannot listen yet: %s", error)
            return False
        self._dev_index, self.refusal = index, None
        self._stop_sharing()
        self._screen.close()  # It is opened anew with the next update.
        self._inbound.rebind(self._receivers())
        self._discard(before)
        if moved and was_bound:
            log.warning("--dev %s is another device now: using that", dev)
        return moved

    def _open_anew(self) -> None:
        """Have all sockets on the device that is there now, or raise VtepError and have none."""
        with ExitStack() as opened:
            receiver = self._open()
            opened.callback(receiver.close)
            groups: dict[Address, Receiver | None] = {}
            for group in self._groups:
                groups[group] = sock = self._join(receiver, group)
                opened.callback(sock.close)
            opened.pop_all()
        self._receiver, self._groups = receiver, groups

    def _reply(self, datagram: bytes, host: str, port: int) -> None:
        """Answer a doctor; where that can't be sent, he notices."""
        if self._receiver is None:
            return
        try:
            self._receiver.send_unfragmented(datagram, host, port)
        except OSError:
            self._drain_errors()

    # --- what is kept away ------------------------------------------------------------------

    def screen(self, denied: Iterable[int]) -> None:
        """Have the kernel keep away sources that no segment accepts.

        Also everything that arrives by devices of these indices.
        """
        segments = self.switch.segments.values()
        if not segments or self._receiver is None:
            return
        hosts = set[str]().union(*(segment.fdb.sources for segment in segments))
        networks = {network for segment in segments for network in segment.accept}
        # Of very many, the program would accept nearly every source, and take long to make.
        named = hosts if len(hosts) <= _HOSTS_MAX else ()
        if not named and hosts:
            networks.update(ANYBODY)
        wanted = IngressFilter.of(self.version, named, networks, denied)
        if self._receiver.sock is not None:
            self._screen.update(self._receiver.sock, self.endpoint.binding, wanted, hosts)
        if wanted != self._filter:
            self._filter = wanted
            if self._groups_filtered:
                self._filter_groups(on=True)

    def take_suspects(self) -> dict[int, str]:
        """Return hosts that the FDB names, but whose datagrams arrived by a denied device."""
        suspects, self._screen.suspects = self._screen.suspects, {}
        return suspects

    def tick(self) -> None:
        """Do what is due once a second."""
        self._screen.tick()
        if self._groups and self._filter is not None:
            self._follow_floods()

    def _follow_floods(self) -> None:
        """Filter the groups' sockets while they are flooded from unknown sources.

        A multicast datagram goes to each socket of its group, so none can be selected instead. And
        what a filter discards is not told from other losses, nor by its source: so there is none
        while the switch has time to count by itself.
        """
        segments = self.switch.segments.values()
        unknown = sum(each.counters.drops[Drop.SOURCE_UNKNOWN] for each in segments)
        arrived, self._unknown = unknown - self._unknown, unknown
        if self._groups_filtered:
            arrived = self._new_drops(*self._group_sockets())
            self._discarded += arrived
        if (arrived > _FLOOD) is not self._groups_filtered:
            self._filter_groups(on=not self._groups_filtered)

    def _group_sockets(self) -> list[Receiver]:
        return [sock for sock in self._groups.values() if sock is not None]

    def _filter_groups(self, *, on: bool) -> None:
        before, self._groups_filtered = self._groups_filtered, on
        drops = self._new_drops(*self._group_sockets())
        if before:
            self._discarded += drops
        else:
            self._drops_before += drops
        for sock in self._group_sockets():
            with suppress(OSError):
                sock.set_filter(
                    self._filter.coarsened(_GROUP_SOURCES)
                    if on and self._filter is not None
                    else None
                )

    # --- what the kernel counts -------------------------------------------------------------

    def read_queue_drops(self) -> None:
        """Read what the kernel has discarded in front of our descriptors, to be counted next."""
        self._screen.read_drops()
        if self._receiver is not None:
            self._drops_before += self._new_drops(self._receiver)
        in_groups = self._new_drops(*self._group_sockets())
        if self._groups_filtered:
            self._discarded += in_groups
        else:
            self._drops_before += in_groups

    def count_queue_drops(self, overflow: int) -> int:
        """Count what was read, by its reason.

        `overflow` is how many datagrams the kernel has discarded in the whole namespace because a
        queue was full. What is beyond that was discarded for other reasons: a wrong checksum, which
        is counted elsewhere, or a filter of ours. Returns: what is left of `overflow`.
        """
        lost, discarded = self._drops_before, self._discarded
        self._drops_before = self._discarded = 0
        unknown = min(self._screen.take_drops(), overflow)
        overflow -= unknown
        full = min(lost, overflow)
        full_too = min(discarded, overflow - full)
        counts = self.switch.counters.drops
        counts[Drop.RX_QUEUE_FULL] += full + full_too
        counts[Drop.SOURCE_UNKNOWN] += unknown + discarded - full_too
        return overflow - full - full_too

    def _new_drops(self, *sockets: Receiver) -> int:
        """Return how many more datagrams were discarded in front of sockets."""
        drops = 0
        for sock in sockets:
            before = self._drops.get(sock, 0)
            with suppress(OSError):
                self._drops[sock] = sock.queue_drops()
                drops += self._drops[sock] - before
        return drops

    def _cannot_receive(self, error: OSError) -> None:
        """Handle an error of a receiving socket, which may be about datagrams that it has sent."""
        self._drain_errors()
        if self._shared is None or error.errno not in ICMP_ERRORS:
            log.warning("cannot receive from the underlay: %s", error.strerror)

    def _drain_errors(self) -> None:
        """Count the datagrams that came back, and so have the socket not be ready any more."""
        if self._shared is not None:
            self._shared.report(self._shared.returned_datagrams())

    def _report_returned(self, returned: Iterable[ReturnedDatagram]) -> None:
        if self._shared is not None:
            self._shared.report(returned)

    def _count_returned(self, returned: ReturnedDatagram) -> None:
        self.switch.counters.drop(returned.reason, returned.host)
