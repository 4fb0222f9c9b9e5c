"""The network devices of this host and how they are stacked, from rtnetlink messages. No I/O.

The messages are those of `rtnetlink(7)`: replies to RTM_GETLINK and events of RTNLGRP_LINK.
"""

from collections.abc import Iterable, Iterator
from struct import Struct

from attrs import field, frozen

_HEADER = Struct("=IH2x8xBxHiI4x")
"""struct nlmsghdr and struct ifinfomsg: length and type; address family, index and flags."""

_ATTRIBUTE = Struct("=HH")
_INDEX = Struct("=i")
_VLAN_ID = Struct("=H")
_VLAN_INFO = Struct("=HH")
"""struct bridge_vlan_info: flags and VLAN ID."""


# From the kernel's include/uapi/linux/rtnetlink.h and if_link.h.
_RTM_NEWLINK = 16
_RTM_DELLINK = 17
_AF_UNSPEC = 0
_AF_BRIDGE = 7
_IFLA_ADDRESS = 1
_IFLA_IFNAME = 3
_IFLA_MTU = 4
_IFLA_LINK = 5
_IFLA_MASTER = 10
_IFLA_LINKINFO = 18
_IFLA_LINK_NETNSID = 37
_IFLA_INFO_KIND = 1
_IFLA_INFO_DATA = 2
_IFLA_INFO_SLAVE_KIND = 4
_IFLA_INFO_SLAVE_DATA = 5
_IFLA_BRPORT_LEARNING = 8
_IFLA_BR_VLAN_FILTERING = 7
_IFLA_VLAN_ID = 1
_IFLA_AF_SPEC = 26
_IFLA_BRIDGE_VLAN_INFO = 2
_BRIDGE_VLAN_INFO_PVID = 2
_IFF_UP = 1
_NLA_TYPE_MASK = 0x3FFF
"""The bits of an attribute's type that are not flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER)."""


@frozen
class Link:
    """A device: the indices of its master and of its lower device, or 0, and its kind.

    `lower` is the device below a VLAN or macvlan device, and the peer of a veth device; 0 if that
    is in another network namespace. `kind` is that of `ip link show type`. Links are equal if they
    are stacked equally: name, MTU and state say nothing about that.
    """

    master: int = 0
    lower: int = 0
    kind: str = ""
    name: str = field(default="", eq=False)
    mtu: int = field(default=0, eq=False)
    """In octets; 0 if it is not known."""
    is_up: bool = field(default=False, eq=False)
    """True if the device is administratively up (IFF_UP)."""

    mac: bytes = field(default=b"", eq=False)
    port_learning: bool | None = field(default=None, eq=False)
    """True if a bridge learns from its port; None if the device is no port of a bridge."""

    vlan_filtering: bool = field(default=False, eq=False)
    """True for a bridge that separates VLANs."""

    vlan_id: int = field(default=0, eq=False)
    """The VLAN of a device of kind "vlan"."""


class LinkTable:
    """The devices of this network namespace by index, as learned from messages."""

    def __init__(self) -> None:
        self._links: dict[int, Link] = {}

    def update(self, messages: bytes) -> bool:
        """Apply messages. Returns: True if they changed how devices are stacked."""
        changed = False
        for index, link in parse_links(messages):
            if link is not None:
                before = self._links.get(index)
                self._links[index] = link
                changed |= before != link
            else:
                changed |= self._links.pop(index, None) is not None
        return changed

    def clear(self) -> None:
        """Forget all devices, before a new dump."""
        self._links.clear()

    def with_upper(self, devices: Iterable[int]) -> set[int]:
        """Return devices with all upper devices, at any depth.

        These are the devices on which the host receives packets that arrive through `devices`: the
        masters of ports (bridges, bonds, VRFs) and the devices on top (VLANs, macvlans). A bridge
        also leads into a veth device that is its port, and so to the peer if that is here.
        """
        on_top: dict[int, list[int]] = {}
        peers: dict[int, list[int]] = {}
        for index, link in self._links.items():
            if link.lower and link.kind != "veth":
                on_top.setdefault(link.lower, []).append(index)
            elif link.lower and link.master:
                peers.setdefault(link.master, []).append(link.lower)
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
                left += peers.get(index, ())
        return found

    def get(self, device: int) -> Link | None:
        """Return a device, or None if there is none with this index."""
        return self._links.get(device)

    def is_tap(self, device: int) -> bool:
        """Return True for a TAP or TUN device, which have one kind."""
        return self._links.get(device, Link()).kind == "tun"

    def vrf(self, device: int) -> int:
        """Return the VRF that a device is a port of, or 0.

        To sockets and netfilter, the packets of such a device arrive on the VRF.
        """
        master = self._links.get(device, Link()).master
        return master if self._links.get(master, Link()).kind == "vrf" else 0


def parse_links(messages: bytes) -> Iterator[tuple[int, Link | None]]:
    """Yield index and device of each message; None in place of a device that is gone."""
    for kind, family, index, flags, attributes in _messages(messages):
        # A bridge sends messages about its ports in AF_BRIDGE. Among them is an RTM_DELLINK when a
        # port leaves, which does not mean that the device is gone.
        if family != _AF_UNSPEC:
            continue
        if kind == _RTM_NEWLINK:
            yield index, _parse_link(flags, attributes)
        elif kind == _RTM_DELLINK:
            yield index, None


def parse_pvids(messages: bytes) -> Iterator[tuple[int, int]]:
    """Yield index and PVID of each bridge port, or bridge, in messages of AF_BRIDGE; 0 for none.

    The PVID is the VLAN of untagged frames.
    """
    for kind, family, index, _, attributes in _messages(messages):
        if kind == _RTM_NEWLINK and family == _AF_BRIDGE and _IFLA_AF_SPEC in attributes:
            pvid = 0
            # There is one attribute for each VLAN, or range of VLANs.
            for name, value in _attributes(attributes[_IFLA_AF_SPEC]):
                if name == _IFLA_BRIDGE_VLAN_INFO and len(value) == _VLAN_INFO.size:
                    flags, vlan = _VLAN_INFO.unpack(value)
                    if flags & _BRIDGE_VLAN_INFO_PVID:
                        pvid = vlan
            yield index, pvid


def changed_links(messages: bytes) -> set[int]:
    """Return the indices of the devices that messages are about, and of their masters."""
    indices = set()
    for _, _, index, _, attributes in _messages(messages):
        indices.add(index)
        if master := _index(attributes.get(_IFLA_MASTER)):
            indices.add(master)
    return indices


def _messages(data: bytes) -> Iterator[tuple[int, int, int, int, dict[int, bytes]]]:
    """Yield type, address family, device index, flags and attributes of each link message."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, family, _, index, flags = _HEADER.unpack_from(data, at)
        # The minimum ends the loop even if a length is 0.
        end = at + max(length, _HEADER.size)
        yield kind, family, index, flags, dict(_attributes(data[at + _HEADER.size : end]))
        at = end + 3 & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and value of each attribute (struct rtattr)."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        yield kind & _NLA_TYPE_MASK, data[at + _ATTRIBUTE.size : at + length]
        at += max(length + 3 & ~3, _ATTRIBUTE.size)


def _parse_link(flags: int, attributes: dict[int, bytes]) -> Link:
    """Parse the flags and the attributes of a link message."""
    info = dict(_attributes(attributes.get(_IFLA_LINKINFO, b"")))
    kind = _text(info.get(_IFLA_INFO_KIND))
    learning = None
    if _text(info.get(_IFLA_INFO_SLAVE_KIND)) == "bridge":
        port = dict(_attributes(info.get(_IFLA_INFO_SLAVE_DATA, b"")))
        learning = port.get(_IFLA_BRPORT_LEARNING) != b"\0"
    data = dict(_attributes(info.get(_IFLA_INFO_DATA, b"")))
    vlan = data.get(_IFLA_VLAN_ID, b"") if kind == "vlan" else b""
    # IFLA_LINK is an index in the other namespace then, where it may be any device of ours.
    elsewhere = _IFLA_LINK_NETNSID in attributes
    return Link(
        master=_index(attributes.get(_IFLA_MASTER)),
        lower=0 if elsewhere else _index(attributes.get(_IFLA_LINK)),
        kind=kind,
        name=_text(attributes.get(_IFLA_IFNAME)),
        mtu=_index(attributes.get(_IFLA_MTU)),
        is_up=bool(flags & _IFF_UP),
        mac=attributes.get(_IFLA_ADDRESS, b""),
        port_learning=learning,
        vlan_filtering=kind == "bridge" and data.get(_IFLA_BR_VLAN_FILTERING) == b"\1",
        vlan_id=_VLAN_ID.unpack(vlan)[0] if len(vlan) == _VLAN_ID.size else 0,
    )


def _text(value: bytes | None) -> str:
    """Decode a text that ends with a zero octet. Returns: an empty text if it is absent."""
    return (value or b"").rstrip(b"\0").decode(errors="replace")


def _index(value: bytes | None) -> int:
    """Parse a device index, or another number. Returns: 0 if it is absent or malformed."""
    if value is None or len(value) != _INDEX.size:
        return 0
    index: int
    (index,) = _INDEX.unpack(value)
    return index
