"""EVPN routes (RFC 7432, section 7): the NLRI of MP_REACH_NLRI and MP_UNREACH_NLRI.

::

    +--------+--------+-------------------------+
    | type   | length | route, `length` octets  |
    +--------+--------+-------------------------+
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import NamedTuple

from vtep.wire.address import Address
from vtep.wire.bgp.communities import ASN_MAX, decimal

MAC_IP = 2
"""Route type: MAC/IP Advertisement (RFC 7432, section 7.2)."""

MULTICAST = 3
"""Route type: Inclusive Multicast Ethernet Tag (RFC 7432, section 7.3)."""

NO_ESI = bytes(10)
"""The Ethernet Segment Identifier of a single-homed site (RFC 7432, section 5)."""

RouteKey = tuple[object, ...]
"""The fields by which two routes are the same (RFC 7432, sections 7.2 and 7.3), hashable."""

_RD_ASN16 = Struct("!HHI")
_RD_IPV4 = Struct("!H4sH")
_RD_ASN32 = Struct("!HIH")

_MAC_IP = Struct("!BB8s10sIB6sB")
_MAC_IP_BODY = Struct("!8s10sIB6sB")
_MAC_IP_LEN = _MAC_IP_BODY.size
_MAC_BITS = 48
_IP_BITS = (0, 32, 128)
_LABEL_LEN = 3
_MULTICAST = Struct("!BB8sIB")
_MULTICAST_BODY = Struct("!8sIB")
_MULTICAST_LEN = _MULTICAST_BODY.size


class RouteDistinguisher(NamedTuple):
    """A route distinguisher of 8 octets (RFC 4364, section 4.2)."""

    octets: bytes

    @classmethod
    def of(cls, address: IPv4Address, number: int) -> "RouteDistinguisher":
        """Return the type 1 route distinguisher ADDRESS:NUMBER, as RFC 7432, section 7.9, advises.

        Raises: ValueError if the number does not have 16 bits.
        """
        if not 0 <= number <= 0xFFFF:
            raise ValueError(f"has the number {number}, which is not from 0 to {0xFFFF}")
        return cls(_RD_IPV4.pack(1, address.packed, number))

    @classmethod
    def parse(cls, text: str) -> "RouteDistinguisher":
        """Parse "192.0.2.1:100", "65000:100" or "4200000000:100".

        Raises: ValueError with a reason that follows the value in a message.
        """
        administrator, _, digits = text.rpartition(":")
        number = decimal(digits)
        asn = decimal(administrator)
        if asn is not None and number is not None:
            if asn > ASN_MAX:
                raise ValueError(f"has the AS number {asn}, which is not from 0 to {ASN_MAX}")
            maximum = ASN_MAX if asn <= 0xFFFF else 0xFFFF
            if number > maximum:
                raise ValueError(f"has the number {number}, which is not from 0 to {maximum}")
            if asn <= 0xFFFF:
                return cls(_RD_ASN16.pack(0, asn, number))
            return cls(_RD_ASN32.pack(2, asn, number))
        try:
            address = IPv4Address(administrator)
        except ValueError:
            number = None
        if number is None:
            raise ValueError("is not a route distinguisher as 192.0.2.1:100 or 65000:100")
        return cls.of(address, number)

    @property
    def text(self) -> str:
        """The text that `parse` understands; an unknown type in hexadecimal digits."""
        match self.octets[:2]:
            case b"\0\0":
                _, administrator, number = _RD_ASN16.unpack(self.octets)
            case b"\0\1":
                _, address, number = _RD_IPV4.unpack(self.octets)
                administrator = IPv4Address(address)
            case b"\0\2":
                _, administrator, number = _RD_ASN32.unpack(self.octets)
            case _:
                return f"0x{self.octets.hex()}"
        return f"{administrator}:{number}"

    def __str__(self) -> str:
        return self.text


class MacIpRoute(NamedTuple):
    """A MAC/IP Advertisement route, type 2; `ip` is None in a route of the MAC only.

    `label` is the raw field of 24 bits, which is the VNI (RFC 8365, section 5.1.3); `label2` is the
    VNI of the IP VRF in symmetric routing (RFC 9135).
    """

    rd: RouteDistinguisher
    esi: bytes
    ethernet_tag: int
    mac: bytes
    ip: Address | None
    label: int
    label2: int | None = None

    @property
    def key(self) -> RouteKey:
        """All fields but the ESI and the labels."""
        return (MAC_IP, self.rd, self.ethernet_tag, self.mac, self.ip)


class MulticastRoute(NamedTuple):
    """An Inclusive Multicast Ethernet Tag route, type 3; `ip` is the originating VTEP."""

    rd: RouteDistinguisher
    ethernet_tag: int
    ip: Address

    @property
    def key(self) -> RouteKey:
        """All fields."""
        return (MULTICAST, self.rd, self.ethernet_tag, self.ip)


class OtherRoute(NamedTuple):
    """A route of a type that is not used here; `octets` follow type and length."""

    kind: int
    octets: bytes

    @property
    def key(self) -> RouteKey:
        """All octets."""
        return (self.kind, self.octets)


Route = MacIpRoute | MulticastRoute | OtherRoute


def pack_route(route: Route) -> bytes:
    """Pack one route with its type and length."""
    match route:
        case MacIpRoute(rd, esi, tag, mac, ip, label, label2):
            address = b"" if ip is None else ip.packed
            labels = label.to_bytes(3) + (b"" if label2 is None else label2.to_bytes(3))
            length = _MAC_IP_LEN + len(address) + len(labels)
            head = _MAC_IP.pack(MAC_IP, length, rd.octets, esi, tag, 48, mac, 8 * len(address))
            return head + address + labels
        case MulticastRoute(rd, tag, ip):
            address = ip.packed
            length = _MULTICAST_LEN + len(address)
            head = _MULTICAST.pack(MULTICAST, length, rd.octets, tag, 8 * len(address))
            return head + address
        case OtherRoute(kind, octets):
            return bytes((kind, len(octets))) + octets


def pack_routes(routes: Iterable[Route]) -> bytes:
    """Pack routes one after the other."""
    return b"".join(map(pack_route, routes))


def parse_routes(octets: bytes) -> list[Route]:
    """Parse routes that follow each other.

    A type 2 route whose MAC does not have 48 bits is an `OtherRoute`, since RFC 7432 (section 7.2)
    leaves such MACs undefined.

    Raises: ValueError if a route is truncated, or the fields of type 2 or 3 contradict its length.
    """
    routes: list[Route] = []
    offset, end = 0, len(octets)
    while offset < end:
        if offset + 2 > end:
            raise ValueError("an EVPN route is truncated")
        kind, length = octets[offset], octets[offset + 1]
        offset += 2
        if offset + length > end:
            raise ValueError(f"an EVPN route of type {kind} is truncated")
        if kind == MAC_IP:
            routes.append(_parse_mac_ip(octets, offset, length))
        elif kind == MULTICAST:
            routes.append(_parse_multicast(octets, offset, length))
        else:
            routes.append(OtherRoute(kind, octets[offset : offset + length]))
        offset += length
    return routes


def _parse_mac_ip(octets: bytes, offset: int, length: int) -> MacIpRoute | OtherRoute:
    if length < _MAC_IP_LEN + _LABEL_LEN:
        raise ValueError(f"a MAC/IP Advertisement route has a length of {length}")
    rd, esi, tag, mac_bits, mac, ip_bits = _MAC_IP_BODY.unpack_from(octets, offset)
    if mac_bits != _MAC_BITS:
        return OtherRoute(MAC_IP, octets[offset : offset + length])
    at = offset + _MAC_IP_LEN
    labels_len = length - _MAC_IP_LEN - ip_bits // 8
    if ip_bits not in _IP_BITS or labels_len not in (_LABEL_LEN, 2 * _LABEL_LEN):
        raise ValueError(
            f"a MAC/IP Advertisement route of length {length} has an IP address of {ip_bits} bits"
        )
    ip: Address | None = None
    if ip_bits == 32:
        ip = IPv4Address(octets[at : at + 4])
        at += 4
    elif ip_bits:
        ip = IPv6Address(octets[at : at + 16])
        at += 16
    label = int.from_bytes(octets[at : at + 3])
    label2 = int.from_bytes(octets[at + 3 : at + 6]) if labels_len > _LABEL_LEN else None
    return MacIpRoute(RouteDistinguisher(rd), esi, tag, mac, ip, label, label2)


def _parse_multicast(octets: bytes, offset: int, length: int) -> MulticastRoute:
    if length >= _MULTICAST_LEN:
        rd, tag, ip_bits = _MULTICAST_BODY.unpack_from(octets, offset)
        address = octets[offset + _MULTICAST_LEN : offset + length]
        if 8 * len(address) == ip_bits == 32:
            return MulticastRoute(RouteDistinguisher(rd), tag, IPv4Address(address))
        if 8 * len(address) == ip_bits == 128:
            return MulticastRoute(RouteDistinguisher(rd), tag, IPv6Address(address))
    raise ValueError(f"an Inclusive Multicast Ethernet Tag route has a length of {length}")
