"""Several VNIs in one process: sharing, isolation, adding, changing and removing."""

import asyncio
import socket
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Self

import attrs
import pytest
import uvloop

from tests.netns.hosts import (
    DEADLINE,
    Arrivals,
    Pair,
    address,
    has_device,
    is_reachable,
    link_local_address,
    mac_of,
    mtu_of,
    packet_socket,
    udp_socket,
    wait_until,
)
from vtep import Config, ConfigError, Port, Vtep, VtepError
from vtep.testing.lab import Host

FAR_MAC = "02:00:00:00:00:02"


def run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(main, 60)

    uvloop.run(bounded())


def config(vni: int, **options: Any) -> Config:
    given: dict[str, Any] = {"vni": vni, "remote": "192.0.2.2"} | options
    return Config(**given)


def kernel_segment(host: Host, vni: int, own: str, mac: str | None = None) -> None:
    """Create a segment of the kernel driver on host b, with the device k<vni>."""
    host.run(
        *("ip", "link", "add", f"k{vni}", *(["address", mac] if mac else []), "type", "vxlan"),
        *("id", str(vni), "dev", "eth0", "local", "192.0.2.2", "remote", "192.0.2.1"),
        *("dstport", "4789"),
    )
    address(host, f"k{vni}", own)
    host.run("ip", "link", "set", f"k{vni}", "up")


async def wait_for_reply(host: Host, destination: str) -> None:
    await asyncio.to_thread(wait_until, partial(is_reachable, host, destination), "an echo reply")


def sockets(host: Host, port: int = 4789) -> int:
    """Return the number of UDP sockets of a host with this port."""
    return host.run("ss", "-Huan", f"sport = :{port}").count("\n")


class Stream:
    """Sends numbered datagrams through a VNI, all of which must arrive."""

    def __init__(self, source: Host, sink: Host, to: str) -> None:
        self._sender, self._receiver = udp_socket(source, "0.0.0.0"), udp_socket(sink, to)
        self._receiver.setsockopt(socket.SOL_SOCKET, 33, 4 << 20)  # SO_RCVBUFFORCE
        self._receiver.setblocking(False)
        self._to = self._receiver.getsockname()
        self._sent = 0
        self._received: set[int] = set()
        self._task: asyncio.Task[None] | None = None

    async def _send(self) -> None:
        while True:
            for _ in range(3):
                self._sender.sendto(self._sent.to_bytes(4, "big") + bytes(600), self._to)
                self._sent += 1
            self._receive()
            await asyncio.sleep(0.001)

    def _receive(self) -> None:
        while True:
            try:
                self._received.add(int.from_bytes(self._receiver.recv(2048)[:4], "big"))
            except BlockingIOError:
                return

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._send())
        await self.continues()
        return self

    async def continues(self, datagrams: int = 100) -> None:
        """Wait until `datagrams` more have arrived."""
        wanted = len(self._received) + datagrams
        await asyncio.to_thread(wait_until, lambda: len(self._received) >= wanted, "the stream")

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        sent = set(range(self._sent))
        with suppress(TimeoutError):
            async with asyncio.timeout(DEADLINE):
                while sent - self._received:
                    await asyncio.sleep(0.01)
                    self._receive()
        self._sender.close()
        self._receiver.close()
        assert self._received == sent


@contextmanager
def refused(vtep: Vtep, words: str) -> Iterator[None]:
    """Assert that the block raises VtepError and changes nothing."""

    def state() -> object:
        return [
            (port, port.config, port.segment.remotes, port.tap_index, port.listeners)
            for port in vtep.ports.values()
        ]

    before, index = state(), socket.if_nameindex()
    with pytest.raises(VtepError, match=words):
        yield
    assert state() == before
    assert socket.if_nameindex() == index


# --- sharing and isolation ----------------------------------------------------------------------


def test_same_macs_and_addresses_in_two_vnis(inside_a: Pair) -> None:
    a, b = inside_a

    # Both segments have a host 10.0.0.2 with one MAC: each is reached in its own segment only.
    kernel_segment(b, 5, "10.0.0.2/24", FAR_MAC)

    async def main() -> None:
        async with Vtep(
            config(5, address="10.0.0.1/24", mac="02:00:00:00:00:01"),
            config(6, mac="02:00:00:00:00:01"),
        ) as vtep:
            assert sockets(a) == 2  # The second one is the ingress guard.
            await wait_for_reply(a, "10.0.0.2")
            assert [entry.mac.hex(":") for entry in vtep.ports[5].fdb] == [FAR_MAC]
            assert len(vtep.ports[6].fdb) == 0
            assert vtep.ports[6].counters()["rx_frames"] == 0
            # A frame is sent in its own segment, with its own VNI.
            await asyncio.to_thread(kernel_segment, b, 6, "10.0.0.2/24", FAR_MAC)
            with Arrivals(b, "k5") as five, Arrivals(b, "k6") as six:
                for vni in (5, 6):
                    frame = bytes.fromhex("ffffffffffff 02000000000a 88b5") + bytes((vni,)) * 50
                    with packet_socket(a, f"vx{vni}") as sock:
                        sock.send(frame)
                    there, not_there = (five, six) if vni == 5 else (six, five)
                    await asyncio.to_thread(wait_until, partial(there.count, frame), "the frame")
                    assert there.count(frame) == 1
                    assert not_there.count(frame) == 0
            with Arrivals(a, "vx5") as five, Arrivals(a, "vx6") as six:
                frame = (
                    bytes.fromhex("020000000001") + bytes.fromhex("02000000000288b5") + bytes(50)
                )
                with packet_socket(b, "k6") as sock:
                    sock.send(frame)
                await asyncio.to_thread(wait_until, partial(six.count, frame), "the frame")
                assert (six.count(frame), five.count(frame)) == (1, 0)
            learned = {vni: [e.mac.hex(":") for e in port.fdb] for vni, port in vtep.ports.items()}
            assert learned == {5: [FAR_MAC], 6: [FAR_MAC]}

    run(main())


def test_vnis_share_sockets_where_their_options_agree(inside_a: Pair) -> None:
    a, _ = inside_a

    async def main() -> None:
        async with Vtep(
            config(5),
            config(6, remote=["192.0.2.2", "192.0.2.3"]),
            config(7, remote="2001:db8::2"),
            config(8, dstport=4790),
            config(9, remote=["192.0.2.2", "2001:db8::2"]),
        ) as vtep:
            assert sockets(a) == 4  # Two for each family.
            assert sockets(a, 4790) == 2
            listeners = {vni: set(port.listeners) for vni, port in vtep.ports.items()}
            assert listeners[5] == listeners[6]
            assert listeners[9] == listeners[5] | listeners[7]
            assert listeners[8].isdisjoint(listeners[9])
            assert {vni: mtu_of(a, f"vx{vni}") for vni in (5, 7, 9)} == {5: 1450, 7: 1430, 9: 1430}
            for vni in (5, 7, 6):
                await vtep.remove(vni)
            assert sockets(a) == 4
            await vtep.remove(9)
            assert sockets(a) == 0
        assert sockets(a, 4790) == 0

    run(main())


def test_mixed_families_in_one_vni(inside_a: Pair) -> None:
    a, b = inside_a
    kernel_segment(b, 5, "10.0.0.2/24")

    async def main() -> None:
        async with Vtep(config(5, remote=["2001:db8::2", "192.0.2.2"], address="10.0.0.1/24")):
            await wait_for_reply(a, "10.0.0.2")

    run(main())


def test_link_local_remotes(inside_a: Pair) -> None:
    a, b = inside_a
    link_local = {host: link_local_address(host) for host in (a, b)}
    b.run(
        *("ip", "link", "add", "k5", "type", "vxlan", "id", "5", "dev", "eth0"),
        *("local", link_local[b], "remote", link_local[a], "dstport", "4789"),
    )
    address(b, "k5", "10.0.0.2/24")
    b.run("ip", "link", "set", "k5", "up")

    async def main() -> None:
        for options in (
            {"remote": f"{link_local[b]}%eth0"},
            {"remote": link_local[b], "dev": "eth0", "local": link_local[a]},
        ):
            async with Vtep(config(5, address="10.0.0.1/24", **options)) as vtep:
                assert vtep.port.underlay_devices == ("eth0",)
                await wait_for_reply(a, "10.0.0.2")
                assert [e.destinations[0].host for e in vtep.fdb] == [f"{link_local[b]}%eth0"]

    run(main())


# --- adding, changing, removing -----------------------------------------------------------------


def test_no_loss_in_a_vni_while_others_change(inside_a: Pair) -> None:
    a, b = inside_a
    kernel_segment(b, 5, "10.0.5.2/24")

    async def main() -> None:
        steady = config(5, address="10.0.5.1/24")
        async with Vtep(steady, config(6)) as vtep:
            await wait_for_reply(a, "10.0.5.2")
            port = vtep.ports[5]
            async with Stream(a, b, "10.0.5.2") as out, Stream(b, a, "10.0.5.1") as back:
                for change, *asked in (
                    (vtep.add, config(7, remote=["192.0.2.2", "2001:db8::2"])),
                    (vtep.remove, 6),
                    (vtep.change, config(7, remote="192.0.2.9", mtu=1300, ageing=5)),
                    (vtep.reload, [steady, config(8, dstport=4790), config(9)]),
                    (vtep.reload, [config(9, tap="other"), steady]),
                    (vtep.reload, [steady]),
                ):
                    await change(*asked)
                    await out.continues()
                    await back.continues()
                with pytest.raises(VtepError):
                    await vtep.reload([steady, config(6), config(7, dev="no-such")])
                await out.continues()
                await back.continues()
            assert dict(vtep.ports) == {5: port}
            counters = port.counters()
            assert sum(n for name, n in counters.items() if name.startswith("drop_")) == 0

    run(main())


def test_change_keeps_learned_entries_and_other_options(inside_a: Pair) -> None:
    a, b = inside_a
    kernel_segment(b, 5, "10.0.0.2/24", FAR_MAC)

    async def main() -> None:
        first = config(5, address="10.0.0.1/24")
        async with Vtep(first) as vtep:
            await wait_for_reply(a, "10.0.0.2")
            mac, index = mac_of(a, "vx5"), vtep.port.tap_index
            changes: list[dict[str, Any]] = [
                {"remote": ("192.0.2.2", "192.0.2.9"), "mtu": 1400, "learning": False},
                {"address": ("10.0.0.7/24", "10.0.0.1/24"), "ageing": 7, "max_addresses": 9},
                {"local": "192.0.2.1", "offload": "none"},
                {"dev": "eth0", "offload": "gro"},
            ]
            for change in changes:
                await vtep.change(attrs.evolve(vtep.port.config, **change))
                await wait_for_reply(a, "10.0.0.2")
                assert [entry.mac.hex(":") for entry in vtep.fdb] == [FAR_MAC]
                assert (mac_of(a, "vx5"), vtep.port.tap_index) == (mac, index)
            assert (vtep.mtu, mtu_of(a, "vx5")) == (1400, 1400)
            assert "10.0.0.7/24" in a.run("ip", "addr", "show", "vx5")
            assert (vtep.fdb.ageing, vtep.fdb.max_addresses) == (7, 9)
            assert not vtep.port.segment.learning
            await vtep.change(attrs.evolve(first, mac="02:00:00:00:00:09"))
            assert mac_of(a, "vx5") == "02:00:00:00:00:09"
            assert "10.0.0.7" not in a.run("ip", "addr", "show", "vx5")
            await vtep.change(attrs.evolve(vtep.port.config, remote="192.0.2.9"))
            assert len(vtep.fdb) == 0  # Its only destination was the removed remote.
            await vtep.change(attrs.evolve(vtep.port.config, remote=(), tap="vy5"))
            assert (vtep.tap, has_device(a, "vx5"), has_device(a, "vy5")) == ("vy5", False, True)

    run(main())


def test_changes_are_reported(inside_a: Pair) -> None:
    a, _ = inside_a
    told: list[tuple[str, int, dict[str, object]]] = []

    def note(event: str, port: Port, what: Any) -> None:
        told.append((event, port.config.vni, dict(what)))

    async def main() -> None:
        async with Vtep(config(5)) as vtep:
            unwatch = vtep.watch(note)
            await vtep.add(config(6))
            await vtep.change(config(6, ageing=9, mtu=1400))
            await vtep.remove(6)
            assert told == [
                ("added", 6, {}),
                ("changed", 6, {"ageing": 9.0, "mtu": 1400}),
                ("deleted", 6, {}),
            ]
            told.clear()
            a.run("ip", "link", "set", "vx5", "mtu", "1333")
            await asyncio.to_thread(wait_until, lambda: told, "the event about the MTU")
            assert told == [("changed", 5, {"mtu": 1333})]
            assert vtep.mtu == 1333
            unwatch()
            await vtep.remove(5)
            assert len(told) == 1

    run(main())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tap": "eth0"}, "vni 7: --tap eth0: .* is not a free TAP"),
        ({"remote": "192.0.2.1"}, "vni 7: --remote 192.0.2.1 is an address of this host"),
        ({"mtu": 1451, "df": "set"}, "vni 7: --mtu 1451: does not fit"),
        ({"dstport": 4791}, "vni 7: --dstport 4791: this UDP port is taken"),
        ({"bridge": "eth0"}, "vni 7: --bridge eth0: the kernel refused vx7 as a port"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_failed_reload_changes_nothing(inside_a: Pair, options: dict[str, Any], words: str) -> None:
    a, b = inside_a
    kernel_segment(b, 5, "10.0.0.2/24")

    async def main() -> None:
        good = [config(5, address="10.0.0.1/24"), config(6), config(7)]
        async with Vtep(*good) as vtep:
            with udp_socket(a, "0.0.0.0", 4791), refused(vtep, words):
                # The failing change is the last of several, which must be rolled back.
                await vtep.reload(
                    [
                        attrs.evolve(good[0], mtu=1300, remote="192.0.2.3", address="10.0.0.9/24"),
                        config(8, tap="vx6"),
                        config(9, dstport=4792),
                        config(7, **options),
                    ]
                )
            assert mtu_of(a, "vx5") == 1450
            assert "10.0.0.9" not in a.run("ip", "addr", "show", "vx5")
            await wait_for_reply(a, "10.0.0.2")
            await vtep.reload(good)

    run(main())


@pytest.mark.parametrize("delay", [0, 0.005, 0.02, 0.05])
def test_cancelled_change_is_complete_or_rolled_back(inside_a: Pair, delay: float) -> None:
    a, b = inside_a
    kernel_segment(b, 5, "10.0.0.2/24")

    async def main() -> None:
        before = [config(5, address="10.0.0.1/24"), config(6)]
        after = [attrs.evolve(before[0], mtu=1300), config(7, tap="vx6"), config(8)]
        async with Vtep(*before) as vtep:
            reloading = asyncio.create_task(vtep.reload(after))
            await asyncio.sleep(delay)
            reloading.cancel()
            with suppress(asyncio.CancelledError):
                await reloading
            configs = [port.config for port in vtep.ports.values()]
            assert configs in (before, after)
            assert mtu_of(a, "vx5") == (1450 if configs == before else 1300)
            assert has_device(a, "vx8") == (configs == after)
            await wait_for_reply(a, "10.0.0.2")
            await vtep.reload(after)
            await vtep.reload(before)
            assert [port.config for port in vtep.ports.values()] == before

    run(main())


@pytest.mark.parametrize("delay", [0, 0.005, 0.02])
def test_stop_during_a_change(inside_a: Pair, delay: float) -> None:
    a, _ = inside_a

    async def main() -> None:
        vtep = Vtep(config(5), config(6))
        await vtep.start()
        reloading = asyncio.create_task(vtep.reload([config(5, mtu=1300), config(7), config(8)]))
        await asyncio.sleep(delay)
        await vtep.stop()
        with suppress(VtepError, RuntimeError):
            await reloading
        await asyncio.wait_for(vtep.wait(), DEADLINE)
        assert not any(has_device(a, f"vx{vni}") for vni in range(5, 9))

    run(main())


def test_refused_requests(inside_a: Pair) -> None:
    assert inside_a

    async def main() -> None:
        async with Vtep(config(5)) as vtep:
            with refused(vtep, "vni 5: already exists"):
                await vtep.add(config(5))
            for asked in (vtep.remove(6), vtep.change(config(6))):
                with refused(vtep, "vni 6: there is no such VNI here"):
                    await asked
            with refused(vtep, "--tap vx5: is given twice"):
                await vtep.add(config(6, tap="vx5"))
            with refused(vtep, "vni 5 and vni 6 share it"):
                await vtep.add(config(6, local="192.0.2.1"))
            with refused(vtep, "gro must be on or off for both"):
                await vtep.add(config(6, offload="none"))

    run(main())
    with pytest.raises(ConfigError, match="--vni 5: defined twice"):
        Vtep(config(5), config(5, tap="other"))


def test_tap_moves_from_one_vni_to_another(inside_a: Pair) -> None:
    a, b = inside_a
    kernel_segment(b, 6, "10.0.0.2/24")

    async def main() -> None:
        async with Vtep(config(5, tap="x"), config(7, tap="y")) as vtep:
            await vtep.reload([config(6, tap="x", address="10.0.0.1/24"), config(7, tap="z")])
            await wait_for_reply(a, "10.0.0.2")
            await vtep.reload([config(6, tap="z"), config(7, tap="x")])
            assert {vni: port.tap for vni, port in vtep.ports.items()} == {6: "z", 7: "x"}

    run(main())


def test_removed_tap_ends_its_vni_only(inside_a: Pair, caplog: pytest.LogCaptureFixture) -> None:
    a, b = inside_a
    kernel_segment(b, 5, "10.0.0.2/24")

    async def main() -> None:
        async with Vtep(config(5, address="10.0.0.1/24"), config(6), config(7)) as vtep:
            a.run("ip", "link", "del", "vx6")
            await asyncio.to_thread(wait_until, lambda: 6 not in vtep.ports, "its end")
            assert "vni 6 has ended: the TAP device vx6 was removed" in caplog.text
            assert vtep.counters()["taps_lost"] == 1
            assert set(vtep.ports) == {5, 7}
            await wait_for_reply(a, "10.0.0.2")
            await vtep.add(config(6))
            assert has_device(a, "vx6")
            for vni in (5, 6, 7):
                a.run("ip", "link", "del", f"vx{vni}")
            with pytest.raises(VtepError, match="was removed"):
                await asyncio.wait_for(vtep.wait(), DEADLINE)

    with pytest.raises(VtepError, match="was removed"):
        run(main())


def test_tap_removed_during_backpressure(inside_a: Pair) -> None:
    a, _ = inside_a

    async def main() -> None:
        async with Vtep(config(5), config(6)) as vtep:
            device = vtep.ports[6].device
            asyncio.get_running_loop().remove_reader(device.fd)  # As during backpressure.
            a.run("ip", "link", "del", "vx6")
            await asyncio.to_thread(wait_until, lambda: 6 not in vtep.ports, "its end")

    run(main())


def test_stop_removes_its_own_taps_only(inside_a: Pair) -> None:
    a, b = inside_a
    a.run("ip", "tuntap", "add", "vx5", "mode", "tap")  # A persistent TAP of the administrator.

    async def main() -> None:
        async with Vtep(*(config(vni) for vni in range(1, 31))):
            # Then another device has the name vx6 when all are removed.
            a.run("ip", "link", "set", "vx6", "netns", b.pid)
            a.run("ip", "link", "add", "vx6", "type", "veth", "peer", "name", "vx6peer")
            a.run("ip", "link", "set", "vx7", "name", "other7")
        for vni in {*range(1, 31)} - {5, 6}:
            assert not has_device(a, f"vx{vni}")
        assert not has_device(a, "other7")
        assert has_device(a, "vx5")
        assert has_device(a, "vx6")
        assert not has_device(b, "vx6")

    run(main())


def test_vtep_without_vnis(inside_a: Pair) -> None:
    a, _ = inside_a

    async def main() -> None:
        async with Vtep() as vtep:
            assert not any(vtep.counters().values())
            await vtep.add(config(5))
            assert has_device(a, "vx5")
            await vtep.remove(5)
            assert not has_device(a, "vx5")

    run(main())


# --- bridge and persist -------------------------------------------------------------------------


def master_of(host: Host, device: str) -> str:
    words = host.run("ip", "-o", "link", "show", device).split()
    return words[words.index("master") + 1] if "master" in words else ""


def test_bridge_is_followed(inside_a: Pair) -> None:
    a, _ = inside_a

    async def becomes(master: str) -> None:
        await asyncio.to_thread(wait_until, lambda: master_of(a, "vx5") == master, "the bridge")

    async def main() -> None:
        a.run("ip", "link", "add", "br1", "type", "bridge")
        async with Vtep(config(5, bridge="br1")) as vtep:
            assert master_of(a, "vx5") == "br1"
            a.run("ip", "link", "del", "br1")
            await becomes("")
            a.run("ip", "link", "add", "br1", "type", "bridge")
            await becomes("br1")
            a.run("ip", "link", "add", "br2", "type", "bridge")
            await vtep.change(config(5, bridge="br2"))
            assert master_of(a, "vx5") == "br2"
            await vtep.change(config(5))
            assert master_of(a, "vx5") == ""
            await vtep.change(config(5, bridge="br3"))
            a.run("ip", "link", "add", "br3", "type", "bridge")
            await becomes("br3")

    run(main())


def test_persistent_tap(inside_a: Pair) -> None:
    a, b = inside_a
    kernel_segment(b, 5, "10.0.0.2/24")

    async def main() -> None:
        a.run("ip", "link", "add", "br1", "type", "bridge")
        lasting = config(5, persist=True, bridge="br1", address="10.0.0.1/24")
        async with Vtep(lasting) as vtep:
            index = vtep.port.tap_index
        assert has_device(a, "vx5")
        assert master_of(a, "vx5") == "br1"
        async with Vtep(lasting) as vtep:
            assert vtep.port.tap_index == index
            await vtep.change(attrs.evolve(lasting, persist=False))
        assert not has_device(a, "vx5")
        async with Vtep(config(5)) as vtep:
            await vtep.change(config(5, persist=True))
        assert has_device(a, "vx5")

    run(main())
