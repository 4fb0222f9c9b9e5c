"""Asking the hosts beyond a tunnel who has an address there, by the ARP and ND of its segment."""

import asyncio
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress

from vtep.forwarding.anycast import probe, read
from vtep.wire.address import Address
from vtep.wire.ethernet import format_mac

PATIENCE = 1.0
"""Seconds in which an answer has come (RFC 5227: from one probe to the next, PROBE_MIN)."""

_ARP, _IPV6 = 0x0806, 0x86DD
_HEARD_MAX = 1000
"""Frames that are looked at for answers in one go: some milliseconds' work."""
_FRAME_MAX = 256
"""Octets of a frame that are enough to read an answer."""


async def who_has(tap: str, above: str, addresses: Iterable[Address]) -> list[tuple[Address, str]]:
    """Ask the other hosts who has these addresses, once; who answered, with MAC addresses.

    `above` is the bridge that the TAP is on, or the TAP. Nobody answers where this may not ask.
    """
    wanted = {address.packed: address for address in addresses}
    answers: dict[Address, str] = {}
    # What is sent on the TAP is for the other hosts only. Answers are for its MAC, so that the
    # bridge, which has what its ports receive, takes them for the host's.
    with (
        suppress(OSError),
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as asking,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as arp,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as ipv6,
    ):
        hearing = {arp: _ARP}
        if any(address.version == 6 for address in wanted.values()):
            hearing[ipv6] = _IPV6
        for sock, protocol in hearing.items():
            sock.setblocking(False)
            sock.bind((above, protocol))
        asking.bind((tap, 0))
        mac: bytes = asking.getsockname()[4]
        for address in wanted.values():
            asking.send(probe(mac, address))
        await asyncio.sleep(PATIENCE)
        for sock in hearing:
            for frame in _heard(sock):
                talk = read(frame)
                if frame[:6] == mac and talk is not None and talk.claimed in wanted:
                    answers[wanted[talk.claimed]] = format_mac(frame[6:12])
    return list(answers.items())


def _heard(sock: socket.socket) -> Iterator[bytes]:
    """The frames that have come by now, or so many of them that others need not wait long."""
    with suppress(OSError):  # There are no more.
        for _ in range(_HEARD_MAX):
            yield sock.recv(_FRAME_MAX)
