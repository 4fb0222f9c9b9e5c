"""Interfaces between the data path and the devices and sockets below it.

Each has a real implementation in this package, and one in memory in `vtep.testing`, by which a
whole VTEP runs in a test without root:

============== ================================ ==================
Protocol       real                             in memory
============== ================================ ==================
TapDevice      `vtep.io.tap.Tap`                `MemoryTap`
SocketFactory  `vtep.io.udp.UdpSockets`         `MemoryHost`
Receiver       `vtep.io.receiver.UdpReceiver`   `MemoryReceiver`
Sender         `vtep.io.path.Path`              `MemorySender`
Flooder        `vtep.io.replicator.Replicator`  `MemoryFlooder`
FloodGroup     `vtep.io.replicator.Recipients`  `MemoryFloodGroup`
============== ================================ ==================

The loops of `vtep.datapath` call `read` and `write` of a TAP for each frame. A method would cost a
Python call, so both are attributes that hold a function in C: `os.readv` and `os.writev` of a real
descriptor that keeps frames apart, such as one end of a pair of datagram sockets. Event loops watch
the descriptors, so those must become readable and writable.
"""

import socket
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from vtep.counters import Drop
from vtep.forwarding.fdb import Remote
from vtep.forwarding.ingress_filter import IngressFilter
from vtep.io.binding import Binding
from vtep.io.outer_options import OuterHeaderOptions
from vtep.io.sender_sockets import SenderSockets
from vtep.wire import Buffer
from vtep.wire.address import Address

if TYPE_CHECKING:
    from vtep.io.slots import Slots

Received: TypeAlias = tuple[int, int, str, int, int]
"""The result of `Receiver.receive`: octets, stride, host, port, ECN field.

A plain tuple, since making a named one takes 0.16 us more for each datagram.
"""

ReceivedRun: TypeAlias = tuple[Received, int]
"""Adjacent datagrams that have everything in common, and their number; the octets are of each."""

MtuWatcher: TypeAlias = Callable[[Remote, int], None]
"""Called with a remote and the MTU of the path to it, in octets."""


ReadFrame: TypeAlias = Callable[[Sequence[bytearray | memoryview]], int]
"""Reads one frame into buffers, as os.readv. Returns: its octets. Raises: OSError."""

WriteFrame: TypeAlias = Callable[[Sequence[Buffer]], int]
"""Writes one frame from buffers, as os.writev. Returns: its octets. Raises: OSError."""


class TapDevice(Protocol):
    """A TAP device whose frames have a virtio-net header of `virtio.HEADER_LEN` octets.

    Its descriptor is non-blocking. One read returns one frame, or one superframe, and one write
    takes one. What observes frames replaces `read` and `write`.
    """

    read: ReadFrame
    """Reads the next frame: a virtio header and a frame. The observation point TAP in."""
    write: WriteFrame
    """Writes a virtio header and a frame. The observation point TAP out."""

    @property
    def fd(self) -> int:
        """The descriptor that event loops watch."""

    @property
    def index(self) -> int:
        """The index of the device in the network namespace in which it was opened."""

    @property
    def name(self) -> str:
        """The present name: devices can be renamed. Raises: OSError if the device is gone."""

    @property
    def mac(self) -> bytes:
        """The present MAC address, 6 octets. Raises: OSError if the device is gone."""

    @property
    def tso(self) -> bool:
        """True if the device passes superframes of TCP."""

    @property
    def uso(self) -> bool:
        """True if the device passes superframes of UDP."""

    @property
    def removed_on_close(self) -> bool:
        """True if the kernel removes the device from this network namespace when it is closed."""

    def request_offloads(self, *, tso: bool, uso: bool) -> None:
        """Request superframes of TCP and UDP; `tso` and `uso` say what was granted."""

    def set_persistent(self, *, on: bool) -> None:
        """Make the device outlive this process, or not."""

    def close(self) -> None:
        """Close the descriptor."""


class Receiver(Protocol):
    """A socket that receives the datagrams of one UDP port, or of one multicast group on it."""

    @property
    def sock(self) -> socket.socket | None:
        """The UDP socket, on which options can be set; None if there is none, as in memory."""

    @property
    def address(self) -> tuple[str, int]:
        """The address and the port that it is bound to."""

    @property
    def gro_enabled(self) -> bool:
        """True if one receive may return several datagrams of one sender (UDP_GRO)."""

    def fileno(self) -> int:
        """Return the descriptor that is readable while datagrams wait."""

    def waited(self) -> float:
        """Return how long the datagram that was received last has waited in the queue, in seconds.

        0.0 if that is not known. Raises: OSError.
        """

    def receive(self, buffer: memoryview) -> Received:
        """Receive one datagram, or several of one size from one sender.

        Returns: the octets written to `buffer`; the stride, which is the octets of each datagram
        but the last, which may be shorter; the sender's address and port; the ECN field of the
        outer IP header.
        Raises: BlockingIOError if no datagram waits; OSError.
        """

    def receive_many(self, slots: "Slots") -> list[ReceivedRun]:
        """Receive into slots what as many calls of `receive` would return, in their order.

        Returns: runs of datagrams, in the order of the slots.
        Raises: BlockingIOError if no datagram waits; OSError.
        """

    def join_group(
        self, binding: Binding, group: Address, beside: "Iterable[Receiver]" = ()
    ) -> "Receiver":
        """Return a receiver of a multicast group on the device of `binding`; closing it leaves.

        Raises: VtepError.
        """

    def send_unfragmented(self, datagram: bytes, host: str, port: int) -> None:
        """Send one datagram from this port that is not to be fragmented. Raises: OSError."""

    def set_filter(self, wanted: IngressFilter | None) -> None:
        """Discard datagrams that a filter does not accept; None accepts all. Raises: OSError."""

    def queue_drops(self) -> int:
        """Return how many datagrams were discarded in front of this socket since it was opened."""

    def close(self) -> None:
        """Close the socket."""


class Sender(Protocol):
    """The datagram path to one remote."""

    @property
    def remote(self) -> Remote:
        """The remote that it sends to."""

    @property
    def mtu(self) -> int:
        """Octets of the largest packet to the remote that is known to pass; 0 is unknown."""

    @property
    def last_icmp_error(self) -> int:
        """The errno that the last ICMP error about a datagram stands for; 0 if there was none."""

    @property
    def watchers(self) -> list[MtuWatcher]:
        """Called when `mtu` becomes known or changes."""

    def send(
        self, datagrams: memoryview, stride: int, flow: int, now: float
    ) -> tuple[int, Drop | None]:
        """Send as many datagrams as one system call takes.

        Args:
            datagrams: datagrams of `stride` octets each; the last may be shorter.
            stride: octets of each datagram.
            flow: `FLOW_BITS` of the flow hash, which select the source port, and above them the
                packed outer header fields (see `vtep.wire.outer_header`).
            now: seconds of the monotonic clock.

        Returns: the octets done with, and the drop reason if they were not sent. With 0 octets, the
        reason is about datagrams of an earlier call, and the call is to be repeated.
        Raises: BlockingIOError if the send buffer is full: nothing was sent, and `fileno` becomes
        writable when there is room.
        """

    def fileno(self, flow: int) -> int:
        """Return the descriptor that `send` used last for a flow; -1 if it is closed."""

    def refresh_route(self) -> None:
        """Look up the path MTU and the source address again."""

    def close(self) -> None:
        """Close the sockets. The next `send` opens new ones."""


class FloodDrop(NamedTuple):
    """Datagrams to one remote that a flood, or an earlier one, could not deliver."""

    remote: Remote
    reason: Drop
    datagrams: int
    is_earlier: bool = False
    """True if an ICMP error has returned them, so that an earlier flood has sent them."""


class FloodResult(NamedTuple):
    """The result of sending a batch to all remotes of a `FloodGroup`."""

    octets: int
    """The octets done with; 0 if the send buffer was full before all remotes had the batch."""
    sent_to: int
    """The number of remotes, from the first on, that had the batch."""
    datagrams: int
    """The number of datagrams sent, counting each copy."""
    drops: Sequence[FloodDrop]
    blocked_fd: int
    """The descriptor that becomes writable when there is room, if `octets` is 0; else -1."""


class FloodGroup(Protocol):
    """A list of remotes prepared for head-end replication."""

    @property
    def remotes(self) -> tuple[Remote, ...]:
        """The remotes in the order in which they are sent to."""

    def send(self, datagrams: memoryview, stride: int, flow: int, skip: int = 0) -> FloodResult:
        """Send as many datagrams as one message takes to all remotes but the first `skip`.

        `datagrams`, `stride` and `flow` are as in `Sender.send`. If the send buffer was full, the
        call is to be repeated with `skip` set to `sent_to`. So each remote gets all in order.
        """


class Flooder(Protocol):
    """Sockets for head-end replication: the same datagrams to many remotes."""

    def prepare(self, remotes: Sequence[Remote]) -> FloodGroup:
        """Prepare to send to remotes. Raises: OSError if the device of a scope id is absent."""

    def close(self) -> None:
        """Close the sockets. The next send opens new ones."""


class SocketFactory(Protocol):
    """The sockets of one host: where receivers, senders and flooders come from."""

    def open_receiver(
        self,
        binding: Binding,
        port: int,
        *,
        gro: bool,
        zero_checksums: bool = True,
        beside: Iterable[Receiver] = (),
    ) -> Receiver:
        """Open a receiver on a UDP port, which the receivers in `beside` may have as well.

        Raises: VtepError.
        """

    def open_sender(
        self,
        binding: Binding,
        outer: OuterHeaderOptions,
        remote: Remote,
        slots: int,
        senders: SenderSockets,
        *,
        gso: bool,
    ) -> Sender:
        """Return the datagram path to a remote, with up to `slots` source ports."""

    def open_flooder(
        self,
        bindings: Iterable[Binding],
        outer: OuterHeaderOptions,
        senders: SenderSockets,
        *,
        gso: bool,
    ) -> Flooder:
        """Return a flooder with one binding for each IP version in use."""
