"""A figure and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from analysis.figures import styled

FEWEST = 3  # seeds for an interval: of two, Student's t is twelve times the standard error


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds; `low` and `high` are its 95% interval by Student's t, None for fewer than FEWEST.

    Of few seeds it is wide, and may go over what a share or a correlation can be: it is not cut off there.
    """

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
            return f"{self.mean:z,.{digits}f}"
        return f"{self.mean:z,.{digits}f} [{self.low:z,.{digits}f}, {self.high:z,.{digits}f}]"

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
    if len(known) < FEWEST:
        return Estimate(mean, None, None, len(known))
    half = float(stats.t.ppf(1 - 0.025 / tried, len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known)))
    return Estimate(mean, mean - half, mean + half, len(known))


def chart(title: str, table: dict[str, dict[str, Estimate]], columns: int = 3) -> Any:
    """An Altair figure: a panel a column, a point a row with its interval."""
    import altair as alt

    rows = [
        {"row": row, "column": column, "mean": of.mean, "low": of.low, "high": of.high}
        for row, estimates in table.items()
        for column, of in estimates.items()
        if of.mean is not None
    ]
    y = alt.Y("row:N", title=None, sort=list(table)).axis(labelLimit=220)
    base = alt.Chart().encode(y=y, color=alt.value("#0072B2"))
    x = alt.X("mean:Q", title=None).scale(zero=False, nice=True).axis(tickCount=4)
    layers = alt.layer(
        base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=None), x2="high:Q"),
        base.mark_point(filled=True, size=60, opacity=1).encode(x=x),
        data=alt.Data(values=rows),
    )
    facets = layers.properties(width=190, height=22 * len(table)).facet(
        facet=alt.Facet("column:N", title=None, sort=list(next(iter(table.values())))), columns=columns
    )
    return styled(facets.resolve_scale(x="independent"), title, "mean over seeds and 95% interval")
