"""What this host says of itself: devices, routes, ports, firewall and counters."""

import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

from attrs import frozen
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vtep.doctor.facts import Blocked, BridgeFacts, Conflict, HolderFacts, PortFacts
from vtep.errors import VtepError
from vtep.host.firewall import AND, ARP, CROSSING, PacketPattern, Verdict
from vtep.host.links import has_bridge_netfilter
from vtep.host.netfilter import Rules
from vtep.io.addresses import sockaddr
from vtep.io.binding import Binding, connected_probe
from vtep.wire import vxlan
from vtep.wire.address import Address, without_scope

_IFF_UP = 1
_STATES = ("disabled", "listening", "learning", "forwarding", "blocking")
_DADFAILED = 0x08
_LINK_LOCAL = 253
"""Scope of an address, and above it all that are closer."""

_ON_ANOTHER = frozenset(("vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec"))
"""Kinds of devices that send and receive by another device of this host."""

_PORTS = 16
"""Other ports of a bridge at most for which the rules for frames are evaluated."""


@frozen
class Link:
    """A network device."""

    index: int
    name: str
    mtu: int
    up: bool
    mac: str
    macs: tuple[str, ...]
    """All that it has, or has had before it became a port of a bond."""
    master: int
    below: int
    """The index of the device that it is on, of a VLAN or a macvlan; else 0."""
    kind: str
    data: Any
    """Of a device that is a port of a bridge, what it is there; of a VXLAN device, its options."""
    port: Any


@frozen
class Way:
    """How this host reaches another."""

    dev: str
    source: str | None
    gateway: str | None


class Surroundings:
    """The network devices and addresses of this host, as they were when this was made."""

    def __init__(self, netlink: IPRoute) -> None:
        self._netlink = netlink
        self.links = {link.index: link for link in map(_link, netlink.get_links())}
        self.by_name = {link.name: link for link in self.links.values()}
        self.addresses: dict[Address, int] = {}
        """Device indices by own address."""
        self.outside: dict[int, list[str]] = {}
        """Addresses with their prefix lengths by device index, without link-local ones."""
        self.failed: list[Conflict] = []
        """Own IPv6 addresses that another host was found to have."""
        for item in netlink.get_addr():
            text = item.get("local") or item.get("address")
            address = ip_address(text)
            self.addresses[address] = item["index"]
            with_length = f"{text}/{item['prefixlen']}"
            if item["scope"] < _LINK_LOCAL:
                self.outside.setdefault(item["index"], []).append(with_length)
            link = self.links.get(item["index"])
            if (item.get("flags") or 0) & _DADFAILED and link is not None:
                self.failed.append(Conflict(with_length, link.name))
        self.macs = frozenset(mac for link in self.links.values() for mac in link.macs)
        """The MAC addresses of this host, also those that its devices had before a bond."""

    def is_own(self, remote: Address) -> bool:
        """Whether an address is one of this host's."""
        return without_scope(remote) in self.addresses

    def addresses_of(self, dev: str) -> tuple[str, ...]:
        """Return the addresses of a device with their prefix lengths, without link-local ones."""
        link = self.by_name.get(dev)
        return tuple(self.outside.get(link.index, ())) if link is not None else ()

    def down_towards(self, remote: Address) -> tuple[str, ...]:
        """Return the devices that are down and have an address in the subnet of a remote."""
        host = without_scope(remote)
        return tuple(
            link.name
            for link in self.links.values()
            if not link.up
            and any(host in ip_interface(text).network for text in self.addresses_of(link.name))
        )

    def lower(self, dev: str) -> tuple[str, ...]:
        """Return the devices below a bridge, a bond, a VLAN or the like, at any depth."""
        found: dict[int, None] = {}
        waiting = [link] if (link := self.by_name.get(dev)) is not None else []
        while waiting:
            upper = waiting.pop()
            for link in self.links.values():
                below = link.master == upper.index or link.index == upper.below
                if below and link.index not in found:
                    found[link.index] = None
                    waiting.append(link)
        return tuple(self.links[index].name for index in found)

    def is_bridge(self, dev: str) -> bool:
        """Return whether a device is a bridge."""
        return dev in self.by_name and self.by_name[dev].kind == "bridge"

    def way(self, remote: Address, local: Address | None, dev: str | None = None) -> Way:
        """Return how a remote is reached, over `dev` if one is to be used.

        Raises: VtepError, saying why it is not reached.
        """
        family = socket.AF_INET6 if remote.version == 6 else socket.AF_INET
        query: dict[str, Any] = {"family": family, "dst": str(without_scope(remote))}
        if local is not None:
            query["src"] = str(without_scope(local))
        scope = getattr(remote, "scope_id", None) or dev
        if scope:
            query["oif"] = socket.if_nametoindex(scope)
        try:
            (route,) = self._netlink.route("get", **query)
        except NetlinkError as error:
            raise VtepError(str(error.args[1])) from error
        link = self.links.get(route.get("oif"))
        if link is None:
            raise VtepError("the route leads nowhere")
        source = route.get("prefsrc")
        if remote.version == 6 and local is None:
            # The kernel's answer may be a temporary address, from which no pyvtep sends.
            with (
                suppress(OSError),
                connected_probe(
                    Binding(family, None, scope), sockaddr(str(remote), vxlan.PORT)
                ) as probe,
            ):
                source = probe.getsockname()[0]
        return Way(link.name, source, route.get("gateway"))

    def bridge_of(self, tap: str, tables: Rules) -> BridgeFacts | None:
        """The bridge that a TAP is on."""
        link = self.by_name.get(tap)
        bridge = self.links.get(link.master) if link is not None else None
        if link is None or bridge is None or bridge.kind != "bridge":
            return None
        others = [
            PortFacts(other.name, other.mtu, isolated=_port(other, "isolated") == 1)
            for other in self.links.values()
            if other.master == bridge.index and other.index != link.index
        ]
        state = _port(link, "state")
        return BridgeFacts(
            name=bridge.name,
            up=bridge.up,
            mtu=bridge.mtu,
            addresses=tuple(self.outside.get(bridge.index, ())),
            state=_STATES[state] if state is not None and state < len(_STATES) else "unknown",
            isolated=_port(link, "isolated") == 1,
            hairpin=_port(link, "mode") == 1,
            others=tuple(others),
            own_netfilter=_has_own_netfilter(bridge.data),
            packets=blocked(
                (f"IPv{version}", tables.verdict(_crossing(version, bridge.name), *CROSSING))
                for version in (4, 6)
                if has_bridge_netfilter(bridge.data, version)
            ),
        )

    def frames_blocked(self, tap: str, tables: Rules) -> tuple[Blocked, ...]:
        """Return the frames that rules for frames drop between a TAP and what is behind it."""
        bridge = self.above(tap)
        hooks: tuple[str, ...] = ("ingress", "egress")
        ports = [""]
        if bridge is not None and bridge.name != tap:
            hooks += CROSSING
            on_bridge = (each for each in self.links.values() if each.master == bridge.index)
            ports = [each.name for each in on_bridge if each.name != tap][:_PORTS] or ports
        ways = [(tap, port) for port in ports] + [(port, tap) for port in ports]
        return blocked(
            (
                what,
                tables.verdict(
                    PacketPattern(
                        *(version, None, None, into or None, out or None),
                        bridge=bridge.name if bridge is not None else "",
                        accept_by=tap,
                    ),
                    *hooks,
                ),
            )
            for what, version in (("IPv4", 4), ("IPv6", 6), ("ARP", ARP))
            for into, out in ways
        )

    def packets_blocked(self, tap: str, tables: Rules) -> tuple[Blocked, ...]:
        """Return the IP between a segment and this host itself that rules for IP drop."""
        above = self.above(tap)
        if above is None:
            return ()
        ways: list[tuple[str, Verdict | None]] = []
        for version in (4, 6):
            texts = self.outside.get(above.index, ())
            if any(ip_interface(text).version == version for text in texts):
                what = f"IPv{version}"
                into = PacketPattern(version, device=above.name, state=None)
                ways.append(
                    (f"{what} from the segment", tables.verdict(into, "prerouting", "input"))
                )
                out = PacketPattern(version, out=above.name, state=None)
                ways.append(
                    (f"{what} to the segment", tables.verdict(out, "output", "postrouting"))
                )
        return blocked((what, verdict) for what, verdict in ways if verdict and verdict.certain)

    def above(self, tap: str) -> Link | None:
        """The device that has what comes out of a TAP: its bridge, or itself."""
        link = self.by_name.get(tap)
        bridge = self.links.get(link.master) if link is not None else None
        return bridge if bridge is not None and bridge.kind == "bridge" else link

    def overlay(self, tap: str) -> list[str]:
        """The addresses of a TAP and of its bridge, but those that the kernel found taken."""
        links = {link.index for link in (self.by_name.get(tap), self.above(tap)) if link}
        found = [address for index in sorted(links) for address in self.outside.get(index, ())]
        failed = {conflict.address for conflict in self.failed}
        return [address for address in found if address not in failed]

    def holders(self, port: int) -> HolderFacts:
        """Who has a UDP port."""
        devices = [
            link.name
            for link in self.links.values()
            if link.kind == "vxlan" and link.up and _vxlan(link, "vxlan_port") == port
        ]
        name, pid = _process_with(port)
        return HolderFacts(
            port,
            f"{name} (process {pid})" if pid else None,
            pyvtep=bool(pid) and _is_pyvtep(pid),
            devices=tuple(devices),
        )


def blocked(found: Iterable[tuple[str, Verdict | None]]) -> tuple[Blocked, ...]:
    """Return what is dropped, once for the same rules, the certain ones first."""
    whats: dict[tuple[str, bool], dict[str, None]] = {}
    fixes: dict[tuple[str, bool], dict[str, None]] = {}
    for what, verdict in found:
        if verdict is not None:
            key = (verdict.rule, verdict.certain)
            whats.setdefault(key, {})[what] = None
            fixes.setdefault(key, {}).update(dict.fromkeys(verdict.fix.split(AND)))
    told = [
        Blocked(_listed(list(names)), Verdict(rule, AND.join(fixes[rule, certain]), certain))
        for (rule, certain), names in whats.items()
    ]
    return tuple(sorted(told, key=lambda each: not each.verdict.certain))


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _crossing(version: int, bridge: str) -> PacketPattern:
    # To the rules for IP, what crosses a bridge comes in and goes out by the bridge.
    return PacketPattern(version, device=bridge, out=bridge)


def _link(item: Any) -> Link:
    info = item.get("linkinfo")
    kind = (info.get("kind") or "") if info is not None else ""
    port = info.get("slave_data") if info is not None else None
    macs = [item.get("address"), item.get("perm_address")]
    if port is not None:
        macs.append(port.get("bond_slave_perm_hwaddr"))
    return Link(
        index=item["index"],
        name=item.get("ifname"),
        mtu=item.get("mtu"),
        up=bool(item["flags"] & _IFF_UP),
        mac=item.get("address") or "",
        macs=tuple(mac for mac in macs if mac),
        master=item.get("master") or 0,
        below=(item.get("link") or 0) if kind in _ON_ANOTHER else 0,
        kind=kind,
        data=info.get("data") if info is not None else None,
        port=port,
    )


def _has_own_netfilter(data: Any) -> bool:
    names = ("br_nf_call_iptables", "br_nf_call_ip6tables")
    return data is not None and any(data.get(name) for name in names)


def _port(link: Link, name: str) -> int | None:
    value: int | None = link.port.get(name) if link.port is not None else None
    return value


def _vxlan(link: Link, name: str) -> int | None:
    value: int | None = link.data.get(name) if link.data is not None else None
    return value


# --- who has a port -------------------------------------------------------------------------


def _process_with(port: int) -> tuple[str, int]:
    """Name and number of the process that has a UDP port; "" and 0 if there is none to be seen."""
    inodes = set()
    for table in ("udp", "udp6"):
        with suppress(OSError):
            for line in Path(f"/proc/thread-self/net/{table}").read_text().splitlines()[1:]:
                columns = line.split()
                if int(columns[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{columns[9]}]")
    if not inodes:
        return "", 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(str(fd.readlink()) in inodes for fd in (process / "fd").iterdir()):
                return (process / "comm").read_text().strip(), int(process.name)
    return "", 0


def _is_pyvtep(pid: int) -> bool:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return any(Path(os.fsdecode(word)).name in ("pyvtep", "vtep") for word in words[:4])
    return False


# --- counters -------------------------------------------------------------------------------


def checksum_errors() -> int:
    """Return the UDP datagrams that this network namespace has dropped for their checksum."""
    total = 0
    here = Path("/proc/thread-self/net")
    with suppress(OSError, ValueError, KeyError):
        names, values = (
            line.split()[1:]
            for line in (here / "snmp").read_text().splitlines()
            if line.startswith("Udp:")
        )
        total += int(dict(zip(names, values, strict=True))["InCsumErrors"])
    with suppress(OSError, ValueError, KeyError):
        pairs = (line.split() for line in (here / "snmp6").read_text().splitlines())
        total += int(dict(pairs)["Udp6InCsumErrors"])
    return total
