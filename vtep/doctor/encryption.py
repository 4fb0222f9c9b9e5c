"""The encryption of the path to a remote, by the device that its route leads to."""

from pathlib import Path

from vtep.doctor.facts import Encryption
from vtep.doctor.local_network import NetDevice

_USERSPACE_SOCKETS = Path("/var/run/wireguard")
"""Directory of the configuration sockets of wireguard-go and boringtun, `DEVICE.sock`."""


def of_device(
    device: NetDevice | None, *, ipsec: bool, sockets: Path = _USERSPACE_SOCKETS
) -> Encryption | None:
    """Return the encryption of datagrams that leave through a device; None if there is none.

    `ipsec` is True if this host may have IPsec policies for outgoing packets.
    """
    if device is None:
        return None
    if device.kind == "wireguard":
        return Encryption.WIREGUARD
    if device.kind == "tun":
        # To the kernel, WireGuard in userspace is a tun device like any other.
        is_wireguard = (sockets / f"{device.name}.sock").is_socket()
        return Encryption.WIREGUARD if is_wireguard else Encryption.PERHAPS_VPN
    # Policies select by addresses and ports: which one applies, only a look-up can say.
    return Encryption.PERHAPS_IPSEC if ipsec else Encryption.NONE
