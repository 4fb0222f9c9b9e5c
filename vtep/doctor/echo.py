"""A client of the echo of VTEPs (see `vtep.wire.echo`): delay, loss, ICMP errors and path MTU.

The doctor does not have the VXLAN port, which is the VTEP's. It receives the replies that come to
that port through a raw socket, which gets a copy of every UDP datagram that this host's firewall
lets in, whichever socket has the port.
"""

import errno
import os
import random
import select
import socket
import struct
import time
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Self

from attrs import evolve, field, frozen

from vtep.doctor.facts import Echoes, IcmpError, PathMtu, Refusal
from vtep.doctor.path_mtu import find_path_mtu
from vtep.errors import VtepError
from vtep.io import socket_constants as const
from vtep.io.addresses import FAMILY, Sockaddr, sockaddr
from vtep.io.binding import Binding
from vtep.io.error_queue import QueuedError, read_errors
from vtep.io.socket_filter import attach_program
from vtep.wire import vxlan
from vtep.wire.address import Address
from vtep.wire.echo import SIZE, TOKEN_LEN, TOKEN_OFFSET, EchoKind, EchoMessage
from vtep.wire.ip import UDP_HEADER_LEN, UDP_IP_HEADERS_LEN

_REQUEST_INTERVAL_S = 0.01
"""Seconds between requests whose delays are measured."""

_REPLY_TIMEOUT_S = 1.0
"""Seconds to wait for the first reply. Once the delay is known, a few times the delay."""

_REPLY_TIMEOUT_MIN_S = 0.1
_DELAYS = 4
"""Multiple of the longest measured delay for which later replies are waited for."""

_ICMP_TIMEOUT_S = 0.3
"""Seconds to wait for an ICMP error about a packet that is too large."""

_COPIES = 3
"""Requests of each size that is tried, since one of them may be lost for another reason."""

_SEND_TRIES = 4
_PORT_TRIES = 64
_DATAGRAM_MAX = 65536

_REFUSALS_V4 = {3: Refusal.PORT, 9: Refusal.FORBIDDEN, 10: Refusal.FORBIDDEN, 13: Refusal.FORBIDDEN}
"""By code of "destination unreachable" (RFC 1812, section 5.2.7.1)."""

_REFUSALS_V6 = {1: Refusal.FORBIDDEN, 4: Refusal.PORT, 5: Refusal.FORBIDDEN, 6: Refusal.FORBIDDEN}
"""The same for ICMPv6 (RFC 4443, section 3.1)."""


@frozen
class _Replies:
    """The replies and errors that came back for some requests."""

    messages: dict[int, tuple[float, EchoMessage, str]] = field(factory=dict)
    """By sequence number: time of arrival, message, and source address."""
    errors: list[QueuedError] = field(factory=list)


class EchoClient:
    """Sends echo requests to one remote; to be closed by leaving its context.

    The constructor raises VtepError if this host has no socket for the remote.
    """

    def __init__(
        self, remote: Address, port: int, vni: int | None, local: Address | None, dev: str | None
    ) -> None:
        self._remote = str(remote)
        self._port = port
        self._vni = vni
        self._family = FAMILY[remote.version]
        self._headers_len = UDP_IP_HEADERS_LEN[remote.version]
        self._token = os.urandom(TOKEN_LEN)
        self._sequence = random.randrange(1 << 16)  # noqa: S311  no secret
        self._timeout = _REPLY_TIMEOUT_S
        self._resources = ExitStack()
        try:
            self._socket = self._resources.enter_context(_bind(Binding(self._family, local, dev)))
            self._sockaddr = sockaddr(self._remote, port)
        except OSError as error:
            self._resources.close()
            raise VtepError(
                f"--remote {remote}: cannot open a socket to send echo requests: {error}"
            ) from error
        self._set_option(const.IP_RECVERR, const.IPV6_RECVERR, 1)
        self._source_port: int = self._socket.getsockname()[1]
        self._raw = self._open_raw()

    def _set_option(self, option: int, option_v6: int, value: int) -> None:
        """Set an option at the IP level of the socket."""
        if self._family == socket.AF_INET6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, option_v6, value)
        else:
            self._socket.setsockopt(socket.IPPROTO_IP, option, value)

    def _open_raw(self) -> socket.socket | None:
        """Open the receiver of replies to the VXLAN port. Returns: None without the privilege."""
        try:
            raw = self._resources.enter_context(
                socket.socket(
                    self._family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_UDP
                )
            )
        except PermissionError:
            return None
        _attach_token_filter(raw, self._family, self._token)
        return raw

    @property
    def has_raw_socket(self) -> bool:
        """True if replies to the VXLAN port can be received."""
        return self._raw is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._resources.close()

    # --- measurements -----------------------------------------------------------------------

    def measure_to_source_port(self, count: int) -> Echoes:
        """Send `count` requests whose replies come to the port that the requests were sent from."""
        return self._measure(count, self._source_port)

    def measure_to_vxlan_port(self, count: int) -> Echoes:
        """Send `count` requests whose replies come to the VXLAN port, as frames do."""
        # Missing replies count as loss here, so a busy host gets the full time.
        timeout, self._timeout = self._timeout, _REPLY_TIMEOUT_S
        try:
            return self._measure(count, self._port)
        finally:
            self._timeout = timeout

    def path_mtu_to_remote(self, high: int) -> PathMtu:
        """Find the largest packet, of up to `high` octets, that reaches the remote unfragmented."""
        reporters: list[str] = []

        def probe(size: int) -> tuple[bool, int | None]:
            request = self._request(self._source_port, SIZE)
            replies = self._exchange([request] * _COPIES, size - self._headers_len, df=True)
            reports = [error for error in replies.errors if reported_mtu(error) is not None]
            reporters.extend(error.offender for error in reports if error.offender is not None)
            return bool(replies.messages), reported_mtu(reports[0]) if reports else None

        size = find_path_mtu(self._headers_len + SIZE, high, probe)
        return PathMtu(size, reporters[0] if reporters else None)

    def path_mtu_from_remote(self, high: int) -> PathMtu:
        """Find the largest packet, of up to `high` octets, that arrives unfragmented from there.

        Requests may be fragmented. The remote sends replies with DF.
        """

        def probe(size: int) -> tuple[bool, int | None]:
            request = self._request(self._source_port, size - self._headers_len)
            replies = self._exchange([request] * _COPIES, size - self._headers_len, df=False)
            return bool(replies.messages), None

        return PathMtu(find_path_mtu(self._headers_len + SIZE, high, probe))

    def reported_path_mtu(self, high: int) -> PathMtu | None:
        """Return the path MTU that an ICMP error reports for a packet of `high` octets.

        For remotes that do not reply. Returns: None if there is no error.
        """
        self._timeout = min(self._timeout, _ICMP_TIMEOUT_S)
        request = self._request(self._port, SIZE)
        for error in self._exchange([request], high - self._headers_len, df=True).errors:
            mtu = reported_mtu(error)
            if mtu is not None and error.is_icmp and error.offender is not None:
                return PathMtu(mtu, error.offender)
        return None

    def _request(self, port: int, reply_len: int) -> EchoMessage:
        """Return a request whose reply of `reply_len` octets goes to a port of this host."""
        return EchoMessage(EchoKind.REQUEST, self._vni, port, self._token, 0, reply_len)

    def _measure(self, count: int, port: int) -> Echoes:
        """Send `count` requests, and measure the delays of the replies to a port of this host."""
        requests = [self._request(port, SIZE)] * count
        sent: dict[int, float] = {}
        try:
            replies = self._exchange(
                requests, SIZE, df=False, interval=_REQUEST_INTERVAL_S, sent=sent
            )
        except OSError as error:
            forbidden = error.errno in (errno.EPERM, errno.EACCES)
            return Echoes(sent=count, send_error=error.strerror, forbidden=forbidden)
        messages = replies.messages
        delays = tuple(at - sent[sequence] for sequence, (at, _, _) in sorted(messages.items()))
        if delays:
            self._timeout = min(_REPLY_TIMEOUT_S, _REPLY_TIMEOUT_MIN_S + _DELAYS * max(delays))
        last = next(reversed(messages.values()), None)
        status = last[1].status if last is not None else None
        answered_from = last[2] if last is not None else None
        refused = [
            IcmpError(reason, error.offender or self._remote)
            for error in replies.errors
            if (reason := refusal(error)) is not None
        ]
        return Echoes(count, delays, status, answered_from, tuple(dict.fromkeys(refused)))

    # --- sending and receiving --------------------------------------------------------------

    def _exchange(
        self,
        requests: Iterable[EchoMessage],
        size: int,
        *,
        df: bool,
        interval: float = 0.0,
        sent: dict[int, float] | None = None,
    ) -> _Replies:
        """Send requests in datagrams of `size` octets, and wait for the replies.

        With `df`, no datagram may be fragmented, here or on the path.

        Side effect: writes the time of each request to `sent`, by sequence number.

        Raises:
            OSError: this host refuses to send.
        """
        times = {} if sent is None else sent
        replies = _Replies()
        # IP_PMTUDISC_PROBE sets DF and ignores the path MTU that the kernel has cached, which may
        # be older than the path.
        self._set_option(
            const.IP_MTU_DISCOVER,
            const.IPV6_MTU_DISCOVER,
            const.PMTUDISC_PROBE if df else const.PMTUDISC_DONT,
        )
        if self._family == socket.AF_INET6:
            # IPV6_PMTUDISC_PROBE alone does not keep the kernel from fragmenting.
            self._socket.setsockopt(socket.IPPROTO_IPV6, const.IPV6_DONTFRAG, int(df))
        for request in requests:
            self._sequence += 1
            numbered = evolve(request, sequence=self._sequence)
            times[self._sequence] = time.monotonic()
            self._send(numbered.pack(size), replies)
            if interval:
                self._receive(replies, times, time.monotonic() + interval, until_all=False)
        self._receive(replies, times, time.monotonic() + self._timeout, until_all=True)
        return replies

    def _send(self, datagram: bytes, replies: _Replies) -> None:
        """Send a datagram. Raises: OSError if this host refuses it."""
        for _ in range(_SEND_TRIES):
            try:
                self._socket.sendto(datagram, self._sockaddr)
            except OSError as error:
                # The error may be about an earlier datagram, to which an ICMP error came back. It
                # is in the error queue then, and this datagram was not sent: try again.
                self._drain_errors(replies)
                if error.errno == errno.EMSGSIZE:
                    return
                if error.errno in (errno.EPERM, errno.EACCES, errno.ENETUNREACH, errno.EINVAL):
                    raise
            else:
                return

    def _receive(
        self, replies: _Replies, times: dict[int, float], deadline: float, *, until_all: bool
    ) -> None:
        """Receive replies and errors until a deadline, or until all requests have a result."""
        poll = select.poll()
        sockets = {sock.fileno(): sock for sock in (self._socket, self._raw) if sock is not None}
        for fd in sockets:
            poll.register(fd, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            all_refused = len(replies.errors) >= len(times) and not replies.messages
            if until_all and (len(replies.messages) >= len(times) or all_refused):
                return
            for fd, event in poll.poll(left * 1000):
                if event & select.POLLERR:
                    self._drain_errors(replies)
                if event & select.POLLIN:
                    self._drain(sockets[fd], replies, times)

    def _drain(self, sock: socket.socket, replies: _Replies, times: dict[int, float]) -> None:
        """Read all replies that wait in a socket."""
        while True:
            try:
                data, source = sock.recvfrom(_DATAGRAM_MAX)
            except BlockingIOError:
                return
            except OSError:  # An ICMP error came meanwhile.
                self._drain_errors(replies)
                continue
            at = time.monotonic()
            if sock is self._raw:
                port, data = _parse_udp(data, self._family)
                if port != self._port:
                    continue
            message = EchoMessage.parse(data)
            # A reply to the VXLAN port counts only from the raw socket, and one to the source port
            # only from the UDP socket: the raw socket gets copies of both.
            if (
                message is not None
                and message.kind is EchoKind.REPLY
                and message.token == self._token
                and message.sequence in times
                and (message.port == self._port) is (sock is self._raw)
            ):
                replies.messages.setdefault(message.sequence, (at, message, _host(source)))

    def _drain_errors(self, replies: _Replies) -> None:
        """Read all errors that wait in the error queue of the UDP socket."""
        replies.errors.extend(read_errors(self._socket))


def _bind(binding: Binding) -> socket.socket:
    """Open a socket with a random source port of RFC 7348, as frames have. Raises: OSError."""
    for _ in range(_PORT_TRIES):
        try:
            return binding.open(random.choice(vxlan.SOURCE_PORTS))  # noqa: S311  no secret
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _host(source: Sockaddr) -> str:
    """Return the host of a source address, with the scope of a link-local one."""
    host = source[0]
    if len(source) == 4 and source[3] and "%" not in host:
        return f"{host}%{socket.if_indextoname(source[3])}"
    return host


def _parse_udp(packet: bytes, family: socket.AddressFamily) -> tuple[int, bytes]:
    """Return destination port and payload of a packet from a raw socket."""
    # Raw sockets for IPv4 receive the IP header, those for IPv6 do not (raw(7), ipv6(7)).
    start = (packet[0] & 0x0F) * 4 if family == socket.AF_INET else 0
    return int.from_bytes(packet[start + 2 : start + 4], "big"), packet[start + UDP_HEADER_LEN :]


_BPF = struct.Struct("=HBBI")
"""struct sock_filter: code, jump offsets if true and if false, operand."""


def _attach_token_filter(raw: socket.socket, family: socket.AddressFamily, token: bytes) -> None:
    """Attach a filter that passes messages with our token only.

    Without it, the raw socket would copy every datagram of a busy tunnel.
    """
    instructions = (
        # X = length of the IP header, of which IPv6 has none here.
        (0xB1, 0, 0, 0) if family == socket.AF_INET else (0x01, 0, 0, 0),
        (0x40, 0, 0, UDP_HEADER_LEN + TOKEN_OFFSET),  # A = first word of the token
        (0x15, 0, 1, int.from_bytes(token[:4], "big")),  # if A is ours
        (0x06, 0, 0, 0xFFFFFFFF),  # return the whole packet
        (0x06, 0, 0, 0),  # else nothing
    )
    program = b"".join(_BPF.pack(*instruction) for instruction in instructions)
    attach_program(raw, const.SO_ATTACH_FILTER, program)


def reported_mtu(error: QueuedError) -> int | None:
    """Return the MTU that an error reports for a packet that is too large, or None."""
    return error.info or None if error.errno == errno.EMSGSIZE else None


def refusal(error: QueuedError) -> Refusal | None:
    """Return the reason for which a datagram was refused, or None if it was too large."""
    if error.errno == errno.EMSGSIZE:
        return None
    if not error.is_icmp:
        # This host itself reports that no neighbor has replied, or that it has no route.
        unreachable = error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH)
        return Refusal.HOST if unreachable else None
    v6 = error.origin == const.SO_EE_ORIGIN_ICMP6
    return (_REFUSALS_V6 if v6 else _REFUSALS_V4).get(error.code, Refusal.HOST)
