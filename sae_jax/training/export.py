"""The trained members as dictionaries for raw activations, and their metrics on held-out rows.

Shapes: D width of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np

from harvest.files import write_arrays
from harvest.store import ActivationStore
from sae_jax.calibration import metric_windows, spread_windows, with_l0
from sae_jax.decoder_fit import with_fitted_decoder
from sae_jax.evaluate import Evaluation, evaluate
from sae_jax.formats import Dictionary, load_dictionary, save_dictionary
from sae_jax.formats.trained import fold_normalization, trained_dictionary
from sae_jax.members import Member
from sae_jax.models.base import SAE
from sae_jax.models.registry import KINDS
from sae_jax.run_directory import RunDirectory
from sae_jax.training.population import Population, State
from sae_jax.training.progress import Reporter


def exported(population: Population, states: Iterable[State]) -> Iterator[tuple[Member, Dictionary]]:
    """(member, its dictionary for raw activations) of all members; `states` are those of `State.to_export`."""
    for group, state in zip(population.groups, states, strict=True):
        for p, member in enumerate(group.members):
            trained = ({name: values[p] for name, values in tree.items()} for tree in (state.params, state.settings))
            rows = population.rows[member.id]
            tensors = fold_normalization(
                group.signature.kind.export(*trained), rows.shift_D, rows.scale_D, rows.metric_D
            )
            dictionary = trained_dictionary(member, tensors, population.store_of(member).manifest)
            if member.l0_asked:
                dictionary = with_l0(dictionary, population.calibration_LxNxD[rows.site], member.l0_asked)
            yield member, dictionary


def export_and_evaluate(
    population: Population,
    states: list[State],
    run: RunDirectory,
    report: Reporter,
    step: int,
    on_phase: Callable[[str, int, int], None],
) -> dict[str, Evaluation]:
    """Export every member for raw activations, then evaluate the exported files on held-out rows.

    Raises Diverged if all members have failed, InputError if a member failed on damaged rows.
    """
    for group, state in zip(population.groups, states, strict=True):
        for member, failed_step in zip(group.members, np.asarray(state.failed), strict=True):
            if failed_step >= 0:
                report.fail(member, int(failed_step))
    saes: list[dict[str, SAE]] = [{} for _ in population.stores]
    for done, (member, dictionary) in enumerate(exported(population, states)):
        on_phase("export", done, len(population.members()))
        if member.id in report.failed:
            continue
        if not all(np.isfinite(tensor).all() for tensor in dictionary.tensors.values()):
            report.fail(member, step)  # the last loss was finite, but the weights after it are not
            continue
        directory = run.path / "members" / member.id
        save_dictionary(with_best_decoder(population, member, dictionary), directory)
        saes[population.rows[member.id].site][member.id] = load_dictionary(directory).sae
    on_phase("export", len(population.members()), len(population.members()))
    evaluations = evaluate_on_both_splits(population.stores, saes, on_phase)
    for member in population.members():
        evaluation = evaluations.get(member.id)
        if evaluation and not np.isfinite(list(evaluation.metrics.values())).all():
            report.fail(member, step)  # the weights are finite, but so large that their reconstructions are not
            del evaluations[member.id]
        elif evaluation:
            stats = run.path / "members" / member.id / "stats.npz"
            write_arrays(stats, {"density": evaluation.density_F})
    report.refuse_none_left()
    return evaluations


def with_best_decoder(population: Population, member: Member, dictionary: Dictionary) -> Dictionary:
    """The dictionary with a decoder that is fitted to training rows, unless the decoder is to stay as it is."""
    kind = KINDS[member.activation]
    if not (population.config.fit_decoder and kind.fits_decoder and member.baseline in ("trained", "frozen_encoder")):
        return dictionary
    shares_F = kind.shares_of_losses(member.hidden_dim)
    return with_fitted_decoder(dictionary, population.store_of(member).train, shares_F)


def evaluate_on_both_splits(
    stores: Sequence[ActivationStore],
    saes: Sequence[dict[str, SAE]],
    on_phase: Callable[[str, int, int], None],
) -> dict[str, Evaluation]:
    """The held-out metrics by member id, with the explained variance of as many training windows beside them."""
    evaluations: dict[str, Evaluation] = {}
    for site, (store, here) in enumerate(zip(stores, saes, strict=True), 1):
        where = f", site {site} of {len(stores)}" if len(stores) > 1 else ""
        windows_W = metric_windows(store.held_out)
        train_W = spread_windows(np.arange(store.train.n_windows), len(windows_W))
        on_rows = [partial(on_phase, f"evaluation on {rows} rows{where}") for rows in ("training", "held-out")]
        seen = evaluate(here, store.train, store.mean, train_W, on_rows[0])
        evaluations |= evaluate(here, store.held_out, store.mean, windows_W, on_rows[1])
        for name, on_training_rows in seen.items():
            evaluations[name].metrics["explained_variance_train"] = on_training_rows.metrics["explained_variance"]
    return evaluations


def measured_on(store: ActivationStore) -> dict[str, int]:
    """How many held-out rows, windows and documents the metrics rest on."""
    windows_W = metric_windows(store.held_out)
    documents = len(np.unique(store.held_out.documents[windows_W]))
    return {"rows": len(store.held_out.window_rows(windows_W)), "windows": len(windows_W), "documents": documents}
