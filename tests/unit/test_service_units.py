"""The systemd units: what systemd thinks of them, and how they are installed."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from vtep.cli.main import cli
from vtep.errors import VtepError
from vtep.service import installation, units
from vtep.service.installation import Installation
from vtep.service.units import UNITS, UnitState

EXPOSURE_MAX = 25
"""Largest exposure that systemd-analyze may report, in tenths: it says OK up to 49."""

AS_ROOT = {"pyvtep-docker-plugin.service": 34}
"""The same for units that run as root, and may write in /proc/sys."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a directory with the units, rendered for a program that exists."""
    for name in UNITS:
        (tmp_path / name).write_text(units.render(name, "/usr/bin/env"))
    return tmp_path


needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs the Debian package systemd"
)


@needs_systemd
@pytest.mark.parametrize("name", UNITS)
def test_units_are_hardened_and_have_no_mistakes(folder: Path, name: str) -> None:
    instance = folder / name.replace("@.", "@net.")
    if instance.name != name:
        instance.symlink_to(folder / name)
    threshold = AS_ROOT.get(name, EXPOSURE_MAX)
    security = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={threshold}", instance],
        capture_output=True,
        text=True,
        check=False,
    )
    assert security.returncode == 0, security.stdout
    verified = subprocess.run(
        ["systemd-analyze", "verify", instance], capture_output=True, text=True, check=False
    )
    ours = [line for line in verified.stderr.splitlines() if "pyvtep" in line]
    assert (verified.returncode, ours) == (0, []), verified.stderr


def test_every_word_of_a_template_is_replaced() -> None:
    for name in UNITS:
        text = units.render(name, "/opt/100%/pyvtep", in_home=True)
        assert re.findall("@[A-Z_]+@", text) == []
        assert "ExecStart=/opt/100%%/pyvtep " in text  # A percent sign begins a specifier.
        assert "ProtectHome=read-only\n" in text
    assert units.is_in_home(Path("/root/.local/bin/pyvtep"))
    assert not units.is_in_home(Path("/opt/home/pyvtep"))


def test_units_that_were_edited_are_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Installation(tmp_path)
    assert {here.state(name) for name in UNITS} == {UnitState.ABSENT}
    monkeypatch.setattr(installation, "_unreachable", lambda _path: None)
    assert list(here.install(force=False)) == [f"wrote {tmp_path / name}" for name in UNITS]
    assert {here.state(name) for name in UNITS} == {UnitState.CURRENT}
    assert list(here.install(force=False)) == [f"unchanged: {tmp_path / name}" for name in UNITS]

    # Another version, or another path of the program, has written this one.
    old = tmp_path / UNITS[0]
    old.write_text(units.render(UNITS[0], "/old/pyvtep"))
    assert here.state(UNITS[0]) is UnitState.OUTDATED
    dry = Installation(tmp_path, dry_run=True)
    assert next(iter(dry.install(force=False))) == f"would have replaced {old}"
    assert here.state(UNITS[0]) is UnitState.OUTDATED
    assert next(iter(here.install(force=False))) == f"replaced {old}"

    edited = tmp_path / UNITS[1]
    edited.write_text(edited.read_text().replace("WatchdogSec=10", "WatchdogSec=60"))
    for change in (here.install, here.uninstall):
        with pytest.raises(VtepError, match="was edited: to keep the changes, "):
            list(change(force=False))
    assert "WatchdogSec=60" in edited.read_text()
    assert f"replaced {edited}" in list(here.install(force=True))
    assert list(here.uninstall(force=False)) == [f"removed {tmp_path / name}" for name in UNITS]
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_other_users_cannot_reach_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "closed" / "bin" / "pyvtep"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    (tmp_path / "closed").chmod(0o700)
    monkeypatch.setattr("sys.argv", [str(program)])
    with pytest.raises(VtepError, match=f"since {tmp_path}.* is closed to other users"):
        list(Installation(tmp_path).install(force=False))
    # A dry run goes on, with a note.
    note, *rest = Installation(tmp_path, dry_run=True).install(force=False)
    assert note.startswith("note: this would fail here: the service runs as its own user")
    assert rest == [f"would have written {tmp_path / name}" for name in UNITS]
    program.unlink()
    assert "No such file" in str(installation._unreachable(program))


def test_without_systemd_there_is_advice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def service(*words: str) -> list[str]:
        result = CliRunner().invoke(cli, ["service", *words], catch_exceptions=False)
        return result.output.splitlines()

    monkeypatch.setattr(installation, "_BOOTED", tmp_path / "missing")
    monkeypatch.setattr(installation, "_unreachable", lambda _path: None)
    monkeypatch.setattr("vtep.cli.service.UNIT_DIRECTORY", tmp_path / "units")
    monkeypatch.setattr(installation, "UNIT_DIRECTORY", tmp_path / "units")
    (tmp_path / "units").mkdir()
    result = CliRunner().invoke(cli, ["service", "install"])
    assert isinstance(result.exception, VtepError)
    assert "not run by systemd" in str(result.exception)
    assert "--background" in str(result.exception)
    note, *lines = service("install", "--dry-run")
    assert note.startswith("note: this would fail here: this host is not run by systemd")
    assert [f"would have written {tmp_path / 'units' / name}" for name in UNITS] == [
        line for line in lines if "written" in line
    ]
    assert "would have run systemctl daemon-reload" in lines
    for words in ((), ("--dry-run",)):
        assert service("uninstall", *words) == [
            f"nothing to remove: {tmp_path / 'units'} has no unit of pyvtep"
        ]
    # Units that are there nevertheless, as in a directory tree for another host, are removed.
    unit = tmp_path / "units" / UNITS[0]
    unit.write_text(units.render(UNITS[0], "/old/pyvtep"))
    assert f"removed {unit}" in service("uninstall")
    assert service("status", "--directory", str(tmp_path)) == [
        *(f"{name}: not installed" for name in UNITS),
        "this host is not run by systemd",
    ]
