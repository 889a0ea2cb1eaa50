"""Steering: text that a language model generates while one feature of a dictionary is changed, and its side effects.

    add     x + S·max·d               equals decode(f with f_i + S·max) + error; strength 0 adds nothing
    clamp   x + (S·max − f_i(x))·d    equals decode(f with f_i = S·max) + error
    ablate  x − f_i(x)·d              equals a clamp to 0

x is the activation, d the feature's decoder row, S the strength, and max the feature's largest activation over the
corpus (for abs_topk the one with the largest absolute value, which may be negative). The dictionary's error stays in x.
For comparison, a random direction and the difference in means, scaled to the norm of d, are added by the same amounts.

Shapes: N rows, W windows, T tokens, D width of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from analysis.features.contexts import token_texts
from harvest.errors import InputError
from harvest.flags import ABOVE_0, COUNT, NOT_NEGATIVE, NUMBER, TEXT, Flags, flag
from harvest.request import Site

if TYPE_CHECKING:
    from harvest.model.language_model import LanguageModel
    from harvest.store import ActivationStore
    from sae_jax.models.base import SAE

MODES, POSITIONS = ("add", "clamp", "ablate"), ("all", "generated")
FLUENT = 2.0  # largest factor by which a recommended strength may raise perplexity, or lower the distinct tokens
ROWS = 8192  # rows of a store that are read at a time
UNSTEERED, IN_PROMPT = "unsteered", "named in the prompt"

Amounts = Callable[[np.ndarray], np.ndarray]  # from rows [N, D] to how much of the direction is added to each [N]


@dataclass(frozen=True)
class Sampling(Flags):
    """How texts are generated."""

    prompt: tuple[str, ...] = flag(("I went for a walk and",), "one or several texts to continue", TEXT)
    max_new_tokens: int = flag(40, "number of tokens to generate for each text", COUNT)
    samples: int | None = flag(None, "texts per prompt (default: 4, or 1 if the temperature is 0)", COUNT)
    temperature: float = flag(0.7, "sampling temperature; 0 always takes the most likely token", NOT_NEGATIVE)
    top_p: float = flag(0.9, "sample from the most likely tokens that have this total probability", ABOVE_0)
    positions: str = flag("all", "steer the prompt and the generated text, or only the latter", choices=POSITIONS)
    seed: int = flag(0, "seed of all random choices; texts with and without steering use the same", NUMBER)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples is None:
            object.__setattr__(self, "samples", 4 if self.temperature else 1)
        if self.count > 1 and not self.temperature:
            raise InputError(f"--samples {self.samples}: must be 1 at --temperature 0, where all would be the same")

    @property
    def count(self) -> int:
        assert self.samples is not None
        return self.samples


class Direction(NamedTuple):
    """A change of rows: each row x gets `amounts(x)` times `d_D` added."""

    d_D: np.ndarray
    amounts: Amounts

    def replace(self, x_NxD: np.ndarray) -> np.ndarray:
        return x_NxD + self.amounts(x_NxD)[:, None] * self.d_D


@dataclass(frozen=True)
class Texts:
    """The texts written at one strength, and their measures as means over all texts.

    probability: the summed probability of the watched tokens at temperature 1, mean over the generated positions.
    perplexity: of the texts under the unsteered model after the plain prompt, exp(mean −log p).
    distinct: share of different tokens among the tokens of a text. It is low for text that repeats itself, which has
    a low perplexity although it is not fluent.
    """

    strength: float
    texts: tuple[tuple[str, ...], ...]  # the samples of each prompt
    probability: float
    perplexity: float
    distinct: float


@dataclass(frozen=True)
class Steered:
    """The result of a steering experiment."""

    mode: str
    prompts: tuple[str, ...]
    watched: tuple[str, ...]  # the tokens whose probability is measured
    plain: dict[str, Texts]  # without steering: with the plain prompt, and with the concept named in the prompt
    directions: dict[str, tuple[Texts, ...]]  # the texts of each direction, one entry per strength

    def best(self, direction: str) -> Texts | None:
        """The strength with the largest watched probability among those whose texts stay fluent. None if none is above
        the unsteered probability.

        Fluent: the perplexity is at most FLUENT times the unsteered one, and the share of distinct tokens at least
        1/FLUENT of the unsteered one.
        """
        plain = self.plain[UNSTEERED]
        fluent = [
            texts
            for texts in self.directions[direction]
            if texts.perplexity <= FLUENT * plain.perplexity and texts.distinct >= plain.distinct / FLUENT
        ]
        best = max(fluent, key=lambda texts: texts.probability, default=plain)
        return best if best.probability > plain.probability else None


def compute_steering(
    model: LanguageModel,
    site: Site,
    directions: Mapping[str, Callable[[float], Direction]],
    mode: str,
    strengths: Sequence[float],
    watched: Sequence[int],
    sampling: Sampling,
    first_position: int,
    concept: str | None = None,
    on_progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> Steered:
    """Generate texts without steering, and for each direction in `directions` at each strength.

    Positions before `first_position` are not steered, because the dictionary was not trained on them. Raises InputError
    for a prompt that has no tokens or is too long.
    """
    from harvest.interventions.steering import Change, surprise, write_texts

    def tokens(text: str) -> list[int]:
        return model.tokenizer(text, add_special_tokens=False)["input_ids"]

    curves = 1 + bool(concept) + len(directions) * len(strengths)
    total, done = curves * len(sampling.prompt) * sampling.count, 0

    def texts(strength: float, replace: Callable[[np.ndarray], np.ndarray], before: str = "") -> Texts:
        nonlocal done
        generated, probabilities, surprises, distinct = [], [], [], []
        for prompt in sampling.prompt:
            on_progress("steering", done, total)
            done += sampling.count
            prompt_T = tokens(before + prompt)
            first = first_position if sampling.positions == "all" else max(first_position, len(prompt_T))
            written = write_texts(
                model,
                np.tile(prompt_T, (sampling.count, 1)),
                Change(site, replace, first),
                sampling.max_new_tokens,
                sampling.temperature,
                sampling.top_p,
                sampling.seed,
                watched,
            )
            generated.append(tuple(model.tokenizer.batch_decode(written.tokens_SxN)))
            probabilities.append(written.watched_SxN)
            surprises.append(surprise(model, tokens(prompt), written.tokens_SxN))
            distinct += [len(set(tokens_N)) / len(tokens_N) for tokens_N in np.asarray(written.tokens_SxN).tolist()]
        perplexity = float(np.exp(np.mean(surprises)))
        return Texts(strength, tuple(generated), float(np.mean(probabilities)), perplexity, float(np.mean(distinct)))

    plain = {UNSTEERED: texts(0.0, unchanged)}
    if concept:
        plain[IN_PROMPT] = texts(0.0, unchanged, f"Let us talk about {concept}. ")
    steered = {name: tuple(texts(s, direction(s).replace) for s in strengths) for name, direction in directions.items()}
    on_progress("steering", total, total)
    return Steered(mode, sampling.prompt, tuple(token_texts(model.tokenizer, watched)), plain, steered)


def unchanged(x_NxD: np.ndarray) -> np.ndarray:
    return x_NxD


def directions_for(
    sae: SAE, feature: int, maximum: float, mode: str, others: Mapping[str, np.ndarray]
) -> dict[str, Callable[[float], Direction]]:
    """Functions from a strength to a Direction: for the feature, and for `others` scaled to the same norm.

    Raises InputError if the feature never fires, because strengths are in units of its maximum.
    """
    if mode != "ablate" and not maximum:
        raise InputError(
            f"--feature {feature} never fires on the corpus, so it has no maximum to steer by: give another feature"
        )
    d_D = np.asarray(sae.W_dec[feature])
    norm = np.linalg.norm(d_D)
    directions = {f"feature {feature}": d_D}
    directions |= {name: (v_D * (norm / np.linalg.norm(v_D))).astype(np.float32) for name, v_D in others.items()}
    read = None if mode == "add" else feature_reader(sae, feature)

    def amounts(strength: float) -> Amounts:
        if read is None:
            return lambda x_NxD: np.full(len(x_NxD), strength * maximum, np.float32)
        target = strength * maximum if mode == "clamp" else 0.0
        return lambda x_NxD: np.float32(target) - read(x_NxD)

    def direction(v_D: np.ndarray) -> Callable[[float], Direction]:
        return lambda strength: Direction(v_D, amounts(strength))

    return {name: direction(v_D) for name, v_D in directions.items()}


def feature_reader(sae: SAE, feature: int) -> Amounts:
    """A function that computes the feature's activation f_i for rows [N, D]."""
    from flax import nnx

    from analysis.features.activations import encode

    parts = nnx.split(sae)
    return lambda x_NxD: np.asarray(encode(*parts, x_NxD)[:, feature])


def random_direction(d_model: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(d_model)


def difference_in_means(store: ActivationStore, tokenizer: Any, phrase: str) -> np.ndarray | None:
    """The mean training row of windows that contain a phrase minus that of the others, [D]. None if one side is empty.

    As in find-feature, the phrase matches whole words in any case, and its article is ignored.
    """
    from harvest.text.folding import Phrase

    split, wanted = store.train, Phrase(phrase)
    sums_2xD, count_2, windows = np.zeros((2, store.d_model)), np.zeros(2, np.int64), max(1, ROWS // split.positions)
    for start in range(0, split.n_windows, windows):
        texts = tokenizer.batch_decode(split.read_windows(start, start + windows)[0])
        holds_W = np.array([wanted.held_by(text) for text in texts])
        begin, end = split.rows_between(start, start + windows)
        holds_N = np.repeat(holds_W, split.kept_positions(start, start + windows).sum(1))
        x_NxD = split.read(begin, end)
        sums_2xD += [x_NxD[~holds_N].sum(0, dtype=np.float64), x_NxD[holds_N].sum(0, dtype=np.float64)]
        count_2 += [(~holds_N).sum(), holds_N.sum()]
    if not count_2.all():
        return None
    without, within = sums_2xD / count_2[:, None]
    return within - without
