"""The supervisor of the speaker: the daemon's side of EVPN.

The speaker is a process of its own (`vtep.evpn.speaker`), so that a fault there does not stop
forwarding, and load here does not starve its sessions. It connects to the control socket, and shows
by a token that it is the process that this one has started. If it ends, it is started again, and
what it has put into the tables stays meanwhile, for the time of `stale-time` at most.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtep import __version__
from vtep.config import Settings
from vtep.control import views
from vtep.control.evpn_schema import (
    EvpnReport,
    EvpnSession,
    EvpnSpeaker,
    EvpnStatus,
)
from vtep.control.params import Params
from vtep.control.server import Server
from vtep.daemon.port import Port
from vtep.daemon.vtep import Vtep
from vtep.errors import VtepError
from vtep.evpn.fabric import REPORT
from vtep.evpn.process import BY_REQUEST, SpeakerProcess
from vtep.evpn.remains import Removals
from vtep.evpn.report_parts import ReportCollector
from vtep.evpn.reports import aged, empty_report, silent_since
from vtep.evpn.silence import SilenceAlarm
from vtep.evpn.speaker_config import SOCKET_SUFFIX

if TYPE_CHECKING:
    from vtep.config.evpn import EvpnSettings

log = logging.getLogger("vtep")

_NO_EVPN = "there is no EVPN: add a table [evpn] to the file, and reload"

_STARTED = "it is started again, and its entries stay meanwhile"
_TRIED = "until it can be started, its entries stay for the time of stale-time at most"

_BACKOFF_MIN_S, _BACKOFF_MAX_S = 0.1, 5.0
"""Pause before the speaker is started again; it doubles while the speaker does not last."""

_LASTED_S = 10.0
"""Seconds for which a speaker must have run for the pause to be the shortest one again."""

_END_S = 1.0
"""Seconds for the speaker to end its sessions."""

_CLEAN_UP_S = 15.0
"""Seconds for the speaker to remove its entries and to end, once there is to be no EVPN."""

_CONCERNS = frozenset(
    (
        *("evpn", "route_target", "route_target_import", "route_target_export", "rd"),
        *("local", "proxy", "learning", "anycast_gateway", "bridge", "docker_bridge"),
        *("docker_network", "dstport"),
    )
)
"""Options of a VNI that the speaker has to know of."""


class Supervisor:
    """Starts and watches the speaker of a VTEP, and tells it what is configured."""

    def __init__(self, vtep: Vtep, options: Sequence[str] = ()) -> None:
        self._vtep = vtep
        self._options = options
        self._settings: EvpnSettings | None = None
        self._process: Settings | None = None
        self._former: Mapping[str, Any] = {}  # Settings of the replaced process, to be compared.
        self._server: Server | None = None
        self._wanted = asyncio.Event()
        """Set while there is to be a speaker."""
        self._speaker: SpeakerProcess | None = None
        self._attached = False
        self._starts = 0
        self._since = time.monotonic()
        self._running_since: float | None = None
        """Since when the speaker runs, also with a former process: monotonic time in seconds."""
        self._failed = False
        self._version: str | None = None
        self._last_error: str | None = None
        self._report: EvpnReport = empty_report()
        self._collector = ReportCollector()
        self._reported: float | None = None
        self._generation = 1
        self._waiting: list[asyncio.Future[dict[str, Any]]] = []
        self._instances: dict[int, tuple[Port | None, int]] = {}
        """By VNI: its port, and a number that another port of this VNI has not. The FDB of another
        port is empty."""
        self._last_instance = 0
        self._flushes = 0
        self._restarting: list[asyncio.Future[dict[str, int]]] = []
        self._removals = Removals()
        self._alarm = SilenceAlarm()
        self._stale: asyncio.TimerHandle | None = None
        vtep.watch(self._on_port_changed)

    # --- configuration --------------------------------------------------------------------------

    def configure(self, settings: Settings) -> None:
        """Take the settings of the process, at the start and after a reload."""
        before, self._settings, self._process = self._settings, settings.evpn, settings
        if settings.evpn is not None:
            if self._former and (keys := settings.evpn.differences(self._former)):
                log.info("upgrade: [evpn] changed (%s)", ", ".join(keys))
            self._former = {}
        self._vtep.evpn_status = self.status if settings.evpn is not None else None
        self._vtep.on_flushed = self._on_flushed if settings.evpn is not None else None
        if settings.evpn is not None:
            self._wanted.set()
            if before is None and not self._attached:
                self._expect()
        else:
            self._wanted.clear()
            self._cancel_stale()
            if self._speaker is None:
                self._refuse_restarts(_NO_EVPN)
            else:
                # It removes its entries first, and may have many.
                loop = asyncio.get_running_loop()
                loop.call_later(_CLEAN_UP_S, self._kill_unwanted, self._speaker)
        self._notify()

    def on_serving(self, server: Server) -> None:
        """Note the control server, to which the speaker connects."""
        self._server = server

    def _on_port_changed(self, event: str, port: Port, values: Mapping[str, object]) -> None:
        """Tell the speaker of a change of a VNI that takes part, or has taken part."""
        if event == "changed" and values and _CONCERNS.isdisjoint(values):
            return
        if port.config.evpn or port.config.vni in self._instances:
            self._notify()
        if event == "changed" and values.get("evpn") is False:
            # Here as well: the speaker may end before it has.
            self._remove([port])
        elif port.config.evpn and self._attached:
            self._removals.cancel([port])

    def _on_flushed(self) -> None:
        """Tell the speaker to give its entries again, which a user has flushed with others."""
        self._flushes += 1
        self._notify()

    def _notify(self) -> None:
        """Give the speaker the present configuration, once all of it has changed."""
        self._generation += 1
        waiting, self._waiting = self._waiting, []
        if waiting:
            asyncio.get_running_loop().call_soon(self._answer, waiting)

    def _answer(self, waiting: "list[asyncio.Future[dict[str, Any]]]") -> None:
        config = self._config()
        for each in waiting:
            if not each.done():
                each.set_result(config)

    def _config(self) -> dict[str, Any]:
        """Return the configuration for the speaker, with the passwords."""
        ports = [port for port in self._vtep.ports.values() if port.config.evpn]
        instances: dict[int, tuple[Port | None, int]] = {}
        for port in ports:
            vni = port.config.vni
            known, number = self._instances.get(vni, (None, 0))
            if known is not port:
                number = self._last_instance = self._last_instance + 1
            instances[vni] = (port, number)
        self._instances = instances
        process = self._process
        return {
            "generation": self._generation,
            "version": __version__,
            "settings": None if self._settings is None else self._settings.to_json(),
            "readers": None if process is None else process.control_group,
            "changers": None if process is None else process.control_admin_group,
            "is_restarted": self._starts > 1,
            "flushes": self._flushes,
            "segments": [
                {
                    "instance": instances[port.config.vni][1],
                    "tap": port.tap,
                    "bridge": port.effective.bridge,
                    "gateways": [str(each) for each in port.effective.anycast_gateway],
                    "options": views.options(port.config),
                }
                for port in (ports if self._settings is not None else ())
            ],
        }

    # --- methods of the control socket ----------------------------------------------------------

    def attach(self, given: Params) -> dict[str, Any]:
        """Admit the speaker. Returns: the configuration. Raises: VtepError for another process."""
        speaker = self._check(given)
        if not self._attached:
            self._since = time.monotonic()
            self._running_since = self._running_since or self._since
            log.info("EVPN speaker, process %d: runs", speaker.pid)
            # Not if it attaches again: one that does so without end does not report.
            self._alarm.on_report(speaker)
            self._removals.cancel(port for port in self._vtep.ports.values() if port.config.evpn)
        speaker.is_proven = True
        self._attached = True
        self._failed = False
        self._version = given.text("version")
        self._cancel_stale()
        return self._config()

    def config(self, given: Params) -> Any:
        """Return the configuration, or a future of it if it is that of generation `after`."""
        self._check(given)
        if given.number("after", 0, 1 << 62) != self._generation:
            return self._config()
        waiting: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting = [each for each in self._waiting if not each.done()]
        self._waiting.append(waiting)
        return waiting

    def report(self, given: Params) -> None:
        """Keep the report of the speaker, for the status, once all parts of it have come."""
        speaker = self._check(given)
        number = given.number("part", 0, 1 << 32) or 0
        more, part = given.flag("more") or False, given.objects(*REPORT)
        report = self._collector.add(part.items(), number, more=more)
        if report is None:
            return
        before, self._report = self._report["sessions"], report
        self._reported = time.monotonic()
        self._notify_sessions(_established(before), _established(report["sessions"]))
        self._vtep.unmatched.replace(
            (each["vtep"], each["neighbor"], each["route_targets"])
            for each in reversed(report["unmatched"])  # The first one of a VTEP counts.
        )
        self._alarm.on_report(speaker)

    def _notify_sessions(self, before: frozenset[str], now: frozenset[str]) -> None:
        """Tell the watchers of the VTEP which BGP sessions have come up, and which have ended."""
        changes = [("down", each) for each in sorted(before - now)]
        changes += [("established", each) for each in sorted(now - before)]
        for watcher in self._vtep.evpn_watchers:
            for what, neighbor in changes:
                watcher(what, neighbor)

    def restart(self) -> "asyncio.Future[dict[str, int]]":
        """End the speaker, and start it again. Returns: a future of its process."""
        future: asyncio.Future[dict[str, int]] = asyncio.get_running_loop().create_future()
        if not self._wanted.is_set():
            raise VtepError(_NO_EVPN)
        self._restarting.append(future)
        if self._speaker is not None:
            log.info("EVPN speaker, process %d: to be restarted", self._speaker.pid)
            self._speaker.send(signal.SIGTERM)
            asyncio.get_running_loop().call_later(2 * _END_S, self._kill, self._speaker)
        return future

    def _refuse_restarts(self, why: str) -> None:
        for future in self._restarting:
            if not future.done():
                future.set_exception(VtepError(why))
        self._restarting.clear()

    def _check(self, given: Params) -> SpeakerProcess:
        """Return the speaker. Raises: VtepError if another process calls."""
        if self._speaker is None or not self._speaker.has_token(given.text("token") or ""):
            raise VtepError("this process is not the EVPN speaker that was started last")
        return self._speaker

    # --- state ----------------------------------------------------------------------------------

    def status(self) -> EvpnStatus:
        """Return the state of EVPN."""
        now = time.monotonic()
        state = "running" if self._attached else "failed" if self._failed else "starting"
        since = self._since
        silent = silent_since(since, self._reported, now)
        if self._attached and silent is not None:
            state, since = "silent", silent
        elif self._attached:
            since = self._running_since or since
        speaker: EvpnSpeaker = {
            "pid": self._speaker.pid if self._speaker is not None else None,
            "state": state,
            "age": now - since,
            "version": self._version,
            "restarts": max(0, self._starts - 1),
            "last_error": self._last_error,
            "report_age": None if self._reported is None else now - self._reported,
        }
        return aged(self._report, speaker)

    def state(self) -> dict[str, Any]:
        """Return what a process that takes over must know of the speaker."""
        if self._speaker is None:
            return {}
        return {
            "pid": self._speaker.pid,
            "token": self._speaker.token,
            "starts": self._starts,
            "running_since": self._running_since,
            "generation": self._generation,
            "last_error": self._last_error,
            "last_instance": self._last_instance,
            "flushes": self._flushes,
            "settings": None if self._settings is None else self._settings.to_json(),
            "instances": {str(vni): number for vni, (_, number) in self._instances.items()},
        }

    def pidfd(self) -> int | None:
        """Return the descriptor of the speaker's process; None if it does not run."""
        return None if self._speaker is None else self._speaker.pidfd

    def adopt(
        self, state: Mapping[str, Any], ports: Mapping[int, Port], pidfd: int | None = None
    ) -> None:
        """Take over the speaker of the process that this one replaces, and the numbers of ports.

        `pidfd` is that of the speaker, which this object owns from now on.
        """
        try:
            pid, token = int(state["pid"]), str(state["token"])
            self._starts = int(state["starts"])
            self._generation = int(state["generation"]) + 1
            self._last_error = state["last_error"]
            since = state.get("running_since")  # Older processes do not give it.
            self._running_since = None if since is None else float(since)
            self._last_instance = int(state["last_instance"])
            self._flushes = int(state["flushes"])
            self._instances = {
                int(vni): (ports.get(int(vni)), int(number))
                for vni, number in state["instances"].items()
            }
            self._former = dict(state.get("settings") or {})  # Older processes do not give it.
            self._speaker = SpeakerProcess(pid, token, None, pidfd)
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            log.warning(
                "the EVPN speaker of the old process is lost: %r; another is started", error
            )
            if pidfd is not None:
                os.close(pidfd)

    # --- the process ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Run a speaker while EVPN is configured, and restart it when it ends, until cancelled."""
        pause = _BACKOFF_MIN_S
        while True:
            await self._wanted.wait()
            began = time.monotonic()
            if self._speaker is None:
                try:
                    self._start()
                except (OSError, VtepError) as error:
                    self._on_failed(f"cannot start the EVPN speaker: {error}", _TRIED)
            if self._speaker is not None:
                self._on_started(self._speaker)
                await self._watch(self._speaker)
            if time.monotonic() - began > _LASTED_S or self._restarting:
                pause = _BACKOFF_MIN_S
            await asyncio.sleep(pause)
            pause = min(2 * pause, _BACKOFF_MAX_S)

    def _start(self) -> None:
        """Start a speaker. Raises: OSError; VtepError without a control socket."""
        if self._server is None or self._server.path is None:
            raise VtepError("it needs the control socket (--control)")
        if not self._server.path.is_socket():
            raise VtepError(
                f"the control socket {self._server.path}, to which it connects, was removed; "
                "restart pyvtep, which creates it"
            )
        self._since = time.monotonic()
        self._version = self._running_since = None
        self._speaker = SpeakerProcess.start(self._server.path, self._options)
        self._starts += 1

    def _on_started(self, speaker: SpeakerProcess) -> None:
        for future in self._restarting:
            if not future.done():
                future.set_result({"pid": speaker.pid})
        self._restarting.clear()
        if not self._attached:
            self._expect()
            self._alarm.on_started(speaker)

    async def _watch(self, speaker: SpeakerProcess) -> None:
        """Wait for the end of a speaker, and note how it has ended."""
        await speaker.ended.wait()
        has_attached = self._attached
        self._speaker, self._attached = None, False
        why = speaker.reap()
        self._notify_sessions(_established(self._report["sessions"]), frozenset())
        self._report, self._reported = empty_report(), None
        self._vtep.unmatched.replace(())
        self._alarm.cancel()
        if not self._wanted.is_set():
            log.info("EVPN speaker ended: EVPN is not configured any more")
            self._refuse_restarts(_NO_EVPN)
            self._cancel_stale()
            self._remove(self._vtep.ports.values())
        elif self._restarting:
            self._expect()
        elif why == BY_REQUEST and has_attached:  # Such as SIGTERM to all processes of a unit.
            log.info("EVPN speaker ended by request")
            self._expect()
        else:
            if why == BY_REQUEST:
                path = self._server.path if self._server is not None else None
                why = f"it has not reached this process at {path}"
            self._on_failed(f"EVPN speaker ended unexpectedly: {why}")

    def _on_failed(self, problem: str, then: str = _STARTED) -> None:
        if not self._failed or problem != self._last_error:
            log.error("%s; %s", problem, then)
        self._refuse_restarts(problem)
        self._failed, self._last_error = True, problem
        self._since = time.monotonic()
        self._expect()

    def _expect(self) -> None:
        """Remove the entries of EVPN unless a speaker attaches in time to confirm them."""
        if self._stale is None and self._settings is not None:
            seconds = self._settings.stale_time
            self._stale = asyncio.get_running_loop().call_later(seconds, self._on_stale)

    def _cancel_stale(self) -> None:
        if self._stale is not None:
            self._stale.cancel()
            self._stale = None

    def _on_stale(self) -> None:
        self._stale = None
        log.warning("no EVPN speaker runs, and its entries are stale: they are removed")
        self._remove(port for port in self._vtep.ports.values() if port.config.evpn)

    def _remove(self, ports: Iterable[Port]) -> None:
        """Remove the entries of EVPN from some ports, in slices."""
        for port in list(ports):
            # A speaker that has missed this installs its entries again by the new number.
            self._instances.pop(port.config.vni, None)
            self._removals.start([port])

    def _kill_unwanted(self, speaker: SpeakerProcess) -> None:
        if not self._wanted.is_set():
            self._kill(speaker)

    @staticmethod
    def _kill(speaker: SpeakerProcess) -> None:
        if not speaker.ended.is_set():
            speaker.send(signal.SIGKILL)

    def reopen_log(self) -> None:
        """Make the speaker open its log file anew, once it is able to."""
        if self._speaker is not None and self._attached:
            self._speaker.send(signal.SIGHUP)

    async def stop(self, *, handed_over: bool) -> None:
        """End the speaker, with its sessions; or leave it to the process that has taken over."""
        self._alarm.cancel()
        self._cancel_stale()
        speaker, self._speaker = self._speaker, None
        if speaker is None:
            return
        if handed_over:
            speaker.leave()
            return
        speaker.send(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await speaker.ended.wait()
        if not speaker.ended.is_set():
            speaker.send(signal.SIGKILL)
            await speaker.ended.wait()
        speaker.reap()
        if self._server is not None and self._server.path is not None:
            _socket_of(self._server.path).unlink(missing_ok=True)


def _socket_of(control: Path) -> Path:
    return control.with_suffix(SOCKET_SUFFIX)


def _established(sessions: Iterable[EvpnSession]) -> frozenset[str]:
    return frozenset(each["neighbor"] for each in sessions if each["state"] == "established")
