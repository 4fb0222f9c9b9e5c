"""Transactions: what is rolled back, in which order, and what the log says if that fails."""

import asyncio
from contextlib import closing

import pytest

from tests.unit.nodes import Node, segment
from vtep import VtepError
from vtep.testing import MemoryUnderlay


def test_changes_are_reverted_in_reverse_order_and_failures_are_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with closing(MemoryUnderlay()) as underlay:
        node = Node(underlay, segment(1), segment(2))
        node.network.add_device("br0", kind="bridge")
        node.network.add_device("vx3", kind="tun")  # It persisted: it remains, as it was.

        async def main() -> None:
            async with node.vtep:
                node.network.refusals["vx4"] = "Operation not permitted"
                node.network.irreversible.add("vx2")
                changed = [segment(vni, bridge="br0", mtu=1300) for vni in (1, 2, 3, 4)]
                with pytest.raises(VtepError, match=r"^vni 4: --tap vx4: Operation not permitted"):
                    await node.vtep.reload(changed)
                assert node.network.devices["vx1"].mtu == 1450
                assert node.network.devices["vx2"].mtu == 1300
                assert "vx4" not in node.network.devices

        asyncio.run(main())
        assert node.network.reverted == ["vx3 bridge", "vx3 settings", "vx1 bridge", "vx1 settings"]
        line = "rollback of vx2 failed: Operation not permitted; check its state: "
        failed = [message for message in caplog.messages if message.startswith("rollback")]
        assert failed == [line + "ip address show dev vx2"] * 2
        assert node.network.devices.keys() == {"eth0", "br0", "vx3"}
        assert (node.network.devices["vx3"].mtu, node.network.devices["vx3"].master) == (1500, 0)
