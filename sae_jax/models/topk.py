"""TopK (Gao et al. 2024), its MultiTopK, and AbsTopK; all with AuxK for dead features."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sae_jax.models.auxk import mean_square
from sae_jax.models.kind import Kind
from sae_jax.ops.activations import mask_of_largest


class TopK(Kind):
    """The k largest pre-activations of a row, then ReLU: fewer than k may fire."""

    architecture = "topk"
    by_rank = True
    has_auxk = True

    def activate(self, sae, z, at=None):
        return self.keep(sae, z, at, ranks_per_k=1)

    def keep(self, sae, z, at, ranks_per_k):
        k = ranks_per_k * sae.k
        if at is None:
            kept = mask_of_largest(self.score(sae, z), k, min(ranks_per_k * sae.k_max, z.shape[1]))
        else:
            kept = jnp.arange(z.shape[1]) < k  # candidates come in order of their rank
        return jnp.where(kept, self.value(z), 0.0)

    def score(self, sae, z_BxF):
        return z_BxF

    def value(self, z):
        return jax.nn.relu(z)


class MultiTopK(TopK):
    """L(k) + L(4k)/8 (ibid.): good at more than one k."""

    ranks_per_k = 4

    def extra_loss(self, sae, z, f, error_BxD, batch):
        wider = self.keep(sae, z, batch.at, ranks_per_k=4)
        return mean_square(batch.x_BxD - sae.decode(wider, batch.at)) / 8


class AbsTopK(TopK):
    """The k pre-activations of largest magnitude, with their sign (Zhu et al. 2025)."""

    architecture = "abstopk"

    def score(self, sae, z_BxF):
        return jnp.abs(z_BxF)

    def value(self, z):
        return z
