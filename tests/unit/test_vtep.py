"""Whole VTEPs on hosts in memory: they forward, change, lose devices, and end. No root needed."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing

import pytest

from tests.unit.nodes import IP_A, IP_B, IP_C, Node, frame, segment, until
from vtep import Config, ConfigError, VtepError
from vtep.daemon import host_watch, housekeeping
from vtep.forwarding.fdb import Remote
from vtep.testing import Faults, MemoryUnderlay
from vtep.wire import vxlan

ALL = b"\xff" * 6
A, B, C = (bytes((2, 0, 0, 0, 1, number)) for number in range(3))
"""MAC addresses of guests."""


@pytest.fixture
def underlay() -> Iterator[MemoryUnderlay]:
    with closing(MemoryUnderlay(seed=1)) as network:
        yield network


@pytest.fixture(autouse=True)
def _no_debounce(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_watch, "_DEBOUNCE_S", 0)


def run(main: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(main())


def test_frames_are_flooded_then_learned_and_drops_are_named(underlay: MemoryUnderlay) -> None:
    a = Node(underlay, segment(remote=IP_B), ip=IP_A)
    b = Node(underlay, segment(remote=IP_A), ip=IP_B)
    stranger = Node(underlay, segment(remote=IP_A), ip=IP_C)

    async def main() -> None:
        async with a.vtep, b.vtep, stranger.vtep:
            a.send(frame(A, ALL))
            await b.until_received(frame(A, ALL))
            assert [(entry.mac, entry.destinations[0].host) for entry in b.vtep.fdb] == [(A, IP_A)]
            b.send(frame(B, A, b"reply"))
            await a.until_received(frame(B, A, b"reply"))
            stranger.send(frame(C, ALL))
            await until(lambda: a.vtep.counters()["drop_source_unknown"])
            assert a.received() == []
            counters = a.vtep.counters()
            assert (counters["tx_frames"], counters["rx_frames"], counters["flooded"]) == (1, 1, 1)
            assert a.vtep.last_sources() == {"source_unknown": IP_C}
        assert a.network.devices.keys() == {"eth0"}
        assert a.changes == [("added", 1)]
        await a.vtep.wait()

    run(main)


def test_only_datagrams_that_the_underlay_loses_are_missing(underlay: MemoryUnderlay) -> None:
    a = Node(underlay, segment(remote=IP_B, offload="none"), ip=IP_A)
    b = Node(underlay, segment(remote=IP_A, offload="none"), ip=IP_B)
    frames = [frame(A, ALL, b"%d" % number) for number in range(300)]

    async def main() -> None:
        async with a.vtep, b.vtep:
            underlay.faults = Faults(loss=0.2, duplication=0.1, reordering=0.1)
            for each in frames:
                a.send(each)
            await until(lambda: a.vtep.counters()["tx_datagrams"] == len(frames))
            expected = len(frames) - underlay.lost + underlay.duplicated
            await until(lambda: b.vtep.counters()["rx_frames"] == expected)
            received = b.received()
            assert {*received} < {*frames}
            assert received != sorted(received, key=frames.index)
            underlay.faults = Faults()
            a.send(frames[0])
            await b.until_received(frames[0])

    run(main)


def test_many_remotes_are_sent_to_at_once(underlay: MemoryUnderlay) -> None:
    remotes = [f"198.51.100.{number}" for number in range(1, 41)]
    a = Node(underlay, Config(vni=1, remote=remotes, tap="vx1"))

    async def main() -> None:
        async with a.vtep:
            a.send(frame(A, ALL))
            await until(lambda: a.vtep.counters()["tx_datagrams"] == len(remotes))
            assert [each.destination[0] for each in underlay.trace] == remotes

    run(main)


def test_vnis_share_a_listener_and_frames_stay_apart(underlay: MemoryUnderlay) -> None:
    a = Node(underlay, segment(1), segment(2), segment(3, dstport=4790), ip=IP_A)
    b = Node(underlay, *(segment(vni, IP_A) for vni in (1, 2)), ip=IP_B)

    async def main() -> None:
        async with a.vtep, b.vtep:
            one, two, three = (a.vtep.ports[vni].listeners for vni in (1, 2, 3))
            assert one == two != three
            b.send(frame(B, ALL), tap="vx2")
            await a.until_received(frame(B, ALL), tap="vx2")
            assert a.received("vx1") == a.received("vx3") == []
            b.host.open_receiver(one[0].endpoint.binding, 5000, gro=False).send_unfragmented(
                vxlan.pack(7) + frame(B, ALL), IP_A, 4789
            )
            await until(lambda: a.vtep.counters()["drop_vni_unknown"])
            # The port of a listener without a VNI is free again.
            await a.vtep.remove(3)
            a.host.open_receiver(three[0].endpoint.binding, 4790, gro=False).close()
            await a.vtep.remove(1)
            b.send(frame(B, ALL), tap="vx2")
            await a.until_received(frame(B, ALL), tap="vx2")

    run(main)


def test_ports_are_added_changed_reloaded_and_removed(underlay: MemoryUnderlay) -> None:
    a = Node(underlay, segment(1))

    async def main() -> None:
        with pytest.raises(RuntimeError, match="start"):
            await a.vtep.remove(1)
        async with a.vtep:
            first = a.vtep.ports[1]
            await a.vtep.add(segment(2))
            await a.vtep.change(segment(2, mtu=1300))
            assert a.network.devices["vx2"].mtu == a.vtep.ports[2].mtu == 1300
            for refused in (a.vtep.add(segment(2)), a.vtep.remove(9), a.vtep.change(segment(9))):
                with pytest.raises(VtepError, match="vni"):
                    await refused
            with pytest.raises(ConfigError, match="given twice"):
                await a.vtep.add(segment(3, tap="vx1"))
            # VNI 2 moves to another TAP, with its static entries.
            a.vtep.ports[2].fdb.add(B, Remote(IP_C, 4789), 0.0)
            await a.vtep.reload([segment(1), segment(2, tap="vx9"), segment(4)])
            assert a.vtep.ports.keys() == {1, 2, 4}
            assert a.vtep.ports[1] is first
            assert [entry.mac for entry in a.vtep.ports[2].fdb] == [B]
            assert a.network.taps.keys() == {"vx1", "vx9", "vx4"}
            await a.vtep.remove(4)
            assert a.network.devices.keys() == {"eth0", "vx1", "vx9"}
        assert a.changes == [
            *(("added", 1), ("added", 2), ("changed", 2)),
            *(("deleted", 2), ("added", 2), ("added", 4), ("deleted", 4)),
        ]

    run(main)


def test_a_refused_change_leaves_all_as_it_was(underlay: MemoryUnderlay) -> None:
    a = Node(underlay, segment(1), segment(2, persist=True))

    async def main() -> None:
        async with a.vtep:
            devices = {name: str(device) for name, device in a.network.devices.items()}
            ports, listeners = dict(a.vtep.ports), a.vtep.ports[1].listeners
            a.network.refusals["vx3"] = "Operation not permitted"
            wanted = [segment(1, mtu=1300, address="10.0.0.1/24"), segment(3, dstport=4790)]
            with pytest.raises(VtepError, match=r"^vni 3: --tap vx3: Operation not permitted"):
                await a.vtep.reload(wanted)
            assert {name: str(device) for name, device in a.network.devices.items()} == devices
            assert (dict(a.vtep.ports), a.vtep.ports[1].listeners) == (ports, listeners)
            assert a.vtep.ports[1].config == segment(1)
            a.host.open_receiver(listeners[0].endpoint.binding, 4790, gro=False).close()
            del a.network.refusals["vx3"]
            await a.vtep.reload(wanted)
            assert a.network.devices["vx1"].mtu == 1300

    run(main)
    assert a.changes == [("added", 1), ("added", 2), ("deleted", 2), ("changed", 1), ("added", 3)]


def test_a_start_that_is_refused_leaves_nothing(underlay: MemoryUnderlay) -> None:
    a = Node(underlay, segment(1), segment(2, remote=IP_A))

    async def main() -> None:
        with pytest.raises(VtepError, match=r"^vni 2: --remote .* is an address of this host"):
            await a.vtep.start()
        assert a.network.devices.keys() == {"eth0"}
        assert a.network.taps == {}

    run(main)


def test_a_stop_during_the_start(underlay: MemoryUnderlay) -> None:
    a = Node(underlay, segment(1))

    async def main() -> None:
        starting = asyncio.create_task(a.vtep.start())
        await asyncio.sleep(0)
        await a.vtep.stop()
        with pytest.raises(VtepError, match="stopped during its start"):
            await starting
        assert a.network.taps == {}

    run(main)


def test_a_lost_tap_ends_its_port_and_the_last_one_ends_all(
    underlay: MemoryUnderlay, caplog: pytest.LogCaptureFixture
) -> None:
    a = Node(underlay, segment(1), segment(2))

    async def main() -> None:
        await a.vtep.start()
        a.network.remove_device("vx2")
        await until(lambda: a.vtep.taps_lost)
        assert a.vtep.ports.keys() == {1}
        assert "vni 2 has ended: the TAP device vx2 was removed" in caplog.text
        a.network.remove_device("vx1")
        with pytest.raises(VtepError, match="the TAP device vx1 was removed"):
            await a.vtep.wait()
        with pytest.raises(VtepError, match="ended"):
            await a.vtep.add(segment(3))
        await a.vtep.stop()

    run(main)
    assert a.changes[-1] == ("deleted", 2)


def test_sockets_are_rebound_to_a_recreated_device(
    underlay: MemoryUnderlay, caplog: pytest.LogCaptureFixture
) -> None:
    a = Node(underlay, segment(remote=IP_B, dev="eth0"), ip=IP_A)
    b = Node(underlay, segment(remote=IP_A), ip=IP_B)

    async def main() -> None:
        async with a.vtep, b.vtep:
            a.network.remove_device("eth0")
            await until(lambda: a.vtep.port.underlay_missing)
            a.network.add_device("eth0")
            await until(lambda: not a.vtep.port.underlay_missing)
            assert "--dev eth0 was re-created; rebinding" in caplog.messages
            b.send(frame(B, ALL))
            await a.until_received(frame(B, ALL))
            a.send(frame(A, B))
            await b.until_received(frame(A, B))

    run(main)


def test_it_waits_for_the_underlay(
    underlay: MemoryUnderlay, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    a = Node(underlay, segment(local=IP_C), ip=IP_A)
    a.network.unreachable.add(IP_B)

    async def main() -> None:
        async with a.vtep:
            missing = (f"no interface has --local {IP_C}", f"no route to --remote {IP_B}")
            assert a.vtep.port.underlay_missing == missing
            a.send(frame(A, ALL))
            await until(lambda: a.vtep.counters()["drop_underlay_unreachable"])
            a.host.addresses.append(IP_C)
            a.network.notify_addresses()
            await until(lambda: len(a.vtep.port.underlay_missing) == 1)
            assert [listener.is_ready for listener in a.vtep.port.listeners] == [True]
            a.network.unreachable.clear()
            a.network.notify_routes()
            await until(lambda: not a.vtep.port.underlay_missing)
            assert "vni 1: the underlay is ready: over eth0" in caplog.messages
            a.send(frame(A, ALL))
            await until(lambda: underlay.trace)
            assert underlay.trace[0].source[0] == IP_C

    run(main)


def test_the_mtu_follows_the_underlay(underlay: MemoryUnderlay) -> None:
    a = Node(underlay, segment(address="10.0.0.1/24"))

    async def main() -> None:
        async with a.vtep:
            assert (a.vtep.mtu, a.network.devices["vx1"].mtu) == (1450, 1450)
            a.network.set_link("eth0", mtu=1400)
            await until(lambda: a.network.devices["vx1"].mtu == 1350)
            await until(lambda: a.vtep.mtu == 1350)
            assert a.changes[-1] == ("changed", 1)
            assert a.vtep.counters()["mtu_changes"] == 1

    run(main)


def test_the_tap_joins_a_bridge_that_appears_later(
    underlay: MemoryUnderlay, caplog: pytest.LogCaptureFixture
) -> None:
    a = Node(underlay, segment(bridge="br0"))

    async def main() -> None:
        async with a.vtep:
            assert "vni 1: waiting for --bridge br0: there is no such device" in caplog.messages
            bridge = a.network.add_device("br0", kind="bridge")
            await until(lambda: a.vtep.port.attachment.bridge == bridge.index)
            assert a.network.devices["vx1"].mtu == 1500

    run(main)


def test_an_fdb_entry_of_another_ip_version_opens_a_listener(underlay: MemoryUnderlay) -> None:
    a = Node(underlay, segment(remote=IP_B), ip=IP_A)
    b = Node(underlay, segment(remote="2001:db8::1"), ip=IP_B)

    async def main() -> None:
        async with a.vtep, b.vtep:
            assert [listener.version for listener in a.vtep.port.listeners] == [4]
            a.vtep.fdb.add(B, Remote("2001:db8::2", 4789), 0.0)
            assert [listener.version for listener in a.vtep.port.listeners] == [4, 6]
            b.send(frame(B, ALL))
            await a.until_received(frame(B, ALL))
            a.send(frame(A, B))
            await b.until_received(frame(A, B))

    run(main)


def test_backpressure_stops_the_tap_and_ends(underlay: MemoryUnderlay) -> None:
    a = Node(underlay, segment(remote=IP_B, offload="none"), ip=IP_A)
    b = Node(underlay, segment(remote=IP_A), ip=IP_B)
    frames = [frame(A, ALL, b"%d" % number) for number in range(100)]

    async def main() -> None:
        async with a.vtep, b.vtep:
            has_room = iter([True, True, False])
            a.host.has_room = lambda: next(has_room, True)
            for each in frames:
                a.send(each)
            await b.until_received(*frames)

    run(main)


def test_kernel_drops_are_counted(underlay: MemoryUnderlay) -> None:
    a = Node(underlay, segment(1))
    a.network.add_device("vx1", kind="tun")  # It persisted, and so did its counter.
    a.network.queue_drops["vx1"] = 3

    async def main() -> None:
        async with a.vtep:
            a.network.queue_drops["vx1"] = 8
            assert a.vtep.counters()["drop_tap_queue_full"] == 5
            a.vtep.reset_counters()
            a.network.queue_drops["vx1"] = 10
            assert a.vtep.counters()["drop_tap_queue_full"] == 7
            assert a.vtep.counters(since_reset=True)["drop_tap_queue_full"] == 2
            assert a.vtep.port.counters()["drop_tap_queue_full"] == 7

    run(main)


def test_lost_notifications_cause_a_full_lookup(underlay: MemoryUnderlay) -> None:
    a = Node(underlay, segment(1))

    async def main() -> None:
        async with a.vtep:
            a.network.devices["eth0"].mtu = 1400  # Without a notification of its own.
            a.network.lose_notifications()
            a.network.add_device("other")
            await until(lambda: a.vtep.mtu == 1350)

    run(main)


def test_datagrams_from_overlay_devices_are_denied(
    underlay: MemoryUnderlay, caplog: pytest.LogCaptureFixture
) -> None:
    a = Node(underlay, segment(1, bridge="br0"), segment(2, bridge="br1", dstport=4790, dev="br1"))
    for name in ("br0", "br1"):
        a.network.add_device(name, kind="bridge")

    async def main() -> None:
        async with a.vtep:
            devices = a.network.devices
            denied = []
            for vni in (1, 2):
                accepted = a.vtep.ports[vni].listeners[0].filter
                assert accepted is not None
                denied.append({name for name, at in devices.items() if accepted.denies(at.index)})
            assert denied[0] == {"vx1", "vx2", "br0", "br1"}
            # VNI 2 reaches its remotes over the very bridge that its TAP is a port of.
            assert denied[1] == {"vx1", "vx2", "br0"}
            (line,) = [message for message in caplog.messages if "leads to remotes" in message]
            assert line.startswith("br1 leads to remotes, and is the bridge of vx2")

    run(main)


def test_housekeeping_ages_entries_logs_drops_and_finds_path_mtus(
    underlay: MemoryUnderlay, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("_TICK_S", "_SLICE_S"):
        monkeypatch.setattr(housekeeping, name, 0)
    a = Node(underlay, segment(remote=IP_B), ip=IP_A)
    stranger = Node(underlay, segment(remote=IP_A), ip=IP_C)

    async def main() -> None:
        async with a.vtep, stranger.vtep:
            a.vtep.fdb.learn(B, Remote(IP_B, 4789), time.monotonic() - 1000)
            a.vtep.fdb.add(C, Remote(IP_B, 4789), 0.0)
            await until(lambda: [entry.mac for entry in a.vtep.fdb] == [C])
            stranger.send(frame(A, ALL))
            # The VNI is in such a line also if there is one only: the log is filtered by it.
            await until(lambda: " --remote (vni " in caplog.text)
            a.send(frame(A, ALL))
            await until(lambda: underlay.trace[-1].source[0] == IP_A)
            underlay.mtu = 1400
            await until(lambda: a.vtep.mtu == 1350)

    run(main)
