"""Features of network devices, as `ethtool -k` shows them."""

import socket
from contextlib import closing

_TUNNEL_GSO_FEATURES = (
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-tcp-segmentation",
    "tx-tcp6-segmentation",
)


def has_tunnel_gso(index: int) -> bool:
    """Return True if a device accepts TCP superframes inside a UDP tunnel.

    A NIC segments them; a virtual device may pass them on as they are.
    """
    # The first use of tunnel GSO, not the start, waits for this import.
    from pyroute2.ethtool.ioctl import EthtoolError, IoctlEthtool  # noqa: PLC0415

    try:
        with closing(IoctlEthtool(socket.if_indextoname(index))) as ethtool:
            features = ethtool.get_features()
            return all(name in features and features[name] for name in _TUNNEL_GSO_FEATURES)
    except (OSError, EthtoolError):  # For example, the device was removed meanwhile.
        return False
