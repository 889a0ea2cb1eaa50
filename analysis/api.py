"""The Python interface of runs: `analysis.train_population`, `analysis.open_run` and `analysis.load_features`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from analysis.run_options import RunOptions, refuse_conflicts
from analysis.runs.finished import FinishedRun
from analysis.training import train_run
from analysis.ui.terminal.live import Terminal
from analysis.ui.terminal.wording import pasted
from harvest.errors import InputError
from harvest.flags import Flags, as_arguments, named, nearest, translated
from harvest.imports.stored_rows import request_for_rows
from harvest.request import HarvestRequest, default_cache_dir
from sae_jax.config import TrainConfig

if TYPE_CHECKING:
    from analysis.features.statistics import Features
    from sae_jax.loading import LoadedSAE

T = TypeVar("T", bound=Flags)
SETTINGS: tuple[type[Flags], ...] = (HarvestRequest, TrainConfig, RunOptions)
PATHS = ("run_dir", "cache_dir", "ring_dir")


@dataclass(frozen=True, repr=False)
class ShownRun(FinishedRun):
    """A finished run that prints as its box of results: `run[ID]` is a member as a loaded SAE, `list(run)` are the ids.

    A part of an id that fits only one member is enough. Members that failed in training are left out.
    """

    def __getitem__(self, member: str) -> LoadedSAE:
        from sae_jax.loading import load

        return load(self.path, member)

    def __contains__(self, member: str) -> bool:
        try:
            return self.only(member) in self.members
        except InputError:
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def keys(self) -> list[str]:
        return list(self)

    def items(self) -> Iterator[tuple[str, LoadedSAE]]:
        return ((member, self[member]) for member in self)

    def values(self) -> Iterator[LoadedSAE]:
        return (sae for _, sae in self.items())

    def __len__(self) -> int:
        return len(self.members)

    def __repr__(self) -> str:
        stream = StringIO()
        Terminal(stream=stream).results(self.results, str(self.path), self.fitted)
        return stream.getvalue().rstrip()


@as_arguments()
def train_population(*, quiet: bool = False, **settings: Any) -> ShownRun | None:
    """Train the members that the settings span, as `python main.py` with the same flags does, and open their run.

    The names are those of the flags, with underscores: the fields of HarvestRequest (`model_name`, `dataset`, `layer`,
    ...), of TrainConfig (`activation`, `hidden_dim`, `k`, ...) and of RunOptions (`run_dir`, `resume`, ...). A list
    spans members. Progress is printed unless `quiet`. A finished run is not trained again, unless `force`. If several
    processes train together, all but process 0 get None. Raises InputError for settings that cannot be fulfilled.
    """
    names = [field.name for cls in SETTINGS for field in fields(cls)]
    if "preset" in settings:
        shows = pasted("python main.py --preset NAME --dry-run")
        raise InputError(
            f"train_population has no presets, only the command line (`--preset`): `{shows}` shows the settings of "
            "one, which can be given here"
        )
    if unknown := next((name for name in settings if name not in names), None):
        ours = translated(named(unknown), settings[unknown])
        meant = f": did you mean {ours}?" if ours else nearest(unknown, names) or f": give one of {', '.join(names)}"
        raise InputError(f"train_population has no setting {unknown}{meant}")
    values: dict[str, Any] = {n: Path(value) if n in PATHS and value else value for n, value in settings.items()}

    def of(cls: type[T]) -> T:
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    request, config, options = request_for_rows(of(HarvestRequest)), of(TrainConfig), of(RunOptions)
    refuse_conflicts(request, config, options, set(map(named, settings)))
    with Terminal(quiet=quiet) as terminal:
        path = train_run(request, config, options, terminal)
    return ShownRun.open(path) if path else None


def open_run(path: Path | str) -> ShownRun:
    """Open a finished run. Raises InputError, with the reason, if there is none at `path`."""
    return ShownRun.open(Path(path))


@as_arguments()
def load_features(
    run: FinishedRun, members: Sequence[str] = (), cache_dir: Path | str | None = None, quiet: bool = False
) -> dict[str, Features]:
    """Statistics of each feature, for the members with these ids or for all members.

    They are computed once and then read from the run directory. Progress is printed unless `quiet`. Raises InputError
    for a member that does not exist or failed, and if the run's activations are gone and cannot be harvested again.
    """
    with Terminal(quiet=quiet) as terminal:
        if "analysis.features.statistics" not in sys.modules:  # the import takes seconds, but only once
            terminal.begin("loading the libraries")
        from analysis.features.statistics import load_or_compute_features

        cache = Path(cache_dir) if cache_dir else default_cache_dir()
        return load_or_compute_features(run, run.chosen(tuple(members)), cache, terminal.progress, terminal.say)
