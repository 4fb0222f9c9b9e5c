"""What this host says of itself: devices, routes, ports, firewall and counters."""

import os
import socket
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from attrs import frozen
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vtep.doctor.facts import BridgeFacts, HolderFacts, PortFacts
from vtep.errors import VtepError
from vtep.firewall import Packet
from vtep.netfilter import Rules
from vtep.netlink import sees_bridge
from vtep.values import Address, without_scope

_IFF_UP = 1
_STATES = ("disabled", "listening", "learning", "forwarding", "blocking")
_DADFAILED = 0x08
_LINK_LOCAL = 253
"""Scope of an address, and above it all that are closer."""


@frozen
class Link:
    """A network device."""

    index: int
    name: str
    mtu: int
    up: bool
    mac: str
    master: int
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
        """Addresses by device index, without link-local ones."""
        self.failed: list[str] = []
        """Own IPv6 addresses that another host was found to have."""
        for item in netlink.get_addr():
            text = item.get("local") or item.get("address")
            address = ip_address(text)
            self.addresses[address] = item["index"]
            if item["scope"] < _LINK_LOCAL:
                self.outside.setdefault(item["index"], []).append(text)
            if (item.get("flags") or 0) & _DADFAILED:
                self.failed.append(text)

    def is_own(self, remote: Address) -> bool:
        """Whether an address is one of this host's."""
        return without_scope(remote) in self.addresses

    def way(self, remote: Address, local: Address | None) -> Way:
        """How a remote is reached; raises VtepError, saying why not."""
        family = socket.AF_INET6 if remote.version == 6 else socket.AF_INET
        query: dict[str, Any] = {"family": family, "dst": str(without_scope(remote))}
        if local is not None:
            query["src"] = str(without_scope(local))
        scope = getattr(remote, "scope_id", None)
        if scope:
            query["oif"] = socket.if_nametoindex(scope)
        try:
            (route,) = self._netlink.route("get", **query)
        except NetlinkError as error:
            raise VtepError(str(error.args[1])) from error
        link = self.links.get(route.get("oif"))
        if link is None:
            raise VtepError("the route leads nowhere")
        return Way(link.name, route.get("prefsrc"), route.get("gateway"))

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
        netfilter = sees_bridge(bridge.data)
        # To the rules, what crosses a bridge comes and goes through it.
        crosses = Packet(4, device=bridge.name, out=bridge.name)
        state = _port(link, "state")
        return BridgeFacts(
            name=bridge.name,
            up=bridge.up,
            mtu=bridge.mtu,
            state=_STATES[state] if state is not None and state < len(_STATES) else "unknown",
            isolated=_port(link, "isolated") == 1,
            hairpin=_port(link, "mode") == 1,
            others=tuple(others),
            netfilter=netfilter,
            forward=tables.verdict(crosses, "forward") if netfilter else None,
        )

    def above(self, tap: str) -> Link | None:
        """The device that has what comes out of a TAP: its bridge, or itself."""
        link = self.by_name.get(tap)
        bridge = self.links.get(link.master) if link is not None else None
        return bridge if bridge is not None and bridge.kind == "bridge" else link

    def overlay(self, tap: str) -> list[str]:
        """The addresses of a TAP and of its bridge, but those that the kernel found taken."""
        links = {link.index for link in (self.by_name.get(tap), self.above(tap)) if link}
        found = [address for index in sorted(links) for address in self.outside.get(index, ())]
        return [address for address in found if address not in self.failed]

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


def _link(item: Any) -> Link:
    info = item.get("linkinfo")
    return Link(
        index=item["index"],
        name=item.get("ifname"),
        mtu=item.get("mtu"),
        up=bool(item["flags"] & _IFF_UP),
        mac=item.get("address") or "",
        master=item.get("master") or 0,
        kind=(info.get("kind") or "") if info is not None else "",
        data=info.get("data") if info is not None else None,
        port=info.get("slave_data") if info is not None else None,
    )


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
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
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
    """UDP datagrams that were dropped for their checksum since this host, or namespace, began."""
    total = 0
    with suppress(OSError, ValueError, KeyError):
        names, values = (
            line.split()[1:]
            for line in Path("/proc/net/snmp").read_text().splitlines()
            if line.startswith("Udp:")
        )
        total += int(dict(zip(names, values, strict=True))["InCsumErrors"])
    with suppress(OSError, ValueError, KeyError):
        pairs = (line.split() for line in Path("/proc/net/snmp6").read_text().splitlines())
        total += int(dict(pairs)["Udp6InCsumErrors"])
    return total
