"""A network device of `MemoryNetwork`, and the kernel's messages about it."""

import socket
from struct import Struct
from typing import Final

from attrs import define, field

from vtep.wire.address import Interface

# From the kernel's include/uapi/linux/rtnetlink.h, if_link.h and if.h.
RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
_IFLA_IFNAME = 3
_IFLA_MTU = 4
_IFLA_LINK = 5
_IFLA_MASTER = 10
_IFLA_LINKINFO = 18
_IFLA_INFO_KIND = 1
_IFF_UP = 1

_HEADER = Struct("=IH2x8xBxHiI4x")
"""struct nlmsghdr and struct ifinfomsg: length and type; address family, index and flags."""

_ATTRIBUTE = Struct("=HH")
_INDEX = Struct("=i")


@define
class MemoryDevice:
    """A network device: its settings, and the devices that it is stacked on, by index."""

    index: int
    kind: str
    mtu: int = 1500
    mac: bytes = bytes(6)
    master: int = 0
    lower: int = 0
    is_up: bool = False
    addresses: set[Interface] = field(factory=set)


def link_message(kind: int, device: MemoryDevice, name: str) -> bytes:
    """Return an rtnetlink message about a device."""
    info = _attribute(_IFLA_INFO_KIND, device.kind.encode() + b"\0") if device.kind else b""
    body = _attribute(_IFLA_LINKINFO, info) + _attribute(_IFLA_IFNAME, name.encode() + b"\0")
    for number, value in (
        (_IFLA_MTU, device.mtu),
        (_IFLA_MASTER, device.master),
        (_IFLA_LINK, device.lower),
    ):
        if value:
            body += _attribute(number, _INDEX.pack(value))
    length = _HEADER.size + len(body)
    flags = _IFF_UP if device.is_up else 0
    return _HEADER.pack(length, kind, socket.AF_UNSPEC, 0, device.index, flags) + body


def _attribute(number: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return (_ATTRIBUTE.pack(length, number) + value).ljust(length + 3 & ~3, b"\0")
