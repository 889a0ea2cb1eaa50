"""Logistic probes, which predict whether a row belongs to a class.

Shapes: N rows, C columns (features or neurons).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Probe(NamedTuple):
    """A linear probe. It predicts the class if x·weights + bias > 0."""

    weights_C: np.ndarray
    bias: float

    def says(self, x_NxC: np.ndarray) -> np.ndarray:
        return x_NxC @ self.weights_C + self.bias > 0

    def accuracy(self, x_NxC: np.ndarray, is_class_N: np.ndarray) -> float:
        return float((self.says(x_NxC) == is_class_N).mean())


def fit(x_NxC: np.ndarray, is_class_N: np.ndarray, l1: float | None = None, balanced: bool = False) -> Probe:
    """Fit scikit-learn's logistic regression, with an L2 penalty and C = 1.

    It is fitted on x divided by the root of the columns' mean variance, so that the penalty does not depend on the
    unit of the activations. The returned probe takes the unscaled x. With `l1`, the objective is
    mean loss + l1·‖w‖₁ instead. `balanced` gives both classes the same total weight.
    """
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    scale = float(np.sqrt(x_NxC.var(0, dtype=np.float64).mean())) or 1.0
    weighting = {"class_weight": "balanced" if balanced else None, "max_iter": 2000}
    if l1 is None:
        model = LogisticRegression(**weighting)
    else:
        model = LogisticRegression(**weighting, C=1 / (l1 * len(x_NxC)), l1_ratio=1.0, solver="liblinear")
    with threadpool_limits(1):  # such small products are ten times slower on two threads, which wait for each other
        model.fit(x_NxC / scale, is_class_N)
    return Probe(model.coef_[0] / scale, float(model.intercept_[0]))
