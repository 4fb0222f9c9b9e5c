"""`from vtep import Vtep, Config` within another program."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import uvloop

from tests.netns.hosts import (
    Pair,
    Start,
    address,
    has_device,
    kernel_vtep,
    mac_of,
    ping,
    segment,
    udp_socket,
)
from vtep import Config, Vtep, VtepError

LIBRARY_PAGE = Path(__file__).parents[2] / "docs/library.md"


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[..., object]:
    runner: Callable[..., object] = request.param
    return runner


def test_the_example_of_the_library_page(pair: Pair, start: Start) -> None:
    a, b = pair
    example = re.search(r"```python\n(.*?)```", LIBRARY_PAGE.read_text(), re.DOTALL)
    assert example is not None
    assert len(example[1].splitlines()) <= 15
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    child = a.start(sys.executable, "-c", example[1], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert "vx0 is up, MTU 1450" in child.stdout.readline()
        ping(b, "10.0.0.1")
        rest, _ = child.communicate(timeout=20)
    finally:
        child.kill()
    assert child.returncode == 0
    assert mac_of(b) in rest
    assert not has_device(a)


def test_forwarding_in_any_event_loop(inside_a: Pair, run: Callable[..., object]) -> None:
    a, b = inside_a
    kernel_vtep(b, 5, "192.0.2.2", "192.0.2.1", "10.0.0.2/24")

    async def main() -> None:
        config = Config(vni=5, remote=["192.0.2.2"], tap="vx0", address="10.0.0.1/24")
        async with Vtep(config) as vtep:
            await asyncio.to_thread(ping, b, "10.0.0.1")
            assert [entry.destinations[0].host for entry in vtep.fdb] == ["192.0.2.2"]
            assert vtep.counters()["rx_frames"] >= 2
            assert (vtep.tap, vtep.mtu, vtep.port.underlay_devices) == ("vx0", 1450, ("eth0",))
        await vtep.wait()  # Returns at once after the end.
        assert vtep.counters()["rx_frames"] >= 2
        assert not await asyncio.to_thread(has_device, a)

    run(main())


def test_two_vteps_in_one_loop(inside_a: Pair, run: Callable[..., object]) -> None:
    _, b = inside_a
    for vni, port in ((5, 4789), (6, 4790)):
        b.run(
            *("ip", "link", "add", f"k{vni}", "type", "vxlan", "id", str(vni), "dev", "eth0"),
            *("local", "192.0.2.2", "remote", "192.0.2.1", "dstport", str(port)),
        )
        address(b, f"k{vni}", f"10.0.{vni}.2/24")
        b.run("ip", "link", "set", f"k{vni}", "up")

    async def main() -> None:
        first = Config(vni=5, remote="192.0.2.2", address="10.0.5.1/24")
        second = Config(vni=6, remote="192.0.2.2", address="10.0.6.1/24", dstport=4790)
        async with Vtep(first), Vtep(second):
            for vni in (5, 6):
                await asyncio.to_thread(ping, b, f"10.0.{vni}.1")

    run(main())


def test_failed_start_leaves_nothing_and_can_be_repeated(
    inside_a: Pair, run: Callable[..., object]
) -> None:
    a, _ = inside_a
    config = Config(vni=1, remote="192.0.2.2", tap="vx0")

    async def main() -> None:
        with udp_socket(a, "0.0.0.0", 4789), pytest.raises(VtepError, match="taken"):
            await Vtep(config).start()
        assert not has_device(a)
        vtep = Vtep(config)
        with pytest.raises(RuntimeError, match="start"):
            await vtep.wait()
        await vtep.start()
        with pytest.raises(RuntimeError, match="only once"):
            await vtep.start()
        await vtep.stop()
        await vtep.stop()
        with pytest.raises(VtepError, match="the VTEP has ended"):
            await vtep.change(config)
        assert not has_device(a)

    run(main())


def test_lost_tap_is_raised_by_wait_and_by_the_context(
    inside_a: Pair, run: Callable[..., object]
) -> None:
    a, _ = inside_a
    config = Config(vni=1, remote="192.0.2.2", tap="vx0")

    async def waiting() -> None:
        async with Vtep(config) as vtep:
            a.run("ip", "link", "del", "vx0")
            await asyncio.wait_for(vtep.wait(), 10)

    async def not_waiting() -> None:
        async with Vtep(config) as vtep:
            a.run("ip", "link", "del", "vx0")
            with pytest.raises(VtepError):
                await asyncio.wait_for(vtep.wait(), 10)

    for main in (waiting, not_waiting):
        with pytest.raises(VtepError, match="was removed"):
            run(main())


@pytest.mark.parametrize("delay", [0, 0.005, 0.02])
def test_stop_during_the_start(inside_a: Pair, run: Callable[..., object], delay: float) -> None:
    a, _ = inside_a

    async def main() -> None:
        vtep = Vtep(Config(vni=1, remote="192.0.2.2", tap="vx0"))
        starting = asyncio.create_task(vtep.start())
        await asyncio.sleep(delay)
        await vtep.stop()
        with suppress(VtepError, RuntimeError):
            await starting
            await vtep.stop()
        assert not has_device(a)

    run(main())


def test_cancelled_start(inside_a: Pair, run: Callable[..., object]) -> None:
    a, _ = inside_a

    async def main() -> None:
        vtep = Vtep(Config(vni=1, remote="192.0.2.2", tap="vx0"))
        starting = asyncio.create_task(vtep.start())
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await asyncio.wait_for(vtep.wait(), 5)
        assert not has_device(a)

    run(main())
