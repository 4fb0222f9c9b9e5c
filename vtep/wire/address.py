"""Rules for IP addresses of VTEPs: which a host can have, and on which link they are valid.

Pure functions over `ipaddress` objects, for options, FDB destinations, sockets and the doctor.
"""

from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
)

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

LIMITED_BROADCAST = IPv4Address("255.255.255.255")
"""The broadcast address of every link (RFC 919), which `ipaddress` has no property for."""

DEVICE_NAME_MAX = 15
"""Length of an interface name in octets, without the terminating zero (IFNAMSIZ - 1)."""


def version_of(host: str) -> int:
    """Return the IP version of a numeric address."""
    return 6 if ":" in host else 4


def is_address(text: str) -> bool:
    """Return whether a text is an IP address, with or without a scope."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def is_device_name(name: str) -> bool:
    """Return whether the kernel would accept the name of a network device (dev_valid_name).

    Stricter than the kernel in two ways: "%" would be a format for a number (`vx%d`) or the
    separator of a scope, and names that can't be printed would garble messages.
    """
    if not name.isprintable():  # Also sorts out surrogates, which encode() would choke on.
        return False
    return (
        0 < len(name.encode()) <= DEVICE_NAME_MAX
        and name not in (".", "..")
        and not any(char in "/:%" or char.isspace() for char in name)
    )


def is_group(host: str) -> bool:
    """Return True for the numeric address of a multicast group, with or without a scope."""
    return ip_address(host).is_multicast


def check_unicast(address: Address) -> None:
    """Raise ValueError unless a VTEP can have an address; the message is the reason."""
    if address.is_multicast:
        raise ValueError("is a multicast group; give the address of a VTEP")
    check_destination(address)


def check_destination(address: Address) -> None:
    """Raise ValueError unless a VTEP or a multicast group can have an address.

    The message is the reason, to be put behind the value.
    """
    if address.is_unspecified or address == LIMITED_BROADCAST:
        raise ValueError("is not the address of a host")
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        # An IPv6 socket would take it for IPv4, and the VTEP has one socket for each family.
        raise ValueError(f"is IPv4-mapped; write it as {address.ipv4_mapped}")


def scope_of(address: Address, dev: str | None) -> str | None:
    """Return the device whose link an address is valid on: its scope, or else `dev`.

    Returns: None for an address that is not IPv6 link-local (RFC 4007), since it needs no scope.
    """
    if isinstance(address, IPv4Address) or not address.is_link_local:
        return None
    return address.scope_id or dev


def without_scope(address: Address) -> Address:
    """Return an address without its scope.

    `ipaddress` compares scopes too, and the kernel's tables and packets have none.
    """
    return IPv6Address(int(address)) if isinstance(address, IPv6Address) else address
