"""Send superframes to one remote with tunnel GSO, as if they came from the sockets of its path."""

import errno
import logging
import random
import socket
from ipaddress import ip_address
from typing import Final, Protocol

from vtep.io.outer_options import OuterHeaderOptions
from vtep.io.path import FLOW_BITS, Path
from vtep.io.shared_socket import SendingSocket, connected
from vtep.offload.headers import SegmentPlan
from vtep.tunnel_gso.encoder import OuterHeader, OuterHeaderWriter, ProbePacket
from vtep.tunnel_gso.state import GsoProber, RemoteState
from vtep.wire import outer_header, virtio
from vtep.wire.address import without_scope

log = logging.getLogger("vtep")

_QUEUE_FULL = frozenset((errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM))

_WRITERS_MAX = 256
"""Flows whose outer headers are kept."""


class SuperframeDevice(Protocol):
    """A device that superframes are written to, behind their outer headers."""

    @property
    def mac(self) -> bytes:
        """The MAC address of the device, 6 octets."""

    def write(self, headers: bytearray, prefix: bytes, frame: bytes | memoryview) -> None:
        """Send a superframe behind its headers. Raises: OSError; then it was not sent."""


class SuperframeSender(Protocol):
    """A path with tunnel GSO, as far as the data path uses it."""

    @property
    def gso(self) -> RemoteState:
        """The state of the remote, which says which superframes may be sent."""

    def send(
        self,
        prefix: bytes,
        frame: memoryview,
        plan: SegmentPlan,
        gso: virtio.Header,
        flow: int,
        now: float,
    ) -> bool:
        """Send a superframe; see `TunnelGsoPath.send`."""

    def send_next(self, prefix: bytes, frame: memoryview) -> bool:
        """Send a superframe like the last one; see `TunnelGsoPath.send_next`."""


class TunnelGsoPath:
    """The path to one remote by the private TAP device, beside the path by UDP sockets.

    It sends every superframe that it is given. Which superframes may be sent is in `gso`, and is
    decided by the prober (see `.state`).
    """

    def __init__(
        self,
        path: Path,
        options: OuterHeaderOptions,
        device: SuperframeDevice,
        prober: "GsoProber[TunnelGsoPath]",
    ) -> None:
        self.gso: Final = RemoteState()
        self.host: Final = path.remote.host
        self.binding: Final = path.binding
        self.device: Final = device
        self.sent = 0
        """The number of superframes sent."""
        self._path = path
        self._options = options
        self._prober = prober
        self._egress = 0
        self._writers: dict[int, tuple[SendingSocket, OuterHeaderWriter]] = {}
        # Of the last superframe that was sent, for `send_next`.
        self._last_writer: OuterHeaderWriter
        self._last_at = 0.0

    # --- for the data path ------------------------------------------------------------------

    def request(self, reply_port: int) -> None:
        """Start capability probing. Echo replies go to our UDP `reply_port`."""
        self._prober.request(self, reply_port)

    def send(
        self,
        prefix: bytes,
        frame: memoryview,
        plan: SegmentPlan,
        gso: virtio.Header,
        flow: int,
        now: float,
    ) -> bool:
        """Send a superframe behind `prefix`, the VXLAN header.

        `encoder.gso_eligible` holds for `plan` and `gso`; `flow` is as in `Path.send`.

        Returns: False if it was not sent, and has to be segmented.
        """
        sent = self._send(prefix, frame, plan, gso, flow, now)
        self.sent += sent
        return sent

    def send_next(self, prefix: bytes, frame: memoryview) -> bool:
        """Send a superframe for which all arguments of the last `send`, and its length, hold.

        It is called in the same turn of the loop, so that the state has not changed since.

        Returns: False if it was not sent, and has to be segmented.
        """
        try:
            self.device.write(self._last_writer.write_next(), prefix, frame)
        except OSError as error:
            self._on_error(error, self._last_at)
            return False
        self.sent += 1
        return True

    # --- for the prober ---------------------------------------------------------------------

    def use_egress(self, index: int) -> None:
        """Send through the egress device of this index from now on."""
        self._egress = index
        # Even if it is the same device, the source address may have changed.
        self._writers.clear()

    def send_probe(self, request: bytes, packet: ProbePacket, now: float) -> None:
        """Send an echo request with a probe packet behind it. It may get lost unnoticed."""
        sent = self._send(request, *packet, 0, now)
        log.debug(
            "tunnel GSO probe to %s: %s, %d octets",
            *(self.host, "sent" if sent else "failed", len(packet.frame)),
        )

    def on_max_len_changed(self) -> None:
        """Log which superframes are sent from now on."""
        if self.gso.enabled:
            log.debug(
                "tunnel GSO to %s enabled: superframes of up to %d octets",
                *(self.host, self.gso.max_len),
            )
        else:
            log.debug("tunnel GSO to %s disabled: superframes are segmented here", self.host)
            # The source address may have changed when superframes are sent again.
            self._writers.clear()

    def warn_of_losses(self) -> None:
        """Log that tunnel GSO is suspended because superframes are lost."""
        log.warning(
            "offload tnl suspended to %s: superframes are lost; it is tried again now and then",
            self.host,
        )

    # --- sending ----------------------------------------------------------------------------

    def _send(
        self,
        prefix: bytes,
        frame: bytes | memoryview,
        plan: SegmentPlan,
        gso: virtio.Header,
        flow: int,
        now: float,
    ) -> bool:
        try:
            sender = self._path.socket(flow, now)
            known = self._writers.get(flow)
            if known is not None and known[0] is sender:
                writer = known[1]
            else:
                writer = self._add_writer(flow, sender)
            headers = writer.write(plan, len(prefix), len(frame), gso)
            if headers is None:
                return False
            self.device.write(headers, prefix, frame)
        except OSError as error:
            self._on_error(error, now)
            return False
        self._last_writer, self._last_at = writer, now
        return True

    def _on_error(self, error: OSError, now: float) -> None:
        """Suspend tunnel GSO, unless the queue of the egress device is full at the moment."""
        if error.errno in _QUEUE_FULL:
            return
        self._writers.clear()  # A header that the kernel refuses is not to be written again.
        if self.gso.enabled:
            log.warning(
                "offload tnl suspended to %s: %s; it is tried again in a minute",
                *(self.host, error.strerror),
            )
        self._prober.on_send_failed(self, now)

    def _add_writer(self, flow: int, sender: SendingSocket) -> OuterHeaderWriter:
        """Make the writer of outer headers for a flow. Raises: OSError."""
        if len(self._writers) >= _WRITERS_MAX:
            self._writers.clear()
        source_port: int = sender.getsockname()[1]
        with connected(sender) as sock:
            writer = OuterHeaderWriter(self._outer_header(flow, sock, source_port))
        self._writers[flow] = sender, writer
        return writer

    def _outer_header(self, flow: int, sock: socket.socket, source_port: int) -> OuterHeader:
        """Return the outer header that the kernel would write for a sender of the path.

        So datagrams of a flow do not differ by whether they were sent with tunnel GSO: routers see
        one flow, and a firewall one connection. `sock` is connected to the remote. It need not be
        the sender, nor have its options. Raises: OSError.
        """
        options = self._options
        tos, ttl, flowlabel = outer_header.unpack(flow >> FLOW_BITS)
        (source, *_), (destination, port, *_) = sock.getsockname(), sock.getpeername()
        if sock.family == socket.AF_INET6:
            default_ttl = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
        else:
            default_ttl = sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL)
        return OuterHeader(
            dst_mac=self.device.mac,
            egress=self._egress,
            source=without_scope(ip_address(source)),
            destination=without_scope(ip_address(destination)),
            source_port=source_port,
            port=port,
            tos=tos or options.tos,
            ttl=ttl or options.ttl or default_ttl,
            flowlabel=flowlabel or options.flowlabel,
            df=options.df or Path.wants_df(flow),
            checksum=options.has_checksum(sock.family),
            # A random start keeps the identifications of several flows apart.
            first_id=random.getrandbits(16),
        )
