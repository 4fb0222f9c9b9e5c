"""Probing for addresses and defending them on the bridges of networks, by packet sockets.

All of it runs in the event loop of one thread. So claims need no locks, and an answer to a probe of
another host waits for no method of the engine.
"""

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from ipaddress import ip_address
from time import monotonic
from typing import Any, ParamSpec, TypeVar

from vtep import descriptors
from vtep.docker.ipam.claims import SPARE_MAX_AGE_S, Attempt, Claims
from vtep.docker.ipam.frames import FILTER, build_defense, build_probe
from vtep.docker.ipam.pools import AddressPool
from vtep.docker.ipam.tunnel import find_problem
from vtep.docker.plugin.absences import Absences
from vtep.errors import VtepError
from vtep.forwarding.anycast import read
from vtep.host.devices import device_index
from vtep.io import socket_constants as const
from vtep.io.socket_filter import attach_program
from vtep.wire import arp, ethernet
from vtep.wire.address import Address

log = logging.getLogger("vtep")

SPARES_MAX = 8
"""Spare addresses of a busy host, at most as many as it has requested lately.

Each is ready after 0.55 s, so 14 containers per second start without waiting for probes.
"""

_ADDRESSES_PER_SPARE = 16
"""In a smaller range, hosts would mostly take spares away from each other."""

REQUEST_MAX_S = 25.0
"""Seconds until a request for an address fails. The engine would wait for longer."""

TUNNEL_WAIT_S = 15.0
"""Seconds that a request waits for the bridge and the TAP, which come up together after a boot."""

_POLL_INTERVAL_S = 0.05
_REOPEN_INTERVAL_S = 1.0

_SOL_PACKET = 263
_PACKET_IGNORE_OUTGOING = 23
"""From include/linux/socket.h and include/uapi/linux/if_packet.h."""

_RECEIVE_BUFFER = 1 << 20
"""Octets of the receive buffer. A probe that is lost in it is an address that may be lost."""

_FRAMES_MAX = 100
"""Frames that are handled before another socket or timer has its turn."""

_FRAME_SIZE_MAX = 256
"""Octets read of each frame: ARP and neighbor discovery are shorter; the rest is padding."""

T = TypeVar("T")
P = ParamSpec("P")


class GuardThread:
    """A thread with an event loop, for the sockets of all pools."""

    def __init__(self) -> None:
        # Not uvloop: this process forwards nothing, and may lack it.
        self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._run, name="addresses", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread and close its event loop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the thread, and wait for its result. To be called by other threads."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in the thread, and wait for its result. To be called by other threads."""

        async def call() -> T:
            return function(*args, **kwargs)

        return self.run(call())

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()


class GuardedPool:
    """An address pool with the claims of this host, and a socket on the bridge of its network.

    All methods are to be called in the thread of the guard. `seed` makes the order of candidates
    differ from that of other hosts.
    """

    def __init__(self, pool: AddressPool, seed: bytes) -> None:
        self.pool = pool
        self.bridge: str | None = None
        self.claims = Claims(self._log_conflict)
        self._gateway: Address | None = None
        self._order = pool.order(seed)
        self._index: int | None = None
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reopen: asyncio.TimerHandle | None = None
        # Requests for an address of the user's choice, and those for any.
        self._waiting: dict[Attempt, asyncio.Future[None]] = {}
        self._queue: deque[tuple[bytes, asyncio.Future[Address]]] = deque()
        self._spares: list[Attempt] = []
        self._recent: deque[float] = deque(maxlen=SPARES_MAX)
        # Requests that have been counted among the recent ones by `probe_ahead` already.
        self._expected = 0
        self._absences: Absences[Address] = Absences()
        self._reported: set[tuple[Address, bytes]] = set()

    def bind(self, bridge: str | None) -> None:
        """Probe and defend on a bridge from now on, or nowhere.

        The bridge may be missing: it is waited for.
        """
        self.bridge = bridge
        if bridge is None or self._is_stale():
            self._open()

    def restore(self, bridge: str | None, claims: Mapping[Address, bytes | None]) -> None:
        """Claim addresses that this host has had before, and bind their bridge."""
        for address, mac in claims.items():
            self.claims.claim(address, mac)
        self.bind(bridge)

    def reserve(self, address: Address, *, is_gateway: bool) -> None:
        """Claim a gateway or an excluded address, which is neither probed for nor defended.

        Raises: VtepError if a container has it, or if the gateway is to be excluded.
        """
        if is_gateway:
            self._gateway = address
        elif address == self._gateway:
            # The engine names excluded addresses after it has requested the gateway. Another one
            # would have to be chosen on all hosts.
            raise VtepError(
                f"--aux-address {address}: is the gateway of the network; choose another one by "
                "--gateway"
            )
        if not self.claims.is_free(address) and self.claims.claimed.get(address) is not None:
            raise VtepError(f"address {address} is in use by a container of this host")
        self.claims.claim(address, None)

    def release(self, address: Address) -> None:
        """Give up an address, which other hosts may have from now on."""
        self.claims.release(address)
        self._absences.forget(address)
        self._reported = {each for each in self._reported if each[0] != address}

    def claim_again(self, address: Address, mac: bytes) -> bool:
        """Claim the address of a container that runs already, if it is one of this pool.

        Returns: True if it was not claimed.
        """
        is_lost = address in self.pool.subnet and self.claims.is_free(address)
        if is_lost:
            self.claims.claim(address, mac)
        return is_lost

    def release_unused(self, used: AbstractSet[Address], gone: AbstractSet[Address]) -> int:
        """Release addresses of containers that the engine has forgotten.

        Addresses that are not `used` are released after a grace time, those of `gone` at once.

        Returns: the number of released addresses.
        """
        claimed = self.claims.claimed.items()
        unused = {each for each, mac in claimed if mac is not None and each not in used}
        released = self._absences.overdue(unused, monotonic()) | (unused & gone)
        for address in released:
            log.info("address %s: released, since the engine has no container with it", address)
            self.release(address)
        return len(released)

    def close(self) -> None:
        """Close the socket; requests in progress fail."""
        self._close()
        self._fail("the network was removed meanwhile")
        if self._timer is not None:
            self._timer.cancel()
        if self._reopen is not None:
            self._reopen.cancel()

    async def request(
        self, address: Address | None, mac: bytes, next_pools: Iterable["GuardedPool"] = ()
    ) -> Address:
        """Claim an address for the container with a MAC, after probing the segment for it.

        `address` is the one that the user has chosen, or None for any of the range. `next_pools`
        are those of which the container is likely to request an address next.

        Raises: VtepError if there is none, with the MAC that has the chosen one.
        """
        await self._wait_for_tunnel()
        for pool in next_pools:
            pool.probe_ahead()
        if address is None:
            return await self._request_any(mac)
        self.claims.drop_spare(address)
        attempt = self.claims.begin([address], mac, monotonic())
        done = self._waiting[attempt] = asyncio.get_running_loop().create_future()
        try:
            self._settle()
            async with asyncio.timeout(REQUEST_MAX_S):
                await done
        except TimeoutError:
            pass  # Hosts that all want the address may give it up to each other for long.
        finally:
            del self._waiting[attempt]
            if not attempt.done:
                self.claims.cancel(attempt)
        if attempt.address is not None:
            return attempt.address
        if not attempt.conflicts:
            reason = "in use on this host; choose another one"
        elif attempt.holder is None:
            reason = "wanted by other hosts at the same time; try again"
        else:
            holder = ethernet.format_mac(attempt.holder)
            reason = f"in use on another host, by MAC {holder}; choose another one"
        raise VtepError(f"address {address} is {reason}")

    def probe_ahead(self) -> None:
        """Probe for an address that is requested next, so that the request need not wait as long.

        The tunnel of the bridge has to be up.
        """
        if self._has_many and not self._is_stale():
            self._expected += 1
            self._recent.append(monotonic())
            self._settle()

    async def _request_any(self, mac: bytes) -> Address:
        """Claim the first spare that is ready, and probe for more of them ahead."""
        if self._expected:
            self._expected -= 1
        else:
            self._recent.append(monotonic())
        assigned: asyncio.Future[Address] = asyncio.get_running_loop().create_future()
        self._queue.append((mac, assigned))
        self._settle()
        try:
            async with asyncio.timeout(REQUEST_MAX_S):
                return await assigned
        except TimeoutError as error:
            if assigned.done() and not assigned.cancelled():
                return assigned.result()  # In the last moment.
            raise self._exhausted() from error

    def _assign(self) -> None:
        """Give ready spares to the requests that wait, and begin as many spares as are needed."""
        self._spares = [attempt for attempt in self._spares if not attempt.done]
        # The futures of requests that have timed out are cancelled.
        self._queue = deque(each for each in self._queue if not each[1].done())
        for attempt in list(self._spares):
            if self._queue and attempt.ready:
                mac, assigned = self._queue.popleft()
                assigned.set_result(self.claims.take(attempt, mac))
                self._spares.remove(attempt)
        since = monotonic() - SPARE_MAX_AGE_S
        ahead = sum(time > since for time in self._recent) if self._has_many else 0
        while len(self._spares) < len(self._queue) + ahead:
            attempt = self.claims.begin(
                self._order.candidates(), os.urandom(6), monotonic(), is_spare=True
            )
            if attempt.done:
                if not self._spares:
                    for _, assigned in self._queue:
                        assigned.set_exception(self._exhausted())
                return
            self._spares.append(attempt)

    @property
    def _has_many(self) -> bool:
        """True if the range is so large that spares do not make it scarce"""
        return self.pool.assigned.num_addresses > _ADDRESSES_PER_SPARE * SPARES_MAX

    def _exhausted(self) -> VtepError:
        return VtepError(
            f"no free address was found in {self.pool.assigned}: this host has "
            f"{len(self.claims.claimed)}, and probes have shown others on other hosts; remove "
            "containers, or create the network with a larger --subnet or --ip-range"
        )

    async def _wait_for_tunnel(self) -> None:
        """Wait until frames can leave for other hosts. Raises: VtepError if that takes too long.

        Without probes, an address could be assigned twice, so it is not assigned at all.
        """
        deadline = monotonic() + TUNNEL_WAIT_S
        while True:
            if self._is_stale():
                self._open()
            problem: str | None = f"bridge {self.bridge} has no tunnel that is up"
            if self._socket is not None and self.bridge is not None and self._index is not None:
                loop = asyncio.get_running_loop()
                problem = await loop.run_in_executor(None, find_problem, self.bridge, self._index)
            if problem is None:
                return
            if monotonic() >= deadline:
                raise VtepError(
                    f"the pool {self.pool.subnet} has no network of the driver pyvtep"
                    if self.bridge is None
                    else f"{problem}, so other hosts cannot be asked for the address; see pyvtep "
                    "status"
                )
            await asyncio.sleep(_POLL_INTERVAL_S)

    def _is_stale(self) -> bool:
        """Return True if the socket is not on the bridge that has the name now."""
        return self.bridge is not None and (
            self._socket is None or device_index(self.bridge) != self._index
        )

    def _open(self) -> None:
        """Open the socket on the bridge, or try again later."""
        self._close()
        if self._reopen is not None:
            self._reopen.cancel()
            self._reopen = None
        if self.bridge is None:
            return
        try:
            index = device_index(self.bridge)
            sock = None if index is None else self._bound_socket(self.bridge)
        except OSError as error:
            log.debug("cannot guard addresses on %s: %s", self.bridge, descriptors.reason(error))
            sock = None
        if sock is None:
            loop = asyncio.get_running_loop()
            self._reopen = loop.call_later(_REOPEN_INTERVAL_S, self._open)
            return
        self._socket, self._index = sock, index
        asyncio.get_running_loop().add_reader(sock, self._on_readable)

    def _bound_socket(self, bridge: str) -> socket.socket:
        """Return a socket for ARP, or for IPv6, on a bridge. Raises: OSError."""
        # With protocol 0 it receives nothing before it has its filter and its device.
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            sock.setblocking(False)
            attach_program(sock, const.SO_ATTACH_FILTER, FILTER)
            # Else what this host sends would look like claims of another one.
            sock.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, const.SO_RCVBUFFORCE, _RECEIVE_BUFFER)
            is_v4 = self.pool.subnet.version == 4
            sock.bind((bridge, arp.TYPE if is_v4 else ethernet.TYPE_IPV6))
        except OSError:
            sock.close()
            raise
        return sock

    def _close(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = self._index = None

    @property
    def _mac(self) -> bytes:
        """The MAC of the bridge, which may change with its ports; answers are received on it"""
        assert self._socket is not None  # noqa: S101  only called while it is open
        mac: bytes = self._socket.getsockname()[4]
        return mac

    def _on_readable(self) -> None:
        self._receive()
        self._settle()

    def _receive(self) -> None:
        """Handle received frames, and answer probes for addresses of this host."""
        if self._socket is None:
            return
        try:
            own = self._mac
            for frame in _received(self._socket):
                message = read(frame) if len(frame) >= ethernet.HEADER_LEN else None
                source = frame[ethernet.MAC_LEN : 2 * ethernet.MAC_LEN]
                if message is None or source == own:
                    continue
                address = self.claims.on_message(source, message, monotonic())
                if address is not None and (mac := self.claims.claimed[address]) is not None:
                    with contextlib.suppress(BlockingIOError):  # It will be probed again.
                        self._socket.send(build_defense(mac, address, source))
        except OSError as error:
            self._on_error(error)

    def _settle(self) -> None:
        """Send the probes that are due, finish attempts, and set the timer for the next step."""
        # A frame that has arrived before the end of an attempt must be seen before it ends, also if
        # this process was stopped for seconds.
        self._receive()
        try:
            for address in self.claims.advance(monotonic()):
                if self._socket is None:
                    self._fail("its bridge was removed meanwhile")
                    break
                self._socket.send(build_probe(self._mac, address))
        except OSError as error:
            # A probe that was not sent must not count as one without an answer.
            self._on_error(error)
        for attempt, future in self._waiting.items():
            if attempt.done and not future.done():
                future.set_result(None)
        self._assign()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (deadline := self.claims.deadline) is not None:
            delay = max(deadline - monotonic(), 0.0)
            self._timer = asyncio.get_running_loop().call_later(delay, self._settle)

    def _on_error(self, error: OSError) -> None:
        """Open the socket anew after an error, such as the end of its bridge (ENETDOWN)."""
        reason = descriptors.reason(error)
        log.debug("addresses on %s: %s", self.bridge, reason)
        self._fail(reason)
        self._close()
        if self._reopen is None:
            loop = asyncio.get_running_loop()
            self._reopen = loop.call_later(_REOPEN_INTERVAL_S, self._open)

    def _fail(self, reason: str) -> None:
        """End all requests in progress."""
        for attempt in [*self._waiting, *self._spares]:
            if not attempt.done:
                self.claims.cancel(attempt)
        error = VtepError(f"cannot probe bridge {self.bridge} for addresses: {reason}")
        futures: list[asyncio.Future[Any]] = [*self._waiting.values()]
        futures += [assigned for _, assigned in self._queue]
        for future in futures:
            if not future.done():
                future.set_exception(error)

    def _log_conflict(self, address: Address, mac: bytes) -> None:
        if (address, mac) not in self._reported:
            self._reported.add((address, mac))
            log.warning(
                "address %s of a container here is used by another host, too, with MAC %s; restart "
                "one of both without --ip",
                *(address, ethernet.format_mac(mac)),
            )


def parse_address(text: str) -> Address:
    """Parse an address with or without the length of its prefix. Raises: VtepError."""
    try:
        return ip_address(text.partition("/")[0])
    except ValueError as error:
        raise VtepError(str(error)) from error


def _received(sock: socket.socket) -> Iterator[bytes]:
    """Yield the frames that a non-blocking socket has received."""
    with contextlib.suppress(BlockingIOError):
        for _ in range(_FRAMES_MAX):
            yield sock.recv(_FRAME_SIZE_MAX)
