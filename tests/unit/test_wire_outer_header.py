"""The envelope of a frame against what scapy reads of it."""

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
    """TOS, TTL, flow label and DF of the outer header; 0 is what the host gives."""
    packet = Ether(frame)
    tos = ttl = label = 0
    df = False
    if IP in packet:
        tos, ttl, df = packet[IP].tos, packet[IP].ttl, "DF" in packet[IP].flags
    elif IPv6 in packet:
        tos, ttl, label, df = packet[IPv6].tc, packet[IPv6].hlim, packet[IPv6].fl, True
    mark = tos & 3
    if mark == 3 and policy.ecn == "kernel":
        mark = 2
    return (
        (tos & 0xFC if policy.inherit_tos else policy.tos) | mark,
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
    key = policy.make_reader()(memoryview(frame))
    seen = outer_header.unpack(key)
    expected_tos, expected_ttl, expected_label, expected_df = outer(policy, frame)
    # A TOS of 0 is what the socket has, which has that of the policy.
    assert (seen.tos or policy.tos) == expected_tos
    assert seen.ttl == expected_ttl
    assert seen.flowlabel == expected_label
    assert bool(key & outer_header.DF) == expected_df


@pytest.mark.parametrize("tags", ["", "q", "aq"])
@given(policies(), st.binary(min_size=0, max_size=60))
def test_what_is_not_ip_says_nothing(tags: str, policy: InheritPolicy, payload: bytes) -> None:
    arp = craft.VALID["arp"]
    for frame in (arp[:12] + b"\x88\xb5" + payload, arp):
        tagged = frame[:12] + b"\x81\0\0\x03" * len(tags) + frame[12:]
        assert policy.make_reader()(tagged) == 0


@given(policies(), craft.HOSTILE)
def test_hostile_frames(policy: InheritPolicy, frame: bytes) -> None:
    key = policy.make_reader()(memoryview(frame))
    assert 0 <= key < 2 * outer_header.DF


@given(craft.HOSTILE)
def test_the_short_cut_gives_what_the_long_way_does(frame: bytes) -> None:
    """Where only ECN follows the frame."""
    for mode in ("rfc6040", "kernel"):
        quick = InheritPolicy(ecn=mode).make_reader()(frame)
        # What is inherited beside it, and masked out.
        slow = InheritPolicy(ecn=mode, inherit_ttl=True).make_reader()(frame)
        assert quick == slow & 0xFF


def test_a_plain_frame_says_nothing_by_default() -> None:
    reader = InheritPolicy().make_reader()
    assert {reader(frame) for frame in craft.VALID.values()} == {0}
