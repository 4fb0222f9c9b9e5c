"""Options and settings of the whole test suite."""

import signal

import pytest
from hypothesis import settings

# A shell starts background jobs with SIGINT ignored, which children inherit: tests that stop a
# child with SIGINT would wait in vain.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("pyvtep", derandomize=True, deadline=None, database=None)
settings.register_profile("fast", settings.get_profile("pyvtep"), max_examples=20)
settings.load_profile("pyvtep")


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
