"""The state of a VTEP as messages of an upgrade, and back.

Times travel as ages, in seconds: the clocks of two processes may differ (time namespaces). Remotes
travel once in each message, and entries name them by their position.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

import attrs
from attrs import define, field

from vtep.config import Config
from vtep.config.host_names import HostName
from vtep.control import views
from vtep.counters import Counters, Drop
from vtep.daemon.port import Port
from vtep.daemon.vtep import Vtep
from vtep.forwarding.fdb import (
    SEQUENCE_MAX,
    DestinationOrigin,
    Entry,
    EntryEvent,
    EntryKind,
    EntryState,
    Fdb,
    Remote,
    parse_remote,
)
from vtep.forwarding.liveness import LivenessRow
from vtep.upgrade.format import FormatError, Message, numbers
from vtep.wire.ethernet import MAC_LEN, MAC_ZERO

log = logging.getLogger("vtep")

Fields = dict[str, Any]

_DROPS = {str(reason): reason for reason in Drop}

REMOTES = "remotes"
LIVENESS = "liveness"
"""In place of the name of counters, in messages about remotes of a segment, or of the process."""

PAGE = 50
"""Entries that are converted at a time: some 100 microseconds, for which frames wait."""


# --- configurations -----------------------------------------------------------------------------


def config_fields(config: Config) -> Fields:
    """Return a configuration as a JSON object."""
    return views.options(config)


def parse_config(options: Mapping[str, Any]) -> Config:
    """Return a configuration. Options that this version does not know are left out, and logged.

    Raises: ConfigError if a value makes no sense to this version; FormatError without a VNI.
    """
    if "vni" not in options:
        raise FormatError("a configuration has no VNI")
    known = {each.name for each in attrs.fields(Config)}
    given = {name.replace("-", "_"): value for name, value in options.items()}
    for name in given.keys() - known:
        log.warning("option --%s of the old process is unknown here: left out", name)
    return Config(**{name: value for name, value in given.items() if name in known})


def name_fields(config: Config) -> Fields:
    """Return the addresses of the host names of a configuration, which has the names only."""
    return {
        each.name: [str(address) for address in each.addresses]
        for each in config.remote
        if isinstance(each, HostName)
    }


def with_addresses(config: Config, state: Message) -> Config:
    """Return a configuration whose names have the addresses of the old process: see `name_fields`.

    Without them, the remotes would be gone until the first answer, with all MACs behind them.
    Raises: FormatError.
    """
    try:
        found = {
            name: [ip_address(text) for text in addresses]
            for name, addresses in state.mapping("names").items()
        }
    except (TypeError, ValueError):
        raise FormatError("the addresses of a name make no sense") from None
    return config.with_addresses(found)


# --- the forwarding database --------------------------------------------------------------------


@define
class FdbLog:
    """The MACs of one FDB that have changed since they were sent, and what was sent of each entry.

    With `sent`, the ages and the frame counts that change without an event are sent at the end.
    """

    fdb: Fdb
    changed: set[bytes] = field(factory=set)
    sent: dict[bytes, tuple[Entry, float, int, int]] = field(factory=dict)
    _unwatch: Callable[[], None] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._unwatch = self.fdb.watch(self._on_changed)

    def _on_changed(self, _event: EntryEvent, entry: Entry) -> None:
        self.changed.add(entry.mac)

    def close(self) -> None:
        """Watch the FDB no more."""
        self._unwatch()

    def pages(self, vni: int, now: Callable[[], float]) -> Iterator[Fields]:
        """Yield messages with all entries, in steps between which the table may change."""
        if self.fdb.default is None:  # Else the new process would have that of its configuration.
            yield self._fields(vni, (), (MAC_ZERO,), now())
        for page in self.fdb.pages():
            yield self._fields(vni, page, (), now())

    def changes(self, vni: int, now: float) -> Iterator[Fields]:
        """Yield messages with the entries that have changed since they were sent."""
        while self.changed:
            macs = [self.changed.pop() for _ in range(min(PAGE, len(self.changed)))]
            found = {mac: _find(self.fdb, mac) for mac in macs}
            gone = [mac for mac, entry in found.items() if entry is None]
            yield self._fields(vni, [each for each in found.values() if each], gone, now)

    def _fields(
        self, vni: int, entries: Iterable[Entry], gone: Iterable[bytes], now: float
    ) -> Fields:
        remotes: dict[Remote, int] = {}
        rows = []
        for entry in entries:
            self.sent[entry.mac] = entry, entry.updated, entry.tx_frames, entry.rx_frames
            to = [remotes.setdefault(remote, len(remotes)) for remote in entry.destinations]
            state, extern, sticky = views.kind(entry.kind)
            flags = [state, extern, sticky]
            counts = [entry.tx_frames, entry.rx_frames]
            origins = [
                [each.is_local, each.extern_learn, each.sequence] for each in entry.kind.origins
            ]
            rows.append([entry.mac.hex(), to, now - entry.updated, *flags, *counts, origins])
        for mac in gone:
            self.sent.pop(mac, None)
        return {
            "vni": vni,
            "remotes": [[each.host, each.port, each.vni, each.via] for each in remotes],
            "entries": rows,
            "deleted": [mac.hex() for mac in gone],
        }

    def refreshed(self, vni: int, now: float) -> Iterator[Fields]:
        """Yield messages with the ages and frame counts that have changed since they were sent."""
        rows: list[list[Any]] = []
        for mac, (entry, updated, tx_frames, rx_frames) in self.sent.items():
            if _find(self.fdb, mac) is not entry:
                continue
            more = entry.tx_frames - tx_frames, entry.rx_frames - rx_frames
            if entry.updated != updated or any(more):
                rows.append([mac.hex(), now - entry.updated, *more])
            if len(rows) == PAGE:
                yield {"vni": vni, "entries": rows}
                rows = []
        yield {"vni": vni, "entries": rows}


def guard_pages(port: Port, now: float) -> Iterator[Fields]:
    """Yield messages with the MACs that are held or have moved, and the remotes that are blocked.

    They belong to the messages of the FDB, of which a process of an older version ignores them.
    """
    moves = [[mac.hex(), ages, left] for mac, ages, left in port.fdb.moves.export(now)]
    blocks = [[*row] for row in port.segment.loops.export(now)]
    for begin in range(0, max(len(moves), len(blocks)), PAGE):
        page = slice(begin, begin + PAGE)
        yield {"vni": port.config.vni, "moves": moves[page], "blocks": blocks[page]}


def _find(fdb: Fdb, mac: bytes) -> Entry | None:
    return fdb.default if mac == MAC_ZERO else fdb.lookup(mac)


def apply_fdb(port: Port, message: Message, now: float) -> None:
    """Apply entries and deletions to the FDB of a port. Raises: FormatError, FdbError."""
    members = port.fdb.members
    # When a remote leaves the segment, what was learned from it is flushed. The old process has
    # done so itself. Here, a remote may be absent for a moment only, between two of these changes.
    on_removed, members.on_removed = members.on_removed, None
    try:
        _apply_fdb(port.fdb, message, now)
    finally:
        members.on_removed = on_removed
    for text, ages, left in message.rows("moves", str, list, float):
        mac = _mac(text)
        # A MAC is held at the place of its entry, which may have aged meanwhile.
        if port.fdb.lookup(mac) is not None:
            port.fdb.moves.restore(mac, numbers(ages), left, now)
    for host, left, seconds, counts in message.rows("blocks", str, float, float, float):
        port.segment.loops.restore(host, left, seconds, counts, now)


def _apply_fdb(fdb: Fdb, message: Message, now: float) -> None:
    for text in message.items("deleted"):
        if (mac := _mac(text)) != MAC_ZERO and fdb.lookup(mac) is not None:
            fdb.remove(mac)
        elif mac == MAC_ZERO:
            fdb.set_default((), now)
    remotes = [_remote(row) for row in message.rows("remotes", str, int, object, object)]
    types = (str, list, float, str, bool, bool, int, int)
    for text, to, age, state, extern, sticky, tx_frames, rx_frames, origins in message.rows(
        "entries", *types, optional=(list,)
    ):
        try:
            kind = EntryKind(EntryState(state), extern, sticky)
            destinations = [remotes[position] for position in to]
        except (ValueError, IndexError, TypeError):
            raise FormatError("an FDB entry makes no sense") from None
        if origins:
            kind = kind.with_origins(map(_origin, origins))
            if len(origins) != len(destinations):
                raise FormatError("an FDB entry does not have an origin for each destination")
        mac, updated = _mac(text), now - age
        if mac != MAC_ZERO and fdb.lookup(mac) is not None:
            fdb.remove(mac)
        fdb.restore(mac, destinations, updated, kind)
        entry = _find(fdb, mac)
        if entry is not None:
            # One that is the same as before, such as the default entry, has kept its time.
            entry.updated = updated
            entry.tx_frames, entry.rx_frames = tx_frames, rx_frames


def apply_refreshed(port: Port, message: Message, now: float) -> None:
    """Apply later ages and frame counts to entries that still exist. Raises: FormatError."""
    for text, age, tx_frames, rx_frames in message.rows("entries", str, float, int, int):
        entry = _find(port.fdb, _mac(text))
        if entry is not None:
            entry.updated = max(entry.updated, now - age)
            entry.tx_frames += tx_frames
            entry.rx_frames += rx_frames


def _mac(text: object) -> bytes:
    with suppress(TypeError, ValueError):
        mac = bytes.fromhex(text)  # type: ignore[arg-type]  # A TypeError is caught.
        if len(mac) == MAC_LEN:
            return mac
    raise FormatError("a MAC address has 12 hexadecimal digits")


def _remote(row: tuple[Any, ...]) -> Remote:
    host, port, vni, via = row
    if not (vni is None or _is_int(vni)) or not (via is None or isinstance(via, str)):
        raise FormatError("a remote makes no sense")
    return parse_remote(host, port=port, vni=vni, via=via)


def _origin(row: Any) -> DestinationOrigin:
    """Return the origin of a destination. Raises: FormatError."""
    if isinstance(row, list) and len(row) >= 3:
        local, extern_learn, sequence = row[:3]
        if (
            (local is True or extern_learn is True)
            and isinstance(local, bool)
            and isinstance(extern_learn, bool)
            and (sequence is None or (_is_int(sequence) and 0 <= sequence <= SEQUENCE_MAX))
        ):
            return DestinationOrigin(local, extern_learn, sequence if extern_learn else None)
    raise FormatError("the origin of a destination makes no sense")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# --- counters -----------------------------------------------------------------------------------


def counter_fields(counters: Counters, now: float) -> Fields:
    """Return counters, with the baseline of the last reset and the last drops."""
    since = counters.since_reset()
    values = counters.as_dict()
    return {
        "values": {name: count for name, count in values.items() if count},
        "baseline": {name: values[name] - count for name, count in since.items()},
        "last_source": {str(reason): host for reason, host in counters.last_source.items()},
        "last_drop": {str(reason): now - at for reason, at in counters.last_drop.items()},
    }


def add_counters(counters: Counters, message: Message, now: float) -> None:
    """Add the counters of the old process to those of this one. Raises: FormatError."""
    counters.note_drops(now)
    own = dict(counters.last_drop)
    losses = counters.losses()
    known = counters.as_dict()
    for name, count in _counts(message, "values", known).items():
        _add(counters, name, count)
    counters.mark_logged(losses)
    counters.set_baseline(_counts(message, "baseline", known))
    # Noted, since the next tick would take those of the old process for drops of now.
    counters.note_drops(now)
    ages = Message(message.kind, message.mapping("last_drop"))
    former = {_DROPS[name]: now - ages.number(name) for name in ages.fields if name in _DROPS}
    counters.last_drop = former | own
    for name, host in message.mapping("last_source").items():
        if name in _DROPS:
            counters.last_source.setdefault(_DROPS[name], str(host))


def _counts(message: Message, name: str, known: Iterable[str]) -> dict[str, int]:
    """Return an object of counts; those that this version does not have are left out."""
    counts = Message(message.kind, message.mapping(name))
    return {each: counts.integer(each) for each in known if each in counts.fields}


def _add(counters: Counters, name: str, count: int) -> None:
    if name.startswith("drop_"):
        counters.drops[_DROPS[name.removeprefix("drop_")]] += count
    else:
        setattr(counters, name, getattr(counters, name) + count)


# --- remotes ------------------------------------------------------------------------------------


def remote_counter_pages(port: Port, now: float) -> Iterator[Fields]:
    """Yield messages with the traffic of the remotes of a port.

    They are messages about counters, of which a process of an older version ignores these.
    """
    remotes = port.segment.remote_counters
    remotes.settle()
    rows = [
        [
            *(host, each.rx_frames, each.rx_bytes, each.tx_frames, each.tx_bytes),
            None if each.last_rx is None else now - each.last_rx,
        ]
        for host, each in remotes.items()
    ]
    for begin in range(0, len(rows), PAGE):
        yield {"name": REMOTES, "vni": port.config.vni, "remotes": rows[begin : begin + PAGE]}


def add_remote_counters(port: Port, message: Message, now: float) -> None:
    """Add the traffic of remotes to what this process has counted. Raises: FormatError."""
    remotes = port.segment.remote_counters
    for host, rx_frames, rx_bytes, tx_frames, tx_bytes, age in message.rows(
        "remotes", str, int, int, int, int, object
    ):
        if not port.segment.accepts_source(host) and host not in port.fdb.members.hosts:
            continue  # It was removed meanwhile.
        remote = remotes[host]
        remote.rx_frames += rx_frames
        remote.rx_bytes += rx_bytes
        remote.tx_frames += tx_frames
        remote.tx_bytes += tx_bytes
        if remote.last_rx is None:
            remote.last_rx = _past(age, now)


def liveness_pages(vtep: Vtep, now: float) -> Iterator[Fields]:
    """Yield messages with the liveness of all remotes, as `remote_counter_pages` does."""
    rows = vtep.liveness.export(now)
    for begin in range(0, len(rows), PAGE):
        yield {"name": LIVENESS, "remotes": rows[begin : begin + PAGE]}


def apply_liveness(vtep: Vtep, message: Message, now: float) -> None:
    """Continue with the liveness of remotes, none of which changes by that. Raises: FormatError."""
    for host, port, is_pyvtep, is_refused, missed, heard, replied, rtt in message.rows(
        "remotes", str, int, bool, bool, int, object, object, object
    ):
        ages = (_age(heard), _age(replied), _age(rtt))
        vtep.liveness.restore(host, port, LivenessRow(is_pyvtep, is_refused, missed, *ages), now)


def _age(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _past(value: object, now: float) -> float | None:
    age = _age(value)
    return None if age is None else now - age


def all_counters(vtep: Vtep) -> Iterator[tuple[str, Counters]]:
    """Yield the name and the counters of each part of a VTEP."""
    yield "namespace", vtep.namespace_counters
    for listener in vtep.listeners:
        yield listener.endpoint.role, listener.demux.counters
    for tap, counters in vtep.trunk_counters():
        yield f"dev {tap}", counters
    for vni, port in vtep.ports.items():
        yield f"vni {vni}", port.segment.counters


# --- neighbours ---------------------------------------------------------------------------------


def neighbour_pages(port: Port, now: float) -> Iterator[Fields]:
    """Yield messages with the neighbours of a port for ARP and ND suppression."""
    neighbours = port.segment.neighbours
    rows = [] if neighbours is None else neighbours.export(now)
    for begin in range(0, len(rows), PAGE):
        yield {"vni": port.config.vni, "neighbours": rows[begin : begin + PAGE]}


def apply_neighbours(port: Port, message: Message, now: float) -> None:
    """Add neighbours to those that were learned meanwhile. Raises: FormatError."""
    if port.segment.neighbours is None:
        return
    for vlan, address, mac, age, permanent, router, extern_learn in message.rows(
        "neighbours", list, str, str, float, bool, bool, optional=(bool,)
    ):
        try:
            packed = bytes.fromhex(address)
            if len(packed) not in (4, 16) or not all(isinstance(each, int) for each in vlan):
                raise FormatError("a neighbour has no IP address")
        except ValueError:
            raise FormatError("a neighbour has no IP address") from None
        port.segment.neighbours.restore(
            *(tuple(vlan), packed, _mac(mac), now - age),
            permanent=permanent,
            router=router,
            extern_learn=extern_learn and permanent,
        )
