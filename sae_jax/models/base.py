"""The sparse autoencoder (SAE) as a Flax module, written for one member of a population. Each kind is a subclass.

To add a kind, add a file to this folder, a line to `registry.py` and a line to `../config.py`. The terms of the loss
are summed in `../training/loss.py`. Adam, the schedule and dead features are handled in `../training/step.py`.

Shapes: N rows for the initialization, B rows per batch, D width of the model, F features, K candidates per row.
Parameters are float32. In training, z and f are [B, F]. On the sparse path they are [B, K], and `at` holds the indices
of the K candidates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sae_jax.ops.matmul import matmul
from sae_jax.ops.sparse import Candidates, decode_at, fits, pick, product, product_at

Arrays = dict[str, jax.Array]

COEFFICIENT_RATE = 0.02  # the largest change of log λ in one step
# In runs of fewer steps than this, log λ moves faster in proportion, up to five times as fast. The weights must be able
# to follow, so the speed-up shrinks if the learning rate is below FOLLOWING_LR.
SHORT_RUN = 1000
FOLLOWING_LR = 1e-3


class Setting(nnx.Variable):
    """A number that no gradient trains. It may differ between the members of a group."""


class Start(NamedTuple):
    """Parameters, settings and penalty coefficient, at the start or after an update of the sparsity controller."""

    params: Arrays
    settings: Arrays
    coefficient: jax.Array


class Batch(NamedTuple):
    """The inputs of a loss besides the SAE."""

    x_BxD: jax.Array
    target_BxD: jax.Array  # x · metric_D, which the SAE reconstructs in training
    known_BxF: jax.Array | None  # x W_enc, if it was computed before
    at: Candidates | None
    dead_F: jax.Array  # features that have been silent for `steps_to_die` steps
    revive: bool  # whether the loss includes AuxK
    progress: jax.Array  # finished share of the run, 0 to 1
    hyper: Arrays


class Measured(NamedTuple):
    """Measurements of a training step, for the update of the sparsity controller after it."""

    step: jax.Array
    s: jax.Array  # factor of the learning-rate schedule, 0 to 1
    excess: jax.Array  # log(L0 / target L0), clipped to ±1
    statistics: jax.Array  # from `SAE.batch_statistics`


class SAE(nnx.Module):
    """f = act((x − b_dec) W_enc + b_enc), x̂ = f W_dec + b_dec. A subclass defines the activation and the loss.

    `params` holds W_encT [F, D], b_enc [F], W_dec [F, D], b_dec [D] and the extra parameters of the kind. The encoder
    is stored transposed, with one row per feature like the decoder, because its gradient is then written row by row,
    which saves a sixth of the step time. `settings` holds numbers such as k, and `metric_D`: in training, W_dec and
    b_dec reconstruct x · metric_D. `sparsity_control` is the name of the setting that fixes the sparsity. `k_max` is
    the static upper bound of k. `dtype` is the number format of the large matrix products. `split` is whether the
    features may be on several devices. The defaults of this class describe a ReLU without a penalty.
    """

    activation: str  # name of the kind on the command line
    architecture = "standard"  # SAELens' name of the exported architecture
    by_rank = False  # whether the candidates of a row are its k largest values, not all values above a threshold
    ranks_per_k = 1
    has_auxk = False
    fits_decoder = True  # whether the decoder may be fitted to the features of the exported dictionary
    has_sparse_path = True  # False if a term of the loss depends on features that do not fire

    W_encT: nnx.Param
    b_enc: nnx.Param
    W_dec: nnx.Param
    b_dec: nnx.Param
    metric_D: Setting | float = 1.0

    def __init__(
        self,
        params: dict,
        settings: dict | None = None,
        sparsity_control: str = "",
        k_max: int = 0,
        dtype: str = "float32",
        split: bool = False,
    ):
        self.sparsity_control, self.k_max, self.dtype, self.split = sparsity_control, k_max, dtype, split
        for name, value in params.items():
            setattr(self, name, nnx.Param(value))
        for name, value in (settings or {}).items():
            setattr(self, name, Setting(value))

    def pre_activations(
        self, x_BxD: jax.Array, known_BxF: jax.Array | None = None, at: Candidates | None = None
    ) -> jax.Array:
        """Pre-activations z_BxF, or z_BxK of each row's candidates. `known_BxF` is x W_enc, if computed before.

        b_dec is subtracted after the product, as part of the bias, which saves a matmul in the backward pass.
        """
        bias_F = self.b_enc - self.W_encT @ (self.b_dec / self.metric_D)
        if at is not None:
            return product_at(x_BxD, self.W_encT[...], known_BxF, at) + pick(bias_F, at)
        if known_BxF is None:
            return self.encoder_product(x_BxD) + bias_F[None]
        return product(x_BxD, self.W_encT[...], known_BxF, self.dtype) + bias_F[None]

    def encoder_product(self, x_BxD: jax.Array) -> jax.Array:
        return matmul(x_BxD, self.W_encT[...].T, self.dtype)

    def encode(self, x_BxD: jax.Array) -> jax.Array:
        return self.activate_inference(self.pre_activations(x_BxD))

    def decode(self, f: jax.Array, at: Candidates | None = None) -> jax.Array:
        return self.decoder_product(f, self.W_dec[...], at) + self.b_dec[None]

    def decoder_product(self, f: jax.Array, W_dec_FxD: jax.Array, at: Candidates | None = None) -> jax.Array:
        return matmul(f, W_dec_FxD, self.dtype) if at is None else decode_at(f, W_dec_FxD, at)

    def reconstruct(self, x_BxD: jax.Array, f_BxF: jax.Array) -> jax.Array:
        """x̂ from the feature values of these rows, which may have been edited."""
        return self.decode(f_BxF)

    def __call__(self, x_BxD: jax.Array) -> jax.Array:
        return self.reconstruct(x_BxD, self.encode(x_BxD))

    @staticmethod
    def extra_params(hidden_dim: int) -> Arrays:
        """Trained parameters in addition to W_encT, b_enc, W_dec and b_dec."""
        return {}

    @staticmethod
    def extra_settings() -> Arrays:
        """Numbers that the kind needs and that no gradient trains."""
        return {}

    def activate_training(self, z: jax.Array, at: Candidates | None = None) -> jax.Array:
        """Feature values from pre-activations, in training."""
        return jax.nn.relu(z)

    def activate_inference(self, z_BxF: jax.Array) -> jax.Array:
        """Feature values from pre-activations, after training."""
        return self.activate_training(z_BxF)

    def score(self, z_BxF: jax.Array) -> jax.Array:
        """Scores that rank the candidates, largest first; -inf for features that cannot contribute to the loss."""
        return jnp.where(z_BxF > 0, z_BxF, -jnp.inf)

    def fits(self, count_B: jax.Array, hidden_dim: int) -> jax.Array:
        """Whether the sparse path is exact with `count_B` candidates per row, and faster."""
        return fits(count_B, hidden_dim)

    def batch_statistics(self, f: jax.Array) -> jax.Array:
        """Statistics of the feature values of a batch, for `update_controller`."""
        return jnp.float32(0)

    def penalty(self, z: jax.Array, f: jax.Array, batch: Batch) -> jax.Array:
        """The penalty that is multiplied by the coefficient λ."""
        return jnp.float32(0)

    def extra_loss(self, z: jax.Array, f: jax.Array, error_BxD: jax.Array, batch: Batch) -> jax.Array:
        """A term that is added to the loss without a coefficient."""
        return jnp.float32(0)

    def start(self, params: Arrays, settings: Arrays, z_NxF: jax.Array, hyper: Arrays) -> Start:
        """Initialization from the pre-activations of some training rows; by default the random weights are kept."""
        return Start(params, settings, jnp.float32(0))

    def update_controller(
        self, params: Arrays, settings: Arrays, coefficient: jax.Array, measured: Measured, hyper: Arrays
    ) -> Start:
        """Update after each Adam step: the coefficient follows the target L0, or rises during the warm-up."""
        if self.sparsity_control == "target_l0":
            coefficient = coefficient * jnp.exp(self.coefficient_rate(hyper) * measured.s * measured.excess)
        if self.sparsity_control == "sparsity":
            coefficient = hyper["sparsity"] * jnp.minimum(1.0, (measured.step + 1) / hyper["warmup_steps"])
        return Start(params, settings, coefficient)

    def coefficient_rate(self, hyper: Arrays) -> jax.Array:
        """The largest change of log λ in one step."""
        following = jnp.minimum(1.0, hyper["lr"] / FOLLOWING_LR)
        return COEFFICIENT_RATE * jnp.clip(following * SHORT_RUN / hyper["total_steps"], 1.0, 5.0)

    @classmethod
    def shares_of_losses(cls, hidden_dim: int) -> np.ndarray:
        """The share of the reconstruction losses in which each feature takes part, [F], for `../decoder_fit.py`."""
        return np.ones(hidden_dim)

    @staticmethod
    def export(tensors: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
        """The tensors of the exported architecture, from W_enc, b_enc, W_dec, b_dec and the extra parameters."""
        return tensors


def start_quantile(z_NxF: jax.Array, l0: jax.Array) -> jax.Array:
    """The threshold that on average `l0` pre-activations of a row exceed."""
    return jnp.quantile(z_NxF, 1 - l0 / z_NxF.shape[1])


def unit_rows(W_FxD: jax.Array) -> jax.Array:
    return W_FxD / jnp.maximum(jnp.linalg.norm(W_FxD, axis=1, keepdims=True), 1e-30)
