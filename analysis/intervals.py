"""A figure and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds; `low` and `high` are its 95% interval by Student's t, None for fewer than two seeds."""

    mean: float | None
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        if self.mean is None:
            return "–"
        scale = max(abs(value) for value in (self.mean, self.low or 0, self.high or 0))
        digits = 3 if 0 < scale < 10 else 1 if 0 < scale < 100 else 0
        if self.low is None or self.high is None:
            return f"{self.mean:,.{digits}f}"
        return f"{self.mean:,.{digits}f} [{self.low:,.{digits}f}, {self.high:,.{digits}f}]"

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def over_seeds(values: Sequence[float | None], tried: int = 1) -> Estimate:
    """Values that are None are left out: what cannot be measured for a seed.

    `tried`: of how many this one is picked out; the interval is so wide that all of them hold at 95% (Bonferroni).
    """
    known = np.array([value for value in values if value is not None], float)
    if not len(known):
        return Estimate(None, None, None, 0)
    mean = float(known.mean())
    if len(known) == 1:
        return Estimate(mean, None, None, 1)
    half = float(stats.t.ppf(1 - 0.025 / tried, len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known)))
    return Estimate(mean, mean - half, mean + half, len(known))
