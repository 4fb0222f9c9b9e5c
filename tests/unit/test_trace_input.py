"""Frames that `pyvtep trace` gets from fields, hexadecimal and capture files."""

import io
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.utils import PcapNgWriter, wrpcap

from tests.unit.craft import V4_A, V4_B, V6_A, V6_B, VALID, vxlan
from vtep.errors import ConfigError
from vtep.trace.fields import PROTOCOLS, FrameFields, build_frame
from vtep.trace.overlay import Overlay
from vtep.trace.packets import inner_frame, is_vxlan, outer_datagram, parse_hex, read_packet
from vtep.wire import ethernet

TO = b"\2\0\0\0\0\2"


@pytest.mark.parametrize("proto", PROTOCOLS)
@pytest.mark.parametrize(("src", "dst"), [(V4_A, V4_B), (V6_A, V6_B)])
@pytest.mark.parametrize("size", [None, 101, 3000])
def test_frames_have_right_lengths_and_checksums(
    proto: str, src: str, dst: str, size: int | None
) -> None:
    if (proto, ":" in dst) in {("arp", True), ("nd", False)}:
        return
    fields: dict[str, Any] = {"proto": proto, "src": ip_address(src), "dst": ip_address(dst)}
    frame = build_frame(FrameFields(**fields, dst_mac=TO, size=size, vlan=(5,), tos=3, ttl=9))
    parsed = Ether(frame)
    rebuilt = parsed.copy()
    for layer in (rebuilt.getlayer(number) for number in range(2, 6)):
        for name in ("chksum", "cksum", "len", "plen"):
            if layer is not None and name in layer.fields:
                delattr(layer, name)
    assert bytes(rebuilt) == frame
    assert parsed.vlan == 5
    if proto in ("tcp", "udp", "icmp"):
        ip = parsed[IPv6] if ":" in dst else parsed[IP]
        assert (ip.src, ip.dst) == (src, dst)
        if size is not None:
            assert len(frame) == ethernet.HEADER_LEN + ethernet.TAG_LEN + size


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"dst": ip_address(V4_B)}, "--dst-mac: is missing"),
        ({"proto": "tcp", "dst_mac": TO}, "--dst: is missing"),
        ({"dst": ip_address(V4_B), "src": ip_address(V6_A)}, "--src fd00:1::1: is of another IP"),
        ({"proto": "arp", "dst": ip_address(V6_B)}, "--proto arp: is for IPv4; with --dst fd00"),
        ({"proto": "icmp", "sport": 5}, "--sport: icmp has no ports"),
        ({"proto": "udp", "syn": True}, "--syn: is for --proto tcp"),
        ({"dst": ip_address(V4_B), "dst_mac": TO, "size": 20}, "--size 20: packets of icmp have"),
    ],
)
def test_mistakes_in_fields(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build_frame(FrameFields(**fields))
    assert str(refused.value).startswith(says)


@pytest.mark.parametrize(
    ("dst", "mac"),
    [
        ("239.129.2.3", "01:00:5e:01:02:03"),
        ("ff02::1:2", "33:33:00:01:00:02"),
        ("255.255.255.255", "ff:ff:ff:ff:ff:ff"),
    ],
)
def test_a_group_has_its_mac(dst: str, mac: str) -> None:
    assert build_frame(FrameFields(dst=ip_address(dst), dport=5))[:6].hex(":") == mac


@pytest.mark.parametrize(
    "text",
    [
        *("00 11 22\n33", "0x00112233", "00:11:22:33", "\t0x0000:  0011 2233"),
        "09:00:00.1 IP 10.0.0.1 > 10.0.0.2: ICMP\n\t0x0000:  0011  ..\n\t0x0002:  2233  be\n",
    ],
)
def test_hexadecimal(text: str) -> None:
    assert parse_hex(text) == b"\0\x11\x22\x33"


@pytest.mark.parametrize("text", ["", "0", "xyz"])
def test_refused_hexadecimal(text: str) -> None:
    with pytest.raises(ConfigError, match="--hex"):
        parse_hex(text)


FRAMES = [VALID["udp4"], VALID["arp"], VALID["tcp6"]]


@pytest.mark.parametrize("kind", ["pcap", "pcap big", "pcap nano", "pcapng"])
def test_packets_of_files(kind: str, tmp_path: Path) -> None:
    path = str(tmp_path / "dump")
    packets = [Ether(frame) for frame in FRAMES]
    if kind == "pcapng":
        with PcapNgWriter(path) as writer:
            writer.write(packets)
    else:
        order = ">" if "big" in kind else "<"
        wrpcap(path, packets, linktype=1, endianness=order, nano="nano" in kind)
    data = Path(path).read_bytes()
    assert [inner_frame(read_packet(data, number)) for number in (1, 2, 3)] == FRAMES
    for number in (0, 4):
        with pytest.raises(ConfigError, match="the capture file has 3"):
            read_packet(data, number)
    for end in range(len(data)):  # Cut anywhere, it is refused in words.
        with pytest.raises(ConfigError):
            read_packet(data[:end], 3)


def test_a_shortened_packet_and_another_file_are_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "dump")
    wrpcap(path, [Ether(FRAMES[0])], linktype=1, snaplen=20)
    data = bytearray(Path(path).read_bytes())
    data[36:40] = (2000).to_bytes(4, "little")
    with pytest.raises(ConfigError, match="capture it whole"):
        read_packet(bytes(data), 1)
    with pytest.raises(ConfigError, match="neither pcap nor pcapng"):
        read_packet(b"hello", 1)


@pytest.mark.parametrize("ip", ["192.0.2.2", "2001:db8::2"])
@pytest.mark.parametrize("link_type", [1, 101, 113, 276])
def test_outer_datagrams(ip: str, link_type: int) -> None:
    payload = vxlan(FRAMES[0])
    header = (
        IPv6(src=ip, dst="2001:db8::1", tc=2) if ":" in ip else IP(src=ip, dst="1.1.1.1", tos=2)
    )
    packet = Ether() / header / UDP(sport=50000, dport=4789) / payload
    octets = bytes(packet)
    assert is_vxlan(octets)
    before = {1: octets[:14], 101: b"", 113: bytes(16), 276: bytes(20)}[link_type]
    file = io.BytesIO()
    file.write(b"\xd4\xc3\xb2\xa1\2\0\4\0" + bytes(12) + link_type.to_bytes(4, "little"))
    body = before + octets[14:]
    file.write(bytes(8) + len(body).to_bytes(4, "little") * 2 + body)
    found = outer_datagram(read_packet(file.getvalue(), 1))
    assert found == (payload, ip, 2)
    if link_type != 1:
        with pytest.raises(ConfigError, match="no Ethernet header"):
            inner_frame(read_packet(file.getvalue(), 1))


def test_what_is_no_datagram_is_refused() -> None:
    for frame in (VALID["arp"], VALID["tcp4"], b"short"):
        assert not is_vxlan(frame)
        data = b"\xd4\xc3\xb2\xa1\2\0\4\0" + bytes(12) + b"\1\0\0\0" + bytes(8)
        data += len(frame).to_bytes(4, "little") * 2 + frame
        with pytest.raises(ConfigError, match="no UDP datagram"):
            outer_datagram(read_packet(data, 1))


def test_an_overlay_behaves_as_a_copy() -> None:
    original = {"a": [1], "b": [2], "c": [3]}
    overlay: Overlay[str, list[int]] = Overlay(original, list.copy)
    overlay["a"].append(9)
    del overlay["b"]
    overlay["d"] = [4]
    overlay["b"] = [5]
    del overlay["c"]
    assert dict(overlay) == {"a": [1, 9], "b": [5], "d": [4]}
    assert list(overlay) == ["a", "d", "b"]
    assert (len(overlay), "c" in overlay, overlay.get("c"), overlay.pop("x", None)) == (
        *(3, False, None),
        None,
    )
    for key in ("c", "x"):
        with pytest.raises(KeyError):
            del overlay[key]
        with pytest.raises(KeyError):
            overlay[key]
    assert original == {"a": [1], "b": [2], "c": [3]}
