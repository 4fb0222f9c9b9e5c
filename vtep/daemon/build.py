"""From options to objects: the one table by which a port is configured at start and on a change.

To add an option: add the field to `Config`, and either an `Applier` here or, if the option is a
matter of the TAP's setup or of the listeners, its name to `TAP_OPTIONS` or `LISTENER_OPTIONS`.
`tests/unit/test_port_options.py` fails for an option that is in none of them, and for one whose
change leaves a running port different from a port that was started with the new value.
"""

from collections.abc import Callable, Iterable
from math import inf
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from vtep.config import Config
from vtep.datapath.pool import Paths, Pool
from vtep.forwarding.anycast import Gateways
from vtep.forwarding.fdb import Remote
from vtep.forwarding.policy import ANY_SOURCE, GroupPolicy, InnerVlan, Networks, SegmentPolicy
from vtep.forwarding.storm import Limit, StormLimits, default_burst
from vtep.forwarding.suppress import Neighbours
from vtep.io.addresses import FAMILY, host_of
from vtep.io.binding import Binding
from vtep.io.outer_options import OuterHeaderOptions
from vtep.wire.outer_header import InheritPolicy

if TYPE_CHECKING:
    from vtep.daemon.port import Port


@frozen
class Applier:
    """The function that applies a group of options to a port, given its new options and the time.

    It is called at start, and on a change if one of the options differs. With `always`, it is
    called on every change: its result depends on more than options.
    """

    options: tuple[str, ...]
    apply: Callable[["Port", Config, float], None]
    always: bool = False


TAP_OPTIONS = ("mtu", "mac", "address", "bridge")
"""Options of the TAP's setup (`tap_plan.tap_setup`), which the transaction applies and undoes."""

WATCHED_OPTIONS = (
    *("docker_network", "docker_host"),  # `vtep.docker` tells the port its bridge.
    *("evpn", "route_target", "route_target_import", "route_target_export", "rd"),  # `vtep.evpn`
)
"""Options that a watcher of the port follows."""

LISTENER_OPTIONS = (
    *("local", "dev", "dstport", "offload", "udp6zerocsumrx"),  # What an `Endpoint` consists of.
    *("remote", "accept", "group"),  # By their IP versions; and the group is joined.
)
"""Options that decide which listeners a port has, which the transaction opens and closes."""

_UNKNOWN_UNICAST_RATE = 20000
"""Frames a second to unknown MACs that `--storm-unknown-unicast auto` allows."""

FIXED_OPTIONS = {
    "vni": "is what identifies a port: another VNI is another port",
    "vlan": "a port keeps its VLAN, as its device: in another one, the VNI gets another port",
    "tap": "a port keeps its device: with another TAP, the VNI gets another port, which takes over "
    "the FDB entries and neighbours",
    "netns": "as tap",
    "tap_fd": "as tap",
}
"""Options that cannot change while a port runs, each with the reason."""


def apply_options(
    port: "Port", appliers: Iterable[Applier], before: Config | None, now: float
) -> None:
    """Apply the options of a port: all, or those that differ from `before`."""
    after = port.effective
    for applier in appliers:
        if (
            before is None
            or applier.always
            or any(getattr(before, name) != getattr(after, name) for name in applier.options)
        ):
            applier.apply(port, after, now)


# --- the segment ------------------------------------------------------------------------------


def _apply_learning(port: "Port", config: Config, _now: float) -> None:
    port.segment.learning = config.learning
    port.fdb.keeps_extern_learn = config.evpn


def _apply_ageing(port: "Port", config: Config, now: float) -> None:
    port.fdb.set_ageing(config.ageing, now)


def _apply_limits(port: "Port", config: Config, _now: float) -> None:
    quota = config.max_addresses_per_remote
    port.fdb.max_addresses = config.max_addresses
    port.fdb.max_per_host = quota if isinstance(quota, int) else None


def _apply_moves(port: "Port", config: Config, _now: float) -> None:
    port.fdb.moves.configure(config.mac_move_limit, config.mac_move_hold)


def _apply_liveness_interval(port: "Port", config: Config, _now: float) -> None:
    port.segment.liveness_interval = config.liveness_interval


def _apply_loop_block(port: "Port", config: Config, _now: float) -> None:
    port.segment.loops.block = config.loop_block
    if not config.loop_block:
        port.segment.loops.unblock(inf)


def _apply_accept(port: "Port", config: Config, _now: float) -> None:
    port.segment.set_accept(_accepted(config))


def _apply_policy(port: "Port", config: Config, _now: float) -> None:
    groups = None
    if config.gbp is not None:
        groups = GroupPolicy(config.gbp, config.gbp_accept or None)
    port.segment.set_policy(
        SegmentPolicy(config.reserved_bits, groups, InnerVlan(config.inner_vlan))
    )
    # The group policy id is part of the VXLAN header.
    port.sizing.oversize.set_prefix(port.segment.header)


def _apply_storm(port: "Port", config: Config, _now: float) -> None:
    unknown = config.storm_unknown_unicast
    if unknown == "auto":
        # Without learning, all unicast is unknown unless entries are configured.
        unknown = _UNKNOWN_UNICAST_RATE if config.learning else "off"
    port.segment.set_storm_limits(
        StormLimits(*map(_limit, (config.storm_broadcast, config.storm_multicast, unknown)))
    )


def _limit(value: int | str) -> Limit | None:
    """Return the limit that an option of storm control means; None for `off`."""
    if value == "off":
        return None
    rate, _, burst = str(value).partition(":")
    return Limit(int(rate), int(burst or default_burst(int(rate))))


def _apply_proxy(port: "Port", config: Config, _now: float) -> None:
    segment, limits = port.segment, (config.ageing, config.max_addresses)
    if not config.proxy:
        segment.set_neighbours(None)
    elif segment.neighbours is None:
        ageing, most = limits
        segment.set_neighbours(Neighbours(segment.fdb, ageing=ageing, max_neighbours=most))
    else:
        segment.neighbours.ageing, segment.neighbours.max_neighbours = limits


def _apply_gateways(port: "Port", config: Config, _now: float) -> None:
    addresses = config.anycast_gateway
    port.segment.set_gateways(Gateways(addresses, port.log.shared_gateway) if addresses else None)


def _apply_dstport(port: "Port", config: Config, _now: float) -> None:
    port.fdb.set_port(config.dstport)


def _apply_remotes(port: "Port", config: Config, now: float) -> None:
    port.segment.set_remotes(_remotes_of(config), now)


def _apply_mss_clamp(port: "Port", config: Config, _now: float) -> None:
    port.sizing.set_mss_clamp(config.mss_clamp)


SEGMENT_APPLIERS = (
    Applier(("learning", "evpn"), _apply_learning),
    Applier(("ageing",), _apply_ageing),
    Applier(("max_addresses", "max_addresses_per_remote"), _apply_limits),
    Applier(("mac_move_limit", "mac_move_hold"), _apply_moves),
    Applier(("liveness_interval",), _apply_liveness_interval),
    Applier(("loop_block",), _apply_loop_block),
    Applier(("accept", "accept_any", "group"), _apply_accept),
    Applier(("reserved_bits", "gbp", "gbp_accept", "inner_vlan"), _apply_policy),
    Applier(
        ("storm_broadcast", "storm_multicast", "storm_unknown_unicast", "learning"), _apply_storm
    ),
    Applier(("proxy", "ageing", "max_addresses"), _apply_proxy),
    Applier(("anycast_gateway",), _apply_gateways),
    # Before the remotes: entries on the default port move to the new one.
    Applier(("dstport",), _apply_dstport),
    # Always: a remote may have been removed from the default entry by hand.
    Applier(("remote", "group", "dev", "dstport"), _apply_remotes, always=True),
    Applier(("mss_clamp",), _apply_mss_clamp),
)
"""Applied when a port is made: its FDB can be used before it starts."""


# --- TAP and paths ----------------------------------------------------------------------------


def _apply_mac(port: "Port", _config: Config, _now: float) -> None:
    # The transaction has set it: frames from the underlay with this source are looped back.
    port.segment.own_mac = port.device.mac


def _apply_persist(port: "Port", config: Config, _now: float) -> None:
    port.device.set_persistent(on=config.persist)


def _apply_offload(port: "Port", config: Config, _now: float) -> None:
    port.device.request_offloads(tso="tso" in config.offload, uso="uso" in config.offload)
    port.update_offload()


def _apply_fast_path(port: "Port", _config: Config, _now: float) -> None:
    port.update_fast_path()


def _apply_mtu(port: "Port", _config: Config, _now: float) -> None:
    # Forgets the MTU that was set from outside: the configured one is wanted now.
    port.attachment = evolve(port.attachment, mtu=None)


def _apply_paths(port: "Port", _config: Config, _now: float) -> None:
    port.replace_paths()


TAP_APPLIERS = (
    Applier(("mac",), _apply_mac),
    Applier(("persist",), _apply_persist),
    # Always: the listeners may be others, and a device for tunnel GSO may have been opened.
    Applier(("offload",), _apply_offload, always=True),
)
"""The part of `FORWARDING_APPLIERS` that concerns the TAP device itself."""

FORWARDING_APPLIERS = (
    *TAP_APPLIERS,
    Applier(("fast_path",), _apply_fast_path),
    Applier(("mtu",), _apply_mtu),
    Applier(
        (
            *("local", "dev", "dstport", "srcport", "offload"),
            *("ttl", "tos", "ecn", "df", "flowlabel", "udpcsum", "udp6zerocsumtx"),
        ),
        _apply_paths,
        always=True,
    ),
)
"""Applied when a port starts: it has its TAP and its listeners then."""

APPLIERS = (*SEGMENT_APPLIERS, *FORWARDING_APPLIERS)


def _accepted(config: Config) -> Networks:
    """Return the networks of accepted sources, besides the remotes.

    The members of a multicast group are not known by name, so all are accepted (RFC 7348, section
    4.2) unless --accept restricts them.
    """
    any_source = config.accept_any or (config.group is not None and not config.accept)
    return ANY_SOURCE if any_source else config.accept


def _remotes_of(config: Config) -> list[Remote]:
    """Return the destinations of the default FDB entry: the remotes and the multicast group."""
    addresses = [*config.remote_addresses, *([config.group] if config.group is not None else [])]
    return [Remote(host_of(address, config.dev), config.dstport) for address in addresses]


def make_paths(
    config: Config,
    pool: Pool,
    offload: frozenset[str],
    on_mtu_changed: Callable[[Remote, int | None], None],
) -> Paths:
    """Make the paths to the remotes of a segment; `offload` are the offloads in use."""
    return Paths(
        pool,
        {
            version: Binding(family, config.local_for(version), config.dev)
            for version, family in FAMILY.items()
        },
        outer_header_options(config),
        inherit_policy(config),
        on_mtu_changed,
        gso="gso" in offload,
        tunnel_gso="tnl" in offload,
        port=config.dstport,
    )


def outer_header_options(config: Config) -> OuterHeaderOptions:
    """Return the outer header fields that all datagrams of a segment have."""
    first, last = config.srcport
    return OuterHeaderOptions(
        srcport=range(first, last + 1),
        ttl=config.ttl if isinstance(config.ttl, int) else 0,
        tos=config.tos if isinstance(config.tos, int) else 0,
        flowlabel=config.flowlabel if isinstance(config.flowlabel, int) else 0,
        df=config.df == "set",
        udpcsum=config.udpcsum,
        udp6zerocsumtx=config.udp6zerocsumtx,
    )


def inherit_policy(config: Config) -> InheritPolicy:
    """Return the outer header fields that inherit from the inner header of a frame."""
    return InheritPolicy(
        ecn=config.ecn,
        tos=config.tos if isinstance(config.tos, int) else 0,
        inherit_tos=config.tos == "inherit",
        inherit_ttl=config.ttl == "inherit",
        inherit_flowlabel=config.flowlabel == "inherit",
        inherit_df=config.df == "inherit",
    )
