"""Remote VTEPs as destinations of FDB entries."""

from ipaddress import IPv6Address, ip_address

from attrs import field, frozen

from vtep.errors import FdbError
from vtep.wire import vxlan
from vtep.wire.address import check_destination, is_device_name


@frozen(eq=False)
class Remote:
    """A remote VTEP on the underlay, or a multicast group of VTEPs.

    Remotes are compared by identity, which makes them cheap keys. While entries use a remote, a
    segment has exactly one object for it (see `Members`).
    """

    host: str
    """Numeric address as the kernel prints it, with the scope of a link-local one."""
    port: int
    """UDP port on which the remote receives. Its datagrams may come from any port (RFC 7348,
    section 5)."""
    vni: int | None = None
    """VNI of the segment at the remote, or None if it is the same as here."""
    via: str | None = None
    """Underlay device to send from, or None for the one that the route names."""
    alone: "tuple[Remote]" = field(init=False, repr=False)
    """The destinations of an entry with this remote only.

    All such entries share one tuple, which saves 48 octets for each entry.
    """

    @alone.default
    def _alone(self) -> "tuple[Remote]":
        return (self,)


def parse_remote(
    dst: str, *, port: int = vxlan.PORT, vni: int | None = None, via: str | None = None
) -> Remote:
    """Parse a destination as written on the command line or in a request.

    A link-local address needs a device, either as `via` or as in `fe80::1%eth0`.

    Raises: FdbError that names the invalid field.
    """
    try:
        address = ip_address(dst)
    except ValueError:
        raise FdbError(f"dst {dst!r}: is not an IP address such as 192.0.2.1 or fd00::1") from None
    try:
        check_destination(address)
    except ValueError as error:
        raise FdbError(f"dst {dst}: {error}") from None
    if isinstance(address, IPv6Address):
        if address.is_link_local and not address.scope_id:
            if via is None:
                raise FdbError(f"dst {dst}: is link-local: say over which device, with via")
            address = IPv6Address(f"{address}%{via}")
        elif address.scope_id and via not in (None, address.scope_id):
            raise FdbError(f"via {via}: contradicts dst {dst}")
    if not 1 <= port <= 65535:
        raise FdbError(f"port {port}: must be from 1 to 65535")
    if vni is not None and not 0 <= vni <= vxlan.VNI_MAX:
        raise FdbError(f"vni {vni}: must be from 0 to {vxlan.VNI_MAX}")
    if via is not None and not is_device_name(via):
        raise FdbError(f"via {via!r}: is not the name of a device")
    return Remote(str(address), port, vni, via)


def format_remote(remote: Remote) -> str:
    """Format a destination as it is written on the command line."""
    vni = "" if remote.vni is None else f" vni {remote.vni}"
    via = "" if remote.via is None else f" via {remote.via}"
    return f"dst {remote.host} port {remote.port}{vni}{via}"
