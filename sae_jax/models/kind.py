"""What one kind of dictionary is made of: a new kind is a subclass, a line in `__init__.py` and one in `../config.py`.

Written for one member. What kinds share is elsewhere: the products and biases in `sae.py`, the sum of the terms in
`losses.py`, Adam, the schedule and dead features in `step.py`.

Shapes: N rows to start from, B rows of a batch, D width of the model, F features, K candidates of a row. In training
z and f are [B, F], or [B, K] on the sparse path, where `at` names the candidates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from sae_jax.ops.sparse import Candidates, fits

if TYPE_CHECKING:
    from sae_jax.models.base import SAE

Arrays = dict[str, jax.Array]

COEFFICIENT_RATE = 0.02  # of log λ a step
SHORT_RUN = 1000  # steps; in fewer it moves quicker by as much, at most five times, if the weights can follow:
FOLLOWING_LR = 1e-3


class Start(NamedTuple):
    params: Arrays
    settings: Arrays
    coefficient: jax.Array


class Batch(NamedTuple):
    """What a loss sees besides the dictionary."""

    x_BxD: jax.Array
    known_BxF: jax.Array | None  # x W_enc, where it is known already
    at: Candidates | None
    dead_F: jax.Array
    revive: bool  # whether AuxK is asked for
    progress: jax.Array  # share of the run, 0 to 1
    hyper: Arrays


class Measured(NamedTuple):
    """What a step has found, for the adjustment after it."""

    step: jax.Array
    s: jax.Array  # the learning rate's schedule, 0 to 1
    excess: jax.Array  # log(L0 / its target), at most one e-fold either way
    observed: jax.Array  # by `Kind.observe`


class Kind:
    """The defaults are those of a ReLU without a penalty."""

    architecture = "standard"  # SAELens' name for what is exported
    by_rank = False  # whether a row's candidates are its k largest, rather than all above a threshold
    ranks_per_k = 1
    has_auxk = False
    has_sparse_path = True

    def __init__(self, level: str):
        self.level = level

    def extra_params(self, hidden_dim: int) -> Arrays:
        """Trained parameters besides W_encT, b_enc, W_dec and b_dec."""
        return {}

    def extra_settings(self) -> Arrays:
        """Numbers that it needs and that no gradient trains."""
        return {}

    def activate(self, sae: SAE, z: jax.Array, at: Candidates | None = None) -> jax.Array:
        """Pre-activations to features, in training."""
        return jax.nn.relu(z)

    def fire(self, sae: SAE, z_BxF: jax.Array) -> jax.Array:
        """Pre-activations to features, in use."""
        return self.activate(sae, z_BxF)

    def score(self, sae: SAE, z_BxF: jax.Array) -> jax.Array:
        """By what candidates are chosen: the larger the sooner, -inf for features without a part in the loss."""
        return jnp.where(z_BxF > 0, z_BxF, -jnp.inf)

    def fits(self, sae: SAE, count_B: jax.Array, hidden_dim: int) -> jax.Array:
        """Whether the sparse path is exact with that many candidates a row, and pays."""
        return fits(count_B, hidden_dim)

    def observe(self, f: jax.Array) -> jax.Array:
        """What `adjust` wants to know of a batch's features."""
        return jnp.float32(0)

    def penalty(self, sae: SAE, z: jax.Array, f: jax.Array, batch: Batch) -> jax.Array:
        """A number that the coefficient weights."""
        return jnp.float32(0)

    def extra_loss(self, sae: SAE, z: jax.Array, f: jax.Array, error_BxD: jax.Array, batch: Batch) -> jax.Array:
        """A number that is added as it is."""
        return jnp.float32(0)

    def start(self, params: Arrays, settings: Arrays, z_NxF: jax.Array, hyper: Arrays) -> Start:
        """What differs, before the first step, from random weights; by the pre-activations of some training rows."""
        return Start(params, settings, jnp.float32(0))

    def adjust(
        self, params: Arrays, settings: Arrays, coefficient: jax.Array, measured: Measured, hyper: Arrays
    ) -> Start:
        """What follows each step of Adam: the coefficient that is steered, or that rises over the warm-up."""
        if self.level == "target_l0":
            coefficient = coefficient * jnp.exp(self.coefficient_rate(hyper) * measured.s * measured.excess)
        if self.level == "sparsity":
            coefficient = hyper["sparsity"] * jnp.minimum(1.0, (measured.step + 1) / hyper["warmup_steps"])
        return Start(params, settings, coefficient)

    def coefficient_rate(self, hyper: Arrays) -> jax.Array:
        """Of log λ, a step."""
        following = jnp.minimum(1.0, hyper["lr"] / FOLLOWING_LR)
        return COEFFICIENT_RATE * jnp.clip(following * SHORT_RUN / hyper["total_steps"], 1.0, 5.0)

    def export(self, tensors: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
        """Tensors of the exported architecture, from W_enc, b_enc, W_dec, b_dec and the extra parameters."""
        return tensors


def start_quantile(z_NxF: jax.Array, l0: jax.Array) -> jax.Array:
    """Above it lie `l0` pre-activations of a row, on average."""
    return jnp.quantile(z_NxF, 1 - l0 / z_NxF.shape[1])
