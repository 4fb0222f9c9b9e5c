"""Address pools: the subnet of a network, and the order in which its addresses are tried. No I/O.

The names are those of Docker: a pool is a subnet (`--subnet`), and a sub-pool is the part of it
from which the engine assigns addresses (`--ip-range`).
"""

from collections.abc import Iterator
from hashlib import sha256
from ipaddress import IPv4Network, ip_address, ip_network
from math import gcd

from attrs import frozen

from vtep.errors import VtepError
from vtep.wire.address import Address, Network

_SEPARATOR = ">"
"""Separates pool and sub-pool in an ID."""


@frozen
class AddressPool:
    """The subnet of one network, and its part from which addresses are assigned."""

    subnet: Network
    assigned: Network
    """The range for addresses that the user does not choose."""

    @classmethod
    def parse(cls, subnet: str, sub_pool: str = "", *, version: int) -> "AddressPool":
        """Parse the values of `--subnet` and `--ip-range`.

        Raises: VtepError, since a host cannot choose the subnet of all hosts, if there is none, and
        for values that do not fit together.
        """
        if not subnet:
            example = "10.18.0.0/16" if version == 4 else "fd00:18::/64"
            raise VtepError(
                f"the network has no subnet for IPv{version}: give the same one on all hosts, such "
                f"as --subnet {example}"
            )
        try:
            # As Docker's IPAM, accept an address within the subnet: 10.18.0.5/16.
            pool = ip_network(subnet, strict=False)
            found = ip_network(sub_pool or pool, strict=False)
        except ValueError as error:
            raise VtepError(f"--subnet {subnet}, --ip-range {sub_pool}: {error}") from error
        if pool.version != version:
            raise VtepError(f"--subnet {subnet} is not a subnet of IPv{version}")
        if not _contains(pool, found):
            raise VtepError(f"--ip-range {found} is no part of --subnet {pool}")
        return cls(pool, found)

    @property
    def id(self) -> str:
        """The ID that the engine stores, from which the pool is known again if our state is lost"""
        whole = self.assigned == self.subnet
        return str(self.subnet) if whole else f"{self.subnet}{_SEPARATOR}{self.assigned}"

    @classmethod
    def from_id(cls, text: str) -> "AddressPool":
        """Parse an ID. Raises: VtepError if it is not one of ours."""
        subnet, _, sub_pool = text.partition(_SEPARATOR)
        return cls.parse(subnet, sub_pool, version=6 if ":" in text else 4)

    @property
    def gateway(self) -> Address:
        """The gateway if the user names none: the same on all hosts, whatever their ranges."""
        return self.address(self._usable(self.subnet).start)

    def overlaps(self, other: "AddressPool") -> bool:
        """Return True if both pools have a common address."""
        return _contains(self.subnet, other.subnet) or _contains(other.subnet, self.subnet)

    def check(self, address: Address) -> None:
        """Raise VtepError unless a device can have an address of this pool."""
        if address.version != self.subnet.version or address not in self.subnet:
            raise VtepError(f"address {address} is not in the subnet {self.subnet} of the network")
        if int(address) not in self._usable(self.subnet):
            raise VtepError(f"address {address} is reserved in the subnet {self.subnet}")

    def interface(self, address: Address) -> str:
        """Return an address with the length of the prefix, as the engine wants it."""
        return f"{address}/{self.subnet.prefixlen}"

    def order(self, seed: bytes) -> "CandidateOrder":
        """Return the order in which a host with this seed tries the addresses of the range."""
        numbers = self._usable(self.assigned)
        return CandidateOrder(numbers, sha256(seed + self.id.encode()).digest(), self)

    def _usable(self, part: Network) -> range:
        """Return the addresses of a part of the subnet that a device can have, as numbers."""
        first, last = int(part[0]), int(part[-1])
        if self.subnet.num_addresses > 2:  # Else there is nothing reserved (RFC 3021, RFC 6164).
            # The address of the subnet itself; in IPv6, the subnet-router anycast address (RFC
            # 4291, section 2.6.1).
            first = max(first, int(self.subnet[0]) + 1)
            if isinstance(self.subnet, IPv4Network):
                last = min(last, int(self.subnet.broadcast_address) - 1)
        return range(first, last + 1)

    def address(self, number: int) -> Address:
        """Return the address with a number of this IP version."""
        return ip_address(number.to_bytes(self.subnet.max_prefixlen // 8))


class CandidateOrder:
    """A pseudo-random order of addresses, in which each call of `candidates` goes on.

    Hosts with different seeds seldom try the same address at the same time (RFC 3927, section 2.1).
    Going on instead of starting again delays the reuse of a released address, which neighbors may
    have in their caches with its last MAC.
    """

    def __init__(self, numbers: range, digest: bytes, pool: AddressPool) -> None:
        self._numbers = numbers
        self._pool = pool
        size = max(len_of(numbers), 1)
        self._position = int.from_bytes(digest[:16]) % size
        # Steps of a size without a common divisor reach every address exactly once. This needs no
        # memory, as a shuffled list would: a /64 has 2^64 addresses.
        step = int.from_bytes(digest[16:]) % size or 1
        while gcd(step, size) != 1:
            step += 1
        self._step = step

    def candidates(self) -> Iterator[Address]:
        """Yield each address of the range once at most.

        Several iterators share one position, so that parallel requests try different addresses.
        """
        size = len_of(self._numbers)
        remaining = size
        while remaining:
            remaining -= 1
            self._position = (self._position + self._step) % size
            yield self._pool.address(self._numbers.start + self._position)


def len_of(numbers: range) -> int:
    """Return the length of a range, also of one that is too long for `len`."""
    return max(numbers.stop - numbers.start, 0)


def _contains(outer: Network, inner: Network) -> bool:
    """Return True if each address of the second network is in the first one."""
    return outer.version == inner.version and (
        outer.prefixlen <= inner.prefixlen and inner.network_address in outer
    )
