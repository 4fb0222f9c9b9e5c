"""The table of the kernel's l2_tos_ttl_inherit.sh, for its VXLAN devices.

The options are changed at run time between the rows. test_outer_header.py compares the same
frames with the kernel driver.
"""

import pytest
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tests.netns.hosts import (
    Pair,
    Start,
)
from tests.netns.test_outer_header import OVER_V4, OVER_V6, OuterHeader, inner, look
from tests.unit import craft

TOS, TTL = 0x9C, 123


def other(tags: str) -> Packet:
    """Build an ARP request."""
    return craft.ether(Ether(craft.VALID["arp"]).payload, dst=craft.BROADCAST, tags=tags)


@pytest.mark.parametrize("over", [OVER_V4, OVER_V6], ids=["outer-4", "outer-6"])
def test_tos_and_ttl(pair: Pair, start: Start, over: tuple[str, ...]) -> None:
    vtep = start(pair[0], "--vni", "2", *over, "--tap", "vx0")
    with OuterHeader(pair, "vx0") as outside:
        for fixed in (True, False):
            if fixed:
                vtep.invoke(f"set --tos {TOS:#x} --ttl {TTL}")
                inner_tos, inner_ttl = 0, 64
            else:
                vtep.invoke("set --tos inherit --ttl inherit")
                inner_tos, inner_ttl = TOS, TTL
            for tags in ("", "q"):
                for frame, is_ip in (
                    (inner(4, tags, tos=inner_tos, ttl=inner_ttl), True),
                    (inner(6, tags, tc=inner_tos, hlim=inner_ttl), True),
                    (other(tags), False),
                ):
                    seen = look(outside.encapsulated(frame))
                    expected = (TOS, TTL) if fixed or is_ip else (0, 64)
                    assert (seen.tos, seen.ttl) == expected, frame.summary()
