"""The method `capture`: its parameters, and the stream of pcapng that follows its answer."""

import asyncio
from collections.abc import Callable
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from vtep.capture.captures import Captures, Vnis
from vtep.capture.events import Point
from vtep.capture.libpcap import FrameFilter
from vtep.capture.session import CaptureOptions, CaptureSession
from vtep.control.jsonrpc import OctetStream
from vtep.control.params import SEGMENT, Params
from vtep.daemon.port import Port
from vtep.errors import ConfigError
from vtep.wire.ethernet import parse_mac

if TYPE_CHECKING:
    from vtep.counters import Drop

CAPTURE: Final = (
    *(*SEGMENT, "remote", "mac", "point", "drops", "count", "snaplen", "filter"),
    *("superframes", "remotes"),
)
"""The parameters of the method."""

_COUNT_MAX = (1 << 63) - 1
_SNAPLEN_MIN = 14
_SNAPLEN_MAX = 1 << 18
_BOTH = "both"


class CaptureMethod:
    """The method `capture` of one VTEP. `find` returns the port that a request names."""

    def __init__(self, captures: Captures, find: Callable[[Params], Port]) -> None:
        self._captures = captures
        self._find = find

    def __call__(self, given: Params) -> "asyncio.Task[OctetStream]":
        """Check the parameters, and begin a capture.

        Returns: a task, since a filter with the name of a host takes as long as its resolution.
        Raises: ConfigError or VtepError.
        """
        vnis: Vnis = None
        if given.vni() is not None or given.text("dev") is not None:
            vnis = frozenset((self._find(given).config.vni,))
        options = _options(given)
        self._captures.check_room()
        expression = given.text("filter") or ""
        opening = self._open(options, expression, vnis)
        return asyncio.get_running_loop().create_task(opening)

    async def _open(self, options: CaptureOptions, expression: str, vnis: Vnis) -> OctetStream:
        # In a thread: libpcap resolves names, and forwarding must not wait for a name server.
        frame_filter = await asyncio.to_thread(FrameFilter, expression) if expression else None
        places = list(self._captures.places(vnis))
        session = CaptureSession(options, frame_filter, places)
        try:
            self._captures.check_room()  # Others may have begun meanwhile.
            self._captures.start(session, vnis)
        except BaseException:
            session.close()
            raise
        segments = [{"vni": place[0], "dev": place[1]} for place in places if place is not None]
        return OctetStream({"segments": segments}, CaptureStream(self._captures, session))


class CaptureStream:
    """The octets of a capture, for the connection that they are sent to."""

    def __init__(self, captures: Captures, session: CaptureSession) -> None:
        self.ready = session.ready
        """Set while octets wait, and after the end."""
        self._captures = captures
        self._session = session
        self._unseen: dict[Drop, int] | None = None
        session.on_end = self._schedule_stop

    def take(self, most: int) -> bytes:
        """Return up to about `most` octets; b"" if none wait."""
        return self._session.take(most)

    @property
    def has_ended(self) -> bool:
        """True if no more octets will be added."""
        return bool(self._session.ended)

    def end(self, why: str) -> None:
        """Capture nothing more. What waits is still to be taken."""
        self._session.end(why)
        self._schedule_stop()

    def _schedule_stop(self) -> None:
        # Not at once: the data path is not changed while it handles a frame. But not when the last
        # octets were taken either, since a client may never read them.
        asyncio.get_running_loop().call_soon(self._stop)

    def _stop(self) -> None:
        if self._unseen is None:
            self._unseen = self._captures.stop(self._session)

    def finish(self) -> bytes:
        """Return the last octets, after all others were taken."""
        self._stop()
        return self._session.statistics(self._unseen or {})

    def close(self) -> None:
        """End the capture, also if not all octets were taken."""
        self._session.end("the connection was closed")
        self._stop()
        self._session.close()


def _options(given: Params) -> CaptureOptions:
    """Return the options of a capture. Raises: ConfigError."""
    point, remote, mac = given.text("point"), given.text("remote"), given.text("mac")
    points = {None: frozenset(Point), _BOTH: frozenset(Point)} | {
        each: frozenset((each,)) for each in Point
    }
    if point not in points:
        raise ConfigError(f"point {point}: must be {', '.join(Point)} or {_BOTH}")
    if remote is not None:
        try:
            remote = str(ip_address(remote))
        except ValueError:
            raise ConfigError(f"remote {remote!r}: is not an IP address") from None
    try:
        octets = None if mac is None else parse_mac(mac)
    except ValueError as error:
        raise ConfigError(f"mac {mac!r}: {error}") from None
    return CaptureOptions(
        points=points[point],
        remote=remote,
        mac=octets,
        drops_only=bool(given.flag("drops")),
        count=given.number("count", 1, _COUNT_MAX),
        snaplen=given.number("snaplen", _SNAPLEN_MIN, _SNAPLEN_MAX),
        superframes=bool(given.flag("superframes")),
        names_remotes=bool(given.flag("remotes")),
    )
