"""VLANs of one TAP and the VNIs that they carry: the mapping of `--vlan 10:1010`, as segments.

The model is that of `bridge vlan add dev vxlan0 vid 20-29 tunnel_info id 1020-1029`.
"""

import re
from collections.abc import Mapping
from typing import Any

from attrs import evolve, field, fields_dict, frozen

from vtep.config import option_parsers
from vtep.config.option_parsers import VLAN_MAX, VLAN_MIN
from vtep.config.options import Config
from vtep.errors import OptionError
from vtep.wire import vxlan

DEFAULT_TAP = "vx0"
"""The name of the TAP if none is given: the name of one VNI would be misleading."""

TAP_WIDE = ("bridge", "persist", "mac", "offload")
"""Options of the TAP, which all VNIs that share it have in common."""

_PAIR = re.compile(r"([0-9]{1,8})(?:-([0-9]{1,8}))?:([0-9]{1,8})(?:-([0-9]{1,8}))?")


def parse(value: object) -> dict[int, int]:
    """Parse `--vlan` without a VNI: pairs such as `10:1010`, and of ranges as `20-29:1020-1029`.

    Returns: the VNI of each VLAN ID, in the order given. Raises: OptionError.
    """
    vnis: dict[int, int] = {}
    seen: set[int] = set()
    for item in option_parsers.items("--vlan", value):
        for vid, vni in zip(*_ranges(item), strict=True):
            if vid in vnis:
                raise OptionError(
                    "--vlan", item, f"VLAN {vid} is given twice; each VLAN carries one VNI"
                )
            if vni in seen:
                raise OptionError(
                    "--vlan", item, f"VNI {vni} is given twice; each VNI is carried by one VLAN"
                )
            vnis[vid] = vni
            seen.add(vni)
    if not vnis:
        raise OptionError("--vlan", value, "names no VLAN; write one with its VNI, as 10:1010")
    return vnis


def _ranges(item: object) -> tuple[range, range]:
    """Return the VLAN IDs and the VNIs of one pair. Raises: OptionError."""
    found = _PAIR.fullmatch(item) if isinstance(item, str) else None
    if found is None:
        raise OptionError(
            "--vlan", item, "is no VLAN with its VNI, as 10:1010 or 20-29:1020-1029 (or give --vni)"
        )
    first_vid, last_vid, first_vni, last_vni = (
        None if digits is None else int(digits) for digits in found.groups()
    )
    vids = _range(item, first_vid, last_vid)
    vnis = _range(item, first_vni, last_vni)
    if not VLAN_MIN <= vids[0] <= vids[-1] <= VLAN_MAX:
        raise OptionError("--vlan", item, f"a VLAN ID must be from {VLAN_MIN} to {VLAN_MAX}")
    if vnis[-1] > vxlan.VNI_MAX:
        raise OptionError("--vlan", item, f"a VNI must be from 0 to {vxlan.VNI_MAX}")
    if len(vids) != len(vnis):
        raise OptionError("--vlan", item, f"has {len(vids)} VLANs, but {len(vnis)} VNIs")
    return vids, vnis


def _range(item: object, first: int | None, last: int | None) -> range:
    first = first or 0
    last = first if last is None else last
    if last < first:
        raise OptionError("--vlan", item, f"{first}-{last} is no range; write {last}-{first}")
    return range(first, last + 1)


@frozen
class VlanMap:
    """The option `--vlan` where no VNI is given; its parser takes the place of `Config.vlan`'s."""

    vlan: dict[int, int] = field(converter=parse, metadata={"repeatable": True})


MAPPING = fields_dict(VlanMap)["vlan"]
"""The field of `VlanMap`."""


def expand(options: Mapping[str, Any]) -> list[Config]:
    """Return one segment for each VLAN of `options["vlan"]`; the other options are common to all.

    Raises: ConfigError.
    """
    common = {"tap": DEFAULT_TAP, **options}
    return [
        Config(**{**common, "vni": vni, "vlan": vid})
        for vid, vni in parse(common.pop("vlan")).items()
    ]


def join_tap(config: Config, other: Config) -> Config:
    """Return a segment with the TAP's options of another one on the same TAP.

    Only options that have their default are replaced: a contradiction is to be reported.
    """
    default = Config(vni=config.vni)
    return evolve(
        config,
        **{
            name: getattr(other, name)
            for name in TAP_WIDE
            if getattr(config, name) == getattr(default, name)
        },
    )


def share_tap(config: Config, other: Config) -> Config:
    """Return segment `config` with all options of the TAP as `other`, which has changed them."""
    return evolve(config, **{name: getattr(other, name) for name in TAP_WIDE})
