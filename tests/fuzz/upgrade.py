"""The messages of an upgrade: whatever an old process sends, a new one takes it or refuses.

An input is a series of messages; of each, the first octet says whether it has a header of its own.
What was taken is handed over once more, and must arrive unchanged, also at a newer version.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from math import isclose
from pathlib import Path
from struct import pack
from typing import Any

from tests.fuzz.edges import Reader
from vtep import Config, Port, Vtep, VtepError
from vtep.counters import Counters, Drop
from vtep.forwarding.fdb import Entry, EntryKind, EntryState, parse_remote
from vtep.forwarding.fdb.members import RemoteKey
from vtep.upgrade import format as fmt
from vtep.upgrade import snapshot
from vtep.upgrade.channel import ClosedError
from vtep.upgrade.format import FormatError, Message
from vtep.upgrade.new import NewSide
from vtep.wire.ethernet import MAC_ZERO

LEN_MAX = 2048

_WHOLE, _BODY = 0, 1
"""A message with its header, and the object of a message alone."""

_DESCRIPTORS_MAX = 4
_NOW = 1000.0
_COUNT_MAX = 1 << 63
_TABLES = ("remotes", "entries", "neighbours", "moves", "blocks")

_null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


class _Still(Vtep):
    """A VTEP that opens nothing: its tables can be filled, but it does not forward."""

    async def start(self, *, paused: bool = False) -> None:
        assert paused

    async def reload(self, configs: Iterable[Config]) -> None:
        self.replace_configs(configs)

    def check_running(self) -> None:
        pass

    def resume(self) -> None:
        pass


class _New(NewSide):
    """The new side without an event loop."""

    def _defer_end(self) -> None:
        pass


class _Channel:
    """The channel of a new process, with the messages of the old one given in advance."""

    def __init__(self, messages: Iterable[bytes]) -> None:
        self._waiting = deque(messages)
        self.peer = self

    def check(self) -> None:
        """Accept the peer."""

    async def send(self, kind: str, /, **fields: object) -> None:
        fields.pop("seconds", None)
        fmt.decode(fmt.encode(kind, fields))

    async def receive(self, *kinds: str, seconds: float) -> tuple[Message, list[int]]:
        """Return a message as `Channel.receive` does, with descriptors of /dev/null."""
        assert seconds
        if not self._waiting:
            raise ClosedError("the other process has ended")
        message = fmt.decode(self._waiting.popleft())
        _check_message(message)
        if message.kind not in kinds or message.descriptors > _DESCRIPTORS_MAX:
            raise FormatError(f"received {message.kind}")
        return message, [os.dup(_null) for _ in range(message.descriptors)]


def _check_message(message: Message) -> None:
    octets = fmt.encode(message.kind, message.fields, descriptors=message.descriptors)
    assert fmt.decode(octets) == message
    with suppress(FormatError):
        fmt.decode(octets[:4] + pack("!H", fmt.MAJOR + 1) + octets[6:])
        raise AssertionError("a message of another major version was accepted")


def _messages(data: bytes) -> Iterator[bytes]:
    reader = Reader(data)
    while not reader.is_empty:
        how, octets = reader.integer(), reader.some(LEN_MAX)
        if how == _WHOLE:
            yield octets
        else:
            yield _header(len(octets), how - _BODY) + octets


def _header(length: int, descriptors: int) -> bytes:
    return pack("!4sHHI", b"pvup", fmt.MAJOR, descriptors, length)


def run(data: bytes) -> None:
    vtep = _Still()
    new = _New(vtep, (), Path("/dev/shm/no-such-socket"))
    before = _descriptors() if b"descriptors" in data else 0
    try:
        _complete(_take_over(new, _Channel(_messages(data))))
    except VtepError as error:
        assert str(error)
    finally:
        vtep.inherited.close()
        if new.control is not None:
            new.control.socket.close()
    if before:
        assert _descriptors() == before, "a descriptor was left open"
    for port in vtep.ports.values():
        _check_port(port)


async def _take_over(new: NewSide, channel: Any) -> None:
    await new._take_over(channel)
    await new._finish(channel)
    await new._apply_changes()


def _complete(coroutine: Any) -> None:
    """Run a coroutine that waits for nothing, which is faster than in an event loop."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")


def _descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


# --- what was taken arrives unchanged when it is handed over once more --------------------------


def _again(kind: str, fields: Any) -> Message:
    """Return what arrives of a message of a newer version, which has more fields and columns."""
    for name in _TABLES:
        fields = {**fields, name: [[*row, {"new": 1}] for row in fields.get(name, ())]}
    return fmt.decode(fmt.encode(kind, {**fields, "new-option": {"of": ["a", "later", 1]}}))


def _check_port(port: Port) -> None:
    options = _again(fmt.SEGMENT, {"options": snapshot.config_fields(port.config)})
    config = snapshot.parse_config(options.mapping("options"))
    assert config == port.config
    vtep = _Still(config)
    other = vtep.ports[config.vni]
    for fields in snapshot.FdbLog(port.fdb).pages(config.vni, lambda: _NOW):
        snapshot.apply_fdb(other, _again(fmt.FDB, fields), _NOW)
    _check_entries(port, other)
    for fields in snapshot.guard_pages(port, _NOW):
        snapshot.apply_fdb(other, _again(fmt.FDB, fields), _NOW)
    held = [entry.mac for entry in port.fdb.held()]
    assert [entry.mac for entry in other.fdb.held()] == held
    assert other.segment.loops.blocked.keys() == port.segment.loops.blocked.keys()
    counters = port.segment.counters
    copied = Counters()
    message = _again(fmt.COUNTERS, snapshot.counter_fields(counters, _NOW))
    snapshot.add_counters(copied, message, _NOW)
    assert copied.as_dict() == counters.as_dict()
    assert copied.since_reset() == counters.since_reset()
    assert not any(copied.losses().values()), "the log would repeat them"
    copied.note_drops(_NOW + 9)  # As the next tick does, in which nothing was dropped.
    assert copied.last_drop.keys() == counters.last_drop.keys()
    for reason, at in counters.last_drop.items():
        assert isclose(copied.last_drop[reason], at, abs_tol=1e-6)
    assert all(0 <= count < _COUNT_MAX for count in counters.as_dict().values())
    for fields in snapshot.neighbour_pages(port, _NOW):
        snapshot.apply_neighbours(other, _again(fmt.NEIGHBOURS, fields), _NOW)
    assert _neighbours(other) == _neighbours(port)


def _check_entries(port: Port, other: Port) -> None:
    entries = {entry.mac: entry for entry in other.fdb.entries()}
    for entry in port.fdb.entries():
        assert 0 <= entry.tx_frames < _COUNT_MAX
        assert 0 <= entry.rx_frames < _COUNT_MAX
        copy = entries.pop(entry.mac)
        assert _keys(other, copy) == _keys(port, entry)
        assert copy.kind == entry.kind
        assert (copy.tx_frames, copy.rx_frames) == (entry.tx_frames, entry.rx_frames)
        if entry.kind.ages:
            assert isclose(copy.updated, entry.updated, abs_tol=1e-6)
    # The remotes of the configuration, which the first one has lost.
    assert entries.keys() <= {MAC_ZERO}


def _keys(port: Port, entry: Entry) -> list[RemoteKey]:
    return [port.fdb.members.key(remote) for remote in entry.destinations]


def _neighbours(port: Port) -> list[list[Any]]:
    table = port.segment.neighbours
    rows = [] if table is None else table.export(_NOW)
    return [[*row[:3], *row[4:]] for row in rows]


# --- seeds --------------------------------------------------------------------------------------


def _encoded(*messages: bytes, descriptors: int = 0) -> bytes:
    parts = [
        bytes((_BODY + descriptors,)) + pack("!H", len(body)) + body
        for body in (message[fmt.HEADER_LEN :] for message in messages)
    ]
    return b"".join(parts)


def _valid() -> list[bytes]:
    """Return the messages of an upgrade of two segments."""
    mac = "02:00:00:00:00:{:02x}".format
    vtep = _Still(
        Config(vni=1, remote="192.0.2.2", tap="vx1", proxy=True),
        Config(vni=2, remote="fd00::2", tap="vx2", ttl=9),
    )
    one, two = vtep.ports.values()
    default = parse_remote("192.0.2.7")
    one.fdb.set_default([default], 0.0, EntryKind(EntryState.STATIC, extern_learn=True))
    for number, port in ((1, one), (2, two)):
        port.fdb.append(bytes.fromhex(mac(number).replace(":", "")), parse_remote("192.0.2.9"), 0.0)
    messages = [fmt.encode(fmt.PROCESS, {"version": "1.0", "pid": 1, "taps_lost": 0})]
    for vni, port in vtep.ports.items():
        # Not all options: a long input is mutated less often where it matters.
        names = ("vni", "remote", "tap", "proxy", "ttl")
        options = {name: snapshot.config_fields(port.config)[name] for name in names}
        fields = {"vni": vni, "options": options, "base": options, "state": {"index": 7}}
        messages.append(fmt.encode(fmt.SEGMENT, fields))
    for vni, port in vtep.ports.items():
        messages += [
            fmt.encode(fmt.FDB, each) for each in snapshot.FdbLog(port.fdb).pages(vni, lambda: _NOW)
        ]
    guards = {
        "vni": 2,
        "moves": [["020000000002", [1.5, 30.25], 9.0]],
        "blocks": [["192.0.2.9", 5.0, 30.0, 99.0]],
    }
    gone = {"vni": 1, "remotes": [], "entries": [], "deleted": ["020000000001"]}
    messages += [fmt.encode(fmt.COMPLETE), fmt.encode(fmt.FDB, guards)]
    messages += [fmt.encode(fmt.FDB, gone), fmt.encode(fmt.GO)]
    one.segment.counters.tx_frames = 9
    one.segment.counters.drop(Drop.VNI_UNKNOWN, "192.0.2.2")
    one.segment.counters.note_drops(_NOW - 5)
    for name, counters in (("vni 1", one.segment.counters), ("namespace", Counters())):
        fields = {"name": name, **snapshot.counter_fields(counters, _NOW)}
        fields["baseline"] = {"tx_frames": 4}
        messages.append(fmt.encode(fmt.COUNTERS, fields))
    refreshed = {"vni": 2, "entries": [["020000000002", 1.5, 3, 4]]}
    neighbour = {"vni": 1, "neighbours": [[[5], "0a000009", "020000000001", 2.5, False, False]]}
    return [
        *messages,
        fmt.encode(fmt.COUNTERS, {"name": "kernel", "values": {"receiver": 1}}),
        fmt.encode(fmt.REFRESHED, refreshed),
        fmt.encode(fmt.NEIGHBOURS, neighbour),
        fmt.encode(fmt.COMPLETE, {"reset_age": 1.0}),
        fmt.encode(fmt.RELEASED),
    ]


def seeds() -> Iterator[bytes]:
    """Yield valid inputs, from which the fuzzer starts."""
    messages = _valid()
    small = [
        fmt.encode(fmt.SEGMENT, {"vni": 1, "options": {"vni": 1, "tap": "vx1", "proxy": True}}),
        *(each for each in messages if b'"options"' not in each and b'"vni":2' not in each),
    ]
    yield _encoded(*small)
    for count in range(1, len(small)):
        yield _encoded(*small[:count])
    yield _encoded(*messages)
    roles = fmt.encode(fmt.DESCRIPTORS, {"roles": ["tap-vx1", "control"]})
    yield _encoded(roles, descriptors=2) + _encoded(*small)
    yield _encoded(fmt.encode(fmt.DESCRIPTORS, {"roles": ["tap-vx1"]}), descriptors=1)
    for message in messages[:4]:
        yield bytes((_WHOLE,)) + pack("!H", len(message)) + message
