"""95% intervals of means over documents, of AUROCs over passages and of means over seeds.

Documents are skewed and of unequal length, so means over them get bootstrap-t intervals. An AUROC gets a score
interval, a mean over seeds Student's t. There is no interval for too few documents, passages or seeds. How often each
interval covers the true value is measured in tests/analysis/test_stats.py.

Shapes: G documents, S bootstrap samples, P passages of a concept, Q others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats
from scipy.optimize import brentq

FEWEST = 3  # seeds that an interval needs: with two, it would be 12.7 standard errors to either side
FEWEST_DOCUMENTS = 50  # with fewer documents, log-normal with sigma 1, the interval covers less than 93%
FEWEST_SCORED = 15  # scored passages of the concept: with fewer, the interval of a sparse feature covers over 98%
SAMPLES, ENDS = 2000, (0.02, 0.98)  # wider than 95%, because bootstrap-t covers 1 to 2% less for skewed documents
EVENTS = 12  # passages that are not perfectly ranked: with more, their measured variance weighs more than the model's

Interval = tuple[float, float]


def ratio_interval(numerator_G: np.ndarray, denominator_G: np.ndarray) -> Interval | None:
    """The interval of Σ numerator / Σ denominator over documents: bootstrap-t (Efron 1982), or Student's t if wider.

    The standard error is the linearized one, recomputed for each sample. Intervals from percentiles of the ratio, and
    BCa, are far too narrow for few skewed documents. None for fewer than FEWEST_DOCUMENTS, and if the denominator is
    not significantly different from 0.
    """
    documents = len(numerator_G)
    if documents < FEWEST_DOCUMENTS:
        return None
    sums_GxM = np.stack([numerator_G, denominator_G, numerator_G**2, numerator_G * denominator_G, denominator_G**2], 1)
    t = float(stats.t.ppf(0.975, documents - 1))
    mean = denominator_G.mean()
    if abs(mean) <= t * denominator_G.std(ddof=1) / np.sqrt(documents):
        return None
    ratio, error = (float(of[0]) for of in _ratio_and_error(sums_GxM.sum(0, keepdims=True), documents))
    ratio_S, error_S = _ratio_and_error(bootstrap_samples(documents) @ sums_GxM, documents)
    with np.errstate(divide="ignore", invalid="ignore"):
        t_S = np.nan_to_num((ratio_S - ratio) / error_S, nan=0.0, posinf=np.inf, neginf=-np.inf)
    low, high = np.quantile(t_S, ENDS, method="inverted_cdf")
    ends = ratio - max(float(high), t) * error, ratio - min(float(low), -t) * error
    return ends if np.isfinite(ends).all() else None


def _ratio_and_error(sums_SxM: np.ndarray, documents: int) -> tuple[np.ndarray, np.ndarray]:
    """(the ratio, its standard error) [S] from sums of numerator, denominator, and their squares and product."""
    a_S, b_S, aa_S, ab_S, bb_S = sums_SxM.T
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_S = a_S / b_S
        squares_S = aa_S - 2 * ratio_S * ab_S + ratio_S**2 * bb_S  # of what the ratio leaves over in each document
        rounding_S = 1e-12 * (aa_S + ratio_S**2 * bb_S)
        squares_S = np.where(squares_S > rounding_S, squares_S, 0)
        return ratio_S, np.sqrt(squares_S * documents / (documents - 1)) / np.abs(b_S)


@lru_cache(1)
def bootstrap_samples(documents: int) -> np.ndarray:
    """How many times each document is drawn into each of SAMPLES samples, int [S, G]. Equal for equal `documents`."""
    drawn_SxG = np.random.default_rng(0).multinomial(documents, np.full(documents, 1 / documents), SAMPLES)
    drawn_SxG.setflags(write=False)  # cached, so callers must not change it
    return drawn_SxG


def auroc_interval(wins_PxQ: np.ndarray) -> Interval | None:
    """The interval of an AUROC. `wins_PxQ` is 1 if the concept's passage has the larger value, ½ if equal, else 0.

    The interval holds the values whose distance from the measured one is at most t standard errors *there* (Newcombe
    2006, method 5). Unlike those of DeLong (1988), these errors do not vanish near 1. DeLong's variance scales them and
    counts for more the more passages are not perfectly ranked; its degrees of freedom come from the kurtosis of each
    side. None for fewer than FEWEST_SCORED passages of the concept.
    """
    p, q = wins_PxQ.shape
    if p < FEWEST_SCORED:
        return None
    found, own_P, own_Q = float(wins_PxQ.mean()), wins_PxQ.mean(1), wins_PxQ.mean(0)
    size = (p + q) / 2 - 1

    def variance(auroc: float) -> float:
        return auroc * (1 - auroc) * (1 + size * (1 - auroc) / (2 - auroc) + size * auroc / (1 + auroc)) / (p * q)

    def t_squared(freedom_p: float, freedom_q: float) -> float:
        freedom = (of_p + of_q) ** 2 / (of_p**2 / freedom_p + of_q**2 / freedom_q)  # Welch and Satterthwaite
        return float(stats.t.ppf(0.975, freedom)) ** 2

    of_p, of_q = own_P.var(ddof=1) / p, own_Q.var(ddof=1) / q
    if of_p + of_q == 0 or not 0 < found < 1:
        width = float(stats.t.ppf(0.975, p - 1)) ** 2
    else:
        events = min(int(side.sum()) for own in (own_P, own_Q) for side in (own < 1, own > 0))
        scale = (of_p + of_q) / variance(found)
        measured = scale * t_squared(_freedom(own_P), _freedom(own_Q))
        cautious = max(scale, 1.0) * t_squared(p - 1, q - 1)
        width = (events * measured + EVENTS * cautious) / (events + EVENTS)

    def beyond(auroc: float) -> float:
        return (found - auroc) ** 2 - width * variance(auroc)

    inside = min(max(found, 1e-9), 1 - 1e-9)  # at 0 and 1 themselves there is no error at all
    return (brentq(beyond, 0, inside) if found > 0 else 0.0), (brentq(beyond, inside, 1) if found < 1 else 1.0)


def _freedom(values_N: np.ndarray) -> float:
    """Degrees of freedom of a sample's variance: 2N / (kurtosis - 1). Outliers make them few."""
    constant = np.ptp(values_N) == 0
    kurtosis = 3.0 if constant else float(stats.kurtosis(values_N, fisher=False))
    return min(len(values_N) - 1, max(1.0, 2 * len(values_N) / max(kurtosis - 1, 1e-9)))


def digits_for(uncertainty: float) -> int:
    """The number of digits after the point whose last one is of the size of an uncertainty, from 0 to 6."""
    return 0 if uncertainty == 0 else min(6, max(0, -math.floor(math.log10(uncertainty))))


ROUNDING = 1e-6  # relative width of an interval up to which it is that of equal values


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds; `low` and `high` are its 95% interval by Student's t, None for fewer than FEWEST.

    As text it has the digits that the interval allows, and no interval if all seeds are equal.
    With few seeds the interval is wide and may exceed the range of a share or a correlation. It is not clipped.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        if self.mean is None:
            return "–"
        if self.low is None or self.high is None or self.high - self.low <= ROUNDING * abs(self.mean):
            return f"{self.mean:z,.{digits_for(abs(self.mean) / 100)}f}"
        digits = digits_for((self.high - self.low) / 4)
        if self.excludes_zero:  # the bound next to 0 must not look like 0
            digits = max(digits, digits_for(min(abs(self.low), abs(self.high))))
        return f"{self.mean:z,.{digits}f} [{self.low:z,.{digits}f}, {self.high:z,.{digits}f}]"

    def plus_minus(self, spec: str = ".3f") -> str:
        """The mean and half the width of the interval, as "0.931 ± 0.002", in a format of Python."""
        if self.mean is None or self.low is None or self.high is None:
            return "–" if self.mean is None else f"{self.mean:{spec}}"
        return f"{self.mean:{spec}} ± {(self.high - self.low) / 2:{spec.removeprefix('+')}}"

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def over_seeds(values: Sequence[float | None], tried: int = 1) -> Estimate:
    """The mean of one value for each seed, with its interval. Values that are None are left out.

    `tried` is the number of estimates that this one is selected from: the interval is widened so that all of them hold
    together at 95% (Bonferroni).
    """
    known = np.array([value for value in values if value is not None], float)
    if not len(known):
        return Estimate(None, None, None, 0)
    mean = float(known.mean())
    if len(known) < FEWEST:
        return Estimate(mean, None, None, len(known))
    half = float(stats.t.ppf(1 - 0.025 / tried, len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known)))
    return Estimate(mean, mean - half, mean + half, len(known))
