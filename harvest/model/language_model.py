"""A language model in TransformerLens, and its activations.

Shapes: W windows, T tokens per window, D width of the model, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from harvest.errors import InputError
from harvest.flags import nearest
from harvest.model.library_errors import explained
from harvest.model.loading import listed, load_bridge, values_of
from harvest.model.number_format import few_roundings
from harvest.model.tokenizer import begin_of_text, load_tokenizer
from harvest.request import HOOKS, STREAMS, Site
from harvest.sources import place_of

# An encoder is recognized by the change of logits, relative to the largest, from a later token in a text of 8 tokens.
BOTH_WAYS, BOTH_WAYS_TOKENS = 1e-4, 8


class LanguageModel:
    """A language model in one number format and with the published weights (nothing folded).

    Every text runs behind the tokens `bos`, which are none if the model was trained without. They are not part of the
    text: tokens, activations and logits that are passed in or returned do not contain them.

    Tokens are passed to it on `device`. If it is spread over several devices, so are the values at its hooks.

    `notes` are messages for the user. Errors of transformers, TransformerLens and torch while it loads or runs become
    an InputError (`explained`).
    """

    def __init__(self, bridge: TransformerBridge, notes: Sequence[str] = (), bos: Sequence[int] = ()):
        self.bridge, self.notes, self.bos = bridge, tuple(notes), tuple(bos)
        self.tokenizer, self._one_thread = bridge.tokenizer, threading.RLock()
        self.n_layers: int = bridge.cfg.n_layers
        self.d_model: int = bridge.cfg.d_model
        self.d_z: int = bridge.cfg.n_heads * bridge.cfg.d_head
        self.name: str = bridge.cfg.model_name
        weight = next(bridge.original_model.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        if weight.is_meta:  # on disk, and read when it is used
            self.device = torch.device("cpu")

    @classmethod
    def load(
        cls,
        location: str,
        device: str = "auto",
        control: str | None = None,
        bos: str = "auto",
        dtype: str = "float32",
    ) -> LanguageModel:
        """Load a model from a hub name, an alias or a local directory to where --device would."""
        bridge, notes = load_bridge(location, device, control, dtype)
        # The bridge's own tokenizer begins every text with BOS, also for models that were trained without it.
        return cls(bridge, notes, begin_of_text(load_tokenizer(location), bos, location))

    @classmethod
    def of_store(cls, manifest: Mapping[str, Any], device: str = "auto", location: str | None = None) -> LanguageModel:
        """Load the model that the rows of a store come from, as it ran for them."""
        location = location or place_of("model", manifest["model"])
        bos, dtype = "on" if manifest.get("bos") else "off", manifest.get("model_dtype", "float32")
        return cls.load(location, device, manifest.get("control"), bos, dtype)

    def __repr__(self) -> str:
        size = f"{self.n_layers} layers, {self.d_model:,} wide, {self.vocabulary:,} tokens"
        return f"LanguageModel({self.name}: {size}, in {self.dtype_name} on {self.places})"

    @property
    def places(self) -> str:
        """The devices that hold its weights, in words."""
        placed = getattr(self.bridge.original_model, "hf_device_map", None) or {"": self.device}
        names = dict.fromkeys(f"cuda:{place}" if isinstance(place, int) else f"{place}" for place in placed.values())
        return " and ".join(names)

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def activations(self, tokens_WxT: np.ndarray, sites: Sequence[Site]) -> dict[Site, np.ndarray]:
        """Activations at sites, float32 [W, T, D] each, from one run that stops after the last site.

        Raises InputError as `check` and `activation` do, and if a library fails.
        """
        self.check(sites)
        activations: dict[Site, np.ndarray] = {}

        def read(x_WxTxD: torch.Tensor, hook, into: Site) -> None:
            x_WxTxD = self.activation(x_WxTxD, into)
            if x_WxTxD.shape[:2] != tokens.shape:  # such as the patterns of attention
                raise InputError(
                    f"--hook {into.hook}: the value in layer {into.layer} of {self.name} (shape {list(x_WxTxD.shape)}) "
                    "is not an activation per token: choose another hook"
                )
            x_WxTxD = x_WxTxD[:, len(self.bos) :]
            activations[into] = x_WxTxD.to("cpu", torch.float32, copy=True).numpy()
            if len(activations) == len(sites):
                raise _AllRead

        readers = [(site.hook_name, partial(read, into=site)) for site in sites]
        tokens, below = self.behind_bos(self.token_ids(tokens_WxT)), max(site.layer for site in sites)
        below = self.n_layers if any(site.hook == "final" for site in sites) else below
        with (
            self.running(sites),
            torch.inference_mode(),
            self.as_written(sites, below),
            self.bridge.hooks(fwd_hooks=readers),
            suppress(_AllRead),
        ):
            self.bridge(tokens, return_type=None, use_cache=False)
        for site in sites:
            if site not in activations:
                raise InputError(
                    f"--hook {site.hook}: {self.name} does not run this point in layer {site.layer}: "
                    "choose another hook"
                )
        return activations

    def check(self, sites: Sequence[Site]) -> None:
        """Raise InputError for a hook that this model lacks, such as resid_mid if attention and MLP are parallel."""
        for site in sites:
            if site.hook_name not in self.bridge.hook_dict:
                other = "" if site.heads in HOOKS else nearest(site.hook_name, self.bridge.hook_dict)
                raise InputError(
                    f"--hook {site.hook}: {self.name} has no such point in layer {site.layer}"
                    f"{other or ': choose another hook'}"
                )

    def activation(self, x_WxTxD: Any, site: Site) -> torch.Tensor:
        """The value at a hook, [W, T, D], with attention heads side by side.

        Raises InputError unless it is an activation per token, which is as wide as the model in the residual stream.
        """
        is_tensor = isinstance(x_WxTxD, torch.Tensor)
        if is_tensor and x_WxTxD.ndim in (3, 4) and site.head is not None:
            x_WxTxD = by_head(x_WxTxD, self.bridge.cfg.d_head)
            if site.head >= (heads := x_WxTxD.shape[2]):
                raise InputError(
                    f"--head {site.head}: must be 0 to {heads - 1}, the heads of {site.heads} in {self.name}"
                )
            return x_WxTxD[:, :, site.head]
        if is_tensor and x_WxTxD.ndim == 4 and site.hook not in STREAMS:
            x_WxTxD = x_WxTxD.flatten(2)
        if not is_tensor or x_WxTxD.ndim != 3 or (site.hook in STREAMS and x_WxTxD.shape[-1] != self.d_model):
            what = f"shape {list(x_WxTxD.shape)}" if is_tensor else type(x_WxTxD).__name__
            width = f"of width {self.d_model} " if site.hook in STREAMS else ""
            raise InputError(
                f"--hook {site.hook}: the value in layer {site.layer} of {self.name} ({what}) is not an activation "
                f"{width}per token: choose another hook"
            )
        return x_WxTxD

    def put_back(self, x: torch.Tensor, new_WxTxD: torch.Tensor, site: Site) -> torch.Tensor:
        """The value at a hook with another activation, from `activation`; other heads stay as they are."""
        new_WxTxD = new_WxTxD.to(x)
        if site.head is not None:
            new_WxTxD = with_head(by_head(x, self.bridge.cfg.d_head), new_WxTxD[:, :, None], site.head)
        return new_WxTxD.reshape(x.shape)  # with the heads apart, if there are heads

    def module_of(self, site: Site) -> str | None:
        """The module of transformers whose input or output is the activation at a site, if TransformerLens knows it."""
        points, joint = self.bridge.hook_dict, f"blocks.{site.layer}.attn.qkv"  # as in GPT-2
        if site.heads in ("q", "k", "v") and f"{joint}.hook_out" in points:
            return f"part of the output of {self.bridge.adapter.translate_transformer_lens_path(joint)}"
        for name, end in ((name, end) for end in ("in", "out") for name in points):
            component = name.removesuffix(f".hook_{end}")
            if component != name and points[name] is points[site.hook_name]:
                with suppress(ValueError, KeyError):
                    return f"{end}put of {self.bridge.adapter.translate_transformer_lens_path(component)}"
        return None

    @contextmanager
    def running(self, sites: Sequence[Site] = ()) -> Iterator[None]:
        """The context in which the model or a part of it runs, in one thread at a time; explains errors of libraries.

        Hooks, and weights that are read from the disk, are those of the model and not of a thread.
        """
        points = f" at {listed([site.hook_name for site in sites])}" if sites else ""
        what = f"{self.name}: transformers, TransformerLens or torch cannot run this model{points}"
        with self._one_thread, explained(what):
            yield

    @cached_property
    def reads_both_ways(self) -> bool:
        """Whether a token changes the output at earlier positions, as in an encoder. Tested by changing a token."""
        special = set(self.tokenizer.all_special_ids)
        usual = [token for token in range(self.vocabulary) if token not in special][: BOTH_WAYS_TOKENS + 1]
        tokens_2xT = np.array([usual[:-1], [*usual[:-2], usual[-1]]])
        with self.running(), torch.inference_mode(), self.as_written([], self.n_layers):
            logits_2xTxV = self.bridge(self.token_ids(tokens_2xT), return_type="logits", use_cache=False).float()
        change = (logits_2xTxV[0] - logits_2xTxV[1])[:-1].abs().max()
        return bool(change > max(BOTH_WAYS, few_roundings(self.dtype)) * logits_2xTxV.abs().max())

    def need_next_token(self, what: str) -> None:
        """Raise InputError for a model that reads both ways, because it does not predict the next token."""
        if self.reads_both_ways:
            raise InputError(
                f"{self.name} is an encoder: each of its positions sees the whole text, including the next token, so "
                f"it does not predict the next token. {what} needs a model that reads from left to right. SAEs of an "
                "encoder can be trained and evaluated without it"
            )

    @property
    def vocabulary(self) -> int:
        """The number of tokens that have an embedding."""
        model: Any = self.bridge.original_model
        with self.running():
            return model.get_input_embeddings().weight.shape[0]

    def check_tokens(self, tokens_WxT: np.ndarray) -> None:
        """Raise InputError for tokens without an embedding."""
        if tokens_WxT.size and not 0 <= tokens_WxT.min() <= tokens_WxT.max() < self.vocabulary:
            raise InputError(
                f"{self.name}: token {tokens_WxT.max():,} is in the text, but the model has embeddings of only "
                f"{self.vocabulary:,} tokens. The tokenizer, or the data set if it holds token ids, belongs to another "
                "model: use those of this model"
            )

    def token_ids(self, tokens_WxT: np.ndarray) -> torch.Tensor:
        self.check_tokens(tokens_WxT)
        return torch.from_numpy(tokens_WxT.astype(np.int64)).to(self.device)

    def behind_bos(self, tokens_WxT: torch.Tensor) -> torch.Tensor:
        """The tokens with BOS in front of each window."""
        bos_WxT = torch.tensor(self.bos, dtype=tokens_WxT.dtype, device=tokens_WxT.device).expand(len(tokens_WxT), -1)
        return torch.cat([bos_WxT, tokens_WxT], 1)

    @property
    def longest(self) -> int:
        """The largest number of tokens of a text that the model can read."""
        return self.bridge.cfg.n_ctx - len(self.bos)

    def weights_hash(self) -> str:
        """A hash of the parameters, independent of their files and device."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in values_of(self.bridge):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
        return digest.hexdigest()

    def tokenizer_hash(self) -> str:
        """A hash of the numbers of all tokens."""
        facts = self.tokenizer.get_vocab()
        return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()

    @contextmanager
    def as_written(self, sites: Sequence[Site], below: int) -> Iterator[None]:
        """A context in which blocks below a layer run with the code of transformers, except blocks with hooks inside.

        This is faster: TransformerLens computes attention and norms step by step to have hooks inside, which is 5 to
        15% slower (measured).
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


def by_head(x: torch.Tensor, width: int) -> torch.Tensor:
    """Attention heads of a width, [W, T, heads, width], from such a value or from heads side by side."""
    return x if x.ndim == 4 else x.unflatten(-1, (-1, width))


def with_head(x_WxTxHxD: torch.Tensor, new_WxTx1xD: torch.Tensor, head: int) -> torch.Tensor:
    """Attention heads of which one is replaced."""
    before, _, behind = x_WxTxHxD.tensor_split([head, head + 1], 2)
    return torch.cat([before, new_WxTx1xD, behind], 2)


class _AllRead(Exception):
    """Stops a run of the model after the last requested activation was read."""
