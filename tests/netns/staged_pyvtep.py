"""The program of `staged_upgrade.Stages`: a pyvtep that stops at the stages that a test holds.

It imports as little as pyvtep does before it has become another user.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_DEADLINES = {
    "reading": ("vtep.upgrade.old", "_READING_S"),
    "confirm": ("vtep.upgrade.old", "_CONFIRM_S"),
    "silence": ("vtep.upgrade.successor", "_SILENCE_S"),
    "rest": ("vtep.upgrade.new", "_STEP_S"),
}
"""By file, the module and the constant of a deadline."""


def main(name: str) -> None:
    """Run pyvtep, which stops at the stages that are held in a folder."""
    if sys.argv[2:4] == ["-m", "vtep"]:  # As `Pyvtep` starts it, with this program in front.
        del sys.argv[1:4]
    from vtep.cli import bootstrap  # noqa: PLC0415  before any module that starts threads

    bootstrap.keep_single_threaded()
    _patch(Path(name))
    from vtep.__main__ import main as run  # noqa: PLC0415

    run()


def _patch(folder: Path) -> None:
    from vtep.daemon.vtep import Vtep  # noqa: PLC0415
    from vtep.upgrade.channel import Channel  # noqa: PLC0415
    from vtep.upgrade.new import NewSide  # noqa: PLC0415
    from vtep.upgrade.old import OldSide  # noqa: PLC0415

    def stop_at(stage: str) -> None:
        hold = folder / f"hold-{stage}"
        if hold.exists():
            new = folder / f"new-{stage}"
            new.write_text(str(os.getpid()))
            new.rename(folder / f"at-{stage}")
        while hold.exists():
            time.sleep(0.005)

    def before(owner: type, method: str, do: Callable[..., None]) -> None:
        inner = getattr(owner, method)

        def outer(*args: Any, **named: Any) -> Any:
            do(*args, **named)
            return inner(*args, **named)

        setattr(owner, method, outer)

    def set_deadlines(*_: object) -> None:
        for file, (module, constant) in _DEADLINES.items():
            original = originals.setdefault(file, getattr(sys.modules[module], constant))
            path = folder / file
            value = float(path.read_text()) if path.exists() else original
            setattr(sys.modules[module], constant, value)

    originals: dict[str, float] = {}
    send = Channel.send

    async def staged_send(channel: Channel, kind: str, /, *args: Any, **named: Any) -> None:
        stop_at(kind)
        await send(channel, kind, *args, **named)
        stop_at(f"{kind}-sent")

    setattr(Channel, "send", staged_send)  # noqa: B010  mypy knows of no other signature
    before(NewSide, "_connect", lambda _: stop_at("connect"))
    before(NewSide, "_finish", set_deadlines)
    before(OldSide, "_upgrade", set_deadlines)
    before(OldSide, "_hand_over", set_deadlines)

    def stop_new_side(_: Vtep, *, paused: bool = False) -> None:
        if paused:
            stop_at("build")

    before(Vtep, "start", stop_new_side)
