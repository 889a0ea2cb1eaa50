"""What a feature does to the model's predictions: ablated, x' = x − f_i(x) · W_dec[i], the error kept; or amplified.

Shapes: W windows, T tokens a window, N rows, D width of the model, R firings sampled, S samples, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.contexts import place, token_texts
from analysis.feature_statistics import Features, features_of
from analysis.loss_recovered import INTERVAL, resample
from analysis.run import FinishedRun
from analysis.steer_model import output_scores, reader

TOKENS = 10  # that it raises, and that it lowers


@dataclass(frozen=True)
class AblationEffect:
    """Of a feature that never fires, or only where no token follows: all 0, on 0 windows.

    Means are over the tokens predicted from the first position of a window at which it fires on.
    """

    windows: int
    tokens: int
    loss_increase: float  # nats a token
    interval: tuple[float, float]  # of it, 95% by bootstrap over windows
    kl: float  # KL(unchanged model ‖ without the feature), nats a token
    tokens_up: list[tuple[str, float]]  # mean change of log-probability at positions where it fires, largest first
    tokens_down: list[tuple[str, float]]


NOTHING = AblationEffect(0, 0, 0.0, (0.0, 0.0), 0.0, [], [])


def ablation_effect(
    run: FinishedRun,
    member: str,
    feature: int,
    cache_dir: Path,
    windows: int = 32,
    on_progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> AblationEffect:
    """On up to `windows` windows in which it fires, spread over its whole range of activation.

    Raises InputError as FinishedRun.store does, and for a hook that the model lacks.
    """
    from harvest.ablation import lost_without

    site = run.site(member)
    store = run.store(site, cache_dir, on_progress)
    sampled_R = features_of(run, [member], cache_dir, on_progress)[member].sample_row_FxR[feature]
    positions = store.train.positions
    firing_R = sampled_R[(sampled_R >= 0) & (sampled_R % positions < positions - 1)]
    if not len(firing_R):
        return NOTHING
    spread = np.unique(np.linspace(0, len(firing_R) - 1, min(windows, len(firing_R))).round().astype(int))
    tokens_WxT = np.stack([place(store, row)[0] for row in firing_R[spread].tolist()])

    sae, done = run.dictionary(member).sae, 0
    value_of, direction_D = reader(sae, feature), np.asarray(sae.W_dec[feature])

    def taken(x_NxD: np.ndarray) -> np.ndarray:
        return np.outer(value_of(x_NxD), direction_D)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        on_progress("ablation", done, len(tokens_WxT))

    lost = lost_without(run.language_model, tokens_WxT, site, taken, run.first_position, advance)
    counts_WxT = np.maximum.accumulate(lost.is_taken_WxT, 1)
    counts_WxT[:, -1] = False
    counts_W, ce_W, kl_W = (
        of_WxT.sum(1, where=counts_WxT)[counts_WxT.any(1)]  # what just fired in a rounded row of the store may not here
        for of_WxT in (counts_WxT, lost.ce_WxT, lost.kl_WxT)
    )
    if not len(counts_W):
        return NOTHING
    drawn_SxW = resample(len(counts_W))
    low, high = np.percentile((drawn_SxW @ ce_W) / (drawn_SxW @ counts_W), INTERVAL)
    order_V = np.argsort(lost.logp_V, kind="stable")
    down, up = (
        list(zip(token_texts(run.language_model.tokenizer, ends), lost.logp_V[ends].tolist(), strict=True))
        for ends in (order_V[:TOKENS], order_V[::-1][:TOKENS])
    )
    return AblationEffect(
        windows=len(counts_W),
        tokens=int(counts_W.sum()),
        loss_increase=float(ce_W.sum() / counts_W.sum()),
        interval=(float(low), float(high)),
        kl=float(kl_W.sum() / counts_W.sum()),
        tokens_up=up,
        tokens_down=down,
    )


def output_score(run: FinishedRun, member: str, feature: int, features: Features) -> float:
    """By Arad et al. 2025, of the tokens that it promotes; amplified as `steer_model.output_scores` has it."""
    watched = features.promoted_FxT[feature].tolist()
    arguments = run.site(member), run.dictionary(member).sae, [feature], watched, features.max_F, run.first_position
    return output_scores(run.language_model, *arguments)[feature]
