"""Gated (Rajamanoharan et al. 2024): a gate decides what fires, a magnitude how much.

π = (x − b_dec) W_enc; our z is the gate's π + b_gate, with b_gate in the place of b_enc;
f = 1[z > 0] · relu(e^r π + b_mag). The L1 penalty and an auxiliary reconstruction train the gate, which gets no
gradient from the other.
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
        """‖x − x̂(relu(z))‖² by a decoder that it does not train."""
        W_dec_FxD, b_dec_D = (jax.lax.stop_gradient(p[...]) for p in (self.W_dec, self.b_dec))
        gate = jax.nn.relu(z)
        return mean_square(batch.x_BxD - self.decoder_product(gate, W_dec_FxD, batch.at) - b_dec_D)

    def start(self, params, settings, z_NxF, hyper):
        params, settings, coefficient = super().start(params, settings, z_NxF, hyper)
        return Start({**params, "b_mag": params["b_enc"]}, settings, coefficient)

    @staticmethod
    def export(tensors, settings):
        return {"b_gate" if name == "b_enc" else name: tensor for name, tensor in tensors.items()}
