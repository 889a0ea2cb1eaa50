"""The chart of each answer of the study: all estimates of its table."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from analysis.plots.comparison import estimates_chart
from analysis.study.tables import Table, named

CHARTS = (  # (title, whether all columns have the same unit) of each question
    ("Activation functions", False),
    ("Rank correlation with the step of emergence", True),
    ("Frequency and specialization: rank correlation", True),
    ("Features during training", False),
    ("Interpretability", False),
)


def answer_charts(number: int, table: Table, kinds: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """The chart of the answer to question `number`, by the name of its file, in the colours of `kinds`.

    Empty if all values are zero or missing.
    """
    title, is_shared = CHARTS[number - 1]
    chart = estimates_chart(title, named(table), is_shared, kinds)
    return {} if chart is None else {f"question-{number}": chart}
