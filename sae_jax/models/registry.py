"""The SAE kinds by their name on the command line."""

from sae_jax.models.base import SAE
from sae_jax.models.batch_topk import BatchTopK, Matryoshka
from sae_jax.models.gated import Gated
from sae_jax.models.jump_relu import JumpReLU
from sae_jax.models.relu import PAnneal, ReLU, TanhReLU
from sae_jax.models.topk import AbsTopK, MultiTopK, TopK

KINDS: dict[str, type[SAE]] = {
    kind.activation: kind
    for kind in (
        ReLU,
        TanhReLU,
        PAnneal,
        JumpReLU,
        Gated,
        TopK,
        MultiTopK,
        AbsTopK,
        BatchTopK,
        Matryoshka,
    )
}
