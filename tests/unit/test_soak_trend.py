"""The verdict of the soak test: a small leak in noise is noticed, and only that."""

import random
from collections.abc import Callable

import pytest

from tests.soak.trend import SAMPLES_MIN, find_trend

ROWS: dict[str, tuple[Callable[[int], float], bool]] = {
    # What a sample is at number `at` of 1800, with noise, and whether it grows by more than 2.
    "constant": (lambda at: 64.0 + 0 * at, False),
    "fills, then is flat": (lambda at: min(at, 300) / 10, False),
    "leaks 1 unit in 10 minutes": (lambda at: at / 600 + at / 400, True),
    "grows less than the tolerance": (lambda at: at / 1800, False),
    "saw-tooth": (lambda at: 50.0 + at % 60 / 10, False),
    "saw-tooth that climbs": (lambda at: 50.0 + at % 60 / 10 + at / 20, True),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_growth_is_told_from_noise(name: str, noise: float) -> None:
    value, grows = ROWS[name]
    for seed in range(10):
        rng = random.Random(seed)
        samples = [value(at) + rng.gauss(0, noise) for at in range(1800)]
        assert find_trend(samples).grows(2.0) == grows


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        find_trend([1.0] * (SAMPLES_MIN - 1))
