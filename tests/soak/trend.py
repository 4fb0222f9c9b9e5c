"""Decide whether a resource grows without limit, from samples at equal intervals.

The first half of the samples is ignored: caches fill, and the FDB reaches the number of MACs at
which as many age out as are learned. The second half is divided into blocks, and a line is fitted
to their means. Consecutive samples depend on each other, so that their own noise
would be far too optimistic; the means of long blocks hardly do.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from statistics import fmean

from attrs import frozen

_BLOCKS = 8
_T = 3.707
"""Student's t for 6 degrees of freedom (8 blocks, 2 parameters) and a one-sided error of 0.5 %."""

SAMPLES_MIN = 4 * _BLOCKS


@frozen
class Trend:
    """The change of a resource over the second half of a run, with its uncertainty."""

    growth: float
    """The fitted change from the first to the last block, in the unit of the samples."""
    noise: float
    """The half-width of the confidence interval of `growth`."""
    level: float
    """The mean of the second half."""

    def grows(self, tolerance: float) -> bool:
        """Return True if the growth is certain, and more than `tolerance`."""
        return self.growth - self.noise > 0 and self.growth > tolerance


def find_trend(samples: Sequence[float]) -> Trend:
    """Fit a line to the second half of the samples.

    Raises: ValueError if there are fewer than `SAMPLES_MIN`.
    """
    if len(samples) < SAMPLES_MIN:
        raise ValueError(f"{len(samples)} samples are too few; a trend needs {SAMPLES_MIN}")
    half = samples[len(samples) // 2 :]
    edges = [len(half) * number // _BLOCKS for number in range(_BLOCKS + 1)]
    means = [fmean(half[begin:end]) for begin, end in pairwise(edges)]
    middle, level = (_BLOCKS - 1) / 2, fmean(means)
    spread = sum((at - middle) ** 2 for at in range(_BLOCKS))
    slope = sum((at - middle) * (mean - level) for at, mean in enumerate(means)) / spread
    residuals = [mean - level - slope * (at - middle) for at, mean in enumerate(means)]
    error = sqrt(sum(each**2 for each in residuals) / (_BLOCKS - 2) / spread)
    reach = _BLOCKS - 1
    return Trend(slope * reach, _T * error * reach, level)
