"""The sparse path: its parts equal numpy, and its loss and gradients equal those of the dense path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from populations import one_member

from sae_jax.config import TrainConfig
from sae_jax.models.registry import KINDS
from sae_jax.ops.sparse import Candidates, decode_at, fits, gather_dot, most_candidates, product_at, scatter_outer
from sae_jax.training.population import start_member
from sae_jax.training.step import make_gradients, sparse_pays

B, D, F = 32, 32, 512


@given(st.integers(1, 9), st.integers(1, 7), st.sampled_from([16, 48]), st.sampled_from([16, 32]), st.integers(0, 99))
@settings(deadline=None, max_examples=15)
def test_loops_over_candidates_are_the_products_of_numpy(rows, d, f, k, seed):
    rng, k = np.random.default_rng(seed), min(k, f)
    indices = np.stack([rng.permutation(f)[:k] for _ in range(rows)])
    count = rng.integers(0, k + 1, rows)
    values = np.where(np.arange(k) < count[:, None], rng.standard_normal((rows, k)), 0)
    x, W, z = rng.standard_normal((rows, d)), rng.standard_normal((f, d)), rng.standard_normal((rows, f))
    dense = np.zeros((rows, f))
    np.put_along_axis(dense, indices, values, 1)
    at = Candidates(jnp.asarray(indices), jnp.asarray(count))
    v, x32, W32 = (jnp.asarray(a, jnp.float32) for a in (values, x, W))
    np.testing.assert_allclose(decode_at(v, W32, at), dense @ W, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scatter_outer(v, x32, at, f), dense.T @ x, rtol=1e-4, atol=1e-5)
    counted = np.arange(k) < count[:, None]
    dots = np.take_along_axis(x @ W.T, indices, 1)
    np.testing.assert_allclose(np.where(counted, gather_dot(x32, W32, at), 0), np.where(counted, dots, 0), atol=1e-4)
    np.testing.assert_array_equal(
        product_at(x32, W32, jnp.asarray(z, jnp.float32), at),
        np.take_along_axis(z, indices, 1).astype(np.float32),
    )


def member(kind: str, target: int = 8, **changes):
    config = TrainConfig(activation=(kind,), hidden_dim=F, k=target, target_l0=target, **changes)
    group, hyper = one_member(config, D, 1000)
    x = np.random.default_rng(0).standard_normal((B, D)).astype(np.float32)
    return group.signature, hyper, start_member(group.signature, hyper, jnp.asarray(x)), x


def sparse_path_was_taken(signature, state, x) -> bool:
    sae = nnx.merge(signature.graphdef(), state.params, state.settings)
    score = sae.score(sae.pre_activations(jnp.asarray(x)))
    return signature.kind.by_rank or bool(sae.fits(jnp.isfinite(score).sum(1), F))


def compare(signature, hyper, state, x):
    with jax.default_matmul_precision("highest"):
        (loss, terms), sparse = jax.jit(make_gradients(signature, in_turn=True))(state, x, hyper)
        (expected, dense_terms), dense = jax.jit(make_gradients(signature, in_turn=False))(state, x, hyper)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_array_equal(terms.firings_F, dense_terms.firings_F)
    np.testing.assert_allclose(terms.squared_error_D, dense_terms.squared_error_D, rtol=1e-4)
    for name, value in dense.items():
        np.testing.assert_allclose(sparse[name], value, rtol=1e-4, atol=1e-4 * np.abs(value).max(), err_msg=name)
    return sparse


@pytest.mark.parametrize("dead", [0, 200])
@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.has_sparse_path])
def test_loss_and_gradients_equal_those_of_the_dense_path(kind, dead):
    signature, hyper, state, x = member(kind)
    state = state.replace(silent_F=jnp.zeros(F, int).at[:dead].set(10**6))
    assert sparse_pays(signature) and sparse_path_was_taken(signature, state, x)
    gradients = compare(signature, hyper, state, x)
    assert all(np.abs(g).max() > 0 for g in gradients.values())


@pytest.mark.parametrize("dead", [3, 200])
def test_auxk_on_the_sparse_path(dead):
    """AuxK agrees if fewer and if more features are dead than it uses."""
    signature, hyper, state, x = member("topk")
    alive = compare(signature, hyper, state, x)
    state = state.replace(silent_F=jnp.zeros(F, int).at[:dead].set(10**6))
    revived = compare(signature, hyper, state, x)
    assert np.abs(revived["W_encT"] - alive["W_encT"])[:dead].max() > 1e-4


def test_a_row_with_too_many_active_features_is_computed_densely():
    """Features are not cut off at the number of candidates: 300 features fire on a row, more than fit."""
    signature, hyper, state, x = member("relu")
    state = state.replace(params={**state.params, "b_enc": state.params["b_enc"] * 0.0})
    firing = (x @ state.params["W_encT"].T > 0).sum(1)
    assert firing.max() > most_candidates(F) and not fits(jnp.asarray(firing), F)
    compare(signature, hyper, state, x)
