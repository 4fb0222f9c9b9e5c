"""The command line of the process that an upgrade starts."""

from pathlib import Path

import pytest

from vtep.upgrade.successor import own_command


def test_the_new_process_gets_the_same_command_with_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = "docker attach --control none --control-group a --log=l --state s=1 --takeover vx0"
    given += " --pid-file /p --config --background --takeover=x --takeover --log syslog log"
    monkeypatch.setattr("sys.argv", ["bin/pyvtep", *given.split()])
    kept = f"docker attach --control none --control-group a --log={tmp_path}/l --state"
    kept += f" {tmp_path}/s=1 --pid-file /p --config --log syslog log"
    assert own_command() == [f"{tmp_path}/bin/pyvtep", *kept.split()]
