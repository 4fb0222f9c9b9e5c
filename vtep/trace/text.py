"""Descriptions of frames, FDB entries and remotes in a line of text."""

from ipaddress import ip_address

from vtep.forwarding.fdb import Entry, Remote
from vtep.forwarding.fdb.remote import format_remote
from vtep.wire import Buffer, arp, ethernet, ip

_ICMP = {1: "ICMP", 58: "ICMPv6"}
_PROTOCOLS = {ip.TCP: "TCP", ip.UDP: "UDP", **_ICMP}
_TCP_FLAGS = "FSRPAUEC"
_ICMP_TYPES = {
    (1, 0): "echo reply",
    (1, 3): "destination unreachable",
    (1, 8): "echo request",
    (58, 2): "packet too big",
    (58, 128): "echo request",
    (58, 129): "echo reply",
    (58, 133): "router solicitation",
    (58, 134): "router advertisement",
    (58, 135): "neighbor solicitation",
    (58, 136): "neighbor advertisement",
}
_NAMES_MAX = 4


def describe_frame(frame: Buffer) -> str:
    """Return the addresses, protocols and length of an Ethernet frame."""
    if len(frame) < ethernet.HEADER_LEN:
        return f"runt of {len(frame)} octets"
    to, source = (ethernet.format_mac(frame[at : at + 6]) for at in (0, 6))
    ethertype, offset = ethernet.network_layer(frame)
    tags = "".join(
        f" VLAN {(frame[at] << 8 | frame[at + 1]) & 0x0FFF}"
        for at in range(ethernet.HEADER_LEN, offset, ethernet.TAG_LEN)
    )
    inside = _describe_packet(frame, ethertype, offset)
    return f"{source} > {to}{tags} {inside}, {len(frame)} octets"


def _describe_packet(frame: Buffer, ethertype: int, offset: int) -> str:
    if ethertype == arp.TYPE and (packet := arp.parse(frame, offset)) is not None:
        sender, target = ip_address(packet.sender), ip_address(packet.target)
        if packet.operation == arp.REQUEST:
            return f"ARP who has {target}, tell {sender}"
        return f"ARP {sender} is at {ethernet.format_mac(packet.sender_mac)}"
    if ethertype == ethernet.TYPE_IPV4 and offset + 20 <= len(frame):
        protocol, at = frame[offset + 9], offset + (frame[offset] & 0x0F) * 4
        addresses = frame[offset + 12 : offset + 16], frame[offset + 16 : offset + 20]
        is_fragment = bool(frame[offset + 6] & 0x1F or frame[offset + 7])
        name = "IPv4"
    elif ethertype == ethernet.TYPE_IPV6 and offset + 40 <= len(frame):
        protocol, at = frame[offset + 6], offset + 40
        addresses = frame[offset + 8 : offset + 24], frame[offset + 24 : offset + 40]
        is_fragment, name = False, "IPv6"
    else:
        return f"EtherType {ethertype:#06x}"
    source, to = (str(ip_address(bytes(each))) for each in addresses)
    text = f"{name} {_PROTOCOLS.get(protocol, f'protocol {protocol}')}"
    if is_fragment:
        return f"{text} fragment {source} > {to}"
    if protocol in (ip.TCP, ip.UDP) and at + 4 <= len(frame):
        ports = [frame[at + n] << 8 | frame[at + n + 1] for n in (0, 2)]
        colon = ":" if name == "IPv4" else "."
        text += f" {source}{colon}{ports[0]} > {to}{colon}{ports[1]}"
        if protocol == ip.TCP and at + 14 <= len(frame):
            flags = frame[at + ip.TCP_FLAGS_OFFSET]
            text += f" [{''.join(f for n, f in enumerate(_TCP_FLAGS) if flags >> n & 1)}]"
        return text
    text += f" {source} > {to}"
    if protocol in _ICMP and at < len(frame):
        kind = frame[at]
        text += f" {_ICMP_TYPES.get((protocol, kind), f'type {kind}')}"
    return text


def describe_entry(entry: Entry, now: float) -> str:
    """Return the state, age and destinations of an FDB entry."""
    kind = entry.kind
    flags = [str(kind.state)]
    if kind.extern_learn:
        flags.append("extern_learn")
    if kind.sticky:
        flags.append("sticky")
    age = f", last seen {max(0.0, now - entry.updated):.0f} s ago"
    return (
        f"{ethernet.format_mac(entry.mac)} {' '.join(flags)}{age if kind.ages else ''}, "
        f"{describe_remotes(entry.destinations)}{_describe_origin(entry)}"
    )


def _describe_origin(entry: Entry) -> str:
    """Return what a control plane has given of an entry; "" if nothing."""
    given = [origin for _, origin in entry.origins() if origin.extern_learn]
    if not given:
        return ""
    part = "" if len(given) == len(entry.destinations) else f"{len(given)} of them "
    sequence = max((origin.sequence or 0 for origin in given), default=0)
    moved = f", mobility sequence number {sequence}" if sequence else ""
    return f" ({part}given by a control plane, such as EVPN{moved}; pyvtep evpn show)"


def describe_remotes(remotes: tuple[Remote, ...]) -> str:
    """Return destinations, as far as a line has room for them."""
    if len(remotes) == 1:
        return format_remote(remotes[0])
    names = [remote.host for remote in remotes[:_NAMES_MAX]]
    more = f" and {len(remotes) - _NAMES_MAX} more" if len(remotes) > _NAMES_MAX else ""
    return f"{len(remotes)} destinations: {', '.join(names)}{more}"
