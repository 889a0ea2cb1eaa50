"""A steering experiment: one feature of a run is steered at several strengths, beside baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.interventions import steering
from analysis.interventions.steering import UNSTEERED, Direction, Sampling, Steered, Texts
from analysis.runs.finished import FinishedRun
from harvest.errors import InputError

if TYPE_CHECKING:
    from analysis.features.statistics import Features
    from sae_jax.models.base import SAE

RANDOM, MEANS = "random direction", "difference in means"


@dataclass(frozen=True)
class Experiment:
    """A feature, how it was steered, and the resulting texts."""

    run: FinishedRun
    member: str
    feature: int
    maximum: float  # the unit of the strengths
    concept: str | None
    sampling: Sampling
    steered: Steered
    rerun: dict[str, Steered]  # the best strength of each direction with another seed; empty if there was no sweep

    def reached(self, direction: str) -> tuple[Texts, Texts] | None:
        """(unsteered texts, texts at the direction's best strength), with another seed if there are such texts.

        None if the direction has no best strength.
        """
        if again := self.rerun.get(direction):
            return again.plain[UNSTEERED], again.directions[direction][0]
        best = self.steered.best(direction)
        return (self.steered.plain[UNSTEERED], best) if best else None

    def verdict(self) -> str:
        """A sentence that compares the probability that the feature reaches with that of each other direction."""
        feature, *others = self.steered.directions
        if not (found := self.reached(feature)):
            return f"verdict: {feature} does not steer: it has no best strength"
        plain, best = found
        numbers = f"probability {best.probability:.5f} at its best strength, {plain.probability:.5f} unsteered"
        if best.probability <= plain.probability:
            return f"verdict: {feature} does not steer: {numbers}"
        parts = []
        for other in others:
            beside = self.reached(other)
            if beside is None or beside[1].probability <= plain.probability:
                parts.append(f"beats the {other} (no gain)")
                continue
            beats = "beats" if best.probability > beside[1].probability else "does not beat"
            parts.append(f"{beats} the {other} ({beside[1].probability:.5f})")
        texts = len(self.steered.prompts) * self.sampling.count
        sample = f"{texts} text{'s' if texts > 1 else ''}{' of another seed' if self.rerun else ''}"
        return f"verdict on {sample} for each direction, without intervals: {feature} ({numbers}) {' and '.join(parts)}"

    def record(self, output_scores: Mapping[int, float]) -> dict[str, Any]:
        """The content of the file of `steer --json`; `output_scores` are those of the tried features."""
        facts = {"schema": 1, "run": str(self.run.path), "member": self.member}
        facts |= {"hook_name": self.run.site(self.member).hook_name, "feature": self.feature, "maximum": self.maximum}
        facts |= {"concept": self.concept, "output_scores": output_scores, "sampling": asdict(self.sampling)}
        return facts | asdict(self.steered) | {"rerun": {name: asdict(again) for name, again in self.rerun.items()}}


def refuse_no_feature(run: FinishedRun, member: str, feature: int) -> None:
    """Raise InputError if the member does not have a feature of this number."""
    hidden_dim = run.members[member]["hidden_dim"]
    if not 0 <= feature < hidden_dim:
        raise InputError(f"--feature {feature}: must be between 0 and {hidden_dim - 1} for {member}")


def steer_feature(
    run: FinishedRun,
    member: str,
    sae: SAE,
    features: Features,
    feature: int,
    mode: str,
    strengths: Sequence[float],
    sampling: Sampling,
    watched: Sequence[int] = (),
    others: Mapping[str, np.ndarray] | None = None,
    concept: str | None = None,
    sweep: bool = False,
    on_progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> Experiment:
    """Steer by a feature, and by `others`, at each strength. `sae` and `features` are those of the member.

    The tokens that the feature promotes are watched by default. In a sweep, the best strength of each direction is
    measured again with another seed, because its first numbers decided its choice. At temperature 0 it is not, because
    the texts would be the same. Raises InputError for a feature that the member does not have, and as
    `compute_steering` does.
    """
    refuse_no_feature(run, member, feature)
    maximum = float(features.max_F[feature])
    directions = steering.directions_for(sae, feature, maximum, mode, others or {})
    if not (tokens := list(watched) or features.promoted_at_peak(feature)[0].tolist()):
        raise InputError(
            f"{member}: a feature at {run.site(member).hook_name} promotes no tokens by itself: give --words to watch"
        )

    def steered_by(
        directions: Mapping[str, Callable[[float], Direction]],
        strengths: Sequence[float],
        sampling: Sampling,
        concept: str | None = None,
        again: str = "",
    ) -> Steered:
        arguments = run.language_model, run.site(member), directions, mode, strengths, tokens, sampling
        return steering.compute_steering(
            *arguments,
            run.first_position,
            concept,
            lambda phase, done, total: on_progress(f"{phase}{again}", done, total),
        )

    steered, rerun = steered_by(directions, strengths, sampling, concept), {}
    if sweep and sampling.temperature:
        other = replace(sampling, seed=sampling.seed + 1)
        for name, direction in directions.items():
            if best := steered.best(name):
                rerun[name] = steered_by({name: direction}, [best.strength], other, again=f", {name} with another seed")
    return Experiment(run, member, feature, maximum, concept, sampling, steered, rerun)


def baselines(
    run: FinishedRun,
    member: str,
    concept: str | None,
    seed: int,
    cache_dir: Path,
    on_progress: Callable[[str, int, int], None],
    say: Callable[[str], None],
) -> dict[str, np.ndarray]:
    """A random direction and, for a concept, the difference in means, if the text has windows with and without it."""
    directions = {RANDOM: steering.random_direction(run.dictionary(member).d_in, seed)}
    if concept:
        store = run.store(run.site(member), cache_dir, on_progress, say)
        means_D = steering.difference_in_means(store, run.language_model.tokenizer, concept)
        if means_D is not None:
            return directions | {MEANS: means_D}
        say(
            f"the baseline {MEANS} is left out: it needs windows with {concept!r} and windows without "
            "it, and one of the two is missing"
        )
    return directions
