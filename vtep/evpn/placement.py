"""Places of the TAPs of EVPN segments: bridge, VLAN, and devices of the host there. No I/O."""

from collections.abc import Iterator
from typing import NamedTuple

from vtep.host.link_table import Link

_UPPER_KINDS = frozenset(("vlan", "macvlan"))
"""Kinds of devices on top of a bridge by which the host takes part in it."""


class Placement(NamedTuple):
    """The place of a TAP. Devices are indices, or 0 for none."""

    tap: int = 0
    bridge: int = 0
    owners: tuple[int, ...] = ()
    """The devices by which the host itself takes part: the bridge and devices on it, or the TAP."""

    vlan: int | None = None
    """The VLAN of the TAP on a bridge that separates VLANs; None on any other."""

    master: int = 0
    """The device whose port the TAP is: the bridge, or one of another kind or unknown yet."""


class LinkIndex:
    """The devices of this network namespace, found by index, name and lower device."""

    def __init__(self) -> None:
        self._links: dict[int, Link] = {}
        self._by_name: dict[str, int] = {}
        self._uppers: dict[int, set[int]] = {}
        self._pvids: dict[int, int] = {}

    def __iter__(self) -> Iterator[int]:
        return iter(self._links)

    def get(self, index: int) -> Link | None:
        """Return a device."""
        return self._links.get(index)

    def find(self, name: str) -> int:
        """Return the index of a device; 0 if there is none of this name."""
        return self._by_name.get(name, 0)

    def set_pvid(self, index: int, pvid: int) -> bool:
        """Set the VLAN of untagged frames of a bridge port. Returns: True if it was another."""
        before = self._pvids.get(index)
        self._pvids[index] = pvid
        return before != pvid

    def replace(self, index: int, link: Link | None) -> Link | None:
        """Set a device, or delete it with None. Returns: what it was before."""
        before = self._links.pop(index, None)
        if before is not None:
            if self._by_name.get(before.name) == index:
                del self._by_name[before.name]
            if before.kind in _UPPER_KINDS:
                self._uppers.get(before.lower, set()).discard(index)
        if link is None:
            self._pvids.pop(index, None)
            return before
        self._links[index] = link
        self._by_name[link.name] = index
        if link.kind in _UPPER_KINDS:
            self._uppers.setdefault(link.lower, set()).add(index)
        return before

    def place(self, name: str) -> Placement:
        """Return where the TAP of a name is."""
        tap = self._by_name.get(name, 0)
        if not tap:
            return Placement()
        master = self._links[tap].master
        bridge = self._links.get(master)
        if bridge is None or bridge.kind != "bridge":
            return Placement(tap, owners=(tap,), master=master)
        # A TAP without a PVID has tagged frames only, and local MACs in any VLAN.
        vlan = (self._pvids.get(tap) or None) if bridge.vlan_filtering else None
        return Placement(tap, master, tuple(self._owners(master, vlan)), vlan, master)

    def _owners(self, bridge: int, vlan: int | None) -> Iterator[int]:
        """Yield the devices by which the host takes part in a VLAN of a bridge, or in a bridge.

        These are the bridge, a VLAN device on it, and macvlan devices on those: gateways with a
        virtual MAC are made of them.
        """
        bases = [bridge] if vlan is None or vlan == self._pvids.get(bridge) else []
        if vlan is not None:
            bases += [
                index
                for index in sorted(self._uppers.get(bridge, ()))
                if self._links[index].kind == "vlan" and self._links[index].vlan_id == vlan
            ]
        yield from bases
        for base in bases:
            for index in sorted(self._uppers.get(base, ())):
                if self._links[index].kind == "macvlan":
                    yield index


def is_placed_alike(one: Link | None, other: Link | None) -> bool:
    """Return whether a change of a device changes no placement."""
    if one is None or other is None:
        return one is other
    return one == other and (one.name, one.vlan_filtering, one.vlan_id) == (
        other.name,
        other.vlan_filtering,
        other.vlan_id,
    )
