"""Loss recovered: how well a language model predicts held-out text when a dictionary's output replaces its activation.

The definitions are those of SAELens (sae_lens/evals.py), with means over the tokens of all windows:

    ce_recovered = (ce_zero − ce_sae) / (ce_zero − ce_clean)      kl_recovered = (kl_zero − kl_sae) / kl_zero

Zero and mean ablation replace the same positions as the dictionary: those in the store. Intervals are over documents,
because windows of a document are similar (`analysis.stats.ratio_interval`, None for too few documents).

Shapes: W windows, G documents, N rows, D width of the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from analysis.stats import ratio_interval
from harvest.request import Site
from harvest.store import ActivationStore
from sae_jax.calibration import metric_windows, spread_windows
from sae_jax.formats import load_dictionary
from sae_jax.models.base import SAE

if TYPE_CHECKING:
    from harvest.model.language_model import LanguageModel

ZERO, MEAN = "zero/", "mean/"  # names of the ablations, which no member and no path can have

Measured = dict[str, dict[str, Any]]  # {name: {"metrics": {metric: value}, "intervals": {metric: (low, high) | None}}}


def loss_recovered(
    model: LanguageModel,
    store: ActivationStore,
    saes: Mapping[str, SAE],
    windows_W: np.ndarray,
    on_tokens: Callable[[int], None] = lambda n: None,
) -> Measured:
    """ce_clean, ce_sae, ce_zero, ce_mean, ce_recovered and kl_recovered of each dictionary, and their intervals.

    `windows_W` are numbers of held-out windows of the store. Mean ablation uses the mean of the store's training rows.
    ce_recovered and kl_recovered are None if zero ablation costs nothing.
    """
    measured = {}
    for name, sums in sums_per_document(model, store, saes, windows_W, on_tokens).items():
        metrics = {key: finite(v) for key, v in scores({key: of_G.sum() for key, of_G in sums.items()}).items()}
        intervals = {
            key: None if metrics[key] is None else ratio_interval(*ratio) for key, ratio in ratios(sums).items()
        }
        measured[name] = {"metrics": metrics, "intervals": intervals}
    return measured


def sums_per_document(
    model: LanguageModel,
    store: ActivationStore,
    saes: Mapping[str, SAE],
    windows_W: np.ndarray,
    on_tokens: Callable[[int], None] = lambda n: None,
) -> dict[str, dict[str, np.ndarray]]:
    """{dictionary: {loss: [G]}}: sums over the windows of each document, in nats, and `count`, the number of windows.

    The losses are ce_clean, ce_sae, ce_zero, ce_mean, kl_sae and kl_zero.
    """
    from harvest.interventions.loss_recovered import losses

    split, mean_D = store.held_out, store.mean.astype(np.float32)
    replacements: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        **{name: reconstruction_by(sae) for name, sae in saes.items()},
        ZERO: np.zeros_like,
        MEAN: lambda x_NxD: np.broadcast_to(mean_D, x_NxD.shape),
    }
    site = Site(store.manifest["layer"], store.manifest["hook"])
    kept_WxP = split.kept_positions(0, split.n_windows)[windows_W]
    tokens_WxT, first = split.windows[windows_W], split.first_position
    clean, lost = losses(model, tokens_WxT, site, replacements, first, kept_WxP, on_tokens)
    zero, mean = lost[ZERO], lost[MEAN]
    _, document_W = np.unique(split.documents[windows_W], return_inverse=True)
    sums = {}
    for name in saes:
        sae = lost[name]
        per_window = {"ce_clean": clean.ce_W, "ce_sae": sae.ce_W, "ce_zero": zero.ce_W, "ce_mean": mean.ce_W}
        per_window |= {"kl_sae": sae.kl_W, "kl_zero": zero.kl_W, "count": np.ones(len(document_W))}
        sums[name] = {key: np.bincount(document_W, values_W) for key, values_W in per_window.items()}
    return sums


def scores(sums: dict[str, Any]) -> dict[str, Any]:
    """The reported metrics from sums over windows: NaN if zero ablation costs nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return {name: np.where(lost > 0, np.divide(part, lost), np.nan) for name, (part, lost) in ratios(sums).items()}


def ratios(sums: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """(numerator, denominator) of each reported metric, from sums over all windows or over those of each document."""
    parts = {name: (total, sums["count"]) for name, total in sums.items() if name != "count"}
    parts["ce_recovered"] = sums["ce_zero"] - sums["ce_sae"], sums["ce_zero"] - sums["ce_clean"]
    parts["kl_recovered"] = sums["kl_zero"] - sums["kl_sae"], sums["kl_zero"]
    return parts


def cannot_be_spliced(manifest: Mapping[str, Any]) -> bool:
    """Return whether a store has no loss to measure: that of an encoder, or of rows that no language model gave."""
    return bool(manifest.get("reads_both_ways") or manifest.get("no_loss_recovered"))


def finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def reconstruction_by(sae: SAE) -> Callable[[np.ndarray], np.ndarray]:
    graphdef, weights = nnx.split(sae)
    return lambda x_NxD: np.asarray(reconstruct(graphdef, weights, x_NxD))


@jax.jit(static_argnums=0)
def reconstruct(graphdef: nnx.GraphDef, weights: nnx.State, x_NxD: jax.Array) -> jax.Array:
    return nnx.merge(graphdef, weights)(x_NxD)


def add_loss_recovered(
    results: dict,
    run: Path,
    stores: Mapping[Site, ActivationStore],
    windows: int,
    on_progress: Callable[[str, int, int], None],
    device: str = "auto",
) -> None:
    """Measure loss recovered of the members in the directory of a trained run, and add it to `results`.

    It is measured on at most `windows` held-out windows that were not used for calibration. Each member's `metrics`
    gain those of `loss_recovered`, and `intervals` are added. Failed members get neither. Nothing is measured for
    models that read in both directions, because they do not predict the next token, and for rows without a model.
    """
    from harvest.model.language_model import LanguageModel

    began, done = time.perf_counter(), 0
    manifest = next(iter(stores.values())).manifest
    if cannot_be_spliced(manifest):  # this was reported already
        results["loss_recovered"] = {"windows_asked": windows, "windows": 0, "documents": 0}
        return
    model = LanguageModel.of_store(manifest, device)
    living = [member for member in results["members"] if member["metrics"]]
    split = next(iter(stores.values())).held_out
    windows_W = spread_windows(metric_windows(split), windows)
    passes = len(living) + 2 * len({(member["layer"], member["hook"]) for member in living})
    total = passes * split.windows[windows_W].size

    def advance(tokens: int) -> None:
        nonlocal done
        done += tokens
        on_progress("loss recovered", done, total)

    for site, store in stores.items():
        here = {m["id"]: m for m in living if (m["layer"], m["hook"]) == site}
        saes = {name: load_dictionary(run / "members" / name).sae for name in here}
        for name, measured in loss_recovered(model, store, saes, windows_W, advance).items() if here else ():
            here[name]["metrics"] |= measured["metrics"]
            here[name]["intervals"] = measured["intervals"]
    documents = len(np.unique(split.documents[windows_W]))
    results["loss_recovered"] = {"windows_asked": windows, "windows": len(windows_W), "documents": documents}
    results["timing"]["loss_recovered_seconds"] = time.perf_counter() - began
