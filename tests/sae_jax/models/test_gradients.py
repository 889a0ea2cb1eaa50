"""The mathematics of one step, compared with float64 numpy: finite differences, closed forms, and Adam's formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from populations import one_member

from sae_jax.config import SPARSITY_CONTROLS, TrainConfig
from sae_jax.models.base import Batch
from sae_jax.models.registry import KINDS
from sae_jax.ops.activations import is_above, jump_relu
from sae_jax.training.loss import member_loss
from sae_jax.training.population import start_member
from sae_jax.training.step import make_step

B, D, F, K, COEFFICIENT, ALPHA = 16, 6, 10, 3, 0.7, 0.5


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    params = {
        "W_encT": rng.standard_normal((F, D)),
        "b_enc": 0.3 * rng.standard_normal(F),
        "W_dec": rng.standard_normal((F, D)),
        "b_dec": 0.3 * rng.standard_normal(D),
    }
    return params, rng.standard_normal((B, D)), rng.uniform(0.2, 1.0, F), rng.random(F) < 0.6


def numpy_features(kind, p, z, threshold):
    rows = np.arange(B)[:, None]
    if kind == "gated":
        return np.where(z > 0, np.maximum(np.exp(p["r_mag"]) * (z - p["b_enc"]) + p["b_mag"], 0), 0)
    if kind == "jump_relu":
        return z * (z > threshold)
    if kind in ("batch_topk", "matryoshka"):
        return np.where(z >= np.sort(np.maximum(z, 0), axis=None)[-K * B], np.maximum(z, 0), 0)
    if kind in ("topk", "multi_topk", "abs_topk"):
        f, size = np.zeros_like(z), np.abs(z) if kind == "abs_topk" else z
        kept = np.argsort(-size, axis=1)[:, :K]
        f[rows, kept] = z[rows, kept] if kind == "abs_topk" else np.maximum(z[rows, kept], 0)
        return f
    return np.maximum(z, 0)


def numpy_loss(kind, p, x, threshold, dead, fixed) -> float:
    """The loss in numpy. `fixed` holds parameters that are not varied, for the auxiliary decoder of gated."""
    z = (x - p["b_dec"]) @ p["W_encT"].T + p["b_enc"]
    f, norm = numpy_features(kind, p, z, threshold), np.linalg.norm(p["W_dec"], axis=1)

    def mse(f, W_dec=p["W_dec"], b_dec=p["b_dec"]):
        return np.square(x - (f @ W_dec + b_dec)).sum(1).mean()

    if kind == "matryoshka":
        return np.mean([mse(np.where(np.arange(F) < end, f, 0)) for end in (1, 2, F)])
    loss = mse(f)
    if kind == "jump_relu":
        loss += COEFFICIENT * (z > threshold).sum(1).mean()
    if kind == "multi_topk":  # 4k exceeds F, so all features are kept
        loss += mse(np.maximum(z, 0)) / 8
    if kind == "gated":  # a new kind with an `extra_loss` adds it here, as a function of z, f and dead
        loss += mse(np.maximum(z, 0), fixed["W_dec"], fixed["b_dec"])
    p_of_progress = 1 - 0.8 * 0.5
    penalized = {
        "relu": f * norm,
        "tanh_relu": np.tanh(f * norm),
        "p_anneal": (np.maximum(f, 0) * norm + 0.01) ** p_of_progress - 0.01**p_of_progress,
        "gated": np.maximum(z, 0) * norm,
    }
    if kind in penalized:
        loss += COEFFICIENT * penalized[kind].sum(1).mean()
    return loss


def numpy_auxk(p, z, e, dead) -> float:
    """AuxK in numpy for a fixed error. The gradient of its encoder flows through z."""
    masked = np.where(dead, z, -np.inf)
    rows, largest = np.arange(B)[:, None], np.argsort(-masked, axis=1)[:, : D // 2]
    f = np.zeros_like(z)
    f[rows, largest] = np.maximum(masked[rows, largest], 0)
    return min(1.0, dead.sum() / (D // 2)) * np.square(e - f @ p["W_dec"]).sum(1).mean()


def finite_differences(function, p: dict, step: float = 1e-6) -> dict:
    gradients = {}
    for name, value in p.items():
        gradients[name] = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            high, low = value.copy(), value.copy()
            high[index] += step
            low[index] -= step
            gradients[name][index] = (function({**p, name: high}) - function({**p, name: low})) / (2 * step)
    return gradients


def sae_of(kind, params, threshold):
    extra, settings = {}, {}
    if kind == "jump_relu":
        extra, settings = {"threshold": threshold}, {"bandwidth": jnp.float32(0.8)}
    if SPARSITY_CONTROLS[kind] == ("k",):
        settings = {"k": jnp.int32(K), "threshold": jnp.float32(0)}
    tensors = {name: jnp.asarray(value, jnp.float32) for name, value in (params | extra).items()}
    return KINDS[kind](tensors, settings, k_max=K)


def batch_of(x, dead, alpha=None):
    hyper = {"aux_coefficient": jnp.float32(alpha or 0.0)}
    x_BxD = jnp.asarray(x, jnp.float32)
    return Batch(x_BxD, x_BxD, None, None, jnp.asarray(dead), alpha is not None, jnp.float32(0.5), hyper)


def our_gradients(kind, params, x, threshold, dead, alpha=None, coefficient=COEFFICIENT):
    graphdef, trained, rest = nnx.split(sae_of(kind, params, threshold), nnx.Param, ...)

    def loss(trained):
        return member_loss(nnx.merge(graphdef, trained, rest), coefficient, batch_of(x, dead, alpha))[0]

    with jax.default_matmul_precision("highest"):
        value, gradients = jax.value_and_grad(loss)(trained)
    return value, nnx.to_pure_dict(gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_equal_finite_differences_in_float64(problem, kind):
    params, x, threshold, dead = problem
    if kind == "gated":
        rng = np.random.default_rng(1)
        params = params | {"r_mag": 0.3 * rng.standard_normal(F), "b_mag": 0.3 * rng.standard_normal(F)}
    value, ours = our_gradients(kind, params, x, threshold, dead)
    assert value == pytest.approx(numpy_loss(kind, params, x, threshold, dead, params), rel=1e-6)
    differences = finite_differences(lambda p: numpy_loss(kind, p, x, threshold, dead, params), params)
    for name, expected in differences.items():
        np.testing.assert_allclose(ours[name], expected, rtol=2e-5, atol=2e-5, err_msg=f"{kind} {name}")


def test_auxk_has_gradients_for_encoder_and_decoder_but_not_b_dec(problem):
    params, x, threshold, dead = problem
    with_aux, without = (our_gradients("topk", params, x, threshold, dead, alpha)[1] for alpha in (ALPHA, None))
    z0 = (x - params["b_dec"]) @ params["W_encT"].T + params["b_enc"]
    f = np.zeros_like(z0)
    largest = np.argsort(-z0, axis=1)[:, :K]
    np.put_along_axis(f, largest, np.maximum(np.take_along_axis(z0, largest, 1), 0), 1)
    e = x - (f @ params["W_dec"] + params["b_dec"])  # detached, so it stays fixed when the parameters change

    relative = x.var(0).sum() / e.var(0).sum()

    def aux(p):
        return ALPHA * relative * numpy_auxk(p, (x - p["b_dec"]) @ p["W_encT"].T + p["b_enc"], e, dead)

    for name, expected in finite_differences(aux, params).items():
        np.testing.assert_allclose(with_aux[name] - without[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)
    assert np.abs(finite_differences(aux, params)["W_encT"]).max() > 0.01


def test_jump_relu_thresholds_gradient_is_the_straight_through_closed_form(problem):
    params, x, threshold, dead = problem
    _, ours = our_gradients("jump_relu", params, x, threshold, dead, coefficient=0.0)
    z = (x - params["b_dec"]) @ params["W_encT"].T + params["b_enc"]
    e = x - (z * (z > threshold) @ params["W_dec"] + params["b_dec"])
    g = -2 / B * e @ params["W_dec"].T
    near = np.abs(z - threshold) < 0.8 / 2
    assert near[z < threshold].any(), "the half of the kernel below the threshold must count"
    np.testing.assert_allclose(ours["threshold"], -(threshold / 0.8) * (g * near).sum(0), rtol=1e-4)


def test_l0_penaltys_gradient_is_the_straight_through_closed_form(problem):
    params, x, threshold, dead = problem
    both, recon = (our_gradients("jump_relu", params, x, threshold, dead, coefficient=c)[1] for c in (COEFFICIENT, 0.0))
    z = (x - params["b_dec"]) @ params["W_encT"].T + params["b_enc"]
    near = np.abs(z - threshold) < 0.8 / 2
    expected = -COEFFICIENT / B * near.sum(0) / 0.8
    np.testing.assert_allclose(both["threshold"] - recon["threshold"], expected, rtol=1e-4, atol=1e-5)
    for name in ("W_encT", "b_enc", "W_dec", "b_dec"):
        np.testing.assert_array_equal(both[name], recon[name])


def test_a_feature_at_its_threshold_does_not_fire():
    z, theta = jnp.array([[0.5, 0.49, 0.75]]), jnp.full((1, 3), 0.5)
    np.testing.assert_array_equal(jump_relu(z, theta, jnp.float32(1)), [[0, 0, 0.75]])
    np.testing.assert_array_equal(is_above(z, theta, jnp.float32(1)), [[0, 0, 1]])


def test_topk_never_keeps_more_than_k_and_none_below_zero():
    z = jnp.array([[1.0, 1.0, 1.0, 1.0], [3.0, -1.0, -2.0, -3.0]])
    sae = KINDS["topk"]({}, {"k": jnp.int32(2)}, k_max=3)
    np.testing.assert_array_equal(sae.activate_training(z), [[1, 1, 0, 0], [3, 0, 0, 0]])


@pytest.mark.parametrize("kind", ["relu", "jump_relu", "topk"])
def test_one_step_is_clipped_adam_on_unit_decoder_rows(kind):
    """The expected first step: clipping, Adam (whose first update is g / (|g| + eps)), a faster decoder, unit rows."""
    config = TrainConfig(activation=(kind,), hidden_dim=F, target_l0=K, k=K, lr=0.01, decoder_lr_ratio=2.5)
    group, hyper = one_member(config, D, total_steps=40)
    x = np.random.default_rng(1).standard_normal((64, D)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        before = start_member(group.signature, hyper, jnp.asarray(x))
        after, metrics = make_step(group.signature)(hyper, before, jnp.asarray(x[:B]))

        sae = nnx.merge(group.signature.graphdef(), before.params, before.settings)
        graphdef, trained, rest = nnx.split(sae, nnx.Param, ...)
        batch = batch_of(x[:B], np.zeros(F, bool))
        gradients = jax.grad(lambda t: member_loss(nnx.merge(graphdef, t, rest), before.coefficient, batch)[0])(trained)
    g = {name: np.asarray(value, np.float64) for name, value in nnx.to_pure_dict(gradients).items()}
    p = {name: np.asarray(value, np.float64) for name, value in before.params.items()}
    g["W_dec"] -= (g["W_dec"] * p["W_dec"]).sum(1, keepdims=True) * p["W_dec"]
    norm = np.sqrt(sum(np.square(value).sum() for value in g.values()))
    g = {name: value / max(norm, 1.0) for name, value in g.items()}
    s = 1 / 2  # the first of two warm-up steps
    lr = {name: 0.025 if name == "W_dec" else 0.01 for name in p}
    expected = {name: p[name] - lr[name] * s * g[name] / (np.abs(g[name]) + 1e-8) for name in p}
    expected["W_dec"] /= np.linalg.norm(expected["W_dec"], axis=1, keepdims=True)
    if kind == "jump_relu":
        excess = np.clip(np.log(float(metrics["l0"]) / K), -1, 1)
        moved = expected["threshold"] + 0.2 * float(before.settings["bandwidth"]) * s * excess
        expected["threshold"] = np.maximum(moved, 0)
    for name in p:
        np.testing.assert_allclose(after.params[name], expected[name], rtol=1e-4, atol=2e-5, err_msg=name)
    if kind != "topk":
        excess = np.clip(np.log(float(metrics["l0"]) / K), -1, 1)
        rate = 0.02 * 5 if kind == "relu" else 0.02  # in so short a run, the controller is five times as fast
        assert after.coefficient == pytest.approx(float(before.coefficient) * np.exp(rate * s * excess), rel=1e-5)
