"""The kinds of dictionaries, by their name on the command line."""

from sae_jax.models.batch_topk import BatchTopK, Matryoshka
from sae_jax.models.gated import Gated
from sae_jax.models.jump_relu import JumpReLU
from sae_jax.models.kind import Kind
from sae_jax.models.relu import PAnneal, ReLU, TanhReLU
from sae_jax.models.topk import AbsTopK, MultiTopK, TopK

KINDS: dict[str, type[Kind]] = {
    "relu": ReLU,
    "tanh_relu": TanhReLU,
    "p_anneal": PAnneal,
    "jump_relu": JumpReLU,
    "gated": Gated,
    "topk": TopK,
    "multi_topk": MultiTopK,
    "abs_topk": AbsTopK,
    "batch_topk": BatchTopK,
    "matryoshka": Matryoshka,
}
