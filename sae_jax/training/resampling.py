"""Revival of dead features.

Shapes: N rows to choose from, D width of the model, F features.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from sae_jax.models.base import SAE, Arrays, unit_rows


def resample(
    sae: SAE, moments: tuple[Arrays, ...], x_NxD: jax.Array, dead_F: jax.Array, key: jax.Array, hyper: Arrays
) -> tuple[Arrays, tuple[Arrays, ...]]:
    """Turn each dead feature into the direction of a badly reconstructed row. Returns (params, moments).

    Rows are drawn without replacement, with probability proportional to the square of their squared error, as in
    Anthropic's rule, so at most N features are revived at once. The decoder and encoder rows of a revived feature point
    along the error of its row and have the mean norm of those of living features. Its biases and threshold become the
    means of living features. If no feature is alive, the means are over the dead ones. Anthropic's rule also scales the
    encoder row, the biases and the threshold (`hyper`).

    Adam's first moment of replaced parameters is set to zero, and the second to its mean over living features. A second
    moment of zero would make the next hundred steps three to six times as long, because its bias correction has ended
    long before, and the revived features would die again.
    """
    params = nnx.to_pure_dict(nnx.state(sae, nnx.Param))
    error_NxD = x_NxD * hyper["metric_D"][None] - sae(x_NxD)
    loss_N = jnp.square(error_NxD).sum(-1)
    order_N = jnp.argsort(-(2 * jnp.log(loss_N) + jax.random.gumbel(key, loss_N.shape)))
    rank_F = jnp.cumsum(dead_F) - 1
    row_F = order_N[jnp.clip(rank_F, 0, len(x_NxD) - 1)]
    revived_F = dead_F & (rank_F < len(x_NxD)) & (loss_N[row_F] > 0)
    direction_FxD = unit_rows(error_NxD[row_F])
    is_model_F = ~dead_F | dead_F.all()

    def living_mean(values, axis=None):
        mask = is_model_F[:, None] if values.ndim == 2 else is_model_F
        return jnp.where(mask, values, 0.0).sum(axis) / is_model_F.sum()

    fresh = {name: living_mean(value) for name, value in params.items() if value.ndim == 1 and name != "b_dec"}
    fresh = {name: value if name == "r_mag" else hyper["revived_bias_scale"] * value for name, value in fresh.items()}
    encoder_FxD = unit_rows(direction_FxD * hyper["metric_D"][None]) * hyper["revived_encoder_scale"]
    for name, rows_FxD in (("W_dec", direction_FxD), ("W_encT", encoder_FxD)):
        fresh[name] = rows_FxD * living_mean(jnp.linalg.norm(params[name], axis=1))

    def replaced(tree: Arrays, new: dict) -> Arrays:
        mask = {name: revived_F[:, None] if tree[name].ndim == 2 else revived_F for name in new}
        return tree | {name: jnp.where(mask[name], value, tree[name]) for name, value in new.items()}

    mu, nu = moments
    typical = {name: living_mean(nu[name], axis=0) for name in fresh}
    return replaced(params, fresh), (replaced(mu, dict.fromkeys(fresh, 0.0)), replaced(nu, typical))
