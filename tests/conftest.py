"""Options and settings of the whole test suite."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

from tests.packages import ROOT, build, once

# A shell starts background jobs with SIGINT ignored, which children inherit: tests that stop a
# child with SIGINT would wait in vain.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("pyvtep", derandomize=True, deadline=None, database=None)
settings.register_profile("fast", settings.get_profile("pyvtep"), max_examples=20)
settings.load_profile("pyvtep")


def pytest_configure() -> None:
    """Give all tests and the programs that they start one cache of compiled code.

    It outlives the tests, so that only a change of the code has it compiled again.
    """
    # Not at the top: coverage must be measured from the import on.
    from vtep.daemon.compile_cache import VARIABLE, CompileCache  # noqa: PLC0415

    os.environ[VARIABLE] = str(Path(tempfile.gettempdir(), f"pyvtep-tests-{os.geteuid()}"))
    # For tests that import compiled functions themselves. numba's own directory would not do: it
    # does not notice a change in a called function of another file.
    # Nor would that of the product, which must not change once it is complete.
    cache = CompileCache.find()
    os.environ["NUMBA_CACHE_DIR"] = str(cache.root / "of tests" / cache.digest)


def pytest_collect_file(file_path: Path) -> None:
    """Compile the fast path before a module is imported that imports parts of it.

    Otherwise, each of several workers would compile it.
    """
    if file_path.name.startswith("test_fastpath_") and find_spec("numba") is not None:
        compile_turns()


@pytest.fixture(scope="session")
def compiled_turns() -> None:
    """Compile the fast path, unless the cache has it."""
    compile_turns()


def compile_turns() -> None:
    """Compile the fast path now, unless the cache has it: one worker does it for all."""
    from vtep.daemon.compile_cache import CompileCache  # noqa: PLC0415
    from vtep.fastpath.load import TURNS  # noqa: PLC0415

    cache = CompileCache.find()
    with cache.locked(time.sleep):
        if cache.read_proof() is None:
            cache.discard()
            environ = {**os.environ, "NUMBA_CACHE_DIR": str(cache.directory)}
            subprocess.run([sys.executable, "-c", f"import {TURNS}"], check=True, env=environ)
            cache.mark_complete()
        if not (copy := Path(os.environ["NUMBA_CACHE_DIR"])).exists():
            shutil.copytree(cache.directory, copy)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-skips", action="store_true", help="fail if a test was skipped, as CI does"
    )


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not session.config.getoption("--no-skips") or reporter is None:
        return
    skipped = reporter.stats.get("skipped", [])
    if skipped and session.exitstatus == pytest.ExitCode.OK:
        reporter.write_line(f"--no-skips: {len(skipped)} tests did not run", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Return a folder of this run, the same in all workers."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def wheel(session_folder: Path) -> Path:
    """Return the wheel of this tree, with the sdist beside it."""
    dist = once(session_folder / "dist", lambda folder: build(ROOT, folder))
    (found,) = dist.glob("*.whl")
    return found
