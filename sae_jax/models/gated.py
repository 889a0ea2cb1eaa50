"""Gated SAEs (Rajamanoharan et al. 2024): a gate decides which features fire, and a magnitude path how strongly.

With π = (x − b_dec) W_enc, the pre-activation z is that of the gate, π + b_gate, where b_gate is stored as b_enc.
The features are f = 1[z > 0] · relu(e^r π + b_mag). The gate is trained by the L1 penalty and an auxiliary
reconstruction loss; it gets no gradient from the main reconstruction.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from sae_jax.models.auxk import mean_square
from sae_jax.models.base import Start
from sae_jax.models.relu import ReLU
from sae_jax.ops.sparse import pick


class Gated(ReLU):
    activation = "gated"
    architecture = "gated"

    r_mag: nnx.Param  # [F]
    b_mag: nnx.Param  # [F]

    @staticmethod
    def extra_params(hidden_dim):
        return {"r_mag": jnp.zeros(hidden_dim), "b_mag": jnp.zeros(hidden_dim)}

    def activate_training(self, z, at=None):
        pi = z - pick(self.b_enc[...], at)
        magnitude = jax.nn.relu(jnp.exp(pick(self.r_mag[...], at)) * pi + pick(self.b_mag[...], at))
        return jnp.where(z > 0, magnitude, 0.0)

    def penalty(self, z, f, batch):
        return super().penalty(z, jax.nn.relu(z), batch)

    def extra_loss(self, z, f, error_BxD, batch):
        """The squared error of the reconstruction from the gates relu(z), without a gradient for the decoder."""
        W_dec_FxD, b_dec_D = (jax.lax.stop_gradient(p[...]) for p in (self.W_dec, self.b_dec))
        gate = jax.nn.relu(z)
        return mean_square(batch.target_BxD - self.decoder_product(gate, W_dec_FxD, batch.at) - b_dec_D[None])

    def start(self, params, settings, z_NxF, hyper):
        params, settings, coefficient = super().start(params, settings, z_NxF, hyper)
        return Start({**params, "b_mag": params["b_enc"]}, settings, coefficient)

    @staticmethod
    def export(tensors, settings):
        return {"b_gate" if name == "b_enc" else name: tensor for name, tensor in tensors.items()}
