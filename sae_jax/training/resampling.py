"""Dead features: how they are revived.

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
    """Give each dead feature the direction of another badly reconstructed row, as an ordinary living feature.

    Rows are drawn without replacement, with probability proportional to their squared error squared (as Anthropic's
    rule draws them), so at most N features are revived at once. The decoder row becomes the row's unit error, the
    encoder row that times the mean norm of the living ones; what else a feature has becomes the living ones' mean.
    Where nothing lives the dead stand in. Anthropic's rule scales the encoder row, biases and the threshold (`hyper`).
    Of what was replaced Adam's first moment is reset, and the second becomes the living ones' mean: reset, it would
    make the next hundred steps three to six times as long (its bias correction has long run out), and what was
    revived would die of them (figures in README.md). Returns (params, moments).
    """
    params = nnx.to_pure_dict(nnx.state(sae, nnx.Param))
    error_NxD = x_NxD - sae(x_NxD)
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
    for name, scale in (("W_dec", 1.0), ("W_encT", hyper["revived_encoder_scale"])):
        fresh[name] = direction_FxD * scale * living_mean(jnp.linalg.norm(params[name], axis=1))

    def replaced(tree: Arrays, new: dict) -> Arrays:
        mask = {name: revived_F[:, None] if tree[name].ndim == 2 else revived_F for name in new}
        return tree | {name: jnp.where(mask[name], value, tree[name]) for name, value in new.items()}

    mu, nu = moments
    typical = {name: living_mean(nu[name], axis=0) for name in fresh}
    return replaced(params, fresh), (replaced(mu, dict.fromkeys(fresh, 0.0)), replaced(nu, typical))
