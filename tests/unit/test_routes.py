"""Routes and devices that are removed while they are examined."""

from ipaddress import IPv4Address

import pytest
from pyroute2.ethtool.ioctl import IoctlEthtool, NoSuchDevice

from vtep.host import netlink
from vtep.host.routes import HostRoutes


def test_a_device_that_vanishes_is_no_egress_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def vanished(_: IoctlEthtool) -> None:
        raise NoSuchDevice("eth0")

    monkeypatch.setattr(IoctlEthtool, "get_features", vanished)
    with netlink.session() as connection:
        routes = HostRoutes(connection)
        assert routes.egress_device(IPv4Address("127.0.0.1"), None, "lo") is None
