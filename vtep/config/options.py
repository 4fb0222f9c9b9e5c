"""`Config`: the options of one segment, each with its parser, its default and its help text.

The command line, the configuration file and the control socket are generated from the fields of
`Config` and of `settings.Settings`. A parser checks one option, and the validators here check two
of them together. None of them looks at the machine.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import Attribute, Factory, evolve, field, frozen

from vtep.config import address_parsers, docker_parsers, evpn_parsers, option_parsers
from vtep.config import evpn as evpn_options
from vtep.config.flags import check_flag, flag
from vtep.config.host_names import HostName, usable_addresses
from vtep.config.overlap import find_overlap
from vtep.errors import ConfigError
from vtep.wire import vxlan
from vtep.wire.address import Address, Interface, Network
from vtep.wire.bgp.communities import RouteTarget


@frozen(kw_only=True)
class Config:
    """The configuration of one segment: its VNI, its remotes, its TAP device and all else.

    Values may be given in any form that a parser accepts (`remote="192.0.2.2"`,
    `mac="02:00:00:00:00:01"`), and are kept in their normal form.

    Raises: ConfigError, beginning with the option, if a value makes no sense on any machine.
    """

    vni: int = field(
        converter=option_parsers.vni,
        metadata={"metavar": "N", "help": "VXLAN network identifier, 0 to 16777215."},
    )
    remote: tuple[Address | HostName, ...] = field(
        default=(),
        converter=address_parsers.remotes,
        metadata={
            "repeatable": True,
            "metavar": "IP|NAME",
            "help": "Underlay address of another VTEP of the segment, or a host name that has the "
            "addresses of some; may be repeated.",
        },
    )
    group: Address | None = field(
        default=None,
        converter=address_parsers.group,
        metadata={
            "metavar": "IP",
            "help": "Multicast group to join on --dev; BUM frames are sent to it as well.",
        },
    )
    tap: str = field(
        converter=address_parsers.tap,
        metadata={
            "metavar": "NAME",
            "help": "Name of the TAP device [default: vx followed by the VNI].",
        },
    )
    netns: str | None = field(
        default=None,
        converter=option_parsers.netns,
        metadata={
            "metavar": "PID|PATH",
            "help": "Network namespace for the TAP, by a process in it or by its file [default: "
            "that of pyvtep].",
        },
    )
    tap_fd: int | None = field(
        default=None,
        converter=option_parsers.tap_fd,
        metadata={
            "metavar": "N",
            "help": "Open descriptor of a TAP to use, which pyvtep inherits from its parent.",
        },
    )
    vlan: int | None = field(
        default=None,
        converter=option_parsers.vlan,
        metadata={
            "repeatable": True,
            "metavar": "VID[:VNI]",
            "help": "VLAN of the TAP that carries the VNI. Without --vni: VLANs and their VNIs, as "
            "in 10:1010 or 20-29:1020-1029; may be repeated.",
        },
    )
    bridge: str | None = field(
        default=None,
        converter=address_parsers.bridge,
        metadata={
            "metavar": "NAME",
            "help": "Bridge to attach the TAP to, now or as soon as it exists.",
        },
    )
    docker_network: str | None = field(
        default=None,
        converter=docker_parsers.docker_network,
        metadata={
            "metavar": "NAME",
            "help": "Docker network to whose bridge the TAP is attached, now or as soon as it "
            "exists; its gateways are anycast gateways.",
        },
    )
    docker_host: str | None = field(
        default=None,
        converter=docker_parsers.docker_host,
        metadata={
            "metavar": "URL",
            "help": "Address of the Docker engine of --docker-network [default: $DOCKER_HOST, or "
            "unix:///var/run/docker.sock].",
        },
    )
    persist: bool = flag(
        default=False, help="Keep the TAP, with its addresses and its bridge, when pyvtep ends."
    )
    local: tuple[Address, ...] = field(
        default=(),
        converter=address_parsers.local,
        metadata={
            "repeatable": True,
            "metavar": "IP",
            "help": "Source address on the underlay, one for each family [default: the route's].",
        },
    )
    dev: str | None = field(
        default=None,
        converter=address_parsers.dev,
        metadata={
            "metavar": "NAME",
            "help": "Underlay device to use instead of the one that routes choose.",
        },
    )
    dstport: int = field(
        default=vxlan.PORT,
        converter=option_parsers.dstport,
        metadata={
            "metavar": "PORT",
            "help": "UDP port of all VTEPs (kernel devices made without 'dstport' use 8472).",
        },
    )
    srcport: tuple[int, int] = field(
        default=(vxlan.SOURCE_PORTS[0], vxlan.SOURCE_PORTS[-1]),
        converter=option_parsers.srcport,
        metadata={
            "metavar": "MIN MAX",
            "help": "Range of UDP source ports [default: 49152 65535].",
        },
    )
    ttl: int | str = field(
        default="auto",
        converter=option_parsers.ttl,
        metadata={
            "metavar": "N|auto|inherit",
            "help": "TTL or hop limit of outer packets; auto is the host's default, 1 to a group.",
        },
    )
    tos: int | str = field(
        default=0,
        converter=option_parsers.tos,
        metadata={
            "metavar": "N|inherit",
            "help": "TOS octet of outer packets, with the DSCP in its upper six bits, as in 0xb8.",
        },
    )
    ecn: str = field(
        default="rfc6040",
        converter=option_parsers.ecn,
        metadata={
            "metavar": "rfc6040|kernel",
            "help": "Rules for copying ECN marks between inner and outer headers.",
        },
    )
    df: str = field(
        default="unset",
        converter=option_parsers.df,
        metadata={
            "metavar": "unset|set|inherit",
            "help": "Don't Fragment bit of outer IPv4 packets.",
        },
    )
    flowlabel: int | str = field(
        default=0,
        converter=option_parsers.flowlabel,
        metadata={"metavar": "N|inherit", "help": "Flow label of outer IPv6 packets."},
    )
    udpcsum: bool = flag(default=True, help="Send UDP checksums over IPv4.")
    udp6zerocsumtx: bool = flag(default=False, help="Send zero UDP checksums over IPv6.")
    udp6zerocsumrx: bool = flag(default=True, help="Accept zero UDP checksums over IPv6.")
    mtu: int | None = field(
        default=None,
        converter=option_parsers.mtu,
        metadata={
            "metavar": "OCTETS",
            "help": "Largest IP packet in the tunnel; the TAP's MTU too, unless it is on a bridge "
            "[default: underlay MTU less 50 over IPv4, 70 over IPv6].",
        },
    )
    mss_clamp: int | str = field(
        default="auto",
        converter=option_parsers.mss_clamp,
        metadata={
            "metavar": "auto|off|N",
            "help": "Largest MSS that TCP may announce: what the tunnel carries, any, or N.",
        },
    )
    mac: bytes | None = field(
        default=None,
        converter=address_parsers.mac,
        metadata={"metavar": "MAC", "help": "MAC address of the TAP [default: random]."},
    )
    address: tuple[Interface, ...] = field(
        default=(),
        converter=address_parsers.interfaces,
        metadata={
            "repeatable": True,
            "metavar": "IP/LEN",
            "help": "Address of the TAP, such as 10.0.0.1/24; may be repeated.",
        },
    )
    anycast_gateway: tuple[Address, ...] = field(
        default=(),
        converter=address_parsers.anycast_gateways,
        metadata={
            "repeatable": True,
            "metavar": "IP",
            "help": "Address of this host's gateway on the segment, which gateways of other hosts "
            "have as well; may be repeated.",
        },
    )
    evpn: bool = flag(
        default=False,
        help="Take part in the BGP EVPN fabric: its routes say which remotes and MACs there are.",
    )
    route_target: tuple[RouteTarget, ...] = field(
        default=(),
        converter=evpn_parsers.route_target,
        metadata={
            "repeatable": True,
            "metavar": "TARGET",
            "help": "Route target of the VNI's EVPN routes, such as 65000:100, for import and "
            "export [default: from AS number and VNI]; may be repeated.",
        },
    )
    route_target_import: tuple[RouteTarget, ...] = field(
        default=(),
        converter=evpn_parsers.route_target_import,
        metadata={
            "repeatable": True,
            "metavar": "TARGET",
            "help": "Route target of routes to take [default: any AS and the VNI]; may be "
            "repeated.",
        },
    )
    route_target_export: tuple[RouteTarget, ...] = field(
        default=(),
        converter=evpn_parsers.route_target_export,
        metadata={
            "repeatable": True,
            "metavar": "TARGET",
            "help": "Route target of routes that are announced [default: the AS and the VNI]; may "
            "be repeated.",
        },
    )
    rd: str | None = field(
        default=None,
        converter=evpn_parsers.rd,
        metadata={
            "metavar": "RD",
            "help": "Route distinguisher of the VNI's EVPN routes [default: BGP identifier and "
            "VNI].",
        },
    )
    learning: bool = field(
        default=Factory(lambda config: not config.evpn, takes_self=True),
        validator=check_flag,
        metadata={
            "help": "Learn the remote of a MAC address from the frames that it sends [default: on; "
            "with --evpn: off].",
        },
    )
    ageing: float = field(
        default=300,
        converter=option_parsers.ageing,
        metadata={
            "metavar": "SECONDS",
            "help": "Lifetime in seconds of a learned MAC that sends nothing; 0 is unlimited.",
        },
    )
    max_addresses: int = field(
        default=65536,
        converter=option_parsers.max_addresses,
        metadata={"metavar": "N", "help": "Maximum number of learned MACs; 0 means no limit."},
    )
    max_addresses_per_remote: int | str = field(
        default="auto",
        converter=option_parsers.max_addresses_per_remote,
        metadata={
            "metavar": "auto|N",
            "help": "Maximum number of MACs learned from one remote; 0 means no limit; auto is "
            "half of --max-addresses if there are several remotes.",
        },
    )
    mac_move_limit: int = field(
        default=5,
        converter=option_parsers.mac_move_limit,
        metadata={
            "metavar": "N",
            "help": "Moves to another remote that a MAC may make within 180 seconds before it is "
            "held where it is; 0 means no limit.",
        },
    )
    mac_move_hold: float = field(
        default=300,
        converter=option_parsers.mac_move_hold,
        metadata={
            "metavar": "SECONDS",
            "help": "Time in seconds for which a MAC that moves too often is held at most.",
        },
    )
    storm_broadcast: int | str = field(
        default=10000,
        converter=option_parsers.storm_broadcast,
        metadata={
            "metavar": "RATE[:BURST]|off",
            "help": "Most broadcasts that are forwarded, in frames a second, from the TAP and from "
            "each remote; the burst is a tenth of the rate unless it is given.",
        },
    )
    storm_multicast: int | str = field(
        default=20000,
        converter=option_parsers.storm_multicast,
        metadata={
            "metavar": "RATE[:BURST]|off",
            "help": "The same for multicasts.",
        },
    )
    storm_unknown_unicast: int | str = field(
        default="auto",
        converter=option_parsers.storm_unknown_unicast,
        metadata={
            "metavar": "RATE[:BURST]|auto|off",
            "help": "The same for frames from the TAP to MACs that are not in the FDB; auto is "
            "20000 with --learning and off without.",
        },
    )
    liveness_interval: float = field(
        default=10,
        converter=option_parsers.liveness_interval,
        metadata={
            "metavar": "SECONDS",
            "help": "Time in seconds after which a remote that is quiet is asked whether it is "
            "there; 0 asks none.",
        },
    )
    loop_block: float = field(
        default=30,
        converter=option_parsers.loop_block,
        metadata={
            "metavar": "SECONDS",
            "help": "Time in seconds for which flooding to and from a remote is stopped when a "
            "loop through it is found; 0 disables loop protection.",
        },
    )
    proxy: bool = flag(
        default=False,
        help="Answer ARP requests and neighbour solicitations for neighbours that are known and "
        "whose MAC is in the FDB.",
    )
    accept: tuple[Network, ...] = field(
        default=(),
        converter=address_parsers.accept,
        metadata={
            "repeatable": True,
            "metavar": "PREFIX",
            "help": "Accept datagrams from this underlay prefix as well; may be repeated.",
        },
    )
    accept_any: bool = flag(default=False, help="Accept datagrams from any underlay address.")
    reserved_bits: int = field(
        default=0,
        converter=option_parsers.reserved_bits,
        metadata={
            "metavar": "ignore|strict|MASK",
            "help": "Bits of the VXLAN header that must be zero on receive [default: ignore].",
        },
    )
    gbp: int | None = field(
        default=None,
        converter=option_parsers.gbp,
        metadata={
            "metavar": "ID",
            "help": "Enable the group policy extension (GBP); send frames with this policy ID.",
        },
    )
    gbp_accept: frozenset[int] = field(
        default=(),
        converter=option_parsers.gbp_accept,
        metadata={
            "repeatable": True,
            "metavar": "ID",
            "help": "Accept only frames with this policy ID, 0 for those without; may be repeated.",
        },
    )
    inner_vlan: str = field(
        default="pass",
        converter=option_parsers.inner_vlan,
        metadata={
            "metavar": "pass|strip|drop",
            "help": "Handling of inner frames with a VLAN tag, in both directions.",
        },
    )
    offload: frozenset[str] = field(
        default="auto",
        converter=option_parsers.offload,
        metadata={
            "metavar": "LIST",
            "help": "Offloads to use if available: some of tso,uso,gso,gro,tnl, or auto, or none.",
        },
    )
    fast_path: bool = flag(
        default=True,
        help="Forward with code that numba compiles at run time, if it is installed: pip install "
        "numba.",
    )

    @tap.default
    def _default_tap(self) -> str:
        return f"vx{self.vni}"

    @property
    def remote_names(self) -> tuple[str, ...]:
        """The host names among the remotes."""
        return tuple(each.name for each in self.remote if isinstance(each, HostName))

    @property
    def remote_addresses(self) -> tuple[Address, ...]:
        """The addresses of all remotes, those that names have now included."""
        found: dict[Address, None] = {}
        for each in self.remote:
            found.update(dict.fromkeys(each.addresses if isinstance(each, HostName) else (each,)))
        return tuple(found)

    def with_addresses(self, found: Mapping[str, Iterable[Address]]) -> "Config":
        """Return this configuration with those of the addresses of its names that it can use.

        Names that are not in `found` keep what they have.
        """
        if found.keys().isdisjoint(self.remote_names):
            return self
        remote = tuple(
            HostName(each.name, usable_addresses(self, found[each.name]))
            if isinstance(each, HostName) and each.name in found
            else each
            for each in self.remote
        )
        changed = any(
            isinstance(before, HostName)
            and isinstance(after, HostName)
            and before.addresses != after.addresses
            for before, after in zip(self.remote, remote, strict=True)
        )
        # Mostly not, and to check all options again for a thousand VNIs would take a while.
        return evolve(self, remote=remote) if changed else self

    @property
    def versions(self) -> tuple[int, ...]:
        """IP versions in use on the underlay: 4, 6 or both; 4 if there is no address."""
        # Own addresses count only if there are no others; otherwise they must fit those.
        known = [*self.remote_addresses, *self.accept] + ([self.group] if self.group else [])
        return tuple(sorted({item.version for item in known or self.local})) or (4,)

    def local_for(self, version: int) -> Address | None:
        """Return the own underlay address of an IP version, if one is configured."""
        return next((item for item in self.local if item.version == version), None)

    @evpn.validator
    def _check_evpn(self, _attribute: "Attribute[Any]", _value: object) -> None:
        evpn_options.check_segment(self)

    @remote.validator
    def _check_remotes(self, _attribute: "Attribute[Any]", _value: object) -> None:
        for remote in self.remote:
            if not isinstance(remote, HostName):
                address_parsers.check_scope("--remote", remote, self.dev)

    @group.validator
    def _check_group(self, _attribute: "Attribute[Any]", group: Address | None) -> None:
        # Without one, the kernel would join on the device of its route to the group, if it has one.
        if group is not None and self.dev is None:
            raise ConfigError(f"--group {group}: needs --dev, the device to join it on")

    @tap_fd.validator
    def _check_tap_fd(self, _attribute: "Attribute[Any]", tap_fd: int | None) -> None:
        if tap_fd is not None and self.netns is not None:
            raise ConfigError(
                f"--tap-fd {tap_fd}: is the TAP of a network namespace already; leave out --netns"
            )

    @vlan.validator
    def _check_vlan(self, _attribute: "Attribute[Any]", vlan: int | None) -> None:
        # The namespace of a TAP is opened for one VNI.
        for name, value in (("netns", self.netns), ("tap-fd", self.tap_fd)):
            if vlan is not None and value is not None:
                raise ConfigError(f"--{name} {value}: is for a TAP with one VNI; leave out --vlan")

    @bridge.validator
    def _check_bridge(self, _attribute: "Attribute[Any]", bridge: str | None) -> None:
        # It may be the device of --dev: a bridge with the underlay's address extends its LAN.
        if bridge == self.tap:
            raise ConfigError(f"--bridge {bridge}: is the TAP itself; name another device")

    @docker_network.validator
    def _check_docker_network(self, _attribute: "Attribute[Any]", network: str | None) -> None:
        if network is None:
            return
        if self.bridge is not None:
            raise ConfigError(
                f"--docker-network {network}: the network says which bridge it is; leave out "
                "--bridge"
            )
        if self.vlan is not None:
            raise ConfigError(
                f"--docker-network {network}: the containers have no VLANs; leave out --vlan"
            )
        if self.netns is not None or self.tap_fd is not None:
            option = "--netns" if self.netns is not None else "--tap-fd"
            raise ConfigError(
                f"--docker-network {network}: the TAP is in the network namespace of pyvtep, where "
                f"the bridge of the network is; leave out {option}, or give --bridge instead"
            )

    @anycast_gateway.validator
    def _check_anycast_gateway(self, _attribute: "Attribute[Any]", gateways: object) -> None:
        if gateways and self.docker_network is not None:
            raise ConfigError(
                f"--docker-network {self.docker_network}: the network says which gateways it has; "
                "leave out --anycast-gateway"
            )

    @docker_host.validator
    def _check_docker_host(self, _attribute: "Attribute[Any]", host: str | None) -> None:
        if host is not None and self.docker_network is None:
            raise ConfigError(f"--docker-host {host}: needs --docker-network, with a network there")

    @dev.validator
    def _check_dev(self, _attribute: "Attribute[Any]", dev: str | None) -> None:
        # Datagrams bound to the TAP would be encapsulated again, for ever. With --netns, the device
        # of this name here is another one.
        if dev == self.tap and self.netns is None:
            raise ConfigError(f"--dev {dev}: is the TAP itself; name the underlay device")

    @local.validator
    def _check_local(self, _attribute: "Attribute[Any]", _value: object) -> None:
        for local in self.local:
            # The addresses of names fit: `usable_addresses`. There may be none yet.
            if local.version not in self.versions and not self.remote_names:
                raise ConfigError(
                    f"--local {local}: is IPv{local.version}, but the remotes are "
                    f"IPv{self.versions[0]}"
                )
            if local in self.remote:
                raise ConfigError(f"--remote {local}: is the --local address of this host")
            address_parsers.check_scope("--local", local, self.dev)

    @flowlabel.validator
    def _check_flowlabel(self, _attribute: "Attribute[Any]", label: int | str) -> None:
        if label not in (0, "inherit") and 6 not in self.versions and not self.remote_names:
            raise ConfigError(f"--flowlabel {label}: is for IPv6, but the underlay is IPv4")

    @gbp_accept.validator
    def _check_gbp_accept(self, _attribute: "Attribute[Any]", ids: frozenset[int]) -> None:
        if ids and self.gbp is None:
            raise ConfigError(
                f"--gbp-accept {min(ids)}: needs --gbp, with the policy ID to send, or 0 for none"
            )

    @accept.validator
    def _check_accept(self, _attribute: "Attribute[Any]", _value: object) -> None:
        if self.accept and self.accept_any:
            raise ConfigError(
                f"--accept {self.accept[0]}: is redundant with --accept-any; leave one out"
            )

    @address.validator
    def _check_address(self, _attribute: "Attribute[Any]", _value: object) -> None:
        if self.netns is not None:
            return  # The route to its subnet is in the namespace of the TAP.
        # Overlaps with the underlay's own subnets depend on the machine: a port checks those.
        overlap = find_overlap(self.address, self.remote_addresses, ())
        if overlap is not None:
            raise ConfigError(str(overlap))
        if self.address and self.vlan is not None:
            # What the host sends from an address of the TAP itself has no tag, so it is in no VLAN.
            raise ConfigError(
                f"--address {self.address[0]}: belongs to no VLAN; give it to a VLAN device "
                f"instead: ip link add link {self.tap} name {self.tap}.{self.vlan} type vlan id "
                f"{self.vlan}, or to the bridge"
            )
