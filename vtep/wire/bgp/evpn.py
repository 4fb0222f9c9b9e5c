"""EVPN routes (RFC 7432, section 7): the NLRI of MP_REACH_NLRI and MP_UNREACH_NLRI.

::

    +--------+--------+-------------------------+
    | type   | length | route, `length` octets  |
    +--------+--------+-------------------------+
"""

from collections.abc import Iterable
from ipaddress import IPv4Address
from struct import Struct
from typing import NamedTuple

from vtep.wire.address import Address

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
        raise NotImplementedError

    @property
    def text(self) -> str:
        """The text that `parse` understands; an unknown type in hexadecimal digits."""
        raise NotImplementedError

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
    raise NotImplementedError


def pack_routes(routes: Iterable[Route]) -> bytes:
    """Pack routes one after the other."""
    return b"".join(map(pack_route, routes))


def parse_routes(octets: bytes) -> list[Route]:
    """Parse routes that follow each other.

    Raises: ValueError if a route is truncated, or the fields of type 2 or 3 contradict its length.
    """
    raise NotImplementedError
