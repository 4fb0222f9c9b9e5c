"""pcapng: what is encoded is decoded again, and Wireshark, scapy and python-pcapng agree."""

import io
import json
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pcapng
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pcapng import blocks
from scapy.layers.l2 import Ether
from scapy.utils import RawPcapNgReader

from vtep.wire.pcapng import (
    BLOCK_MAX,
    COMMENT_MAX,
    RECEIVED,
    SENT,
    Decoder,
    InterfaceBlock,
    PacketBlock,
    PcapngBlock,
    PcapngError,
    SectionBlock,
    StatisticsBlock,
)

TIMES = st.integers(0, (1 << 63) - 1)
COUNTS = st.integers(0, (1 << 64) - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
COMMENTS = st.lists(TEXTS, max_size=3).map(tuple)
SECTIONS = st.builds(SectionBlock, TEXTS, TEXTS)
INTERFACES = st.builds(InterfaceBlock, TEXTS, TEXTS, TEXTS, st.integers(0, 1 << 31))
PACKETS = st.builds(
    PacketBlock,
    *(st.integers(0, 9), TIMES, st.binary(max_size=200), st.integers(0, 1 << 31)),
    *(st.sampled_from([0, RECEIVED, SENT]), COMMENTS, st.booleans(), st.none() | COUNTS, COUNTS),
)
STATISTICS = st.builds(
    StatisticsBlock, st.integers(0, 9), TIMES, TIMES, COUNTS, COUNTS, COUNTS, COMMENTS
)

FRAME = bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", type=0x88B5) / b"hello")
NOW = 1_800_000_000_123_456_789
FILE: tuple[PcapngBlock, ...] = (
    SectionBlock("pyvtep 1", "Linux"),
    InterfaceBlock("vx0 inner", "frames of vni 5", "tcp port 80"),
    InterfaceBlock("vx0 outer", "datagrams of vni 5"),
    PacketBlock(0, NOW, FRAME, len(FRAME), SENT, packet_id=7),
    PacketBlock(
        *(1, NOW + 1, FRAME[:15], len(FRAME), RECEIVED, ("source_unknown: §", "second")),
        is_dropped=True,
        packet_id=(1 << 64) - 1,
        drop_count=3,
    ),
    StatisticsBlock(0, NOW + 9, NOW, 10, 3, 7, ("tap_queue_full 4",)),
)


@given(st.lists(INTERFACES | PACKETS | STATISTICS | SECTIONS, max_size=6), st.data())
def test_round_trip_in_pieces(written: list[PcapngBlock], data: st.DataObject) -> None:
    octets = b"".join(block.encode() for block in (SectionBlock(), *written))
    decoder, read = Decoder(), list[PcapngBlock]()
    while octets:
        size = data.draw(st.integers(1, len(octets)))
        read += decoder.feed(octets[:size])
        octets = octets[size:]
    assert read == [SectionBlock(), *written]
    assert decoder.is_empty


@given(st.data())
def test_any_octets(data: st.DataObject) -> None:
    """Damaged octets are decoded to something or refused, and nothing else is raised."""
    octets = bytearray(b"".join(block.encode() for block in FILE))
    for _ in range(data.draw(st.integers(1, 3))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    with suppress(PcapngError):
        list(Decoder().feed(octets))


@pytest.mark.parametrize(
    "octets",
    [
        InterfaceBlock("first").encode(),
        b"\x0a\x0d\x0d\x0a\x1c\0\0\0\x1a\x2b\x3c\x4d" + bytes(12) + b"\x1c\0\0\0",
        SectionBlock().encode() + b"\6\0\0\0\x0d\0\0\0",
        SectionBlock().encode() + b"\6\0\0\0" + (BLOCK_MAX + 4).to_bytes(4, "little"),
        SectionBlock().encode() + b"\6\0\0\0\x0c\0\0\0\x0c\0\0\0",
        SectionBlock().encode()[:-4] + bytes(4),
    ],
    ids=["no section", "big-endian", "length", "too long", "no packet", "second length"],
)
def test_what_is_not_ours_is_refused(octets: bytes) -> None:
    with pytest.raises(PcapngError):
        list(Decoder().feed(octets))


def test_an_unknown_block_is_skipped() -> None:
    name_resolution = b"\4\0\0\0\x10\0\0\0" + bytes(4) + b"\x10\0\0\0"
    octets = SectionBlock().encode() + name_resolution + InterfaceBlock("vx0").encode()
    assert list(Decoder().feed(octets)) == [SectionBlock(), InterfaceBlock("vx0")]


def test_frames_are_counted_or_yielded() -> None:
    octets = b"".join(block.encode() for block in FILE)
    decoder = Decoder(frames=False)
    blocks_left = list(decoder.feed(octets))
    assert blocks_left == [block for block in FILE if not isinstance(block, PacketBlock)]
    assert decoder.count == 2


def test_a_long_comment_is_cut_between_characters() -> None:
    packet = PacketBlock(0, 0, b"", 0, comments=("§" * COMMENT_MAX,))
    _, read = Decoder().feed(SectionBlock().encode() + packet.encode())
    assert isinstance(read, PacketBlock)
    assert read.comments == ("§" * (COMMENT_MAX // 2),)


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "capture.pcapng"
    path.write_bytes(b"".join(block.encode() for block in FILE))
    return path


@needs("tshark")
def test_tshark_reads_every_field(file: Path) -> None:
    fields = (
        *("frame.time_epoch", "frame.interface_name", "frame.interface_description"),
        *("frame.len", "frame.cap_len", "frame.packet_flags_direction", "frame.comment"),
        *("frame.packet_id", "frame.verdict.ebpf_tc", "frame.drop_count"),
    )
    found = subprocess.run(
        ["tshark", "-r", file, "-T", "json", *(each for name in fields for each in ("-e", name))],
        capture_output=True,
        check=True,
        text=True,
    )
    rows = [each["_source"]["layers"] for each in json.loads(found.stdout)]
    first, second = ({name: row.get(name) for name in fields} for row in rows)
    assert first["frame.interface_name"] == ["vx0 inner"]
    assert first["frame.interface_description"] == ["frames of vni 5"]
    assert first["frame.packet_id"] == ["7"]
    assert [int(row["frame.packet_flags_direction"][0], 0) for row in rows] == [SENT, RECEIVED]
    assert second["frame.interface_name"] == ["vx0 outer"]
    assert (second["frame.len"], second["frame.cap_len"]) == ([str(len(FRAME))], ["15"])
    assert second["frame.comment"] == ["source_unknown: §", "second"]
    assert second["frame.packet_id"] == [str((1 << 64) - 1)]
    assert second["frame.verdict.ebpf_tc"] is not None
    assert second["frame.drop_count"] == ["3"]
    assert "123456790" in second["frame.time_epoch"][0]


@needs("tcpdump")
def test_tcpdump_reads_it(file: Path) -> None:
    found = subprocess.run(["tcpdump", "-nqtr", file], capture_output=True, check=True, text=True)
    assert found.stdout.count("length 19") == 2


def test_scapy_reads_it(file: Path) -> None:
    with RawPcapNgReader(str(file)) as reader:
        read: list[Any] = [reader._read_packet() for _ in range(2)]
    (sent, about_sent), (received, about_received) = read
    assert (sent, received) == (FRAME, FRAME[:15])
    assert (about_sent.ifname, about_received.ifname) == (b"vx0 inner", b"vx0 outer")
    assert (about_sent.direction, about_received.direction) == (SENT, RECEIVED)
    assert about_received.wirelen == len(FRAME)


@pytest.mark.filterwarnings("ignore:Field type should not be:DeprecationWarning")
def test_python_pcapng_reads_it(file: Path) -> None:
    read = list(pcapng.FileScanner(io.BytesIO(file.read_bytes())))
    section, inner, _, sent, received, statistics = read
    assert isinstance(section, blocks.SectionHeader)
    assert section.options["shb_userappl"] == "pyvtep 1"
    assert inner.options["if_name"] == "vx0 inner"
    assert inner.options["if_tsresol"] == b"\x09"
    assert sent.packet_data == FRAME
    assert sent.options["epb_packetid"] == 7
    assert sent.options["epb_flags"].inout == "outbound"
    assert received.options["epb_flags"].inout == "inbound"
    assert received.options["epb_dropcount"] == 3
    assert received.options.get_all("opt_comment") == ["source_unknown: §", "second"]
    assert statistics.options["isb_ifrecv"] == 10
    assert statistics.options["isb_ifdrop"] == 3
    assert statistics.options["isb_usrdeliv"] == 7
