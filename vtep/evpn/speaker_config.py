"""The configuration that the daemon gives to its speaker, and what follows from it. No I/O."""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, ip_address
from typing import Any, Final, cast

from attrs import fields, frozen

from vtep.config import Config
from vtep.config.evpn import EvpnSettings, export_targets, import_targets
from vtep.evpn.local_entries import TapPlace
from vtep.evpn.table_settings import (
    SegmentSettings,
    SpeakerSettings,
    allocate_distinguishers,
)
from vtep.wire.address import Address
from vtep.wire.bgp.evpn import RouteDistinguisher

TOKEN: Final = "PYVTEP_EVPN_TOKEN"  # noqa: S105  the name of the variable
"""Environment variable of the speaker: the token by which the daemon knows it."""

SOCKET_SUFFIX: Final = ".evpn"
"""The end of the name of the speaker's own socket, in place of that of the control socket."""


@frozen
class SpeakerSegment:
    """A VNI that takes part in the fabric.

    `instance` is another number for another port of the VNI, whose FDB is empty.
    """

    config: Config
    instance: int
    place: TapPlace
    gateways: frozenset[Address]


@frozen
class SpeakerConfig:
    """The configuration of the speaker; `settings` is None once it is to end."""

    generation: int
    version: str
    settings: EvpnSettings | None
    segments: Mapping[int, SpeakerSegment]
    is_restarted: bool
    flushes: int
    """The number of times that a user has flushed entries, which are to be given again."""
    readers: str | None
    changers: str | None

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> "SpeakerConfig":
        """Parse the answer of the daemon. Raises: ConfigError, if it is of another version."""
        segments = {}
        for each in given["segments"]:
            config = _config(each["options"])
            gateways = frozenset(ip_address(text) for text in each["gateways"])
            segments[config.vni] = SpeakerSegment(
                config,
                each["instance"],
                TapPlace(each["tap"], each["bridge"], gateways),
                gateways,
            )
        settings = given["settings"]
        return cls(
            given["generation"],
            given["version"],
            None if settings is None else EvpnSettings(**_known(settings, EvpnSettings)),
            segments,
            given["is_restarted"],
            given["flushes"],
            given["readers"],
            given["changers"],
        )

    @property
    def locals(self) -> tuple[Address, ...]:
        """The addresses of `--local` of all VNIs, each once."""
        found = [each for segment in self.segments.values() for each in segment.config.local]
        return tuple(dict.fromkeys(found))

    @property
    def places(self) -> dict[int, TapPlace]:
        """The TAPs by VNI."""
        return {vni: segment.place for vni, segment in self.segments.items()}

    @property
    def learning(self) -> tuple[int, ...]:
        """The VNIs whose bridge port learns."""
        return tuple(vni for vni, each in self.segments.items() if each.config.learning)


def _config(options: Mapping[str, Any]) -> Config:
    return Config(**_known(options, Config))


def _known(options: Mapping[str, Any], cls: Any) -> dict[str, Any]:
    """Return options as arguments of a class; those of a newer version are left out."""
    names = {each.name for each in fields(cls)}
    given = {name.replace("-", "_"): value for name, value in options.items()}
    return {name: value for name, value in given.items() if name in names}


def derive_router_id(found: Sequence[Address]) -> IPv4Address:
    """Return a BGP identifier for a host with these addresses: the first IPv4 address, if any.

    It has to be unique in the AS only, and need not be an address (RFC 6286). But FRR refuses one
    that looks like a multicast group.
    """
    for address in found:
        if isinstance(address, IPv4Address):
            return address
    return IPv4Address(zlib.crc32(found[0].packed) & 0x7FFFFFFF or 1)


def speaker_settings(settings: EvpnSettings, router_id: IPv4Address) -> SpeakerSettings:
    """Return the settings of `Tables`."""
    return SpeakerSettings(
        asn=settings.asn,
        router_id=router_id,
        neighbors=frozenset(str(each.address) for each in settings.neighbor),
        stale_time=settings.stale_time,
        duplicate_mac=cast("Any", settings.duplicate_mac),
        duplicate_moves=settings.duplicate_moves,
        duplicate_time=settings.duplicate_time,
    )


def _keep_first(found: tuple[Address, ...], present: SegmentSettings | None) -> tuple[Address, ...]:
    """Return addresses with the one first that is the first one now, if it is among them."""
    first = present.locals[:1] if present is not None else ()
    return tuple(sorted(found, key=lambda each: each not in first))


def segment_settings(
    config: SpeakerConfig,
    settings: EvpnSettings,
    router_id: IPv4Address,
    found: Iterable[Address],
    present: Mapping[int, SegmentSettings],
) -> dict[int, SegmentSettings]:
    """Return the settings of each VNI for `Tables`.

    `found` are own addresses, for VNIs without `--local`; `present` are the settings until now. The
    first address of a VNI, which is in its routes, stays the first one as long as it is among them:
    sessions from several addresses come and go.
    """
    automatic = [vni for vni, each in config.segments.items() if each.config.rd is None]
    known = {vni: each.rd for vni, each in present.items() if vni in automatic}
    configured = {
        vni: RouteDistinguisher.parse(each.config.rd)
        for vni, each in config.segments.items()
        if each.config.rd is not None
    }
    distinguishers = configured | allocate_distinguishers(
        router_id, automatic, known, configured.values()
    )
    found = tuple(found)
    return {
        vni: SegmentSettings(
            vni=vni,
            rd=distinguishers[vni],
            import_targets=import_targets(each.config, settings),
            export_targets=export_targets(each.config, settings),
            locals=each.config.local or _keep_first(found, present.get(vni)),
            gateways=each.gateways,
            proxy=each.config.proxy,
        )
        for vni, each in config.segments.items()
    }
