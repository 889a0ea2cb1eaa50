"""What the model writes when one feature is turned up, down or off.

python main.py steer RUN --feature 12 --strength 2
python main.py steer RUN --concept "the Golden Gate Bridge" --sweep      # chooses the feature, then the strength
python main.py steer RUN --member ID --feature 12 --mode ablate --prompt "The ships lay in the" --json steered.json

add (default): x + S·max·d, d the feature's decoder row and max its largest activation over the corpus; at strength 0
the model is itself, token for token. clamp: the feature is set to S·max, whatever it was (a clamp to 0 is ablate).
The concept's words, of which the probability is told: the first tokens of its words; without --concept the tokens that
the feature promotes most. Perplexity is that of what was written, under the unsteered model.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.cli.flags import Parser, filled
from analysis.concepts.search import SearchSettings, concept_texts, search
from analysis.interventions.steering import IN_PROMPT, MODES, UNSTEERED, Sampling, Steered
from analysis.runs.finished import FinishedRun, can_be_kept
from analysis.ui.terminal.live import Terminal
from analysis.ui.terminal.steering import steered_figures_table, steered_texts_table
from harvest.errors import InputError
from harvest.files import write_json
from harvest.request import default_cache_dir, flag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analysis.features.statistics import Features
    from harvest.model.language_model import LanguageModel

SWEEP = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)
RANDOM, MEANS = "random direction", "difference in means"


@dataclass(frozen=True)
class Options:
    """What is turned, and how far."""

    member: str | None = flag(None, "id of a member (default: the only one)")
    feature: int | None = flag(None, "number of the feature")
    concept: str | None = flag(None, "in its place: a word or phrase, of which the feature that steers best is chosen")
    mode: str = flag("add", "add to the feature, set it, or take it away", choices=MODES)
    strength: float | None = flag(None, "in units of the feature's maximum over the corpus (default: 1)")
    sweep: bool = flag(False, "try --strengths and tell the best")
    strengths: tuple[float, ...] = flag((), f"of --sweep (default: {' '.join(f'{s:g}' for s in SWEEP)})")
    words: tuple[str, ...] = flag((), "words of which the probability is told (default: those of the concept)")
    examples: Path | None = flag(None, "texts about the concept, as for find-feature")
    candidates: int = flag(20, "features that --concept tries at most, of those found and of those promoting its words")
    json: Path | None = flag(None, "a file for all texts and figures", written=True)
    cache_dir: Path = flag(default_cache_dir(), "where harvested activations and compiled programs are kept")

    def __post_init__(self) -> None:
        if (self.feature is None) == (self.concept is None):
            raise InputError("--feature or --concept: which feature, or what about? Give one of them")
        if self.mode not in MODES:
            raise InputError(f"--mode {self.mode}: must be one of {', '.join(MODES)}")
        if self.mode == "ablate" and (self.strength is not None or self.sweep):
            raise InputError("--mode ablate takes the feature away whole: leave --strength and --sweep out")
        if self.mode == "clamp" and 0 in self.tried:
            raise InputError(
                "--strength 0 with --mode clamp sets the feature to 0: say --mode ablate for that, "
                "or --mode add for the model as it is"
            )
        if self.sweep and self.strength is not None:
            raise InputError("--strength and --sweep: one strength, or several? Give one of them")
        if self.strengths and not self.sweep:
            raise InputError("--strengths are of --sweep: add it, or give one --strength")
        if self.candidates < 1:
            raise InputError(f"--candidates {self.candidates}: must be 1 or more")

    @property
    def tried(self) -> tuple[float, ...]:
        if self.mode == "ablate":
            return (0.0,)
        return (self.strengths or SWEEP) if self.sweep else (1.0 if self.strength is None else self.strength,)


def run(argv: list[str]) -> None:
    parser = Parser(prog="main.py steer", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_flags("what", Options)
    parser.add_flags("text", Sampling)
    values = vars(parser.parse_args(argv))
    options, sampling = filled(Options, values), filled(Sampling, values)
    finished = FinishedRun.open(values["run"])
    member = finished.only(options.member)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(options.cache_dir / "compiled"))
    from analysis.features.statistics import load_or_compute_features
    from analysis.interventions import steering as steer_model

    with Terminal() as terminal:
        finished.language_model.need_next_token("Steering")
        talk: dict[str, Any] = {"on_progress": terminal.progress, "say": terminal.say}
        features = load_or_compute_features(finished, [member], options.cache_dir, **talk)[member]
        model, site, sae = finished.language_model, finished.site(member), finished.dictionary(member).sae
        first_position = finished.first_position
        others = {RANDOM: steer_model.random_direction(model.d_model, sampling.seed)}
        if options.concept:
            watched = steer_model.word_tokens(model.tokenizer, " ".join(options.words) or options.concept)
            detecting: list[int] = []
            try:
                detecting = detected(options, finished, member, model)
            except InputError as error:  # too few passages hold it: what promotes its words may do
                terminal.say(f"none is sought that detects it: {error}")
            promoting = candidates(features, watched, options.candidates)
            tried = list(dict.fromkeys([*detecting, *promoting]))
            if not tried:
                raise InputError(
                    f"--concept {options.concept}: no feature is found that detects it, and none promotes its words: "
                    "give --examples, or name a --feature"
                )
            scores = steer_model.output_scores(model, site, sae, tried, watched, features.max_F, first_position)
            feature = next(iter(scores))
            best = ", ".join(f"{number} ({score:.3f})" for number, score in list(scores.items())[:5])
            terminal.say(f"{len(detecting)} features detect the concept, {len(promoting)} promote its words")
            terminal.say(f"output score, best first: {best}")
            means_D = steer_model.difference_in_means(
                finished.store(site, options.cache_dir, **talk), model.tokenizer, options.concept
            )
            if means_D is None:
                terminal.say(f"no difference in means: no passage, or every one, holds {options.concept!r}")
            else:
                others[MEANS] = means_D
        else:
            assert options.feature is not None
            feature, scores = options.feature, {}
            if not 0 <= feature < len(features.max_F):
                raise InputError(f"--feature {feature}: {member} has 0 to {len(features.max_F) - 1}")
            watched = steer_model.promoted_tokens(features)[0][feature].tolist()
            if options.words:
                watched = steer_model.word_tokens(model.tokenizer, " ".join(options.words))
        maximum = float(features.max_F[feature])
        ways = steer_model.directions_for(sae, feature, maximum, options.mode, others)
        steered = steer_model.compute_steering(
            model, site, ways, options.mode, options.tried, watched, sampling, first_position, options.concept
        )
        for table in (steered_texts_table(steered), steered_figures_table(steered)):
            terminal.show(table)
        again: dict[str, Steered] = {}
        if options.sweep:
            again = steer_model.rerun_best(model, site, ways, steered, watched, sampling, first_position)
            tell_best(steered, again, finished, f"steer-{member}-{feature}", terminal)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        facts = {"schema": 1, "run": str(finished.path), "member": member, "hook_name": site.hook_name}
        facts |= {"feature": feature, "maximum": maximum, "concept": options.concept, "output_scores": scores}
        fresh = {"afresh": {way: asdict(of) for way, of in again.items()}}
        write_json(options.json, facts | {"sampling": asdict(sampling)} | asdict(steered) | fresh)


def detected(options: Options, finished: FinishedRun, member: str, model: LanguageModel) -> list[int]:
    """Features that find-feature finds for the concept."""

    assert options.concept is not None
    how = SearchSettings(member=(member,), examples=options.examples, top=options.candidates)
    texts = concept_texts(options.concept, finished, how)
    dictionaries = {member: finished.dictionary(member)}
    _, found = search(options.concept, finished, model, dictionaries, how, *texts)
    return [feature.feature for feature in found.features if feature.passes]


def candidates(features: Features, watched: Sequence[int], most: int) -> list[int]:
    """Features that promote one of the concept's words, by the largest logit weight of one, that fire on the corpus."""
    import numpy as np

    from analysis.interventions import steering as steer_model

    token_FxT, weight_FxT = steer_model.promoted_tokens(features)
    logit_FxT = np.where(np.isin(token_FxT, watched), weight_FxT, -np.inf)
    logit_F = np.where(features.alive_F, logit_FxT.max(1), -np.inf)
    return [int(i) for i in np.argsort(-logit_F, kind="stable")[:most] if np.isfinite(logit_F[i])]


def tell_best(
    steered: Steered, again: dict[str, Steered], finished: FinishedRun, name: str, terminal: Terminal
) -> None:
    from analysis.plots.steering import steering_chart
    from analysis.plots.style import save

    for way in steered.ways:
        best = steered.best(way)
        found = f"{best.strength:g}" if best else "none raises the concept's probability"
        terminal.say(f"best strength of {way} that still writes text: {found}")
        if way in again:
            plain, (texts,) = again[way].plain[UNSTEERED], again[way].ways[way]
            gain = f"a probability of {texts.probability:.3g}, 0 unsteered"
            if plain.probability:
                gain = f"{texts.probability / plain.probability:.3g} × the unsteered probability"
            cost = texts.perplexity / plain.perplexity
            terminal.say(f"    by another seed: {gain}, {cost:.2g} × the perplexity")
    if IN_PROMPT in steered.plain:
        terminal.say(f"{IN_PROMPT}: {steered.plain[IN_PROMPT].probability:.5f} without steering")
    if can_be_kept(finished.path, terminal.say):
        terminal.say("figure: " + ", ".join(map(str, save(steering_chart(steered), finished.path / "figures" / name))))
