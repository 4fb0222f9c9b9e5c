"""The parameters of a request, with a check of their types and ranges.

A parameter of the wrong type or range raises ConfigError, with a line that begins with its name.
"""

from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, TypeAlias

from vtep.errors import ConfigError, FdbError, shown
from vtep.forwarding.fdb import (
    SEQUENCE_MAX,
    DestinationOrigin,
    EntryKind,
    EntryState,
    Filter,
    Remote,
    parse_remote,
)
from vtep.wire import vxlan
from vtep.wire.ethernet import parse_mac

SEGMENT = ("vni", "dev")
DESTINATION = ("dst", "port", "dst_vni", "via")
KIND = ("state", "extern_learn", "sticky", "sequence")
_FILTER_FLAGS = ("permanent", "static", "dynamic", "extern_learn", "sticky", "held")
FILTER = (*DESTINATION, *_FILTER_FLAGS)

MACS_MAX = 100
"""MACs in one request, which bounds the work for it."""

_PORT_MAX = 65535
_VLAN_MAX = 4095


DestinationKey: TypeAlias = tuple[object, ...]
"""The values of the parameters `DESTINATION`, not checked."""


class Params:
    """The parameters of one request, by name; one that is None (JSON null) counts as absent."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given

    def text(self, name: str) -> str | None:
        """Return a string, or None if it is absent."""
        value = self._given.get(name)
        if value is None or isinstance(value, str):
            return value
        raise ConfigError(f"{name}: must be a string")

    def needed(self, name: str) -> str:
        """Return a string. Raises: ConfigError if it is absent."""
        value = self.text(name)
        if value is None:
            raise ConfigError(f"{name}: is missing")
        return value

    def number(self, name: str, low: int, high: int) -> int | None:
        """Return an integer, also if it is given as a string of digits; None if it is absent."""
        value = self._given.get(name)
        if value is None:
            return None
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(f"{name} {shown(value)}: is not a whole number")
        if not low <= value <= high:
            raise ConfigError(f"{name} {shown(value)}: must be from {low} to {high}")
        return value

    def vni(self) -> int | None:
        """Return the VNI of the segment, or None if it is absent."""
        return self.number("vni", 0, vxlan.VNI_MAX)

    def flag(self, name: str) -> bool | None:
        """Return a truth value, or None if it is absent."""
        value = self._given.get(name)
        if value is None or isinstance(value, bool):
            return value
        raise ConfigError(f"{name}: must be true or false")

    def objects(self, *names: str) -> dict[str, Any]:
        """Return those of some parameters that are given, of whatever type."""
        return {name: self._given[name] for name in names if self._given.get(name) is not None}

    def options(self) -> dict[str, Any]:
        """Return the options of a segment, as keywords of `Config`, which checks their values."""
        value = self._given.get("options")
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise ConfigError("options: must be an object")
        options: dict[str, Any] = {}
        for name, option in value.items():
            field = name.replace("-", "_")
            if field in options:
                raise ConfigError(f"--{field.replace('_', '-')}: is given twice; leave one out")
            options[field] = option
        return options

    def mac(self) -> bytes:
        """Return the MAC of an entry, which may be the all-zero one."""
        try:
            return parse_mac(self.needed("mac"))
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"mac: {error}") from None

    def macs(self) -> list[bytes]:
        """Return the MACs of up to `MACS_MAX` entries; none if they are absent."""
        value = self._given.get("macs")
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > MACS_MAX:
            raise ConfigError(f"macs: must be a list of at most {MACS_MAX} MAC addresses")
        return [Params({"mac": each}).mac() for each in value]

    def ip(self) -> IPv4Address | IPv6Address:
        """Return the IP address of a neighbour."""
        text = self.needed("ip")
        try:
            return ip_address(text)
        except ValueError:
            raise ConfigError(f"ip {text!r}: is not an IP address") from None

    def vlan(self) -> tuple[int, ...]:
        """Return the VLAN IDs of a neighbour; none if they are absent."""
        number = self.number("vlan", 0, _VLAN_MAX)
        return () if number is None else (number,)

    def destination_key(self) -> DestinationKey:
        """Return a key that is equal for parameters of equal destinations."""
        key = tuple(map(self._given.get, DESTINATION))
        hashable = all(isinstance(each, str | int | None) for each in key)
        return key if hashable else (object(),)  # It will be refused.

    def changes(self, most: int) -> list[Any]:
        """Return the changes of a batch, which are not checked."""
        value = self._given.get("changes")
        if not isinstance(value, list) or len(value) > most:
            raise ConfigError(f"changes: must be a list of at most {most} objects")
        return value

    def destination(self, port: int) -> Remote | None:
        """Return the destination of frames, if given; `port` is its default port."""
        dst = self.text("dst")
        if dst is None:
            for name in DESTINATION:
                if self._given.get(name) is not None:
                    raise ConfigError(f"dst: is missing, to which {name} would belong")
            return None
        number = self.number("port", 1, _PORT_MAX)
        vni = self.number("dst_vni", 0, vxlan.VNI_MAX)
        return _remote(dst, port if number is None else number, vni, self.text("via"))

    def kind(self) -> EntryKind:
        """Return the state and the flags of an entry; it is permanent if nothing else is given."""
        state = self.text("state")
        if state is not None and state not in list(EntryState):
            raise ConfigError(f"state {state}: must be one of {', '.join(EntryState)}")
        extern_learn = bool(self.flag("extern_learn"))
        sequence = self.number("sequence", 0, SEQUENCE_MAX)
        if sequence is not None and not extern_learn:
            raise ConfigError(
                f"sequence {sequence}: is a number of a control plane; give extern_learn as well"
            )
        return _kind(state or "permanent", extern_learn, bool(self.flag("sticky")), sequence)

    def filter(self) -> Filter:
        """Return the filter of `fdb.show` and `fdb.flush`."""
        dst = self.text("dst")
        if dst is not None:
            dst = _remote(dst, vxlan.PORT, None, self.text("via")).host
        flags = {name: self.flag(name) for name in _FILTER_FLAGS}
        return Filter(
            dst=dst,
            port=self.number("port", 1, _PORT_MAX),
            vni=self.number("dst_vni", 0, vxlan.VNI_MAX),
            via=self.text("via"),
            **flags,
        )


@lru_cache(maxsize=256)  # The thousands of entries of a control plane share few objects.
def _kind(state: str, extern_learn: bool, sticky: bool, sequence: int | None) -> EntryKind:
    origins = () if sequence is None else (DestinationOrigin(False, True, sequence),)
    return EntryKind(EntryState(state), extern_learn, sticky, origins)


def _remote(dst: str, port: int, vni: int | None, via: str | None) -> Remote:
    try:
        return parse_remote(dst, port=port, vni=vni, via=via)
    except FdbError as error:
        raise ConfigError(str(error)) from None
