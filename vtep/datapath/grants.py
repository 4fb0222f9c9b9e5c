"""Grants of storm control for compiled turns (see `vtep.fastpath.storm`)."""

from typing import TYPE_CHECKING

from vtep.counters import Drop
from vtep.fastpath.layout import (
    METER_DROPPED,
    METER_SOURCE,
    METER_USED,
    Integers,
)
from vtep.forwarding.segment import Segment
from vtep.forwarding.storm import DROPS_RX, DROPS_TX, UNLIMITED, StormMeter

if TYPE_CHECKING:
    from collections.abc import Callable

    from vtep.fastpath.origins import MeterOrigin
    from vtep.fastpath.table import FastPath, ReceiveTable

_SOURCE_END = METER_SOURCE + len(DROPS_TX)


class TransmitGrants:
    """The grants of one VNI for frames from its TAP.

    `meter` is the array that a turn takes them from.
    """

    def __init__(self, fast: "FastPath", segment: Segment) -> None:
        self.meter = fast.transmit.turn.new_meter()
        self._segment = segment
        self._is_stale = True

    def reset(self) -> None:
        """Take note that the limits may have changed."""
        self._is_stale = True

    def renew(self, now: float) -> None:
        """Grant as many frames as there are tokens, if that may differ from the grants left."""
        meter = self._segment.storm.tap
        if meter is not None and (self._is_stale or meter.is_used):
            self.meter[:METER_USED] = meter.grants(now)
        elif self._is_stale:
            self.meter[:METER_USED] = UNLIMITED
        self._is_stale = False

    def account(self, now: float) -> None:
        """Account what the last turn has sent and dropped, if it took any grant."""
        # A frame that the slow path drops for another reason has taken a grant, but no token.
        self._is_stale = True
        meter, segment = self._segment.storm.tap, self._segment
        if meter is not None:
            for reason, count, mac in _take_counts(self.meter, meter, DROPS_TX, now):
                segment.counters.drop(reason, count=count, detail=mac)


class ReceiveGrants:
    """The grants of one receiving port, for the remotes of its VNIs."""

    def __init__(self, table: "ReceiveTable") -> None:
        self._table = table
        self._meters = table.turn.meters
        # Those whose grants are not all that their meters can ever grant.
        self._stale: dict[tuple[object, ...], MeterOrigin] = {}

    def learn(
        self,
        identity: tuple[int, str, bytes],
        message: int,
        segment: Segment,
        kick_egress: "Callable[[], None]",
        now: float,
    ) -> None:
        """Give a remote that sends to groups a meter, from which turns take grants.

        `identity` has the receiving socket, the address of the remote, and the VXLAN header;
        `message` is one of its messages.
        """
        port, host, header = identity
        if (
            identity in self._table.meters
            or not segment.storm.limits_remotes
            or not segment.accepts_source(host)
        ):
            return
        origin = self._table.add_meter(port, message, header, segment, host, kick_egress)
        if origin is not None:
            self._stale[origin.identity] = origin
            self._renew(origin, now)

    def renew(self, now: float) -> None:
        """Renew the grants of remotes whose frames were limited lately."""
        if self._stale:
            for origin in tuple(self._stale.values()):
                self._renew(origin, now)

    def _renew(self, origin: "MeterOrigin", now: float) -> None:
        if self._table.meters.get(origin.identity) is not origin:
            del self._stale[origin.identity]  # Its row was removed.
            return
        meter = origin.segment.storm.of_remote(origin.host, now)
        self._meters[origin.number, :METER_USED] = meter.grants(now)
        if not meter.is_used:
            del self._stale[origin.identity]

    def account(self, origin: "MeterOrigin", now: float) -> None:
        """Account what the last turn has delivered and dropped of a remote."""
        self._stale[origin.identity] = origin
        meter = origin.segment.storm.of_remote(origin.host, now)
        counters = origin.segment.counters
        for reason, count, mac in _take_counts(self._meters[origin.number], meter, DROPS_RX, now):
            counters.drop(reason, origin.host, count, mac)


def _take_counts(
    columns: Integers, meter: StormMeter, reasons: tuple[Drop, ...], now: float
) -> list[tuple[Drop, int, bytes]]:
    """Charge what a turn has forwarded, and clear its counts.

    Returns: drop reasons with a count, and the source MAC of the last frame.
    """
    counts = columns[METER_USED:_SOURCE_END].tolist()
    columns[METER_USED:METER_SOURCE] = 0
    dropped, sources = METER_DROPPED - METER_USED, METER_SOURCE - METER_USED
    for kind, count in enumerate(counts[:dropped]):
        if count:
            meter.charge(kind, count, now)
    found = []
    for kind, reason in enumerate(reasons):
        if count := counts[dropped + kind]:
            meter.dropped[kind] += count
            found.append((reason, count, counts[sources + kind].to_bytes(6, "big")))
    return found
