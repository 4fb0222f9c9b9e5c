"""The speaker: a process with the BGP sessions, the tables of routes, and the local bridges.

It joins its parts: `DaemonLink` to the daemon that has started it, `Peers`, `Tables` and
`BridgeWatch`. Tables alone decide; the speaker carries out what follows from them.
"""

import asyncio
import gc
import logging
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtep import __version__
from vtep.config.evpn import EvpnSettings
from vtep.errors import VtepError
from vtep.evpn import bgp_sockets, speaker_views
from vtep.evpn.address_watch import AddressWatch
from vtep.evpn.announcement import Announcement
from vtep.evpn.bridges import BridgeWatch
from vtep.evpn.changes import Changes, EvpnFdbChange, EvpnNeighbourChange
from vtep.evpn.daemon_link import DaemonGoneError, DaemonLink
from vtep.evpn.daemon_writer import DaemonWriter
from vtep.evpn.first_ended import run_until_first
from vtep.evpn.former import Former
from vtep.evpn.local_entries import LocalHost, TapPlace
from vtep.evpn.peer import BgpPeer
from vtep.evpn.peers import Peers
from vtep.evpn.speaker_config import (
    SpeakerConfig,
    derive_router_id,
    segment_settings,
    speaker_settings,
)
from vtep.evpn.speaker_socket import SpeakerSocket
from vtep.evpn.tables import Tables
from vtep.wire.address import Address, without_scope
from vtep.wire.bgp.update import Update

if TYPE_CHECKING:
    from vtep.control.evpn_schema import EvpnSession
    from vtep.evpn.table_settings import SegmentSettings

log = logging.getLogger("vtep")

_REPORT_MIN_S, _REPORT_MAX_S = 1.0, 5.0
"""Seconds between two reports to the daemon: after changes, and without any.

The daemon takes a speaker as failed after 15 s without one: a busy machine may be 10 s late.
"""

_SYNC_S = 5.0
"""Seconds for the local entries of a VNI to be read, before sessions begin without them."""

_ROUTER_ID_S = 1.0
"""Interval of looks for an own address, while there is no route to any neighbour, in seconds."""

_COLLECT_AFTER = 50_000
"""New objects before the cyclic garbage collector visits them, in place of 700. Routes are in no
cycles, and with 10,000 of them collections took more time than the routes themselves."""

_PROBLEMS_LOGGED = 10
"""Deviations of a neighbour's messages that are logged a minute."""


class Speaker:
    """The speaker of one daemon. It receives the events of `Peers` and of `BridgeWatch`."""

    def __init__(self, link: DaemonLink) -> None:
        self._link = link
        self._writer = DaemonWriter(link, lambda vni: vni in self._segments, self._on_refused)
        self._socket = SpeakerSocket(self._show, self._clear)
        self._watch = BridgeWatch(self)
        self._addresses: AddressWatch | None = None
        self._config: SpeakerConfig | None = None
        self._router_id = IPv4Address(1)
        self._host = LocalHost()
        self._tables: Tables | None = None
        self._peers: Peers | None = None
        self._segments: dict[int, SegmentSettings] = {}
        self._synced: dict[int, asyncio.Event] = {}
        self._waiting: list[EvpnSession] = []
        """Sessions that cannot begin, while there is no own address towards a neighbour."""
        self._to_report = asyncio.Event()
        self._is_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._end = asyncio.Event()
        self._is_stopping = False
        self._logged = 0
        self._logged_since = 0.0

    # --- life -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until the daemon ends, or asks for it. Raises: VtepError."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end.set)
        loop.set_exception_handler(self._on_internal_error)
        try:
            await run_until_first(self._serve(), self._end.wait(), self._failure)
        finally:
            await self._stop()

    async def _serve(self) -> None:
        """Attach to the daemon, and run all parts until one ends. Raises: VtepError."""
        config = SpeakerConfig.parse(await self._link.attach())
        try:
            await self._socket.start(self._link.path, config.readers, config.changers)
        except VtepError as error:
            log.warning("EVPN: pyvtep evpn show is not available: %s", error)
        await self._watch.start()
        self._addresses = AddressWatch(self._on_addresses_changed)
        gc.freeze()  # Modules and configuration: they are no garbage.
        gc.set_threshold(_COLLECT_AFTER)
        await run_until_first(self._writer.run(), self._report(), self._follow(config))

    async def _stop(self) -> None:
        # The end of the sessions changes no entries: they stay for the next speaker.
        self._is_stopping = True
        if self._timer is not None:
            self._timer.cancel()
        if self._addresses is not None:
            self._addresses.close()
        if self._peers is not None:
            await self._peers.stop("pyvtep ends")
        await self._watch.stop()
        await self._socket.stop()
        self._link.close()

    def _on_internal_error(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """End this process: its tables may be wrong, and the next one begins with none."""
        error = context.get("exception")
        log.error("EVPN speaker: internal error: %s: %r", context["message"], error)
        log.debug("traceback:", exc_info=error)
        if not self._failure.done():
            self._failure.set_exception(VtepError(f"internal error: {error!r}; please report it"))

    # --- configuration --------------------------------------------------------------------------

    async def _follow(self, config: SpeakerConfig) -> None:
        """Take the configuration, and each later one, until there is no EVPN any more."""
        places: Mapping[int, TapPlace] = {}
        while config.settings is not None:
            places = config.places
            if config.version != __version__:
                log.warning(
                    "EVPN speaker: of version %s, while the daemon is of version %s; restart it "
                    "when traffic to this host may be interrupted for a second: pyvtep evpn "
                    "restart",
                    *(__version__, config.version),
                )
            later = await self._find_router_id(config, config.settings)
            if later is None:
                await self._configure(config, config.settings)
                later = await self._link.next_config(config.generation)
            config = SpeakerConfig.parse(later)
        await self._clean_up(places)

    async def _configure(self, config: SpeakerConfig, settings: EvpnSettings) -> None:
        tables = self._tables
        if tables is None:
            tables = self._tables = Tables(speaker_settings(settings, self._router_id))
            tables.set_host(self._host, time.monotonic())
        known = set(self._segments)
        # Before the tables have the VNI: they may have routes for it, whose entries come at once.
        # Meanwhile, events of sessions configure the tables by the former configuration.
        former = {
            vni: await self._read_former(vni, has_neighbours=config.segments[vni].config.proxy)
            for vni in config.segments.keys() - known
        }
        before, self._config = self._config, config
        self._configure_tables(tables, config, settings)
        # Now, since bridge entries of a VNI that is not watched any more cannot be deleted.
        self._apply()
        await self._watch.drain()
        for vni in config.segments.keys() - known:
            self._synced[vni] = asyncio.Event()
        self._watch.configure(config.places, learning=config.learning)
        for vni, left in former.items():
            await self._restore(tables, vni, left)
        for vni in config.segments.keys() & known:
            # Another port has the VNI now, and an empty FDB; or a user has flushed entries.
            if before is not None and (
                before.segments[vni].instance != config.segments[vni].instance
                or before.flushes != config.flushes
            ):
                tables.reinstall(vni)
        # In both, so that a router ID is the same for sessions and routes.
        settings = _with_router_id(settings, self._router_id)
        if self._peers is None:
            self._peers = Peers(
                *(settings, self, self._own_routes),
                local_addresses=config.locals,
                restarted=config.is_restarted,
            )
            await self._peers.start()
        else:
            await self._peers.configure(settings, local_addresses=config.locals)
            self._configure_tables(tables, config, settings)
        self._changed()

    def _configure_tables(
        self, tables: Tables, config: SpeakerConfig, settings: EvpnSettings
    ) -> None:
        self._segments = segment_settings(
            config, settings, self._router_id, self._own_addresses(settings), self._segments
        )
        tables.configure(
            self._segments, time.monotonic(), speaker_settings(settings, self._router_id)
        )

    def _own_addresses(self, settings: EvpnSettings) -> list[Address]:
        """Return own addresses on the underlay: those of sessions, else those of routes."""
        found: dict[Address, None] = {}
        for peer in self._peers or ():
            if peer.is_established and peer.local_address is not None:
                found[without_scope(peer.local_address)] = None
        for neighbor in settings.neighbor:
            local = neighbor.local or bgp_sockets.local_address_towards(
                neighbor.address, neighbor.port
            )
            if local is not None:
                found[without_scope(local)] = None
        # The address of a link is no address of a VTEP: others cannot reach it.
        return [each for each in found if not each.is_link_local]

    async def _find_router_id(
        self, config: SpeakerConfig, settings: EvpnSettings
    ) -> dict[str, Any] | None:
        """Set the BGP identifier; wait until there is an own address to derive it from.

        Returns: a later configuration, if there is one before such an address.
        """
        if settings.router_id is not None:
            self._router_id = settings.router_id
        if settings.router_id is not None or self._tables is not None:
            return None
        later: asyncio.Future[dict[str, Any]] | None = None
        try:
            while not (found := [*config.locals, *self._own_addresses(settings)]):
                if later is None:
                    later = asyncio.ensure_future(self._link.next_config(config.generation))
                    self._waiting = speaker_views.waiting_sessions(settings)
                    for each in self._waiting:
                        log.warning(
                            "EVPN session with %s: %s", each["neighbor"], each["last_error"]
                        )
                    self._to_report.set()
                await asyncio.wait([later], timeout=_ROUTER_ID_S)
                if later.done():
                    return later.result()
        finally:
            if later is not None:
                later.cancel()
            self._waiting = []
        self._router_id = derive_router_id(found)
        return None

    async def _read_former(self, vni: int, *, has_neighbours: bool) -> Former:
        """Return what a former speaker has left in the tables of a VNI that is not served yet."""
        try:
            entries = await self._link.call("fdb.show", vni=vni, extern_learn=True)
            # Without --proxy, there are none.
            neighbours = await self._link.call("neigh.show", vni=vni) if has_neighbours else []
        except DaemonGoneError:
            raise
        except VtepError as error:  # It was deleted meanwhile.
            log.debug("EVPN: vni %d: %s", vni, error)
            return Former()
        return Former.parse(vni, entries, neighbours)

    async def _restore(self, tables: Tables, vni: int, former: Former) -> None:
        """Take over what a former speaker has left, on the bridge port, too."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_SYNC_S):
                await self._synced[vni].wait()
        if former:
            log.info(
                *("EVPN: vni %d: %d MACs and %d VTEPs are to be confirmed", vni),
                *(len(former.macs), len(former.floods)),
            )
        tables.restore_stale(
            *(vni, former.macs, former.floods, former.neighbours),
            *(self._watch.remote_macs(vni), time.monotonic()),
        )

    async def _clean_up(self, places: Mapping[int, TapPlace]) -> None:
        """Remove all entries: EVPN is not configured any more; it was, for TAPs at `places`."""
        if self._tables is None:
            # This process has written none, but a former one may have.
            await self._watch.remove_remains(places)
            return
        self._tables.configure({}, time.monotonic())
        self._apply()
        await self._watch.drain()
        await self._writer.drain()

    # --- changes --------------------------------------------------------------------------------

    def _changed(self) -> None:
        """Carry out what follows from the tables, once all events of this turn were taken."""
        self._to_report.set()
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._apply)

    def _apply(self) -> None:
        self._is_scheduled = False
        if self._tables is None or self._is_stopping:
            return
        again = self._tables.tick(time.monotonic())
        changes = self._tables.take()
        if self._timer is not None:
            self._timer.cancel()
        if again is not None:
            pause = max(0.0, again - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(pause, self._apply)
        if changes:
            self._to_report.set()
            self._carry_out(changes)

    def _on_refused(
        self, vni: int, change: EvpnFdbChange | EvpnNeighbourChange, reason: str
    ) -> None:
        """Handle a change that the daemon has refused."""
        if self._tables is not None:
            self._tables.note_refused(vni, change, reason, time.monotonic())
            self._changed()

    def _carry_out(self, changes: Changes) -> None:
        for line in changes.log:
            log.warning("EVPN: %s", line)
        self._writer.add(changes)
        if changes.bridge:
            self._watch.apply(changes.bridge)
        if self._peers is not None:
            if changes.withdraw:
                self._peers.withdraw(changes.withdraw)
            if changes.announce:
                self._peers.announce(changes.announce)

    # --- events of sessions ---------------------------------------------------------------------

    def on_established(self, peer: BgpPeer) -> None:
        """Handle a new session."""
        tables, config = self._tables, self._config
        if tables is None or config is None or config.settings is None:
            return
        tables.peer_up(peer.name, time.monotonic(), preserved=peer.preserves_forwarding)
        if any(not each.config.local for each in config.segments.values()):
            self._configure_tables(tables, config, config.settings)
        self._changed()

    def _on_addresses_changed(self) -> None:
        """Follow the addresses of this host: sessions, and the VTEP address of VNIs."""
        tables, config = self._tables, self._config
        if self._peers is None or tables is None or config is None or config.settings is None:
            return
        self._peers.check_addresses()
        if any(not each.config.local for each in config.segments.values()):
            self._configure_tables(tables, config, config.settings)
        self._changed()

    def on_update(self, peer: BgpPeer, update: Update) -> None:
        """Handle routes of a neighbour."""
        if self._tables is None:
            return
        for problem in update.problems:
            self._log_problem(peer, problem)
        self._tables.update(peer.name, update, time.monotonic())
        self._changed()

    def _log_problem(self, peer: BgpPeer, problem: str) -> None:
        now = time.monotonic()
        if now - self._logged_since > 60:
            self._logged, self._logged_since = 0, now
        self._logged += 1
        if self._logged <= _PROBLEMS_LOGGED:
            log.warning("EVPN: neighbor %s: %s", peer.name, problem)

    def on_end_of_rib(self, peer: BgpPeer) -> None:
        """Handle the end of the initial routes of a neighbour."""
        if self._tables is not None:
            self._tables.end_of_rib(peer.name, time.monotonic())
        self._changed()

    def on_down(self, peer: BgpPeer, reason: str, retain: float | None) -> None:
        """Handle the end of a session."""
        del reason  # Logged by the session.
        if self._tables is not None:
            self._tables.peer_down(peer.name, time.monotonic(), retain)
        self._changed()

    def _own_routes(self, _peer: BgpPeer) -> Iterable[Announcement]:
        return self._tables.own_routes() if self._tables is not None else ()

    # --- events of bridges ----------------------------------------------------------------------

    def mac_added(self, vni: int, mac: bytes, *, static: bool, gateway: bool, own: bool) -> None:
        """Handle a local MAC."""
        if self._tables is not None and vni in self._segments:
            now = time.monotonic()
            self._tables.mac_added(vni, mac, now, static=static, gateway=gateway, own=own)
            self._changed()

    def mac_removed(self, vni: int, mac: bytes) -> None:
        """Handle the end of a local MAC."""
        if self._tables is not None and vni in self._segments:
            self._tables.mac_removed(vni, mac, time.monotonic())
            self._changed()

    def neighbour_added(self, vni: int, ip: Address, mac: bytes, *, router: bool) -> None:
        """Handle an address of the bridge's network."""
        if self._tables is not None and vni in self._segments:
            self._tables.neighbour_added(vni, ip, mac, time.monotonic(), router=router)
            self._changed()

    def neighbour_removed(self, vni: int, ip: Address) -> None:
        """Handle the end of an address."""
        if self._tables is not None and vni in self._segments:
            self._tables.neighbour_removed(vni, ip, time.monotonic())
            self._changed()

    def host_changed(self, host: LocalHost) -> None:
        """Handle addresses and MACs of this host."""
        self._host = host
        if self._tables is not None:
            self._tables.set_host(host, time.monotonic())
            self._changed()

    def synced(self, vni: int) -> None:
        """Handle the end of the first local entries of a VNI."""
        if vni in self._synced:
            self._synced[vni].set()

    def segment_lost(self, vni: int) -> None:
        """Handle the loss of a TAP."""
        if self._tables is not None and vni in self._segments:
            self._tables.segment_lost(vni, time.monotonic())
            self._changed()

    # --- views ----------------------------------------------------------------------------------

    async def _report(self) -> None:
        """Send reports to the daemon: after changes, and from time to time."""
        while True:
            await self._link.report(self._summary())
            await asyncio.sleep(_REPORT_MIN_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(_REPORT_MAX_S - _REPORT_MIN_S):
                    await self._to_report.wait()
            self._to_report.clear()

    def _summary(self) -> dict[str, Any]:
        now = time.monotonic()
        problems = speaker_views.problems(None if self._tables is None else self._segments)
        found = speaker_views.report(self._tables, self._peers, now, problems)
        return found if self._peers is not None else {**found, "sessions": self._waiting}

    def _show(self, what: str, vni: int | None, kind: int | None, mac: bytes | None) -> Any:
        now = time.monotonic()
        if what == "sessions":
            return self._waiting or speaker_views.sessions(self._peers, now)
        if what == "summary":
            return speaker_views.summary(self._summary(), self._tables, now, vni)
        return speaker_views.rows(self._tables, what, now, vni=vni, kind=kind, mac=mac)

    def _clear(self, mac: bytes, vni: int | None) -> int:
        if self._tables is None:
            return 0
        count = self._tables.clear_duplicate(mac, vni, time.monotonic())
        self._changed()
        return count


def _with_router_id(settings: EvpnSettings, router_id: IPv4Address) -> EvpnSettings:
    return EvpnSettings(**{**settings.to_json(), "router_id": router_id})


async def run(path: Path, token: str, on_hangup: Callable[[], None]) -> None:
    """Run the speaker of the daemon with the control socket `path`, which knows it by the token.

    `on_hangup` is called at SIGHUP.
    """
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, on_hangup)
    try:
        await Speaker(DaemonLink(path, token)).run()
    except DaemonGoneError as gone:
        log.info("EVPN speaker: ends: %s", gone)
