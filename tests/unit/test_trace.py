"""A trace predicts what a VTEP does with a frame, and changes nothing."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing
from ipaddress import ip_address
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import currently_in_test_context, event, given, settings
from hypothesis import strategies as st
from scapy.layers.l2 import ARP

from tests.unit.craft import HOSTILE, MAC_A, MAC_B, V4_A, V4_B, V6_B, VALID, ether, mac
from tests.unit.nodes import IP_A, IP_B, IP_C, Node, segment
from tests.unit.test_egress import superframe, unfinished
from tests.unit.twins import KINDS, SYN, TCP, UDP, Frame
from vtep.forwarding.fdb import (
    LEARNED,
    LOCAL,
    PERMANENT,
    DestinationOrigin,
    Entry,
    EntryKind,
    EntryState,
    Remote,
)
from vtep.testing import MemoryUnderlay, Transmission
from vtep.trace.run import trace_from_tap, trace_from_underlay
from vtep.trace.steps import TraceResult
from vtep.trace.text import describe_entry
from vtep.wire import virtio, vxlan
from vtep.wire.echo import EchoKind, EchoMessage

A, B = mac(MAC_A), mac(MAC_B)
ALL = b"\xff" * 6
GROUP = b"\x01\x00\x5e\0\0\1"
KNOWN = b"\2\0\0\0\0\x0c"
STRANGER_IP = "198.51.100.9"

OFFLOAD = ("gso", "gro", "tso", "uso")

_STATE = ("vtep.forwarding", "vtep.offload", "vtep.counters", "vtep.ratelimit")


def freeze(value: object, seen: dict[int, int] | None = None) -> object:
    """Return all that decisions may depend on below an object, in a form that can be compared."""
    seen = {} if seen is None else seen
    if value is None or isinstance(value, int | float | str | bytes | bytearray):
        return bytes(value) if isinstance(value, bytearray) else value
    if id(value) in seen:
        return "seen", seen[id(value)]
    seen[id(value)] = len(seen)
    if isinstance(value, Mapping):
        return [(freeze(key, seen), freeze(each, seen)) for key, each in value.items()]
    if isinstance(value, list | tuple | deque):
        return [freeze(each, seen) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(repr(freeze(each, {})) for each in value)
    kind = type(value)
    if not kind.__module__.startswith(_STATE):
        return kind.__name__, id(value)
    names = [*getattr(value, "__dict__", ())]
    names += [name for each in kind.__mro__ for name in getattr(each, "__slots__", ())]
    # A splitter holds nothing but memory for the frame at hand.
    names = [name for name in names if name not in {"_splitter", "__weakref__"}]
    return kind.__name__, [(name, freeze(getattr(value, name, None), seen)) for name in names]


class Twin:
    """A VTEP in memory that is driven by hand, at a time that is set by hand."""

    def __init__(self, node: Node, underlay: MemoryUnderlay) -> None:
        self.node = node
        self.underlay = underlay
        self.port = node.vtep.ports[1]
        self.listeners: dict[int, Any] = {each.version: each for each in self.port.listeners}
        self.now = time.monotonic()

    def state(self) -> object:
        ports = self.node.vtep.ports.values()
        return freeze(
            (
                [(port.segment, port.sizing) for port in ports],
                [listener.demux for listener in self.listeners.values()],
                [sorted(each.host for each in port.paths) for port in ports],
                len(self.underlay.trace),
            )
        )

    def counters(self) -> dict[str, int]:
        parts = [port.segment.counters for port in self.node.vtep.ports.values()]
        parts += [each.demux.counters for each in self.listeners.values()]
        total: dict[str, int] = {}
        for part in parts:
            for name, count in part.as_dict().items():
                total[name] = total.get(name, 0) + count
        return total

    def check(self, predict: Callable[[], TraceResult], act: Callable[[], None]) -> TraceResult:
        """Trace a frame, then have it happen, and compare both."""
        with patch("time.monotonic", lambda: self.now):
            state = self.state()
            predicted = predict()
            assert self.state() == state, "a trace has changed something"
            assert predict() == predicted
            counters, sent = self.counters(), len(self.underlay.trace)
            act()
        after = self.counters()
        grown = {name: after[name] - count for name, count in counters.items()}
        assert predicted["counters"] == {
            name: count for name, count in grown.items() if count and not name.endswith("_syscalls")
        }
        transmissions = self.underlay.trace[sent:]
        real = [
            (*each.destination, each.ecn, datagram.hex())
            for each in transmissions
            for datagram in each.datagrams
        ]
        replies = predicted["replies"]
        told = [
            (each["remote"], each["port"], each["ecn"], datagram)
            for each in predicted["sent"]
            for datagram in each["datagrams"]
        ]
        if replies:
            assert [each[-1] for each in real] == replies
        else:
            assert real == told
        written = [
            (f"vx{vni}", header, frame.hex())
            for vni in self.node.vtep.ports
            for header, frame in self.node.network.taps[f"vx{vni}"].received()
        ]
        assert [(tap, frame) for tap, _, frame in written] == [
            (each["dev"], each["frame"]) for each in predicted["written"]
        ]
        for (_, header, _), each in zip(written, predicted["written"], strict=True):
            gso = virtio.unpack(header)
            assert each["segment_size"] == (gso.gso_size if gso.gso_type else 0)
            assert each["is_partial"] == bool(gso.flags & virtio.FLAG_NEEDS_CSUM)
        drops = {name for name, count in grown.items() if name.startswith("drop_") and count}
        assert {f"drop_{each['reason']}" for each in predicted["drops"]} == drops
        expected = "dropped"
        if transmissions and not replies:
            expected = "forwarded"
        elif written:
            answered = "dropped" if drops else "answered"
            expected = "delivered" if predicted["direction"] == "receive" else answered
        elif replies or grown["echo_replies_received"]:
            expected = "answered"
        assert predicted["outcome"] == expected
        if currently_in_test_context():
            for name in (expected, *drops):
                event(name)
        return predicted

    def from_tap(self, frame: bytes, header: bytes = virtio.PLAIN) -> TraceResult:
        egress = self.port._egress
        assert egress is not None

        def act() -> None:
            self.node.network.taps["vx1"].send(frame, header)
            egress.readable()

        return self.check(lambda: trace_from_tap(self.port, frame, header), act)

    def from_underlay(self, datagram: bytes, source: str, ecn: int = 0) -> TraceResult:
        listener = self.listeners[4]
        receiver = listener._receiver
        assert receiver is not None

        def act() -> None:
            to = IP_A, listener.endpoint.port
            passed = Transmission((source, 50000), to, ecn, (datagram,))
            before = len(self.underlay.trace)
            self.underlay.transmit(self.node.host, passed)
            del self.underlay.trace[before]  # It is what the VTEP receives, not what it sends.
            listener._ingress.readable(receiver)

        ports = self.node.vtep.ports
        return self.check(lambda: trace_from_underlay(self.port, ports, datagram, source, ecn), act)


def run(options: dict[str, Any], act: Callable[[Twin], None], *, remotes: int = 1) -> None:
    """Run a VTEP with VNIs 1 and 2 in memory, and act on it without a turn of its event loop."""

    async def main() -> None:
        others = tuple(f"192.0.2.{number}" for number in range(2, 2 + remotes))
        with closing(MemoryUnderlay(seed=1)) as underlay:
            node = Node(
                underlay,
                segment(remote=others, offload=OFFLOAD, **options),
                segment(vni=2, offload=OFFLOAD),
                ip=IP_A,
            )
            async with node.vtep:
                act(Twin(node, underlay))

    asyncio.run(main())


# --- random frames and configurations ------------------------------------------------------------

STORM = st.sampled_from(["off", "1:1", "2:2", "1000:100"])
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "proxy": st.just(True),
        "inner_vlan": st.sampled_from(["pass", "strip", "drop"]),
        "reserved_bits": st.sampled_from([0, (1 << 64) - 1 ^ (0x0800_0000_FFFF_FF00)]),
        "learning": st.just(False),
        "anycast_gateway": st.just((ip_address(V4_B), ip_address(V6_B))),
        "max_addresses": st.sampled_from([0, 1, 2]),
        "mac_move_limit": st.sampled_from([0, 1]),
        "storm_broadcast": STORM,
        "storm_multicast": STORM,
        "storm_unknown_unicast": STORM,
        "df": st.sampled_from(["unset", "set", "inherit"]),
        "ttl": st.sampled_from([9, "inherit"]),
        "tos": st.sampled_from([0, 8, "inherit"]),
        "ecn": st.sampled_from(["rfc6040", "kernel"]),
        "mss_clamp": st.sampled_from(["auto", "off", 600]),
        "accept": st.just(("198.51.100.0/24",)),
        "mtu": st.sampled_from([1000, 1450]),
    },
) | st.fixed_dictionaries(
    {"gbp": st.sampled_from([0, 7])},
    optional={"gbp_accept": st.sampled_from([(0,), (7,), (0, 7)]), "proxy": st.just(True)},
)

MACS = st.sampled_from([A, A, B, B, KNOWN, ALL, ALL, GROUP, b"\2\0\0\0\0\x0d", bytes(6)])


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """Draw a frame between some stations."""
    frame = draw(st.sampled_from(list(VALID.values())) | large() | HOSTILE | st.binary(max_size=20))
    if draw(st.booleans()):
        return frame
    to, source = draw(MACS), draw(MACS)
    return (to + source)[: len(frame)] + frame[12:]


@st.composite
def large(draw: st.DrawFn) -> bytes:
    """Draw a frame that may be too large for the tunnel."""
    version, protocol = KINDS[draw(st.sampled_from(list(KINDS)))]
    options = b"\2\4\x05\xb4"
    return Frame(
        version,
        protocol,
        bytes(draw(st.sampled_from([0, 100, 1300, 1420, 2000, 4000]))),
        tags=draw(st.sampled_from([(), ((0x8100, 5),)])),
        fragment=draw(st.sampled_from([0, 0x4000])),
        flags=draw(st.sampled_from([SYN, 0x10, 0x18])),
        tos=draw(st.integers(0, 255)),
        options=options if protocol == TCP else b"",
        bad_checksum=draw(st.sampled_from([0, 0, 1])),
    ).build()


@st.composite
def from_tap(draw: st.DrawFn) -> Callable[[Twin], TraceResult]:
    if draw(st.integers(0, 5)):
        frame = draw(frames())
        return lambda twin: twin.from_tap(frame)
    header, frame = draw(
        st.sampled_from(
            [
                *(superframe(3), superframe(2, size=2000), unfinished()),
                (virtio.pack_gso(virtio.GSO_TCPV4, 54, 100, 34, 16), VALID["arp"]),
            ]
        )
    )
    return lambda twin: twin.from_tap(frame, header)


@st.composite
def from_underlay(draw: st.DrawFn) -> Callable[[Twin], TraceResult]:
    source = draw(st.sampled_from([IP_B, IP_B, IP_C, STRANGER_IP, "203.0.113.1"]))
    ecn = draw(st.sampled_from([0, 0, 1, 2, 3]))
    kind = draw(st.sampled_from(["frame"] * 8 + ["echo", "probe", "octets"]))
    if kind == "octets":
        datagram = draw(st.binary(max_size=30))
    elif kind == "echo":
        direction = draw(st.sampled_from(EchoKind))
        vni = draw(st.sampled_from([None, 1, 9]))
        port = draw(st.sampled_from([4789, 50000, 22]))
        datagram = EchoMessage(direction, vni, port, bytes(8), 1, 60).pack(64)
    else:
        flags = draw(st.sampled_from([0x0800_0000] * 4 + [0x8800_0007, 0x8848_0007, 0x0C00_0001]))
        vni = draw(st.sampled_from([1] * 6 + [2, 9]))
        datagram = vxlan.HEADER.pack(flags, vni << 8 | draw(st.sampled_from([0, 0, 0, 1])))
        datagram += draw(frames())
    if kind == "probe":
        # As a frame that has come back through a loop.
        return lambda twin: twin.from_underlay(
            vxlan.pack(1) + ALL + twin.port.segment.loops.probe_mac + VALID["arp"][12:], source, ecn
        )
    return lambda twin: twin.from_underlay(datagram, source, ecn)


def prepare(twin: Twin, *, static: bool, proxy: bool) -> None:
    segment = twin.port.segment
    own, (remote, *_) = segment.fdb, segment.remotes
    if static:
        own.replace(KNOWN, remote, twin.now, EntryKind(EntryState.STATIC))
        own.append(GROUP, Remote(IP_C, 4789, vni=77), twin.now)
        own.add(b"\2\0\0\0\0\x0d", Remote("198.51.100.7", 4790), twin.now)
    if proxy and segment.neighbours is not None:
        own.replace(B, remote, twin.now)
        segment.neighbours.add(ip_address(V4_B), B, twin.now)
        segment.neighbours.add(ip_address(V6_B), B, twin.now)


PAUSES = st.tuples(st.sampled_from([0.0, 0.0, 0.001, 1.2, 6.0, 40.0]), st.integers(1, 3))
"""Seconds before a frame, and the number of times that it comes."""


@settings(max_examples=120)
@given(
    options=OPTIONS,
    remotes=st.sampled_from([1, 2, 9]),
    static=st.booleans(),
    acts=st.lists(from_tap() | from_underlay(), min_size=1, max_size=8),
    pauses=st.lists(PAUSES, min_size=8, max_size=8),
    permanent=st.booleans(),
)
def test_random_frames(
    options: dict[str, Any],
    remotes: int,
    static: bool,
    acts: list[Callable[[Twin], TraceResult]],
    pauses: list[tuple[float, int]],
    permanent: bool,
) -> None:
    """Each prediction comes true: octets, destinations, drops and counters."""

    def act(twin: Twin) -> None:
        prepare(twin, static=static, proxy=permanent)
        for each, (pause, count) in zip(acts, pauses, strict=False):
            twin.now += pause
            for _ in range(count):
                each(twin)

    run(options, act, remotes=remotes)


# --- one decision after the other ----------------------------------------------------------------

BROADCAST = ALL + A + VALID["udp4"][12:]
UNKNOWN = Frame(dst=b"\2\0\0\0\0\x99", protocol=UDP).build()
HEADER = vxlan.pack(1)


def held(twin: Twin) -> TraceResult:
    """Move a MAC twice, which is once too often."""
    twin.from_underlay(HEADER + VALID["udp4"], IP_B)
    twin.from_underlay(HEADER + VALID["udp4"], IP_C)
    return twin.from_underlay(HEADER + VALID["udp4"], IP_B)


def neighbour(twin: Twin) -> TraceResult:
    """Ask for a neighbour that was learned, which gets the request to confirm."""
    answer = VALID["arp"][:6] + B + VALID["arp"][12:22] + B + ip_address(V4_B).packed
    twin.from_underlay(HEADER + answer + bytes(6) + ip_address(V4_A).packed, IP_B)
    return twin.from_tap(VALID["arp"])


def looped(twin: Twin) -> TraceResult:
    """Receive a probe for a loop, and flood then."""
    probe = ALL + twin.port.segment.loops.probe_mac + VALID["arp"][12:]
    twin.from_underlay(HEADER + probe, IP_B)
    return twin.from_tap(BROADCAST)


def unconnected(twin: Twin) -> TraceResult:
    twin.port.fdb.set_default((), twin.now)
    return twin.from_tap(BROADCAST)


def twice(act: Callable[[Twin], TraceResult]) -> Callable[[Twin], TraceResult]:
    return lambda twin: (act(twin), act(twin))[1]


def tap(frame: bytes, header: bytes = virtio.PLAIN) -> Callable[[Twin], TraceResult]:
    return lambda twin: twin.from_tap(frame, header)


def underlay(
    frame: bytes, source: str = IP_B, header: bytes = HEADER, ecn: int = 0
) -> Callable[[Twin], TraceResult]:
    return lambda twin: twin.from_underlay(header + frame, source, ecn)


GATEWAY = ALL + A + bytes(ether(ARP(hwsrc=MAC_A, psrc=V4_B, pdst=V4_A)))[12:]
LARGE = Frame(protocol=UDP, payload=bytes(2000)).build()


@pytest.mark.parametrize(
    ("options", "act", "outcome", "stages", "drops"),
    [
        ({}, tap(BROADCAST), "forwarded", "read size storm route send", ""),
        ({}, underlay(VALID["udp4"]), "delivered", "receive demux source learn deliver", ""),
        (
            {"storm_broadcast": "1:1"},
            twice(tap(BROADCAST)),
            *("dropped", "read size storm drop", "storm_broadcast_tx"),
        ),
        (
            {"storm_unknown_unicast": "1:1"},
            twice(tap(UNKNOWN)),
            *("dropped", "read size route storm drop", "storm_unknown_unicast_tx"),
        ),
        (
            {"storm_multicast": "1:1"},
            twice(underlay(GROUP + A + VALID["udp4"][12:])),
            *("dropped", "receive demux source storm drop", "storm_multicast_rx"),
        ),
        (
            {"mac_move_limit": 1},
            held,
            *("dropped", "receive demux source learn drop", "inner_source_held"),
        ),
        (
            {"gbp": 7, "gbp_accept": (7,)},
            underlay(VALID["udp4"], header=vxlan.pack(1, 8)),
            *("dropped", "receive demux source drop", "group_denied"),
        ),
        (
            {"gbp": 7, "gbp_accept": (7,)},
            underlay(VALID["udp4"], header=vxlan.pack(1, 7)),
            *("delivered", "receive demux source policy learn deliver", ""),
        ),
        (
            {"inner_vlan": "drop"},
            tap(VALID["udp6 qinq"]),
            *("dropped", "read size vlan drop", "tx_tagged"),
        ),
        (
            {"inner_vlan": "strip"},
            tap(VALID["udp6 qinq"]),
            *("forwarded", "read size vlan vlan route storm send", ""),
        ),
        (
            {"anycast_gateway": (ip_address(V4_B),)},
            underlay(GATEWAY),
            *("dropped", "receive demux source storm learn gateway drop"),
            "anycast_gw_suppressed_rx",
        ),
        (
            {"anycast_gateway": (ip_address(V4_B),)},
            tap(VALID["arp"]),
            *("dropped", "read size storm gateway route drop", "anycast_gw_suppressed_tx"),
        ),
        (
            {"proxy": True},
            neighbour,
            *("forwarded", "read size neighbour answer route send", ""),
        ),
        ({}, looped, "dropped", "read size storm route drop", "loop_blocked_tx"),
        ({}, unconnected, "dropped", "read size storm route drop", "no_remote"),
        ({}, tap(LARGE), "dropped", "read size route storm size drop answer", "tx_too_big"),
        (
            {"df": "set"},
            tap(LARGE[:12] + b"\x88\xb5" + LARGE[14:]),
            *("dropped", "read size route storm size send drop", "underlay_too_big"),
        ),
        (
            {},
            underlay(VALID["tcp6"], ecn=3),
            "dropped",
            "receive demux source learn drop",
            "congestion",
        ),
        (
            {},
            underlay(VALID["udp4"], STRANGER_IP),
            "dropped",
            "receive demux source drop",
            "source_unknown",
        ),
    ],
)
def test_decisions(
    options: dict[str, Any],
    act: Callable[[Twin], TraceResult],
    outcome: str,
    stages: str,
    drops: str,
) -> None:
    """The steps come in the order of the walk, each once, with a rule."""

    def check(twin: Twin) -> None:
        result = act(twin)
        assert (result["outcome"], " ".join(step["stage"] for step in result["steps"])) == (
            outcome,
            stages,
        ), result["steps"]
        assert " ".join(drop["reason"] for drop in result["drops"]) == drops

    run(options, check, remotes=2 if "mac_move_limit" in options else 1)


def test_an_entry_of_a_control_plane_is_named() -> None:
    one, two = Remote("192.0.2.2", 4789), Remote("192.0.2.3", 4789)
    fabric = DestinationOrigin(is_local=False, extern_learn=True, sequence=3)
    entry = Entry(b"\2\0\0\0\0\1", (one,), 0.0, LEARNED.with_origins((fabric,)))
    said = describe_entry(entry, 5.0)
    assert "last seen" not in said  # It does not age.
    assert "192.0.2.2" in said
    assert "(given by a control plane, such as EVPN, mobility sequence number 3; " in said
    mixed = Entry(bytes(6), (one, two), 0.0, PERMANENT.with_origins((LOCAL, fabric)))
    assert "(1 of them given by a control plane, such as EVPN, " in describe_entry(mixed, 5.0)
    assert "control plane" not in describe_entry(Entry(bytes(6), (one,), 0.0, PERMANENT), 5.0)
