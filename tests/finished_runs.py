"""Run directories with the records of a finished run, for tests of what reads them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis.runs.finished import FinishedRun
from harvest.request import HarvestRequest, Site
from harvest.store import ActivationStore
from sae_jax.config import TrainConfig
from sae_jax.evaluate import Evaluation
from sae_jax.members import members_of
from sae_jax.run_directory import RunDirectory
from sae_jax.training.axes import Axes
from sae_jax.training.loop import environment, result_of, store_facts


def finished_run(path: Path, config: TrainConfig, stores: Sequence[ActivationStore]) -> FinishedRun:
    """A run directory with the records of a finished run, in which all metrics are 0."""
    sites = [Site(store.manifest["layer"], store.manifest["hook"]) for store in stores]
    request = HarvestRequest(layer=tuple(site.layer for site in sites), hook=(sites[0].hook,))
    run, members = RunDirectory(path, asked_of(request, config)), members_of(config, tuple(sites))
    plan = {"total_steps": 100, "l0_asked": {member.id: member.l0_asked for member in members}, "snapshots": 0}
    figures = Evaluation(dict.fromkeys(("explained_variance", "l0"), 0.0), np.zeros(1))
    with run.held():
        run.begin([store_facts(store) for store in stores], environment(Axes()), plan, resume=False)
        run.finish(
            {
                "model": {"name": "none", "fell_back": False},
                "backend": "cpu",
                "members": [result_of(member, None, figures) for member in members],
                "timing": {"steps": 100, "training_seconds": 1.0},
            }
        )
    return FinishedRun.open(path)


def asked_of(request: HarvestRequest, config: TrainConfig) -> dict:
    return {"harvest": request.to_json(), "train": config.to_json()}
