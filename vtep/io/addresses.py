"""Addresses as sockets take and report them, on top of the rules of `vtep.wire.address`."""

import socket
import struct
from functools import lru_cache
from ipaddress import IPv4Address
from typing import Final, TypeAlias

from vtep.host.devices import need_device_index
from vtep.wire.address import Address, scope_of

Sockaddr: TypeAlias = tuple[str, int] | tuple[str, int, int, int]
"""Host and port, and for IPv6 the flow label and the scope id, which is the index of a device."""

_FAMILY = struct.Struct("=H")
_PORT = struct.Struct("!H")
_SCOPE = struct.Struct("=I")

FAMILY: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
"""Address families by IP version."""


def family_of(host: str) -> socket.AddressFamily:
    """Return the family of a numeric address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def host_of(address: Address, dev: str | None) -> str:
    """Return an address as receivers report the source of a datagram that arrived on `dev`.

    A link-local address is followed by the name of its device: `fe80::1%eth0`.
    """
    if isinstance(address, IPv4Address):
        return str(address)
    scope = scope_of(address, dev)
    host = socket.inet_ntop(socket.AF_INET6, address.packed)
    return f"{host}%{scope}" if scope else host


def sockaddr(host: str, port: int, flowlabel: int = 0) -> Sockaddr:
    """Return what `connect` takes for a host that `host_of` has formatted.

    Raises: OSError if there is no device of that name.
    """
    if ":" not in host:
        return host, port
    address, _, scope = host.partition("%")
    return address, port, flowlabel, need_device_index(scope) if scope else 0


@lru_cache
def device_name(index: int) -> str:
    """Return the name of a device. Raises: OSError if it is absent, or cannot be looked up.

    Names are cached, since each datagram from a link-local address needs one. When links have
    changed, call `device_name.cache_clear()`. Errors are not cached.
    """
    return socket.if_indextoname(index)


def unpack_sockaddr(packed: bytes) -> tuple[str, int]:
    """Return host and port of a struct sockaddr_in or sockaddr_in6, as receivers report them."""
    (family,) = _FAMILY.unpack_from(packed)
    (port,) = _PORT.unpack_from(packed, 2)
    if family == socket.AF_INET:
        return socket.inet_ntop(family, packed[4:8]), port
    host = socket.inet_ntop(socket.AF_INET6, packed[8:24])
    (scope,) = _SCOPE.unpack_from(packed, 24)
    if not scope:
        return host, port
    try:
        return f"{host}%{device_name(scope)}", port
    except OSError:
        return f"{host}%{scope}", port
