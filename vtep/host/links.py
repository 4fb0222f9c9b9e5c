"""The network devices of this host and how they are stacked, from rtnetlink messages. No I/O.

The messages are those of `rtnetlink(7)`: answers to RTM_GETLINK and the events of RTNLGRP_LINK.
"""

from collections.abc import Iterable, Iterator
from struct import Struct

from attrs import frozen

_HEADER = Struct("=IH2x8xBxHi8x")
"""struct nlmsghdr and struct ifinfomsg: length and type; address family and index."""

_ATTRIBUTE = Struct("=HH")
_INDEX = Struct("=i")

# From the kernel's include/uapi/linux/rtnetlink.h and if_link.h.
_RTM_NEWLINK = 16
_RTM_DELLINK = 17
_AF_UNSPEC = 0
_IFLA_LINK = 5
_IFLA_MASTER = 10
_IFLA_LINKINFO = 18
_IFLA_LINK_NETNSID = 37
_IFLA_INFO_KIND = 1
_NESTED = 0x3FFF
"""Bits of an attribute's type that are not flags."""


@frozen
class Link:
    """A device: those that it is stacked on or is a port of, by index, or 0; and its driver.

    `lower` is the device below a VLAN or macvlan device, and the other end of a veth pair; 0 where
    that is in another network namespace.
    """

    master: int = 0
    lower: int = 0
    kind: str = ""


class LinkTable:
    """The devices of this network namespace by index, as far as messages have told of them."""

    def __init__(self) -> None:
        self._links: dict[int, Link] = {}

    def update(self, messages: bytes) -> bool:
        """Take over what messages say; return whether devices are stacked in another way now."""
        changed = False
        for kind, index, attributes in _messages(messages):
            before = self._links.get(index)
            if kind == _RTM_NEWLINK:
                self._links[index] = after = _link(attributes)
                changed |= before != after
            else:
                changed |= self._links.pop(index, None) is not None
        return changed

    def clear(self) -> None:
        """Forget all, as before a new dump of what there is."""
        self._links.clear()

    def above(self, devices: Iterable[int]) -> set[int]:
        """Return devices and all by which the host receives what arrives through them.

        Those are the bridges (and bonds, and VRFs) that they are ports of, and VLAN, macvlan and
        other devices on top of those. A bridge may also lead into a veth pair whose other end is
        here too.
        """
        on_top: dict[int, list[int]] = {}
        veths: dict[int, list[int]] = {}
        for index, link in self._links.items():
            if link.lower and link.kind != "veth":
                on_top.setdefault(link.lower, []).append(index)
            elif link.lower and link.master:
                veths.setdefault(link.master, []).append(link.lower)
        found: set[int] = set()
        left = list(devices)
        while left:
            index = left.pop()
            if index in found:
                continue
            found.add(index)
            link = self._links.get(index, Link())
            if link.master:
                left.append(link.master)
            left += on_top.get(index, ())
            if link.kind == "bridge":
                left += veths.get(index, ())
        return found

    def is_tap(self, device: int) -> bool:
        """Return whether a device is a TAP (or TUN) device."""
        return self._links.get(device, Link()).kind == "tun"

    def vrf(self, device: int) -> int:
        """Return the VRF that a device is a port of, by which its packets seem to arrive, or 0."""
        master = self._links.get(device, Link()).master
        return master if self._links.get(master, Link()).kind == "vrf" else 0


def _messages(data: bytes) -> Iterator[tuple[int, int, dict[int, bytes]]]:
    """Yield the type, the device and the attributes of each message about a device itself."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, family, _, index = _HEADER.unpack_from(data, at)
        end = at + max(length, _HEADER.size)
        # A bridge tells of its ports in its own address family, and of their end as RTM_DELLINK.
        if kind in (_RTM_NEWLINK, _RTM_DELLINK) and family == _AF_UNSPEC:
            yield kind, index, dict(_attributes(data[at + _HEADER.size : end]))
        at = end + 3 & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        yield kind & _NESTED, data[at + _ATTRIBUTE.size : at + length]
        at += max(length + 3 & ~3, _ATTRIBUTE.size)


def _link(attributes: dict[int, bytes]) -> Link:
    kind = dict(_attributes(attributes.get(_IFLA_LINKINFO, b""))).get(_IFLA_INFO_KIND, b"")
    elsewhere = _IFLA_LINK_NETNSID in attributes
    return Link(
        master=_index(attributes.get(_IFLA_MASTER)),
        lower=0 if elsewhere else _index(attributes.get(_IFLA_LINK)),
        kind=kind.rstrip(b"\0").decode(errors="replace"),
    )


def _index(value: bytes | None) -> int:
    if value is None or len(value) != _INDEX.size:
        return 0
    index: int
    (index,) = _INDEX.unpack(value)
    return index
