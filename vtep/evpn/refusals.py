"""Entries of a VNI that the daemon has refused, and why. No I/O."""

from collections import Counter
from typing import Final, TypeVar

from vtep.evpn.entries import FdbState
from vtep.wire.address import Address

REFUSED: Final = "refused"
"""The daemon does not take the entry."""
NEIGHBOUR_REFUSED: Final = "neighbour-refused"
"""The daemon takes the MAC, but does not take its address as a neighbour."""

_REASONS_MAX = 5
"""Reasons in problems: some of them name a MAC, so there can be as many as entries."""

Neighbour = tuple[bytes, bool]
"""MAC and router flag."""

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Refusals:
    """The refused entries, each as it was wanted, with the reason in the words of the daemon.

    An entry stays here until another one is wanted in its place, or none.
    """

    def __init__(self) -> None:
        self.macs: dict[bytes, tuple[FdbState, str]] = {}
        self.floods: dict[Address, tuple[int | None, str]] = {}
        """VTEPs that want flooded frames, with their VNI if it is another one."""
        self.ips: dict[Address, tuple[Neighbour, str]] = {}

    def __bool__(self) -> bool:
        """Return True if an entry is refused."""
        return bool(self.macs or self.floods or self.ips)

    def clear(self) -> None:
        """Forget all, so that they are tried again."""
        for refused in (self.macs, self.floods, self.ips):
            refused.clear()

    def admit_mac(self, mac: bytes, wanted: FdbState | None) -> FdbState | None:
        """Return the entry that is wanted; None if the same one was refused."""
        return _admit(self.macs, mac, wanted)

    def admit_neighbour(self, ip: Address, wanted: Neighbour | None) -> Neighbour | None:
        """Return the neighbour that is wanted; None if the same one was refused."""
        return _admit(self.ips, ip, wanted)

    def refuses_flood(self, vtep: Address, dst_vni: int | None) -> bool:
        """Return True if a destination of flooded frames was refused."""
        known = self.floods.get(vtep)
        if known is None or known[0] == dst_vni:
            return known is not None
        del self.floods[vtep]
        return False

    def problems(self) -> list[str]:
        """Return a line for each reason."""
        reasons: Counter[str] = Counter()
        for refused in (self.macs, self.floods, self.ips):
            reasons.update(reason for _, reason in refused.values())
        lines = [
            f"{'an entry was' if count == 1 else f'{count} entries were'} refused: {reason}"
            for reason, count in reasons.most_common(_REASONS_MAX)
        ]
        if len(reasons) > _REASONS_MAX:
            more = sum(reasons.values()) - sum(n for _, n in reasons.most_common(_REASONS_MAX))
            lines.append(f"{more} more entries were refused: pyvtep evpn show routes has them")
        return lines


def _admit(
    refused: dict[_Key, tuple[_Value, str]], key: _Key, wanted: _Value | None
) -> _Value | None:
    known = refused.get(key)
    if known is None:
        return wanted
    if known[0] == wanted:
        return None
    del refused[key]
    return wanted
