"""When the features of a finished dictionary appeared in training, and what came early: questions 2 and 4.

From RUN/snapshots. A final feature is recognizable in a snapshot where some decoder row has a cosine of at least
RECOGNIZABLE with its final direction; it emerges at the first step from which on that stays so. Splitting counts, for
each snapshot, the rows that are the nearest to two or more recognizable final features.

Shapes: S snapshots, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.features.statistics import Features
from analysis.stats import Estimate, over_seeds
from harvest.errors import InputError
from sae_jax.training.snapshots import Snapshot

RECOGNIZABLE = 0.7  # cosine; the field's threshold for "the same feature"
PREDICTORS = {
    "frequency": "how often it fires",
    "norm": "norm of its decoder row times its mean activation",
    "co-occurrence": "phi with the feature that it fires together with most",
}


@dataclass(frozen=True)
class Trajectory:
    """One dictionary's way. Steps are those of the snapshots; `emerged_F` is −1 where a feature is dead at the end."""

    steps: list[int]
    alive_F: np.ndarray
    own_cosine_SxF: np.ndarray  # of the row with the feature's own number
    best_cosine_SxF: np.ndarray  # of any row
    density_SxF: np.ndarray
    emerged_F: np.ndarray  # step
    recognizable_S: np.ndarray  # share of the features alive at the end
    births_S: np.ndarray  # features that fire here, and not in the snapshot before
    deaths_S: np.ndarray
    splits_S: np.ndarray  # rows that later become two or more features
    predictors: dict[str, float | None]  # Spearman's rank correlation with the step of emergence


def compute_emergence(snapshots: Mapping[int, Snapshot], features: Features) -> Trajectory:
    """Raises InputError where there are fewer than three snapshots."""
    if len(snapshots) < 3:
        raise InputError(
            "emergence needs snapshots of training: train with --snapshots 10 (the default), and not with 0"
        )
    steps = sorted(snapshots)
    final_FxD, alive_F = snapshots[steps[-1]].direction, features.alive_F
    own, best, nearest = [], [], []
    for step in steps:
        direction_FxD = snapshots[step].direction
        cosine_FxF = final_FxD @ direction_FxD.T
        own.append(np.diagonal(cosine_FxF).copy())
        best.append(cosine_FxF.max(1))
        nearest.append(cosine_FxF.argmax(1))
    own_SxF, best_SxF = np.stack(own), np.stack(best)
    seen_SxF = best_SxF >= RECOGNIZABLE
    stays_SxF = np.flip(np.logical_and.accumulate(np.flip(seen_SxF, 0), 0), 0)
    emerged_F = np.where(alive_F, np.array(steps)[stays_SxF.argmax(0)], -1)
    density_SxF = np.stack([snapshots[step].density for step in steps])
    fires_SxF = density_SxF > 0
    came_SxF, went_SxF = fires_SxF[1:] & ~fires_SxF[:-1], ~fires_SxF[1:] & fires_SxF[:-1]
    splits = [
        int((np.bincount(nearest[s][seen_SxF[s] & alive_F], minlength=len(alive_F)) > 1).sum())
        for s in range(len(steps))
    ]
    return Trajectory(
        steps=steps,
        alive_F=alive_F,
        own_cosine_SxF=own_SxF,
        best_cosine_SxF=best_SxF,
        density_SxF=density_SxF,
        emerged_F=emerged_F,
        recognizable_S=seen_SxF[:, alive_F].mean(1),
        births_S=np.array([0, *came_SxF.sum(1)]),
        deaths_S=np.array([0, *went_SxF.sum(1)]),
        splits_S=np.array(splits),
        predictors=predictors_of(emerged_F[alive_F], features, snapshots[steps[-1]].norm),
    )


def predictors_of(emerged_A: np.ndarray, features: Features, norm_F: np.ndarray) -> dict[str, float | None]:
    """Rank correlations over the features alive; None where all of them emerged at one step."""
    alive_F = features.alive_F
    values = {
        "frequency": features.density_F[alive_F],
        "norm": (norm_F * np.abs(features.mean_F))[alive_F],
        "co-occurrence": features.together_phi_FxJ[alive_F, 0],
    }
    found = {}
    for name in PREDICTORS:
        varies = np.ptp(emerged_A) > 0 and np.ptp(values[name]) > 0
        found[name] = float(stats.spearmanr(values[name], emerged_A).statistic) if varies else None
    return found


def predictors_over_seeds(trajectories: Mapping[str, Trajectory]) -> dict[str, Estimate]:
    """Each predictor's mean correlation over dictionaries that differ by their seed, and its interval."""
    return {name: over_seeds([of.predictors[name] for of in trajectories.values()]) for name in PREDICTORS}
