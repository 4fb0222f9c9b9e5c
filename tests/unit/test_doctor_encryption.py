"""The doctor's facts about encryption."""

import socket
from pathlib import Path

import pytest

from vtep.doctor.encryption import of_device
from vtep.doctor.facts import Encryption
from vtep.doctor.local_network import NetDevice


def device(kind: str, name: str = "wg0") -> NetDevice:
    return NetDevice(1, name, 1420, True, "", (), 0, 0, kind, None, None)


@pytest.mark.parametrize(
    ("kind", "ipsec", "encryption"),
    [
        ("wireguard", False, Encryption.WIREGUARD),
        ("wireguard", True, Encryption.WIREGUARD),
        ("tun", False, Encryption.PERHAPS_VPN),
        ("veth", True, Encryption.PERHAPS_IPSEC),
        ("", False, Encryption.NONE),
    ],
)
def test_encryption_by_the_device(
    tmp_path: Path, kind: str, ipsec: bool, encryption: Encryption
) -> None:
    assert of_device(device(kind), ipsec=ipsec, sockets=tmp_path) is encryption


def test_wireguard_in_userspace_is_known_by_its_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "wg0.sock"))
        assert of_device(device("tun"), ipsec=False, sockets=tmp_path) is Encryption.WIREGUARD
        other = device("tun", "tailscale0")
        assert of_device(other, ipsec=False, sockets=tmp_path) is Encryption.PERHAPS_VPN


def test_no_device_no_claim(tmp_path: Path) -> None:
    assert of_device(None, ipsec=True, sockets=tmp_path) is None
