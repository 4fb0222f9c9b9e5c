"""The treatment of a traced frame by the fast path: whether it may have a row, and has one.

Only the slow path has rules about frames; those here are about which of its verdicts are repeated
(see `vtep.datapath.verdicts`).
"""

from collections.abc import Iterator

from vtep.daemon.port import Port
from vtep.datapath.verdicts import is_repeatable
from vtep.fastpath.layout import KIND_TYPE
from vtep.fastpath.state import OBSERVED, FastPathStatus
from vtep.forwarding.policy import InnerVlan
from vtep.trace.steps import Recorder
from vtep.wire import ethernet, ip

_IPV6_EXTENSIONS = (0, 43, 44, 51, 60, 135, 139, 140)
_ICMP = (1, 58)


def describe(port: Port, frame: bytes, recorder: Recorder, *, from_tap: bool) -> str:
    """Return how the fast path would treat frames like a traced one."""
    state = port.fast_path
    # A trace of real frames has them shown, and the fast path is on again afterwards.
    if state.status is not FastPathStatus.ON and state != OBSERVED:
        return f"not used: {state}"
    if recorder.drops:
        storm = all(drop["reason"].startswith("storm_") for drop in recorder.drops)
        return "dropped by the fast path or the slow one" if storm else "slow path: it is dropped"
    reason = _kind(frame)
    if reason is None:
        reason = next(
            _egress(port, recorder) if from_tap else _ingress(port, frame, recorder), None
        )
    if reason is not None:
        return f"slow path: {reason}"
    rows = _rows(port, frame, from_tap=from_tap)
    if rows:
        return f"fast path: there are {rows} rows for this MAC (its kinds of frames and flows)"
    return "slow path this time; then the fast path has a row for frames of its kind"


def _kind(frame: bytes) -> str | None:
    """Return why frames of this kind never have a row; None if they may."""
    if len(frame) < ethernet.HEADER_LEN:
        return "it is a runt"
    ethertype, at = ethernet.network_layer(frame)
    if at > ethernet.HEADER_LEN + ethernet.TAG_LEN:
        return "it has more than one VLAN tag"
    if ethertype == ethernet.TYPE_IPV4 and at + 20 <= len(frame):
        if frame[at] != 0x45 or frame[at + 6] & 0x3F or frame[at + 7]:
            return "it has IP options, or is a fragment"
        protocol, upper = frame[at + 9], at + 20
    elif ethertype == ethernet.TYPE_IPV6 and at + 40 <= len(frame):
        protocol, upper = frame[at + 6], at + 40
        if protocol in _IPV6_EXTENSIONS:
            return "it has extension headers"
    else:
        return f"it is not IP (EtherType {ethertype:#06x}), as ARP always is"
    detail = 0
    if protocol == ip.TCP and upper + ip.TCP_FLAGS_OFFSET < len(frame):
        detail = int(bool(frame[upper + ip.TCP_FLAGS_OFFSET] & ip.TCP_FLAG_SYN))
    elif protocol in _ICMP and upper < len(frame):
        detail = frame[upper]
    if not is_repeatable(protocol | detail << KIND_TYPE):
        return "each SYN, and each ICMPv6 message but echo, is looked at"
    return None


def _egress(port: Port, recorder: Recorder) -> Iterator[str]:
    """Yield why a frame from the TAP has no row."""
    if port.segment.policy.inner_vlan is not InnerVlan.PASS:
        yield f"--inner-vlan {port.segment.policy.inner_vlan} needs each frame"
    if recorder.has("size") and any("exceed" in step["decision"] for step in recorder.steps):
        yield "it is too large for the tunnel"
    if not recorder.is_known:
        yield "frames that are flooded have no row"
    if len(recorder.sent) > 1:
        yield "its MAC has several destinations"


def _ingress(port: Port, frame: bytes, recorder: Recorder) -> Iterator[str]:
    """Yield why a datagram has no row."""
    policy = port.segment.policy
    if policy.groups is not None:
        yield "--gbp needs each header"
    if port.segment.loops.blocked:
        yield "a remote is blocked because of a loop"
    if policy.inner_vlan is not InnerVlan.PASS and ethernet.is_tagged(frame):
        yield f"--inner-vlan {policy.inner_vlan} concerns it"
    if recorder.written and recorder.written[0]["frame"] != frame.hex():
        yield "the frame is changed"
    if port.segment.learning and not recorder.is_known:
        yield "its source MAC is learned or moves; then the fast path may take its like"


def _rows(port: Port, frame: bytes, *, from_tap: bool) -> int:
    """Return the number of rows about the MAC that the verdict depends on."""
    fast = port._fast_path_loader.fast_path
    if fast is None:
        return 0
    table = fast.transmit if from_tap else fast.receive
    mac = frame[: ethernet.MAC_LEN] if from_tap else frame[ethernet.MAC_LEN : 12]
    return len(table._by_mac.get((port.segment, mac), ()))
