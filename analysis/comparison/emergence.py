"""When the features of a finished dictionary emerged during training, and which features emerged early.

The decoders at earlier steps are in RUN/snapshots. A final feature is recognizable in a snapshot if some decoder row
has a cosine of at least RECOGNIZABLE with the final direction. It emerges at the first step from which on it is
recognizable in every snapshot. A row of a snapshot splits later if it is nearest to two or more recognizable features.

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

RECOGNIZABLE = 0.7  # cosine from which on two directions are commonly called the same feature
PREDICTORS = {
    "frequency": "how often it fires",
    "norm": "norm of its decoder row times its mean activation",
    "co-occurrence": "phi with the feature that it fires together with most",
}


@dataclass(frozen=True)
class Trajectory:
    """The emergence of a dictionary's features. `steps` are those of the snapshots."""

    steps: list[int]
    alive_F: np.ndarray
    own_cosine_SxF: np.ndarray  # cosine of the row with the feature's own number to its final direction
    best_cosine_SxF: np.ndarray  # highest cosine of any row to the final direction
    density_SxF: np.ndarray
    emerged_F: np.ndarray  # step of emergence, −1 for features that are dead at the end
    recognizable_S: np.ndarray  # share of the features alive at the end that are recognizable
    births_S: np.ndarray  # number of features that fire here but not in the previous snapshot
    deaths_S: np.ndarray  # number of features that fired in the previous snapshot but not here
    splits_S: np.ndarray  # number of rows that later become two or more features
    predictors: dict[str, float | None]  # Spearman's rank correlation with the step of emergence


def compute_emergence(snapshots: Mapping[int, Snapshot], features: Features) -> Trajectory:
    """Emergence from {step: snapshot}, the final one included. Raises InputError for fewer than three snapshots."""
    if len(snapshots) < 3:
        raise InputError("emergence needs at least three snapshots: train with --snapshots 10 (the default)")
    steps = sorted(snapshots)
    final_FxD, alive_F = snapshots[steps[-1]].direction, features.alive_F
    own_cosines, best, nearest = [], [], []
    for step in steps:
        direction_FxD = snapshots[step].direction
        cosine_FxF = final_FxD @ direction_FxD.T
        own_cosines.append(np.diagonal(cosine_FxF).copy())
        best.append(cosine_FxF.max(1))
        nearest.append(cosine_FxF.argmax(1))
    own_SxF, best_SxF = np.stack(own_cosines), np.stack(best)
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
    """Rank correlations with the step of emergence over the living features; None if all emerged at the same step."""
    alive_F = features.alive_F
    values = {
        "frequency": features.density_F[alive_F],
        "norm": (norm_F * np.abs(features.mean_F))[alive_F],
        "co-occurrence": features.together_phi_FxJ[alive_F, 0],
    }
    correlations = {}
    for name in PREDICTORS:
        varies = np.ptp(emerged_A) > 0 and np.ptp(values[name]) > 0
        correlations[name] = float(stats.spearmanr(values[name], emerged_A).statistic) if varies else None
    return correlations


def predictors_over_seeds(trajectories: Mapping[str, Trajectory]) -> dict[str, Estimate]:
    """Each predictor's mean correlation over dictionaries that differ only in their seed, with its interval."""
    return {name: over_seeds([t.predictors[name] for t in trajectories.values()]) for name in PREDICTORS}
