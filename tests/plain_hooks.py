"""Activations of plain transformers at our hooks, by forward hooks on its modules, next to those of `LanguageModel`."""

from pathlib import Path

import numpy as np
import torch
import transformers
from tiny_models import CLASSES

from harvest.errors import InputError
from harvest.model.language_model import LanguageModel
from harvest.rehearsal import check_meaning
from harvest.request import HOOKS, Site

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
    with torch.inference_mode():
        network(torch.from_numpy(tokens_WxT.astype(np.int64)))
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
