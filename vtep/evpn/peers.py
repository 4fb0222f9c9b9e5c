"""All BGP sessions: connections that neighbours open, own routes, and changes of the settings."""

import asyncio
import logging
import socket
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address

from vtep.config.evpn import EvpnSettings
from vtep.config.evpn_neighbors import BGP_PORT
from vtep.evpn import bgp_sockets
from vtep.evpn.announcement import Announcement
from vtep.evpn.peer import BgpPeer, PeerEvents
from vtep.evpn.peer_options import PeerOptions
from vtep.wire.address import Address, without_scope
from vtep.wire.bgp.errors import Cease
from vtep.wire.bgp.evpn import Route

log = logging.getLogger("vtep")

_LISTEN_INTERVAL_S = 5.0
"""Seconds between two looks at which local addresses there are to listen on."""

_STOP_S = 0.5
"""Seconds in which neighbours must take the last message at the end."""

_ACCEPTS_PER_TURN = 16


class _Listener:
    """A listening socket on one local address, and the passwords that were set on it."""

    def __init__(self, local: Address, port: int) -> None:
        self.endpoint = bgp_sockets.endpoint_of(local, port)
        self.sock = bgp_sockets.listen(local, port)
        self.passwords: dict[Address, str] = {}

    def set_passwords(self, wanted: dict[Address, str]) -> None:
        """Set the password of each peer, by address. Raises: OSError."""
        for peer in self.passwords.keys() - wanted.keys():
            bgp_sockets.set_password(self.sock, peer, None)
            del self.passwords[peer]
        for peer, password in wanted.items():
            if self.passwords.get(peer) != password:
                bgp_sockets.set_password(self.sock, peer, password)
                self.passwords[peer] = password


def _passwords(options: Iterable[PeerOptions], local: Address) -> dict[Address, str]:
    """Return the passwords for a listening socket, by the address of the peer without a scope.

    Each neighbour that can connect to `local` is in it, also if its session is expected on another
    address: otherwise it could do without a signature there.
    """
    return {
        without_scope(each.neighbor.address): each.password
        for each in options
        if each.password is not None
        and each.neighbor.address.version == local.version
        and _scope(each.neighbor.address) in (None, _scope(local))
    }


def _scope(address: Address) -> str | None:
    return address.scope_id if isinstance(address, IPv6Address) else None


class Peers:
    """The sessions with all neighbours of the settings, in the running event loop.

    Args:
        settings: the neighbours, and our AS.
        events: receives what the sessions do.
        own_routes: returns all own routes, for a session that was established, or a peer that wants
            them again.
        local_addresses: addresses of this host to connect from, of which each session takes the
            first one of its version; without one, the kernel chooses.
        restarted: True if this process replaces a speaker whose entries were kept (RFC 4724).
        listen_port: the TCP port to listen on.
    """

    def __init__(
        self,
        settings: EvpnSettings,
        events: PeerEvents,
        own_routes: Callable[[BgpPeer], Iterable[Announcement]],
        *,
        local_addresses: Sequence[Address] = (),
        restarted: bool = False,
        listen_port: int = BGP_PORT,
    ) -> None:
        self._settings = settings
        self._events = events
        self._own_routes = own_routes
        self._local_addresses = tuple(local_addresses)
        self._restarted = restarted
        self._listen_port = listen_port
        self._router_id: IPv4Address | None = None
        self._peers: dict[Address, BgpPeer] = {}
        self._ending: set[BgpPeer] = set()
        """Peers that are not configured any more, while their last messages are sent."""
        self._listeners: dict[Address, _Listener] = {}
        self._listen_problems: dict[Address, str] = {}
        self._listen_timer: asyncio.TimerHandle | None = None
        self._all_ended = asyncio.Event()

    def __iter__(self) -> Iterator[BgpPeer]:
        """Iterate over the neighbours in the order of the settings."""
        return iter(self._peers.values())

    @property
    def router_id(self) -> IPv4Address | None:
        """Our BGP identifier; None before the first connection if it must be derived from that.

        It is that of the settings, else the first of our local addresses, else the local address
        of the first connection. One without IPv4 has a checksum of its address (RFC 6286: it needs
        to be unique in the AS, and no address).
        """
        if self._settings.router_id is not None:
            return self._settings.router_id
        if self._router_id is None:
            for address in self._local_addresses:
                if isinstance(address, IPv4Address):
                    self._router_id = address
                    break
        return self._router_id

    @property
    def problems(self) -> list[str]:
        """Lines about what does not work beside the sessions, such as listening."""
        return list(self._listen_problems.values())

    async def start(self) -> None:
        """Listen, and begin to connect to all neighbours."""
        self._update_listeners()
        for options in self._wanted().values():
            self._add(options)
        self._restarted = False

    async def stop(self, reason: str = "") -> None:
        """End all sessions with a Cease, which has `reason` for the operators of the neighbours.

        Returns after half a second at most.
        """
        if self._listen_timer is not None:
            self._listen_timer.cancel()
        for local in list(self._listeners):
            self._close_listener(local)
        for address in list(self._peers):
            self._remove(address, Cease.ADMINISTRATIVE_SHUTDOWN, reason)
        self._note_link_ended()
        try:
            async with asyncio.timeout(_STOP_S):
                await self._all_ended.wait()
        except TimeoutError:
            late = [link for peer in self._ending for link in peer.lingering]
            log.info("EVPN: %d neighbors did not take the last message in time", len(late))
            for link in late:
                link.abort()

    async def configure(
        self, settings: EvpnSettings, *, local_addresses: Sequence[Address] | None = None
    ) -> None:
        """Take new settings. Sessions are reset only if what they depend on has changed."""
        self._settings = settings
        if local_addresses is not None:
            self._local_addresses = tuple(local_addresses)
        wanted = self._wanted()
        reset: dict[Address, BgpPeer] = {}
        for address, peer in list(self._peers.items()):
            if address not in wanted:
                self._remove(address, Cease.PEER_DECONFIGURED)
            elif not peer.take_options(wanted[address], self._local_addresses):
                self._remove(address, Cease.OTHER_CONFIGURATION_CHANGE)
                reset[address] = peer
        self._update_listeners()
        for address, options in wanted.items():
            if address not in self._peers:
                self._add(options)
            if address in reset:
                self._peers[address].was_established = reset[address].was_established
        self._peers = {address: self._peers[address] for address in wanted}

    def check_addresses(self) -> None:
        """Follow a change of the addresses of this host."""
        for peer in self._peers.values():
            peer.check_addresses()
        self._update_listeners()

    def announce(self, announcements: Iterable[Announcement]) -> None:
        """Announce own routes to all established neighbours."""
        routes = list(announcements)
        for peer in self._peers.values():
            peer.announce(routes)

    def withdraw(self, routes: Iterable[Route]) -> None:
        """Withdraw own routes from all neighbours that have them."""
        gone = list(routes)
        for peer in self._peers.values():
            peer.withdraw(gone)

    # --- peers ------------------------------------------------------------------------------------

    def _wanted(self) -> dict[Address, PeerOptions]:
        return {
            neighbor.address: PeerOptions.of(self._settings, neighbor, self._local_addresses)
            for neighbor in self._settings.neighbor
        }

    def _add(self, options: PeerOptions) -> None:
        peer = BgpPeer(
            options, self._events, self._own_routes, self._choose_router_id, self._note_link_ended
        )
        peer.session.is_restarting = self._restarted
        self._peers[options.neighbor.address] = peer
        peer.start()

    def _remove(self, address: Address, cease: Cease, text: str = "") -> None:
        peer = self._peers.pop(address)
        self._ending.add(peer)
        peer.stop(cease, text)

    def _note_link_ended(self) -> None:
        self._ending = {peer for peer in self._ending if peer.lingering}
        if not self._ending:
            self._all_ended.set()
        else:
            self._all_ended.clear()

    def _choose_router_id(self, local: Address) -> IPv4Address:
        if self.router_id is not None:
            return self.router_id
        if isinstance(local, IPv4Address):
            self._router_id = local
        else:
            self._router_id = IPv4Address(zlib.crc32(local.packed) or 1)
        log.info("EVPN: the router ID is %s; set router-id for another one", self._router_id)
        return self._router_id

    # --- listening --------------------------------------------------------------------------------

    def _update_listeners(self) -> None:
        """Listen on the local address of each session, and again in some seconds.

        Not on all addresses: another BGP speaker of this host may have those.
        """
        if self._listen_timer is not None:
            self._listen_timer.cancel()
        loop = asyncio.get_running_loop()
        self._listen_timer = loop.call_later(_LISTEN_INTERVAL_S, self._update_listeners)
        options = list(self._wanted().values()) if self._settings.listen else []
        addresses: dict[Address, None] = {}
        for each in options:
            peer = each.neighbor.address
            local = each.local or bgp_sockets.local_address_towards(peer, each.neighbor.port)
            if local is not None:
                addresses[local] = None
        for local in self._listeners.keys() - addresses.keys():
            self._close_listener(local)
        for local in self._listen_problems.keys() - addresses.keys():
            del self._listen_problems[local]
        for local in addresses:
            self._listen(local, _passwords(options, local))

    def _listen(self, local: Address, passwords: dict[Address, str]) -> None:
        listener = self._listeners.get(local)
        try:
            if listener is not None:
                if listener.endpoint == bgp_sockets.endpoint_of(local, self._listen_port):
                    listener.set_passwords(passwords)
                    return
                self._close_listener(local)  # The device was created again, with another index.
            listener = _Listener(local, self._listen_port)
            try:
                # Before listen(), so that no connection without a signature is ever accepted.
                listener.set_passwords(passwords)
                bgp_sockets.start_listening(listener.sock)
            except OSError:
                listener.sock.close()
                raise
        except (OSError, bgp_sockets.SocketError) as error:
            if local in self._listeners:
                self._close_listener(local)
            self._note_listen_problem(local, error)
            return
        self._listen_problems.pop(local, None)
        self._listeners[local] = listener
        loop = asyncio.get_running_loop()
        loop.add_reader(listener.sock.fileno(), self._accept, listener.sock)

    def _note_listen_problem(self, local: Address, error: Exception) -> None:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        line = (
            f"cannot listen on {local}, TCP port {self._listen_port}: {reason}; sessions are "
            "opened from this side only"
        )
        if self._listen_problems.get(local) != line:
            self._listen_problems[local] = line
            log.warning("EVPN: %s", line)

    def _close_listener(self, local: Address) -> None:
        listener = self._listeners.pop(local)
        asyncio.get_running_loop().remove_reader(listener.sock.fileno())
        listener.sock.close()

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, name = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # Such as too many open files: the socket stays readable, and would be tried without
                # a pause. It is opened again by the timer.
                for local, listener in list(self._listeners.items()):
                    if listener.sock is listening:
                        self._close_listener(local)
                        self._note_listen_problem(local, error)
                return
            address = bgp_sockets.address_of(name)
            peer = self._peers.get(address)
            if peer is None:
                log.debug("EVPN: refused a connection of %s, which is no neighbor", address)
                sock.close()
                continue
            try:
                sock.setblocking(False)
                bgp_sockets.set_options(sock)
                peer.accept(sock)
            except OSError as error:  # The connection has ended already.
                log.debug("EVPN: connection of %s: %s", address, error)
                sock.close()
