"""Extended communities that EVPN uses (RFC 4360, 7153, 7432, 8365, 9012, 9047).

Each has 8 octets; those of an IPv6 address 20 (RFC 5701). The first octet is the type, the second
one the subtype.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import NamedTuple

from attrs import define, field

from vtep.wire import vxlan

LEN = 8
"""Octets of an extended community."""

IPV6_LEN = 20
"""Octets of an IPv6 address specific extended community (RFC 5701, section 2)."""

ENCAPSULATION_VXLAN = 8
"""The tunnel type VXLAN (IANA, "BGP Tunnel Encapsulation Attribute Tunnel Types")."""

_ASN16 = Struct("!BBHI")
_ASN32 = Struct("!BBIH")
_IPV4 = Struct("!BB4sH")
_IPV6 = Struct("!BB16sH")
_FLAGS_VALUE = Struct("!BBBBI")

_ROUTE_TARGET = 2
_ROUTE_TARGETS = {(0, _ROUTE_TARGET), (1, _ROUTE_TARGET), (2, _ROUTE_TARGET)}
_ENCAPSULATION = (3, 12)
"""RFC 9012, section 4.1."""

_DEFAULT_GATEWAY = (3, 13)
"""RFC 7432, section 7.8."""

_MAC_MOBILITY = (6, 0)
_STICKY = 1
"""RFC 7432, section 7.7."""

_ARP_ND = (6, 8)
_ROUTER = 1
"""RFC 9047, section 2: the R flag."""

_AUTO_VXLAN = 1 << 28
"""Upper octet of an auto-derived number: A = 0, type 1 (VXLAN), domain ID 0 (RFC 8365, 5.1.2.1)."""

ASN_MAX = (1 << 32) - 1


class RouteTarget(NamedTuple):
    """A route target: the extended community that says which VNIs import a route.

    `octets` are the 8 octets of an extended community (RFC 4360, section 4; RFC 5668), or the 20
    of an IPv6 address specific one (RFC 5701).
    """

    octets: bytes

    @classmethod
    def of(cls, asn: int, number: int) -> "RouteTarget":
        """Return the route target ASN:NUMBER.

        Raises: ValueError if the ASN has no 32 bits, or the number more than 32 bits (16 bits with
        an ASN of four octets).
        """
        if not 0 <= asn <= ASN_MAX:
            raise ValueError(f"has the AS number {asn}, which is not from 0 to {ASN_MAX}")
        maximum = ASN_MAX if asn <= 0xFFFF else 0xFFFF
        if not 0 <= number <= maximum:
            raise ValueError(f"has the number {number}, which is not from 0 to {maximum}")
        if asn <= 0xFFFF:
            return cls(_ASN16.pack(0, _ROUTE_TARGET, asn, number))
        return cls(_ASN32.pack(2, _ROUTE_TARGET, asn, number))

    @classmethod
    def parse(cls, text: str) -> "RouteTarget":
        """Parse "65000:100", "4200000000:100", "192.0.2.1:100" or "[2001:db8::1]:100".

        Raises: ValueError with a reason that follows the value in a message.
        """
        administrator, _, number_text = text.rpartition(":")
        number = decimal(number_text)
        if number is None or not administrator:
            raise ValueError("is not a route target as 65000:100 or 192.0.2.1:100")
        asn = decimal(administrator)
        if asn is not None:
            return cls.of(asn, number)
        if number > 0xFFFF:
            raise ValueError(f"has the number {number}, which is not from 0 to {0xFFFF}")
        try:
            if "." in administrator and ":" not in administrator:
                packed = IPv4Address(administrator).packed
                return cls(_IPV4.pack(1, _ROUTE_TARGET, packed, number))
            packed = IPv6Address(administrator.removeprefix("[").removesuffix("]")).packed
        except ValueError:
            raise ValueError("is not a route target as 65000:100 or 192.0.2.1:100") from None
        return cls(_IPV6.pack(0, _ROUTE_TARGET, packed, number))

    @property
    def text(self) -> str:
        """The text that `parse` understands; an unknown form in hexadecimal digits."""
        octets = self.octets
        if len(octets) == IPV6_LEN:
            _, _, address, number = _IPV6.unpack(octets)
            return f"[{IPv6Address(address)}]:{number}"
        match octets[0] & 0xBF:  # Bit 6: not transitive.
            case 0:
                _, _, asn, number = _ASN16.unpack(octets)
                return f"{asn}:{number}"
            case 1:
                _, _, address, number = _IPV4.unpack(octets)
                return f"{IPv4Address(address)}:{number}"
            case 2:
                _, _, asn, number = _ASN32.unpack(octets)
                return f"{asn}:{number}"
        return f"0x{octets.hex()}"

    def vni_of_auto(self) -> int | None:
        """Return the VNI of an auto-derived route target, of any AS.

        There are two forms: AS:VNI (most implementations) and AS:0x10000000|VNI (RFC 8365, section
        5.1.2.1).
        """
        if len(self.octets) != LEN:
            return None
        match self.octets[0]:
            case 0:
                number: int = _ASN16.unpack(self.octets)[3]
            case 2:
                number = _ASN32.unpack(self.octets)[3]
            case _:
                return None
        if number & ~vxlan.VNI_MAX == _AUTO_VXLAN:
            number &= vxlan.VNI_MAX
        return number if number <= vxlan.VNI_MAX else None

    def __str__(self) -> str:
        return self.text


@define
class Communities:
    """Extended communities that concern EVPN, decoded."""

    route_targets: set[RouteTarget] = field(factory=set)
    encapsulations: set[int] = field(factory=set)
    sequence: int = 0
    sticky: bool = False
    default_gateway: bool = False
    router: bool = False

    def parse(self, octets: bytes) -> None:
        """Add communities of 8 octets each; unknown ones are ignored.

        Of several MAC Mobility communities, the highest sequence number counts.
        """
        for offset in range(0, len(octets), LEN):
            kind = octets[offset], octets[offset + 1]
            community = octets[offset : offset + LEN]
            if kind in _ROUTE_TARGETS:
                self.route_targets.add(RouteTarget(community))
            elif kind == _ENCAPSULATION:
                self.encapsulations.add(int.from_bytes(community[6:]))
            elif kind == _MAC_MOBILITY:
                self.sticky |= bool(community[2] & _STICKY)
                self.sequence = max(self.sequence, int.from_bytes(community[4:]))
            elif kind == _DEFAULT_GATEWAY:
                self.default_gateway = True
            elif kind == _ARP_ND:
                self.router |= bool(community[2] & _ROUTER)

    def parse_ipv6(self, octets: bytes) -> None:
        """Add IPv6 address specific communities of 20 octets each; unknown ones are ignored."""
        for offset in range(0, len(octets), IPV6_LEN):
            if (octets[offset], octets[offset + 1]) == (0, _ROUTE_TARGET):
                self.route_targets.add(RouteTarget(octets[offset : offset + IPV6_LEN]))


def pack_communities(
    encapsulations: Iterable[int],
    *,
    mobility: tuple[int, bool],
    default_gateway: bool,
    router: bool,
) -> list[bytes]:
    """Pack all communities but route targets; `mobility` has the sequence number and sticky."""
    sequence, sticky = mobility
    packed = [_pack(_ENCAPSULATION, 0, kind) for kind in sorted(encapsulations)]
    if default_gateway:
        packed.append(_pack(_DEFAULT_GATEWAY, 0, 0))
    if sequence or sticky:
        packed.append(_pack(_MAC_MOBILITY, _STICKY if sticky else 0, sequence))
    if router:
        packed.append(_pack(_ARP_ND, _ROUTER, 0))
    return packed


def _pack(kind: tuple[int, int], flags: int, value: int) -> bytes:
    return _FLAGS_VALUE.pack(*kind, flags, 0, value)


def decimal(text: str) -> int | None:
    """Return the number that a text of decimal digits is, of at most ten digits, or None."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 else None
