"""A language model by TransformerLens: load it, read its activations.

Shapes: W windows, T tokens a window, D width of the model.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import enable_progress_bars
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from harvest.errors import InputError
from harvest.request import Site
from harvest.sources import official_name

SHUFFLE_SEED = 0


class LanguageModel:
    """A causal language model on one device, in float32 and with the weights as published (nothing folded)."""

    def __init__(self, bridge: TransformerBridge):
        self.bridge = bridge
        self.tokenizer = bridge.tokenizer
        self.n_layers: int = bridge.cfg.n_layers
        self.d_model: int = bridge.cfg.d_model
        self.device = next(bridge.original_model.parameters()).device

    @classmethod
    def load(cls, location: str, device: str | None = None, control: str | None = None) -> LanguageModel:
        """From a hub name, an alias or a local directory, to `device` (cuda where there is one).

        With the control "random-weights" its weights are `shuffled`.
        Raises InputError, with the reason, for a model that cannot be loaded or whose files lack weights.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            with _quietly() as reports:
                name, given = official_name(location), {}
                if control:  # before TransformerLens makes copies of parts of some weights
                    original: torch.nn.Module = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
                    given = {"hf_model": shuffled(original).to(device)}
                bridge = TransformerBridge.boot_transformers(name, device=device, **given)
                if getattr(bridge.cfg, "attn_implementation", None) is None:  # it needs no eager attention here
                    model: Any = bridge.original_model
                    with suppress(ValueError):  # a model that has no other stays eager
                        model.set_attn_implementation("sdpa")
        except Exception as error:  # of many libraries: the hub's client, the formats' readers, the model's own code
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"--model-name {location}: the model cannot be loaded: {reason}") from error
        if missing := _missing_weights(reports):
            raise InputError(
                f"--model-name {location}: its files lack the weights {', '.join(missing)}, which would be random: "
                "get the model again, whole"
            )
        return cls(bridge.eval())

    def activations(self, tokens_WxT: np.ndarray, sites: Sequence[Site]) -> dict[Site, np.ndarray]:
        """Activations at sites, float32 [W, T, D] each, by one run; nothing behind the last of them is computed.

        Raises InputError as `check` does.
        """
        self.check(sites)
        found: dict[Site, np.ndarray] = {}

        def read(x_WxTxD: torch.Tensor, hook, into: Site) -> None:
            found[into] = x_WxTxD.to("cpu", torch.float32, copy=True).numpy()
            if len(found) == len(sites):
                raise _AllRead

        readers = [(site.hook_name, partial(read, into=site)) for site in sites]
        tokens, below = self.token_ids(tokens_WxT), max(site.layer for site in sites)
        with (
            torch.inference_mode(),
            self.as_written(sites, below),
            self.bridge.hooks(fwd_hooks=readers),
            suppress(_AllRead),
        ):
            self.bridge(tokens, return_type=None, use_cache=False)
        return found

    def check(self, sites: Sequence[Site]) -> None:
        """Raises InputError for a hook that this model lacks (resid_mid, where attention and MLP are parallel)."""
        for site in sites:
            if site.hook_name not in self.bridge.hook_dict:
                name = self.bridge.cfg.model_name
                raise InputError(f"--hook {site.hook}: {name} has no such point in layer {site.layer}")

    def token_ids(self, tokens_WxT: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(tokens_WxT.astype(np.int64)).to(self.device)

    def weights_hash(self) -> str:
        """The same for the same parameters, whichever files or device they are on."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.bridge.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
        return digest.hexdigest()

    def tokenizer_hash(self) -> str:
        """The same for tokenizers that give the tokens the same numbers."""
        facts = self.tokenizer.get_vocab()
        return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()

    @contextmanager
    def as_written(self, sites: Sequence[Site], below: int) -> Iterator[None]:
        """Blocks below a layer run as transformers wrote them, but for those that are hooked inside, at `sites`.

        That is faster: TransformerLens' own attention and norms are written out step by step to have hooks inside,
        5 to 15% slower (measured).
        """
        points, replaced = self.bridge.hook_dict, []
        for layer, block in enumerate(self.bridge.blocks[:below]):
            hooked = [points[site.hook_name] for site in sites if site.layer == layer]
            if not all(point is block.hook_in or point is block.hook_out for point in hooked):
                continue
            original = block.original_component
            for name, child in original.named_children():
                if isinstance(child, GeneralizedComponent) and child.original_component is not None:
                    replaced.append((original, name, child))
        try:
            for original, name, child in replaced:
                setattr(original, name, child.original_component)
            yield
        finally:
            for original, name, child in replaced:
                setattr(original, name, child)


def shuffled(model: torch.nn.Module) -> torch.nn.Module:
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


class _AllRead(Exception):
    """Every activation that was asked for has been read: the rest of the model need not run."""


class _Collecting(logging.Handler):
    def __init__(self, messages: list[str]):
        super().__init__()
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def _quietly() -> Iterator[list[str]]:
    """Loads without the libraries' bars and notes; a download's bar stays where a person sees it.

    Yields what transformers reports on the weights: it only warns of those that it had to make up.
    """
    reports: list[str] = []
    handler = _Collecting(reports)
    logger = logging.getLogger("transformers.modeling_utils")
    level, propagate, bars = logger.level, logger.propagate, transformers_logging.is_progress_bar_enabled()
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    transformers_logging.disable_progress_bar()
    if sys.stderr.isatty():
        enable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield reports
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
        if bars:
            transformers_logging.enable_progress_bar()


def _missing_weights(reports: list[str]) -> list[str]:
    rows = [line.split("|") for report in reports for line in report.splitlines() if "|" in line]
    return [cells[0].strip() for cells in rows if cells[1].strip() == "MISSING"]
