"""Logistic probes: is a row of a class?

Shapes: N rows, C columns (features or neurons).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Probe(NamedTuple):
    """Says yes where x·weights + bias > 0."""

    weights_C: np.ndarray
    bias: float

    def says(self, x_NxC: np.ndarray) -> np.ndarray:
        return x_NxC @ self.weights_C + self.bias > 0

    def accuracy(self, x_NxC: np.ndarray, is_class_N: np.ndarray) -> float:
        return float((self.says(x_NxC) == is_class_N).mean())


def fit(x_NxC: np.ndarray, is_class_N: np.ndarray, l1: float | None = None, balanced: bool = False) -> Probe:
    """scikit-learn's logistic regression, L2 with C = 1; on x in units of its columns' root mean variance, so that
    the penalty does not depend on the unit of the activations. The probe takes x as it is.

    `l1`: mean loss + l1·‖w‖₁ instead. `balanced`: both classes weigh the same.
    """
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    scale = float(np.sqrt(x_NxC.var(0, dtype=np.float64).mean())) or 1.0
    weighting = {"class_weight": "balanced" if balanced else None, "max_iter": 2000}
    if l1 is None:
        model = LogisticRegression(**weighting)
    else:
        model = LogisticRegression(**weighting, C=1 / (l1 * len(x_NxC)), l1_ratio=1.0, solver="liblinear")
    with threadpool_limits(1):  # on two threads such small products take ten times as long, waiting for each other
        model.fit(x_NxC / scale, is_class_N)
    return Probe(model.coef_[0] / scale, float(model.intercept_[0]))
