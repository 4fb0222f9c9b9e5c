"""Policies of a segment: accepted sources, reserved bits, group policy, inner VLAN tags."""

from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TypeAlias

from attrs import frozen

from vtep.wire import vxlan

Networks: TypeAlias = tuple[IPv4Network | IPv6Network, ...]

ANY_SOURCE: Networks = (ip_network("0.0.0.0/0"), ip_network("::/0"))
"""For `Segment`: accept datagrams from every address, as RFC 7348 does."""


class InnerVlan(StrEnum):
    """The treatment of frames with VLAN tags, in both directions (RFC 7348, section 6.1)."""

    PASS = "pass"  # noqa: S105  not a password
    """Forward them unchanged, as the kernel driver does."""
    STRIP = "strip"
    """Remove all tags."""
    DROP = "drop"


@frozen
class GroupPolicy:
    """The use of the group policy extension (draft-smith-vxlan-group-policy-05)."""

    group: int = 0
    """Group of the frames that this VTEP sends; 0 is none."""
    accepted: frozenset[int] | None = None
    """Groups whose frames are accepted, where 0 stands for frames without a group; None accepts
    all. Frames to which an earlier VTEP has applied its policy (flag A) are accepted, too."""

    def accepts(self, flags: int) -> bool:
        """Return True if frames with this first word of the VXLAN header are accepted."""
        if self.accepted is None or (flags & vxlan.FLAG_G and flags & vxlan.FLAG_A):
            return True
        return group_of(flags) in self.accepted


def group_of(flags: int) -> int:
    """Return the group that the first word of a VXLAN header states, or 0 for none."""
    return flags & vxlan.GROUP_MAX if flags & vxlan.FLAG_G else 0


@frozen
class SegmentPolicy:
    """The policies that apply to the frames of a segment. The default ones cost nothing."""

    reserved_bits: int = 0
    """Mask of bits of the 64-bit VXLAN header that must be 0. If `groups` is set, those of the
    group policy extension are exempt."""
    groups: GroupPolicy | None = None
    """None disables the group policy extension: its bits are reserved bits."""
    inner_vlan: InnerVlan = InnerVlan.PASS

    @property
    def forbidden_bits(self) -> int:
        """The mask of bits of the VXLAN header that cause a drop."""
        exempt = vxlan.GBP_USED_BITS if self.groups is not None else 0
        return self.reserved_bits & ~exempt


DEFAULT_POLICY = SegmentPolicy()
