"""The remedy for a recent drop of `Client.status()`, as one line, without an examination."""

import re
from shlex import quote

from vtep.control.schema import RecentDrop, SegmentStatus
from vtep.counters import Drop
from vtep.doctor.checks import drops
from vtep.wire import vxlan

_TARGETS = re.compile(r"route targets (\S+)")
"""The first route target in the detail of a drop, of a VTEP whose routes no VNI imports."""


def advice(drop: RecentDrop, segment: SegmentStatus | None) -> str:
    """Return the remedy for a drop of a segment, or of the process if `segment` is None.

    The doctor may know a better one, because it examines the host and the remotes.
    """
    if segment is None:
        fields = {
            **drops.remedy_fields((), vxlan.PORT),
            "tap": "pyvtep",
            "mtu": "that of the tunnel",
            "at": "",
        }
    else:
        fields = {
            **drops.remedy_fields(tuple(segment["underlay_devices"]), segment["dstport"]),
            "tap": quote(segment["dev"]),
            "mtu": str(segment["mtu"]),
            "at": f" --vni {segment['vni']}",
        }
    detail = drop["detail"] or ""
    if drop["reason"] == Drop.SOURCE_UNKNOWN and (match := _TARGETS.search(detail)) is not None:
        return (
            f"if it is a VTEP of this segment: pyvtep set{fields['at']} --route-target-import "
            f"{match[1]}; pyvtep evpn show has the targets of both sides"
        )
    is_evpn = segment is not None and segment["evpn"]
    return drops.describe_fix(drop["reason"], drop["last_source"], fields, is_evpn=is_evpn)
