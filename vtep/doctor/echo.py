"""Sockets that ask: the echo of VTEPs, and ICMP's own.

The doctor does not have the VXLAN port, which is the VTEP's. What comes to it he hears through a
raw socket: it gets a copy of all UDP datagrams that this host's firewall has let in, whoever has
the port.
"""

import errno
import os
import random
import select
import socket
import struct
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from attrs import evolve, field, frozen

from vtep.doctor.facts import Echoes, IcmpError, PathMtu, Refusal
from vtep.doctor.path_mtu import find_path_mtu
from vtep.errors import VtepError
from vtep.io.addresses import sockaddr
from vtep.io.binding import Binding
from vtep.wire import vxlan
from vtep.wire.address import Address
from vtep.wire.echo import SIZE, TOKEN_LEN, EchoKind, EchoMessage

_PAUSE = 0.01
"""Seconds between questions whose delays are measured."""

_PATIENCE = 1.0
"""Seconds to wait for the first answer; once the delay is known, a few times that."""

_ICMP_PATIENCE = 0.3
"""Seconds to wait for an ICMP error about a packet that is too large."""

_COPIES = 3
"""Of each size that is tried, since one of them may be lost for another reason."""

_PORT_TRIES = 64
_UDP_HEADER = 8
_IP_HEADER = {socket.AF_INET: 20, socket.AF_INET6: 40}

_IP_MTU_DISCOVER = 10
_IP_RECVERR = 11
_IPV6_MTU_DISCOVER = 23
_IPV6_RECVERR = 25
_IPV6_DONTFRAG = 62
_PMTUDISC_DONT, _PMTUDISC_PROBE = 0, 3
_SO_ATTACH_FILTER = 26

_ERROR = struct.Struct("=IBBBxII")
"""struct sock_extended_err: error number, origin, type, code, info (an MTU), data."""
_ORIGIN_ICMP, _ORIGIN_ICMP6 = 2, 3

_REFUSALS_V4 = {3: Refusal.PORT, 9: Refusal.FORBIDDEN, 10: Refusal.FORBIDDEN, 13: Refusal.FORBIDDEN}
_REFUSALS_V6 = {1: Refusal.FORBIDDEN, 4: Refusal.PORT, 5: Refusal.FORBIDDEN, 6: Refusal.FORBIDDEN}
"""By code of the ICMP message that says that a destination is unreachable."""


@frozen
class _Error:
    """What the kernel has told about a datagram that was sent."""

    refusal: Refusal | None
    host: str | None
    mtu: int | None


@frozen
class _Heard:
    """What came back of some questions."""

    answers: dict[int, tuple[float, EchoMessage, str]] = field(factory=dict)
    """By sequence number: when it came, what it says, and from where."""
    errors: list[_Error] = field(factory=list)


class Echo:
    """Asks one remote. Raises VtepError where this host has no socket for that."""

    def __init__(
        self, remote: Address, port: int, vni: int | None, local: Address | None, dev: str | None
    ) -> None:
        self._remote = str(remote)
        self._port = port
        self._vni = vni
        self._family = socket.AF_INET6 if remote.version == 6 else socket.AF_INET
        self._headers = _IP_HEADER[self._family] + _UDP_HEADER
        self._token = os.urandom(TOKEN_LEN)
        self._sequence = random.randrange(1 << 16)  # noqa: S311  no secret
        self._patience = _PATIENCE
        self._open = ExitStack()
        try:
            self._socket = self._open.enter_context(_bind(Binding(self._family, local, dev)))
            self._where = sockaddr(self._remote, port)
        except OSError as error:
            self._open.close()
            raise VtepError(f"--remote {remote}: no socket to ask it from: {error}") from error
        self._set(_IP_RECVERR, _IPV6_RECVERR, 1)
        self._source_port: int = self._socket.getsockname()[1]
        self._raw = self._open_raw()

    def _set(self, option: int, option_v6: int, value: int) -> None:
        if self._family == socket.AF_INET6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, option_v6, value)
        else:
            self._socket.setsockopt(socket.IPPROTO_IP, option, value)

    def _open_raw(self) -> socket.socket | None:
        """What hears answers to the VXLAN port; None without the privilege."""
        try:
            raw = self._open.enter_context(
                socket.socket(
                    self._family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.IPPROTO_UDP
                )
            )
        except PermissionError:
            return None
        _filter(raw, self._family, self._token)
        return raw

    @property
    def hears_back(self) -> bool:
        """Whether answers to the VXLAN port can be heard."""
        return self._raw is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.close()

    # --- asking -----------------------------------------------------------------------------

    def there(self, count: int) -> Echoes:
        """Ask so often, with the answers coming back to where they were asked from."""
        return self._measure(count, self._source_port)

    def back(self, count: int) -> Echoes:
        """Ask so often, with the answers coming to the VXLAN port."""
        # Some lost are told of as loss, so a busy host gets its time.
        patience, self._patience = self._patience, _PATIENCE
        try:
            return self._measure(count, self._port)
        finally:
            self._patience = patience

    def mtu_there(self, high: int) -> PathMtu:
        """The largest packet, of up to `high` octets, that gets there in one piece."""
        told_by: list[str] = []

        def passes(size: int) -> tuple[bool, int | None]:
            probe = self._probe(self._source_port, SIZE)
            heard = self._exchange([probe] * _COPIES, size - self._headers, whole=True)
            told = [error for error in heard.errors if error.mtu is not None]
            told_by.extend(error.host for error in told if error.host is not None)
            return bool(heard.answers), told[0].mtu if told else None

        return PathMtu(
            find_path_mtu(self._headers + SIZE, high, passes), told_by[0] if told_by else None
        )

    def mtu_back(self, high: int) -> PathMtu:
        """The largest packet, of up to `high` octets, that comes back in one piece.

        The questions may be fragmented, the answers may not.
        """

        def passes(size: int) -> tuple[bool, int | None]:
            probe = self._probe(self._source_port, size - self._headers)
            heard = self._exchange([probe] * _COPIES, size - self._headers, whole=False)
            return bool(heard.answers), None

        return PathMtu(find_path_mtu(self._headers + SIZE, high, passes))

    def told_mtu(self, high: int) -> PathMtu | None:
        """What an ICMP error tells of the way there, where nobody answers."""
        self._patience = min(self._patience, _ICMP_PATIENCE)
        heard = self._exchange([self._probe(self._port, SIZE)], high - self._headers, whole=True)
        for error in heard.errors:
            if error.mtu is not None and error.host is not None:
                return PathMtu(error.mtu, error.host)
        return None

    def _probe(self, port: int, octets: int) -> EchoMessage:
        return EchoMessage(EchoKind.REQUEST, self._vni, port, self._token, 0, octets)

    def _measure(self, count: int, port: int) -> Echoes:
        probes = [self._probe(port, SIZE)] * count
        sent: dict[int, float] = {}
        try:
            heard = self._exchange(probes, SIZE, whole=False, pause=_PAUSE, sent=sent)
        except OSError as error:
            forbidden = error.errno in (errno.EPERM, errno.EACCES)
            return Echoes(sent=count, send_error=error.strerror, forbidden=forbidden)
        delays = tuple(at - sent[number] for number, (at, _, _) in sorted(heard.answers.items()))
        if delays:
            self._patience = min(_PATIENCE, 0.1 + 4 * max(delays))
        last = next(reversed(heard.answers.values()), None)
        status = last[1].status if last is not None else None
        answered_from = last[2] if last is not None else None
        refused = [
            IcmpError(error.refusal, error.host or self._remote)
            for error in heard.errors
            if error.refusal is not None
        ]
        return Echoes(count, delays, status, answered_from, tuple(dict.fromkeys(refused)))

    def _exchange(
        self,
        probes: Iterable[EchoMessage],
        size: int,
        *,
        whole: bool,
        pause: float = 0.0,
        sent: dict[int, float] | None = None,
    ) -> _Heard:
        """Ask, in datagrams of `size` octets, and wait for the answers.

        If `whole`, nobody is to fragment them. Raises OSError where this host refuses to send.
        """
        times = {} if sent is None else sent
        heard = _Heard()
        self._set(
            _IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE if whole else _PMTUDISC_DONT
        )
        if self._family == socket.AF_INET6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_DONTFRAG, int(whole))
        for probe in probes:
            self._sequence += 1
            question = evolve(probe, sequence=self._sequence)
            times[self._sequence] = time.monotonic()
            self._send(question.pack(size), heard)
            if pause:
                self._listen(heard, times, time.monotonic() + pause, wait_all=False)
        self._listen(heard, times, time.monotonic() + self._patience, wait_all=True)
        return heard

    def _send(self, datagram: bytes, heard: _Heard) -> None:
        for _ in range(4):
            try:
                self._socket.sendto(datagram, self._where)
            except OSError as error:
                # It may be about an earlier one, then it is in the error queue.
                self._drain_errors(heard)
                if error.errno == errno.EMSGSIZE:
                    return
                if error.errno in (errno.EPERM, errno.EACCES, errno.ENETUNREACH, errno.EINVAL):
                    raise
            else:
                return

    def _listen(
        self, heard: _Heard, times: dict[int, float], until: float, *, wait_all: bool
    ) -> None:
        poll = select.poll()
        sockets = {sock.fileno(): sock for sock in (self._socket, self._raw) if sock is not None}
        for fd in sockets:
            poll.register(fd, select.POLLIN)
        while (left := until - time.monotonic()) > 0:
            if wait_all and (len(heard.answers) >= len(times) or self._hopeless(heard, times)):
                return
            for fd, event in poll.poll(left * 1000):
                if event & select.POLLERR:
                    self._drain_errors(heard)
                if event & select.POLLIN:
                    self._take(sockets[fd], heard, times)

    def _hopeless(self, heard: _Heard, times: dict[int, float]) -> bool:
        """Whether all that was sent was refused."""
        return len(heard.errors) >= len(times) and not heard.answers

    def _take(self, sock: socket.socket, heard: _Heard, times: dict[int, float]) -> None:
        while True:
            try:
                data, source = sock.recvfrom(65536)
            except BlockingIOError:
                return
            except OSError:  # An ICMP error that came meanwhile.
                self._drain_errors(heard)
                continue
            at = time.monotonic()
            if sock is self._raw:
                port, data = _udp(data, self._family)
                if port != self._port:
                    continue
            probe = EchoMessage.parse(data)
            if (
                probe is not None
                and probe.kind is EchoKind.REPLY
                and probe.token == self._token
                and probe.sequence in times
                and (probe.port == self._port) is (sock is self._raw)
            ):
                heard.answers.setdefault(probe.sequence, (at, probe, _host(source)))

    def _drain_errors(self, heard: _Heard) -> None:
        while True:
            try:
                _, ancillary, _, _ = self._socket.recvmsg(1, 512, socket.MSG_ERRQUEUE)
            except OSError:
                return
            heard.errors.extend(
                _error(data, self._family)
                for level, kind, data in ancillary
                if (level, kind)
                in (
                    (socket.IPPROTO_IP, _IP_RECVERR),
                    (socket.IPPROTO_IPV6, _IPV6_RECVERR),
                )
            )


def _bind(binding: Binding) -> socket.socket:
    """A socket on one of the ports that frames are sent from; raises OSError."""
    for _ in range(_PORT_TRIES):
        try:
            return binding.open(random.choice(vxlan.SOURCE_PORTS))  # noqa: S311  no secret
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _host(source: tuple[str, int] | tuple[str, int, int, int]) -> str:
    host = source[0]
    if len(source) == 4 and source[3] and "%" not in host:
        return f"{host}%{socket.if_indextoname(source[3])}"
    return host


def _udp(packet: bytes, family: socket.AddressFamily) -> tuple[int, bytes]:
    """Destination port and payload of what a raw socket has received."""
    # Over IPv4 it begins with the IP header, over IPv6 it does not.
    start = (packet[0] & 0x0F) * 4 if family == socket.AF_INET else 0
    return int.from_bytes(packet[start + 2 : start + 4], "big"), packet[start + _UDP_HEADER :]


_BPF = struct.Struct("=HBBI")
_BPF_PROGRAM = struct.Struct("@HP")
_TOKEN_AT = 24
"""Where a probe has its token."""


def _filter(raw: socket.socket, family: socket.AddressFamily, token: bytes) -> None:
    """Have a socket receive nothing but probes with our token.

    Otherwise it would get a copy of each datagram of the tunnel, however busy that is.
    """
    import ctypes  # noqa: PLC0415  here, where the kernel wants a pointer

    at = _UDP_HEADER + _TOKEN_AT
    instructions = [
        # The index register holds the length of the IP header, if there is one.
        (0xB1, 0, 0, 0) if family == socket.AF_INET else (0x01, 0, 0, 0),
        (0x40, 0, 0, at),  # Load the token's first word,
        (0x15, 0, 1, int.from_bytes(token[:4], "big")),  # and if it is another,
        (0x06, 0, 0, 0xFFFFFFFF),
        (0x06, 0, 0, 0),  # take nothing of the packet.
    ]
    program = b"".join(_BPF.pack(*instruction) for instruction in instructions)
    buffer = ctypes.create_string_buffer(program, len(program))
    address = ctypes.addressof(buffer)
    raw.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, _BPF_PROGRAM.pack(len(instructions), address)
    )


def _error(data: bytes, family: socket.AddressFamily) -> _Error:
    number, origin, _type, code, info, _ = _ERROR.unpack_from(data)
    mtu = info if number == errno.EMSGSIZE and info else None
    if origin not in (_ORIGIN_ICMP, _ORIGIN_ICMP6):
        # This host itself: the packet is too large for its device, or ARP found nobody.
        unreachable = number in (errno.EHOSTUNREACH, errno.ENETUNREACH)
        return _Error(Refusal.HOST if unreachable else None, None, mtu)
    host = _offender(data[_ERROR.size :])
    if mtu is not None or number == errno.EMSGSIZE:
        return _Error(None, host, mtu)
    refusals = _REFUSALS_V4 if family == socket.AF_INET else _REFUSALS_V6
    return _Error(refusals.get(code, Refusal.HOST), host, None)


def _offender(sockaddr: bytes) -> str | None:
    """Who sent the ICMP message, by the address that the kernel puts behind the error."""
    family = int.from_bytes(sockaddr[:2], sys.byteorder)
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, sockaddr[4:8])
    if family == socket.AF_INET6:
        return socket.inet_ntop(socket.AF_INET6, sockaddr[8:24])
    return None
