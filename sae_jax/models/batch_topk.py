"""BatchTopK (Bussmann et al. 2024), and Matryoshka on top of it; exported as the JumpReLU that they are in use."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sae_jax.models.auxk import mean_square
from sae_jax.models.base import SAE, Setting, Start, start_quantile
from sae_jax.ops.activations import nth_largest

LOOKED_AT = 0.9  # of the last batch's least: this batch's lies above that, or the step is computed densely
AVERAGE_RATE = 0.01  # a step, of the threshold that is used in place of the batch's


class BatchTopK(SAE):
    """In training the k · B largest pre-activations of a batch; in use all above the average of their smallest."""

    activation = "batch_topk"
    architecture = "jumprelu"
    has_auxk = True

    k: Setting
    threshold: Setting
    last_least: Setting

    @staticmethod
    def extra_settings():
        return {"threshold": jnp.float32(0), "last_least": jnp.float32(0)}

    def activate_training(self, z, at=None):
        least = nth_largest(jax.lax.stop_gradient(z), self.k * len(z))
        return jnp.where((z >= least) & (z > 0), z, 0.0)

    def activate_inference(self, z_BxF):
        return jnp.where(z_BxF > self.threshold, z_BxF, 0.0)

    def score(self, z_BxF):
        """Far fewer than all are looked at: those above a little under the last batch's least, if they are enough."""
        return jnp.where(z_BxF > LOOKED_AT * self.last_least, z_BxF, -jnp.inf)

    def fits(self, count_B, hidden_dim):
        return super().fits(count_B, hidden_dim) & (count_B.sum() >= self.k * len(count_B))

    def start(self, params, settings, z_NxF, hyper):
        threshold = jnp.maximum(start_quantile(z_NxF, settings["k"]), 0.0)
        return Start(params, {**settings, "threshold": threshold, "last_least": threshold}, jnp.float32(0))

    def batch_statistics(self, f):
        return jnp.where(f > 0, f, jnp.inf).min()

    def update_controller(self, params, settings, coefficient, measured, hyper):
        least = jnp.where(jnp.isfinite(measured.statistics), measured.statistics, settings["last_least"])
        threshold = settings["threshold"] + AVERAGE_RATE * (least - settings["threshold"])
        return Start(params, {**settings, "threshold": threshold, "last_least": least}, coefficient)

    @staticmethod
    def export(tensors, settings):
        return {**tensors, "threshold": jnp.full_like(tensors["b_enc"], settings["threshold"])}


class Matryoshka(BatchTopK):
    """The mean loss of nested prefixes of the features, each reconstructing alone (Bussmann et al. 2025)."""

    activation = "matryoshka"
    has_sparse_path = False
    SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1)

    def extra_loss(self, z, f, error_BxD, batch):
        ends = sorted({max(1, int(share * f.shape[1])) for share in self.SHARES})
        x_hat_BxD, losses, begin = self.b_dec[...], [], 0
        for end in ends:
            x_hat_BxD = x_hat_BxD + self.decoder_product(f[:, begin:end], self.W_dec[begin:end])
            losses.append(mean_square(batch.x_BxD - x_hat_BxD))
            begin = end
        return jnp.stack(losses).mean() - losses[-1]  # in place of the whole's
