"""Each input of the fuzzing corpora, without atheris: a finding stays found."""

import importlib
import logging
from pathlib import Path

import pytest

from tests.fuzz.minimize import choose

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"
TARGETS = ("receive", "transmit", "control", "config", "state", "upgrade", "bgp")


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_of_the_corpus(
    name: str, subtests: pytest.Subtests, caplog: pytest.LogCaptureFixture
) -> None:
    # Messages about hostile input are expected.
    caplog.set_level(logging.CRITICAL, "vtep")
    target = importlib.import_module(f"tests.fuzz.{name}")
    paths = sorted((CORPUS / name).iterdir())
    assert paths
    for path in paths:
        with subtests.test(path.name):
            target.run(path.read_bytes())
    for data in target.seeds():
        target.run(data)


def test_a_minimized_corpus_reaches_the_same() -> None:
    a, b, c = (("file", 0, line) for line in (1, 2, 3))
    reached = {b"long" * 99: {a, b}, b"1": {a}, b"2": {b}, b"3": {c, b}, b"4": {b}}
    chosen = choose(reached)
    assert sorted(chosen) == [b"1", b"3"]
