"""Ethernet: the text format of MAC addresses, VLAN tags, and the offset of the network layer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6

from tests.unit.craft import BROADCAST, HOSTILE, MAC_A, VALID, ether, ip4, ip6, mac, udp
from vtep.wire import ethernet

MACS = st.binary(min_size=6, max_size=6)


@given(MACS)
def test_mac_round_trip(address: bytes) -> None:
    text = ethernet.format_mac(address)
    assert text == ":".join(f"{octet:02x}" for octet in address)
    assert ethernet.parse_mac(text) == address
    assert ethernet.parse_mac(text.upper().replace(":", "-")) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "02:00:00:00:00",
        "02:00:00:00:00:01:02",
        "02:00:00:00:00:0g",
        "2:0:0:0:0:1",
        "020000000001",
        "0200.0000.0001",
        "02.00.00.00.00.01",
        "02:00:00:00:00:01 ",
        " 02:00:00:00:00:01",
        "02:00:00:00:00:01\n",
        "02::00:00:00:01",
        "٠٢:00:00:00:00:01",  # Arabic digits, which int() accepts
    ],
)
def test_invalid_mac(text: str) -> None:
    with pytest.raises(ValueError, match="is not a MAC address") as caught:
        ethernet.parse_mac(text)
    assert repr(text) in str(caught.value)


@given(st.text(max_size=20))
def test_any_text_parses_or_raises_value_error(text: str) -> None:
    try:
        address = ethernet.parse_mac(text)
    except ValueError:
        return
    assert ethernet.format_mac(address) == text.lower().replace("-", ":")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_format_any_buffer(kind: type) -> None:
    assert ethernet.format_mac(kind(mac(MAC_A))) == MAC_A


@pytest.mark.parametrize(
    ("text", "group"),
    [
        (BROADCAST, True),
        ("01:00:5e:00:00:01", True),
        ("33:33:00:00:00:01", True),
        ("03:00:00:00:00:00", True),
        (MAC_A, False),
        ("00:00:00:00:00:00", False),
        ("fe:ff:ff:ff:ff:ff", False),
    ],
)
def test_is_group(text: str, group: bool) -> None:
    assert ethernet.is_group(mac(text)) is group


@pytest.mark.parametrize("tags", ["", "q", "a", "aq", "qq", "aqaqa"])
@pytest.mark.parametrize(
    ("packet", "ethertype", "layer"),
    [
        pytest.param(ip4(udp()), ethernet.TYPE_IPV4, IP, id="v4"),
        pytest.param(ip6(udp()), ethernet.TYPE_IPV6, IPv6, id="v6"),
    ],
)
def test_network_layer(tags: str, packet: IP, ethertype: int, layer: type[IP | IPv6]) -> None:
    built = ether(packet, tags=tags)
    offset = len(built) - len(built[layer])
    assert offset == 14 + 4 * len(tags)
    for kind in (bytes, bytearray, memoryview):
        assert ethernet.network_layer(kind(bytes(built))) == (ethertype, offset)


def test_frame_that_ends_within_its_tags() -> None:
    frame = bytes(ether(ip4(udp()), tags="aq"))
    assert [ethernet.network_layer(frame[:length]) for length in range(14, 23)] == [
        (0, 14),
        (0, 14),
        (0, 14),
        (0, 14),
        (0, 18),
        (0, 18),
        (0, 18),
        (0, 18),
        (ethernet.TYPE_IPV4, 22),
    ]


@pytest.mark.parametrize("tag", [b"\x81\x00", b"\x88\xa8"])
def test_frame_of_tags_only(tag: bytes) -> None:
    assert ethernet.network_layer(bytes(12) + (tag + bytes(2)) * 300 + tag) == (0, 14 + 4 * 300)


def test_ethertype_other_than_ip() -> None:
    assert ethernet.network_layer(VALID["arp"]) == (0x0806, 14)


@given(HOSTILE)
def test_any_frame(frame: bytes) -> None:
    ethertype, offset = ethernet.network_layer(frame)
    assert 14 <= offset <= len(frame)
    assert ethertype not in (ethernet.TYPE_8021Q, ethernet.TYPE_8021AD)
    if ethertype:
        assert int.from_bytes(frame[offset - 2 : offset], "big") == ethertype


# --- VLAN tags --------------------------------------------------------------------------------


@pytest.mark.parametrize("tags", ["", "q", "a", "aq", "qqq"])
@pytest.mark.parametrize("plain", [bytes(ether(ip4(udp(b"x")))), VALID["arp"][:14]])
def test_untag(plain: bytes, tags: str) -> None:
    inserted = b"".join(b"\x81\x00\x00\x0a" if tag == "q" else b"\x88\xa8\x00\x0b" for tag in tags)
    tagged = plain[:12] + inserted + plain[12:]
    assert ethernet.is_tagged(tagged) is bool(tags)
    buffer = bytearray(tagged)
    left = ethernet.untag(memoryview(buffer))
    assert bytes(left) == plain
    assert bytes(buffer[-len(plain) :]) == plain


@pytest.mark.parametrize("length", [14, 15, 17, 19, 21])
def test_truncated_tags_are_kept(length: int) -> None:
    frame = bytes(ether(ip4(udp()), tags="aq"))[:length]
    assert bytes(ethernet.untag(memoryview(bytearray(frame)))) == frame


@given(HOSTILE)
def test_untag_any_frame(frame: bytes) -> None:
    left = bytes(ethernet.untag(memoryview(bytearray(frame))))
    assert left[:12] == frame[:12]
    assert frame.endswith(left[12:])
    assert not ethernet.is_tagged(left) or left == frame
