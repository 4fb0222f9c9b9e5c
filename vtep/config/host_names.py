"""Names of remotes: their syntax, and which of their addresses a segment can use. No lookups.

`vtep.daemon.names` looks them up.
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from attrs import field, frozen

from vtep.config.overlap import find_overlap
from vtep.wire.address import Address, check_unicast, is_address, scope_of

if TYPE_CHECKING:
    from vtep.config.options import Config

_NAME_MAX = 253
"""Length of a name in octets, without the final dot (RFC 1035, section 2.3.4, as text)."""

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
"""A label: letters, digits and hyphens (RFC 1123, section 2.1); Docker's names have underscores."""


@frozen
class HostName:
    """A name that stands for remotes, with the addresses that it has now.

    Two of them are equal if the names are: a configuration is the same whatever the name server
    answers.
    """

    name: str
    addresses: tuple[Address, ...] = field(default=(), eq=False)
    """The addresses that the segment uses; none before the first answer."""

    def __str__(self) -> str:
        return self.name


def parse_host_name(text: str) -> HostName | None:
    """Return a host name in lower case, or None for a text that cannot be one.

    A name whose last label is a number would be an IPv4 address to inet_aton(3), which takes
    "10.0.0" and "192.0.2.256" apart in ways that nobody means.
    """
    name = text.lower()
    labels = name.removesuffix(".").split(".")
    if len(name.removesuffix(".")) > _NAME_MAX or re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1]):
        return None
    return HostName(name) if all(map(_LABEL.fullmatch, labels)) else None


def host_name_mistake(text: str) -> tuple[str, dict[str, object]]:
    """Return why a text is neither an address nor a name, and the options that were meant."""
    if re.fullmatch(r"[0-9]+(\.[0-9]+)*\.?", text):
        if text.count(".") == 3 and not text.endswith("."):
            return "is not an IP address; each of its numbers is at most 255", {}
        return "is not an IP address; one has four numbers, as in 192.0.2.2", {}
    if found := re.fullmatch(
        r"[a-z][a-z0-9+.-]*://([^/:@]+)(?::[0-9]+)?(/.*)?", text, re.IGNORECASE
    ):
        reason = "is a URL; write the address or the name alone"
        return reason, {"remote": found[1]} if _is_host(found[1]) else {}
    if (found := re.fullmatch(r"([^:]+):([0-9]{1,5})", text)) and _is_host(found[1]):
        reason = "has a port; write the port as an option of its own"
        return reason, {"remote": found[1], "dstport": int(found[2])}
    if not text.isascii() and ":" not in text:
        try:
            return "is not ASCII; write it as DNS has it", {"remote": text.encode("idna").decode()}
        except UnicodeError:
            pass
    if parse_host_name(f"{text}.x") is not None:
        return "is neither an IP address nor a host name; its last part is a number", {}
    return "is neither an IP address nor a host name", {}


def _is_host(text: str) -> bool:
    return is_address(text) or parse_host_name(text) is not None


def usable_addresses(config: "Config", found: Iterable[Address]) -> tuple[Address, ...]:
    """Return the addresses of a name that can be remotes of a segment, in a stable order.

    They are of one IP version: a host that has addresses of both would get each broadcast twice,
    and its peers would see its MACs move from one address to the other. The version is that of
    `--local`, or of the addresses that are configured, if those are of one version; else IPv4,
    whose headers are shorter.

    Own addresses are left to the caller, who knows the host.
    """
    by_version: dict[int, list[Address]] = {4: [], 6: []}
    local = {item.version for item in config.local}
    for address in sorted(set(found), key=lambda each: (each.version, int(each))):
        if why_unusable(config, address) is None and (not local or address.version in local):
            by_version[address.version].append(address)
    numeric = [each for each in config.remote if not isinstance(each, HostName)]
    known = {each.version for each in (*numeric, *config.accept)}
    known |= {config.group.version} if config.group is not None else set()
    first = 6 if (local or known) == {6} else 4
    return tuple(by_version[first] or by_version[10 - first])


def why_unusable(config: "Config", address: Address) -> str | None:
    """Return why an address can be no remote, as a noun phrase; None if it can.

    A name server may answer with anything.
    """
    if address.is_multicast:
        return "a multicast group"
    try:
        check_unicast(address)
    except ValueError:
        return "not the address of a host"
    scope = scope_of(address, config.dev)
    # Debian gives the name of a host 127.0.1.1 on that host (/etc/hosts).
    if address.is_loopback:
        return "a loopback address"
    if address in config.local:
        return "an address of this host itself"
    if address.version == 6 and address.is_link_local and scope is None:
        return "a link-local address, without the device"
    if config.dev not in (None, scope or config.dev):
        return f"a link-local address of another device than --dev {config.dev}"
    if overlap := find_overlap(config.address, (address,), ()):
        return f"an address in the subnet of --address {overlap.address}"
    return None
