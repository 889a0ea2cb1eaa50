"""The sparse autoencoder as a Flax module, written for one member: a kind of dictionary is a subclass.

A new kind is a file in this folder, a line in `registry.py` and one in `../config.py`. The sum of the loss is in
`../training/loss.py`; Adam, the schedule and dead features are in `../training/step.py`.

Shapes: N rows to start from, B rows of a batch, D width of the model, F features, K candidates of a row. Parameters are
float32. In training z and f are [B, F], or [B, K] on the sparse path, where `at` names the candidates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sae_jax.ops.matmul import matmul
from sae_jax.ops.sparse import Candidates, decode_at, fits, pick, product, product_at

Arrays = dict[str, jax.Array]

COEFFICIENT_RATE = 0.02  # change of log λ in one step, at most
SHORT_RUN = 1000  # steps; in shorter runs log λ moves faster in proportion, up to five times, if the weights can follow
FOLLOWING_LR = 1e-3


class Setting(nnx.Variable):
    """A number that no gradient trains; members of one group may differ in it."""


class Start(NamedTuple):
    params: Arrays
    settings: Arrays
    coefficient: jax.Array


class Batch(NamedTuple):
    """What a loss sees besides the dictionary."""

    x_BxD: jax.Array
    known_BxF: jax.Array | None  # x W_enc, if it is known already
    at: Candidates | None
    dead_F: jax.Array
    revive: bool  # whether AuxK is asked for
    progress: jax.Array  # share of the run, 0 to 1
    hyper: Arrays


class Measured(NamedTuple):
    """What a step has measured, for the update of the sparsity controller after it."""

    step: jax.Array
    s: jax.Array  # the learning rate's schedule, 0 to 1
    excess: jax.Array  # log(L0 / its target), at most one e-fold either way
    statistics: jax.Array  # by `SAE.batch_statistics`


class SAE(nnx.Module):
    """f = act((x − b_dec) W_enc + b_enc), x̂ = f W_dec + b_dec; a subclass says what `act` is and what it is trained by.

    `params`: W_encT [F, D] (the encoder with a row for each feature, like the decoder: its gradient is written by rows,
    which saves a sixth of a step), b_enc [F], W_dec [F, D], b_dec [D], and what the kind adds. `settings`: k and the
    like. `sparsity_control` names the setting that fixes the sparsity. `k_max` is the static bound of k, `dtype` is
    that of the large products. The defaults below are those of a ReLU without a penalty.
    """

    activation: str  # the kind's name on the command line
    architecture = "standard"  # SAELens' name for what is exported
    by_rank = False  # whether a row's candidates are its k largest, rather than all above a threshold
    ranks_per_k = 1
    has_auxk = False
    has_sparse_path = True

    W_encT: nnx.Param
    b_enc: nnx.Param
    W_dec: nnx.Param
    b_dec: nnx.Param

    def __init__(
        self,
        params: dict,
        settings: dict | None = None,
        sparsity_control: str = "",
        k_max: int = 0,
        dtype: str = "float32",
    ):
        self.sparsity_control, self.k_max, self.dtype = sparsity_control, k_max, dtype
        for name, value in params.items():
            setattr(self, name, nnx.Param(value))
        for name, value in (settings or {}).items():
            setattr(self, name, Setting(value))

    def pre_activations(
        self, x_BxD: jax.Array, known_BxF: jax.Array | None = None, at: Candidates | None = None
    ) -> jax.Array:
        """z_BxF, or z_BxK at each row's candidates; where x W_enc is known, it is not computed again.

        The bias is moved behind the product, which saves a matmul of the rows in the backward pass.
        """
        bias_F = self.b_enc - self.W_encT @ self.b_dec
        if at is not None:
            return product_at(x_BxD, self.W_encT[...], known_BxF, at) + pick(bias_F, at)
        if known_BxF is None:
            return self.encoder_product(x_BxD) + bias_F
        return product(x_BxD, self.W_encT[...], known_BxF, self.dtype) + bias_F

    def encoder_product(self, x_BxD: jax.Array) -> jax.Array:
        return matmul(x_BxD, self.W_encT[...].T, self.dtype)

    def encode(self, x_BxD: jax.Array) -> jax.Array:
        return self.activate_inference(self.pre_activations(x_BxD))

    def decode(self, f: jax.Array, at: Candidates | None = None) -> jax.Array:
        return self.decoder_product(f, self.W_dec[...], at) + self.b_dec

    def decoder_product(self, f: jax.Array, W_dec_FxD: jax.Array, at: Candidates | None = None) -> jax.Array:
        return matmul(f, W_dec_FxD, self.dtype) if at is None else decode_at(f, W_dec_FxD, at)

    def reconstruct(self, x_BxD: jax.Array, f_BxF: jax.Array) -> jax.Array:
        """x̂ from the features of these rows, or from others in their place."""
        return self.decode(f_BxF)

    def __call__(self, x_BxD: jax.Array) -> jax.Array:
        return self.reconstruct(x_BxD, self.encode(x_BxD))

    @staticmethod
    def extra_params(hidden_dim: int) -> Arrays:
        """Trained parameters besides W_encT, b_enc, W_dec and b_dec."""
        return {}

    @staticmethod
    def extra_settings() -> Arrays:
        """Numbers that it needs and that no gradient trains."""
        return {}

    def activate_training(self, z: jax.Array, at: Candidates | None = None) -> jax.Array:
        """Pre-activations to features, in training."""
        return jax.nn.relu(z)

    def activate_inference(self, z_BxF: jax.Array) -> jax.Array:
        """Pre-activations to features, in use."""
        return self.activate_training(z_BxF)

    def score(self, z_BxF: jax.Array) -> jax.Array:
        """By what candidates are chosen: the larger the sooner, -inf for features without a part in the loss."""
        return jnp.where(z_BxF > 0, z_BxF, -jnp.inf)

    def fits(self, count_B: jax.Array, hidden_dim: int) -> jax.Array:
        """Whether the sparse path is exact with that many candidates a row, and pays."""
        return fits(count_B, hidden_dim)

    def batch_statistics(self, f: jax.Array) -> jax.Array:
        """What `update_controller` needs to know about a batch's features."""
        return jnp.float32(0)

    def penalty(self, z: jax.Array, f: jax.Array, batch: Batch) -> jax.Array:
        """A number that the coefficient weights."""
        return jnp.float32(0)

    def extra_loss(self, z: jax.Array, f: jax.Array, error_BxD: jax.Array, batch: Batch) -> jax.Array:
        """A number that is added as it is."""
        return jnp.float32(0)

    def start(self, params: Arrays, settings: Arrays, z_NxF: jax.Array, hyper: Arrays) -> Start:
        """What differs, before the first step, from random weights; by the pre-activations of some training rows."""
        return Start(params, settings, jnp.float32(0))

    def update_controller(
        self, params: Arrays, settings: Arrays, coefficient: jax.Array, measured: Measured, hyper: Arrays
    ) -> Start:
        """What follows each step of Adam: the coefficient that is steered, or that rises over the warm-up."""
        if self.sparsity_control == "target_l0":
            coefficient = coefficient * jnp.exp(self.coefficient_rate(hyper) * measured.s * measured.excess)
        if self.sparsity_control == "sparsity":
            coefficient = hyper["sparsity"] * jnp.minimum(1.0, (measured.step + 1) / hyper["warmup_steps"])
        return Start(params, settings, coefficient)

    def coefficient_rate(self, hyper: Arrays) -> jax.Array:
        """Of log λ, a step."""
        following = jnp.minimum(1.0, hyper["lr"] / FOLLOWING_LR)
        return COEFFICIENT_RATE * jnp.clip(following * SHORT_RUN / hyper["total_steps"], 1.0, 5.0)

    @staticmethod
    def export(tensors: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
        """Tensors of the exported architecture, from W_enc, b_enc, W_dec, b_dec and the extra parameters."""
        return tensors


def start_quantile(z_NxF: jax.Array, l0: jax.Array) -> jax.Array:
    """Above it lie `l0` pre-activations of a row, on average."""
    return jnp.quantile(z_NxF, 1 - l0 / z_NxF.shape[1])


def unit_rows(W_FxD: jax.Array) -> jax.Array:
    return W_FxD / jnp.maximum(jnp.linalg.norm(W_FxD, axis=1, keepdims=True), 1e-30)
