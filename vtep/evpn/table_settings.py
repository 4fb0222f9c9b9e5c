"""Settings of `Tables`: those of the speaker, and those of each VNI. No I/O."""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import Literal

from attrs import frozen

from vtep.wire.address import Address
from vtep.wire.bgp.communities import RouteTarget
from vtep.wire.bgp.evpn import RouteDistinguisher


@frozen
class SpeakerSettings:
    """Settings that concern the routes of all VNIs.

    A MAC is a duplicate if it moves more than `duplicate_moves` times within `duplicate_time`
    seconds (RFC 7432, section 15.1). `neighbors` are the names of the configured peers: entries
    that a former speaker left wait for them, `stale_time` seconds at most.
    """

    asn: int
    router_id: IPv4Address
    neighbors: frozenset[str] = frozenset()
    stale_time: float = 120.0
    duplicate_mac: Literal["warn", "hold", "off"] = "warn"
    duplicate_moves: int = 5
    duplicate_time: float = 180.0


@frozen
class SegmentSettings:
    """Settings of a VNI.

    `import_targets` None imports the auto-derived route targets of the VNI, in both forms and of
    any AS. The first of `locals` is the VTEP address in own routes; the others only say which
    versions of IP this host can send to. Without any, nothing is announced or installed.
    `gateways` are the addresses of `--anycast-gateway`. With `proxy`, neighbours are installed.
    """

    vni: int
    rd: RouteDistinguisher
    import_targets: frozenset[RouteTarget] | None
    export_targets: frozenset[RouteTarget]
    locals: tuple[Address, ...]
    gateways: frozenset[Address] = frozenset()
    proxy: bool = False


def allocate_distinguishers(
    router_id: IPv4Address,
    vnis: Iterable[int],
    present: Mapping[int, RouteDistinguisher] | None = None,
    configured: Iterable[RouteDistinguisher] = (),
) -> dict[int, RouteDistinguisher]:
    """Return a route distinguisher for each VNI: ROUTER-ID:NUMBER (RFC 7432, section 7.9).

    The number has 16 bits. It is the VNI if that fits, else its low bits, else the next one that is
    free. The VNIs in `present` keep theirs if it is of this router ID. Those that are
    `configured` for other VNIs are avoided.

    Raises: ValueError if there are more than 65,536 VNIs.
    """
    reserved = {_number_of(rd, router_id): None for rd in configured}
    kept = {
        vni: number
        for vni, rd in (present or {}).items()
        if (number := _number_of(rd, router_id)) is not None and number not in reserved
    }
    taken: dict[int | None, int | None] = reserved | {number: vni for vni, number in kept.items()}
    numbers: dict[int, int] = {}
    # Small VNIs come first, so that they get their own number.
    for vni in sorted(set(vnis)):
        number = kept.get(vni, vni & 0xFFFF)
        for _ in range(1 << 16):
            if taken.setdefault(number, vni) == vni:
                break
            number = (number + 1) & 0xFFFF
        else:
            raise ValueError("cannot give a route distinguisher to more than 65536 VNIs")
        numbers[vni] = number
    return {vni: RouteDistinguisher.of(router_id, number) for vni, number in numbers.items()}


def _number_of(rd: RouteDistinguisher, router_id: IPv4Address) -> int | None:
    """Return the number behind the router ID, or None if it is not of this router ID."""
    number = int.from_bytes(rd.octets[-2:])
    return number if rd == RouteDistinguisher.of(router_id, number) else None
