"""Text generation by a language model while an activation is changed, at the prompt and at new tokens.

Shapes: S samples, C directions, T tokens of the prompt, N new tokens (in `replace`: rows), D width of the model, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import NamedTuple

import numpy as np
import torch

from harvest.errors import InputError
from harvest.interventions.loss_recovered import PatchedForward, Replace, same
from harvest.interventions.splicing import change_hooks
from harvest.model.language_model import LanguageModel
from harvest.request import Site


class Written(NamedTuple):
    tokens_SxN: np.ndarray
    watched_SxN: np.ndarray  # total probability of the watched tokens when each token was drawn


class Change(NamedTuple):
    """A change of an activation: `replace` maps rows [N, D] at a site to new ones, from `first_position` on."""

    site: Site
    replace: Replace
    first_position: int


def write_texts(
    model: LanguageModel,
    prompt: Sequence[int] | np.ndarray,
    change: Change | None,
    new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    watched: Sequence[int] = (),
    cached: bool = True,
) -> Written:
    """Continue a prompt [T], or prompts of equal length [S, T], perhaps with an activation changed.

    Temperature 0 is greedy.
    Random numbers depend only on the seed, not on the change. With a cache of keys and values, only the newest token
    runs through the model and is changed. Probabilities of `watched` are at temperature 1. The end of a text is never
    drawn, so all samples have the same length. Raises InputError for an encoder, for an empty prompt, for a text that
    is longer than the context of the model, and for a model without a usable cache.
    """
    model.need_next_token("Writing text")
    prompt_SxT = np.atleast_2d(np.array(prompt, np.int64))
    length, longest, bos = prompt_SxT.shape[1], model.longest, len(model.bos)
    if not length:
        raise InputError("--prompt: it has no token: give at least one word")
    if length >= longest:
        raise InputError(f"--prompt: it has {length} tokens, but the model takes {longest}: give a shorter one")
    if length + new_tokens > longest:
        raise InputError(
            f"--max-new-tokens {new_tokens}: must be at most {longest - length}, because the prompt has "
            f"{length} tokens and the model takes {longest}"
        )
    original = model.bridge.original_model
    takes = signature(original.forward).parameters
    cache_name = next((name for name in ("cache", "past_key_values") if name in takes), None)
    if cached and cache_name is None:
        raise InputError(
            f"{model.name} takes no cache of keys and values, which is needed to write text: use another model"
        )
    generator = torch.Generator().manual_seed(seed)
    tokens_SxT = model.behind_bos(model.token_ids(prompt_SxT))
    cache, start, new, mass = None, 0, [], []  # `start`: position of the first token that runs now

    def changed(x: torch.Tensor, change: Change) -> torch.Tensor:
        x_SxTxD, untouched = model.activation(x, change.site), max(0, bos + change.first_position - start)
        if untouched >= x_SxTxD.shape[1]:
            return x
        rows_SxTxD, y_SxTxD = x_SxTxD[:, untouched:], x_SxTxD.clone()
        new_NxD = change.replace(rows_SxTxD.flatten(0, 1).float().cpu().numpy())
        y_SxTxD[:, untouched:] = torch.from_numpy(new_NxD).view(rows_SxTxD.shape).to(y_SxTxD)
        return model.put_back(x, y_SxTxD, change.site)

    in_context = model.as_written([], model.n_layers)
    if change:
        in_context = changing(model, change.site, partial(changed, change=change))
    with model.running([change.site] if change else []), torch.inference_mode(), in_context:
        for step in range(new_tokens):
            past = {cache_name: cache} if cache_name and cached else {}
            output = original(input_ids=tokens_SxT[:, start:], use_cache=cached, **past)
            logits_SxV = output.logits[:, -1].float().cpu()
            if cached and step == 1:
                start = 0
                whole_SxV = original(input_ids=tokens_SxT, use_cache=False).logits[:, -1].float().cpu()
                if not (logits_SxV - whole_SxV).abs().max() <= same(model.dtype) * whole_SxV.abs().max():
                    where = f"{change.site.hook_name} of " if change else ""
                    raise InputError(
                        f"{where}{model.name}: a cache of keys and values changes the output of this model: use "
                        "another model"
                    )
            if cache_name and cached:
                cache, start = getattr(output, cache_name), tokens_SxT.shape[1]
            mass.append(logits_SxV.softmax(-1)[:, list(watched)].sum(-1))
            if (end := model.tokenizer.eos_token_id) is not None:
                logits_SxV[:, end] = -torch.inf
            new.append(draw(logits_SxV, temperature, top_p, generator))
            tokens_SxT = torch.cat([tokens_SxT, new[-1][:, None].to(model.device)], 1)
    return Written(torch.stack(new, 1).numpy(), torch.stack(mass, 1).numpy())


def draw(logits_SxV: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator) -> torch.Tensor:
    """The next tokens [S], drawn from the smallest set of likeliest tokens with a total probability of `top_p`."""
    if temperature == 0:
        return logits_SxV.argmax(-1)
    p_SxV, order_SxV = (logits_SxV / temperature).softmax(-1).sort(descending=True, stable=True)
    p_SxV = p_SxV * (p_SxV.cumsum(-1) - p_SxV < top_p)
    return order_SxV.gather(1, torch.multinomial(p_SxV, 1, generator=generator))[:, 0]


@contextmanager
def changing(model: LanguageModel, site: Site, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """A context in which `change` is applied to the activation at a site.

    Raises InputError for a hook that the model lacks.
    """
    model.check([site])
    attention_parts = [part for part in [model.bridge.blocks[site.layer]._modules.get("attn")] if part is not None]
    renamed = [part.register_forward_pre_hook(cache_renamed, with_kwargs=True) for part in attention_parts]
    try:
        with (
            model.as_written([site], model.n_layers),
            model.bridge.hooks(fwd_hooks=change_hooks(site.hook_name, change)),
        ):
            yield
    finally:
        for handle in renamed:
            handle.remove()


def cache_renamed(part: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Rename the argument `cache` of transformers 5.24 to the old name that TransformerLens 4.3 expects.

    Otherwise the attention would not see earlier tokens.
    """
    return args, {"past_key_values" if name == "cache" else name: value for name, value in kwargs.items()}


def surprise(model: LanguageModel, prompt_T: Sequence[int], tokens_SxN: np.ndarray) -> np.ndarray:
    """−log p of each token after the prompt under the unchanged model, in nats [S, N]. InputError for an encoder."""
    model.need_next_token("The perplexity of a text")
    prompts_SxT = np.tile(np.array(prompt_T), (len(tokens_SxN), 1))
    tokens = model.token_ids(np.concatenate([prompts_SxT, tokens_SxN], 1))
    with model.running(), torch.inference_mode():
        logits_SxTxV = model.bridge(model.behind_bos(tokens), return_type="logits", use_cache=False)
        logits_SxTxV = logits_SxTxV[:, len(model.bos) + len(prompt_T) - 1 : -1].float()
    return -logits_SxTxV.log_softmax(-1).gather(-1, tokens[:, len(prompt_T) :, None])[..., 0].cpu().numpy()


def next_probabilities(
    model: LanguageModel, prompt_T: Sequence[int], site: Site, added_CxD: np.ndarray, first_position: int
) -> np.ndarray:
    """Probabilities of the token after a prompt [C, V], with each direction added from `first_position` on."""
    model.need_next_token("Steering")
    run = PatchedForward(model, model.token_ids(np.tile(np.array(prompt_T), (len(added_CxD), 1))), site)
    x_CxTxD = run.activation_WxTxD.clone()
    x_CxTxD[:, first_position:] += torch.from_numpy(added_CxD)[:, None]
    return run.run_with(x_CxTxD)[:, -1].softmax(-1).cpu().numpy()
