"""What a VTEP is asked to be: frozen objects, checked when they are made.

The command line, the configuration file and whatever else configures a VTEP are generated from the
fields of `Config` and `Settings`: a field's metadata carries its help text. What can be judged
without looking at the machine is judged in `values`, option by option, and here, where it takes
two of them.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from attrs import Attribute, field, frozen
from attrs.converters import optional

from vtep.config import option_parsers
from vtep.errors import ConfigError
from vtep.wire import vxlan
from vtep.wire.address import Address, Interface, Network, scope_of


def _yes_or_no(_config: object, attribute: "Attribute[bool]", value: object) -> None:
    option_parsers.yes_or_no(attribute.name, value)


def _switch(*, default: bool, help: str) -> Any:  # noqa: A002  as it is named in the metadata
    """A field that is on or off."""
    return field(default=default, validator=_yes_or_no, metadata={"help": help})


@frozen(kw_only=True)
class Config:
    """One segment: its VNI, its remotes and its TAP device.

    Values may be given as people write them (`remote="192.0.2.2"`, `mac="02:00:00:00:00:01"`);
    they are kept as what they are. Raises ConfigError, naming the option, where one makes no sense.
    """

    vni: int = field(
        converter=option_parsers.vni,
        metadata={"metavar": "N", "help": "VXLAN network identifier, 0 to 16777215."},
    )
    remote: tuple[Address, ...] = field(
        default=(),
        converter=option_parsers.remotes,
        metadata={
            "repeatable": True,
            "metavar": "IP",
            "help": "Address of another VTEP of this segment; repeat it for each of them.",
        },
    )
    group: Address | None = field(
        default=None,
        converter=option_parsers.group,
        metadata={
            "metavar": "IP",
            "help": "Multicast group to join on --dev, to which broadcasts are sent as well.",
        },
    )
    tap: str = field(
        converter=option_parsers.tap,
        metadata={
            "metavar": "NAME",
            "help": "Name of the TAP device [default: vx followed by the VNI].",
        },
    )
    bridge: str | None = field(
        default=None,
        converter=option_parsers.bridge,
        metadata={
            "metavar": "NAME",
            "help": "Bridge of which the TAP is to be a port, as soon as there is one.",
        },
    )
    persist: bool = _switch(
        default=False, help="Leave the TAP, with its addresses and its bridge, when pyvtep ends."
    )
    local: tuple[Address, ...] = field(
        default=(),
        converter=option_parsers.local,
        metadata={
            "repeatable": True,
            "metavar": "IP",
            "help": "Own underlay address, one for each family [default: what the route prefers].",
        },
    )
    dev: str | None = field(
        default=None,
        converter=option_parsers.dev,
        metadata={"metavar": "NAME", "help": "Underlay device to use, whatever the routes say."},
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
            "help": "Range of the UDP ports that datagrams leave from [default: 49152 65535].",
        },
    )
    ttl: int | str = field(
        default="auto",
        converter=option_parsers.ttl,
        metadata={
            "metavar": "N|auto|inherit",
            "help": "TTL or hop limit of the underlay; auto is what the host gives, 1 to a group.",
        },
    )
    tos: int | str = field(
        default=0,
        converter=option_parsers.tos,
        metadata={
            "metavar": "N|inherit",
            "help": "DSCP of the underlay, as the octet that it is in, such as 0xb8.",
        },
    )
    ecn: str = field(
        default="rfc6040",
        converter=option_parsers.ecn,
        metadata={
            "metavar": "rfc6040|kernel",
            "help": "How congestion marks pass between the underlay and the frames inside.",
        },
    )
    df: str = field(
        default="unset",
        converter=option_parsers.df,
        metadata={
            "metavar": "unset|set|inherit",
            "help": "The Don't Fragment bit of the underlay's IPv4.",
        },
    )
    flowlabel: int | str = field(
        default=0,
        converter=option_parsers.flowlabel,
        metadata={"metavar": "N|inherit", "help": "Flow label of the underlay's IPv6."},
    )
    udpcsum: bool = _switch(default=True, help="Send UDP checksums over IPv4.")
    udp6zerocsumtx: bool = _switch(default=False, help="Send zero UDP checksums over IPv6.")
    udp6zerocsumrx: bool = _switch(default=True, help="Accept zero UDP checksums over IPv6.")
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
            "help": "Largest segment that TCP may announce: what the tunnel carries, any, or N.",
        },
    )
    mac: bytes | None = field(
        default=None,
        converter=option_parsers.mac,
        metadata={"metavar": "MAC", "help": "MAC address of the TAP [default: a random one]."},
    )
    address: tuple[Interface, ...] = field(
        default=(),
        converter=option_parsers.interfaces,
        metadata={
            "repeatable": True,
            "metavar": "IP/LEN",
            "help": "Address for the TAP, such as 10.0.0.1/24; may be repeated.",
        },
    )
    anycast_gateway: tuple[Address, ...] = field(
        default=(),
        converter=option_parsers.anycast_gateways,
        metadata={
            "repeatable": True,
            "metavar": "IP",
            "help": "Address of this host's own gateway on the segment, which is kept apart from "
            "one of the same address on other hosts; may be repeated.",
        },
    )
    learning: bool = _switch(
        default=True, help="Learn which remote a MAC is behind, from the frames that it sends."
    )
    ageing: float = field(
        default=300,
        converter=option_parsers.ageing,
        metadata={
            "metavar": "SECONDS",
            "help": "Seconds after which a silent MAC is forgotten; 0 is never.",
        },
    )
    max_addresses: int = field(
        default=65536,
        converter=option_parsers.max_addresses,
        metadata={"metavar": "N", "help": "How many MACs are learned at most; 0 is no limit."},
    )
    max_addresses_per_remote: int | str = field(
        default="auto",
        converter=option_parsers.max_addresses_per_remote,
        metadata={
            "metavar": "auto|N",
            "help": "How many MACs are learned from one remote at most; 0 is no limit; auto is "
            "half of --max-addresses where there are several remotes.",
        },
    )
    proxy: bool = _switch(
        default=False,
        help="Answer ARP and neighbour solicitations for known neighbours whose MAC is in the FDB.",
    )
    accept: tuple[Network, ...] = field(
        default=(),
        converter=option_parsers.accept,
        metadata={
            "repeatable": True,
            "metavar": "PREFIX",
            "help": "Listen to underlay addresses of this prefix too; may be repeated.",
        },
    )
    accept_any: bool = _switch(default=False, help="Listen to every underlay address.")
    reserved_bits: int = field(
        default=0,
        converter=option_parsers.reserved_bits,
        metadata={
            "metavar": "ignore|strict|MASK",
            "help": "Bits of the VXLAN header that must be zero in what comes [default: ignore].",
        },
    )
    gbp: int | None = field(
        default=None,
        converter=option_parsers.gbp,
        metadata={
            "metavar": "ID",
            "help": "Understand the group policy extension, and send frames with this policy id.",
        },
    )
    gbp_accept: frozenset[int] = field(
        default=(),
        converter=option_parsers.gbp_accept,
        metadata={
            "repeatable": True,
            "metavar": "ID",
            "help": "Accept frames with this policy id only, 0 being none; may be repeated.",
        },
    )
    inner_vlan: str = field(
        default="pass",
        converter=option_parsers.inner_vlan,
        metadata={
            "metavar": "pass|strip|drop",
            "help": "What becomes of frames with a VLAN tag, both ways.",
        },
    )
    offload: frozenset[str] = field(
        default="auto",
        converter=option_parsers.offload,
        metadata={
            "metavar": "LIST",
            "help": "Which of tso,uso,gso,gro,tnl to use where there are; or auto, or none.",
        },
    )

    @tap.default
    def _tap_named_after_vni(self) -> str:
        return f"vx{self.vni}"

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions of the underlay in use: 4, 6 or both; 4 if nothing tells."""
        known = [*self.remote, *self.accept] + ([self.group] if self.group else [])
        return tuple(sorted({item.version for item in known or self.local})) or (4,)

    def local_for(self, version: int) -> Address | None:
        """Own underlay address of an IP version, if one was given."""
        return next((item for item in self.local if item.version == version), None)

    @remote.validator
    def _remotes_can_be_reached(self, _attribute: "Attribute[Any]", _value: object) -> None:
        for remote in self.remote:
            self._is_on_dev("--remote", remote)

    @group.validator
    def _group_has_a_device(self, _attribute: "Attribute[Any]", group: Address | None) -> None:
        if group is not None and self.dev is None:
            raise ConfigError(f"--group {group}: say with --dev on which device to join it")

    @bridge.validator
    def _bridge_is_another_device(self, _attribute: "Attribute[Any]", bridge: str | None) -> None:
        # It may be that of --dev: a bridge that has the underlay's address extends its LAN so.
        if bridge == self.tap:
            raise ConfigError(f"--bridge {bridge}: is the device of --tap already")

    @dev.validator
    def _dev_is_not_the_tap(self, _attribute: "Attribute[Any]", dev: str | None) -> None:
        if dev == self.tap:
            raise ConfigError(f"--dev {dev}: is the TAP; give the device of the underlay")

    @local.validator
    def _local_fits_the_others(self, _attribute: "Attribute[Any]", _value: object) -> None:
        for local in self.local:
            if local.version not in self.versions:
                raise ConfigError(
                    f"--local {local}: is IPv{local.version}, but the remotes are "
                    f"IPv{self.versions[0]}"
                )
            if local in self.remote:
                raise ConfigError(f"--remote {local}: is the --local address of this host itself")
            self._is_on_dev("--local", local)

    def _is_on_dev(self, option: str, address: Address) -> None:
        """Raise ConfigError where a link-local address is on no device, or another than `dev`."""
        scope = scope_of(address, self.dev)
        if scope is None and address.is_link_local and address.version == 6:
            raise ConfigError(
                f"{option} {address}: is link-local; say on which device it is, as in "
                f"{address}%eth0, or with --dev"
            )
        if scope is not None and self.dev not in (None, scope):
            raise ConfigError(f"{option} {address}: is not on the underlay --dev {self.dev}")

    @flowlabel.validator
    def _flowlabel_has_a_field(self, _attribute: "Attribute[Any]", label: int | str) -> None:
        if label not in (0, "inherit") and 6 not in self.versions:
            raise ConfigError(f"--flowlabel {label}: is for IPv6, but the underlay is IPv4")

    @gbp_accept.validator
    def _gbp_is_on(self, _attribute: "Attribute[Any]", ids: frozenset[int]) -> None:
        if ids and self.gbp is None:
            raise ConfigError(
                f"--gbp-accept {min(ids)}: needs --gbp, with the policy id to send, or 0 for none"
            )

    @accept.validator
    def _accept_one_way(self, _attribute: "Attribute[Any]", _value: object) -> None:
        if self.accept and self.accept_any:
            raise ConfigError(
                f"--accept {self.accept[0]}: says nothing beside --accept-any; leave one out"
            )


def _segments(value: Iterable[Config]) -> tuple[Config, ...]:
    return tuple(value)


@frozen(kw_only=True)
class Settings:
    """What one process is asked to be: its segments, and what it has besides them.

    Raises ConfigError where two segments get into each other's way.
    """

    control: str = field(
        default="auto",
        converter=option_parsers.control,
        metadata={
            "metavar": "PATH",
            "help": "Socket of the control commands; auto is below /run/pyvtep, none is no socket.",
        },
    )
    state: str | None = field(
        default=None,
        converter=optional(option_parsers.state),
        metadata={"metavar": "FILE", "help": "File that keeps FDB entries over restarts."},
    )
    state_learned: bool = _switch(default=False, help="Keep learned entries in --state as well.")
    segments: tuple[Config, ...] = field(converter=_segments)

    @state_learned.validator
    def _state_is_kept(self, _attribute: "Attribute[Any]", _value: object) -> None:
        if self.state_learned and self.state is None:
            raise ConfigError("--state-learned: needs --state, with the file to keep them in")

    @segments.validator
    def _segments_differ(self, _attribute: "Attribute[Any]", segments: tuple[Config, ...]) -> None:
        check_segments(segments)


def check_segments(segments: Iterable[Config]) -> None:
    """Raise ConfigError where two segments of one process get into each other's way."""
    for _, error in conflicts(segments):
        raise error


def conflicts(segments: Iterable[Config]) -> Iterator[tuple[Config, ConfigError]]:
    """Each segment that gets into the way of one before it, and how."""
    vnis: set[int] = set()
    taps: set[str] = set()
    sockets: dict[tuple[int, int], list[Config]] = {}
    for config in segments:
        try:
            _check_names(config, vnis, taps)
            for version in config.versions:
                others = sockets.setdefault((version, config.dstport), [])
                for other in others:
                    _check_socket(version, other, config)
                if not any(_socket(version, other) == _socket(version, config) for other in others):
                    others.append(config)
        except ConfigError as error:
            yield config, error
        else:
            vnis.add(config.vni)
            taps.add(config.tap)


def _check_names(config: Config, vnis: set[int], taps: set[str]) -> None:
    if config.vni in vnis:
        raise ConfigError(f"--vni {config.vni}: is given twice; a process has one of each VNI")
    if config.tap in taps:
        raise ConfigError(f"--tap {config.tap}: is given twice; each VNI has its own TAP")


def _socket(version: int, config: Config) -> tuple[Address | None, str | None]:
    return config.local_for(version), config.dev


def _check_socket(version: int, one: Config, two: Config) -> None:
    """Raise ConfigError unless two segments can share their UDP port.

    They do by one socket, or by two of which a datagram can reach only one.
    """
    apart = [
        left != right and left is not None and right is not None
        for left, right in zip(_socket(version, one), _socket(version, two), strict=True)
    ]
    if any(apart):
        return
    if _socket(version, one) != _socket(version, two):
        raise ConfigError(
            f"--dstport {two.dstport}: vni {one.vni} and vni {two.vni} share it; give both the "
            "same --local and --dev, or another port to one of them"
        )
    for name, ours, theirs in (
        ("offload", "gro" in one.offload, "gro" in two.offload),
        ("udp6zerocsumrx", one.udp6zerocsumrx, two.udp6zerocsumrx),
    ):
        if ours != theirs:
            what = "gro" if name == "offload" else "zero checksums"
            raise ConfigError(
                f"--{name}: {what} must be on or off for both vni {one.vni} and vni {two.vni}, "
                f"which share UDP port {two.dstport}"
            )
