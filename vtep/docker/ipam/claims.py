"""Claims of one segment: which addresses this host has assigned, and which it may assign. No I/O.

Before an address is assigned, the segment is probed for it, as in address conflict detection (RFC
5227) and duplicate address detection (RFC 4862, section 5.4). An attempt ends with a conflict if

- another host claims the address, that is, answers a probe or uses the address, or
- another host probes for it as well: then both try another address, so that it is enough if one
  probe of one of them arrives. An address that neither got is tried again when the others are
  taken, after a delay that differs between hosts.

From then on the address is defended: probes of other hosts are answered, since the container that
has the address may not have been started yet.

Engines start the containers of a network one after the other. So that each does not wait for its
own probes, hosts that start many probe for spare addresses ahead. A spare is not defended: if
another host probes for it, it is given up.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256

from attrs import Factory, define

from vtep.forwarding.anycast import AddressMessage
from vtep.wire.address import Address

PROBES = 3
"""Probes for each address: PROBE_NUM of RFC 5227, section 1.1. Two of them may be lost."""

PROBE_INTERVAL_S = 0.15
"""Seconds from one probe to the next, where RFC 5227 has 1 to 2 seconds.

The RFC allows for hosts that boot, switch ports that open late, and radio links. Here the tunnel
forwards already, and its round trip is known: some milliseconds within a site, up to 200 between
continents. What remains are lost frames, and hosts that are too busy to answer for a moment.
"""

LISTEN_S = 0.25
"""Seconds from the last probe to the assignment: ANNOUNCE_WAIT of RFC 5227 (2 seconds).

The last probe is worth as much as the first if it is answered within this time.
"""

MAX_CONFLICTS = 10
"""Conflicts of one attempt after which it slows down (RFC 5227, section 1.1)."""

CONFLICT_DELAY_S = 0.05
"""Seconds to wait after each further conflict, where RFC 5227 has RATE_LIMIT_INTERVAL, a minute.

A container that starts cannot wait for minutes. At this rate, the broadcasts of a device that
claims all addresses of the segment are no storm, and a crowded /24 is searched in 13 seconds.
"""

_BACKOFF_MAX_S = 1.0
"""Seconds by which the first of two hosts that want the same address is likely to be earlier."""

_ATTEMPT_S = (PROBES - 1) * PROBE_INTERVAL_S + LISTEN_S

SPARE_MAX_AGE_S = 10.0
"""Seconds until a spare expires: what the probes have shown must not be older than an outage."""


@define(eq=False)
class Attempt:
    """A request for an address. `Claims` changes it; when it is `done`, `address` is the result."""

    mac: bytes
    """MAC of the container that is to have the address."""
    candidates: Iterator[Address]
    address: Address | None = None
    """The address that is probed for, or has been assigned; None if all candidates are taken."""
    sent: int = 0
    due: float = 0.0
    conflicts: int = 0
    is_spare: bool = False
    ready: bool = False
    """True for a spare that no other host has, which may be taken."""
    done: bool = False
    holder: bytes | None = None
    """MAC that the last candidate has on another host."""
    contended: deque[Address] = Factory(deque)
    """Candidates for which another host probed at the same time."""

    def backoff(self) -> float:
        """Return a pseudo-random delay in seconds; containers have different MACs."""
        digest = sha256(self.mac + self.conflicts.to_bytes(8)).digest()
        return int.from_bytes(digest[:4]) / 2**32 * _BACKOFF_MAX_S


class Claims:
    """The claims of one host on one segment.

    `on_conflict` is called with an address of this host and the MAC of another host that uses it.
    """

    def __init__(self, on_conflict: Callable[[Address, bytes], object] = lambda *_: None) -> None:
        # The MAC of the container that has each address; None for an address that is not ours to
        # defend: a gateway, which is on the bridge, or one that the user has excluded.
        self._claimed: dict[Address, bytes | None] = {}
        # Messages have packed addresses, and are compared with those of this host only.
        self._by_octets: dict[bytes, Address] = {}
        self._attempts: dict[Address, Attempt] = {}
        self._on_conflict = on_conflict

    @property
    def claimed(self) -> dict[Address, bytes | None]:
        """The claimed addresses, with the MACs for which they are defended"""
        return dict(self._claimed)

    @property
    def deadline(self) -> float | None:
        """The time at which `advance` has to be called next, or None without an attempt"""
        return min((attempt.due for attempt in self._attempts.values()), default=None)

    def is_free(self, address: Address) -> bool:
        """Return True if this host neither has an address nor probes for it."""
        return address not in self._claimed and address not in self._attempts

    def claim(self, address: Address, mac: bytes | None) -> None:
        """Claim an address without probing for it."""
        self._claimed[address] = mac
        self._by_octets[address.packed] = address

    def release(self, address: Address) -> None:
        """Give up the claim of an address, if there is one."""
        if address in self._claimed:
            del self._claimed[address], self._by_octets[address.packed]

    def begin(
        self, candidates: Iterable[Address], mac: bytes, now: float, *, is_spare: bool = False
    ) -> Attempt:
        """Begin an attempt to get the first of these addresses that is free on all hosts.

        The address of a spare is claimed by `take`, if it is wanted before it expires.
        """
        attempt = Attempt(mac, iter(candidates), is_spare=is_spare)
        self._next_candidate(attempt, now)
        return attempt

    def take(self, attempt: Attempt, mac: bytes) -> Address:
        """Claim the address of a ready spare, after all received frames were handled."""
        address = attempt.address
        assert attempt.ready  # noqa: S101  callers check it
        assert address is not None  # noqa: S101  a ready spare has one
        del self._attempts[address]
        attempt.ready, attempt.done = False, True
        self.claim(address, mac)
        return address

    def drop_spare(self, address: Address) -> None:
        """Give up a spare, since a container is to have exactly this address."""
        attempt = self._attempts.get(address)
        if attempt is not None and attempt.is_spare:
            self.cancel(attempt)

    def cancel(self, attempt: Attempt) -> None:
        """End an attempt without a result, and give up what it may have got meanwhile."""
        if attempt.address is not None:
            if attempt.done:
                self.release(attempt.address)
            else:
                del self._attempts[attempt.address], self._by_octets[attempt.address.packed]
        attempt.address, attempt.ready, attempt.done = None, False, True

    def advance(self, now: float) -> list[Address]:
        """Move the attempts on, after all frames that have been received by `now` were handled.

        Side effect: attempts without a conflict end, and their addresses are claimed.

        Returns: the addresses for which a probe is to be sent now.
        """
        probed = []
        for address, attempt in list(self._attempts.items()):
            if now < attempt.due:
                continue
            if attempt.ready:
                self.cancel(attempt)
                continue
            if attempt.sent == PROBES and attempt.is_spare:
                attempt.ready, attempt.due = True, now + SPARE_MAX_AGE_S
                continue
            if attempt.sent == PROBES:
                del self._attempts[address]
                self.claim(address, attempt.mac)
                attempt.done = True
                continue
            attempt.sent += 1
            # From now, not from the time that was due: a late probe must be waited for as long.
            attempt.due = now + (PROBE_INTERVAL_S if attempt.sent < PROBES else LISTEN_S)
            probed.append(address)
        return probed

    def on_message(self, source: bytes, message: AddressMessage, now: float) -> Address | None:
        """Handle an ARP packet or ND message from another device, with its source MAC.

        Returns: the address that is to be defended with an answer, if any.
        """
        if (address := self._by_octets.get(message.claimed)) is not None:
            if (attempt := self._attempts.get(address)) is not None:
                self._lose(attempt, source, now, was_probed=False)
            elif self._claimed[address] not in (None, source):
                self._on_conflict(address, source)
        if message.is_probe and (address := self._by_octets.get(message.requested)) is not None:
            if (attempt := self._attempts.get(address)) is not None:
                self._lose(attempt, source, now, was_probed=True)
            # Not if the container itself probes for the address that it has just been given.
            elif self._claimed[address] not in (None, source):
                return address
        return None

    def _lose(self, attempt: Attempt, source: bytes, now: float, *, was_probed: bool) -> None:
        """Give up the address that an attempt is about."""
        address, waits = attempt.address, attempt.sent == 0
        assert address is not None  # noqa: S101  the attempt was found by its address
        attempt.conflicts += 1
        was_ready, attempt.ready = attempt.ready, False
        if was_probed and was_ready:
            # It is left to the other host. If both tried it again, two spares would take an address
            # away from each other for ever.
            pass
        elif was_probed:
            attempt.contended.append(address)
        else:
            attempt.holder = source
        del self._attempts[address], self._by_octets[address.packed]
        # If this host waits, the other one probes alone and is likely to succeed.
        self._next_candidate(attempt, now, _ATTEMPT_S if was_probed and waits else 0.0)

    def _next_candidate(self, attempt: Attempt, now: float, wait: float = 0.0) -> None:
        """Begin to probe for the next free candidate, or end an attempt that has none left.

        `wait` is a minimum in seconds for an address that is tried again.
        """
        delay = CONFLICT_DELAY_S if attempt.conflicts >= MAX_CONFLICTS else 0.0
        address = next(filter(self.is_free, attempt.candidates), None)
        while address is None and attempt.contended:
            delay = wait + attempt.backoff()
            if not self.is_free(address := attempt.contended.popleft()):
                address = None  # Another attempt of this host is about it.
        attempt.address, attempt.done = address, address is None
        if address is not None:
            attempt.sent, attempt.due = 0, now + delay
            self._attempts[address] = attempt
            self._by_octets[address.packed] = address
