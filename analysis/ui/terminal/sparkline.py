"""A loss curve as one line of text."""

from __future__ import annotations

import math
from itertools import pairwise

CURVE_POINTS = 400  # points that a curve keeps, at most


class LossCurve:
    """The loss of a run of any length in bounded memory: when the curve is full, every second point is dropped."""

    def __init__(self) -> None:
        self._points: list[float] = []
        self._stride = 1
        self._seen = 0

    def append(self, loss: float) -> None:
        if self._seen % self._stride == 0:
            self._points.append(loss)
        self._seen += 1
        if len(self._points) == CURVE_POINTS:
            self._points = self._points[::2]
            self._stride *= 2

    def draw(self, columns: int, levels: str, gap: str) -> str:
        """A sparkline of at most `columns` characters from `levels`, or `gap` at steps without a finite loss."""
        n = len(self._points)
        columns = min(columns, n)
        edges = [n * i // columns for i in range(columns + 1)] if columns > 0 else []
        heights = [_finite_mean(self._points[a:b]) for a, b in pairwise(edges)]
        finite = [h for h in heights if math.isfinite(h)]
        if finite and 0 < 10 * min(finite) < max(finite):  # more than a decade: logarithmic
            heights = [math.log(h) if math.isfinite(h) else h for h in heights]
            finite = [math.log(h) for h in finite]
        low, span = (min(finite), max(finite) - min(finite)) if finite else (0.0, 0.0)

        def level(height: float) -> str:
            if not math.isfinite(height):
                return gap
            share = (height - low) / span if 0 < span < math.inf else 0.0
            return levels[round(share * (len(levels) - 1))]

        return "".join(map(level, heights))


def _finite_mean(losses: list[float]) -> float:
    finite = [loss for loss in losses if math.isfinite(loss)]
    return sum(finite) / len(finite) if finite else math.nan
