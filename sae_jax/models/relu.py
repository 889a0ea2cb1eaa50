"""ReLU with a penalty on the feature values: L1, tanh, or L_p with p falling from 1.

With a fixed coefficient, L1 is trained as in Anthropic's update of April 2024, from zero biases. For a target L0,
every bias starts at the quantile of the pre-activations above which the target number lies, and log λ then follows L0
(`SAE.update_controller`).
"""

from __future__ import annotations

import jax.numpy as jnp

from sae_jax.models.base import SAE, Start, start_quantile
from sae_jax.ops.sparse import pick

LAST_P, EPSILON = 0.2, 0.01


class ReLU(SAE):
    activation = "relu"

    def penalty(self, z, f, batch):
        """The sum over features of s(f · ‖W_dec‖₂), averaged over rows; s is `sublinear`.

        With the norm outside of s, short decoder rows would evade the penalty.
        """
        return self.sublinear(f * pick(jnp.linalg.norm(self.W_dec[...], axis=1), batch.at), batch).sum(-1).mean()

    def sublinear(self, f, batch):
        """The penalty s on each feature value, before the sum over features. For L1 it is the value itself."""
        return f

    def start(self, params, settings, z_NxF, hyper):
        if self.sparsity_control == "sparsity":
            return super().start(params, settings, z_NxF, hyper)
        q = start_quantile(z_NxF, hyper["target_l0"])
        coefficient = self.first_coefficient(jnp.maximum(q, 0.1 * z_NxF.std()))
        return Start({**params, "b_enc": params["b_enc"] - q}, settings, coefficient)

    def first_coefficient(self, q):
        """The penalty coefficient at the start, when target_l0 pre-activations of a row exceed the threshold q.

        It times the slope of `sublinear` is about 2q: a feature just above the threshold gains as much as it costs.
        """
        return 2 * q


class TanhReLU(ReLU):
    """ReLU with a tanh penalty, which saturates and so does not shrink large feature values."""

    activation = "tanh_relu"

    def sublinear(self, f, batch):
        return jnp.tanh(f)

    def first_coefficient(self, q):
        return jnp.square(q)


class PAnneal(ReLU):
    """ReLU with the penalty Σ f^p, smooth at 0, p falling from 1 to 0.2 over the run (Karvonen et al. 2024)."""

    activation = "p_anneal"

    def sublinear(self, f, batch):
        p = 1 - (1 - LAST_P) * batch.progress
        return (f + EPSILON) ** p - EPSILON**p
