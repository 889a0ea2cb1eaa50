"""The kinds of dictionaries, by their name on the command line."""

from sae_jax.kinds.batch_topk import BatchTopK, Matryoshka
from sae_jax.kinds.gated import Gated
from sae_jax.kinds.jump_relu import JumpReLU
from sae_jax.kinds.kind import Kind
from sae_jax.kinds.relu import PAnneal, ReLU, TanhReLU
from sae_jax.kinds.topk import AbsTopK, MultiTopK, TopK

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
