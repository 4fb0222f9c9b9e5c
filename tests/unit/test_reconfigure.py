"""Rollback of the changes of TAP devices when a transaction fails."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from vtep.daemon.network import Undo
from vtep.daemon.reconfigure import roll_back


class Session:
    """A session without a connection."""

    def revert(self, undo: Undo) -> None:
        undo(None)


def test_changes_are_reverted_in_reverse_order_and_failures_are_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done: list[str] = []

    def step(name: str, *, goes: bool = False, owner: object = None, fails: bool = False) -> Any:
        def undo(number: int) -> Any:
            def call(_: object) -> None:
                if fails:
                    raise OSError(1, "Operation not permitted")
                done.append(f"{name} {number}")

            return call

        port = SimpleNamespace(tap=name, removed_on_close=goes)
        return SimpleNamespace(owner=owner, port=port, undo=[undo(1), undo(2)])

    steps = [
        step("vx0", owner=object(), goes=True),
        step("vx1", goes=True),  # A new one, which is removed.
        step("vx2", fails=True),
        step("vx3"),
    ]
    roll_back(cast("Any", Session()), steps)
    assert done == ["vx3 2", "vx3 1", "vx0 2", "vx0 1"]
    line = "rollback of vx2 failed: Operation not permitted; check its state: "
    assert caplog.messages == [line + "ip address show dev vx2"] * 2
