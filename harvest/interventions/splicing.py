"""A dictionary in the place of an activation: its reconstruction replaces the activation whenever the model runs.

Shapes: W windows, T tokens per window, P positions that are replaced, D width of the activation, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from harvest.errors import InputError
from harvest.flags import nearest
from harvest.interventions.loss_recovered import same
from harvest.model.language_model import LanguageModel, by_head, with_head
from harvest.torch_sae import TorchSAE

Hooks = list[tuple[str, Callable[..., torch.Tensor | None]]]


@dataclass(repr=False)
class Splice:
    """What the dictionary gave in the latest run of the model. Both are part of the graph of its output.

    Without the error term, the output does not depend on `error_WxPxD`.
    """

    features_WxPxF: torch.Tensor | None = None  #: the feature values at the replaced positions
    error_WxPxD: torch.Tensor | None = None  #: the activation less its reconstruction

    def __repr__(self) -> str:
        if self.features_WxPxF is None:
            return "Splice(the model has not run)"
        windows, positions, features = self.features_WxPxF.shape
        return f"Splice({features:,} features at {positions:,} positions of {windows:,} windows)"


@contextmanager
def spliced(
    model: TransformerBridge | LanguageModel,
    sae: Any,
    *,
    hook_name: str | None = None,
    error_term: bool = False,
    first_position: int | None = None,
) -> Iterator[Splice]:
    """A context in which a dictionary replaces the activation that it reads, at its own hook point or at `hook_name`.

    `sae` is a loaded SAE, or a module made by its `to_torch`, whose weights then get gradients, too. With the error
    term, the reconstruction error is added again, so the output of the model and its gradient stay as they are, but
    depend on `features_WxPxF` and `error_WxPxD` of the yielded object. Positions before `first_position` are not
    replaced; by default, these are the ones that the dictionary was not trained on. The model has to read whole
    windows, because positions are not known if it has a cache of keys and values.

    Raises InputError for a hook that the model lacks, does not run once in each run, or that cannot be replaced, for
    activations of another width than that of the dictionary, and for arguments of other types.
    """
    bridge = model.bridge if isinstance(model, LanguageModel) else model
    if not isinstance(bridge, TransformerBridge):
        raise InputError(f"spliced needs a TransformerBridge or a run's language_model first, not {kind_of(model)}")
    if not isinstance(sae, TorchSAE) and not hasattr(sae, "to_torch"):
        raise InputError(f"spliced cannot use {kind_of(sae)}: give what sae_jax.load returns, or its to_torch()")
    module: TorchSAE = sae if isinstance(sae, TorchSAE) else sae.to_torch().requires_grad_(False)
    first = module.first_position if first_position is None else first_position
    if not isinstance(first, int) or first < 0:
        raise InputError(f"first_position={first!r} is no position: give a whole number, 0 or more")
    point = hook_name or module.hook_name
    if point is None or point not in bridge.hook_dict:
        trouble = "the files of the dictionary do not name its hook" if point is None else f"no hook point {point}"
        near = nearest(point or "", bridge.hook_dict) or ": give it, such as blocks.0.hook_resid_pre"
        raise InputError(f"{bridge.cfg.model_name}, hook_name: {trouble}{near}")
    splice, calls = Splice(), 0

    def reconstructed(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        rows = x[:, first:]
        if module.head is not None and rows.ndim > 2:
            heads = rows if rows.shape[-1] % module.d_in else by_head(rows, module.d_in)
            rows = heads[:, :, module.head : module.head + 1]  # of another width, or empty, in another model
        if rows.ndim < 3 or not rows.shape[1] or (rows_WxPxD := rows.float().flatten(2)).shape[2] != module.d_in:
            raise InputError(
                f"{point}: a dictionary of width {module.d_in} cannot replace an activation of shape {list(x.shape)} "
                f"from position {first} on: use the model that it was trained on, and windows without a cache of keys "
                "and values"
            )
        f_WxPxF = module.on(x.device).encode(rows_WxPxD)
        new_WxPxD = module.reconstruct(rows_WxPxD, f_WxPxF)
        splice.features_WxPxF, splice.error_WxPxD = f_WxPxF, rows_WxPxD - new_WxPxD
        new = new_WxPxD.view(rows.shape).to(x.dtype)
        if error_term:
            splice.features_WxPxF = f_WxPxF.clone()  # apart from the error, or its gradient would cancel theirs
            whole_WxPxD = module.reconstruct(rows_WxPxD, splice.features_WxPxF) + splice.error_WxPxD
            # The sum differs from x by rounding, so only its gradient is used.
            new = rows.detach() + (whole_WxPxD - whole_WxPxD.detach()).view(rows.shape).to(x.dtype)
        if module.head is not None:  # the other heads stay as they are
            new = with_head(heads, new, module.head).reshape(x[:, first:].shape)
        return torch.cat([x[:, :first], new], 1)

    def begin(*_: Any) -> None:
        nonlocal calls
        calls = 0

    def end(*_: Any) -> None:
        if calls != 1:
            raise InputError(f"{point}: this model runs it {calls} times in each run, not once: choose another hook")

    whole = bridge.original_model
    handles = [whole.register_forward_pre_hook(begin), whole.register_forward_hook(end)]
    try:
        with bridge.hooks(fwd_hooks=change_hooks(point, reconstructed)):
            yield splice
    finally:
        for handle in handles:
            handle.remove()


def kind_of(value: Any) -> str:
    return f"{value!r}" if isinstance(value, str) else f"an object of type {type(value).__name__}"


def change_hooks(point: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Hooks:
    """The hooks that apply `change` to the activation at a hook point.

    TransformerLens' resid_mid is only the input of the norm, while the residual stream bypasses it. For resid_mid, the
    difference is therefore added to the output of attention. Running them raises InputError if resid_mid does not
    become the changed one, as in models that normalize the sum.
    """
    if not point.endswith(".hook_resid_mid"):
        return [(point, lambda x, hook: change(x))]
    before, attention = (point.replace("resid_mid", name) for name in ("resid_pre", "attn_out"))
    seen: dict[str, torch.Tensor] = {}

    def add(x: torch.Tensor, hook: Any) -> torch.Tensor:
        middle = seen["before"].to(x.device) + x
        seen["changed"] = change(middle)
        return x + (seen["changed"] - middle)

    def compare(x: torch.Tensor, hook: Any) -> None:
        if not (x - seen["changed"]).abs().max() <= same(x.dtype) * x.abs().max():
            raise InputError(f"{point}: in this model it is not resid_pre + attn_out: choose another hook")

    return [(before, lambda x, hook: seen.update(before=x)), (attention, add), (point, compare)]
