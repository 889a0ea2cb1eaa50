"""JumpReLU with the penalty λ · L0 (Rajamanoharan et al. 2024), for a target L0 or with the paper's fixed λ.

For a target L0, every threshold starts at the quantile q of the pre-activations above which the target number lies.
Two controls then steer L0. All thresholds move together, which acts quickly. The coefficient λ follows, and sets how
much a firing must reduce the error. Without λ the rarely firing features lose: Adam makes the gradient step of every
threshold equally large, and in long runs many features die. The constants are in units of q and of the standard
deviation of the pre-activations, so they hold at any scale of the activations.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from sae_jax.models.base import COEFFICIENT_RATE, SAE, Setting, Start, start_quantile
from sae_jax.ops.activations import is_above, jump_relu
from sae_jax.ops.sparse import pick

THRESHOLD_RATE = 0.2  # largest change per step, in widths of the straight-through kernel
KERNEL = 0.25  # width in standard deviations of the pre-activations: narrow, so that few features are near
PAPER_THRESHOLD, PAPER_KERNEL = 0.01, 0.05  # SAELens' values, for rows of norm √D


class JumpReLU(SAE):
    activation = "jump_relu"
    architecture = "jumprelu"

    threshold: nnx.Param  # [F]
    bandwidth: Setting

    @staticmethod
    def extra_params(hidden_dim):
        return {"threshold": jnp.full(hidden_dim, PAPER_THRESHOLD)}

    @staticmethod
    def extra_settings():
        return {"bandwidth": jnp.float32(PAPER_KERNEL)}

    def activate_training(self, z, at=None):
        return jump_relu(z, self.thresholds(z, at), self.bandwidth[...])

    def activate_inference(self, z_BxF):
        return jnp.where(z_BxF > self.threshold[None], z_BxF, 0.0)

    def score(self, z_BxF):
        return jnp.where(z_BxF > self.threshold[None] - self.bandwidth / 2, z_BxF, -jnp.inf)

    def penalty(self, z, f, batch):
        """L0: mean_B Σ_F 1[z > θ]."""
        return is_above(z, self.thresholds(z, batch.at), self.bandwidth[...]).sum(-1).mean()

    def start(self, params, settings, z_NxF, hyper):
        if self.sparsity_control == "sparsity":
            return super().start(params, settings, z_NxF, hyper)
        q = jnp.maximum(start_quantile(z_NxF, hyper["target_l0"]), 0.1 * z_NxF.std())
        params = {**params, "threshold": jnp.full_like(params["threshold"], q)}
        return Start(params, {**settings, "bandwidth": KERNEL * z_NxF.std()}, 0.5 * jnp.square(q))

    def coefficient_rate(self, hyper):
        return jnp.float32(COEFFICIENT_RATE)  # the thresholds act quickly already

    def update_controller(self, params, settings, coefficient, measured, hyper):
        params, settings, coefficient = super().update_controller(params, settings, coefficient, measured, hyper)
        push = THRESHOLD_RATE * settings["bandwidth"] * measured.s * measured.excess
        threshold_F = params["threshold"] + (push if self.sparsity_control == "target_l0" else 0.0)
        return Start({**params, "threshold": jnp.maximum(threshold_F, 0.0)}, settings, coefficient)

    def thresholds(self, z, at):
        return jnp.broadcast_to(pick(self.threshold[...], at), z.shape)
