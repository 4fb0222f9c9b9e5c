"""The ends of a traced frame: a TAP and sockets in memory, which record what reaches them."""

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from vtep.counters import Drop
from vtep.daemon.build import outer_header_options
from vtep.daemon.port import Port
from vtep.forwarding.fdb import Remote
from vtep.io.binding import Binding
from vtep.io.interfaces import FloodDrop, FloodResult, MtuWatcher, Receiver, Sender
from vtep.io.outer_options import OuterHeaderOptions
from vtep.io.path import FLOW_BITS, POOL_MAX, Path
from vtep.io.sender_sockets import SenderSockets
from vtep.trace.steps import Recorder
from vtep.trace.text import describe_frame
from vtep.wire import Buffer, ecn, outer_header, virtio, vxlan
from vtep.wire.address import version_of
from vtep.wire.ip import UDP_IP_HEADERS_LEN

if TYPE_CHECKING:
    from vtep.io.interfaces import (
        Flooder,
        FloodGroup,
        ReadFrame,
        SocketFactory,
        TapDevice,
        WriteFrame,
    )


class TracedTap:
    """The TAP of a replica. It passes `frame`, if there is one, and records what is written.

    As the kernel does, it refuses frames if it is not `is_up`.
    """

    def __init__(
        self,
        port: Port,
        recorder: Recorder,
        frame: bytes | None = None,
        header: bytes = b"",
        *,
        is_up: bool = True,
    ) -> None:
        self.name = port.tap
        self._is_up = is_up
        self._vni = port.config.vni
        device = port.device
        self.tso, self.uso = device.tso, device.uso
        self.fd = -1
        self.index = device.index
        self.mac = bytes(6)
        self.removed_on_close = False
        self._recorder = recorder
        self._frames = [] if frame is None else [(header or virtio.PLAIN, frame)]
        self._is_receiving = frame is None
        self.read: ReadFrame = self._read
        self.write: WriteFrame = self._write

    def _read(self, buffers: Sequence[bytearray | memoryview]) -> int:
        if not self._frames:
            raise BlockingIOError
        header, frame = self._frames.pop()
        meta, buffer = buffers
        meta[:] = header
        buffer[: len(frame)] = frame
        return len(header) + len(frame)

    def _write(self, buffers: Sequence[Buffer]) -> int:
        header, frame = (bytes(each) for each in buffers)
        if not self._is_up:
            self._recorder.add("deliver", f"refused: {self.name} is down", "the state of the TAP")
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        gso = virtio.unpack(header)
        is_partial = bool(gso.flags & virtio.FLAG_NEEDS_CSUM)
        size = gso.gso_size if gso.gso_type != virtio.GSO_NONE else 0
        notes = [f"superframe of segments of {size} octets"] if size else []
        notes += ["the kernel completes its checksum"] if is_partial else []
        self._recorder.add(
            "deliver" if self._is_receiving else "answer",
            f"written to {self.name}: {'; '.join((describe_frame(frame), *notes))}",
            f"the TAP of VNI {self._vni}",
        )
        self._recorder.written.append(
            {
                "dev": self.name,
                "vni": self._vni,
                "frame": frame.hex(),
                "segment_size": size,
                "is_partial": is_partial,
            }
        )
        return len(header) + len(frame)

    def request_offloads(self, *, tso: bool, uso: bool) -> None:
        """Do nothing: there is no device."""

    def set_persistent(self, *, on: bool) -> None:
        """Do nothing: there is no device."""

    def close(self) -> None:
        """Do nothing: there is no device."""


class TracedSockets:
    """The sockets of a replica: senders that look at those of the VTEP, and send nothing."""

    def __init__(self, port: Port, recorder: Recorder) -> None:
        self._outer = outer_header_options(port.config)
        self._port = port
        self._recorder = recorder

    def open_receiver(
        self,
        binding: Binding,
        port: int,
        *,
        gro: bool,
        zero_checksums: bool = True,
        beside: Iterable[Receiver] = (),
    ) -> Receiver:
        """Raise NotImplementedError: a trace receives nothing."""
        raise NotImplementedError

    def open_sender(
        self,
        binding: Binding,
        outer: OuterHeaderOptions,  # noqa: ARG002  those of the port
        remote: Remote,
        slots: int,  # noqa: ARG002  nothing is opened
        senders: SenderSockets,  # noqa: ARG002
        *,
        gso: bool,  # noqa: ARG002
    ) -> "TracedSender":
        """Return a sender for a remote."""
        return TracedSender(self, remote, binding)

    def open_flooder(
        self,
        bindings: Iterable[Binding],
        outer: OuterHeaderOptions,  # noqa: ARG002  those of the port
        senders: SenderSockets,  # noqa: ARG002  nothing is opened
        *,
        gso: bool,  # noqa: ARG002
    ) -> "TracedFlooder":
        """Return a flooder."""
        return TracedFlooder(self, {binding.version: binding for binding in bindings})

    def send(
        self, remote: Remote, binding: Binding, datagrams: memoryview, stride: int, flow: int
    ) -> Drop | None:
        """Record a send of datagrams to a remote. Returns: the reason if the host would drop it."""
        fields, recorder = flow >> FLOW_BITS, self._recorder
        tos, ttl, label = outer_header.unpack(fields)
        outer, sender = self._outer, self._port.paths.get(remote)
        tos, ttl, label = tos or outer.tos, ttl or outer.ttl, label or outer.flowlabel
        if not ttl and ip_address(remote.host.partition("%")[0]).is_multicast:
            ttl = 1
        df = outer.df or bool(fields & outer_header.DF)
        source, source_port = _address_of(sender, flow)
        # A socket that is opened later finds at least the MTU of the device.
        mtu = (sender.mtu if sender is not None else 0) or self._port.underlay.mtu or 0
        octets = min(stride, len(datagrams)) + UDP_IP_HEADERS_LEN[version_of(remote.host)]
        hexed = [
            bytes(datagrams[at : at + stride]).hex() for at in range(0, len(datagrams), stride)
        ]
        vni = int.from_bytes(datagrams[vxlan.VNI_OFFSET : vxlan.VNI_OFFSET + 3], "big")
        dev = remote.via or binding.dev or self._port.underlay.device_to(remote.host)
        local = str(binding.local) if binding.local is not None else None
        many = f"{len(hexed)} datagrams of up to" if len(hexed) > 1 else "a datagram of"
        ports = outer.srcport
        port = str(source_port or f"from {ports[0]} to {ports[-1]}, chosen at the first send")
        flags = [f"ttl {ttl or 'of the host'}", f"dscp {tos >> 2}", f"ecn {tos & ecn.MASK}"]
        flags += ["DF"] if df else []
        flags += [f"flow label {label:#x}"] if label else []
        state = f"path MTU {mtu}" if source_port else f"no socket is open yet; path MTU {mtu}"
        over = f" over {dev}" if dev is not None else ""
        recorder.add(
            "send",
            f"{many} {octets} octets to {remote.host} port {remote.port}{over}, VNI {vni}",
            f"source port {port} (flow {flow & POOL_MAX - 1}; RFC 7348, section 5); "
            f"{', '.join(flags)}; {state}",
        )
        if dev is None and (missing := self._port.underlay_missing):
            recorder.add("send", "refused: there is no way to this remote", "; ".join(missing))
            return Drop.UNDERLAY_UNREACHABLE
        if df and 0 < mtu < octets:
            return Drop.UNDERLAY_TOO_BIG
        recorder.sent.append(
            {
                "remote": remote.host,
                "port": remote.port,
                "vni": vni,
                "source": source or local,
                "source_port": source_port,
                "flow": flow & POOL_MAX - 1,
                "dev": dev,
                "is_ready": source_port is not None,
                "path_mtu": mtu or None,
                "ttl": ttl or None,
                "dscp": tos >> 2,
                "ecn": tos & ecn.MASK,
                "flowlabel": label,
                "df": df,
                "datagrams": hexed,
            }
        )
        return None


def _address_of(sender: Sender | None, flow: int) -> tuple[str | None, int | None]:
    """Return the source address and port of the socket that is open for a flow, if one is."""
    if isinstance(sender, Path) and (sock := sender.peek(flow)) is not None:
        host, port, *_ = sock.getsockname()
        return host, port
    return None, None


class TracedSender:
    """The path to a remote."""

    last_icmp_error = 0

    def __init__(self, sockets: TracedSockets, remote: Remote, binding: Binding) -> None:
        self.remote: Final = remote
        self.mtu = 0
        self.watchers: Final[list[MtuWatcher]] = []
        self._sockets = sockets
        self._binding = binding

    def send(
        self,
        datagrams: memoryview,
        stride: int,
        flow: int,
        now: float,  # noqa: ARG002
    ) -> tuple[int, Drop | None]:
        """Record a send."""
        lost = self._sockets.send(self.remote, self._binding, datagrams, stride, flow)
        return len(datagrams), lost

    def fileno(self, flow: int) -> int:  # noqa: ARG002
        """Return -1: there is no socket."""
        return -1

    def refresh_route(self) -> None:
        """Do nothing: there is no socket."""

    def close(self) -> None:
        """Do nothing: there is no socket."""


class TracedFlooder:
    """Head-end replication: the same datagrams to many remotes."""

    def __init__(self, sockets: TracedSockets, bindings: Mapping[int, Binding]) -> None:
        self._sockets = sockets
        self._bindings = bindings

    def prepare(self, remotes: Sequence[Remote]) -> "TracedFloodGroup":
        """Return a group of remotes."""
        return TracedFloodGroup(self.send_to, remotes)

    def send_to(self, remote: Remote, datagrams: memoryview, stride: int, flow: int) -> Drop | None:
        """Record a send to one of the remotes."""
        binding = self._bindings[version_of(remote.host)]
        return self._sockets.send(remote, binding, datagrams, stride, flow)

    def close(self) -> None:
        """Do nothing: there is no socket."""


class TracedFloodGroup:
    """A list of remotes."""

    def __init__(
        self,
        send: Callable[[Remote, memoryview, int, int], Drop | None],
        remotes: Sequence[Remote],
    ) -> None:
        self.remotes: Final = tuple(remotes)
        self._send = send

    def send(
        self,
        datagrams: memoryview,
        stride: int,
        flow: int,
        skip: int = 0,  # noqa: ARG002  nothing blocks
    ) -> FloodResult:
        """Record a send to all remotes."""
        count = -(-len(datagrams) // stride)
        lost = [(each, self._send(each, datagrams, stride, flow)) for each in self.remotes]
        drops = [FloodDrop(each, reason, count) for each, reason in lost if reason is not None]
        sent = len(self.remotes) - len(drops)
        return FloodResult(len(datagrams), len(self.remotes), count * sent, drops, -1)


if TYPE_CHECKING:

    def _fulfil(
        tap: TracedTap,
        sockets: TracedSockets,
        sender: TracedSender,
        flooder: TracedFlooder,
        group: TracedFloodGroup,
    ) -> "tuple[TapDevice, SocketFactory, Sender, Flooder, FloodGroup]":
        return tap, sockets, sender, flooder, group
