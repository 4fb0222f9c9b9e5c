"""`pyvtep upgrade`: what the command does once the new process forwards."""

from pathlib import Path

import pytest

from vtep.cli import upgrade
from vtep.control.client import DisconnectedError


def test_a_new_process_that_has_ended_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    class Refused:
        """A client of a socket on which nothing listens."""

        def __init__(self, path: Path) -> None:
            calls.append(path)
            assert len(calls) < 10, "it tries again and again"
            raise DisconnectedError("no pyvtep answers there")

    monkeypatch.setattr(upgrade, "Client", Refused)
    with pytest.raises(DisconnectedError):
        upgrade._refusal(tmp_path / "gone.sock")
    assert len(calls) == 1
