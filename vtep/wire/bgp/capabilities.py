"""Capabilities in OPEN messages (RFC 5492)."""

from collections.abc import Iterator, Mapping
from struct import Struct
from types import MappingProxyType

from attrs import frozen

from vtep.wire.bgp.errors import BgpError, ErrorCode, OpenError

_MULTIPROTOCOL = 1
_ROUTE_REFRESH = 2
_GRACEFUL_RESTART = 64
_FOUR_OCTET_ASN = 65
_ENHANCED_ROUTE_REFRESH = 70

_FAMILY = Struct("!HBB")
"""AFI, a reserved octet, SAFI (RFC 4760, section 8)."""

_FAMILY_FLAGS = Struct("!HBB")
"""AFI, SAFI, flags (RFC 4724, section 3)."""

_RESTARTING = 0x8000
_NOTIFICATION = 0x4000
_RESTART_TIME_MAX = 0x0FFF
_PRESERVED = 0x80

Family = tuple[int, int]
"""AFI and SAFI."""


@frozen
class GracefulRestart:
    """The capability for graceful restart (RFC 4724, section 3).

    `restart_time` is in seconds (0 to 4095); `families` says of each one whether its forwarding
    state was preserved. `notification` is the N bit (RFC 8538, section 2).
    """

    restarting: bool = False
    restart_time: int = 120
    families: Mapping[Family, bool] = MappingProxyType({})
    notification: bool = False


@frozen
class Capabilities:
    """The capabilities of a speaker.

    `four_octet_asn` is the AS number in the capability of RFC 6793, or None without it. `unknown`
    has the others: code and value.
    """

    families: frozenset[Family] = frozenset()
    four_octet_asn: int | None = None
    route_refresh: bool = False
    graceful_restart: GracefulRestart | None = None
    enhanced_route_refresh: bool = False
    unknown: tuple[tuple[int, bytes], ...] = ()

    def pack(self) -> bytes:
        """Pack the capabilities, without an optional parameter around them."""
        packed = [
            _pack(_MULTIPROTOCOL, _FAMILY.pack(afi, 0, safi)) for afi, safi in sorted(self.families)
        ]
        if self.route_refresh:
            packed.append(_pack(_ROUTE_REFRESH, b""))
        if self.graceful_restart is not None:
            packed.append(_pack(_GRACEFUL_RESTART, _pack_restart(self.graceful_restart)))
        if self.four_octet_asn is not None:
            packed.append(_pack(_FOUR_OCTET_ASN, self.four_octet_asn.to_bytes(4)))
        if self.enhanced_route_refresh:
            packed.append(_pack(_ENHANCED_ROUTE_REFRESH, b""))
        packed += [_pack(code, value) for code, value in self.unknown]
        return b"".join(packed)

    @classmethod
    def parse(cls, octets: bytes) -> "Capabilities":
        """Parse the value of the capabilities parameters of an OPEN message, concatenated.

        A malformed capability for graceful restart is `unknown`: the session works without it.

        Raises: BgpError if a capability is truncated, or one for families or AS numbers malformed.
        """
        families: set[Family] = set()
        asn: int | None = None
        restart: GracefulRestart | None = None
        flags: set[int] = set()
        unknown: list[tuple[int, bytes]] = []
        for code, value in _split(octets):
            if code == _MULTIPROTOCOL:
                _check_len(code, value)
                afi, _, safi = _FAMILY.unpack(value)
                families.add((afi, safi))
            elif code == _FOUR_OCTET_ASN:
                _check_len(code, value)
                asn = int.from_bytes(value)
            elif code == _GRACEFUL_RESTART and len(value) % 4 == 2:
                restart = _parse_restart(value)
            elif code in (_ROUTE_REFRESH, _ENHANCED_ROUTE_REFRESH) and not value:
                flags.add(code)
            else:
                unknown.append((code, value))
        return cls(
            frozenset(families),
            asn,
            _ROUTE_REFRESH in flags,
            restart,
            _ENHANCED_ROUTE_REFRESH in flags,
            tuple(unknown),
        )


def _pack(code: int, value: bytes) -> bytes:
    return bytes((code, len(value))) + value


def _split(octets: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset < len(octets):
        value = (
            octets[offset + 2 : offset + 2 + octets[offset + 1]]
            if offset + 1 < len(octets)
            else None
        )
        if value is None or len(value) < octets[offset + 1]:
            raise BgpError(ErrorCode.OPEN, OpenError.UNSPECIFIC, text="a capability is truncated")
        yield octets[offset], value
        offset += 2 + len(value)


def _check_len(code: int, value: bytes) -> None:
    if len(value) != 4:
        text = f"capability {code} has a length of {len(value)}, not 4"
        raise BgpError(ErrorCode.OPEN, OpenError.UNSPECIFIC, text=text)


def _pack_restart(restart: GracefulRestart) -> bytes:
    head = restart.restarting * _RESTARTING | restart.notification * _NOTIFICATION
    packed = [(head | restart.restart_time).to_bytes(2)]
    packed += [
        _FAMILY_FLAGS.pack(afi, safi, _PRESERVED * preserved)
        for (afi, safi), preserved in sorted(restart.families.items())
    ]
    return b"".join(packed)


def _parse_restart(value: bytes) -> GracefulRestart:
    head = int.from_bytes(value[:2])
    families = {
        (afi, safi): bool(flags & _PRESERVED)
        for afi, safi, flags in _FAMILY_FLAGS.iter_unpack(value[2:])
    }
    return GracefulRestart(
        bool(head & _RESTARTING), head & _RESTART_TIME_MAX, families, bool(head & _NOTIFICATION)
    )
