"""The training curves of a finished run."""

from __future__ import annotations

from collections import defaultdict

from analysis.runs.finished import TRAIN_AGAIN, FinishedRun
from harvest.errors import InputError
from harvest.files import read_lines
from sae_jax.run_directory import METRICS_FILE, WITHOUT_LINE, RunDirectory
from sae_jax.shapes import MetricsLine, check


def read_curves(run: FinishedRun) -> dict[str, list[dict[str, float]]]:
    """{member id: its lines of metrics.jsonl, ordered by step}. Raises InputError if the file is missing or damaged."""
    path, curves = run.path / METRICS_FILE, defaultdict(list)
    if not path.exists():
        raise InputError(f"{run.path} has no {METRICS_FILE}: {TRAIN_AGAIN}")
    for line in read_lines(path, TRAIN_AGAIN):
        check(line, MetricsLine, path, WITHOUT_LINE)
        curves[line["member"]].append(line)
    if run.results.get(METRICS_FILE) != RunDirectory(run.path, {}).metrics_written():
        raise InputError(f"{path} is damaged (lines are missing or changed): {TRAIN_AGAIN}")
    return dict(curves)
