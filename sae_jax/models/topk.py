"""TopK and MultiTopK (Gao et al. 2024) and AbsTopK (Zhu et al. 2025), all with AuxK for dead features."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sae_jax.models.auxk import mean_square
from sae_jax.models.base import SAE, Setting
from sae_jax.ops.activations import mask_of_largest


class TopK(SAE):
    """The k largest pre-activations of a row are kept, then passed through a ReLU, so fewer than k may fire."""

    activation = "topk"
    architecture = "topk"
    by_rank = True
    has_auxk = True

    k: Setting

    def activate_training(self, z, at=None):
        return self.keep(z, at, ranks_per_k=1)

    def keep(self, z, at, ranks_per_k):
        k = ranks_per_k * self.k
        if at is None:
            kept = mask_of_largest(self.score(z), k, min(ranks_per_k * self.k_max, z.shape[1]), self.split)
        else:
            kept = jnp.arange(z.shape[1]) < k  # candidates are sorted by rank
        return jnp.where(kept, self.value(z), 0.0)

    def score(self, z_BxF):
        return z_BxF

    def value(self, z):
        return jax.nn.relu(z)


class MultiTopK(TopK):
    """TopK with the loss L(k) + L(4k)/8, so that it reconstructs well at more than one k (Gao et al. 2024)."""

    activation = "multi_topk"
    ranks_per_k = 4
    fits_decoder = False  # fitted at k alone, it would reconstruct worse at 4k

    def extra_loss(self, z, f, error_BxD, batch):
        wider = self.keep(z, batch.at, ranks_per_k=4)
        return mean_square(batch.target_BxD - self.decode(wider, batch.at)) / 8


class AbsTopK(TopK):
    """The k pre-activations of largest magnitude are kept with their sign (Zhu et al. 2025)."""

    activation = "abs_topk"
    architecture = "abstopk"

    def score(self, z_BxF):
        return jnp.abs(z_BxF)

    def value(self, z):
        return z
