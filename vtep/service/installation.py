"""Installation of the units on this host: what is there, and each step, with a line about it."""

import os
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import vtep
from vtep import descriptors
from vtep.config.loader import read
from vtep.errors import VtepError
from vtep.service import units
from vtep.service.units import UNITS, UnitState

UNIT_DIRECTORY: Final = Path("/etc/systemd/system")
CONFIG_DIRECTORY: Final = Path("/etc/pyvtep")

_PACKAGED = Path("/usr/lib/systemd/system")
"""The directory of units that belong to packages."""

_BOOTED = Path("/run/systemd/system")
"""Exists if systemd is the init system (sd_booted(3))."""

_TUN = Path("/dev/net/tun")


class Installation:
    """The units in a directory, by default those that systemd reads.

    Its methods yield a line for each thing that they have done or, with `dry_run`, would do.
    """

    def __init__(self, directory: Path = UNIT_DIRECTORY, *, dry_run: bool = False) -> None:
        self._directory = directory
        self._is_live = directory == UNIT_DIRECTORY
        self._dry_run = dry_run
        self._command, parts = _own_command()
        self._parts = parts
        in_home = any(units.is_in_home(part) for part in parts)
        self._texts = {name: units.render(name, self._command, in_home=in_home) for name in UNITS}

    def state(self, name: str) -> UnitState:
        """Return the state of a unit. Raises: VtepError."""
        path = self._directory / name
        try:
            found = path.read_text() if path.exists() else None
        except (OSError, UnicodeDecodeError) as error:
            raise _cannot("read", path, error) from error
        return units.examine(name, found, self._texts[name])

    def install(self, *, force: bool) -> Iterator[str]:
        """Write the units, and make systemd read them. Raises: VtepError, before anything is done
        if a unit was edited, unless `force`.
        """
        if self._is_live and not _BOOTED.is_dir():
            yield from self._refuse(
                "this host is not run by systemd, so the units would have no effect; to run pyvtep "
                "without it: --background"
            )
        for part in self._parts:
            if (reason := _unreachable(part)) is not None:
                yield from self._refuse(reason)
                break
        states = {name: self.state(name) for name in UNITS}
        self._refuse_edited(states, "replace", force=force)
        if self._is_live and not CONFIG_DIRECTORY.is_dir():
            self._make_directory(CONFIG_DIRECTORY)
            yield f"{self._did('created')} {CONFIG_DIRECTORY}"
        for name, state in states.items():
            path = self._directory / name
            if state is UnitState.CURRENT:
                yield f"unchanged: {path}"
                continue
            self._write(path, self._texts[name])
            yield f"{self._did('wrote' if state is UnitState.ABSENT else 'replaced')} {path}"
        if self._is_live:
            yield from self._systemctl("daemon-reload")
            if _TUN.exists() and stat.S_IMODE(_TUN.stat().st_mode) & 0o006 != 0o006:
                yield f"warning: the user of the service cannot open {_TUN}: chmod 666 {_TUN}"
            yield "to start it now and at each boot: systemctl enable --now pyvtep"

    def uninstall(self, *, force: bool) -> Iterator[str]:
        """Stop and disable the units, and remove them. Raises: VtepError, as `install` does."""
        states = {name: self.state(name) for name in UNITS}
        present = [name for name, state in states.items() if state is not UnitState.ABSENT]
        if not present:
            yield f"nothing to remove: {self._directory} has no unit of pyvtep"
            return
        self._refuse_edited(states, "remove", force=force)
        is_live = self._is_live and _BOOTED.is_dir()
        if is_live:
            for unit in _instances(present):
                yield from self._systemctl("disable", "--now", unit)
        for name in present:
            path = self._directory / name
            if not self._dry_run:
                try:
                    path.unlink()
                except OSError as error:
                    raise _cannot("remove", path, error) from error
            yield f"{self._did('removed')} {path}"
        if is_live:
            yield from self._systemctl("daemon-reload")
        if self._is_live and CONFIG_DIRECTORY.is_dir():
            yield f"kept {CONFIG_DIRECTORY}"

    def status(self) -> Iterator[str]:
        """Yield a line for each unit, each running instance, and each problem with the files."""
        for name in UNITS:
            state, packaged = self.state(name), _PACKAGED / name
            if state is UnitState.ABSENT and self._is_live and packaged.exists():
                yield f"{name}: part of a package ({packaged})"
            else:
                yield f"{name}: {state.value}"
        if not _BOOTED.is_dir():
            yield "this host is not run by systemd"
            return
        for unit in _instances(UNITS):
            shown = _query("show", unit, "--property=ActiveState,SubState,MainPID,StatusText")
            values = dict(line.partition("=")[::2] for line in shown.splitlines())
            text = f", {values['StatusText']}" if values.get("StatusText") else ""
            pid = f", process {values['MainPID']}" if values.get("MainPID", "0") != "0" else ""
            yield f"{unit}: {values.get('ActiveState')} ({values.get('SubState')}){pid}{text}"
        if self._is_live and any(CONFIG_DIRECTORY.glob("*.toml")):
            try:
                settings = read(CONFIG_DIRECTORY)
            except VtepError as error:
                yield from error.problems
            else:
                yield f"{CONFIG_DIRECTORY}: valid; {len(settings.segments)} VNIs"

    def _refuse_edited(self, states: dict[str, UnitState], verb: str, *, force: bool) -> None:
        for name, state in states.items():
            if state is UnitState.EDITED and not force:
                raise VtepError(
                    f"{self._directory / name} was edited: to keep the changes, move them into a "
                    f"drop-in (systemctl edit {name}); to {verb} it as it is: --force"
                )

    def _refuse(self, reason: str) -> Iterator[str]:
        """Raise a VtepError; in a dry run, yield its reason, since a dry run works on any host."""
        if not self._dry_run:
            raise VtepError(reason)
        yield f"note: this would fail here: {reason}"

    def _did(self, verb: str) -> str:
        participle = {"wrote": "written", "ran": "run"}.get(verb, verb)
        return f"would have {participle}" if self._dry_run else verb

    def _make_directory(self, path: Path) -> None:
        if not self._dry_run:
            try:
                path.mkdir(mode=0o755)
            except OSError as error:
                raise _cannot("create", path, error) from error

    def _write(self, path: Path, text: str) -> None:
        if self._dry_run:
            return
        fresh = path.with_name(f".{path.name}.new")
        try:
            # Complete when it appears: systemd may read it at any time.
            fresh.write_text(text)
            fresh.chmod(0o644)
            fresh.replace(path)
        except OSError as error:
            raise _cannot("write", path, error) from error

    def _systemctl(self, *words: str) -> Iterator[str]:
        if not self._dry_run:
            _query(*words)
        yield f"{self._did('ran')} systemctl {shlex.join(words)}"


def _own_command() -> tuple[str, list[Path]]:
    """Return the absolute command of this program for a unit, and its parts in the file system."""
    package, interpreter = Path(vtep.__file__).parent, Path(sys.executable)
    # That of a virtual environment is a link, perhaps into the home directory of its maker.
    parts = [package, interpreter, interpreter.resolve()]
    found = shutil.which(sys.argv[0])
    # Of `python -m vtep`, the first argument is a module.
    if found is None or Path(found).suffix == ".py":
        return f"{interpreter} -m vtep", parts
    # Links are kept: that of pipx leads to the new version after an upgrade.
    command = Path(found).absolute()
    return str(command), [command, command.resolve(), *parts]


def _unreachable(path: Path) -> str | None:
    """Return why the user of the service cannot use a part of the program; None if it can."""
    for each in (path, *path.parents):
        try:
            mode = each.stat().st_mode
        except OSError as error:
            return f"cannot use {each}: {descriptors.reason(error)}; install pyvtep again"
        if not mode & stat.S_IXOTH:
            return (
                f"the service runs as its own user, which cannot use {path}, since {each} is "
                "closed to other users; install pyvtep for all users, such as in /opt/pyvtep: "
                "python3 -m venv /opt/pyvtep"
            )
    return None


def _instances(units: Iterable[str]) -> list[str]:
    """Return those of these units that are loaded or enabled, with the instances of templates."""
    patterns = [name.replace("@.", "@*.") for name in units]
    listed = [
        *_query("list-units", "--all", "--plain", "--no-legend", *patterns).splitlines(),
        *_query("list-unit-files", "--no-legend", *patterns).splitlines(),
    ]
    names = {line.split()[0] for line in listed if line.strip()}
    return sorted(name for name in names if "@." not in name)


def _query(*words: str) -> str:
    """Run systemctl. Returns: its output. Raises: VtepError with its message."""
    program = shutil.which("systemctl")
    if program is None:
        raise VtepError("systemctl was not found; install systemd, or run pyvtep --background")
    done = subprocess.run(  # noqa: S603  the words are ours, and names of units
        [program, "--no-pager", *words], capture_output=True, text=True, check=False
    )
    # A list without an entry has an exit code as well, but is no failure.
    if done.returncode and (reason := " ".join(done.stderr.split())):
        raise VtepError(f"systemctl {shlex.join(words)} failed: {reason}")
    return done.stdout


def _cannot(verb: str, path: Path, error: Exception) -> VtepError:
    reason = descriptors.reason(error) if isinstance(error, OSError) else str(error)
    advice = ""
    if isinstance(error, PermissionError) and os.geteuid():
        advice = "; run as root"
    elif isinstance(error, FileNotFoundError):
        advice = f"; create the directory: mkdir -p {path.parent}"
    return VtepError(f"cannot {verb} {path}: {reason}{advice}")
