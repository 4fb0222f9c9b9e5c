"""The devices, addresses and routes of this host, as the doctor sees them."""

import socket
from contextlib import suppress
from ipaddress import ip_address, ip_interface
from typing import Any

from attrs import frozen

from vtep.doctor import procfs
from vtep.doctor.facts import Conflict, HolderFacts
from vtep.errors import VtepError
from vtep.host.links import IFF_UP, port_vlans
from vtep.host.netlink import IPRoute, NetlinkError
from vtep.io.addresses import FAMILY, sockaddr
from vtep.io.binding import Binding, connected_socket
from vtep.wire import vxlan
from vtep.wire.address import Address, without_scope

_IFA_F_DADFAILED = 0x08
_RT_SCOPE_LINK = 253
"""From the kernel's include/uapi/linux/rtnetlink.h. Larger scopes are narrower."""

_BRIDGE_PORT_STATES = ("disabled", "listening", "learning", "forwarding", "blocking")
"""By BR_STATE_* of the kernel's include/uapi/linux/if_bridge.h."""

_ON_LOWER_DEVICE = frozenset(("vlan", "macvlan", "macvtap", "ipvlan", "ipvtap", "macsec"))
"""Kinds of devices whose IFLA_LINK is the lower device. Of others it may be a peer (veth), or the
underlay device of a tunnel."""


@frozen
class NetDevice:
    """A network device."""

    index: int
    name: str
    mtu: int
    up: bool
    mac: str
    macs: tuple[str, ...]
    """Its MACs: the present one, and the permanent one that a bond may hide."""
    master: int
    """The index of the bridge, bond or VRF that it is a port of, or 0."""
    lower: int
    """The index of the device below a VLAN, a macvlan or the like, or 0."""
    kind: str
    data: Any
    """Attributes of its kind (IFLA_INFO_DATA), as pyroute2 parsed them."""
    port: Any
    """Attributes as a port of its master (IFLA_INFO_SLAVE_DATA)."""

    def port_option(self, name: str) -> int | None:
        """Return an attribute of a bridge port, if this is one."""
        value: int | None = self.port.get(name) if self.port is not None else None
        return value

    @property
    def port_state(self) -> str:
        """The state of a bridge port: forwarding, blocking, ..."""
        state = self.port_option("state")
        known = state is not None and state < len(_BRIDGE_PORT_STATES)
        return _BRIDGE_PORT_STATES[state or 0] if known else "unknown"


@frozen
class NextHop:
    """The output device, source address and router on the route to a remote."""

    dev: str
    source: str | None
    gateway: str | None


class LocalNetwork:
    """A snapshot of this host's network devices and addresses, made by the constructor."""

    def __init__(self, netlink: IPRoute) -> None:
        self._netlink = netlink
        self.devices = {device.index: device for device in map(_parse_link, netlink.get_links())}
        self.by_name = {device.name: device for device in self.devices.values()}
        self.own: dict[Address, int] = {}
        """Device indices by own address."""
        self.addresses: dict[int, list[str]] = {}
        """Addresses with prefix lengths by device index, but for link-local ones."""
        self.failed: list[Conflict] = []
        """Own IPv6 addresses for which duplicate address detection has failed."""
        for item in netlink.get_addr():
            text = item.get("local") or item.get("address")
            address = ip_address(text)
            self.own[address] = item["index"]
            with_length = f"{text}/{item['prefixlen']}"
            if item["scope"] < _RT_SCOPE_LINK:
                self.addresses.setdefault(item["index"], []).append(with_length)
            device = self.devices.get(item["index"])
            if (item.get("flags") or 0) & _IFA_F_DADFAILED and device is not None:
                self.failed.append(Conflict(with_length, device.name))
        # Now: the connection may be closed when they are asked for.
        self._port_vlans: dict[int, dict[int, bool]] = {}
        if any(map(_filters_vlans, self.devices.values())):
            self._port_vlans = port_vlans(netlink)
        self.macs = frozenset(mac for device in self.devices.values() for mac in device.macs)
        """All MAC addresses of this host."""

    # --- addresses --------------------------------------------------------------------------

    def is_own(self, remote: Address) -> bool:
        """Return True if an address is one of this host's."""
        return without_scope(remote) in self.own

    def addresses_of(self, dev: str) -> tuple[str, ...]:
        """Return the addresses of a device with prefix lengths, but for link-local ones."""
        device = self.by_name.get(dev)
        return tuple(self.addresses.get(device.index, ())) if device is not None else ()

    def overlay_addresses(self, tap: str) -> list[str]:
        """Return the addresses of a TAP and of its bridge, but for those that have failed."""
        devices = {each.index for each in (self.by_name.get(tap), self.upper_device(tap)) if each}
        found = [text for index in sorted(devices) for text in self.addresses.get(index, ())]
        failed = {conflict.address for conflict in self.failed}
        return [address for address in found if address not in failed]

    def conflict(self, address: str, mac: str) -> Conflict:
        """Return a conflict about an own address, which another host with this MAC has, too."""
        for index, texts in self.addresses.items():
            for text in texts:
                if ip_interface(text).ip == ip_address(address) and index in self.devices:
                    return Conflict(text, self.devices[index].name, mac)
        return Conflict(address, "", mac)

    # --- devices ----------------------------------------------------------------------------

    def vlans_of(self, port: NetDevice, bridge: NetDevice) -> dict[int, bool] | None:
        """Return the VLANs of a bridge port, and True for tagged frames.

        None if the bridge does not filter by VLAN.
        """
        if not _filters_vlans(bridge):
            return None
        return self._port_vlans.get(port.index, {})

    def is_bridge(self, dev: str) -> bool:
        """Return True if a device is a bridge."""
        return dev in self.by_name and self.by_name[dev].kind == "bridge"

    def bridge_of(self, dev: str) -> NetDevice | None:
        """Return the bridge that a device is a port of, if any."""
        device = self.by_name.get(dev)
        master = self.devices.get(device.master) if device is not None else None
        return master if master is not None and master.kind == "bridge" else None

    def ports_of(self, bridge: NetDevice) -> list[NetDevice]:
        """Return the ports of a bridge."""
        return [device for device in self.devices.values() if device.master == bridge.index]

    def upper_device(self, tap: str) -> NetDevice | None:
        """Return the device through which this host receives from a TAP: its bridge, or the TAP."""
        return self.bridge_of(tap) or self.by_name.get(tap)

    def lower_devices(self, dev: str) -> tuple[str, ...]:
        """Return the devices below a bridge, a bond, a VLAN or the like, at any depth."""
        found: dict[int, None] = {}
        waiting = [device] if (device := self.by_name.get(dev)) is not None else []
        while waiting:
            upper = waiting.pop()
            for device in self.devices.values():
                is_lower = device.master == upper.index or device.index == upper.lower
                if is_lower and device.index not in found:
                    found[device.index] = None
                    waiting.append(device)
        return tuple(self.devices[index].name for index in found)

    def down_towards(self, remote: Address) -> tuple[str, ...]:
        """Return the devices that are down and have an address in the subnet of a remote."""
        host = without_scope(remote)
        return tuple(
            device.name
            for device in self.devices.values()
            if not device.up
            and any(host in ip_interface(text).network for text in self.addresses_of(device.name))
        )

    # --- routes and ports -------------------------------------------------------------------

    def next_hop(self, remote: Address, local: Address | None, dev: str | None = None) -> NextHop:
        """Look up the route to a remote, over `dev` if that is given.

        Raises:
            VtepError: the reason why the remote is not reached.
        """
        family = FAMILY[remote.version]
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
        device = self.devices.get(route.get("oif"))
        if device is None:
            raise VtepError("the route leads nowhere")
        source = route.get("prefsrc")
        if remote.version == 6 and local is None:
            # The source of the route may be a temporary address, and pyvtep prefers a public one.
            with (
                suppress(OSError),
                connected_socket(
                    Binding(family, None, scope), sockaddr(str(remote), vxlan.PORT)
                ) as sock,
            ):
                source = sock.getsockname()[0]
        return NextHop(device.name, source, route.get("gateway"))

    def port_holder(self, port: int) -> HolderFacts:
        """Find the process or the kernel VXLAN devices that have a UDP port."""
        devices = [
            device.name
            for device in self.devices.values()
            if device.kind == "vxlan"
            and device.up
            and device.data is not None
            and device.data.get("vxlan_port") == port
        ]
        name, pid = procfs.process_with_port(port)
        return HolderFacts(
            port,
            f"{name} (process {pid})" if pid else None,
            pyvtep=bool(pid) and procfs.is_pyvtep(pid),
            devices=tuple(devices),
        )


def _parse_link(item: Any) -> NetDevice:
    """Return a device from a message that pyroute2 has parsed."""
    info = item.get("linkinfo")
    kind = (info.get("kind") or "") if info is not None else ""
    port = info.get("slave_data") if info is not None else None
    macs = [item.get("address"), item.get("perm_address")]
    if port is not None:
        macs.append(port.get("bond_slave_perm_hwaddr"))
    return NetDevice(
        index=item["index"],
        name=item.get("ifname"),
        mtu=item.get("mtu"),
        up=bool(item["flags"] & IFF_UP),
        mac=item.get("address") or "",
        macs=tuple(mac for mac in macs if mac),
        master=item.get("master") or 0,
        lower=(item.get("link") or 0) if kind in _ON_LOWER_DEVICE else 0,
        kind=kind,
        data=info.get("data") if info is not None else None,
        port=port,
    )


def _filters_vlans(device: NetDevice) -> bool:
    """Return True if a device is a bridge that filters by VLAN."""
    return device.data is not None and bool(device.data.get("br_vlan_filtering"))
