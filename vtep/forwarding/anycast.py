"""A gateway of its own for each host, on a segment that the hosts share.

Two Docker engines that were given one subnet both take its first address for their bridge. On one
Ethernet that is an address conflict: a container may believe that the far gateway is its own, and
then its way to the world, and the ports that its engine publishes, cross the tunnel. So what ARP
(RFC 826) and neighbour discovery (RFC 4861) say of an own gateway's address is kept on its side, as
EVPN does with its anycast gateways (RFC 9135, section 4.1).

Where hosts have gateways with different addresses, each is to be reached from everywhere. Which of
the two it is shows by itself: an address is *shared* once somebody beyond the tunnel has claimed
it, or probed for it (RFC 5227). Frames are hostile input here; nothing raises on them.
"""

from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from vtep.wire import Buffer, arp, ethernet, nd

Address = IPv4Address | IPv6Address

_TAG = 0x8100
_IPV6 = 0x86DD
_LINK_LOCAL = bytes.fromhex("fe80000000000000")
_SOLICITED_NODE = bytes.fromhex("ff0200000000000000000001ff")
_NOBODY_V4 = bytes(4)


class Talk(NamedTuple):
    """What a message tells about addresses; an address is empty where there is none."""

    claimed: bytes
    """Whose MAC address it gives, so that who hears it may believe it."""
    asked: bytes
    """Whose MAC address it asks for."""
    probe: bool
    """It is part of asking whether somebody has an address, and is believed by nobody."""


def read(frame: Buffer) -> Talk | None:
    """Read an Ethernet frame; None if it is no valid message of ARP or neighbour discovery."""
    at = ethernet.HEADER_LEN
    kind = int.from_bytes(frame[at - 2 : at])
    if kind == _TAG and len(frame) >= at + 4 and not (frame[at] & 0x0F or frame[at + 1]):
        # A tag that has a priority and no VLAN (802.1Q): whoever receives it overlooks it.
        at += 4
        kind = int.from_bytes(frame[at - 2 : at])
    if kind == arp.TYPE:
        return _of_arp(arp.parse(frame, at))
    if kind == _IPV6:
        return _of_nd(nd.parse(frame, at))
    return None


def _of_arp(packet: arp.Arp | None) -> Talk | None:
    if packet is None:
        return None
    claimed = packet.sender if packet.sender != _NOBODY_V4 else b""
    if packet.operation == arp.REQUEST:
        # An announcement asks for its own sender: nobody is to answer.
        return Talk(claimed, packet.target if packet.target != claimed else b"", not claimed)
    return Talk(claimed, b"", packet.target == _NOBODY_V4)


def _of_nd(message: nd.Message | None) -> Talk | None:
    if message is None:
        return None
    if message.kind == nd.ADVERTISEMENT:
        return Talk(message.target, b"", probe=False)
    claimed = message.source if message.source != nd.UNSPECIFIED else b""
    return Talk(claimed, message.target, not claimed)


def probe(mac: bytes, address: Address) -> bytes:
    """The Ethernet frame that asks whether somebody has an address, to be answered to a MAC.

    Of IPv4 it is a probe (RFC 5227, section 2.1.1). One of IPv6 (RFC 4862, section 5.4) would be
    answered to all, and believed: so it asks as the owner of the MAC's link-local address would.
    """
    if isinstance(address, IPv6Address):
        end = address.packed[-3:]
        source = _LINK_LOCAL + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]
        group = _SOLICITED_NODE + end
        asks = nd.Message(nd.SOLICITATION, 0, source, group, 0, address.packed, mac)
        return b"\x33\x33\xff" + end + mac + _IPV6.to_bytes(2) + nd.pack(asks)
    asked = arp.Arp(arp.REQUEST, mac, _NOBODY_V4, ethernet.MAC_ZERO, address.packed)
    return b"\xff" * ethernet.MAC_LEN + mac + arp.TYPE.to_bytes(2) + arp.pack(asked)


class Gateways:
    """The addresses of this host's own gateway, and what of them crosses the tunnel.

    `told` is called once for each address that turns out to be shared.
    """

    def __init__(
        self, addresses: Iterable[Address], told: Callable[[Address], object] = lambda _: None
    ) -> None:
        self._own = {address.packed: address for address in addresses}
        self._shared: set[bytes] = set()
        self._heard: set[bytes] = set()
        self._told = told

    @property
    def shared(self) -> frozenset[Address]:
        """Addresses that a host beyond the tunnel has for its gateway, too."""
        return frozenset(self._own[packed] for packed in self._shared)

    def lapse(self) -> None:
        """Forget what nobody has confirmed since the last time: gateways come and go."""
        self._shared, self._heard = self._heard, set()

    def _share(self, address: bytes) -> None:
        self._heard.add(address)
        if address not in self._shared:
            self._shared.add(address)
            self._told(self._own[address])

    def keeps_in(self, frame: Buffer) -> bool:
        """Whether a frame from this host is not to be sent to others.

        Only requests for the gateway are, which is here; and, once its address is shared, what
        would make others believe that ours is theirs.
        """
        talk = read(frame)
        if talk is None or talk.probe:
            return False
        return talk.asked in self._own or talk.claimed in self._shared

    def keeps_out(self, frame: Buffer) -> bool:
        """Whether a frame from others is not to be seen on this host.

        Nobody there is our gateway; and, once its address is shared, ours is nobody's there.
        """
        talk = read(frame)
        if talk is None:
            return False
        if talk.claimed in self._own:
            self._share(talk.claimed)
            return True
        if talk.asked in self._own and talk.probe:
            # Whoever asks so has the address or is about to. One of IPv4 is told that we have it.
            # One of IPv6 asks what an own gateway that is new asks, too: should that hear it, it
            # would give up the address for good (RFC 4862, section 5.4.3).
            self._share(talk.asked)
            return len(talk.asked) != len(_NOBODY_V4)
        return talk.asked in self._shared
