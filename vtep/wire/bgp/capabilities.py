"""Capabilities in OPEN messages (RFC 5492)."""

from collections.abc import Mapping
from types import MappingProxyType

from attrs import frozen

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
        raise NotImplementedError

    @classmethod
    def parse(cls, octets: bytes) -> "Capabilities":
        """Parse the value of the capabilities parameters of an OPEN message, concatenated.

        Raises: BgpError if a capability is truncated, or has a wrong length.
        """
        raise NotImplementedError
