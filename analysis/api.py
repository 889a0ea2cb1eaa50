"""The Python interface of the analyses: `analysis.open_run` and `analysis.load_features`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from analysis.features.statistics import Features, load_or_compute_features
from analysis.runs.finished import FinishedRun
from analysis.ui.terminal.live import Terminal
from harvest.request import default_cache_dir


@dataclass(frozen=True, repr=False)
class ShownRun(FinishedRun):
    """A finished run that prints as its box of results."""

    def __repr__(self) -> str:
        stream = StringIO()
        Terminal(stream=stream).results(self.results, str(self.path))
        return stream.getvalue().rstrip()


def open_run(path: Path | str) -> FinishedRun:
    """Open a finished run. Raises InputError, with the reason, if there is none at `path`."""
    return ShownRun.open(Path(path))


def load_features(
    run: FinishedRun, members: Sequence[str] = (), cache_dir: Path | str | None = None, quiet: bool = False
) -> dict[str, Features]:
    """Statistics of each feature, for the members with these ids or for all members.

    They are computed once and then read from the run directory. Progress is printed unless `quiet`. Raises InputError
    for a member that does not exist or failed, and if the run's activations are gone and cannot be harvested again.
    """
    with Terminal(quiet=quiet) as terminal:
        cache = Path(cache_dir) if cache_dir else default_cache_dir()
        return load_or_compute_features(run, run.chosen(tuple(members)), cache, terminal.progress, terminal.say)
