"""The methods `trace` and `trace.live`: what would happen to a frame."""

import asyncio
from contextlib import closing
from typing import TYPE_CHECKING, Final

from vtep.capture.captures import Captures
from vtep.capture.events import FrameEvent, ReceivedDatagrams, SentFrame, inner_of
from vtep.capture.libpcap import FrameFilter
from vtep.control.params import SEGMENT, Params
from vtep.daemon.port import Port
from vtep.daemon.vtep import Vtep
from vtep.errors import ConfigError, VtepError
from vtep.trace.run import FRAME_MAX, trace_from_tap, trace_from_underlay
from vtep.trace.steps import TraceResult
from vtep.wire import vxlan
from vtep.wire.address import version_of

if TYPE_CHECKING:
    from collections.abc import Callable

TAKES: Final = (*SEGMENT, "frame", "datagram", "source", "header", "ecn")
LIVE_TAKES: Final = (*SEGMENT, "count", "filter")

_LIVE_S: Final = 1.0
"""Seconds for which one call waits for real frames: then its client asks again, or has gone."""

_LIVE_MAX: Final = 100
"""Real frames of one call. Each takes about a millisecond, for which others wait."""


def trace(port: Port, vtep: Vtep, given: Params) -> TraceResult:
    """Return what would happen to a frame of a segment, or to a datagram that it receives."""
    frame, datagram = (_octets(given, name) for name in ("frame", "datagram"))
    header, source = _octets(given, "header"), given.text("source")
    ecn = given.number("ecn", 0, 3) or 0
    if (frame is None) == (datagram is None):
        raise ConfigError("frame: give either a frame or a datagram")
    if source is None:
        if datagram is not None or header is not None or ecn:
            raise ConfigError("source: is missing: the address that sends the datagram")
        return trace_from_tap(port, frame or b"")
    try:
        version_of(source)
    except ValueError:
        raise ConfigError(f"source {source!r}: is not an IP address") from None
    if datagram is None:
        if header is not None and len(header) != vxlan.HEADER_LEN:
            raise ConfigError(f"header: must have {vxlan.HEADER_LEN} octets")
        datagram = (header or vxlan.pack(port.config.vni)) + (frame or b"")
    return trace_from_underlay(port, vtep.ports, datagram, source, ecn, vtep.link_of)


def _octets(given: Params, name: str) -> bytes | None:
    text = given.text(name)
    if text is None:
        return None
    try:
        octets = bytes.fromhex(text)
    except ValueError:
        raise ConfigError(f"{name}: is not hexadecimal") from None
    if len(octets) > FRAME_MAX:
        raise ConfigError(f"{name}: has more than {FRAME_MAX} octets")
    return octets


def live(
    port: Port, vtep: Vtep, captures: Captures, given: Params
) -> "asyncio.Future[list[TraceResult]]":
    """Return a future of the traces of the next real frames of a segment.

    There may be fewer than asked for, or none: it waits for a second.
    """
    count = given.number("count", 1, _LIVE_MAX) or 1
    expression = given.text("filter")
    if not port.is_open:
        raise VtepError(f"vni {port.config.vni}: does not forward; see: pyvtep status")
    return asyncio.ensure_future(_live(port, vtep, captures, count, expression))


async def _live(
    port: Port, vtep: Vtep, captures: Captures, count: int, expression: str | None
) -> list[TraceResult]:
    results: list[TraceResult] = []
    if expression is None:
        await _collect(port, vtep, captures, count, lambda _frame: True, results)
    else:
        # In a thread: the name of a host in the expression is looked up.
        with closing(await asyncio.to_thread(FrameFilter, expression)) as wanted:
            await _collect(port, vtep, captures, count, wanted.matches, results)
    return results


async def _collect(
    port: Port,
    vtep: Vtep,
    captures: Captures,
    count: int,
    matches: "Callable[[bytes], bool]",
    results: list[TraceResult],
) -> None:
    events: list[SentFrame | ReceivedDatagrams] = []
    enough = asyncio.Event()

    def note(event: FrameEvent, port: Port | None) -> None:
        del port
        # The data path goes on at once: the trace is made after its turn.
        if not isinstance(event, SentFrame | ReceivedDatagrams):
            return
        if len(events) < count and any(map(matches, _inner_frames(event))):
            events.append(event)
            if len(events) == count:
                enough.set()

    end = captures.watch(frozenset((port.config.vni,)), note)
    try:
        async with asyncio.timeout(_LIVE_S):
            await enough.wait()
    except TimeoutError:
        pass
    finally:
        end()
    for event in events:
        try:
            results.append(_trace_event(port, vtep, event))
        except VtepError:
            continue  # The segment has ended meanwhile.
        await asyncio.sleep(0)  # Frames have their turn.


def _inner_frames(event: SentFrame | ReceivedDatagrams) -> list[bytes]:
    if isinstance(event, SentFrame):
        return [] if event.frame is None else [event.frame]
    return [inner_of(datagram) or b"" for datagram in event.datagrams]


def _trace_event(port: Port, vtep: Vtep, event: SentFrame | ReceivedDatagrams) -> TraceResult:
    if isinstance(event, SentFrame):
        return trace_from_tap(port, event.frame or b"", event.meta)
    datagram, ecn = event.datagrams[0], event.outer_ecn
    return trace_from_underlay(port, vtep.ports, datagram, event.host, ecn, vtep.link_of)
