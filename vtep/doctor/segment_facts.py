"""Facts of the segments of a running pyvtep, from its answers and from this host."""

from collections.abc import Mapping
from typing import Any

from attrs import evolve

from vtep.control.schema import SegmentStatus
from vtep.doctor import filtering
from vtep.doctor.facts import (
    BlockedRemote,
    BridgeFacts,
    Conflict,
    Drops,
    HeldMac,
    NameFacts,
    PortFacts,
    ProcessFacts,
    SegmentFacts,
)
from vtep.doctor.local_network import LocalNetwork
from vtep.doctor.running import RunningVtep, netns_of
from vtep.fastpath.state import FastPathState
from vtep.host.netfilter import Rules
from vtep.wire import vxlan

_BRIDGE_MODE_HAIRPIN = 1
"""The value of IFLA_BRPORT_MODE for a hairpin port."""


def of_segments(
    running: RunningVtep,
    after: Any,
    network: LocalNetwork,
    rules: Rules,
    conflicts: Mapping[str, tuple[Conflict, ...]],
    vni: int | None,
) -> list[SegmentFacts]:
    """Return the facts of all segments of a pyvtep, or of the one with a VNI.

    `after` is the second reading of the counters. `conflicts` are address conflicts by TAP.
    """
    before = {each["vni"]: each for each in running.stats["segments"]}
    counted = {each["vni"]: each for each in after["segments"]}
    found = []
    for segment in running.segments:
        if vni not in (None, segment["vni"]):
            continue
        tap = segment["dev"]
        device = network.by_name.get(tap)
        # A segment may have been added or removed between the readings.
        stats, then = counted.get(segment["vni"]), before.get(segment["vni"])
        found.append(
            SegmentFacts(
                vni=segment["vni"],
                tap=tap,
                mtu=segment["mtu"],
                tap_mtu=device.mtu if device is not None else segment["mtu"],
                dstport=segment["options"]["dstport"],
                up=device is not None and device.up,
                addresses=network.addresses_of(tap),
                bridge=_of_bridge(network, tap, rules),
                frames=filtering.blocked_frames(network, tap, rules),
                packets=filtering.blocked_packets(network, tap, rules),
                options=segment["options"],
                offload=frozenset(segment["offload"]),
                fast_path=FastPathState.of(segment["fast_path"], segment["fast_path_reason"]),
                drops=_drops(stats, then) if stats and then else Drops(),
                conflicts=conflicts.get(tap, ()),
                held=tuple(
                    HeldMac(each["mac"], each["destinations"][0]["dst"], each["held"] or 0.0)
                    for each in running.held
                    if each["vni"] == segment["vni"]
                ),
                loops=tuple(
                    BlockedRemote(each["remote"], each["blocked"])
                    for each in running.loops
                    if each["vni"] == segment["vni"]
                ),
                # Another version may not know of names.
                names=tuple(
                    NameFacts(each["name"], each["error"], tuple(each["addresses"]))
                    for each in segment.get("names", ())
                    if each["error"] is not None
                ),
                socket=running.socket,
                devices=tuple(segment["underlay_devices"]),
            )
        )
        if (netns := netns_of(segment)) is not None:
            found[-1] = _elsewhere(found[-1], netns, running.elsewhere.get(segment["vni"]))
    return found


def _elsewhere(facts: SegmentFacts, netns: str, status: SegmentStatus | None) -> SegmentFacts:
    """Return facts without those of a device here that has the name of a TAP which is elsewhere.

    `status` is what pyvtep knows of the TAP; None if it has gone meanwhile.
    """
    bridge = status["bridge"] if status is not None else None
    mtu = (status["tap_mtu"] if status is not None else None) or facts.mtu
    return evolve(
        facts,
        netns=netns,
        up=status is None or status["state"] != "down",
        tap_mtu=mtu,
        addresses=tuple(status["address"]) if status is not None else (),
        bridge=BridgeFacts(bridge, up=True, mtu=mtu) if bridge is not None else None,
        frames=(),
        packets=(),
        conflicts=(),
    )


def of_process(running: RunningVtep, after: Any) -> ProcessFacts:
    """Return the drops of a pyvtep that belong to none of its segments."""
    segments = running.segments
    return ProcessFacts(
        _drops(_without_segments(after), _without_segments(running.stats)),
        segments[0]["options"]["dstport"] if segments else vxlan.PORT,
        tuple(sorted({dev for segment in segments for dev in segment["underlay_devices"]})),
        running.socket,
    )


def _of_bridge(network: LocalNetwork, tap: str, rules: Rules) -> BridgeFacts | None:
    """Return the facts of the bridge that a TAP is a port of, if any."""
    device, bridge = network.by_name.get(tap), network.bridge_of(tap)
    if device is None or bridge is None:
        return None
    others = [
        PortFacts(other.name, other.mtu, isolated=other.port_option("isolated") == 1)
        for other in network.ports_of(bridge)
        if other.index != device.index
    ]
    options = ("br_nf_call_iptables", "br_nf_call_ip6tables")
    return BridgeFacts(
        name=bridge.name,
        up=bridge.up,
        mtu=bridge.mtu,
        addresses=network.addresses_of(bridge.name),
        state=device.port_state,
        isolated=device.port_option("isolated") == 1,
        learning=device.port_option("learning") == 1,
        hairpin=device.port_option("mode") == _BRIDGE_MODE_HAIRPIN,
        others=tuple(others),
        own_netfilter=bridge.data is not None and any(bridge.data.get(name) for name in options),
        packets=filtering.blocked_bridged_packets(bridge, rules),
        vlans=network.vlans_of(device, bridge),
    )


def _drops(after: Any, before: Any) -> Drops:
    """Return drop counters by two readings of them."""
    increase = {
        reason: count - before["drops"].get(reason, 0) for reason, count in after["drops"].items()
    }
    count = after["since_reset"]["drops"]
    return Drops(count, increase, after["last_sources"], after["last_drops"])


def _without_segments(stats: Any) -> Any:
    """Return the drop counters of a process without those of its segments."""
    total = stats["total"]
    drops, since = dict(total["drops"]), dict(total["since_reset"]["drops"])
    for segment in stats["segments"]:
        for reason in drops:
            drops[reason] -= segment["drops"][reason]
            since[reason] -= segment["since_reset"]["drops"][reason]
    return {**total, "drops": drops, "since_reset": {"drops": since}}
