"""Sockets as a VTEP needs them: how they are bound, what their headers say, how one receives."""

import errno
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from ipaddress import IPv4Address

from attrs import frozen

from vtep import descriptors
from vtep.config import Config
from vtep.errors import NotReadyError, VtepError
from vtep.host.devices import need_device_index
from vtep.wire import ecn, outer_header, vxlan
from vtep.wire.address import Address, scope_of

_RECEIVE_BUFFER = 4 << 20
"""Octets asked for: what arrives in some milliseconds at the best rate that we can forward."""


_NOT_READY = frozenset((errno.EADDRNOTAVAIL, errno.ENODEV))
"""What the kernel says of an own address or a device that is absent, and may appear later."""

# From the kernel's include/uapi/linux/{in,in6,udp}.h and asm-generic/socket.h.
_IP_MTU_DISCOVER = 10
_IP_RECVERR = 11
_IP_MTU = 14
_IP_MULTICAST_ALL = 49
_IPV6_FLOWINFO = 11
_IPV6_MTU_DISCOVER = 23
_IPV6_MTU = 24
_IPV6_RECVERR = 25
_IPV6_MULTICAST_ALL = 29
_IPV6_FLOWINFO_SEND = 33
_IPV6_DONTFRAG = 62
_IPV6_AUTOFLOWLABEL = 70
_IPV6_ADDR_PREFERENCES = 72
_IPV6_PREFER_SRC_PUBLIC = 2
_PMTUDISC_DONT = 0
_PMTUDISC_DO = 2
_PMTUDISC_PROBE = 3
_SOL_UDP = 17
_UDP_NO_CHECK6_TX = 101
_UDP_NO_CHECK6_RX = 102
_UDP_SEGMENT = 103
_UDP_GRO = 104
_IP_PKTINFO = 8
_DEFAULT_TTL = -1
"""The host's default TTL or hop limit, as the socket options have it."""

_SO_NO_CHECK = 11
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_SO_MEMINFO = 55
_SK_MEMINFO_DROPS = 8
_SK_MEMINFO_VARS = 9

_INT = struct.Struct("=i")
_SEGMENT_SIZE = struct.Struct("=H")
_PKTINFO_V4 = struct.Struct("=i4s4x")
_PKTINFO_V6 = struct.Struct("=16si")
_FLOWINFO = struct.Struct("!I")
_JOIN_V4 = struct.Struct("=4s4si")
_JOIN_V6 = struct.Struct("=16si")

_RECEIVE_SPACE = 2 * socket.CMSG_SPACE(_INT.size)
"""For the segment size of UDP_GRO and the TOS octet or traffic class."""

_ECN = ecn.MASK
_LOW_OCTET = 0 if sys.byteorder == "little" else -1
"""Of a TOS octet, which comes as one, or a traffic class, which comes as an int."""

Ancillary = tuple[tuple[int, int, bytes], ...]
Sockaddr = tuple[str, int] | tuple[str, int, int, int]


def family_of(host: str) -> socket.AddressFamily:
    """The family of a numeric address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def host_of(address: Address, dev: str | None) -> str:
    """An address as `receive` spells the source of a datagram that came over `dev`.

    One that is valid on one link only has the name of its device with it: `fe80::1%eth0`.
    """
    if isinstance(address, IPv4Address):
        return str(address)
    scope = scope_of(address, dev)
    host = socket.inet_ntop(socket.AF_INET6, address.packed)
    return f"{host}%{scope}" if scope else host


@lru_cache
def device_name(index: int) -> str:
    """Return the name of a device, kept: to be forgotten (`cache_clear`) when links have changed.

    Raises OSError, which is not kept: there may be no descriptor to ask with at this moment.
    """
    return socket.if_indextoname(index)


def sockaddr(host: str, port: int, flowlabel: int = 0) -> Sockaddr:
    """What `connect` wants for a host as `host_of` spells it; raises OSError."""
    if ":" not in host:
        return host, port
    address, _, scope = host.partition("%")
    return address, port, flowlabel, need_device_index(scope) if scope else 0


@frozen
class Binding:
    """What all sockets of a VTEP have in common; `dev` is the device they are bound to, if any."""

    family: socket.AddressFamily
    local: Address | None
    dev: str | None

    def open(self, port: int, *, shared: bool = False, grouped: bool = False) -> socket.socket:
        """A non-blocking UDP socket bound to `port`; raises OSError.

        It may be `shared` with sockets that allow that too (SO_REUSEADDR), and `grouped` with one
        of the same binding (SO_REUSEPORT).
        """
        sock = self.unbound()
        try:
            if shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if grouped:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(self.sockaddr(port))
        except OSError:
            sock.close()
            raise
        return sock

    def sockaddr(self, port: int) -> Sockaddr:
        """Return the address that sockets are bound to for this port; raises OSError."""
        return sockaddr(host_of(self.local, self.dev), port) if self.local else ("", port)

    def unbound(self) -> socket.socket:
        """A non-blocking UDP socket with no port yet; raises OSError."""
        sock = socket.socket(self.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            if self.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                prefer_public_source(sock)
            if self.dev is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.dev.encode())
        except OSError:
            sock.close()
            raise
        return sock


def prefer_public_source(sock: socket.socket) -> None:
    """Have an IPv6 socket send from the host's stable address rather than from a temporary one.

    The other end knows this host by one address. A temporary address (RFC 8981) changes every day.
    """
    sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_ADDR_PREFERENCES, _IPV6_PREFER_SRC_PUBLIC)


@contextmanager
def connected_probe(binding: Binding, where: Sockaddr) -> Iterator[socket.socket]:
    """Provide a socket connected to an address, to ask the kernel about the route to it.

    Nothing is sent. Raises OSError where there is no route.
    """
    with binding.open(0) as sock:
        sock.connect(where)
        yield sock


# --- receiving --------------------------------------------------------------------------------


def open_receiver(
    binding: Binding,
    port: int,
    *,
    gro: bool,
    zero_checksums: bool = True,
    beside: Iterable[socket.socket] = (),
) -> socket.socket:
    """The socket to which every remote of a family sends.

    With `gro`, the kernel is to join datagrams of one sender, if it can. Over IPv6, datagrams
    without a checksum are let in if `zero_checksums` (RFC 7348, section 5, demands it; RFC 6935
    allows it to tunnels). The sockets `beside` it may have the same port, while one takes over
    from the other.

    Raises NotReadyError where the own address or the device is absent, and otherwise VtepError,
    saying what to do, where the port cannot be had.
    """
    try:
        with _sharing(beside) as others:
            sock = binding.open(port, shared=bool(others))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise VtepError(
                f"--dstport {port}: this UDP port is taken on this host, by another pyvtep (see: "
                "ss -ulpn) or a kernel VXLAN device (see: ip -d link show type vxlan): run all "
                "VNIs in one process (--config), or give this one another --dstport, the same on "
                "all hosts"
            ) from error
        if error.errno in (errno.EPERM, errno.EACCES):
            dev = f", --dev {binding.dev}" if binding.dev is not None else ""
            raise VtepError(
                f"--dstport {port}{dev}: no privilege to bind to it: run as root"
            ) from error
        kind = NotReadyError if error.errno in _NOT_READY else VtepError
        raise kind(f"--dstport {port}: cannot bind to it: {descriptors.reason(error)}") from error
    configure_receiver(sock, _RECEIVE_BUFFER, gro=gro, zero_checksums=zero_checksums)
    return sock


@contextmanager
def _sharing(sockets: Iterable[socket.socket]) -> Iterator[list[socket.socket]]:
    """Let a port that these have be bound to by others, but not any longer than this."""
    these = list(sockets)
    try:
        for each in these:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        yield these
    finally:
        for each in these:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)


def join(
    receiver: socket.socket, binding: Binding, group: Address, beside: Iterable[socket.socket] = ()
) -> socket.socket:
    """A socket that hears a multicast group on the device of `binding`; closing it leaves.

    It is bound to the group's address, on the port of `receiver`, so it hears no other group, and
    nothing else that is for this host. In all else it is as that. The sockets `beside` it may have
    the same port. Raises VtepError.
    """
    sock = None
    try:
        sock = binding.unbound()
        with _sharing([receiver, *beside]):
            port = receiver.getsockname()[1]
            host = socket.inet_ntop(binding.family, group.packed)
            _bind_to_group(sock, port, host, binding.dev)
        zero = receiver.getsockopt(_SOL_UDP, _UDP_NO_CHECK6_RX) != 0
        configure_receiver(sock, _RECEIVE_BUFFER, gro=gro_enabled(receiver), zero_checksums=zero)
    except OSError as error:
        if sock is not None:
            sock.close()
        kind = NotReadyError if error.errno in _NOT_READY else VtepError
        raise kind(
            f"--group {group}: cannot join it on --dev {binding.dev}: {descriptors.reason(error)}"
        ) from error
    return sock


def _bind_to_group(sock: socket.socket, port: int, group: str, dev: str | None) -> None:
    index = need_device_index(dev or "")
    packed = socket.inet_pton(sock.family, group)
    v6 = sock.family == socket.AF_INET6
    # A group may be shared: all who joined it hear it. A receiver on all addresses is in its way.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((group, port, 0, index) if v6 else (group, port))
    if v6:
        member = _JOIN_V6.pack(packed, index)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)
    else:
        member = _JOIN_V4.pack(packed, bytes(4), index)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)


def configure_receiver(
    sock: socket.socket, buffer: int, *, gro: bool, zero_checksums: bool
) -> None:
    """Have a socket receive as `receive` expects it; `buffer` is in octets. Raises OSError."""
    _set_buffer(sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF, buffer)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL, 0)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        sock.setsockopt(_SOL_UDP, _UDP_NO_CHECK6_RX, int(zero_checksums))
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
    if gro:
        with suppress(OSError):
            sock.setsockopt(_SOL_UDP, _UDP_GRO, 1)


def gro_enabled(receiver: socket.socket) -> bool:
    """Whether the kernel joins datagrams of one sender for this socket (UDP_GRO)."""
    try:
        return receiver.getsockopt(_SOL_UDP, _UDP_GRO) != 0
    except OSError:
        return False


Received = tuple[int, int, str, int, int]
"""What `receive` says."""


def receive(receiver: socket.socket, buffer: memoryview) -> Received:
    """Receive one datagram, or several of one sender that the kernel has joined.

    Gives the octets, how many of them make a datagram (the last may have fewer), the sender's
    address as `host_of` spells it and its port, and the ECN field of the outer header, which is the
    same in all of them. Raises OSError.
    """
    octets, ancillary, _, source = receiver.recvmsg_into((buffer,), _RECEIVE_SPACE)
    stride = octets
    mark = 0
    for level, _, data in ancillary:
        if level == _SOL_UDP:
            (stride,) = _INT.unpack(data)
        else:
            mark = data[_LOW_OCTET] & _ECN
    if len(source) > 2 and source[3]:
        try:
            device = device_name(source[3])
        except OSError:
            device = str(source[3])
        return octets, stride, f"{source[0]}%{device}", source[1], mark
    return octets, stride, source[0], source[1], mark


def receive_queue_drops(receiver: socket.socket) -> int:
    """How many datagrams the kernel discarded because the socket's queue was full."""
    memory = receiver.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _SK_MEMINFO_VARS * 4)
    at = _SK_MEMINFO_DROPS * 4
    return int.from_bytes(memory[at : at + 4], sys.byteorder)


# --- sending ----------------------------------------------------------------------------------


@frozen
class OuterHeaderOptions:
    """What the headers of all datagrams of a segment say, unless a frame's envelope says more.

    `ttl` 0 is what the host gives, and 1 towards a multicast group, as in the kernel driver. With
    `df`, IPv4 datagrams have DF set, those over IPv6 are not fragmented either, and the MTU of
    each path is found out; without it, a path narrower than this host's link gets fragments.
    """

    srcport: range = vxlan.SOURCE_PORTS
    ttl: int = 0
    tos: int = 0
    flowlabel: int = 0
    df: bool = False
    udpcsum: bool = True
    udp6zerocsumtx: bool = False

    @classmethod
    def of(cls, config: Config) -> "OuterHeaderOptions":
        """As a segment's configuration has it."""
        first, last = config.srcport
        return cls(
            srcport=range(first, last + 1),
            ttl=config.ttl if isinstance(config.ttl, int) else 0,
            tos=config.tos if isinstance(config.tos, int) else 0,
            flowlabel=config.flowlabel if isinstance(config.flowlabel, int) else 0,
            df=config.df == "set",
            udpcsum=config.udpcsum,
            udp6zerocsumtx=config.udp6zerocsumtx,
        )

    def has_checksum(self, family: socket.AddressFamily) -> bool:
        """Whether datagrams have a UDP checksum, without which the kernel segments none."""
        return self.udpcsum if family == socket.AF_INET else not self.udp6zerocsumtx

    def set_up(self, sock: socket.socket, *, df: bool = False) -> None:
        """Have all that a socket sends look like this.

        With `df`, nothing that it sends is fragmented on the way. Options that a former call has
        set are overwritten. Raises OSError.
        """
        discover = _PMTUDISC_DO if df or self.df else _PMTUDISC_DONT
        if sock.family == socket.AF_INET6:
            self._set_up_v6(sock, discover)
        else:
            self._set_up_v4(sock, discover)

    def _set_up_v4(self, sock: socket.socket, discover: int) -> None:
        options = {
            # With it the kernel tells of every ICMP error, and of what its own queues drop.
            _IP_RECVERR: 1,
            _IP_MTU_DISCOVER: discover,
            socket.IP_TOS: self.tos,
            socket.IP_TTL: self.ttl or _DEFAULT_TTL,
            socket.IP_MULTICAST_TTL: self.ttl or 1,
            socket.IP_MULTICAST_LOOP: 0,
        }
        for option, value in options.items():
            sock.setsockopt(socket.IPPROTO_IP, option, value)
        sock.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, int(not self.udpcsum))

    def _set_up_v6(self, sock: socket.socket, discover: int) -> None:
        options = {
            _IPV6_RECVERR: 1,
            _IPV6_MTU_DISCOVER: discover,
            _IPV6_AUTOFLOWLABEL: 0,
            _IPV6_FLOWINFO_SEND: 1,
            socket.IPV6_TCLASS: self.tos,
            socket.IPV6_UNICAST_HOPS: self.ttl or _DEFAULT_TTL,
            socket.IPV6_MULTICAST_HOPS: self.ttl or 1,
            socket.IPV6_MULTICAST_LOOP: 0,
        }
        for option, value in options.items():
            sock.setsockopt(socket.IPPROTO_IPV6, option, value)
        sock.setsockopt(_SOL_UDP, _UDP_NO_CHECK6_TX, int(self.udp6zerocsumtx))


def policy_of(config: Config) -> outer_header.InheritPolicy:
    """What a segment's configuration has the outer header take from the frame inside."""
    return outer_header.InheritPolicy(
        ecn=config.ecn,
        tos=config.tos if isinstance(config.tos, int) else 0,
        inherit_tos=config.tos == "inherit",
        inherit_ttl=config.ttl == "inherit",
        inherit_flowlabel=config.flowlabel == "inherit",
        inherit_df=config.df == "inherit",
    )


@lru_cache(maxsize=4096)
def ancillary(family: socket.AddressFamily, key: int, segment_size: int) -> Ancillary:
    """Control messages for a send: those of an envelope, and UDP_SEGMENT unless the size is 0."""
    tos, ttl, flowlabel = outer_header.unpack(key)
    messages = []
    if segment_size:
        messages.append((_SOL_UDP, _UDP_SEGMENT, _SEGMENT_SIZE.pack(segment_size)))
    if family == socket.AF_INET6:
        if tos:
            messages.append((socket.IPPROTO_IPV6, socket.IPV6_TCLASS, _INT.pack(tos)))
        if ttl:
            messages.append((socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT, _INT.pack(ttl)))
        if flowlabel:
            messages.append((socket.IPPROTO_IPV6, _IPV6_FLOWINFO, _FLOWINFO.pack(flowlabel)))
    else:
        if tos:
            messages.append((socket.IPPROTO_IP, socket.IP_TOS, _INT.pack(tos)))
        if ttl:
            messages.append((socket.IPPROTO_IP, socket.IP_TTL, _INT.pack(ttl)))
    return tuple(messages)


def pktinfo(family: socket.AddressFamily, local: Address | None, dev: str | None) -> Ancillary:
    """Return the control message that has a datagram leave from an address or over a device.

    There is none if both are None. Raises OSError where there is no such device.
    """
    if local is None and dev is None:
        return ()
    index = socket.if_nametoindex(dev) if dev is not None else 0
    if family == socket.AF_INET6:
        packed = local.packed if local is not None else bytes(16)
        return ((socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO_V6.pack(packed, index)),)
    packed = local.packed if local is not None else bytes(4)
    return ((socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO_V4.pack(index, packed)),)


def _set_buffer(sock: socket.socket, force: int, ask: int, octets: int) -> None:
    """Set the size of a buffer: beyond this host's limit if we may, else as far as that."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, force, octets)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, ask, octets)


def set_send_buffer(sock: socket.socket, octets: int) -> None:
    """Set the size of the send buffer, beyond this host's limit if that is allowed."""
    _set_buffer(sock, _SO_SNDBUFFORCE, socket.SO_SNDBUF, octets)


def path_mtu(sock: socket.socket) -> int:
    """The path MTU to where a socket is connected, as the kernel knows it; raises OSError."""
    if sock.family == socket.AF_INET6:
        return sock.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
    return sock.getsockopt(socket.IPPROTO_IP, _IP_MTU)


def send_whole(sock: socket.socket, datagram: bytes, host: str, port: int) -> None:
    """Send a datagram that nobody may fragment from a socket that else only receives.

    What the kernel believes of the path's MTU is not asked. Raises OSError.
    """
    v6 = sock.family == socket.AF_INET6
    level = socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP
    option = _IPV6_MTU_DISCOVER if v6 else _IP_MTU_DISCOVER
    before = sock.getsockopt(level, option)
    if v6:  # PMTUDISC_PROBE alone does not keep IPv6 from fragmenting.
        sock.setsockopt(level, _IPV6_DONTFRAG, 1)
    sock.setsockopt(level, option, _PMTUDISC_PROBE)
    try:
        sock.sendto(datagram, sockaddr(host, port))
    finally:
        # Frames may leave from the same socket, and those may be fragmented.
        sock.setsockopt(level, option, before)
        if v6:
            sock.setsockopt(level, _IPV6_DONTFRAG, 0)


@cache
def gso_supported() -> bool:
    """Return whether the kernel takes many datagrams in one send (UDP_SEGMENT).

    Raises OSError where it can't be asked for want of a descriptor.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.setsockopt(_SOL_UDP, _UDP_SEGMENT, vxlan.HEADER_LEN)
        except OSError:
            return False
    return True
