"""Evaluation of runs and single dictionaries on the same windows, with the code that evaluates a run after training."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

from analysis.quality.measured_on import EvaluateSettings, on_stored_rows, on_text, rows_of, sites_of
from analysis.quality.opened import (
    Opened,
    names_of,
    refuse_a_control_among_others,
    refuse_another_width,
    report_other_rows,
)
from analysis.runs.remarks import remark_on_loss_recovered
from harvest.errors import InputError
from harvest.placement import refuse_no_device
from harvest.request import Site


def evaluate_dictionaries(
    opened: list[Opened],
    options: EvaluateSettings,
    on_progress: Callable[[str, int, int], None],
    say: Callable[[str], None],
) -> dict:
    """Evaluate every dictionary on the same windows. Returns the report that `evaluate --json` writes.

    Raises InputError if the dictionaries cannot be compared: of different models, or of another width than the model.
    """
    import numpy as np

    from analysis.quality.loss_recovered import cannot_be_spliced, loss_recovered
    from harvest.model.language_model import LanguageModel
    from harvest.sources import place_of
    from sae_jax.calibration import metric_windows, spread_windows
    from sae_jax.evaluate import evaluate

    refuse_no_device(options.device)
    refuse_a_control_among_others(opened)
    sites = sites_of(opened, options)
    if given := rows_of(opened[0], options):
        request, stores = on_stored_rows(given, opened, sites, say)
    else:
        request, stores = on_text(opened, options, sites, on_progress, say)
    first_store = next(iter(stores.values()))
    manifest = first_store.manifest
    model, dataset = place_of("model", manifest["model"]), place_of("dataset", manifest["dataset"])
    report_other_rows(opened, request.seq_len, "bos" in manifest, say)
    widths: dict[Site, int | None] = {site: store.d_model for site, store in stores.items()}
    refuse_another_width(opened, sites, widths, given or manifest["model"]["asked"])

    names = names_of(opened)
    report: dict[str, dict[str, Any]] = {}
    done: dict[str, int] = defaultdict(int)  # tokens, by site
    language_model = None
    if options.ce_windows and not any(cannot_be_spliced(store.manifest) for store in stores.values()):
        language_model = LanguageModel.of_store(manifest, options.device, model)
    for site in dict.fromkeys(sites):
        store = stores[site]
        saes = {name: o.dictionary.sae for name, o, own in zip(names, opened, sites, strict=True) if own == site}
        used_W = metric_windows(store.held_out)
        if request.held_out == 1:  # nothing was calibrated on this text
            used_W = np.arange(store.held_out.n_windows)
        evaluations = evaluate(saes, store.held_out, store.mean, used_W, partial(on_progress, "evaluation"))
        for name, evaluation in evaluations.items():
            refuse_no_numbers(name, evaluation.metrics)
            rows = len(store.held_out.window_rows(used_W))
            seen = {"windows": len(used_W), "documents": len(np.unique(store.held_out.documents[used_W]))}
            report[name] = {"metrics": evaluation.metrics, "intervals": {}, "rows": rows, "measured_on": seen}
        if language_model:
            windows_W = spread_windows(used_W, options.ce_windows)
            documents = len(np.unique(store.held_out.documents[windows_W]))
            tokens = (len(saes) + 2) * store.held_out.windows[windows_W].size

            def advance(count: int, phase: str = f"loss recovered, {site.hook_name}", tokens: int = tokens) -> None:
                done[phase] += count
                on_progress(phase, done[phase], tokens)

            for name, measured in loss_recovered(language_model, store, saes, windows_W, advance).items():
                report[name]["metrics"] |= measured["metrics"]
                if remark := remark_on_loss_recovered(measured["metrics"]):
                    say(f"{name}: {remark}")
                report[name] |= {"intervals": measured["intervals"], "windows": len(windows_W), "documents": documents}
    return {
        "schema": 1,
        "model": model,
        "dataset": dataset,
        "request": request.to_json(),
        "ce_windows": options.ce_windows,
        "dictionaries": [
            {
                "name": name,
                "directory": str(o.directory),
                "hook_name": site.hook_name,
                "kind": o.dictionary.sae.activation,
                "d_in": o.dictionary.d_in,
                "d_sae": o.dictionary.d_sae,
                **report[name],
            }
            for name, o, site in zip(names, opened, sites, strict=True)
        ],
    }


def refuse_no_numbers(name: str, metrics: dict[str, float]) -> None:
    for metric, value in metrics.items():
        if not math.isfinite(value):
            raise InputError(
                f"{name}: its {metric.replace('_', ' ')} on these activations is not a number ({value}): "
                "leave it out; its weights are damaged or far too large, or the activations are all the same"
            )
