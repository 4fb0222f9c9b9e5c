"""An FDB of a million entries, compared with one of a thousand, and in a forwarding VTEP."""

import asyncio
import gc
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from subprocess import PIPE

import uvloop

from bench.micro.frames import OWN_MAC, PEER_MAC, REMOTE, VNI, mac, table
from bench.scale.heart import Stall, heart
from vtep import Config, Vtep
from vtep.control.serve import serve
from vtep.daemon.collector import Collector
from vtep.forwarding.demux import Demux
from vtep.forwarding.fdb import Entry, EntryEvent, Fdb, Remote
from vtep.forwarding.segment import Segment
from vtep.testing.lab import Lab
from vtep.wire import vxlan

_FEW = 1000
_OPERATIONS = 20_000
_REPEATS = 5
_AT_ONCE = 100
"""Entries learned before control returns to the event loop: the size of a burst."""

_AGEING = 300.0
_SECONDS_TO_LEARN = 8e-6

_AGEINGS = 3
"""Rounds of ageing all entries; the best counts, since stalls of the hypervisor look alike."""

_COMMANDS = (("fdb", "show"), ("fdb", "flush", "dynamic"))


def measure(entries: int) -> dict[str, float]:
    """Return the costs of a table with `entries` entries, by the name of the figure."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        figures = _ratios(entries)
    finally:
        gc.enable()
        gc.unfreeze()
    return figures | _stalls(entries)


# --- a table by itself ------------------------------------------------------------------------


def _ratios(entries: int) -> dict[str, float]:
    before = _resident()
    large, learned = _filled(entries)
    figures = {"fdb_octets": (_resident() - before) / entries, "fdb_new": learned}
    # Interleaved, so that other load on this machine affects both.
    small, learned = _filled(_FEW)
    figures["fdb_new_ratio"] = figures["fdb_new"] / learned
    someone = random.Random(1)
    few = [mac(number) for number in range(_FEW)]
    hot = [mac(number) for number in someone.sample(range(entries), min(_FEW, entries))]
    any_of = [mac(someone.randrange(entries)) for _ in range(_OPERATIONS)]
    for name, work in _WORKS.items():
        of_few, of_hot, of_any = [
            min(times)
            for times in zip(
                *(
                    [work(small, few), work(large, hot), work(large, any_of)]
                    for _ in range(_REPEATS)
                ),
                strict=True,
            )
        ]
        figures[name] = of_hot
        figures[f"{name}_ratio"] = of_hot / of_few
        figures[f"{name}_random_ratio"] = of_any / of_few
    return figures


def _filled(entries: int) -> tuple[Fdb, float]:
    """Return a table with `entries` entries, and the time for each in microseconds."""
    began = time.thread_time()
    fdb = table(entries)
    return fdb, (time.thread_time() - began) / entries * 1e6


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def _timed(items: Sequence[object], function: Callable[..., object]) -> float:
    """Return the CPU time of each of `_OPERATIONS` operations on the items in turn, in us."""
    rounds = _OPERATIONS // len(items)
    began = time.thread_time()
    for _ in range(rounds):
        for item in items:
            function(item)
    return (time.thread_time() - began) / (rounds * len(items)) * 1e6


def _lookup(fdb: Fdb, macs: Sequence[bytes]) -> float:
    return _timed(macs, fdb.lookup)


def _learn(fdb: Fdb, macs: Sequence[bytes]) -> float:
    def learn(mac: bytes) -> None:
        fdb.learn(mac, REMOTE, 1.0)

    return _timed(macs, learn)


def _segment(fdb: Fdb) -> Segment:
    return Segment(VNI, [REMOTE], fdb, own_mac=OWN_MAC, learning=True)


def _leave(fdb: Fdb, macs: Sequence[bytes]) -> float:
    """Look up the remote for a frame to each MAC."""
    frames = [each + PEER_MAC + bytes(46) for each in macs]
    return _timed(frames, _segment(fdb).route)


def _arrive(fdb: Fdb, macs: Sequence[bytes]) -> float:
    """Admit a datagram from each MAC, and learn from it."""
    demux = Demux([_segment(fdb)])
    datagrams = [vxlan.pack(VNI) + PEER_MAC + each + bytes(46) for each in macs]

    def receive(datagram: bytes) -> None:
        demux.admit(datagram, REMOTE.host, 1.0)

    return _timed(datagrams, receive)


_WORKS: dict[str, Callable[[Fdb, Sequence[bytes]], float]] = {
    "fdb_lookup": _lookup,
    "fdb_learn": _learn,
    "fdb_leave": _leave,
    "fdb_arrive": _arrive,
}


# --- in a VTEP --------------------------------------------------------------------------------


def _stalls(entries: int) -> dict[str, float]:
    with Lab() as lab:
        host, other = lab.host("a"), lab.host("b")
        lab.wire(host, other)
        host.run("ip", "addr", "add", "192.0.2.1/24", "dev", "eth0")
        with host.inside():
            return uvloop.run(_forwarding(entries, Path(f"/tmp/pyvtep-scale-{host.pid}.sock")))


async def _forwarding(entries: int, socket: Path) -> dict[str, float]:
    """Return how long the event loop stalls during each operation on all entries."""
    figures = {}
    config = Config(vni=1, remote="192.0.2.2", ageing=_AGEING, max_addresses=0)

    # Started in advance, since a process of this size takes long to fork.
    show, flush = [await _Command.start(socket, *words) for words in _COMMANDS]
    async with Vtep(config) as vtep, serve(vtep, str(socket), _never, _at_once):
        collector = asyncio.create_task(Collector(vtep).run())
        fdb, remote = vtep.fdb, vtep.port.segment.remotes[0]

        async def fill(age: float) -> None:
            for _ in _learning(fdb, remote, entries, time.monotonic() - age):
                await asyncio.sleep(0)

        async with heart() as learning:
            await fill(0)
        async with heart() as showing:
            figures["fdb_show_seconds"] = await show.run()
        async with heart() as flushing:
            figures["fdb_flush_seconds"] = await flush.run()
        if len(fdb):
            raise RuntimeError(f"{len(fdb)} entries were left")
        times = [await _age(fdb, entries, fill) for _ in range(_AGEINGS)]
        figures["fdb_ageing_seconds"] = min(seconds for seconds, _ in times)
        ageing = min((stall for _, stall in times), key=lambda stall: stall.cpu)
        async with heart() as idle:
            await asyncio.sleep(figures["fdb_show_seconds"])  # The slower the machine, the longer.
        collector.cancel()
    stalls = {
        "learn": learning,
        "show": showing,
        "flush": flushing,
        "ageing": ageing,
        "idle": idle,
    }
    for name, stall in stalls.items():
        figures[f"fdb_{name}_stall"] = stall.cpu
        figures[f"fdb_{name}_stall_usual"] = stall.usual
        figures[f"fdb_{name}_stall_wall"] = stall.wall
    return figures


async def _age(
    fdb: Fdb, entries: int, fill: Callable[[float], Awaitable[None]]
) -> tuple[float, Stall]:
    """Expire all entries at once. Returns: the duration in seconds, and the stalls."""
    due = time.monotonic() + 1.5 + entries * _SECONDS_TO_LEARN
    await fill(time.monotonic() + _AGEING - due)
    await asyncio.sleep(max(0.0, due - 0.7 - time.monotonic()))
    if len(fdb) != entries:
        raise RuntimeError("this machine is too slow: some have aged before all were there")
    expired = asyncio.Event()
    times: list[float] = []

    def changed(event: EntryEvent, _entry: Entry) -> None:
        if event is EntryEvent.EXPIRED and not times:
            times.append(time.monotonic())
        if not len(fdb):
            expired.set()

    unwatch = fdb.watch(changed)
    async with heart() as ageing, asyncio.timeout(300):
        await expired.wait()
    unwatch()
    return time.monotonic() - times[0], ageing


class _Command:
    """A command that is started in advance and runs on demand."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, socket: Path, *words: str) -> "_Command":
        argv = (sys.executable, "-m", "vtep", *words, "--json", "--socket", str(socket))
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", 'read go; exec "$@" >/dev/null', "sh", *argv), stdin=PIPE
        )
        return cls(process)

    async def run(self) -> float:
        """Run the command. Returns: its duration in seconds."""
        began = time.monotonic()
        await self._process.communicate(b"go\n")
        if self._process.returncode:
            raise RuntimeError("a command has failed")
        return time.monotonic() - began


def _learning(fdb: Fdb, remote: Remote, entries: int, heard: float) -> Iterator[None]:
    for number in range(entries):
        fdb.learn(mac(number), remote, heard)
        if number % _AT_ONCE == 0:
            yield


async def _never() -> str:
    raise RuntimeError("not called by this benchmark")


async def _at_once() -> None:
    pass
