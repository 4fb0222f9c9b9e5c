"""Taking back what was changed of TAP devices when a change of the configuration is refused."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vtep.daemon.vtep import _roll_back


def test_the_last_change_is_taken_back_first_and_failures_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done: list[str] = []

    def step(name: str, *, goes: bool = False, owner: object = None, fails: bool = False) -> Any:
        def undo(number: int) -> Any:
            def call(_: IPRoute) -> None:
                if fails:
                    raise NetlinkError(1, "Operation not permitted")
                done.append(f"{name} {number}")

            return call

        port = SimpleNamespace(tap=name, tap_goes=goes)
        return SimpleNamespace(owner=owner, port=port, undo=[undo(1), undo(2)])

    steps = [
        step("vx0", owner=object(), goes=True),
        step("vx1", goes=True),  # A new one, which is removed.
        step("vx2", fails=True),
        step("vx3"),
    ]
    _roll_back(cast("IPRoute", None), steps)
    assert done == ["vx3 2", "vx3 1", "vx0 2", "vx0 1"]
    line = "rollback of vx2 failed: Operation not permitted; see what it is now: "
    assert caplog.messages == [line + "ip address show dev vx2"] * 2
