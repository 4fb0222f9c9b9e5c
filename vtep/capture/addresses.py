"""The outer header fields of captured datagrams, as far as this host knows them."""

import socket
import time
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING

from vtep.capture.outer_frame import TTL, DatagramHeader
from vtep.io.addresses import sockaddr
from vtep.io.binding import Binding, connected_socket
from vtep.io.path import FLOW_BITS, Path
from vtep.io.shared_socket import SendingSocket
from vtep.wire import outer_header
from vtep.wire.address import Address, version_of, without_scope

if TYPE_CHECKING:
    from vtep.daemon.listener import Endpoint
    from vtep.datapath.pool import Paths
    from vtep.forwarding.fdb import Remote

_KEEP_S = 10.0
"""Seconds for which an own address is kept: routes may change."""

_ADDRESSES_MAX = 4096

_TTL_OPTIONS = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_TTL),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS),
}

_UNKNOWN: dict[int, Address] = {4: ip_address("0.0.0.0"), 6: ip_address("::")}  # noqa: S104  nothing is bound to it


class OuterAddresses:
    """Looks up own addresses, and the fields that sockets add to datagrams."""

    def __init__(self) -> None:
        # Own addresses by binding and remote host.
        self._own: dict[tuple[Binding, str], Address] = {}
        self._received: dict[tuple[Endpoint, str, int, int], DatagramHeader] = {}
        self._keep_until = 0.0

    def received(self, endpoint: "Endpoint", host: str, port: int, ecn: int) -> DatagramHeader:
        """Return the header of a datagram from a host. TTL, DSCP and checksum are not known."""
        own = self._own_address(endpoint.binding, host)
        key = (endpoint, host, port, ecn)
        found = self._received.get(key)
        if found is None:
            found = self._received[key] = DatagramHeader(
                *(_address(host), own, port, endpoint.port),
                tos=ecn,
                # Without a checksum, IPv6 would be shown as damaged (RFC 8200, section 8.1).
                has_checksum=version_of(host) == 6,
            )
        return found

    def echo(self, endpoint: "Endpoint", host: str, port: int) -> DatagramHeader:
        """Return the header of an echo message to a host."""
        return DatagramHeader(
            *(self._own_address(endpoint.binding, host), _address(host), endpoint.port, port),
            df=True,
        )

    def sent(
        self, paths: "Paths", remote: "Remote", flow: int, now: float, *, is_flood: bool
    ) -> DatagramHeader:
        """Return the header of a datagram that was sent to a remote.

        `flow` and `now` are those of the send; `is_flood` says that it had many remotes.
        """
        options, binding = paths.options, paths.binding(remote)
        tos, ttl, flowlabel = outer_header.unpack(flow >> FLOW_BITS)
        destination = _address(remote.host)
        source, source_port, default_ttl = _UNKNOWN[binding.version], 0, TTL
        sender = _sender(paths, remote, flow, now, is_flood=is_flood)
        with suppress(OSError):
            if sender is not None:
                host, source_port, *_ = sender.getsockname()
                source = _address(host)
            if isinstance(sender, socket.socket):
                default_ttl = sender.getsockopt(*_TTL_OPTIONS[binding.family])
        if source.is_unspecified:
            source = self._own_address(binding, remote.host)
        if destination.is_multicast:
            default_ttl = 1  # As in `OuterHeaderOptions.apply`.
        return DatagramHeader(
            *(source, destination, source_port, remote.port),
            tos=tos or options.tos,
            ttl=ttl or options.ttl or default_ttl,
            flowlabel=flowlabel or options.flowlabel,
            df=options.df or Path.wants_df(flow),
            has_checksum=options.has_checksum(binding.family),
        )

    def _own_address(self, binding: Binding, host: str) -> Address:
        """Return the address from which this host sends to another one."""
        now = time.monotonic()
        most = max(len(self._own), len(self._received))
        if now >= self._keep_until or most >= _ADDRESSES_MAX:
            self._own.clear()
            self._received.clear()
            self._keep_until = now + _KEEP_S
        if binding.local is not None:
            return binding.local
        found = self._own.get((binding, host))
        if found is None:
            found = _UNKNOWN[version_of(host)]
            with suppress(OSError), connected_socket(binding, sockaddr(host, 9)) as sock:
                found = _address(sock.getsockname()[0])
            self._own[binding, host] = found
        return found


def _address(host: str) -> Address:
    return without_scope(ip_address(host))


def _sender(
    paths: "Paths", remote: "Remote", flow: int, now: float, *, is_flood: bool
) -> SendingSocket | None:
    """Return the open socket that has sent a flow; None if it is not known."""
    if is_flood and (remote.via, remote.vni) == (None, None):
        return paths.flood_socket(remote, flow)
    path = paths.get(remote)
    if isinstance(path, Path) and path.fileno(flow) >= 0:
        return path.socket(flow, now)
    return None
