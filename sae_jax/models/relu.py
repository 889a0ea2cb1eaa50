"""ReLU with a penalty on the features: L1, tanh, or an L_p whose p falls from 1.

With a fixed coefficient L1 is the paper's (Anthropic, April 2024, from zero biases). Steered, every feature starts at
the quantile of the pre-activations above which L0 of them lie, and log λ follows the L0 (`SAE.update_controller`).
"""

from __future__ import annotations

import jax.numpy as jnp

from sae_jax.models.base import SAE, Start, start_quantile
from sae_jax.ops.sparse import pick

LAST_P, EPSILON = 0.2, 0.01


class ReLU(SAE):
    activation = "relu"

    def penalty(self, z, f, batch):
        """mean_B Σ_F f · ‖W_dec‖₂; the norm inside of what is sublinear, or a short decoder would cheat it."""
        return self.sublinear(f * pick(jnp.linalg.norm(self.W_dec[...], axis=1), batch.at), batch).sum(-1).mean()

    def sublinear(self, f, batch):
        return f

    def start(self, params, settings, z_NxF, hyper):
        if self.sparsity_control == "sparsity":
            return super().start(params, settings, z_NxF, hyper)
        q = start_quantile(z_NxF, hyper["target_l0"])
        coefficient = self.first_coefficient(jnp.maximum(q, 0.1 * z_NxF.std()))
        return Start({**params, "b_enc": params["b_enc"] - q}, settings, coefficient)

    def first_coefficient(self, q):
        return 2 * q


class TanhReLU(ReLU):
    """A penalty that saturates: large features are not shrunk."""

    activation = "tanh_relu"

    def sublinear(self, f, batch):
        return jnp.tanh(f)

    def first_coefficient(self, q):
        return jnp.square(q)


class PAnneal(ReLU):
    """Σ f^p with p falling from 1 to 0.2 over the run (Karvonen et al. 2024), smooth at 0."""

    activation = "p_anneal"

    def sublinear(self, f, batch):
        p = 1 - (1 - LAST_P) * batch.progress
        return (f + EPSILON) ** p - EPSILON**p
