"""The loss of a language model if an activation is replaced: cross-entropy, and KL to the unchanged model.

A batch of windows runs once through the whole model. For each replacement, only the layers after the site run again;
the ones before it return their earlier results. (`start_at_layer` of TransformerLens 4.3 also runs the blocks before.)

Shapes: W windows, T tokens per window, P positions of a window that are used, N rows, D width of the model, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from harvest.errors import InputError
from harvest.model.language_model import LanguageModel
from harvest.model.number_format import few_roundings
from harvest.request import Site

BATCH_TOKENS, BATCH_LOGITS = 2048, 1 << 25  # at most, per batch
SAME_KL, SAME = 1e-4, 1e-3  # least tolerances for rounding: in nats, and relative to the largest value

PARTS = {  # hook: the parts of its block that need not run again
    "attn_out": ["attn"],
    "resid_mid": ["attn"],
    "mlp_in": ["attn"],
    "mlp_post": ["attn"],
    "mlp_out": ["attn", "mlp"],
}

Replace = Callable[[np.ndarray], np.ndarray]  # rows [N, D] to rows [N, D], float32


class Losses(NamedTuple):
    """Means over the used positions of each window, in nats."""

    ce_W: np.ndarray  # cross-entropy of the next token
    kl_W: np.ndarray  # KL(unchanged model ‖ changed model)


def losses(
    model: LanguageModel,
    tokens_WxT: np.ndarray,
    site: Site,
    replacements: Mapping[str, Replace],
    first_position: int = 1,
    kept_WxP: np.ndarray | None = None,
    on_tokens: Callable[[int], None] = lambda n: None,
) -> tuple[Losses, dict[str, Losses]]:
    """(losses of the unchanged model, losses with each replacement).

    Positions from `first_position` on are replaced, or only those of them that `kept_WxP` keeps. The means are over all
    positions from `first_position` on, as SAELens does for dictionaries (its zero ablation also covers special tokens).
    The cross-entropy of a position is that of the token after it. `on_tokens` is called with the number of tokens that
    were run through the layers after the site.

    Raises InputError for an encoder, for a hook that the model lacks or that cannot be replaced, and for a replacement
    that is not finite.
    """
    model.need_next_token("Cross-entropy recovered")
    if tokens_WxT.shape[1] - first_position < 2:
        raise InputError(f"windows of {tokens_WxT.shape[1]} tokens have no next token to predict: use longer windows")
    clean: list[Losses] = []
    replaced: dict[str, list[Losses]] = {name: [] for name in replacements}
    batch = batch_windows(model, tokens_WxT.shape[1])
    for start in range(0, len(tokens_WxT), batch):
        tokens = model.token_ids(tokens_WxT[start : start + batch])
        run = PatchedForward(model, tokens, site)
        logp_WxPxV = run.logits_WxTxV[:, first_position:].log_softmax(-1)
        targets_WxPx1 = tokens[:, first_position + 1 :, None]
        clean.append(window_losses(logp_WxPxV, logp_WxPxV, targets_WxPx1))
        if not start:
            run.check(logp_WxPxV, first_position)
        rows_WxPxD = run.activation_WxTxD[:, first_position:]
        kept = torch.ones(rows_WxPxD.shape[:2], dtype=torch.bool)
        if kept_WxP is not None:
            kept = torch.from_numpy(kept_WxP[start : start + batch])
        rows_NxD = rows_WxPxD[kept].numpy()
        for name, replace in replacements.items():
            new_NxD = np.array(replace(rows_NxD), np.float32)
            if not np.isfinite(new_NxD).all():
                raise InputError(f"{name}: its reconstruction at {site.hook_name} is not finite: leave it out")
            x_WxTxD = run.activation_WxTxD.clone()
            x_WxTxD[:, first_position:][kept] = torch.from_numpy(new_NxD)
            new_logp_WxPxV = run.run_with(x_WxTxD)[:, first_position:].log_softmax(-1)
            replaced[name].append(window_losses(new_logp_WxPxV, logp_WxPxV, targets_WxPx1))
            on_tokens(tokens.numel())
    return joined(clean), {name: joined(parts) for name, parts in replaced.items()}


def same(dtype: torch.dtype) -> float:
    """The tolerance for rounding of values in this number format, relative to the largest value."""
    return max(SAME, few_roundings(dtype))


def joined(parts: list[Losses]) -> Losses:
    return Losses(*map(np.concatenate, zip(*parts, strict=True)))


def batch_windows(model: LanguageModel, seq_len: int) -> int:
    """The number of windows per batch, bounded by the memory of their logits."""
    vocabulary = model.bridge.cfg.d_vocab
    return max(1, min(BATCH_TOKENS, BATCH_LOGITS // vocabulary) // seq_len)


def window_losses(logp_WxPxV: torch.Tensor, clean_logp_WxPxV: torch.Tensor, targets_WxPx1: torch.Tensor) -> Losses:
    ce_WxP = -logp_WxPxV[:, :-1].gather(-1, targets_WxPx1)[..., 0]
    kl_WxP = (clean_logp_WxPxV.exp() * (clean_logp_WxPxV - logp_WxPxV)).sum(-1)
    return Losses(*(values.double().mean(1).cpu().numpy() for values in (ce_WxP, kl_WxP)))


class PatchedForward:
    """A batch that runs once through the whole model, and then repeatedly from a site on with other activations.

    `logits_WxTxV` are those of the unchanged model. `activation_WxTxD` (float32, on the CPU) is that of the site.
    Neither contains BOS.
    """

    def __init__(self, model: LanguageModel, tokens: torch.Tensor, site: Site):
        model.check([site])
        self.model, self.tokens, self.site = model, model.behind_bos(tokens), site
        bridge, block = model.bridge, model.bridge.blocks[site.layer]
        self.blocks = list(bridge.blocks[: site.blocks_before(model.n_layers)])
        parts = PARTS.get(site.hook, [])
        point = bridge.hook_dict[site.hook_name]
        # A part that contains the hook point, other than as its output, has to run for the hook to be called.
        self.parts = [
            part
            for part in (block._modules[name] for name in parts if name in block._modules)
            if point is part.hook_out or all(point is not module for module in part.modules())
        ]
        self.outputs: dict[GeneralizedComponent, Any] = {}
        self.activation_WxTxD = self.at_bos_WxTxD = self.before_WxTxD = torch.empty(0)
        self.logits_WxTxV = self._first_run()[:, len(model.bos) :]

    def _first_run(self) -> torch.Tensor:
        seen: dict[str, torch.Tensor] = {}

        def see(x_WxTxD: torch.Tensor, hook, name: str) -> None:
            seen[name] = self.model.activation(x_WxTxD, self.site).to("cpu", copy=True)

        names = {"activation": self.site.hook_name}
        if self.site.hook == "resid_mid":
            names |= {name: self.site._replace(hook=name).hook_name for name in ("resid_pre", "attn_out")}
        hooks = [(point, lambda x, hook, name=name: see(x, hook, name)) for name, point in names.items()]
        keep = [
            part.register_forward_hook(lambda part, _, output: self.outputs.__setitem__(part, output))
            for part in (*self.blocks[-1:], *self.parts)
        ]
        try:
            logits = self._run(hooks)
        finally:
            for handle in keep:
                handle.remove()
        if lacking := names.keys() - seen:
            raise InputError(
                f"--hook {self.site.hook}: this model does not run {names[lacking.pop()]}: choose another hook"
            )
        self.at_bos_WxTxD, self.activation_WxTxD = seen["activation"].float().tensor_split([len(self.model.bos)], 1)
        if self.site.hook == "resid_mid":
            self.before_WxTxD = seen["resid_pre"]
            error_WxTxD = self.before_WxTxD + seen["attn_out"] - seen["activation"]
            if not error_WxTxD.abs().max() <= same(self.model.dtype) * seen["activation"].abs().max():
                raise InputError("--hook resid_mid: in this model it is not resid_pre + attn_out: choose another hook")
        return logits

    def run_with(self, x_WxTxD: torch.Tensor) -> torch.Tensor:
        """Logits [W, T, V] with another activation at the site, without running what is before the site.

        The logits have gradients if the activation requires them.
        """
        point, calls = self.site.hook_name, []
        x_WxTxD = torch.cat([self.at_bos_WxTxD.to(x_WxTxD), x_WxTxD], 1)
        if self.site.hook == "resid_mid":
            # TransformerLens' hook point is only the input of the norm, while the residual stream bypasses it. So the
            # output of attention is set instead, such that the stream and the input of the norm both become x.
            point, x_WxTxD = self.site._replace(hook="attn_out").hook_name, x_WxTxD - self.before_WxTxD

        def put(old_WxTxD: torch.Tensor, hook) -> torch.Tensor:
            calls.append(hook)
            return self.model.put_back(old_WxTxD, x_WxTxD, self.site)

        known = dict.fromkeys(self.blocks, self.outputs.get(self.blocks[-1])) if self.blocks else {}
        with frozen_outputs(known | {part: self.outputs[part] for part in self.parts}):
            logits = self._run([(point, put)], x_WxTxD.requires_grad)
        if len(calls) != 1:
            where = f"--hook {self.site.hook} of layer {self.site.layer}"
            raise InputError(
                f"{where}: this model cannot be run from there ({len(calls)} hook calls, not 1): choose another hook"
            )
        return logits[:, len(self.model.bos) :]

    def check(self, clean_logp_WxPxV: torch.Tensor, first_position: int) -> None:
        """Raise InputError if running from the site on with the unchanged activation changes the output."""
        logp_WxPxV = self.run_with(self.activation_WxTxD)[:, first_position:].log_softmax(-1)
        kl = float((clean_logp_WxPxV.exp() * (clean_logp_WxPxV - logp_WxPxV)).sum(-1).mean())
        if not abs(kl) < max(SAME_KL, few_roundings(self.model.dtype) ** 2):  # KL grows with the square of an error
            where = f"--hook {self.site.hook} of layer {self.site.layer}"
            raise InputError(
                f"{where}: running this model from there changes its output ({kl:.2g} nats): choose another hook"
            )

    def _run(self, hooks: list, gradients: bool = False) -> torch.Tensor:
        bridge = self.model.bridge
        with (
            self.model.running([self.site]),
            torch.set_grad_enabled(gradients),  # no inference mode, because its tensors cannot be used with gradients
            self.model.as_written([self.site], self.model.n_layers),
            bridge.hooks(fwd_hooks=hooks),
        ):
            return bridge(self.tokens, return_type="logits", use_cache=False).float()


@contextmanager
def frozen_outputs(outputs: Mapping[GeneralizedComponent, Any]) -> Iterator[None]:
    """A context in which these components return a given output, through their output hook, instead of computing."""

    def answer(component: GeneralizedComponent, output: Any) -> Any:
        if isinstance(output, tuple):
            return component.hook_out(output[0]), *output[1:]
        return component.hook_out(output)

    for component, output in outputs.items():
        # The __setattr__ of a component would set the attribute on the wrapped module.
        object.__setattr__(component, "forward", lambda *_, c=component, o=output, **__: answer(c, o))
    try:
        yield
    finally:
        for component in outputs:
            object.__delattr__(component, "forward")
