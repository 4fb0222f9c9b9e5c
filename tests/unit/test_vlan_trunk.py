"""One TAP for several VLANs, each with a VNI: whole VTEPs in memory. No root needed."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest
from attrs import evolve

from tests.unit.nodes import IP_A, IP_B, IP_C, Node, frame, segment, until
from vtep import Config, VtepError
from vtep.cli.fdb import print_entries
from vtep.config import vlans
from vtep.control import views
from vtep.counters import Drop
from vtep.daemon import host_watch, housekeeping
from vtep.fastpath.state import FastPathStatus
from vtep.io import vlan_trunk
from vtep.testing import MemoryTap, MemoryUnderlay
from vtep.upgrade import format as fmt
from vtep.upgrade import snapshot
from vtep.upgrade.format import Message
from vtep.wire import ethernet, virtio

if TYPE_CHECKING:
    from vtep.control.schema import FdbEntry

ALL = b"\xff" * 6
A, B = bytes((2, 0, 0, 0, 1, 0)), bytes((2, 0, 0, 0, 1, 1))
TAP = "vx0"


@pytest.fixture
def underlay() -> Iterator[MemoryUnderlay]:
    with closing(MemoryUnderlay(seed=1)) as network:
        yield network


@pytest.fixture(autouse=True)
def _no_debounce(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_watch, "_DEBOUNCE_S", 0)


def run(main: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(main())


def tagged(untagged: bytes, vlan: int, *, priority: int = 0) -> bytes:
    return untagged[:12] + ethernet.pack_tag(vlan, priority=priority) + untagged[12:]


def trunk(
    remote: str | tuple[str, ...] = IP_B, mapping: str = "10-12:1010-1012", **options: object
) -> list[Config]:
    return vlans.expand({"remote": remote, "tap": TAP, "vlan": (mapping,), **options})


def test_each_vlan_is_a_vni_with_its_own_fdb_and_counters(underlay: MemoryUnderlay) -> None:
    a = Node(underlay, *trunk(IP_B), ip=IP_A)
    b = Node(underlay, *(segment(vni, IP_A) for vni in (1010, 1011, 1012)), ip=IP_B)

    async def main() -> None:
        async with a.vtep, b.vtep:
            # In turn, so that each read finds a frame of another VLAN than the last one.
            sent = {
                vlan: [frame(A, ALL, bytes((vlan, number))) for number in range(256)]
                for vlan in (10, 11, 12)
            }
            for row in zip(*sent.values(), strict=True):
                for vlan, each in zip(sent, row, strict=True):
                    a.send(tagged(each, vlan, priority=each[16] & 15), TAP)
                await asyncio.sleep(0)
            for vlan, frames in sent.items():
                await b.until_received(*frames, tap=f"vx{1000 + vlan}")
                port = a.vtep.ports[1000 + vlan]
                assert port.counters()["tx_frames"] == len(frames)
            # The same MAC in each VLAN: the FDBs are separate.
            b.send(frame(B, A, b"reply"), "vx1011")
            await a.until_received(tagged(frame(B, A, b"reply"), 11), tap=TAP)
            assert [len(port.fdb) for port in a.vtep.ports.values()] == [0, 1, 0]
            # A frame with a second tag keeps that one.
            double = tagged(tagged(frame(A, B), 7), 11)
            a.send(double, TAP)
            await b.until_received(tagged(frame(A, B), 7), tap="vx1011")
            b.send(tagged(frame(B, A), 7), "vx1011")
            await a.until_received(tagged(tagged(frame(B, A), 7), 11), tap=TAP)
        assert TAP not in a.network.devices

    run(main)


def test_frames_of_no_vlan_are_dropped_and_counted(underlay: MemoryUnderlay) -> None:
    a = Node(underlay, *trunk(IP_B), ip=IP_A)
    b = Node(underlay, segment(1010, IP_A), ip=IP_B)
    plain = frame(A, ALL)
    cases = {
        "untagged": [plain, tagged(plain, 0, priority=5), plain[:12] + b"\x88\xa8\0\x0a" + plain],
        "vlan_unknown": [tagged(plain, 13), tagged(tagged(plain, 10), 4094)],
        "runt": [plain[:13]],
    }

    async def main() -> None:
        async with a.vtep, b.vtep:
            for frames in cases.values():
                for each in frames:
                    a.send(each, TAP)
            a.send(plain[:15], TAP)  # No tag, and no room for one: the last one stays in memory.
            a.send(tagged(plain, 10), TAP)
            await b.until_received(plain, tap="vx1010")
            counters = a.vtep.counters()
            assert [counters[f"drop_tx_{name}"] for name in cases] == [4, 2, 1]
            (shared,) = (each for each in a.vtep.shared_counters() if each.last_detail)
            texts = {str(reason): shared.describe_last(reason) for reason in shared.last_detail}
            assert texts == {"tx_untagged": "EtherType 0x88a8", "tx_vlan_unknown": "VLAN 4094"}

    run(main)


def test_frames_of_no_vlan_are_logged_and_outlive_an_upgrade(
    underlay: MemoryUnderlay, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(housekeeping, "_TICK_S", 0)
    a, new = Node(underlay, *trunk(IP_B), ip=IP_A), Node(underlay, *trunk(IP_B), ip=IP_C)
    names = ("drop_tx_untagged", "drop_tx_vlan_unknown")

    async def main() -> None:
        async with a.vtep:
            a.send(frame(A, ALL), TAP)
            for _ in range(2):
                a.send(tagged(frame(A, ALL), 99), TAP)
            await until(lambda: "tx_untagged" in caplog.text and "tx_vlan_unknown" in caplog.text)
            assert "(dev vx0; last: EtherType 0x88b5)" in caplog.text
            assert "(dev vx0; last: VLAN 99)" in caplog.text
        # The line at the end of the process has them, too, when no TAP is open any more.
        assert [a.vtep.counters()[name] for name in names] == [1, 2]
        caplog.clear()
        async with new.vtep:
            sent = [
                (name, snapshot.counter_fields(each, 1.0))
                for name, each in snapshot.all_counters(a.vtep)
            ]
            for (name, fields), (own, counters) in zip(
                sent, snapshot.all_counters(new.vtep), strict=False
            ):
                if name == own:
                    snapshot.add_counters(counters, Message(fmt.COUNTERS, fields), 1.0)
            assert [new.vtep.counters()[name] for name in names] == [1, 2]
        assert "tx_vlan_unknown" not in caplog.text  # The former process has logged them.

    run(main)


def test_entries_of_several_vnis_are_shown_with_their_vni(
    underlay: MemoryUnderlay, capsys: pytest.CaptureFixture[str]
) -> None:
    a = Node(underlay, *trunk((IP_B, IP_C), "10-11:1010-1011"), ip=IP_A)

    async def main() -> None:
        async with a.vtep:
            (state,) = {port.fast_path for port in a.vtep.ports.values()}
            assert state.status is FastPathStatus.OFF
            assert "--vlan" in str(state)
            of_vni: dict[int, list[FdbEntry]] = {}
            for vni, port in a.vtep.ports.items():
                default = port.fdb.default
                assert default is not None
                of_vni[vni] = [views.entry(port, default, default.destinations, 0.0)]
        print_entries([*of_vni[1010], *of_vni[1011]], with_vni=True)
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert rows[0] == ["MAC", "DST", "VNI", "DEV", "STATE", "AGE", "TX", "RX"]
        assert [row[2:4] for row in rows[1:] if len(row) > 1] == [["1010", TAP], ["1011", TAP]]
        assert [row for row in rows[1:] if len(row) == 1] == [[IP_C]] * 2
        print_entries(of_vni[1010], with_vni=False)
        assert capsys.readouterr().out.split()[:4] == ["MAC", "DST", "DEV", "STATE"]

    run(main)


def test_offsets_of_virtio_headers_follow_the_tag() -> None:
    superframe = virtio.pack_gso(virtio.GSO_TCPV4, 54, 1000, 34, 16)
    headers = [virtio.PLAIN, virtio.pack_needs_csum(34, 6), superframe, virtio.PLAIN]
    shifted = [
        *(virtio.PLAIN, virtio.pack_needs_csum(38, 6)),
        *(virtio.pack_gso(virtio.GSO_TCPV4, 58, 1000, 38, 16), virtio.PLAIN),
    ]
    body = bytes(range(64)) * 2

    async def main() -> None:
        device = MemoryTap(TAP)
        taps = _Readers(device, 10, 11)
        # Read in place by the VLAN of the frame, after the first one, which another has queued.
        taps.start(11, 10)
        for header in shifted:
            device.send(tagged(body, 10), header)
        await until(lambda: len(taps.got) == len(headers))
        assert taps.got == [(10, header, body) for header in headers]
        for header in headers:
            assert taps[10].write((header, memoryview(body))) == virtio.HEADER_LEN + len(body)
        assert list(device.received()) == [(header, tagged(body, 10)) for header in shifted]
        # A wrong header, which points into the tag, has no negative offset.
        assert virtio.shift(virtio.pack_needs_csum(2, 0), -4) == virtio.pack_needs_csum(0, 0)
        taps.close()

    run(main)


def test_a_vlan_that_waits_for_room_does_not_hold_up_others() -> None:
    async def main() -> None:
        device = MemoryTap(TAP)
        taps = _Readers(device, 10, 11)
        slow, fast, both = taps[10], taps[11], taps.trunk
        taps.start(10, 11)
        slow.stop_reading()
        large = frame(A, ALL, bytes(8000))
        while not slow.counters.drops[Drop.TAP_QUEUE_FULL]:
            before = len(taps.got)
            for vlan in (10, 11):
                device.send(tagged(large, vlan))
            await until(lambda before=before: len(taps.got) > before)  # type: ignore[misc]
        # Half of the memory, and the other VLAN has lost nothing.
        assert 1 << 20 < slow.queued < 3 << 20
        waiting = len(slow.queue)
        assert taps.got == [(11, virtio.PLAIN, large)] * (waiting + 1)
        # While no VLAN is read, frames stay in the TAP.
        fast.stop_reading()
        device.send(tagged(large, 10))
        device.send(tagged(large, 11))
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(slow.queue) == waiting
        taps.got.clear()
        taps.start(10)
        await until(lambda: len(taps.got) == waiting + 1)
        assert [len(slow.queue), len(fast.queue)] == [0, 1]
        # Paused, it leaves frames in the TAP, but what was read is delivered.
        both.pause()
        device.send(tagged(large, 11))
        taps.got.clear()
        taps.start(11)
        await until(lambda: len(taps.got) == 1)
        assert both.queued == 0
        both.resume()
        await until(lambda: len(taps.got) == 2)
        # A VNI that ends discards its queue.
        slow.stop_reading()
        device.send(tagged(large, 10))
        await until(lambda: slow.queued)
        slow.end_reading()
        assert both.queued == 0
        taps.close()

    run(main)


class _Readers:
    """A trunk whose VLANs are read by this test; `got` has VLAN, virtio header and frame."""

    def __init__(self, device: MemoryTap, *vlan_ids: int) -> None:
        self.trunk = vlan_trunk.VlanTrunk(device)
        self.got: list[tuple[int, bytes, bytes]] = []
        self._taps = {vlan: self.trunk.open(vlan) for vlan in vlan_ids}

    def __getitem__(self, vlan: int) -> vlan_trunk.VlanTap:
        return self._taps[vlan]

    def start(self, *vlan_ids: int) -> None:
        for vlan in vlan_ids:
            self._taps[vlan].start_reading(partial(self._turn, vlan))

    def _turn(self, vlan: int) -> None:
        meta, buffer = bytearray(virtio.HEADER_LEN), memoryview(bytearray(9000))
        with suppress(BlockingIOError):
            while True:
                octets = self._taps[vlan].read((meta, buffer)) - virtio.HEADER_LEN
                self.got.append((vlan, bytes(meta), bytes(buffer[:octets])))

    def close(self) -> None:
        for tap in self._taps.values():
            tap.end_reading()
            tap.close()


def test_vnis_come_and_go_while_others_forward(underlay: MemoryUnderlay) -> None:
    a = Node(underlay, *trunk(IP_B), ip=IP_A)
    vnis = (1010, 1011, 1012, 1013)
    b = Node(underlay, *(segment(vni, IP_A) for vni in vnis), ip=IP_B)

    async def main() -> None:
        async with a.vtep, b.vtep:
            device = a.network.taps[TAP]
            await a.vtep.remove(1010)
            await a.vtep.add(Config(vni=1013, tap=TAP, vlan=13, remote=IP_B))
            await a.vtep.add(Config(vni=2011, tap=TAP, vlan=14, remote=IP_C))
            assert a.network.taps[TAP] is device
            a.send(tagged(frame(A, ALL), 10), TAP)
            for vlan in (11, 12, 13):
                a.send(tagged(frame(A, ALL), vlan), TAP)
                await b.until_received(frame(A, ALL), tap=f"vx{1000 + vlan}")
            assert a.vtep.counters()["drop_tx_vlan_unknown"] == 1
            # Another VLAN for the same VNI, and another VNI for the same VLAN.
            config = a.vtep.ports[1013].config
            await a.vtep.reload([*trunk(IP_B, "15:1013"), *trunk(IP_B, "11:1012")])
            assert config.vlan == 13
            for vlan, vni in ((15, 1013), (11, 1012)):
                a.send(tagged(frame(B, ALL), vlan), TAP)
                await b.until_received(frame(B, ALL), tap=f"vx{vni}")
            with pytest.raises(VtepError, match="both need"):
                await a.vtep.add(Config(vni=1, tap=TAP, remote=IP_B))
            with pytest.raises(VtepError, match="--vlan 11: is given twice"):
                await a.vtep.add(Config(vni=1, tap=TAP, vlan=11, remote=IP_B))
            # An option of the TAP changes for all of its VNIs.
            await a.vtep.change(evolve(a.vtep.ports[1013].config, persist=True))
            assert [port.config.persist for port in a.vtep.ports.values()] == [True, True]
            assert device.persistent
            await a.vtep.add(Config(vni=1014, tap=TAP, vlan=14, remote=IP_B))
            assert a.vtep.ports[1014].config.persist
            a.network.remove_device(TAP)
            with pytest.raises(VtepError, match="vx0 was removed"):
                await a.vtep.wait()

    with pytest.raises(VtepError, match="vx0 was removed"):
        run(main)


def test_the_tap_has_the_smallest_mtu_of_its_vnis(underlay: MemoryUnderlay) -> None:
    configs = [*trunk(IP_B, "10:1010"), *trunk(IP_B, "11:1011", mtu=1400)]
    a = Node(underlay, *configs, ip=IP_A)

    async def main() -> None:
        async with a.vtep:
            device = a.network.devices[TAP]
            await until(lambda: device.mtu == 1400)
            await a.vtep.add(*trunk(IP_B, "12:1012", mtu=1300))
            await until(lambda: device.mtu == 1300)
            await a.vtep.remove(1012)
            await a.vtep.remove(1011)
            await until(lambda: device.mtu == 1450)

    run(main)


def test_taps_are_listed_once_for_a_handover(underlay: MemoryUnderlay) -> None:
    a = Node(underlay, *trunk(IP_B), segment(5), ip=IP_A)

    async def main() -> None:
        async with a.vtep:
            taps = [role for role, _ in a.vtep.descriptors() if role.startswith("tap-")]
            assert taps == ["tap-vx0", "tap-vx5"]
            names = [reader.name for reader in a.vtep.readers() if reader.name.startswith("vx")]
            assert sorted(names) == ["vx0", "vx5"]

    run(main)
