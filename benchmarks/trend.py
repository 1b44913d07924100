"""Whether a series of samples grows: a straight line through them, and how sure it is."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

SURE = 2.0
"""A slope of so many times its noise is one."""
SLIGHT = 0.001
"""A slope of less than this share of the whole, a minute, is none."""
RISE = 0.05
"""So much more than in the first minute, as a share, may be held in the last one."""
_MINUTE = 60.0


@dataclass(frozen=True)
class Trend:
    """How a series went.

    :ivar slope: of the line of least squares, a minute.
    :ivar noise: its standard error, widened by as much as neighbouring samples resemble each other.
    :ivar first: the median of the first minute.
    :ivar last: the median of the last minute.
    """

    slope: float
    noise: float
    first: float
    last: float

    @property
    def flat(self) -> bool:
        """Whether nothing grows, as far as can be seen."""
        grows = self.slope > SURE * self.noise and self.slope > SLIGHT * self.first
        return not grows and self.last <= (1 + RISE) * self.first


def trend(times: Sequence[float], values: Sequence[float]) -> Trend:
    """The trend of `values` at `times`, which are seconds and begin at 0; eight samples or more."""
    # Of what is shorter than four minutes, the first quarter and the last one.
    minute = min(_MINUTE, times[-1] / 4)
    series = list(zip(times, values, strict=True))
    slope, noise = _line(series)
    return Trend(
        slope * _MINUTE,
        noise * _MINUTE,
        statistics.median(value for at, value in series if at < minute),
        statistics.median(value for at, value in series if at >= times[-1] - minute),
    )


def _line(series: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The slope and its standard error."""
    times, values = zip(*series, strict=True)
    slope, intercept = statistics.linear_regression(times, values)
    rest = [value - slope * at - intercept for at, value in series]
    squares = sum(r * r for r in rest)
    if not squares:
        return slope, 0.0
    middle = statistics.fmean(times)
    spread = sum((at - middle) ** 2 for at in times)
    noise = math.sqrt(squares / (len(rest) - 2) / spread)
    # Of samples that go along with each other there are fewer than it seems: an autoregression of
    # the first order, as trends of the climate are corrected (Santer et al., 2000).
    alike = sum(a * b for a, b in itertools.pairwise(rest)) / squares
    alike = min(max(alike, 0.0), 0.95)
    return slope, noise * math.sqrt((1 + alike) / (1 - alike))
