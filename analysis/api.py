"""The analyses from Python, as `analysis.open_run` and `analysis.load_features`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis.features.statistics import Features, load_or_compute_features
from analysis.runs.finished import FinishedRun
from analysis.ui.notebook import ShownRun
from analysis.ui.terminal.live import Terminal
from harvest.request import default_cache_dir


def open_run(path: Path | str) -> FinishedRun:
    """Raises InputError, with the reason, where there is no finished run."""
    return ShownRun.open(Path(path))


def load_features(
    run: FinishedRun, members: Sequence[str] = (), cache_dir: Path | str | None = None, quiet: bool = False
) -> dict[str, Features]:
    """What each feature does, of these members or of all: computed once, then read from the run.

    Progress is printed, unless `quiet`. Raises InputError for a member that is not there or failed, and where the run's
    activations cannot be had.
    """
    with Terminal(quiet=quiet) as terminal:
        where = Path(cache_dir) if cache_dir else default_cache_dir()
        return load_or_compute_features(run, run.chosen(tuple(members)), where, terminal.progress, terminal.say)
