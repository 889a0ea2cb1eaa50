"""Lower precision, micro-batches and averaged weights, each compared with training without it."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from populations import prepare
from rows import make_store, sparse_rows

from harvest.errors import InputError
from sae_jax.config import TrainConfig
from sae_jax.formats import load_dictionary
from sae_jax.ops.matmul import matmul
from sae_jax.run_directory import RunDirectory
from sae_jax.training.loop import train
from sae_jax.training.programs import make_train_block

D, BATCH, STEPS = 24, 32, 60
NOTHING = jnp.zeros((1, 0, D))  # no calibration rows


def states_after_each_step(config: TrainConfig) -> list:
    rng = np.random.default_rng(0)
    x_SxBxD = sparse_rows(rng, rng.standard_normal((64, D)), STEPS * BATCH).astype(np.float32).reshape(STEPS, BATCH, D)
    x_SxBxD = (x_SxBxD - x_SxBxD.mean((0, 1))) / x_SxBxD.std((0, 1))
    groups, states, hypers = prepare(config, STEPS, x_SxBxD.reshape(-1, D)[:512])
    train_block, after = make_train_block(groups), []
    for x_BxD in x_SxBxD:
        states, _ = train_block(states, hypers, jnp.asarray(x_BxD)[None, None], NOTHING)
        after.append(jax.tree.map(np.array, states[0]))
    return after


def config_of(activation: str, **changes) -> TrainConfig:
    return TrainConfig(**{"activation": activation, "hidden_dim": 48, "k": 6, "target_l0": 6.0, **changes})


def gap(a: dict, b: dict) -> float:
    return max(np.abs(a[name] - b[name]).max() / np.abs(b[name]).max() for name in b)


def test_bfloat16_rounds_the_operands_and_nothing_else():
    rng = np.random.default_rng(0)
    a_NxM, b_MxK, g_NxK = (rng.standard_normal(s).astype(np.float32) for s in ((5, 40), (40, 7), (5, 7)))
    rounded = [x.astype(ml_dtypes.bfloat16).astype(np.float64) for x in (a_NxM, b_MxK, g_NxK)]
    product, backward = jax.vjp(lambda a, b: matmul(a, b, "bfloat16"), a_NxM, b_MxK)
    a, b, g = rounded
    for ours, exact in zip((product, *backward(jnp.asarray(g_NxK))), (a @ b, g @ b.T, a.T @ g), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-5)
    assert np.abs(product - a_NxM @ b_MxK).max() > 1e-3


@pytest.mark.parametrize("activation", ["relu", "gated", "matryoshka"])
def test_bfloat16_trains_float32_weights_to_nearly_the_same(activation):
    plain = states_after_each_step(config_of(activation))[-1]
    lower = states_after_each_step(config_of(activation, dtype="bfloat16"))[-1]
    assert {leaf.dtype for leaf in lower.params.values()} == {np.dtype(np.float32)}
    cosine = (plain.params["W_dec"] * lower.params["W_dec"]).sum(-1)  # decoder rows have norm 1
    assert cosine.min() > 0.97
    assert np.abs(plain.params["W_dec"] - lower.params["W_dec"]).max() > 1e-5


@pytest.mark.parametrize("activation", ["relu", "jump_relu", "gated", "topk", "multi_topk"])
def test_micro_batches_give_the_same_step(activation):
    whole = states_after_each_step(config_of(activation))[-1]
    parts = states_after_each_step(config_of(activation, micro_batches=4))[-1]
    assert gap(parts.params, whole.params) < 1e-3
    np.testing.assert_array_equal(parts.silent_F, whole.silent_F)


def test_parts_must_divide_the_batch():
    with pytest.raises(InputError, match="--micro-batches 5: must divide --batch-size"):
        config_of("relu", micro_batches=5, batch_size=64)


def test_the_average_is_that_of_the_weights_after_each_step():
    after = states_after_each_step(config_of("topk", ema=0.9))
    average = np.zeros_like(after[0].params["W_dec"])
    for step, state in enumerate(after):
        average += max(0.1, 1 / (step + 1)) * (state.params["W_dec"] - average)
    np.testing.assert_allclose(after[-1].average["W_dec"], average, atol=1e-5)
    assert np.abs(average - after[-1].params["W_dec"]).max() > 1e-3


def test_the_average_is_what_is_exported(tmp_path):
    store, norms = make_store(tmp_path / "store", d_model=D), {}
    for ema in (0.0, 0.99):
        config = config_of("topk", ema=ema, normalization="none", epochs=2, dead_rule="none", fit_decoder=False)
        run = RunDirectory(tmp_path / f"run{ema}", {"harvest": {}, "train": config.to_json()})
        results = train(config, [store], run)
        W_dec_FxD = load_dictionary(run.path / "members" / results["members"][0]["id"]).sae.W_dec[...]
        norms[ema] = np.linalg.norm(W_dec_FxD, axis=1)
    np.testing.assert_allclose(norms[0.0], 1.0, atol=1e-5)
    assert norms[0.99].max() < 1 - 1e-5  # the mean of directions that turned is shorter than each
