"""Storm control in a turn: frames beyond a limit are dropped here, where that costs least.

The slow path has the token buckets (`forwarding.storm`). Before a turn, it *grants* each source of
frames as many frames of each class as there are tokens. A turn takes a grant for each frame that it
delivers or returns, and drops those without one. Afterwards, the slow path takes the tokens for
what was delivered, counts what was dropped, and limits what was returned as it limits every frame.
"""

from vtep.fastpath import layout
from vtep.fastpath.jit import compiled
from vtep.fastpath.keys import mac_at, network_layer
from vtep.fastpath.layout import Integers, Octets
from vtep.wire.ethernet import TYPE_IPV6
from vtep.wire.storm_class import (
    ICMPV6,
    MAC_BROADCAST,
    MAC_LINK_LOCAL,
    ND_TYPES,
    RESERVE,
    TYPE_ARP,
    StormClass,
)

_BROADCAST = int(StormClass.BROADCAST)
_MULTICAST = int(StormClass.MULTICAST)
_RESERVE = RESERVE
_ND_FIRST, _ND_END = ND_TYPES.start, ND_TYPES.stop
_MAC_BROADCAST = int.from_bytes(MAC_BROADCAST, "big")
_MAC_LINK_LOCAL = int.from_bytes(MAC_LINK_LOCAL, "big") >> 4


@compiled
def has_reserve(data: Octets, at: int, octets: int) -> bool:
    """Return True if a frame to a group may use the reserve, as `wire.storm_class` says."""
    if mac_at(data, at) >> 4 == _MAC_LINK_LOCAL:
        return True
    ethertype, ip = network_layer(data, at, octets)
    if ethertype == TYPE_ARP:
        return True
    if ethertype != TYPE_IPV6 or at + octets <= ip + 40 or data[ip + 6] != ICMPV6:
        return False
    return bool(_ND_FIRST <= data[ip + 40] < _ND_END)


@compiled
def take_grant(meter: Integers, data: Octets, at: int, octets: int, count: int) -> int:
    """Take grants for `count` frames like one to a group, all or none; one grant is enough.

    Returns: the index of the class, or of the reserve, that they were taken from; -1 if the frames
    have to be dropped, which are then counted as such.
    """
    kind = _BROADCAST if mac_at(data, at) == _MAC_BROADCAST else _MULTICAST
    if meter[kind] > 0:
        meter[kind] -= count
        return kind
    if meter[_RESERVE] > 0 and has_reserve(data, at, octets):
        meter[_RESERVE] -= count
        return _RESERVE
    drop(meter, kind, data, at, count)
    return -1


@compiled
def drop(meter: Integers, kind: int, data: Octets, at: int, count: int) -> None:
    """Count frames of a class as dropped, and note the source MAC of one."""
    meter[layout.METER_DROPPED + kind] += count
    meter[layout.METER_SOURCE + kind] = mac_at(data, at + 6)
