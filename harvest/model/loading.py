"""A language model's files into TransformerLens' bridge: whole, of one stack of layers, and without noise."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import enable_progress_bars
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._hf_format import determine_architecture_from_hf_config
from transformer_lens.model_bridge.sources.transformers.helpers import get_hf_model_class_for_architecture
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from harvest.errors import InputError
from harvest.model.library_errors import explained
from harvest.sources import official_name

SHUFFLE_SEED = 0


def load_bridge(location: str, device: str, control: str | None) -> tuple[TransformerBridge, list[str]]:
    """A model of a hub name, an alias or a local directory, and what is to be told of it.

    With the control "random-weights" its weights are `shuffled`. Raises InputError, with the reason, for a model that
    cannot be loaded, for an encoder-decoder, and where files lack weights or have some of more layers than configured.
    """
    asked = f"--model-name {location}"
    with explained(f"{asked}: the model cannot be loaded"), _quietly():
        name = official_name(location)
        config = AutoConfig.from_pretrained(name)
        if config.is_encoder_decoder:
            raise InputError(
                f"{asked}: {config.model_type} is an encoder-decoder; only models of one stack of layers can be read, "
                "decoders like GPT-2 or encoders like BERT"
            )
        loading = _Loading(config, control)
        bridge = TransformerBridge.boot_transformers(name, device=device, model_class=loading)
        if getattr(bridge.cfg, "attn_implementation", None) is None:  # it needs no eager attention here
            model: Any = bridge.original_model
            with suppress(ValueError):  # a model that has no other stays eager
                model.set_attn_implementation("sdpa")
    if not hasattr(bridge, "blocks"):
        raise InputError(f"{asked}: TransformerLens finds no stack of layers in this model ({config.model_type})")
    if loading.missing:
        raise InputError(
            f"{asked}: its files lack the weights {listed(loading.missing)}, which would be random: "
            "get the model again, whole"
        )
    if loading.beyond:
        raise InputError(
            f"{asked}: its files have the weights {listed(loading.beyond)}, and the model of its config.json has fewer "
            "layers or parts: the two do not belong together. Get both again, from one source"
        )
    unused = [f"its files have weights that it does not use: {listed(loading.unused)}"] if loading.unused else []
    return bridge.eval(), unused


class _Loading:
    """Loads in the place of the class of transformers that a model is of, and keeps what that says of its weights.

    A control's weights are shuffled here, before TransformerLens makes copies of parts of some.
    """

    def __init__(self, config: Any, control: str | None):
        self.model_class = get_hf_model_class_for_architecture(determine_architecture_from_hf_config(config))
        self.control = control
        self.missing: list[str] = []
        self.beyond: list[str] = []  # of layers that the configuration lacks
        self.unused: list[str] = []  # of other parts, as a head for another task

    def from_pretrained(self, name: str, **settings: Any) -> PreTrainedModel:
        model, facts = self.model_class.from_pretrained(name, output_loading_info=True, **settings)
        self.missing = sorted(facts["missing_keys"])
        forms = {numberless(key) for key in model.state_dict()}
        for key in sorted(facts["unexpected_keys"]):
            form = numberless(key)
            repeated = "#" in form and any(f".{known}".endswith(f".{form}") for known in forms)
            (self.beyond if repeated else self.unused).append(key)
        return shuffled(model) if self.control else model


def numberless(key: str) -> str:
    return re.sub(r"\d+", "#", key)


def shuffled(model: Any) -> Any:
    """The model with the entries of each matrix and embedding permuted, the same way each time.

    A control: each tensor keeps its distribution, and nothing of what was learned (after Heap et al. 2025, arXiv
    2501.17727, who draw from a normal one). Vectors stay: norms' gains and biases hold no more than a scale each, and
    keep activations at their size.
    """
    rng = np.random.default_rng(SHUFFLE_SEED)
    with torch.no_grad():
        for parameter in model.parameters():  # of tied weights each once
            if parameter.ndim > 1:
                order = torch.from_numpy(rng.permutation(parameter.numel()))
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return model


def listed(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@contextmanager
def _quietly() -> Iterator[None]:
    """Loads without the libraries' bars and notes; a download's bar stays where a person sees it."""
    logger = logging.getLogger("transformers.modeling_utils")
    level, bars = logger.level, transformers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    if sys.stderr.isatty():
        enable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
