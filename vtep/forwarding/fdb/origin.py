"""The origin of a destination: this host, a control plane, or both."""

from attrs import frozen

from vtep.forwarding.fdb.remote import Remote

SEQUENCE_MAX = 0xFFFF_FFFF
"""Largest mobility sequence number: a field of 4 octets (RFC 7432, section 7.7)."""


@frozen
class DestinationOrigin:
    """The sides that have given a destination; it stays until all of them have withdrawn it."""

    is_local: bool = True
    """A command or an option of this host has given it, or it was learned from frames."""
    extern_learn: bool = False
    """A control plane has given it."""
    sequence: int | None = None
    """The mobility sequence number that the control plane has given with it, or None."""

    def merge(self, other: "DestinationOrigin") -> "DestinationOrigin":
        """Return the origin of a destination that has this one, and is given once more."""
        return DestinationOrigin(
            self.is_local or other.is_local,
            self.extern_learn or other.extern_learn,
            other.sequence if other.extern_learn else self.sequence,
        )

    def withdraw(self, extern_learn: bool | None) -> "DestinationOrigin | None":
        """Return what is left once the control plane (True) or this host (False) has withdrawn.

        None as argument stands for both. Returns: None if nothing is left.
        """
        if extern_learn is None:
            return None
        if extern_learn:
            return LOCAL if self.is_local else None
        return DestinationOrigin(False, True, self.sequence) if self.extern_learn else None

    def matches(self, extern_learn: bool | None) -> bool:
        """Return True if `withdraw` with the same argument would take something."""
        return extern_learn is None or (self.extern_learn if extern_learn else self.is_local)


LOCAL = DestinationOrigin()
EXTERN_LEARN = DestinationOrigin(is_local=False, extern_learn=True)

OriginByRemote = list[tuple[Remote, DestinationOrigin]]
"""The destinations of an entry in their order, each with its origin."""
