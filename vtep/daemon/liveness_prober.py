"""Asks the remotes of all VNIs whether they are there, and notes what they send.

One host may be a remote of a thousand VNIs, so it is asked once for all of them. Requests are echo
requests, which other VTEPs drop without an answer (see `vtep.wire.echo`).
"""

import errno
import logging
import secrets
from collections.abc import Callable, Iterator
from math import inf
from typing import TypeAlias

from attrs import define, field

from vtep.counters import Drop
from vtep.daemon.port import Port
from vtep.errors import VtepError
from vtep.forwarding.fdb import Remote
from vtep.forwarding.liveness import MISSED_MAX, Liveness, LivenessRow, LivenessState
from vtep.io.interfaces import Sender
from vtep.wire import echo
from vtep.wire.address import is_group, version_of
from vtep.wire.echo import EchoKind, EchoMessage

log = logging.getLogger("vtep")

_PATHS_MAX = 64
"""Paths of a VNI up to which one is opened for a request. ICMP errors are reported by the connected
socket of a path only; but a thousand remotes that are merely flooded to need none."""

_NUMBER_MAX = 0xFFFFFFFF
"""The largest sequence number of an echo request."""

Key: TypeAlias = tuple[str, int]
"""Address and UDP port of a remote."""

Watcher: TypeAlias = Callable[[LivenessState, Port, str], None]
"""Called with the new state, a port of which the remote is a member, and its address."""


@define(eq=False)
class _Remote:
    """A remote, with the VNIs that it belongs to, as the present round has found them."""

    host: str
    liveness: Liveness = field(factory=Liveness)
    state: LivenessState = LivenessState.NEVER_SEEN
    """The state that was reported last."""
    interval: float = inf
    numbers: list[int] = field(factory=list)
    """Sequence numbers of the requests that are not answered, the last one at the end."""
    sent: int = 0
    """Frames to it when it was asked last."""
    ports: list[tuple[Port, Remote]] = field(factory=list)
    found: list[tuple[Port, Remote]] = field(factory=list)


class LivenessProber:
    """The liveness of all remotes of a process.

    A round is one call of `look` for each port, and then one of `finish`.
    """

    def __init__(self) -> None:
        self.watchers: list[Watcher] = []
        self._remotes: dict[Key, _Remote] = {}
        self._token = secrets.token_bytes(echo.TOKEN_LEN)
        self._number = 0
        self._waiting: dict[int, _Remote] = {}
        self._refused: dict[Port, int] = {}

    def get(self, host: str, port: int) -> Liveness | None:
        """Return the liveness of a remote; None if it is not a member of a segment."""
        remote = self._remotes.get((host, port))
        return remote.liveness if remote is not None else None

    # --- rounds -------------------------------------------------------------------------------

    def look(self, port: Port, now: float) -> None:
        """Note what the remotes of a port have sent, and how often they are to be asked."""
        segment = port.segment
        interval = segment.liveness_interval or inf
        counters = segment.remote_counters
        for host, remote in segment.fdb.members.hosts.items():
            key = host, remote.port
            known = self._remotes.get(key)
            if known is None:
                if is_group(host):  # Its members are judged by their own addresses.
                    continue
                known = self._remotes[key] = _Remote(host)
            known.found.append((port, remote))
            known.interval = min(known.interval, interval)
            if (heard := counters.get(host)) is not None and heard.last_rx is not None:
                known.liveness.hear(heard.last_rx)
        refused = segment.counters.drops[Drop.UNDERLAY_REFUSED]
        if refused != self._refused.get(port, 0):
            self._refused[port] = refused
            host = segment.counters.last_source.get(Drop.UNDERLAY_REFUSED, "")
            member = segment.fdb.members.hosts.get(host)
            # The kernel reports an ICMP error when the next datagram is sent, however late that is.
            # So it is only a reason to ask.
            if member is not None and (known := self._remotes.get((host, member.port))) is not None:
                known.liveness.hurry(now)

    def finish(self, now: float) -> Iterator[None]:
        """Ask the remotes for which it is time, and report those whose state has changed.

        It is done in steps of some ten microseconds each.
        """
        for key, remote in tuple(self._remotes.items()):
            remote.ports, remote.found = remote.found, []
            interval, remote.interval = remote.interval, inf
            if not remote.ports:
                for number in remote.numbers:
                    self._waiting.pop(number, None)
                del self._remotes[key]
                continue
            if interval < inf and remote.liveness.is_due(now, interval):
                self._ask(remote, interval, now)
            self._report(remote)
            yield

    def _ask(self, remote: _Remote, interval: float, now: float) -> None:
        asked = remote.liveness.last_request
        remote.liveness.request(now, interval)
        self._number = (self._number + 1) & _NUMBER_MAX
        self._waiting[self._number] = remote
        remote.numbers.append(self._number)
        # A late reply is one, too, until as many are missing as make a remote silent.
        while len(remote.numbers) > MISSED_MAX:
            self._waiting.pop(remote.numbers.pop(0), None)
        # Any VNI will do, but one that has ended has no sockets.
        port, to = next((each for each in remote.ports if each[0].is_open), remote.ports[0])
        request = EchoMessage(
            EchoKind.REQUEST, None, port.config.dstport, self._token, self._number, echo.SIZE
        ).pack()
        try:
            path = _path_to(port, to)
            if path is not None:
                if self._send(path, request, remote, now) and asked is not None:
                    remote.liveness.on_refused(asked)
            else:
                _send_from_listener(port, request, to)
        except (OSError, VtepError) as error:
            log.debug("echo request to %s not sent: %s", remote.host, error)

    def _send(self, path: Sender, request: bytes, remote: _Remote, now: float) -> bool:
        """Send a request as a frame would be sent.

        Returns: True if ICMP port unreachable was received since the last request, or before.
        Raises: OSError.
        """
        is_refused = False
        port, _ = remote.ports[0]
        counters = port.segment.remote_counters.get(remote.host)
        sent = counters.tx_frames if counters is not None else 0
        for _ in range(2):  # The first result may be about an earlier datagram.
            octets, lost = path.send(memoryview(request), len(request), 0, now)
            is_refused |= lost is not None and path.last_icmp_error == errno.ECONNREFUSED
            if lost is not None and sent != remote.sent:
                port.segment.counters.drop(lost, remote.host)  # It was about a frame, perhaps.
            if octets:
                break
        remote.sent = sent
        return is_refused

    def _report(self, remote: _Remote) -> None:
        before, state = remote.state, remote.liveness.state
        if state is before:
            return
        remote.state = state
        if state is LivenessState.SILENT:
            log.warning(
                "remote %s is silent: it has answered before, and neither answers nor sends any "
                "more; pyvtep doctor --remote %s looks for the cause",
                *(remote.host, remote.host),
            )
        elif state is LivenessState.REFUSED:
            log.warning(
                "remote %s refuses datagrams: no VTEP receives at UDP port %d there, or a firewall "
                "rejects them",
                *(remote.host, remote.ports[0][1].port),
            )
        elif before is not LivenessState.NEVER_SEEN:
            log.info("remote %s is heard again", remote.host)
        if state is not LivenessState.NEVER_SEEN:
            for port, _ in remote.ports:
                for watcher in tuple(self.watchers):
                    watcher(state, port, remote.host)

    # --- replies ------------------------------------------------------------------------------

    def on_reply(self, reply: EchoMessage, host: str, now: float) -> bool:
        """Note an echo reply. Returns: False if it does not belong to a request of this object."""
        if reply.token != self._token:
            return False
        remote = self._waiting.get(reply.sequence)
        if remote is not None and remote.host == host:
            del self._waiting[reply.sequence]
            remote.liveness.on_reply(now, is_to_last=reply.sequence == remote.numbers[-1])
            remote.numbers.remove(reply.sequence)
        return True

    # --- upgrades -----------------------------------------------------------------------------

    def export(self, now: float) -> list[list[object]]:
        """Return a row for each remote, from which another process continues."""
        return [[*key, *remote.liveness.export(now)] for key, remote in self._remotes.items()]

    def restore(self, host: str, port: int, state: LivenessRow, now: float) -> None:
        """Continue with the state of another process, without a report of it."""
        remote = self._remotes.setdefault((host, port), _Remote(host))
        remote.liveness.restore(state, now)
        remote.state = remote.liveness.state


def _path_to(port: Port, to: Remote) -> Sender | None:
    """Return the path to a remote if there is one, or if it is cheap to open one."""
    paths = port.paths
    # Only a remote that entries use is released when they do so no more.
    if to not in paths and (len(paths) >= _PATHS_MAX or not port.fdb.members.use_count(to)):
        return None
    return paths[to]


def _send_from_listener(port: Port, request: bytes, to: Remote) -> None:
    for listener in port.listeners:
        if listener.version == version_of(to.host):
            listener.send_echo(request, to.host, to.port)
