"""Fuzz one target, or run it once for each of some files: see `scripts/fuzz`.

atheris instruments the modules of vtep while they are imported, so nothing may import them before.
"""

import argparse
import importlib
import logging
import sys
import tempfile
from pathlib import Path

import atheris

HERE = Path(__file__).parent
TARGETS = ("receive", "transmit", "control", "config", "state", "upgrade", "bgp")


def main() -> None:
    """Parse the command line, and fuzz."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("files", nargs="*", help="inputs to run once each, to reproduce a finding")
    parser.add_argument("--seconds", type=int, default=60, help="stop after this time (60)")
    parser.add_argument("--runs", type=int, default=-1, help="stop after so many executions")
    parser.add_argument("--corpus", help="a directory that keeps what is found, to go on later")
    parser.add_argument("--merge", action="store_true", help="minimize --corpus into tests/fuzz")
    given = parser.parse_args()
    # Messages about hostile input are expected. Those of bugs are raised by the targets.
    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=["vtep"]):
        target = importlib.import_module(f"tests.fuzz.{given.target}")
    # Imported late, since it imports vtep.
    from tests.fuzz.minimize import merge  # noqa: PLC0415

    seeds = HERE / "corpus" / given.target
    with tempfile.TemporaryDirectory() as temporary:
        own = Path(given.corpus or f"{temporary}/corpus")
        own.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(target.seeds()):
            (own / f"seed-{number}").write_bytes(seed)
        artifacts = own.parent / f"{given.target}-findings"
        options = [
            f"-artifact_prefix={artifacts}/",
            *(f"-max_len={target.LEN_MAX}", "-timeout=20", "-rss_limit_mb=4096"),
        ]
        if given.files:
            arguments = [*options, *given.files]
        elif given.merge:
            merge(target.run, own, seeds)
            return
        else:
            arguments = [
                *(*options, f"-max_total_time={given.seconds}", f"-runs={given.runs}"),
                *("-print_final_stats=1", str(own), *([str(seeds)] if seeds.is_dir() else [])),
            ]
        if not given.files:
            # A finding must outlive the temporary corpus.
            artifacts = Path(given.corpus or Path.cwd()) / "findings"
            artifacts.mkdir(parents=True, exist_ok=True)
            arguments[0] = f"-artifact_prefix={artifacts}/{given.target}-"
        atheris.Setup([sys.argv[0], *arguments], target.run)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
