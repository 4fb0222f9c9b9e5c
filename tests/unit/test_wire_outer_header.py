"""OuterHeaderOptions header fields of a frame, compared with the inner header as scapy reads it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from tests.unit import craft
from vtep.wire import outer_header
from vtep.wire.outer_header import InheritPolicy

BOOLEAN = st.booleans()


@st.composite
def policies(draw: st.DrawFn) -> InheritPolicy:
    inherit_tos = draw(BOOLEAN)
    return InheritPolicy(
        ecn=draw(st.sampled_from(("rfc6040", "kernel"))),
        tos=0 if inherit_tos else draw(st.integers(0, 63)) << 2,
        inherit_tos=inherit_tos,
        inherit_ttl=draw(BOOLEAN),
        inherit_flowlabel=draw(BOOLEAN),
        inherit_df=draw(BOOLEAN),
    )


def outer(policy: InheritPolicy, frame: bytes) -> tuple[int, int, int, bool]:
    """Return the expected TOS, TTL, flow label and DF; 0 is the default of the host."""
    packet = Ether(frame)
    tos = ttl = label = 0
    df = False
    if IP in packet:
        tos, ttl, df = packet[IP].tos, packet[IP].ttl, "DF" in packet[IP].flags
    elif IPv6 in packet:
        tos, ttl, label, df = packet[IPv6].tc, packet[IPv6].hlim, packet[IPv6].fl, True
    ecn = tos & 3
    if ecn == 3 and policy.ecn == "kernel":
        ecn = 2
    return (
        (tos & 0xFC if policy.inherit_tos else policy.tos) | ecn,
        ttl if policy.inherit_ttl else 0,
        label if policy.inherit_flowlabel else 0,
        df and policy.inherit_df,
    )


@given(
    policies(),
    st.sampled_from((4, 6)),
    st.sampled_from(("", "q", "a", "aq", "qq")),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 0xFFFFF),
    BOOLEAN,
)
def test_ip(
    policy: InheritPolicy, version: int, tags: str, tos: int, ttl: int, label: int, df: bool
) -> None:
    fields: dict[str, Any] = (
        {"tos": tos, "ttl": ttl, "flags": "DF" if df else ""}
        if version == 4
        else {"tc": tos, "hlim": ttl, "fl": label}
    )
    frame = bytes(craft.ether(craft.ip(version, craft.udp(b"x"), **fields), tags=tags))
    packed = policy.make_reader()(memoryview(frame))
    fields_read = outer_header.unpack(packed)
    expected_tos, expected_ttl, expected_label, expected_df = outer(policy, frame)
    # A TOS of 0 stands for that of the socket, which is set up with the TOS of the policy.
    assert (fields_read.tos or policy.tos) == expected_tos
    assert fields_read.ttl == expected_ttl
    assert fields_read.flowlabel == expected_label
    assert bool(packed & outer_header.DF) == expected_df


@pytest.mark.parametrize("tags", ["", "q", "aq"])
@given(policies(), st.binary(min_size=0, max_size=60))
def test_other_protocols_inherit_nothing(tags: str, policy: InheritPolicy, payload: bytes) -> None:
    arp = craft.VALID["arp"]
    for frame in (arp[:12] + b"\x88\xb5" + payload, arp):
        tagged = frame[:12] + b"\x81\0\0\x03" * len(tags) + frame[12:]
        assert policy.make_reader()(tagged) == 0


@given(policies(), craft.HOSTILE)
def test_arbitrary_frames(policy: InheritPolicy, frame: bytes) -> None:
    packed = policy.make_reader()(memoryview(frame))
    assert 0 <= packed < 2 * outer_header.DF


@given(craft.HOSTILE)
def test_ecn_only_reader_equals_full_reader(frame: bytes) -> None:
    for mode in ("rfc6040", "kernel"):
        fast = InheritPolicy(ecn=mode).make_reader()(frame)
        # A policy that also inherits the TTL uses the full reader; the TTL is masked out below.
        full = InheritPolicy(ecn=mode, inherit_ttl=True).make_reader()(frame)
        assert fast == full & 0xFF


def test_plain_frame_inherits_nothing_by_default() -> None:
    reader = InheritPolicy().make_reader()
    assert {reader(frame) for frame in craft.VALID.values()} == {0}
