"""Activations of plain transformers at our hooks, by forward hooks on its modules, next to those of `LanguageModel`."""

from pathlib import Path

import numpy as np
import torch
import transformers
from tiny_models import CLASSES

from harvest.errors import InputError
from harvest.model.language_model import LanguageModel
from harvest.rehearsal import check_meaning
from harvest.request import HOOKS, OUTER, Site

LAYER = 1
LLAMA = ("model.layers", "self_attn", "post_attention_layernorm", "mlp")
GEMMA = ("model.layers", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
# The list of blocks, and in a block the modules whose output is attn_out, whose input is resid_mid, and whose output is
# mlp_out. Blocks with attention and MLP in parallel have no resid_mid, and those of BERT normalize after the addition.
MODULES: dict[str, tuple[str, str | None, str | None, str | None]] = {
    "gpt2": ("transformer.h", "attn", "ln_2", "mlp"),
    "gpt_neox": ("gpt_neox.layers", "attention", None, "mlp"),
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "gemma2": GEMMA,
    "gemma3": GEMMA,
    "opt": ("model.decoder.layers", "self_attn", "final_layer_norm", "fc2"),
    "phi": ("model.layers", "self_attn", None, "mlp"),
    "olmo": LLAMA,
    "olmo2": ("model.layers", "post_attention_layernorm", "mlp", "post_feedforward_layernorm"),
    "bert": ("bert.encoder.layer", None, None, None),
}
# In a block, the matrices of queries, keys and values (one for all three in some families), the matrix whose input is
# z, the module whose input is mlp_in, and the matrix whose input is mlp_post.
LLAMA_INNER = ("self_attn.q_proj self_attn.k_proj self_attn.v_proj", "self_attn.o_proj", "mlp", "mlp.down_proj")
INNER_MODULES = dict.fromkeys(MODULES, LLAMA_INNER) | {
    "gpt2": ("attn.c_attn", "attn.c_proj", "mlp", "mlp.c_proj"),
    "gpt_neox": ("attention.query_key_value", "attention.dense", "mlp", "mlp.dense_4h_to_h"),
    "opt": ("self_attn.q_proj self_attn.k_proj self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2"),
    "phi": ("self_attn.q_proj self_attn.k_proj self_attn.v_proj", "self_attn.dense", "mlp", "mlp.fc2"),
    "bert": (
        "attention.self.query attention.self.key attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ),
}
# The embedding of tokens, and the norm before the unembedding.
OUTER_MODULES = dict.fromkeys(MODULES, "model.embed_tokens model.norm") | {
    "gpt2": "transformer.wte transformer.ln_f",
    "gpt_neox": "gpt_neox.embed_in gpt_neox.final_layer_norm",
    "opt": "model.decoder.embed_tokens model.decoder.final_layer_norm",
    "phi": "model.embed_tokens model.final_layernorm",
    "bert": "bert.embeddings.LayerNorm cls.predictions.transform.LayerNorm",
}
HEADS = 4  # in all of these models


def split_heads(family: str, joint: np.ndarray) -> tuple[np.ndarray, ...]:
    """Queries, keys and values from the output of one matrix, which has them head by head in GPT-NeoX."""
    if family == "gpt_neox":
        by_head = joint.reshape(*joint.shape[:2], HEADS, 3, -1)
        return tuple(by_head[..., part, :].reshape(*joint.shape[:2], -1) for part in range(3))
    return tuple(np.split(joint, 3, -1))


def plain_activations(family: str, directory: Path, tokens_WxT: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """Activations [W, T, D] of the middle layer at each hook that the family has."""
    loader = CLASSES.get(family, transformers.AutoModelForCausalLM)
    network = loader.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()
    blocks, attention, middle, mlp = MODULES[family]
    block = network.get_submodule(f"{blocks}.{LAYER}")
    found: dict[str, np.ndarray] = {}

    def keep(hook: str, value) -> None:
        value = value[0] if isinstance(value, tuple) else value
        found[hook] = value.float().reshape(*tokens_WxT.shape, -1).numpy()

    def read(hook: str, name: str | None, which: str) -> None:
        if name is None:
            return
        module = block.get_submodule(name)
        if which == "input":
            module.register_forward_pre_hook(
                lambda module, args, kwargs: keep(hook, args or kwargs["hidden_states"]), with_kwargs=True
            )
        else:
            module.register_forward_hook(lambda module, args, output: keep(hook, output))

    for hook, name, which in (
        ("resid_pre", "", "input"),
        ("resid_mid", middle, "input"),
        ("resid_post", "", "output"),
        ("mlp_out", mlp, "output"),
        ("attn_out", attention, "output"),
    ):
        read(hook, name, which)
    projections, z, mlp_in, mlp_post = INNER_MODULES[family]
    several = len(names := projections.split()) > 1
    for hook, name in zip("qkv" if several else ["qkv"], names, strict=True):
        read(hook, name, "output")
    for hook, name in (("z", z), ("mlp_in", mlp_in), ("mlp_post", mlp_post)):
        read(hook, name, "input")
    for hook, name in zip(OUTER, OUTER_MODULES[family].split(), strict=False):
        block = network  # these are named from the top
        read(hook, name, "output")
    with torch.inference_mode():
        network(torch.from_numpy(tokens_WxT.astype(np.int64)))
    if not several:
        found |= zip("qkv", split_heads(family, found.pop("qkv")), strict=True)
    return found


def differences(family: str, directory: Path, tokens_WxT: np.ndarray, dtype: str) -> dict[str, float | None]:
    """The largest difference at each hook, relative to the largest value; None if the harvest refuses the hook."""
    model = LanguageModel.load(str(directory), "cpu", dtype=dtype)
    expected, apart = plain_activations(family, directory, tokens_WxT, dtype), {}
    for hook in HOOKS:
        site = Site(LAYER, hook)
        try:
            found_WxTxD = model.activations(tokens_WxT, [site])[site]
            check_meaning(model, tokens_WxT, site)
        except InputError:
            apart[hook] = None
            continue
        size = np.abs(expected[hook]).max()
        apart[hook] = float(np.abs(found_WxTxD - expected[hook]).max() / size)
    return apart
