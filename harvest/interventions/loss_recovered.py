"""What a language model loses where an activation is replaced: cross-entropy, and KL to the unchanged model.

A batch of windows runs once through the model. For each replacement only what lies behind the site runs again: all
before it answers with what it had computed. (`start_at_layer` of TransformerLens 4.3 runs the blocks before it too.)

Shapes: W windows, T tokens a window, P positions of a window that count, N rows, D width of the model, V vocabulary.
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
from harvest.request import Site

BATCH_TOKENS, BATCH_LOGITS = 2048, 1 << 25  # at most, of a batch
SAME_KL, SAME = 1e-4, 1e-3  # nats, and share of the largest value: rounding, where nothing was replaced

Replace = Callable[[np.ndarray], np.ndarray]  # rows [N, D] to rows [N, D], float32


class Losses(NamedTuple):
    """Means over the positions of each window that count, in nats."""

    ce_W: np.ndarray  # of the next token
    kl_W: np.ndarray  # KL(unchanged model ‖ this)


def losses(
    model: LanguageModel,
    tokens_WxT: np.ndarray,
    site: Site,
    replacements: Mapping[str, Replace],
    first_position: int = 1,
    on_tokens: Callable[[int], None] = lambda n: None,
) -> tuple[Losses, dict[str, Losses]]:
    """(losses of the unchanged model, losses with each replacement).

    Positions from `first_position` on are replaced, and they are those that count, as SAELens neither replaces nor
    counts special tokens; a position's cross-entropy is that of the token behind it. `on_tokens` is told of every
    token that ran from the site on. Raises InputError for an encoder, for a hook that the model does not have or that
    cannot be replaced, and where a replacement is not finite.
    """
    model.need_next_token("Loss recovered")
    if tokens_WxT.shape[1] - first_position < 2:
        raise InputError(f"windows of {tokens_WxT.shape[1]} tokens have none whose next token can be predicted")
    clean: list[Losses] = []
    found: dict[str, list[Losses]] = {name: [] for name in replacements}
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
        rows_NxD = rows_WxPxD.reshape(-1, model.d_model).numpy()
        for name, replace in replacements.items():
            new_NxD = np.array(replace(rows_NxD), np.float32)
            if not np.isfinite(new_NxD).all():
                raise InputError(f"{name}: its reconstruction at {site.hook_name} is not finite")
            x_WxTxD = run.activation_WxTxD.clone()
            x_WxTxD[:, first_position:] = torch.from_numpy(new_NxD).view(rows_WxPxD.shape)
            new_logp_WxPxV = run.run_with(x_WxTxD)[:, first_position:].log_softmax(-1)
            found[name].append(window_losses(new_logp_WxPxV, logp_WxPxV, targets_WxPx1))
            on_tokens(tokens.numel())
    return joined(clean), {name: joined(parts) for name, parts in found.items()}


def joined(parts: list[Losses]) -> Losses:
    return Losses(*map(np.concatenate, zip(*parts, strict=True)))


def batch_windows(model: LanguageModel, seq_len: int) -> int:
    """As many windows at a time as their logits find room for."""
    vocabulary = model.bridge.cfg.d_vocab
    return max(1, min(BATCH_TOKENS, BATCH_LOGITS // vocabulary) // seq_len)


def window_losses(logp_WxPxV: torch.Tensor, clean_logp_WxPxV: torch.Tensor, targets_WxPx1: torch.Tensor) -> Losses:
    ce_WxP = -logp_WxPxV[:, :-1].gather(-1, targets_WxPx1)[..., 0]
    kl_WxP = (clean_logp_WxPxV.exp() * (clean_logp_WxPxV - logp_WxPxV)).sum(-1)
    return Losses(*(values.double().mean(1).cpu().numpy() for values in (ce_WxP, kl_WxP)))


class PatchedForward:
    """One batch, run whole at once, and then again only from a site on.

    `logits_WxTxV` are those of the unchanged model, `activation_WxTxD` (float32, on the CPU) is the site's.
    """

    def __init__(self, model: LanguageModel, tokens: torch.Tensor, site: Site):
        model.check([site])
        self.model, self.tokens, self.site = model, tokens, site
        bridge, block = model.bridge, model.bridge.blocks[site.layer]
        self.blocks = list(bridge.blocks[: site.layer + (site.hook == "resid_post")])
        parts = {"attn_out": ["attn"], "resid_mid": ["attn"], "mlp_out": ["attn", "mlp"]}.get(site.hook, [])
        point = bridge.hook_dict[site.hook_name]
        # A part around its hook point (and not with the point at its own end) has to run, for the hook to be met.
        self.parts = [
            part
            for part in (block._modules[name] for name in parts if name in block._modules)
            if point is part.hook_out or all(point is not module for module in part.modules())
        ]
        self.outputs: dict[GeneralizedComponent, Any] = {}
        self.activation_WxTxD = self.before_WxTxD = torch.empty(0)
        self.logits_WxTxV = self._first_run()

    def _first_run(self) -> torch.Tensor:
        seen: dict[str, torch.Tensor] = {}

        def see(x_WxTxD: torch.Tensor, hook, name: str) -> None:
            seen[name] = self.model.activation(x_WxTxD, self.site).clone()

        names = {"activation": self.site.hook_name}
        if self.site.hook == "resid_mid":
            names |= {name: self.site._replace(hook=name).hook_name for name in ("resid_pre", "attn_out")}
        hooks = [(at, lambda x, hook, name=name: see(x, hook, name)) for name, at in names.items()]
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
            raise InputError(f"--hook {self.site.hook}: this model does not pass {names[lacking.pop()]}")
        self.activation_WxTxD = seen["activation"].float().cpu()
        if self.site.hook == "resid_mid":
            self.before_WxTxD = seen["resid_pre"]
            self._same(self.before_WxTxD + seen["attn_out"], seen["activation"])
        return logits

    def run_with(self, x_WxTxD: torch.Tensor) -> torch.Tensor:
        """Logits [W, T, V] with another activation at the site; nothing before the site is computed.

        They carry gradients where the activation asks for them.
        """
        point, met = self.site.hook_name, []
        x_WxTxD = x_WxTxD.to(self.model.device)
        if self.site.hook == "resid_mid":
            # TransformerLens' point is the norm's input, which the residual stream goes past: what attention adds to
            # the stream is set, so that both are x.
            point, x_WxTxD = self.site._replace(hook="attn_out").hook_name, x_WxTxD - self.before_WxTxD

        def put(old_WxTxD: torch.Tensor, hook) -> torch.Tensor:
            met.append(hook)
            return x_WxTxD.to(old_WxTxD.dtype)

        known = dict.fromkeys(self.blocks, self.outputs.get(self.blocks[-1])) if self.blocks else {}
        with frozen_outputs(known | {part: self.outputs[part] for part in self.parts}):
            logits = self._run([(point, put)], x_WxTxD.requires_grad)
        if len(met) != 1:
            where = f"--hook {self.site.hook} of layer {self.site.layer}"
            raise InputError(f"{where}: this model cannot be run on from there ({len(met)} points to replace it at)")
        return logits

    def check(self, clean_logp_WxPxV: torch.Tensor, first_position: int) -> None:
        """Raises InputError where the model, run on from the site with its own activation, is not itself."""
        logp_WxPxV = self.run_with(self.activation_WxTxD)[:, first_position:].log_softmax(-1)
        kl = float((clean_logp_WxPxV.exp() * (clean_logp_WxPxV - logp_WxPxV)).sum(-1).mean())
        if not abs(kl) < SAME_KL:
            where = f"--hook {self.site.hook} of layer {self.site.layer}"
            raise InputError(f"{where}: this model, run on from there, is not itself ({kl:.2g} nats)")

    def _same(self, x_WxTxD: torch.Tensor, y_WxTxD: torch.Tensor) -> None:
        if not (x_WxTxD - y_WxTxD).abs().max() <= SAME * y_WxTxD.abs().max():
            raise InputError(f"--hook {self.site.hook}: in this model it is not what attention adds to resid_pre")

    def _run(self, hooks: list, gradients: bool = False) -> torch.Tensor:
        bridge = self.model.bridge
        with (
            self.model.running([self.site]),
            torch.set_grad_enabled(gradients),  # no inference mode: what was computed in it no gradient may pass
            self.model.as_written([self.site], self.model.n_layers),
            bridge.hooks(fwd_hooks=hooks),
        ):
            return bridge(self.tokens, return_type="logits", use_cache=False).float()


@contextmanager
def frozen_outputs(outputs: Mapping[GeneralizedComponent, Any]) -> Iterator[None]:
    """Meanwhile these components compute nothing: they answer with an output known before, through their last hook."""

    def answer(component: GeneralizedComponent, output: Any) -> Any:
        if isinstance(output, tuple):
            return component.hook_out(output[0]), *output[1:]
        return component.hook_out(output)

    for component, output in outputs.items():
        # Their own __setattr__ would hand it to the module that they wrap.
        object.__setattr__(component, "forward", lambda *_, c=component, o=output, **__: answer(c, o))
    try:
        yield
    finally:
        for component in outputs:
            object.__delattr__(component, "forward")
