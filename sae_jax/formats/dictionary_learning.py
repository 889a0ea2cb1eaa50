"""Reading dictionary_learning's directories: `ae.pt`, a torch file, and `config.json`. Tensors get SAELens' names.

The classes are those of version 0.1 (`dictionary_learning/dictionary.py`, `trainers/`). When its own loader reads an
AutoEncoder, it scales the features to decoder rows of norm 1. Here the features keep the units that are stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harvest.errors import InputError
from harvest.files import parse_json
from harvest.request import STREAMS
from sae_jax.formats.dictionary import BY_K, Dictionary
from sae_jax.formats.saelens import ANOTHER_COPY, new_cfg, record_in

WEIGHTS, CONFIG = "ae.pt", "config.json"
LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}
PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
GATED = {"decoder_bias": "b_dec", "r_mag": "r_mag", "gate_bias": "b_gate", "mag_bias": "b_mag"}


class Form(NamedTuple):
    architecture: str
    names: dict[str, str]  # SAELens' names of its tensors
    subtracts_b_dec: bool = True  # from the rows, before encoding
    has_one_threshold: bool = False


FORMS = {
    "AutoEncoder": Form("standard", LINEAR | {"bias": "b_dec"}),
    "AutoEncoderNew": Form("standard", LINEAR | {"decoder.bias": "b_dec"}, subtracts_b_dec=False),
    "GatedAutoEncoder": Form("gated", {n: LINEAR[n] for n in ("encoder.weight", "decoder.weight")} | GATED),
    "JumpReluAutoEncoder": Form("jumprelu", PLAIN | {"threshold": "threshold"}, subtracts_b_dec=False),
    "AutoEncoderTopK": Form("topk", LINEAR | {"b_dec": "b_dec"}),
    "BatchTopKSAE": Form("jumprelu", LINEAR | {"b_dec": "b_dec"}, has_one_threshold=True),
    "MatryoshkaBatchTopKSAE": Form("jumprelu", PLAIN, has_one_threshold=True),
}
BUFFERS = ("k", "threshold", "group_sizes")  # tensors of TopK classes that are not weights


def read(directory: Path) -> Dictionary:
    """Read what `trainSAE` wrote, without a check of the whole. Raises InputError for files that cannot be read."""
    from harvest.torch_file import read_tensors

    config = parse_json(directory / CONFIG, ANOTHER_COPY)
    trainer = config.get("trainer")
    if not isinstance(trainer, dict) or str(trainer.get("dict_class")) not in FORMS:
        dict_class = trainer.get("dict_class") if isinstance(trainer, dict) else None
        raise InputError(f"{directory / CONFIG}: trainer.dict_class {dict_class!r} must be one of {', '.join(FORMS)}")
    form, stored = FORMS[trainer["dict_class"]], read_tensors(directory / WEIGHTS)
    tensors = {
        form.names.get(name, name): tensor.T if name.endswith(".weight") else tensor
        for name, tensor in stored.items()
        if name in form.names or name not in BUFFERS
    }
    for name in ("k", "threshold"):
        if name in stored and name not in form.names and stored[name].size != 1:
            raise InputError(
                f"{directory}: {name} has shape {stored[name].shape}; it must be one number: {ANOTHER_COPY}"
            )
    if form.has_one_threshold and {"threshold", "b_enc"} <= stored.keys() | tensors.keys():
        tensors["threshold"] = np.full(tensors["b_enc"].shape, stored["threshold"], np.float32)
    k = trainer.get("k")
    if "k" in stored and k is not None and stored["k"].item() != k:
        raise InputError(
            f"{directory}: k is {k} in {CONFIG}, but {stored['k'].item()} in {WEIGHTS}: use the {CONFIG} that "
            "belongs to these weights"
        )
    cfg = new_cfg(
        form.architecture,
        trainer.get("activation_dim", 0),
        trainer.get("dict_size", 0),
        metadata_of(trainer, record_in(config, "buffer", directory / CONFIG)),
        k if form.architecture in BY_K else None,
        apply_b_dec_to_input=form.subtracts_b_dec,
    )
    return Dictionary(directory.resolve().name, "dictionary_learning", cfg, tensors)


def metadata_of(trainer: dict, buffer: dict) -> dict[str, Any]:
    """Metadata of the model and text. The hook is known only if `submodule_name` names it, as in resid_post_layer_8.

    If the buffer took the input of that module (`io`), the hook is a different one and stays unknown.
    """
    hook = next((hook for hook in STREAMS if str(trainer.get("submodule_name")).startswith(hook)), None)
    hook = hook if buffer.get("io", "out") == "out" else None
    return {
        "model_name": trainer.get("lm_name"),
        "model_class_name": "HookedTransformer",
        "hook_name": f"blocks.{trainer['layer']}.hook_{hook}" if hook and "layer" in trainer else None,
        "hook_head_index": None,
        "context_size": buffer.get("ctx_len"),
        "model_from_pretrained_kwargs": {},
    }
