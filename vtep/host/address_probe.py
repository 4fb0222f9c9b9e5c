"""Address probes: ask remote hosts for an address, by ARP and neighbor discovery.

This is the probing of IPv4 address conflict detection (RFC 5227, section 2.1), and the same for
IPv6. It sends through the TAP of a segment, so probes pass the tunnel like the frames of guests.
"""

import asyncio
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress

from vtep.forwarding.anycast import build_probe, read
from vtep.wire import arp, ethernet
from vtep.wire.address import Address

PROBE_INTERVAL_S = 1.0
"""Seconds to wait for replies before the next probe: PROBE_MIN of RFC 5227, section 1.1."""

_REPLIES_MAX = 1000
"""Frames read from one socket, so that a flood of ARP holds the event loop for some milliseconds
only."""

_REPLY_SIZE_MAX = 256
"""Octets read of each frame. ARP and neighbor discovery are shorter; the rest is padding."""


async def probe_addresses(
    tap: str, upper_device: str, addresses: Iterable[Address]
) -> list[tuple[Address, str]]:
    """Send one probe for each address into the segment of a TAP, and wait `PROBE_INTERVAL_S`.

    `upper_device` is the bridge that the TAP is a port of, or else the TAP itself.

    Returns: the addresses that other hosts have, each with the MAC address that replied. Nothing
    without the privilege, or if a device is gone.
    """
    wanted = {address.packed: address for address in addresses}
    replies: dict[Address, str] = {}
    # Frames that a packet socket sends on a TAP go to pyvtep, not to this host. Replies are for the
    # MAC of the TAP. The bridge takes frames for the MACs of its ports in, so replies are received
    # on the bridge, not forwarded.
    with (
        suppress(OSError),
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as arp_receiver,
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as nd_receiver,
    ):
        receivers = {arp_receiver: arp.TYPE}
        # A packet socket for IPv6 gets all IPv6 traffic of the bridge, so open one only if needed.
        if any(address.version == 6 for address in wanted.values()):
            receivers[nd_receiver] = ethernet.TYPE_IPV6
        for sock, ethertype in receivers.items():
            sock.setblocking(False)
            sock.bind((upper_device, ethertype))
        sender.bind((tap, 0))
        mac: bytes = sender.getsockname()[4]
        for address in wanted.values():
            sender.send(build_probe(mac, address))
        await asyncio.sleep(PROBE_INTERVAL_S)
        for sock in receivers:
            for frame in _received(sock):
                message = read(frame)
                is_ours = frame[: ethernet.MAC_LEN] == mac
                if is_ours and message is not None and message.claimed in wanted:
                    source = frame[ethernet.MAC_LEN : 2 * ethernet.MAC_LEN]
                    replies[wanted[message.claimed]] = ethernet.format_mac(source)
    return list(replies.items())


def _received(sock: socket.socket) -> Iterator[bytes]:
    """Yield the frames in the receive buffer of a non-blocking socket, at most `_REPLIES_MAX`."""
    with suppress(OSError):  # BlockingIOError ends the iteration.
        for _ in range(_REPLIES_MAX):
            yield sock.recv(_REPLY_SIZE_MAX)
