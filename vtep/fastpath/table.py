"""The tables of the fast path as Python sees them: rows are added, counted and removed.

A row repeats a verdict of the slow path. `vtep.datapath.verdicts` decides which verdicts can be
repeated; the tables remember from what each row was derived, so that it can be removed in time.
"""

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Final, Generic, TypeVar

from vtep.fastpath.keys import place
from vtep.fastpath.layout import (
    KEY_KIND,
    KEY_LIMITED,
    KEY_MAC,
    KEY_PORT,
    KEY_USED,
    METERS,
    PATH_STRIDE_MAX,
    PATHS,
    PORT_GSO,
    ROWS,
    RX_TARGET,
    SLOTS,
    TARGET_FD,
    TARGETS,
    TEMPLATE_CONTROL,
    TEMPLATE_LEN,
    TX_CONTROL_LEN,
    TX_FRAMES,
    TX_PATH,
    TX_SLOT_BASE,
    TX_SLOT_MASK,
    Integers,
)
from vtep.fastpath.origins import (
    MeterOrigin,
    Origin,
    ReceiveOrigin,
    TransmitOrigin,
    UnknownOrigin,
)
from vtep.fastpath.receive import ReceiveTurn
from vtep.fastpath.transmit import TransmitTurn
from vtep.forwarding.fdb import Entry
from vtep.forwarding.segment import Segment
from vtep.io.path import FLOW_BITS, Path

_Row = TypeVar("_Row", bound="Origin")


class Table(Generic[_Row]):
    """The rows of one direction, with their origins. Rows of equal MACs are removed together."""

    def __init__(self, keys: Integers) -> None:
        self.origins: list[_Row | None] = [None] * ROWS
        """By row, the origin; None if the row is free."""
        self._keys = keys
        self._by_mac: dict[tuple[Segment, bytes], set[int]] = {}

    def _put(self, key: Integers, origin: _Row) -> int:
        """Add a row, in place of another one if its bucket is full. Returns: its number."""
        row = place(self._keys, key)
        if self.origins[row] is not None:
            self._remove(row)
        self._keys[row] = key
        self.origins[row] = origin
        self._by_mac.setdefault((origin.segment, origin.mac), set()).add(row)
        return row

    def find(self, key: Integers) -> int:
        """Return the row of a key, or -1."""
        row = place(self._keys, key)
        return row if self._keys[row, KEY_MAC] and (self._keys[row] == key).all() else -1

    def _remove(self, row: int) -> None:
        origin = self.origins[row]
        if origin is None:
            return
        self._keys[row] = 0
        self.origins[row] = None
        rows = self._by_mac[origin.segment, origin.mac]
        rows.discard(row)
        if not rows:
            del self._by_mac[origin.segment, origin.mac]

    def remove_verdicts(self, segment: Segment, mac: bytes | None) -> None:
        """Remove the rows about one MAC of a segment; None stands for all of its MACs."""
        if mac is None:
            self.remove_if(lambda origin: origin.segment is segment)
        else:
            for row in tuple(self._by_mac.get((segment, mac), ())):
                self._remove(row)

    def remove_if(self, condition: Callable[[_Row], bool]) -> None:
        """Remove all rows whose origin meets a condition."""
        for rows in tuple(self._by_mac.values()):
            for row in tuple(rows):
                origin = self.origins[row]
                if origin is not None and condition(origin):
                    self._remove(row)

    def clear(self) -> None:
        """Remove all rows."""
        self.remove_if(lambda _origin: True)


class TransmitTable(Table[TransmitOrigin | UnknownOrigin]):
    """The rows for frames from the TAPs, and the sockets of their paths."""

    def __init__(self) -> None:
        self.turn = TransmitTurn()
        super().__init__(self.turn.keys)
        self._paths: dict[Path, int] = {}
        self._free_paths = list(range(PATHS))

    def add(
        self,
        key: Integers,
        segment: Segment,
        entry: Entry,
        path: Path,
        header: bytes,
        control: bytes,
        flow: int,
    ) -> None:
        """Add a row for frames with a key, unless it has no place, and the socket of a flow.

        Args:
            key: of int64[TX_KEY_WORDS].
            segment: the VNI of the frames.
            entry: the FDB entry of their destination.
            path: the path to its remote, whose socket for the flow is open.
            header: the VXLAN header.
            control: control messages for the outer header fields, as in memory.
            flow: as in `Path.send`.
        """
        number = self._number(path)
        if number is None or len(control) > TEMPLATE_LEN - TEMPLATE_CONTROL:
            return
        base = path.slots if path.wants_df(flow) else 0
        turn = self.turn
        turn.paths[number, base + (flow & path.slots - 1)] = path.connected_fd(flow)
        row = self.find(key)
        if row < 0:
            is_superframe = int(key[KEY_PORT]) >> PORT_GSO != 0
            origin = TransmitOrigin(
                segment, entry.mac, entry, path, flow >> FLOW_BITS, is_superframe
            )
            row = self._put(key, origin)
            values, template = turn.values[row], turn.templates[row]
            values[TX_FRAMES:] = 0
            values[TX_PATH], values[TX_CONTROL_LEN] = number, len(control)
            values[TX_SLOT_MASK], values[TX_SLOT_BASE] = path.slots - 1, base
            template[:TEMPLATE_CONTROL] = memoryview(header)
            template[TEMPLATE_CONTROL : TEMPLATE_CONTROL + len(control)] = memoryview(control)

    def add_unknown(self, key: Integers, segment: Segment, mac: bytes) -> None:
        """Add a row that says that a MAC is not in the FDB.

        `key` is that of a frame to it, which is changed.
        """
        key[KEY_MAC] = KEY_USED | KEY_LIMITED | int.from_bytes(mac, "big")
        key[KEY_KIND] = 0
        if self.find(key) < 0:
            row = self._put(key, UnknownOrigin(segment, mac))
            self.turn.values[row] = 0

    def _number(self, path: Path) -> int | None:
        """Return the row of `paths` for a path; None if all are in use."""
        number = self._paths.get(path)
        if number is None:
            if not self._free_paths:
                return None
            number = self._paths[path] = self._free_paths.pop()
            path.on_sockets_changed = partial(self._on_sockets_changed, path)
            self._forget_sockets(path)
        return number

    def _forget_sockets(self, path: Path) -> None:
        """Return the next frame of each slot to the slow path, which opens its socket."""
        sockets = self.turn.paths[self._paths[path]]
        sockets[:SLOTS] = -1
        sockets[PATH_STRIDE_MAX] = path.stride_max

    def _on_sockets_changed(self, path: Path, all_closed: bool) -> None:
        self._forget_sockets(path)
        if all_closed:
            self.remove_if(
                lambda origin: isinstance(origin, TransmitOrigin) and origin.path is path
            )
            path.on_sockets_changed = None
            self._free_paths.append(self._paths.pop(path))

    def remove_superframes(self) -> None:
        """Remove all rows of superframes: whether they can be sent with tunnel GSO may change."""
        self.remove_if(lambda origin: isinstance(origin, TransmitOrigin) and origin.is_superframe)


class ReceiveTable(Table[ReceiveOrigin | MeterOrigin]):
    """The rows for datagrams from the underlay, and the TAPs that they go to."""

    def __init__(self) -> None:
        self.turn = ReceiveTurn()
        super().__init__(self.turn.keys)
        self.turn.targets[:, TARGET_FD] = -1
        self._free_targets = list(range(TARGETS))
        self._free_meters = list(range(METERS))
        self.meters: dict[tuple[object, ...], MeterOrigin] = {}
        """The origins of the rows with a meter, by their identity."""

    def add(
        self,
        key: Integers,
        segment: Segment,
        host: str,
        mac: bytes,
        entry: Entry | None,
        target: int,
        kick_egress: Callable[[], None],
    ) -> None:
        """Add a row for datagrams with a key.

        Args:
            key: of int64[RX_KEY_WORDS].
            segment: the VNI of the datagrams.
            host: the address of their sender.
            mac: the source MAC of their frames.
            entry: the FDB entry to refresh, if any.
            target: the row of `targets` for their TAP.
            kick_egress: sends the frames that wait in the TAP.
        """
        row = self._put(key, ReceiveOrigin(segment, mac, host, entry, kick_egress))
        self.turn.values[row] = 0
        self.turn.values[row, RX_TARGET] = target

    def add_meter(
        self,
        port: int,
        message: int,
        header: bytes,
        segment: Segment,
        host: str,
        kick_egress: Callable[[], None],
    ) -> MeterOrigin | None:
        """Add a row with a meter for the datagrams of a remote with one VXLAN header.

        `port` is as in a key, and `message` one that the last turn has received from the remote.

        Returns: the origin of the row, whose meter grants nothing yet; None if all are in use.
        """
        if not self._free_meters:
            return None
        number = self._free_meters.pop()
        self.turn.meters[number] = 0
        origin = MeterOrigin(segment, b"", port, host, header, number, kick_egress)
        self.meters[origin.identity] = origin
        row = self._put(self.turn.limited_key(port, message, header), origin)
        self.turn.values[row] = 0
        self.turn.values[row, RX_TARGET] = number
        return origin

    def _remove(self, row: int) -> None:
        origin = self.origins[row]
        super()._remove(row)
        if isinstance(origin, MeterOrigin):
            del self.meters[origin.identity]
            self._free_meters.append(origin.number)

    def open_target(self) -> int | None:
        """Return the number of a row of `targets` to use; None if there is none."""
        return self._free_targets.pop() if self._free_targets else None

    def close_target(self, number: int) -> None:
        """Give up a row of `targets`, to which no row refers any more."""
        self.turn.targets[number, TARGET_FD] = -1
        self._free_targets.append(number)


class FastPath:
    """The fast path of a process: the tables of both directions, which all its VNIs share.

    `on_failed` is called once, with the exception, when a turn has failed: nothing uses the fast
    path any more.
    """

    def __init__(self, on_failed: Callable[[Exception], None]) -> None:
        self.transmit: Final = TransmitTable()
        self.receive: Final = ReceiveTable()
        self.failed = False
        """True after an exception in a turn."""
        self._on_failed = on_failed
        self._ports = count()

    def new_port(self) -> int:
        """Return a number for one receiving port, which keys of its datagrams contain."""
        return next(self._ports)

    def fail(self, error: Exception) -> None:
        """Empty the tables after an exception in a turn."""
        self.transmit.clear()
        self.receive.clear()
        if not self.failed:
            self.failed = True
            self._on_failed(error)
