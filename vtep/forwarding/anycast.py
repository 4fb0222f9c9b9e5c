"""Anycast gateways: one gateway for each host on a segment that the hosts share.

Two Docker engines with the same subnet both give its first address to their bridge. On one Ethernet
that is an address conflict: a container may use the gateway of the other host, and then its traffic
to the outside, and the ports that its engine publishes, cross the tunnel. So ARP (RFC 826) and
neighbour discovery (RFC 4861) about the address of a local gateway do not cross the tunnel, as with
the anycast gateways of EVPN (RFC 9135, section 4.1).

If the hosts have gateways with different addresses instead, each gateway must be reachable from all
hosts. The two cases need no configuration: an address counts as *shared* after a remote host has
claimed it or probed for it (RFC 5227).
"""

from collections.abc import Callable, Iterable
from ipaddress import IPv6Address
from typing import NamedTuple

from vtep.wire import Buffer, arp, ethernet, nd
from vtep.wire.address import Address


class AddressMessage(NamedTuple):
    """The addresses in an ARP packet or ND message. They are packed, and empty if there is none."""

    claimed: bytes
    """The address whose MAC the message states, which receivers put into their caches."""
    requested: bytes
    """The address whose MAC the message asks for."""
    is_probe: bool
    """The message belongs to a conflict detection. Receivers do not put it into their caches."""


def read(frame: Buffer) -> AddressMessage | None:
    """Parse an Ethernet frame of at least 14 octets.

    Returns: None if it is not a valid ARP packet, neighbor solicitation or neighbor advertisement.
    """
    offset = ethernet.HEADER_LEN
    ethertype = int.from_bytes(frame[offset - 2 : offset])
    if (
        ethertype == ethernet.TYPE_8021Q
        and len(frame) >= offset + ethernet.TAG_LEN
        and not (frame[offset] & 0x0F or frame[offset + 1])
    ):
        # A tag with VLAN id 0 states a priority only (IEEE 802.1Q), so receivers skip it.
        offset += ethernet.TAG_LEN
        ethertype = int.from_bytes(frame[offset - 2 : offset])
    if ethertype == arp.TYPE:
        return _from_arp(arp.parse(frame, offset))
    if ethertype == ethernet.TYPE_IPV6:
        return _from_nd(nd.parse(frame, offset))
    return None


def _from_arp(packet: arp.Arp | None) -> AddressMessage | None:
    if packet is None:
        return None
    claimed = packet.sender if packet.sender != arp.UNSPECIFIED else b""
    if packet.operation == arp.REQUEST:
        # An announcement is a request for the sender's own address (RFC 5227, section 2.3).
        requested = packet.target if packet.target != claimed else b""
        return AddressMessage(claimed, requested, not claimed)
    # A reply to 0.0.0.0 answers a probe.
    return AddressMessage(claimed, b"", packet.target == arp.UNSPECIFIED)


def _from_nd(message: nd.NdMessage | None) -> AddressMessage | None:
    if message is None:
        return None
    if message.kind == nd.ADVERTISEMENT:
        return AddressMessage(message.target, b"", is_probe=False)
    claimed = message.source if message.source != nd.UNSPECIFIED else b""
    return AddressMessage(claimed, message.target, not claimed)


def build_probe(mac: bytes, address: Address) -> bytes:
    """Build an Ethernet frame that asks which host has an address; replies go to `mac`.

    For IPv4 it is an ARP probe (RFC 5227, section 2.1.1). For IPv6, a probe by duplicate address
    detection (RFC 4862, section 5.4) would be answered to all nodes, which would update their
    caches. So the frame is a solicitation from the link-local address that belongs to the MAC.
    """
    if isinstance(address, IPv6Address):
        group = nd.solicited_node(address.packed)
        source = nd.link_local(mac)
        message = nd.NdMessage(nd.SOLICITATION, 0, source, group, 0, address.packed, mac)
        ethertype = ethernet.TYPE_IPV6.to_bytes(2)
        # The MAC of a group ends with the last four octets of its address (RFC 2464, section 7).
        return b"\x33\x33" + group[-4:] + mac + ethertype + nd.pack(message)
    packet = arp.Arp(arp.REQUEST, mac, arp.UNSPECIFIED, ethernet.MAC_ZERO, address.packed)
    return b"\xff" * ethernet.MAC_LEN + mac + arp.TYPE.to_bytes(2) + arp.pack(packet)


class Gateways:
    """The addresses of this host's gateways, and the suppression of messages about them.

    `on_shared` is called once for each address that turns out to be shared.
    """

    def __init__(
        self,
        addresses: Iterable[Address],
        on_shared: Callable[[Address], object] = lambda _: None,
    ) -> None:
        self._own = {address.packed: address for address in addresses}
        self._shared: set[bytes] = set()
        # Shared addresses that remote hosts have used since the last `expire`.
        self._seen: set[bytes] = set()
        self._on_shared = on_shared

    @property
    def shared(self) -> frozenset[Address]:
        """The own addresses that a remote host uses for its gateway, too."""
        return frozenset(self._own[packed] for packed in self._shared)

    def expire(self) -> None:
        """Forget the shared addresses that remote hosts have not used since the last call."""
        self._shared, self._seen = self._seen, set()

    def _share(self, address: bytes) -> None:
        self._seen.add(address)
        if address not in self._shared:
            self._shared.add(address)
            self._on_shared(self._own[address])

    def suppresses_from_tap(self, frame: Buffer) -> bool:
        """Return True if a frame of this host is not to be sent to remotes. Nothing is changed.

        Requests for the local gateway are not sent, since the gateway is here. Once its address is
        shared, claims of it are not sent either: they would redirect the other hosts to us.
        """
        message = read(frame)
        if message is None or message.is_probe:
            return False
        return message.requested in self._own or message.claimed in self._shared

    def suppresses_from_underlay(self, frame: Buffer) -> bool:
        """Return True if a frame of a remote is not to be delivered to this host.

        A claim of the local gateway's address is never delivered. Once the address is shared, a
        request for it is not delivered either: the requester has a gateway of its own.

        Side effect: a claim of an own address, or a probe for one, makes it shared.
        """
        message = read(frame)
        if message is None:
            return False
        if message.claimed in self._own:
            self._share(message.claimed)
            return True
        if message.requested in self._own and message.is_probe:
            # The sender of the probe has the address or is about to. A probe for IPv4 is delivered,
            # so that the gateway defends its address. A probe for IPv6 may equal the duplicate
            # address detection of a new local gateway, which would give up the address for good if
            # it received one (RFC 4862, section 5.4.3).
            self._share(message.requested)
            return len(message.requested) != len(arp.UNSPECIFIED)
        return message.requested in self._shared
