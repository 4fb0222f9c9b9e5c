"""The underlay between the two hosts: a veth pair, as it is or configured like network cards."""

import json
from collections.abc import Mapping

from attrs import field, frozen

from vtep.errors import VtepError
from vtep.testing.lab import Host

CABLE = "eth0"
"""The underlay device of both hosts, an end of one veth pair."""

CABLE_MTU = 1500

_FEATURES = {"tso": "tcp-segmentation-offload", "gro": "generic-receive-offload"}
"""Features whose names differ between `ethtool -K` and `ethtool -k`."""

_NO_TUNNEL_OFFLOADS = {
    # The kernel then segments superframes in software, in front of the device: those of a tunnel,
    # and the sends of a program that uses UDP_SEGMENT.
    "tx-udp_tnl-segmentation": False,
    "tx-udp_tnl-csum-segmentation": False,
    "tx-udp-segmentation": False,
    # Network cards have this one. But a veth does GRO only if the sending end has no TSO
    # (veth_skb_is_eligible_for_gro in drivers/net/veth.c), and a tunnel's traffic never uses it.
    "tso": False,
}


@frozen
class Underlay:
    """A named configuration of the veth pair: a mode of the benchmark."""

    name: str
    label: str
    features: Mapping[str, bool] = field(factory=dict)
    """States of the features to set at both ends, by their names in `ethtool -K`."""

    @property
    def segmented(self) -> bool:
        """True if no packet above the MTU can cross the cable."""
        return bool(self.features)

    def apply(self, host: Host) -> None:
        """Configure the device of a host.

        Raises: VtepError if a feature does not have its state afterwards. `ethtool -K` reports
        success if the kernel changed something else instead.
        """
        if not self.features:
            return
        words = [word for name, on in self.features.items() for word in (name, _ON_OFF[on])]
        host.run("ethtool", "-K", CABLE, *words)
        (states,) = json.loads(host.run("ethtool", "--json", "-k", CABLE))
        for name, on in self.features.items():
            if states[_FEATURES.get(name, name)]["active"] is not on:
                raise VtepError(
                    f"ethtool -K {CABLE} {name} {_ON_OFF[on]} had no effect: this kernel cannot "
                    f"provide the underlay {self.name!r}; choose another --mode"
                )


_ON_OFF = {True: "on", False: "off"}

NIC = Underlay(
    "nic",
    "like a network card without tunnel offloads",
    {**_NO_TUNNEL_OFFLOADS, "gro": True},
)
NOGRO = Underlay("nogro", "the same, without GRO", {**_NO_TUNNEL_OFFLOADS, "gro": False})
VETH = Underlay("veth", "plain veth pair")

UNDERLAYS = {underlay.name: underlay for underlay in (NIC, NOGRO, VETH)}
"""All modes, in the order of the tables."""
