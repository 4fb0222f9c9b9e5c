"""The modules that a command imports: each one that it does not need delays the first frame.

These are lists of modules rather than a time, which would depend on the machine.
"""

import subprocess
import sys

import pytest

_LIST_MODULES = "import atexit, sys; atexit.register(lambda: print(*sorted(sys.modules)))\n"
_RUN = _LIST_MODULES + "from vtep.__main__ import main; main()"

_HEAVY = ("numba", "pyroute2.ndb", "rich", "statistics", "vtep.doctor", "vtep.testing")
"""Modules that only one command or the fast path's compiler needs."""

_DAEMON = ("asyncio", "numpy", "pyroute2", "pytun", "uvloop", "vtep.daemon", "vtep.forwarding")
"""Modules of a VTEP, which the commands that ask one do without."""


def _modules(code: str, *arguments: str) -> set[str]:
    """Return the names of the modules and packages that a new process has imported at its end."""
    command = (sys.executable, "-c", code, *arguments)
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return set(output.splitlines()[-1].split())


def test_a_vtep_imports_only_what_it_needs_to_forward() -> None:
    imported = _modules(_LIST_MODULES + "import vtep.cli.main, vtep.cli.run")
    assert "vtep.daemon.vtep" in imported
    others = ("vtep.docker", "vtep.cli.client_command", "tomllib", "pyroute2.ethtool")
    assert imported.isdisjoint((*_HEAVY, *others))


@pytest.mark.parametrize(
    ("arguments", "others"),
    [
        (("fdb", "show", "--socket", "/absent"), ("vtep.docker", "vtep.cli.neigh", "tomllib")),
        (("--help",), ("vtep.cli.doctor_report",)),
        (("version",), ("vtep.control", "vtep.cli.client_command", "tomllib")),
    ],
)
def test_a_command_imports_nothing_of_the_others(
    arguments: tuple[str, ...], others: tuple[str, ...]
) -> None:
    imported = _modules(_RUN, *arguments)
    assert "vtep.cli.main" in imported
    assert imported.isdisjoint((*_HEAVY, *_DAEMON, *others))


def test_pyroute2_is_whole_once_more_of_it_is_used() -> None:
    code = "import vtep.host.netlink, pyroute2\nprint(pyroute2.NDB is not None, pyroute2.IPRoute)"
    output = subprocess.run(
        (sys.executable, "-c", code), capture_output=True, text=True, check=True
    )
    assert output.stdout.startswith("True")
