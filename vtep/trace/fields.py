"""Frames from fields that a user gives, with lengths and checksums filled in."""

from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import Final

from attrs import frozen

from vtep.errors import ConfigError
from vtep.wire import arp, checksum, ethernet, icmp_echo, nd
from vtep.wire import ip as inet
from vtep.wire.address import Address

PROTOCOLS: Final = ("tcp", "udp", "icmp", "arp", "nd", "none")
"""Protocols of a frame; `none` is a frame that is not IP."""

TYPE_EXPERIMENTAL: Final = 0x88B5
"""The EtherType of a frame without a protocol: for local experiments (IEEE 802)."""

SOURCE_MAC: Final = b"\2\0\0\0\0\1"
"""The source MAC unless one is given: a locally administered one."""

_SOURCES: Final[dict[int, Address]] = {
    4: IPv4Address("192.0.2.1"),
    6: IPv6Address("2001:db8::1"),
}
"""Source addresses unless one is given: those for documentation."""

_IPV4 = Struct("!BBHHHBBH4s4s")
_IPV6 = Struct("!IHBB16s16s")
_TCP = Struct("!HHIIBBHHH")
_UDP = Struct("!HHHH")
_MSS = b"\2\4\x05\xb4"
"""The MSS option of a SYN, with 1460."""

_ICMP = {4: 1, 6: 58}
_DF = 0x4000
SIZE_MAX: Final = 32000
"""Octets of the longest packet: in hexadecimal, it must fit into a control request."""

_FRAME_MIN = 60
"""Octets to which a frame without a given size is padded: the least of Ethernet, without FCS."""


@frozen
class FrameFields:
    """The fields of a frame; None stands for a default that depends on the others."""

    src_mac: bytes | None = None
    dst_mac: bytes | None = None
    src: Address | None = None
    dst: Address | None = None
    proto: str | None = None
    sport: int | None = None
    dport: int | None = None
    size: int | None = None
    """Octets of the IP packet, as an MTU counts them; without IP, those behind the EtherType."""
    vlan: tuple[int, ...] = ()
    ttl: int = 64
    tos: int = 0
    dont_fragment: bool = False
    syn: bool = False


def build_frame(fields: FrameFields) -> bytes:
    """Return the Ethernet frame with some fields.

    Raises: ConfigError that names an option for fields that are missing or contradict each other.
    """
    proto = _protocol(fields)
    src, dst = _addresses(fields, proto)
    source = fields.src_mac or SOURCE_MAC
    if proto == "none":
        ethertype, packet = TYPE_EXPERIMENTAL, bytes(fields.size or 0)
    elif src is None or dst is None:
        raise ConfigError(f"--dst: is missing: the IP address that {proto} is sent to")
    elif proto == "arp":
        request = arp.Arp(arp.REQUEST, source, src.packed, ethernet.MAC_ZERO, dst.packed)
        ethertype, packet = arp.TYPE, arp.pack(request)
    elif proto == "nd":
        group = nd.solicited_node(dst.packed)
        asked = nd.NdMessage(nd.SOLICITATION, 0, src.packed, group, 0, dst.packed, source)
        ethertype, packet = ethernet.TYPE_IPV6, nd.pack(asked)
    else:
        ethertype = ethernet.TYPE_IPV4 if src.version == 4 else ethernet.TYPE_IPV6
        packet = _packet(fields, proto, src, dst)
    tags = b"".join(
        ethernet.TYPE_8021Q.to_bytes(2) + _vlan(each).to_bytes(2) for each in fields.vlan
    )
    to = fields.dst_mac or _group_mac(dst, proto)
    if to is None:
        raise ConfigError(
            "--dst-mac: is missing: the MAC to which the sender would send, as in: "
            "--dst-mac 02:00:00:00:00:02 (ip neigh shows it there)"
        )
    frame = to + source + tags + ethertype.to_bytes(2) + packet
    return frame if fields.size is not None else frame.ljust(_FRAME_MIN, b"\0")


def _protocol(fields: FrameFields) -> str:
    proto = fields.proto
    if proto is None:
        has_ports = fields.sport is not None or fields.dport is not None
        has_ip = fields.src is not None or fields.dst is not None
        proto = "tcp" if fields.syn else "udp" if has_ports else "icmp" if has_ip else "none"
    if proto not in ("tcp", "udp"):
        for name in ("sport", "dport"):
            if getattr(fields, name) is not None:
                raise ConfigError(f"--{name}: {proto} has no ports; use it with --proto tcp or udp")
    if fields.syn and proto != "tcp":
        raise ConfigError("--syn: is for --proto tcp")
    return proto


def _addresses(fields: FrameFields, proto: str) -> tuple[Address | None, Address | None]:
    """Return the source and destination address; the source has a default."""
    src, dst = fields.src, fields.dst
    if proto == "none":
        return None, None
    if src is None and dst is not None:
        src = _SOURCES[dst.version]
    if src is not None and dst is not None and src.version != dst.version:
        raise ConfigError(f"--src {src}: is of another IP version than --dst {dst}")
    wanted = {"arp": 4, "nd": 6}.get(proto)
    if dst is not None and wanted is not None and dst.version != wanted:
        other = "nd" if proto == "arp" else "arp"
        raise ConfigError(f"--proto {proto}: is for IPv{wanted}; with --dst {dst}: --proto {other}")
    return src, dst


def _vlan(number: int) -> int:
    if not 0 <= number <= 4094:
        raise ConfigError(f"--vlan {number}: must be from 0 to 4094")
    return number


def _group_mac(dst: Address | None, proto: str) -> bytes | None:
    """Return the MAC of a frame to a group; None if a host has to be named."""
    if proto == "arp" or (dst is not None and dst.packed == b"\xff" * 4):
        return b"\xff" * ethernet.MAC_LEN
    if proto == "nd" and dst is not None:
        dst = IPv6Address(nd.solicited_node(dst.packed))
    if isinstance(dst, IPv4Address) and dst.is_multicast:
        # RFC 1112, section 6.4: the low 23 bits of the group.
        return b"\x01\x00\x5e" + bytes((dst.packed[1] & 0x7F, *dst.packed[2:]))
    if isinstance(dst, IPv6Address) and dst.is_multicast:
        return b"\x33\x33" + dst.packed[-4:]  # RFC 2464, section 7
    return None


def _packet(fields: FrameFields, proto: str, src: Address, dst: Address) -> bytes:
    version, protocol = src.version, {"tcp": inet.TCP, "udp": inet.UDP}.get(proto)
    number = protocol or _ICMP[version]
    header = inet.IP_HEADER_MIN[version]
    sport = 40000 if fields.sport is None else fields.sport
    dport = 80 if fields.dport is None else fields.dport
    if proto == "tcp":
        options = _MSS if fields.syn else b""
        flags = inet.TCP_FLAG_SYN if fields.syn else inet.TCP_FLAG_ACK
        words = (inet.TCP_HEADER_MIN + len(options)) // 4
        upper = _TCP.pack(sport, dport, 1, 0 if fields.syn else 1, words << 4, flags, 65535, 0, 0)
        upper += options
    elif proto == "udp":
        upper = _UDP.pack(sport, dport, 0, 0)
    else:
        upper = icmp_echo.pack_request(version, icmp_echo.IcmpEcho(1, 1))
    least = header + len(upper)
    size = least if fields.size is None else fields.size
    if not least <= size <= SIZE_MAX:
        most = f"from {least} to {SIZE_MAX} octets"
        raise ConfigError(f"--size {size}: packets of {proto} have {most}")
    body = bytearray(upper + bytes(size - least))
    if proto == "udp":
        body[4:6] = len(body).to_bytes(2)
    at = {"tcp": 16, "udp": 6}.get(proto, 2)
    total = checksum.ones_sum(body)
    if proto != "icmp" or version == 6:
        pseudo = int.from_bytes(src.packed + dst.packed) + number + len(body)
        total = checksum.fold(total + checksum.fold(pseudo))
    body[at : at + 2] = ((total ^ 0xFFFF) or 0xFFFF).to_bytes(2)
    if version == 6:
        word = 6 << 28 | fields.tos << 20
        return _IPV6.pack(word, len(body), number, fields.ttl, src.packed, dst.packed) + body
    flags = _DF if fields.dont_fragment else 0
    rest = (0x45, fields.tos, size, 1, flags, fields.ttl, number)
    before = _IPV4.pack(*rest, 0, src.packed, dst.packed)
    ip = _IPV4.pack(*rest, checksum.internet_checksum(before), src.packed, dst.packed)
    return ip + body
