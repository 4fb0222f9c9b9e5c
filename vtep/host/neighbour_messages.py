"""Messages of rtnetlink about FDB entries, neighbours and addresses: parse and build. No I/O.

The kernel treats an entry of a bridge's FDB as a neighbour of the address family AF_BRIDGE (struct
ndmsg, RTM_NEWNEIGH and RTM_DELNEIGH of rtnetlink(7)). Parsers never raise: a malformed message is
treated like one of an unknown type.
"""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import NamedTuple

from vtep.wire.address import Address

# From the kernel's include/uapi/linux/netlink.h, rtnetlink.h, neighbour.h, if_addr.h, if_link.h.
AF_INET = 2
AF_BRIDGE = 7
AF_INET6 = 10

NLMSG_ERROR = 2
NLMSG_DONE = 3
RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_SETLINK = 19
RTM_NEWADDR = 20
RTM_DELADDR = 21
RTM_GETADDR = 22
RTM_NEWNEIGH = 28
RTM_DELNEIGH = 29
RTM_GETNEIGH = 30

NUD_REACHABLE = 0x02
NUD_STALE = 0x04
NUD_DELAY = 0x08
NUD_PROBE = 0x10
NUD_NOARP = 0x40
NUD_PERMANENT = 0x80
NUD_RESOLVED = NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_PERMANENT
"""The states of a neighbour with a MAC address that a host has announced or a user has set."""

NTF_USE = 0x01
NTF_MASTER = 0x04
NTF_OFFLOADED = 0x20
NTF_EXT_LEARNED = 0x10
NTF_STICKY = 0x40
NTF_ROUTER = 0x80

_NLM_F_REQUEST = 0x1
_NLM_F_DUMP = 0x300
_NLM_F_REPLACE = 0x100
_NLM_F_CREATE = 0x400
_NLM_F_DUMP_INTR = 0x10
_NLA_TYPE_MASK = 0x3FFF
_NLA_F_NESTED = 0x8000
_NDA_DST = 1
_NDA_LLADDR = 2
_NDA_VLAN = 5
_NDA_MASTER = 9
_IFA_ADDRESS = 1
_IFA_LOCAL = 2
_IFA_FLAGS = 8
_IFA_F_DADFAILED = 0x08
_IFA_F_TENTATIVE = 0x40
_IFLA_PROTINFO = 12
_IFLA_EXT_MASK = 29
_RTEXT_FILTER_BRVLAN_COMPRESSED = 4
_RTEXT_FILTER_SKIP_STATS = 8
_IFLA_BRPORT_LEARNING = 8

_MESSAGE = Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port ID."""

_NEIGHBOUR = Struct("=BxxxiHBB")
"""struct ndmsg: address family, index of the device or bridge port, state, flags, route type."""

_ADDRESS = Struct("=BBBBI")
"""struct ifaddrmsg: family, prefix length, flags, scope, index of the device."""

_POINT_TO_POINT = 31
"""Length of the prefix of a subnet without a broadcast address (RFC 3021)."""

_LINK = Struct("=BxHiII")
"""struct ifinfomsg: family, device type, index, flags, mask of changed flags."""

_ATTRIBUTE = Struct("=HH")
_U16 = Struct("=H")
_U32 = Struct("=I")
_INDEX = Struct("=i")
_MAC_OCTETS = 6
_IPV4 = 4
_IPV4_OCTETS = 4
_IPV6_OCTETS = 16


class NetlinkMessage(NamedTuple):
    """A netlink message: its type and sequence number, its octets, and where its body begins."""

    kind: int
    sequence: int
    is_interrupted: bool
    """True if what is dumped has changed during the dump (NLM_F_DUMP_INTR)."""

    data: bytes
    begin: int
    """The offset of the body in `data`."""

    end: int

    @property
    def whole(self) -> bytes:
        """The message with its header."""
        return self.data[self.begin - _MESSAGE.size : self.end]

    @property
    def error(self) -> int:
        """The errno of an NLMSG_ERROR or NLMSG_DONE message; 0 for none."""
        if self.end - self.begin < _INDEX.size:
            return 0
        number: int
        (number,) = _INDEX.unpack_from(self.data, self.begin)
        return max(0, -number)


class KernelNeighbour(NamedTuple):
    """An FDB entry, or a neighbour, that was added or changed; or deleted."""

    family: int
    is_deleted: bool
    device: int
    """The index of the device; in AF_BRIDGE, of the bridge port, or of the bridge itself."""

    state: int
    flags: int
    mac: bytes
    """6 octets, or empty."""

    ip: Address | None
    vlan: int
    master: int
    """In AF_BRIDGE, the index of the bridge; 0 for an entry of a device's own FDB (`self`)."""


class InterfaceAddress(NamedTuple):
    """An address of a device that was added, changed or deleted."""

    is_deleted: bool
    device: int
    ip: Address
    is_usable: bool
    """False during duplicate address detection, and after it has failed."""

    broadcast: Address | None = None
    """The directed broadcast address of its subnet, if that has one."""


def split_messages(data: bytes) -> Iterator[NetlinkMessage]:
    """Yield the messages of a datagram. A truncated one at the end is left out."""
    at, size = 0, len(data)
    while at + _MESSAGE.size <= size:
        length, kind, flags, sequence, _ = _MESSAGE.unpack_from(data, at)
        end = at + length
        if length < _MESSAGE.size or end > size:
            return
        interrupted = bool(flags & _NLM_F_DUMP_INTR)
        yield NetlinkMessage(kind, sequence, interrupted, data, at + _MESSAGE.size, end)
        at = end + 3 & ~3


def parse_neighbour(message: NetlinkMessage) -> KernelNeighbour | None:
    """Parse an RTM_NEWNEIGH or RTM_DELNEIGH message. Returns: None for any other."""
    kind, _, _, data, at, end = message
    if kind not in (RTM_NEWNEIGH, RTM_DELNEIGH) or at + _NEIGHBOUR.size > end:
        return None
    family, device, state, flags, _ = _NEIGHBOUR.unpack_from(data, at)
    mac = b""
    ip: Address | None = None
    vlan = master = 0
    # Without a generator: a bridge can report thousands of entries at once.
    at += _NEIGHBOUR.size
    while at + _ATTRIBUTE.size <= end:
        length, name = _ATTRIBUTE.unpack_from(data, at)
        value = data[at + _ATTRIBUTE.size : min(at + length, end)]
        if name == _NDA_LLADDR:
            mac = value if len(value) == _MAC_OCTETS else b""
        elif name == _NDA_MASTER:
            master = _unpack(_INDEX, value)
        elif name == _NDA_VLAN:
            vlan = _unpack(_U16, value)
        elif name == _NDA_DST and family != AF_BRIDGE:
            ip = _parse_ip(value)
        at += max(length + 3 & ~3, _ATTRIBUTE.size)
    return KernelNeighbour(
        family, kind == RTM_DELNEIGH, device, state, flags, mac, ip, vlan, master
    )


def parse_address(message: NetlinkMessage) -> InterfaceAddress | None:
    """Parse an RTM_NEWADDR or RTM_DELADDR message. Returns: None for any other."""
    kind, _, _, data, at, end = message
    if kind not in (RTM_NEWADDR, RTM_DELADDR) or at + _ADDRESS.size > end:
        return None
    _, prefix, flags, _, device = _ADDRESS.unpack_from(data, at)
    ip = local = None
    for name, value in _attributes(data[at + _ADDRESS.size : end]):
        if name == _IFA_ADDRESS:
            ip = _parse_ip(value)
        elif name == _IFA_LOCAL:
            local = _parse_ip(value)
        elif name == _IFA_FLAGS:
            flags = _unpack(_U32, value)
    # On a point-to-point link, IFA_ADDRESS is that of the peer.
    found = local or ip
    if found is None:
        return None
    usable = not flags & (_IFA_F_TENTATIVE | _IFA_F_DADFAILED)
    broadcast: Address | None = None
    # With a peer, the prefix is that of the peer. fib_add_ifaddr() makes no broadcast route then.
    if isinstance(found, IPv4Address) and found == ip and prefix < _POINT_TO_POINT:
        broadcast = IPv4Address(int(found) | (1 << 32 - prefix) - 1)
    return InterfaceAddress(kind == RTM_DELADDR, device, found, usable, broadcast)


def build_dump(kind: int, family: int, sequence: int) -> bytes:
    """Build a request for all links, addresses, or neighbours, to which FDB entries belong."""
    if kind == RTM_GETLINK:
        # Without the statistics, which are some 300 octets of each link; in AF_BRIDGE, with VLANs.
        mask = _U32.pack(_RTEXT_FILTER_SKIP_STATS | _RTEXT_FILTER_BRVLAN_COMPRESSED)
        body = _LINK.pack(family, 0, 0, 0, 0) + _attribute(_IFLA_EXT_MASK, mask)
    else:
        size = _NEIGHBOUR.size if kind == RTM_GETNEIGH else _ADDRESS.size
        body = bytes((family,)).ljust(size, b"\0")
    return _build(kind, _NLM_F_DUMP, sequence, body)


def build_fdb_entry(
    port: int, mac: bytes, sequence: int, *, state: int = NUD_NOARP, flags: int, vlan: int = 0
) -> bytes:
    """Build a request to create or replace an entry of the FDB of a port's bridge.

    The kernel answers only if it fails.
    """
    body = _NEIGHBOUR.pack(AF_BRIDGE, port, state, flags | NTF_MASTER, 0)
    body += _attribute(_NDA_LLADDR, mac)
    if vlan:
        body += _attribute(_NDA_VLAN, _U16.pack(vlan))
    return _build(RTM_NEWNEIGH, _NLM_F_CREATE | _NLM_F_REPLACE, sequence, body)


def build_fdb_deletion(port: int, mac: bytes, sequence: int, vlan: int = 0) -> bytes:
    """Build a request to delete an entry of the FDB of a port's bridge, if it is on this port."""
    body = _NEIGHBOUR.pack(AF_BRIDGE, port, 0, NTF_MASTER, 0) + _attribute(_NDA_LLADDR, mac)
    if vlan:
        body += _attribute(_NDA_VLAN, _U16.pack(vlan))
    return _build(RTM_DELNEIGH, 0, sequence, body)


def build_probe(device: int, ip: Address, sequence: int) -> bytes:
    """Build a request to verify a neighbour if it is stale (NTF_USE).

    The kernel answers only if there is no such neighbour.
    """
    family = AF_INET if ip.version == _IPV4 else AF_INET6
    body = _NEIGHBOUR.pack(family, device, 0, NTF_USE, 0) + _attribute(_NDA_DST, ip.packed)
    return _build(RTM_NEWNEIGH, 0, sequence, body)


def build_port_learning(port: int, sequence: int, *, on: bool) -> bytes:
    """Build a request to switch the learning of a bridge port (IFLA_BRPORT_LEARNING)."""
    learning = _attribute(_IFLA_BRPORT_LEARNING, bytes((on,)))
    body = _LINK.pack(AF_BRIDGE, 0, port, 0, 0) + _attribute(
        _IFLA_PROTINFO | _NLA_F_NESTED, learning
    )
    return _build(RTM_SETLINK, 0, sequence, body)


def _build(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    head = _MESSAGE.pack(_MESSAGE.size + len(body), kind, flags | _NLM_F_REQUEST, sequence, 0)
    return head + body.ljust(len(body) + 3 & ~3, b"\0")


def _attribute(kind: int, value: bytes) -> bytes:
    head = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind)
    return head + value.ljust(len(value) + 3 & ~3, b"\0")


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and value of each attribute (struct rtattr)."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        yield kind & _NLA_TYPE_MASK, data[at + _ATTRIBUTE.size : at + length]
        at += max(length + 3 & ~3, _ATTRIBUTE.size)


def _unpack(form: Struct, value: bytes) -> int:
    """Unpack a number. Returns: 0 if it is malformed."""
    if len(value) != form.size:
        return 0
    number: int
    (number,) = form.unpack(value)
    return number


def _parse_ip(value: bytes) -> Address | None:
    """Parse an IP address. Returns: None if it is of neither length."""
    if len(value) == _IPV4_OCTETS:
        return IPv4Address(value)
    return IPv6Address(value) if len(value) == _IPV6_OCTETS else None
