"""Groups, states and hyperparameters of populations without a store, for tests of the training step."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from analysis.runs.finished import FinishedRun
from harvest.request import HarvestRequest, Site
from harvest.store import ActivationStore
from sae_jax.config import TrainConfig
from sae_jax.evaluate import Evaluation
from sae_jax.members import Member, members_of
from sae_jax.run_directory import RunDirectory
from sae_jax.training.loop import environment, result_of, store_facts
from sae_jax.training.mesh import Placement
from sae_jax.training.population import Group, Rows, State, groups_of, hyper_of, stack, start_group

SITES = (Site(0, "resid_pre"),)


def member_of(**settings) -> Member:
    (member,) = members_of(TrainConfig(**settings), SITES)
    return member


def raw_rows(d: int) -> Rows:
    return Rows(0, np.zeros(d), np.ones(d), np.ones(d))


def one_member(config: TrainConfig, d: int, total_steps: int) -> tuple[Group, dict]:
    (group,) = groups_of(members_of(config, SITES), config, d)
    return group, hyper_of(group.members[0], raw_rows(d), config, total_steps)


def prepare(
    config: TrainConfig, total_steps: int, x_NxD, rows: Rows | None = None
) -> tuple[tuple[Group, ...], list[State], list[dict]]:
    """(groups, states before the first step, hypers) for normalized rows x."""
    d = x_NxD.shape[1]
    groups = groups_of(members_of(config, SITES), config, d)
    hypers = [stack([hyper_of(m, rows or raw_rows(d), config, total_steps) for m in g.members]) for g in groups]
    states = [start_group(g, hyper, lambda member: jnp.asarray(x_NxD)) for g, hyper in zip(groups, hypers, strict=True)]
    return groups, states, hypers


def placed(
    config: TrainConfig, total_steps: int, x_NxD, devices: int | None = None
) -> tuple[Placement, list[State], list[dict], tuple[Group, ...]]:
    """(placement, states, hypers, groups) on this number of devices, by default on as many as there are members."""
    groups, states, hypers = prepare(config, total_steps, x_NxD)
    devices = devices or sum(len(group.members) for group in groups)
    placement = Placement(groups, jax.devices()[:devices])
    return placement, placement.place(states), placement.place(hypers), groups


def finished_run(path: Path, config: TrainConfig, stores: Sequence[ActivationStore]) -> FinishedRun:
    """A run directory with the records of a finished run, in which all metrics are 0."""
    sites = [Site(store.manifest["layer"], store.manifest["hook"]) for store in stores]
    request = HarvestRequest(layer=tuple(site.layer for site in sites), hook=(sites[0].hook,))
    run, members = RunDirectory(path, asked_of(request, config)), members_of(config, tuple(sites))
    plan = {"total_steps": 100, "l0_asked": {member.id: member.l0_asked for member in members}, "snapshots": 0}
    figures = Evaluation(dict.fromkeys(("explained_variance", "l0"), 0.0), np.zeros(1))
    with run.held():
        run.begin([store_facts(store) for store in stores], environment(), plan, resume=False)
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
