"""Loading a language model into TransformerLens' bridge, with checks of its files and without log messages."""

from __future__ import annotations

import logging
import re
import sys
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from accelerate.utils import align_module_device
from huggingface_hub.utils import enable_progress_bars
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._hf_format import determine_architecture_from_hf_config
from transformer_lens.model_bridge.sources.transformers.helpers import get_hf_model_class_for_architecture
from transformer_lens.utilities.multi_gpu import is_mixed_offload_gpu
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from harvest.errors import InputError
from harvest.model.library_errors import explained
from harvest.model.number_format import SPREAD, device_of
from harvest.sources import official_name

SHUFFLE_SEED = 0


def load_bridge(
    location: str, device: str, control: str | None, dtype: str = "float32"
) -> tuple[TransformerBridge, list[str]]:
    """(the model of a hub name, an alias or a local directory; notes for the user).

    With the control "random-weights", its weights are `shuffled`. Raises InputError, with the reason, for a model that
    cannot be loaded, for an encoder-decoder, and if files lack weights or have weights of more layers than configured.

    Rotated queries and keys are cast to the format of the model, as in transformers. TransformerLens 4.3 leaves them in
    float32 in OLMo, and then cannot multiply its attention with values in another format.

    A spread model is on all GPUs, or without one in the memory and on disk. There, a layer is read whenever it runs:
    from the model's own files, or from a temporary folder if they have another format than the model in transformers.
    """
    asked = f"--model-name {location}"
    with explained(f"{asked}: the model cannot be loaded"), _quietly():
        name = official_name(location)
        config = AutoConfig.from_pretrained(name)
        if config.is_encoder_decoder:
            raise InputError(
                f"{asked}: {config.model_type} is an encoder-decoder, which is not supported: use a decoder such as "
                "GPT-2 or an encoder such as BERT"
            )
        loading, converted = _Loading(config, control), tempfile.TemporaryDirectory(prefix="layers-")
        where: dict[str, Any] = {"device_map": "auto", "offload_folder": converted.name}
        if device != SPREAD:
            where = {"device": device_of(device)}
        bridge = TransformerBridge.boot_transformers(name, dtype=getattr(torch, dtype), model_class=loading, **where)
        weakref.finalize(bridge, converted.cleanup)
        if getattr(bridge.cfg, "attn_implementation", None) is None:  # eager attention is not needed here
            model: Any = bridge.original_model
            with suppress(ValueError):  # a model without another attention stays eager
                model.set_attn_implementation("sdpa")
    if not hasattr(bridge, "blocks"):
        raise InputError(
            f"{asked}: TransformerLens finds no stack of layers in this model ({config.model_type}): use another model"
        )
    if loading.missing:
        raise InputError(
            f"{asked}: its files lack the weights {listed(loading.missing)}, which would be random: "
            "get a complete copy of the model"
        )
    if loading.beyond:
        raise InputError(
            f"{asked}: its files have the weights {listed(loading.beyond)}, but the model of its config.json has fewer "
            "layers or parts, so the two do not belong together: get both from one source"
        )
    unused = [f"weights in its files are not used: {listed(loading.unused)}"] if loading.unused else []
    for name, point in bridge.hook_dict.items():
        if name.endswith(("hook_rot_q", "hook_rot_k")):
            point.register_forward_hook(lambda point, _, rotated: rotated.to(getattr(torch, dtype)))
    return bridge.eval(), unused


class _Loading:
    """Replaces the transformers class of a model during loading, to record missing and unused weights.

    The weights of a control are shuffled here, before TransformerLens copies parts of them.
    """

    def __init__(self, config: Any, control: str | None):
        self.model_class = get_hf_model_class_for_architecture(determine_architecture_from_hf_config(config))
        self.control = control
        self.missing: list[str] = []
        self.beyond: list[str] = []  # weights of layers that the configuration lacks
        self.unused: list[str] = []  # weights of other parts, such as a head for another task

    def from_pretrained(self, name: str, **settings: Any) -> PreTrainedModel:
        model, facts = self.model_class.from_pretrained(name, output_loading_info=True, **settings)
        self.missing = sorted(facts["missing_keys"])
        forms = {numberless(key) for key in model.state_dict()}
        for key in sorted(facts["unexpected_keys"]):
            form = numberless(key)
            repeated = "#" in form and any(f".{known}".endswith(f".{form}") for known in forms)
            (self.beyond if repeated else self.unused).append(key)
        refuse_partly_on_gpus(getattr(model, "hf_device_map", {}))
        return shuffled(model) if self.control else model


def refuse_partly_on_gpus(device_map: Mapping[str, int | str]) -> None:
    """Raise InputError if some layers are on GPUs and others are not, which TransformerLens 4.3 does not run."""
    if is_mixed_offload_gpu(device_map.values()):
        raise InputError(
            f"--device {SPREAD}: the model is larger than the free memory of the GPUs, and TransformerLens cannot run "
            "a model that is only partly on GPUs: use more GPUs, --model-dtype bfloat16 or --device cpu"
        )


def numberless(key: str) -> str:
    return re.sub(r"\d+", "#", key)


def shuffled(model: Any) -> Any:
    """The model with the entries of each matrix and embedding permuted, with a fixed seed.

    This is a control: each tensor keeps its distribution but nothing that was learned (after Heap et al. 2025, arXiv
    2501.17727, who draw from a normal distribution). Vectors are not changed: gains and biases only set scales, and
    keep activations at their usual size.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        raise InputError(
            f"--control with --device {SPREAD}: the model is larger than the memory, and weights on disk cannot be "
            "shuffled: use a smaller model or --model-dtype bfloat16"
        )
    rng = np.random.default_rng(SHUFFLE_SEED)
    with torch.no_grad():
        for parameter in model.parameters():  # each tied weight once
            if parameter.ndim > 1:
                order = torch.from_numpy(rng.permutation(parameter.numel()))
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return model


def values_of(bridge: TransformerBridge) -> Iterator[tuple[str, torch.Tensor]]:
    """The name and value of each weight, sorted by name. Those on disk are read one layer at a time."""
    owners = {
        id(tensor): (module, name)
        for module in bridge.original_model.modules()
        if "_hf_hook" in vars(module)  # accelerate reads its weights from the disk
        for name, tensor in module.named_parameters(recurse=False)
    }
    for name, tensor in sorted(bridge.state_dict(keep_vars=True).items()):
        if not tensor.is_meta:
            yield name, tensor
            continue
        module, own_name = owners[id(tensor)]
        with align_module_device(module):
            yield name, getattr(module, own_name)


def listed(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppress the libraries' progress bars and warnings, except the progress bar of a download in a terminal."""
    loggers = [logging.getLogger(name) for name in ("transformers.modeling_utils", "accelerate.big_modeling")]
    levels, bars = [logger.level for logger in loggers], transformers_logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    if sys.stderr.isatty():
        enable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
