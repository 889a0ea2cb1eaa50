"""BatchTopK (Bussmann et al. 2024) and Matryoshka SAEs. Both are JumpReLU SAEs after training, and exported as such."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from sae_jax.models.auxk import mean_square
from sae_jax.models.base import SAE, Setting, Start, start_quantile
from sae_jax.ops.activations import nth_largest

# Candidates lie above this share of the smallest value kept in the last batch. If too few do, the step is dense.
CANDIDATES_ABOVE = 0.9
AVERAGE_RATE = 0.01  # update rate per step of the averaged threshold, which replaces the batch's after training


class BatchTopK(SAE):
    """In training, the k · B largest pre-activations of a batch fire. After training, those above a threshold fire.

    During a run, the threshold is the moving average of the smallest value kept in a batch. Exported dictionaries get
    one that is fitted on calibration rows (`sae_jax/calibration.py`).
    """

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
        """Candidates lie above 0.9 times the smallest value kept in the last batch, so that far fewer are sorted."""
        return jnp.where(z_BxF > CANDIDATES_ABOVE * self.last_least, z_BxF, -jnp.inf)

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
    """Nested prefixes of the features each reconstruct alone; their losses are averaged (Bussmann et al. 2025)."""

    activation = "matryoshka"
    has_sparse_path = False
    SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1)

    @classmethod
    def ends(cls, hidden_dim):
        """The number of features in each prefix."""
        return sorted({max(1, int(share * hidden_dim)) for share in cls.SHARES})

    @classmethod
    def shares_of_losses(cls, hidden_dim):
        return (np.arange(hidden_dim)[:, None] < cls.ends(hidden_dim)).mean(1)

    def extra_loss(self, z, f, error_BxD, batch):
        ends = self.ends(f.shape[1])
        x_hat_BxD, losses, begin = self.b_dec[None], [], 0
        for end in ends:
            x_hat_BxD = x_hat_BxD + self.decoder_product(f[:, begin:end], self.W_dec[begin:end])
            losses.append(mean_square(batch.target_BxD - x_hat_BxD))
            begin = end
        return jnp.stack(losses).mean() - losses[-1]  # the main loss already contains that of all features
