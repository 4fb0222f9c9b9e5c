"""Conflicts of segments of one process: names and numbers given twice, and ports not shareable."""

from collections.abc import Container, Iterable, Iterator, Mapping

from attrs import frozen

from vtep.config.options import Config
from vtep.config.vlans import TAP_WIDE
from vtep.errors import ConfigError
from vtep.wire.address import Address


@frozen(eq=False)
class SegmentConflict:
    """A segment that conflicts with an earlier one, and the error that says how."""

    config: Config
    earlier: Config
    error: ConfigError


def check_segments(segments: Iterable[Config]) -> None:
    """Raise ConfigError if two segments of one process conflict."""
    for conflict in conflicts(segments):
        raise conflict.error


def conflicts(segments: Iterable[Config]) -> Iterator[SegmentConflict]:
    """Yield a conflict for each segment that has one with an earlier segment."""
    vnis: dict[int, Config] = {}
    taps: dict[str, Config] = {}
    vlans: dict[tuple[str, int | None], Config] = {}
    tap_fds: dict[int | None, Config] = {}
    networks: dict[tuple[str, str | None], Config] = {}
    distinguishers: dict[str | None, Config] = {}
    # Only one segment for each different socket is kept: a thousand segments that share one would
    # otherwise all be compared with each other.
    sockets: dict[tuple[int, int], list[Config]] = {}
    for config in segments:
        network = (config.docker_network or "", config.docker_host)
        earlier = (
            vnis.get(config.vni)
            or vlans.get((config.tap, config.vlan))
            or taps.get(config.tap)
            or (tap_fds.get(config.tap_fd) if config.tap_fd is not None else None)
            or networks.get(network)
            or (distinguishers.get(config.rd) if config.rd is not None else None)
            or config
        )
        try:
            _check_names(config, vnis, taps, vlans)
            _check_tap_fd(config, tap_fds)
            _check_network(config, networks.get(network))
            _check_distinguisher(config, distinguishers)
            for version in config.versions:
                others = sockets.setdefault((version, config.dstport), [])
                for earlier in others:
                    _check_socket(version, earlier, config)
                if not any(_socket(version, other) == _socket(version, config) for other in others):
                    others.append(config)
        except ConfigError as error:
            yield SegmentConflict(config, earlier, error)
        else:
            vnis[config.vni] = config
            taps.setdefault(config.tap, config)
            vlans[config.tap, config.vlan] = config
            tap_fds[config.tap_fd] = config
            distinguishers[config.rd] = config
            if config.docker_network is not None:
                networks[network] = config


def _check_names(
    config: Config,
    vnis: Container[int],
    taps: Mapping[str, Config],
    vlans: Mapping[tuple[str, int | None], Config],
) -> None:
    if config.vni in vnis:
        raise ConfigError(f"--vni {config.vni}: defined twice; each VNI can be defined once")
    other = taps.get(config.tap)
    if other is None:
        return
    if config.vlan is None and other.vlan is None:
        raise ConfigError(f"--tap {config.tap}: is given twice; each VNI has its own TAP")
    if config.vlan is None or other.vlan is None:
        raise ConfigError(
            f"--tap {config.tap}: is shared by vni {other.vni} and vni {config.vni}, so both need "
            "--vlan; or give each its own TAP"
        )
    if (config.tap, config.vlan) in vlans:
        raise ConfigError(
            f"--vlan {config.vlan}: is given twice for --tap {config.tap}; each VLAN carries one "
            "VNI"
        )
    for name in TAP_WIDE:
        if getattr(config, name) != getattr(other, name):
            raise ConfigError(
                f"--{name}: must be the same for vni {other.vni} and vni {config.vni}, which share "
                f"--tap {config.tap}"
            )


def _check_tap_fd(config: Config, tap_fds: Container[int | None]) -> None:
    if config.tap_fd is not None and config.tap_fd in tap_fds:
        raise ConfigError(f"--tap-fd {config.tap_fd}: is given twice; each VNI has its own TAP")


def _check_network(config: Config, earlier: Config | None) -> None:
    # Two segments on one bridge are one Ethernet, and a loop if they have a remote in common.
    if earlier is not None:
        raise ConfigError(
            f"--docker-network {config.docker_network}: is attached already, as vni {earlier.vni}; "
            "a network can be in one segment only"
        )


def _check_distinguisher(config: Config, distinguishers: Mapping[str | None, Config]) -> None:
    # A route is known by its route distinguisher, so that one of two equal routes replaces the
    # other one (RFC 4364, section 4.1): of the type 3 routes of the two VNIs, none is left for one.
    other = distinguishers.get(config.rd) if config.rd is not None else None
    if other is not None:
        raise ConfigError(
            f"--rd {config.rd}: is given to both vni {other.vni} and vni {config.vni}, whose "
            "routes would replace each other; give each VNI its own, or leave it out"
        )


def _socket(version: int, config: Config) -> tuple[Address | None, str | None]:
    """Return what, besides the port, the socket of a segment is bound to."""
    return config.local_for(version), config.dev


def _check_socket(version: int, one: Config, two: Config) -> None:
    """Raise ConfigError unless two segments can share their UDP port.

    They can by sharing one socket, or with two of which a datagram can reach only one.
    """
    separate = [
        left != right and left is not None and right is not None
        for left, right in zip(_socket(version, one), _socket(version, two), strict=True)
    ]
    if any(separate):
        return
    if _socket(version, one) != _socket(version, two):
        raise ConfigError(
            f"--dstport {two.dstport}: vni {one.vni} and vni {two.vni} share it; give both the "
            "same --local and --dev, or another port to one of them"
        )
    # These are options of the socket (UDP_GRO, UDP_NO_CHECK6_RX), so all its segments share them.
    for name, subject, first, second in (
        ("offload", "gro", "gro" in one.offload, "gro" in two.offload),
        ("udp6zerocsumrx", "zero checksums", one.udp6zerocsumrx, two.udp6zerocsumrx),
    ):
        if first != second:
            raise ConfigError(
                f"--{name}: {subject} must be on or off for both vni {one.vni} and vni {two.vni}, "
                f"which share UDP port {two.dstport}"
            )
