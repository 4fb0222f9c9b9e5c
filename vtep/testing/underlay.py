"""An underlay in memory that loses, repeats and reorders datagrams as a test wants it.

Hosts on it open receivers, senders and flooders as `vtep.io.udp.UdpSockets` does, so a `Pool` and a
`Listener`, or the data path alone, run on them. All happens at once and in one thread: a datagram
waits at its receiver when `send` returns. The same seed gives the same faults::

    underlay = MemoryUnderlay(faults=Faults(loss=0.1), seed=7)
    with closing(underlay):
        one, two = underlay.add_host("192.0.2.1"), underlay.add_host("192.0.2.2")
        receiver = two.open_receiver(Binding(socket.AF_INET, None, None), 4789, gro=True)
        pool = Pool(sockets=one)  # Its paths send from 192.0.2.1.
        ingress = Ingress([receiver], demux, on_error)

Descriptors are real, so that event loops can watch them: that of a receiver is readable while
datagrams wait, and that of a sender is always writable. A send buffer is full when `has_room` of
the host says so.
"""

import errno
import os
import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from attrs import frozen

from vtep.counters import Drop
from vtep.errors import NotReadyError, VtepError
from vtep.forwarding.fdb import Remote
from vtep.forwarding.ingress_filter import IngressFilter
from vtep.io.binding import Binding
from vtep.io.interfaces import FloodDrop, FloodResult, MtuWatcher, Received, ReceivedRun
from vtep.io.outer_options import OuterHeaderOptions
from vtep.io.path import FLOW_BITS, batch_max
from vtep.io.sender_sockets import SenderSockets
from vtep.io.slots import Slots
from vtep.wire import ecn, outer_header
from vtep.wire.address import Address, version_of
from vtep.wire.ip import UDP_IP_HEADERS_LEN

if TYPE_CHECKING:
    from vtep.io.interfaces import Flooder, FloodGroup, Receiver, Sender, SocketFactory

SocketAddress: TypeAlias = tuple[str, int]
"""An address without a scope, and a UDP port."""

_QUEUE_MAX = 1 << 16
"""Datagrams that may wait at a receiver."""

_GRO_DATAGRAMS_MAX = 64
_GRO_OCTETS_MAX = 65535

_ANY_DEVICE = 0


@frozen
class Faults:
    """The probabilities, from 0 to 1, by which an underlay mistreats each datagram."""

    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    """That it overtakes the datagram that waits in front of it, if one does."""


class Transmission(NamedTuple):
    """The datagrams of one send to one remote, before any of them is lost."""

    source: SocketAddress
    destination: SocketAddress
    ecn: int
    """The ECN field of the outer IP header."""
    datagrams: tuple[bytes, ...]


class _Queued(NamedTuple):
    """A datagram that waits at a receiver."""

    source: SocketAddress
    ecn: int
    data: bytes


class MemoryUnderlay:
    """A network in memory, and the owner of its hosts.

    Args:
        faults: may be replaced at any time.
        seed: of the random numbers that faults are drawn from.
        mtu: octets of the largest packet that passes; may be changed at any time.
        gro: whether the devices of the hosts join datagrams for receivers that want it.
    """

    def __init__(
        self, *, faults: Faults | None = None, seed: int = 0, mtu: int = 1500, gro: bool = True
    ) -> None:
        self.gro: Final = gro
        self.faults = faults if faults is not None else Faults()
        self.mtu = mtu
        self.trace: Final[list[Transmission]] = []
        """All that was sent, in order. A test may clear it."""
        self.lost = self.duplicated = self.reordered = 0
        """The numbers of datagrams that had each fault."""
        self.unreachable = 0
        """The number of datagrams to an address and port on which no receiver is open."""
        self._random = random.Random(seed)  # noqa: S311  repeatable, not secret
        self._hosts: list[MemoryHost] = []
        self._receivers: dict[SocketAddress, MemoryReceiver] = {}
        self._members: defaultdict[SocketAddress, list[MemoryReceiver]] = defaultdict(list)

    def add_host(self, *addresses: str) -> "MemoryHost":
        """Add a host with these addresses, of any IP version."""
        host = MemoryHost(self, addresses)
        self._hosts.append(host)
        return host

    def close(self) -> None:
        """Close all hosts with their receivers."""
        for host in self._hosts:
            host.close()
        self._hosts.clear()

    def transmit(self, host: "MemoryHost", transmission: Transmission) -> None:
        """Deliver datagrams from a host, with faults."""
        self.trace.append(transmission)
        destination = transmission.destination
        receivers = [each for each in self._members[destination] if each.host is not host]
        if destination in self._receivers:
            receivers.append(self._receivers[destination])
        if not receivers:
            self.unreachable += len(transmission.datagrams)
            return
        for data in transmission.datagrams:
            queued = _Queued(transmission.source, transmission.ecn, data)
            for receiver in receivers:
                self._deliver(receiver, queued)

    def _deliver(self, receiver: "MemoryReceiver", queued: _Queued) -> None:
        faults, draw = self.faults, self._random.random
        # One number for each fault, so that a change of one of them leaves the others as they are.
        lost, duplicated, reordered = (
            draw() < faults.loss,
            draw() < faults.duplication,
            draw() < faults.reordering,
        )
        if lost:
            self.lost += 1
            return
        for _ in range(1 + duplicated):
            self.reordered += receiver.enqueue(queued, overtake=reordered)
        self.duplicated += duplicated

    def attach(
        self,
        receiver: "MemoryReceiver",
        addresses: Sequence[SocketAddress],
        beside: "Sequence[Receiver]" = (),
    ) -> None:
        """Deliver to a receiver the datagrams to unicast addresses.

        Raises: VtepError if one that is not in `beside` is open on one of them.
        """
        for host, port in addresses:
            found = self._receivers.get((host, port))
            if found is not None and found not in beside:
                raise VtepError(f"--dstport {port}: this UDP port is taken on this host")
        self._receivers.update(dict.fromkeys(addresses, receiver))

    def join(self, receiver: "MemoryReceiver", group: SocketAddress) -> None:
        """Deliver to a receiver the datagrams to a multicast group that other hosts send."""
        self._members[group].append(receiver)

    def detach(self, receiver: "MemoryReceiver") -> None:
        """Deliver nothing to a receiver any more."""
        for address in [at for at, each in self._receivers.items() if each is receiver]:
            del self._receivers[address]
        for members in self._members.values():
            if receiver in members:
                members.remove(receiver)


class MemoryHost:
    """A host on an underlay in memory. It is a `SocketFactory`."""

    def __init__(self, underlay: MemoryUnderlay, addresses: Iterable[str]) -> None:
        self.underlay: Final = underlay
        self.addresses: Final = list(addresses)
        """The addresses of the host. A test may add and remove some, as an administrator can."""
        self.has_room: Callable[[], bool] = lambda: True
        """Called for each send to a remote. If it returns False, the send buffer is full."""
        # The kernel reports an eventfd as writable unless its counter is at the maximum.
        self.writable_fd: Final = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """A descriptor that is always writable, for callers that wait for room."""
        self._closed = False
        self._receivers: list[MemoryReceiver] = []

    def source(self, binding: Binding) -> str | None:
        """Return the source address of a binding; None if this host has none."""
        own = [each for each in self.addresses if version_of(each) == binding.version]
        if binding.local is None:
            return own[0] if own else None
        return str(binding.local) if str(binding.local) in own else None

    def open_receiver(
        self,
        binding: Binding,
        port: int,
        *,
        gro: bool,
        zero_checksums: bool = True,  # noqa: ARG002  nothing here has a checksum
        beside: "Iterable[Receiver]" = (),
    ) -> "MemoryReceiver":
        """Open a receiver on a UDP port, which takes over from a receiver in `beside`.

        Raises: NotReadyError if the host does not have the own address; VtepError if the port is
        taken.
        """
        source = self.source(binding)
        if source is None:
            reason = os.strerror(errno.EADDRNOTAVAIL)
            raise NotReadyError(f"--dstport {port}: cannot bind to it: {reason}")
        version = version_of(source)
        own = [each for each in self.addresses if version_of(each) == version]
        hosts = own if binding.local is None else [source]
        receiver = MemoryReceiver(self, binding, (source, port), gro=gro)
        try:
            self.underlay.attach(receiver, [(host, port) for host in hosts], tuple(beside))
        except VtepError:
            receiver.close()
            raise
        return receiver

    def open_sender(
        self,
        binding: Binding,
        outer: OuterHeaderOptions,
        remote: Remote,
        slots: int,
        senders: SenderSockets,  # noqa: ARG002  nothing here is a socket
        *,
        gso: bool,
    ) -> "MemorySender":
        """Return the datagram path to a remote."""
        return MemorySender(self, binding, outer, remote, slots, gso=gso)

    def open_flooder(
        self,
        bindings: Iterable[Binding],
        outer: OuterHeaderOptions,
        senders: SenderSockets,  # noqa: ARG002  nothing here is a socket
        *,
        gso: bool,
    ) -> "MemoryFlooder":
        """Return a flooder with one binding for each IP version in use."""
        return MemoryFlooder(self, bindings, outer, gso=gso)

    def add_receiver(self, receiver: "MemoryReceiver") -> None:
        """Close a receiver when this host is closed."""
        self._receivers.append(receiver)

    def close(self) -> None:
        """Close all receivers of this host, and its descriptor."""
        for receiver in self._receivers:
            receiver.close()
        if not self._closed:
            self._closed = True
            os.close(self.writable_fd)


class MemoryReceiver:
    """A receiver on an underlay in memory.

    With `gro`, one receive returns all datagrams of one size and source that wait one behind the
    other, as the kernel's GRO may.
    """

    def __init__(
        self, host: MemoryHost, binding: Binding, address: SocketAddress, *, gro: bool
    ) -> None:
        self.host: Final = host
        self.address: Final = address
        self.gro_enabled: Final = gro
        self._binding = binding
        self._queue: deque[_Queued] = deque()
        self._filter: IngressFilter | None = None
        self._drops = 0
        self.waited_s = 0.0
        """The result of `waited`."""
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        host.add_receiver(self)

    @property
    def sock(self) -> None:
        """No UDP socket."""
        return None

    def fileno(self) -> int:
        """Return the descriptor that is readable while datagrams wait; -1 if it is closed."""
        return self._fd

    def enqueue(self, queued: _Queued, *, overtake: bool = False) -> bool:
        """Queue a datagram here, unless it is filtered or the queue is full.

        Returns: whether it has overtaken another one.
        """
        rejected = self._filter is not None and not self._filter.accepts(
            queued.source[0], _ANY_DEVICE
        )
        if rejected or self._fd < 0 or len(self._queue) >= _QUEUE_MAX:
            self._drops += 1
            return False
        overtaken = overtake and bool(self._queue)
        if overtaken:
            self._queue.insert(-1, queued)
        else:
            self._queue.append(queued)
        if len(self._queue) == 1:
            os.eventfd_write(self._fd, 1)
        return overtaken

    @property
    def is_empty(self) -> bool:
        """True if no datagram waits."""
        return not self._queue

    def waited(self) -> float:
        """Return how long the last datagram has waited, as it was set: it really waits for none."""
        return self.waited_s

    def receive(self, buffer: memoryview) -> Received:
        """Receive one datagram, or several of one size and source; see `Receiver.receive`."""
        if not self._queue:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        first = self._queue.popleft()
        stride = octets = len(first.data)
        buffer[:octets] = first.data
        if self.gro_enabled and self.host.underlay.gro and stride:
            octets_max = min(len(buffer), _GRO_OCTETS_MAX, _GRO_DATAGRAMS_MAX * stride)
            while self._queue and octets % stride == 0:
                following = self._queue[0]
                end = octets + len(following.data)
                if (
                    following[:2] != first[:2]
                    or not 0 < len(following.data) <= stride
                    or end > octets_max
                ):
                    break
                self._queue.popleft()
                buffer[octets:end] = following.data
                octets = end
        if not self._queue:
            os.eventfd_read(self._fd)
        (host, port), ecn_field, _ = first
        return octets, stride, host, port, ecn_field

    def receive_many(self, slots: Slots) -> list[ReceivedRun]:
        """Receive into slots until these are full or nothing waits; see `Receiver.receive_many`."""
        slots.empty()
        octets = memoryview(bytearray(_GRO_OCTETS_MAX))
        received: list[Received] = []
        while len(received) < slots.count and (self._queue or not received):
            received.append(self.receive(octets))
            slots.put(len(received) - 1, octets[: received[-1][0]])
        slots.fit([each[0] for each in received])
        return [(each, len([*same])) for each, same in groupby(received)]

    def join_group(
        self,
        binding: Binding,
        group: Address,
        beside: "Iterable[Receiver]" = (),  # noqa: ARG002  any number may join
    ) -> "MemoryReceiver":
        """Return a receiver of a multicast group on the port of this one."""
        address = str(group), self.address[1]
        member = MemoryReceiver(self.host, binding, address, gro=self.gro_enabled)
        self.host.underlay.join(member, address)
        return member

    def send_unfragmented(self, datagram: bytes, host: str, port: int) -> None:
        """Send one datagram from this port. Raises: OSError with EMSGSIZE if it is too large."""
        underlay = self.host.underlay
        if len(datagram) + UDP_IP_HEADERS_LEN[version_of(host)] > underlay.mtu:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        source = self.host.source(self._binding) or self.address[0]
        destination = host.partition("%")[0], port
        underlay.transmit(
            self.host, Transmission((source, self.address[1]), destination, 0, (datagram,))
        )

    def set_filter(self, wanted: IngressFilter | None) -> None:
        """Discard datagrams that a filter does not accept; None accepts all."""
        self._filter = wanted

    def queue_drops(self) -> int:
        """Return how many datagrams were discarded here since it was opened."""
        return self._drops

    def close(self) -> None:
        """Close the receiver. Datagrams to it are unreachable then."""
        self.host.underlay.detach(self)
        self._queue.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _MemorySocket:
    """The part that senders and flooders have in common: one send of one host to one remote."""

    def __init__(self, host: MemoryHost, outer: OuterHeaderOptions, *, gso: bool) -> None:
        self._host = host
        self._outer = outer
        self._gso = gso

    def _batch_octets(self, datagrams: memoryview, stride: int) -> int:
        return min(len(datagrams), batch_max(stride) if self._gso else stride)

    def _transmit(
        self, binding: Binding, remote: Remote, batch: memoryview, stride: int, flow: int, port: int
    ) -> Drop | None:
        """Send datagrams. Returns: the reason if they were dropped here."""
        source = self._host.source(binding)
        if source is None:
            return Drop.UNDERLAY_UNREACHABLE
        fields = flow >> FLOW_BITS
        df = self._outer.df or bool(fields & outer_header.DF)
        length = UDP_IP_HEADERS_LEN[version_of(source)] + min(stride, len(batch))
        if df and length > self._host.underlay.mtu:
            return Drop.UNDERLAY_TOO_BIG
        tos = outer_header.unpack(fields).tos or self._outer.tos
        datagrams = tuple(bytes(batch[at : at + stride]) for at in range(0, len(batch), stride))
        destination = remote.host.partition("%")[0], remote.port
        self._host.underlay.transmit(
            self._host, Transmission((source, port), destination, tos & ecn.MASK, datagrams)
        )
        return None


class MemorySender(_MemorySocket):
    """The datagram path to one remote on an underlay in memory; see `Sender`.

    A slot of the flow hash has the source port of the same number in the range.
    """

    last_icmp_error = 0

    def __init__(
        self,
        host: MemoryHost,
        binding: Binding,
        outer: OuterHeaderOptions,
        remote: Remote,
        slots: int,
        *,
        gso: bool,
    ) -> None:
        super().__init__(host, outer, gso=gso)
        self.remote: Final = remote
        self.mtu = 0
        self.watchers: Final[list[MtuWatcher]] = []
        self._binding = binding
        self._slots = slots

    def send(
        self,
        datagrams: memoryview,
        stride: int,
        flow: int,
        now: float,  # noqa: ARG002
    ) -> tuple[int, Drop | None]:
        """Send as many datagrams as one system call takes; see `Sender.send`."""
        if not self._host.has_room():
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        if not self.mtu:
            self.refresh_route()
        octets = self._batch_octets(datagrams, stride)
        ports = self._outer.srcport
        port = ports[(flow & self._slots - 1) % len(ports)]
        reason = self._transmit(self._binding, self.remote, datagrams[:octets], stride, flow, port)
        return octets, reason

    def fileno(self, flow: int) -> int:  # noqa: ARG002
        """Return a descriptor that is always writable."""
        return self._host.writable_fd

    def refresh_route(self) -> None:
        """Look up the MTU of the underlay again."""
        if self.mtu != self._host.underlay.mtu:
            self.mtu = self._host.underlay.mtu
            for watcher in self.watchers:
                watcher(self.remote, self.mtu)

    def close(self) -> None:
        """Do nothing: there is no socket."""


class MemoryFlooder(_MemorySocket):
    """Head-end replication on an underlay in memory; see `Flooder`."""

    def __init__(
        self,
        host: MemoryHost,
        bindings: Iterable[Binding],
        outer: OuterHeaderOptions,
        *,
        gso: bool,
    ) -> None:
        super().__init__(host, outer, gso=gso)
        self._bindings = {binding.version: binding for binding in bindings}

    def prepare(self, remotes: Sequence[Remote]) -> "MemoryFloodGroup":
        """Prepare to send to remotes."""
        return MemoryFloodGroup(self, remotes)

    def flood(
        self, remotes: Sequence[Remote], datagrams: memoryview, stride: int, flow: int, skip: int
    ) -> FloodResult:
        """Send to all remotes but the first `skip`; see `FloodGroup.send`."""
        octets = self._batch_octets(datagrams, stride)
        count = -(-octets // stride)
        port = self._outer.srcport[flow % len(self._outer.srcport)]
        sent = 0
        drops: list[FloodDrop] = []
        for number, remote in enumerate(remotes[skip:], skip):
            if not self._host.has_room():
                return FloodResult(0, number, sent, drops, self._host.writable_fd)
            binding = self._bindings[version_of(remote.host)]
            reason = self._transmit(binding, remote, datagrams[:octets], stride, flow, port)
            if reason is None:
                sent += count
            else:
                drops.append(FloodDrop(remote, reason, count))
        return FloodResult(octets, len(remotes), sent, drops, -1)

    def close(self) -> None:
        """Do nothing: there is no socket."""


class MemoryFloodGroup:
    """Remotes that a `MemoryFlooder` sends to, in the order in which they were given."""

    def __init__(self, flooder: MemoryFlooder, remotes: Sequence[Remote]) -> None:
        self.remotes: Final = tuple(remotes)
        self._flooder = flooder

    def send(self, datagrams: memoryview, stride: int, flow: int, skip: int = 0) -> FloodResult:
        """Send to all remotes but the first `skip`; see `FloodGroup.send`."""
        return self._flooder.flood(self.remotes, datagrams, stride, flow, skip)


if TYPE_CHECKING:

    def _fulfil(
        host: MemoryHost,
        receiver: MemoryReceiver,
        sender: MemorySender,
        flooder: MemoryFlooder,
        group: MemoryFloodGroup,
    ) -> "tuple[SocketFactory, Receiver, Sender, Flooder, FloodGroup]":
        return host, receiver, sender, flooder, group
