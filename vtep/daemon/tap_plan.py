"""Plans the TAP of a port from its configuration and its underlay: MTU, addresses, advice. Pure."""

from collections.abc import Sequence

from attrs import evolve

from vtep.config import Config
from vtep.config.option_parsers import MTU_MAX, MTU_MIN
from vtep.config.overlap import find_overlap
from vtep.errors import VtepError
from vtep.host.routes import Underlay
from vtep.host.tap_setup import TapSetup
from vtep.wire import vxlan
from vtep.wire.address import Interface
from vtep.wire.icmp import MTU_MIN_V6


def plan_tap(config: Config, underlay: Underlay) -> TapSetup:
    """Return the setup of the TAP.

    Raises: VtepError if the MTU or an address does not fit the underlay.
    """
    check_addresses(config, underlay)
    mtu = tunnel_mtu(config, underlay)
    if config.mtu is None and config.df == "set" and mtu < MTU_MIN_V6 and _first_v6(config):
        raise VtepError(
            f"--address {_first_v6(config)}: IPv6 needs an MTU of at least {MTU_MIN_V6}, but the "
            f"tunnel carries {mtu} octets: {_remedy(config, underlay)}, or leave out --df set, "
            "and the underlay fragments larger packets"
        )
    return tap_setup(config, mtu)


def tap_setup(config: Config, mtu: int) -> TapSetup:
    """Return the setup of the TAP of a tunnel that carries IP packets of `mtu` octets."""
    fixed = config.mtu is not None
    if _first_v6(config) and not fixed:
        # The kernel refuses IPv6 addresses below this MTU, and removes them when the MTU falls.
        mtu = max(mtu, MTU_MIN_V6)
    vlans = () if config.vlan is None else (config.vlan,)
    return TapSetup(mtu, config.mac, config.address, config.bridge, fixed, vlans)


def combine_setups(setups: Sequence[TapSetup]) -> TapSetup:
    """Return the setup of a TAP from those of all segments that share it, by VLAN.

    Its MTU is the smallest one: packets of this host then fit into each tunnel. On a bridge that
    matters little, where larger frames reach pyvtep anyway (see `tap_setup`).
    """
    if len(setups) == 1:
        return setups[0]
    vlans = tuple(sorted({vlan for setup in setups for vlan in setup.vlans}))
    return evolve(min(setups, key=lambda setup: setup.mtu), vlans=vlans)


def check_addresses(config: Config, underlay: Underlay) -> None:
    """Raise VtepError if the subnet of a TAP address overlaps one of the underlay."""
    if config.netns is not None:
        return  # The route to that subnet is in the namespace of the TAP.
    # `Config` refuses remotes in the subnet, for which it need not know the host.
    overlap = find_overlap(config.address, (), underlay.networks)
    if overlap is not None:
        raise VtepError(str(overlap))


def tunnel_mtu(config: Config, underlay: Underlay) -> int:
    """Return the MTU of the tunnel in octets.

    Raises: VtepError if it does not fit the underlay, and the underlay must not fragment.
    """
    version = config.versions[-1]
    devices = ", ".join(underlay.devices)
    unfragmented = _unfragmented(config, underlay)
    if unfragmented < MTU_MIN:
        raise VtepError(
            f"the underlay ({devices}) has an MTU of {underlay.mtu}, too small for VXLAN over "
            f"IPv{version}: raise it (ip link set {underlay.devices[0]} mtu 1500)"
        )
    if config.mtu is None:
        return unfragmented
    if config.mtu > unfragmented and underlay.devices and config.df == "set":
        raise VtepError(
            f"--mtu {config.mtu}: does not fit; the underlay ({devices}) carries {underlay.mtu} "
            f"octets, of which VXLAN over IPv{version} leaves {unfragmented}, and --df set forbids "
            f"to fragment: give --mtu {unfragmented}, or leave out --df set"
        )
    return config.mtu


def mtu_advice(config: Config, underlay: Underlay) -> str | None:
    """Return what users should know about the MTU of the tunnel, if anything."""
    if not underlay.devices:
        return None
    unfragmented = _unfragmented(config, underlay)
    over = f"over {', '.join(underlay.devices)} (mtu {underlay.mtu})"
    if config.mtu is not None:
        if config.mtu <= unfragmented:
            return None
        but = " unless --df inherit forbids that" if config.df == "inherit" else ""
        return (
            f"--mtu {config.mtu}: the underlay fragments packets larger than {unfragmented} "
            f"{over}{but}"
        )
    if unfragmented >= MTU_MIN_V6:
        return None
    carries = (
        f"the tunnel carries {unfragmented} octets {over}, less than the {MTU_MIN_V6} that IPv6 "
        "needs"
    )
    remedy = _remedy(config, underlay)
    if config.df == "set":
        return f"{carries}, and --df set forbids to fragment: {remedy}"
    if _first_v6(config):
        return f"{carries}: the underlay fragments larger IPv6 packets; to avoid that, {remedy}"
    return f"{carries}: for IPv6, {remedy}, or give --mtu {MTU_MIN_V6}, and the underlay fragments"


def _unfragmented(config: Config, underlay: Underlay) -> int:
    """Return the octets of the largest IP packet that the underlay carries without fragments."""
    # With both IP versions in use, the overhead of IPv6, which is larger.
    return min(underlay.mtu - vxlan.OVERHEAD[config.versions[-1]], MTU_MAX)


def _remedy(config: Config, underlay: Underlay) -> str:
    """Return how to let the underlay carry the least MTU of IPv6."""
    wanted = MTU_MIN_V6 + vxlan.OVERHEAD[config.versions[-1]]
    return f"raise the MTU of {' and '.join(underlay.devices)} to {wanted}"


def _first_v6(config: Config) -> Interface | None:
    return next((address for address in config.address if address.version == 6), None)
