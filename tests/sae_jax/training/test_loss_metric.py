"""The units of the squared error, the start by least squares, and the warning about memorized rows."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from populations import prepare
from rows import SEQ_LEN, store_of

from analysis.runs.remarks import remarks_on
from sae_jax.config import TrainConfig
from sae_jax.evaluate import evaluate
from sae_jax.formats import load_dictionary
from sae_jax.models.registry import KINDS
from sae_jax.run_directory import RunDirectory
from sae_jax.training.loop import train
from sae_jax.training.scaling import metric_of, normalization_of

D = 16
STD_D = np.geomspace(0.1, 10, D)  # the raw variance lies in a few dimensions


def unequal_store(directory, windows=300):
    rng = np.random.default_rng(0)
    rows_NxD = (rng.standard_normal((windows * (SEQ_LEN - 1), D)) * STD_D + 3).astype(np.float32)
    tokens_WxT = rng.integers(0, 1000, (windows, SEQ_LEN))
    return store_of(directory, rows_NxD, tokens_WxT, np.arange(windows))


@pytest.mark.parametrize("normalization", ["standardize", "mean_norm", "none"])
@pytest.mark.parametrize("metric, power", [("raw", 0), ("sqrt_std", 0.5), ("standardized", 1)])
def test_errors_are_divided_by_a_power_of_the_standard_deviation(tmp_path, normalization, metric, power):
    store = unequal_store(tmp_path)
    _, scale_D = normalization_of(store, normalization)
    metric_D = metric_of(store, metric, scale_D)
    weight_D = metric_D / scale_D  # of an error in raw units
    np.testing.assert_allclose(weight_D * store.std**power / weight_D[0] / store.std[0] ** power, 1)
    variance_D = np.square(store.std / scale_D)
    assert (np.square(metric_D) * variance_D).sum() == pytest.approx(variance_D.sum()), "the total variance is kept"


@pytest.mark.parametrize(
    "normalization, same", [("standardize", "standardized"), ("mean_norm", "raw"), ("none", "raw")]
)
def test_one_metric_leaves_the_units_of_the_scaled_rows(tmp_path, normalization, same):
    store = unequal_store(tmp_path)
    _, scale_D = normalization_of(store, normalization)
    np.testing.assert_allclose(metric_of(store, same, scale_D), 1)


def test_each_metric_is_best_at_what_it_weighs_and_training_reports_raw_units(tmp_path):
    metrics = ("raw", "standardized")
    config = TrainConfig(
        ("topk",),
        hidden_dim=32,
        k=4,
        epochs=20,
        loss_metric=metrics,
        batch_size=64,
        fit_decoder=False,
    )
    run = RunDirectory(tmp_path / "run", {"train": config.to_json()})
    store = unequal_store(tmp_path / "store")
    results = train(config, [store], run)
    raw, standardized = (member["metrics"] for member in results["members"])
    assert results["members"][1]["id"].endswith("-loss_standardized")
    assert raw["explained_variance"] > standardized["explained_variance"] + 0.01
    assert standardized["explained_variance_z"] > raw["explained_variance_z"] + 0.01
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    for member in results["members"]:
        last = [line for line in lines if line["member"] == member["id"]][-1]
        sae = load_dictionary(run.path / "members" / member["id"]).sae
        on_training_rows = evaluate({"sae": sae}, store.train, store.mean)["sae"].metrics["mse"]
        assert last["mse"] == pytest.approx(on_training_rows, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wide_dictionary_starts_better_than_the_mean_of_the_rows(kind):
    """With encoder rows of norm 1, the 16 features that fire on a row of 16 dimensions would add up to far too much."""
    x_NxD = np.random.default_rng(0).standard_normal((512, D)).astype(np.float32)
    config = TrainConfig(activation=(kind,), hidden_dim=1024, k=16, target_l0=16)
    (group,), (state,), _ = prepare(config, 100, x_NxD)
    params, settings = ({name: value[0] for name, value in tree.items()} for tree in (state.params, state.settings))
    sae = nnx.merge(group.signature.graphdef(), params, settings)
    x_hat_NxD = sae.decode(sae.activate_training(sae.pre_activations(jnp.asarray(x_NxD))))
    assert 0.1 < 1 - np.square(x_NxD - x_hat_NxD).sum() / np.square(x_NxD - x_NxD.mean(0)).sum() < 1


def test_a_member_that_memorizes_its_rows_is_reported(tmp_path):
    config = TrainConfig(activation=("topk",), hidden_dim=512, k=8, epochs=300, batch_size=32, lr=3e-3)
    run = RunDirectory(tmp_path / "run", {"train": config.to_json()})
    results = train(config, [unequal_store(tmp_path / "store", windows=15)], run)
    (member,) = results["members"]
    gap = member["metrics"]["explained_variance_train"] - member["metrics"]["explained_variance"]
    assert gap > 0.1
    warning = remarks_on(member["metrics"])
    assert "memorized its rows, so train on more of them" in warning
