"""The effect of one feature on the model's predictions, measured by ablating or amplifying it.

Ablation replaces the activation x by x − f_i(x) · W_dec[i], so the dictionary's reconstruction error is kept.

Shapes: W windows, T tokens per window, G documents, N rows, D width of the model, R sampled firings, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.features.contexts import place, token_texts
from analysis.features.statistics import Features, load_or_compute_features
from analysis.interventions.choosing import output_scores
from analysis.interventions.steering import feature_reader
from analysis.runs.finished import FinishedRun
from analysis.stats import Interval, ratio_interval

TOKENS = 10  # tokens to report whose probability rises most, and as many whose probability falls most
WINDOWS = 64  # windows of most features are from at least FEWEST_DOCUMENTS documents


@dataclass(frozen=True)
class AblationEffect:
    """The effect of ablating a feature. Means are over all tokens after the feature's first firing in a window.

    For a feature that never fires, or only at last positions of windows, everything is 0.
    """

    windows: int
    documents: int
    tokens: int
    loss_increase: float  # nats per token
    interval: Interval | None  # 95% interval of loss_increase over documents; None if there are too few
    kl: float  # KL(unchanged model ‖ model without the feature), nats per token
    tokens_up: list[tuple[str, float]]  # mean change of log-probability where the feature fires, largest first
    tokens_down: list[tuple[str, float]]


NOTHING = AblationEffect(0, 0, 0, 0.0, None, 0.0, [], [])


def ablation_effect(
    run: FinishedRun,
    member: str,
    feature: int,
    cache_dir: Path,
    windows: int = WINDOWS,
    on_progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> AblationEffect:
    """Ablate a feature in at most `windows` windows in which it fires, spread over its range of activation.

    Raises InputError as FinishedRun.store does, and for a hook that the model lacks.
    """
    from harvest.interventions.ablation import lost_without

    site = run.site(member)
    store = run.store(site, cache_dir, on_progress)
    sampled_R = load_or_compute_features(run, [member], cache_dir, on_progress)[member].sample_row_FxR[feature]
    firing_R = sampled_R[sampled_R >= 0]
    window_R, position_R = store.places(firing_R)
    has_next_R = position_R < run.seq_len - 1
    firing_R, window_R = firing_R[has_next_R], window_R[has_next_R]
    if not len(firing_R):
        return NOTHING
    firing_R = firing_R[np.sort(np.unique(window_R, return_index=True)[1])]  # one firing per window
    spread = np.unique(np.linspace(0, len(firing_R) - 1, min(windows, len(firing_R))).round().astype(int))
    places = [place(store, row) for row in firing_R[spread].tolist()]
    tokens_WxT, document_W = np.stack([tokens_T for tokens_T, _, _ in places]), np.array([d for _, _, d in places])

    sae, done = run.dictionary(member).sae, 0
    value_of, direction_D = feature_reader(sae, feature), np.asarray(sae.W_dec[feature])

    def taken(x_NxD: np.ndarray) -> np.ndarray:
        return np.outer(value_of(x_NxD), direction_D)

    def advance(count: int) -> None:
        nonlocal done
        done += count
        on_progress("ablation", done, len(tokens_WxT))

    lost = lost_without(run.language_model, tokens_WxT, site, taken, run.first_position, advance)
    counts_WxT = np.maximum.accumulate(lost.is_taken_WxT, 1)
    counts_WxT[:, -1] = False
    fires_W = counts_WxT.any(1)  # a weak firing on a rounded row of the store may be missing here
    if not fires_W.any():
        return NOTHING
    documents, document_W = np.unique(document_W[fires_W], return_inverse=True)
    counts_G, ce_G, kl_G = (
        np.bincount(document_W, value_WxT.sum(1, where=counts_WxT)[fires_W])
        for value_WxT in (counts_WxT, lost.ce_WxT, lost.kl_WxT)
    )
    order_V = np.argsort(lost.logp_V, kind="stable")
    down, up = (
        list(zip(token_texts(run.language_model.tokenizer, ends), lost.logp_V[ends].tolist(), strict=True))
        for ends in (order_V[:TOKENS], order_V[::-1][:TOKENS])
    )
    return AblationEffect(
        windows=int(fires_W.sum()),
        documents=len(documents),
        tokens=int(counts_G.sum()),
        loss_increase=float(ce_G.sum() / counts_G.sum()),
        interval=ratio_interval(ce_G, counts_G),
        kl=float(kl_G.sum() / counts_G.sum()),
        tokens_up=up,
        tokens_down=down,
    )


def output_score(run: FinishedRun, member: str, feature: int, features: Features) -> float:
    """A feature's output score (Arad et al. 2025) for the tokens that it promotes; see `choosing.output_scores`."""
    watched = features.promoted_at_peak(feature)[0].tolist()
    arguments = run.site(member), run.dictionary(member).sae, [feature], watched, features.max_F, run.first_position
    return output_scores(run.language_model, *arguments)[feature]
