"""Outer headers as socket options of a sending socket, and as control messages of one send."""

import socket
import struct
from functools import lru_cache
from typing import TypeAlias

from attrs import frozen

from vtep.io import socket_constants as const
from vtep.wire import outer_header, vxlan
from vtep.wire.address import Address

ControlMessages: TypeAlias = tuple[tuple[int, int, bytes], ...]
"""Ancillary data of `sendmsg`: level, type and value of each message."""

_DEFAULT_TTL = -1
"""Value of the TTL options that selects the host's default TTL or hop limit."""

_INT = struct.Struct("=i")
_SEGMENT_SIZE = struct.Struct("=H")
_FLOWINFO = struct.Struct("!I")
_PKTINFO_V4 = struct.Struct("=i4s4x")
_PKTINFO_V6 = struct.Struct("=16si")


@frozen
class OuterHeaderOptions:
    """The outer header fields of all datagrams of a segment, unless a frame overrides them.

    A `ttl` of 0 selects the host's default, and 1 for multicast groups, as in the kernel driver.
    With `df`, no datagram is fragmented, over IPv4 or IPv6, and the path MTU is discovered.
    Without it, this host fragments to the path MTU.
    """

    srcport: range = vxlan.SOURCE_PORTS
    ttl: int = 0
    tos: int = 0
    flowlabel: int = 0
    df: bool = False
    udpcsum: bool = True
    udp6zerocsumtx: bool = False

    def has_checksum(self, family: socket.AddressFamily) -> bool:
        """Return whether datagrams have a UDP checksum; the kernel segments none without."""
        return self.udpcsum if family == socket.AF_INET else not self.udp6zerocsumtx

    def apply(self, sock: socket.socket, *, df: bool = False) -> None:
        """Set the options of a socket so that its datagrams have these fields.

        With `df`, its datagrams are not fragmented, whatever the attribute `df` is. All options are
        set, so that an earlier call has no effect any more. Raises: OSError.
        """
        discover = const.PMTUDISC_DO if df or self.df else const.PMTUDISC_DONT
        if sock.family == socket.AF_INET6:
            self._apply_v6(sock, discover)
        else:
            self._apply_v4(sock, discover)

    def _apply_v4(self, sock: socket.socket, discover: int) -> None:
        options = {
            # Reports all ICMP errors, and packets that the queueing discipline drops.
            const.IP_RECVERR: 1,
            const.IP_MTU_DISCOVER: discover,
            socket.IP_TOS: self.tos,
            socket.IP_TTL: self.ttl or _DEFAULT_TTL,
            socket.IP_MULTICAST_TTL: self.ttl or 1,
            socket.IP_MULTICAST_LOOP: 0,
        }
        for option, value in options.items():
            sock.setsockopt(socket.IPPROTO_IP, option, value)
        sock.setsockopt(socket.SOL_SOCKET, const.SO_NO_CHECK, int(not self.udpcsum))

    def _apply_v6(self, sock: socket.socket, discover: int) -> None:
        options = {
            const.IPV6_RECVERR: 1,
            const.IPV6_MTU_DISCOVER: discover,
            # The flow label is the configured or inherited one, not one that the kernel generates.
            const.IPV6_AUTOFLOWLABEL: 0,
            const.IPV6_FLOWINFO_SEND: 1,
            socket.IPV6_TCLASS: self.tos,
            socket.IPV6_UNICAST_HOPS: self.ttl or _DEFAULT_TTL,
            socket.IPV6_MULTICAST_HOPS: self.ttl or 1,
            socket.IPV6_MULTICAST_LOOP: 0,
        }
        for option, value in options.items():
            sock.setsockopt(socket.IPPROTO_IPV6, option, value)
        sock.setsockopt(const.SOL_UDP, const.UDP_NO_CHECK6_TX, int(self.udp6zerocsumtx))


@lru_cache(maxsize=4096)
def control_messages(
    family: socket.AddressFamily, fields: int, segment_size: int
) -> ControlMessages:
    """Return the control messages that override outer header fields for one send.

    Args:
        family: that of the socket.
        fields: packed fields (see `vtep.wire.outer_header`). DF is not among them: it is an option
            of sockets only.
        segment_size: octets of each datagram of the send (UDP_SEGMENT); 0 if it is one datagram.
    """
    tos, ttl, flowlabel = outer_header.unpack(fields)
    messages = []
    if segment_size:
        messages.append((const.SOL_UDP, const.UDP_SEGMENT, _SEGMENT_SIZE.pack(segment_size)))
    if family == socket.AF_INET6:
        if tos:
            messages.append((socket.IPPROTO_IPV6, socket.IPV6_TCLASS, _INT.pack(tos)))
        if ttl:
            messages.append((socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT, _INT.pack(ttl)))
        if flowlabel:
            messages.append((socket.IPPROTO_IPV6, const.IPV6_FLOWINFO, _FLOWINFO.pack(flowlabel)))
    else:
        if tos:
            messages.append((socket.IPPROTO_IP, socket.IP_TOS, _INT.pack(tos)))
        if ttl:
            messages.append((socket.IPPROTO_IP, socket.IP_TTL, _INT.pack(ttl)))
    return tuple(messages)


def pktinfo(
    family: socket.AddressFamily, local: Address | None, dev: str | None
) -> ControlMessages:
    """Return the control message that selects the source address or the device of a datagram.

    Returns: no message if both are None.
    Raises: OSError if there is no such device.
    """
    if local is None and dev is None:
        return ()
    index = socket.if_nametoindex(dev) if dev is not None else 0
    if family == socket.AF_INET6:
        packed = local.packed if local is not None else bytes(16)
        return ((socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO_V6.pack(packed, index)),)
    packed = local.packed if local is not None else bytes(4)
    return ((socket.IPPROTO_IP, const.IP_PKTINFO, _PKTINFO_V4.pack(index, packed)),)
