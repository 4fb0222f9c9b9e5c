"""The neighbours of a process in BGP EVPN: the speakers with which it has sessions."""

from collections.abc import Mapping
from typing import Any, Final

from attrs import Attribute, field, fields, frozen
from attrs.converters import optional

from vtep.config import address_parsers, evpn_parsers, option_parsers
from vtep.config.flags import flag
from vtep.errors import ConfigError, OptionError
from vtep.wire.address import Address

BGP_PORT: Final = 179
"""The TCP port of BGP (RFC 4271, section 8.2.1)."""


def _address(value: object) -> Address:
    return _host("--evpn-neighbor", value)


def _local(value: object) -> Address:
    return _host("--evpn-neighbor-local", value)


def _host(option: str, value: object) -> Address:
    """Return the address of a BGP speaker; of a link-local one, with its device."""
    try:
        address = address_parsers.address(option, value)
    except OptionError as error:
        name = option.removeprefix("--")
        if "dstport" in error.instead:  # That is the port of VXLAN.
            instead = {name: f"{error.instead[name]},port={error.instead['dstport']}"}
            raise OptionError(option, value, "is not an IP address", instead) from None
        reason = error.reason.replace("of a VTEP", "of a BGP speaker")
        raise OptionError(option, value, reason, error.instead) from None
    if address.version == 6 and address.is_link_local and "%" not in str(address):
        reason = f"is link-local; add its device, as in {address}%eth0"
        raise OptionError(option, value, reason)
    return address


@frozen
class Neighbor:
    """A BGP speaker with which there is to be a session: a route reflector, or another leaf."""

    address: Address = field(
        converter=_address,
        metadata={"metavar": "IP", "help": "Address; of a link-local one, with %device."},
    )
    asn: int | None = field(
        default=None,
        converter=optional(evpn_parsers.asn),
        metadata={"metavar": "N", "help": "Its AS number [default: any]."},
    )
    password: str | None = field(
        default=None,
        converter=evpn_parsers.password,
        repr=False,
        metadata={"metavar": "TEXT", "help": "Password of its session [default: that of [evpn]]."},
    )
    port: int = field(
        default=BGP_PORT,
        converter=evpn_parsers.port,
        metadata={"metavar": "PORT", "help": "TCP port on which it listens."},
    )
    local: Address | None = field(
        default=None,
        converter=optional(_local),
        metadata={
            "metavar": "IP",
            "help": "Own address of the session [default: --local, or that of the route].",
        },
    )
    passive: bool = flag(default=False, help="Wait for its connection, and open none.")

    @local.validator
    def _check_local(self, _attribute: "Attribute[Any]", value: Address | None) -> None:
        if value is not None and value.version != self.address.version:
            raise ConfigError(
                f"--evpn-neighbor {self.address}: cannot be reached from its local {value}, which "
                "is of another IP version"
            )
        if value == self.address:
            raise ConfigError(
                f"--evpn-neighbor {self.address}: is its own local, that is, an address of this "
                "host; give the address of another BGP speaker"
            )

    def __str__(self) -> str:
        """Return the neighbour as the command line has it, without its password."""
        parts = [str(self.address)]
        if self.asn is not None:
            parts.append(f"asn={self.asn}")
        if self.port != BGP_PORT:
            parts.append(f"port={self.port}")
        if self.local is not None:
            parts.append(f"local={self.local}")
        return ",".join(parts + ["passive"] * self.passive)


def neighbors(value: object) -> tuple[Neighbor, ...]:
    """Return neighbours, none of which is given twice."""
    found = tuple(map(neighbor, option_parsers.items("--evpn-neighbor", value)))
    option_parsers.distinct("--evpn-neighbor", tuple(str(each.address) for each in found))
    return found


def neighbor(value: object) -> Neighbor:
    """Return a neighbour, given as its address, as `ADDRESS,asn=N`, or as a table."""
    if isinstance(value, Neighbor):
        return value
    if isinstance(value, Mapping):
        known = {each.name for each in fields(Neighbor)}
        for key in value:
            if key not in known:
                names = ", ".join(sorted(known))
                raise ConfigError(f"--evpn-neighbor: {key}: is none of {names}")
        if "address" not in value:
            raise ConfigError("--evpn-neighbor: address is missing")
        return Neighbor(**value)
    if not isinstance(value, str):
        return Neighbor(value)
    address, *rest = value.split(",")
    options: dict[str, Any] = {}
    for each in rest:
        name, separator, text = each.partition("=")
        if name in options:
            raise OptionError("--evpn-neighbor", value, f"{name} is given twice; leave one out")
        if name == "passive" and not separator:
            options[name] = True
        elif name in _PARSERS and separator:
            options[name] = _option_of(value, name, text)
        else:
            reason = (
                "takes asn=N, port=N, local=IP and passive behind the address, as in "
                "10.0.0.1,asn=65001"
            )
            raise OptionError("--evpn-neighbor", value, reason)
    return Neighbor(address, **options)


_PARSERS: Final = {"asn": evpn_parsers.asn, "port": evpn_parsers.port, "local": _local}
"""The options that a text has behind the address."""


def _option_of(value: str, name: str, text: str) -> object:
    """Parse an option of a neighbour. Raises: OptionError, which is about the whole `value`."""
    try:
        return _PARSERS[name](text)
    except OptionError as error:
        given = f"{name} {text}" if text else name
        hint = f": {name}={error.instead[name]}" if name in error.instead else ""
        raise OptionError("--evpn-neighbor", value, f"its {given} {error.reason}{hint}") from None
