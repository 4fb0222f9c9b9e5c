"""Lookups of host names: the addresses as any program of this host finds them, and their TTL.

getaddrinfo(3) follows nsswitch.conf(5), so /etc/hosts, search domains, multicast DNS and
systemd-resolved work as they do for ping(8). It hides the TTL, for which DNS is asked once more;
see docs/decisions/host-names.md.
"""

import socket
from collections.abc import Collection, Iterable
from contextlib import suppress
from ipaddress import ip_address

from attrs import frozen

from vtep.host.name_schedule import NameAnswer
from vtep.wire.address import Address

_DNS_LIFETIME_S = 2.0
"""Seconds for which DNS may take to tell the TTL. The addresses are known by then."""

_TYPES = {4: "A", 6: "AAAA"}

_REASONS = {
    socket.EAI_NONAME: "there is no such name",
    socket.EAI_NODATA: "the name has no address",
    socket.EAI_AGAIN: "no name server has answered",
    socket.EAI_FAIL: "the name servers have failed",
}


def look_up(name: str, versions: Collection[int] = ()) -> NameAnswer:
    """Look up a name. Blocks for some seconds if no name server answers.

    `versions` are the IP versions of addresses that it had before: if one is missing now, DNS is
    asked whether that is the answer or the lack of one.
    """
    try:
        # One type of socket, since each address would be repeated for each type.
        rows = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    except socket.gaierror as error:
        return NameAnswer(error=_REASONS.get(error.errno or 0, error.strerror or str(error)))
    except (OSError, UnicodeError) as error:
        return NameAnswer(error=str(error))
    addresses = {ip_address(str(row[4][0])) for row in rows}
    there = {each.version for each in addresses}
    ttls: list[float | None] = []
    failed = set()
    for version in sorted(there | set(versions)):
        answer = _ask_dns(name, version)
        if version in there:
            same = answer is not None and answer.addresses == _of_version(addresses, version)
            ttls.append(answer.ttl if same and answer is not None else None)
        elif answer is None:
            failed.add(version)
    known = [ttl for ttl in ttls if ttl is not None]
    # One that is not from DNS can change at any time.
    ttl = min(known) if len(known) == len(ttls) else None
    return NameAnswer(tuple(addresses), ttl, failed=frozenset(failed))


@frozen
class _DnsAnswer:
    addresses: frozenset[Address]
    ttl: float
    """The smallest TTL of the chain of CNAMEs and its end, in seconds."""


def _of_version(addresses: Iterable[Address], version: int) -> frozenset[Address]:
    return frozenset(each for each in addresses if each.version == version)


def _ask_dns(name: str, version: int) -> _DnsAnswer | None:
    """Return the addresses of an IP version that DNS has, maybe none; None without an answer."""
    # Imported for the first name: most VTEPs have none.
    from dns.exception import DNSException  # noqa: PLC0415
    from dns.resolver import NXDOMAIN, Resolver  # noqa: PLC0415

    with suppress(DNSException, OSError, ValueError):
        resolver = Resolver()  # Reads resolv.conf(5), which may have changed.
        try:
            answer = resolver.resolve(
                name,
                _TYPES[version],
                raise_on_no_answer=False,
                lifetime=_DNS_LIFETIME_S,
                search=True,
            )
        except NXDOMAIN:
            return _DnsAnswer(frozenset(), 0.0)
        found = frozenset(ip_address(row.address) for row in answer.rrset or ())
        return _DnsAnswer(found, float(answer.chaining_result.minimum_ttl))
    return None
