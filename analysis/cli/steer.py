"""Generate text while a feature is turned up, down or off.

The effect is measured beside that of a random direction.

python main.py steer RUN --feature 12 --strength 2
python main.py steer RUN --concept "the Golden Gate Bridge" --sweep      # chooses the feature, then the strength
python main.py steer RUN --member ID --feature 12 --mode ablate --prompt "The ships lay in the" --json steered.json

--mode, with x the activation, d the feature's decoder row, max its largest activation over the corpus, S --strength:
  add       x + S·max·d (default); strength 0 leaves the model unchanged
  clamp     sets the feature to S·max at every token
  ablate    sets the feature to 0 at every token

The tables show a text for each strength, and these numbers, averaged over all texts:
  probability   total probability of the watched tokens: the first token of each word of the concept (function words
                are left out), or of --words;
                with --feature and no --words, the tokens that the feature promotes most
  change        the probability minus that of the unsteered texts
  perplexity    perplexity of the generated text under the unsteered model: lower is more fluent
  distinct      share of different tokens in a text: low for text that repeats itself
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.cli.flags import MEMBER, filled, parsed, place
from analysis.cli.found_member import say_found
from analysis.cli.output import Output
from analysis.concepts.search import SearchSettings
from analysis.interventions.choosing import choose_feature, word_tokens
from analysis.interventions.experiment import Experiment, baselines, refuse_no_feature, steer_feature
from analysis.interventions.steering import FLUENT, IN_PROMPT, MODES, Sampling
from analysis.runs.finished import FinishedRun, can_be_kept
from analysis.ui.terminal.live import Terminal
from analysis.ui.terminal.tables import steered_measures_table, steered_texts_table
from harvest.errors import InputError
from harvest.flags import COUNT, DEVICE, NUMBER, REAL, WHERE, Flags, flag
from harvest.request import default_cache_dir

SWEEP = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)


@dataclass(frozen=True)
class Options(Flags):
    """The flags that choose the feature and how it is steered."""

    run: Path = place("RUN", "a run directory")
    member: str | None = flag(None, MEMBER)
    feature: int | None = flag(None, "number of the feature, from 0", NUMBER)
    concept: str | None = flag(
        None,
        "a word or phrase, instead of --feature: chooses the feature that makes its words likeliest after a short text",
    )
    mode: str = flag("add", "how the feature is changed (see above)", choices=MODES)
    strength: float | None = flag(
        None, "strength, in units of the feature's largest activation over the corpus (default: 1)", REAL
    )
    sweep: bool = flag(False, "try all --strengths and report the best")
    strengths: tuple[float, ...] = flag(
        (), f"strengths that --sweep tries (default: {' '.join(f'{s:g}' for s in SWEEP)})", REAL
    )
    words: tuple[str, ...] = flag((), "words whose probability is measured (default: see probability above)")
    examples: Path | None = flag(None, "file of texts about the concept, as for find-feature")
    candidates: int = flag(
        20, "with --concept: try at most this many features that detect it, and as many that promote its words", COUNT
    )
    device: str = flag("auto", WHERE, DEVICE)
    cache_dir: Path = flag(default_cache_dir(), "where harvested activations and compiled programs are kept")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feature is None and self.concept is None:
            raise InputError("the feature to steer by is missing: give --feature or --concept")
        if self.feature is not None and self.concept is not None:
            raise InputError("--feature names the feature, --concept searches for one: give only one of the two flags")
        if self.mode == "ablate" and (self.strength is not None or self.sweep):
            raise InputError("--mode ablate removes the feature completely: leave --strength and --sweep out")
        if self.mode == "clamp" and 0 in self.tried:
            raise InputError(
                "--strength 0 with --mode clamp sets the feature to 0: use --mode ablate for that, "
                "or --mode add for the unchanged model"
            )
        if self.sweep and self.strength is not None:
            raise InputError("--strength is one strength, --sweep tries several: give only one of the two flags")
        if self.strengths and not self.sweep:
            raise InputError("--strengths needs --sweep: add --sweep, or give one --strength")

    @property
    def tried(self) -> tuple[float, ...]:
        if self.mode == "ablate":
            return (0.0,)
        return (self.strengths or SWEEP) if self.sweep else (1.0 if self.strength is None else self.strength,)


def run(argv: list[str]) -> None:
    values = parsed("steer", __doc__, argv, Options, Sampling, Output)
    options, sampling, output = filled(Options, values), filled(Sampling, values), filled(Output, values)
    finished = FinishedRun.open(options.run, options.device)
    finished.need_language_model()
    member = finished.only(options.member)
    if options.feature is not None:  # before the libraries are loaded
        refuse_no_feature(finished, member, options.feature)
    with output.terminal() as terminal:
        say_found(finished, options.member, terminal)
        terminal.begin("loading the language model and the dictionary")
        from analysis.features.statistics import load_or_compute_features

        model = finished.language_model
        model.need_next_token("Steering")
        talk: dict[str, Any] = {"on_progress": terminal.progress, "say": terminal.say}
        features = load_or_compute_features(finished, [member], options.cache_dir, **talk)[member]
        phrase = " ".join(options.words) or options.concept
        watched = word_tokens(model.tokenizer, phrase) if phrase else []
        feature, scores = options.feature, {}
        if options.concept:
            terminal.begin("trying the features that detect the concept, and those that promote its words")
            settings = SearchSettings(member=(member,), examples=options.examples, top=options.candidates)
            choice = choose_feature(options.concept, finished, member, features, watched, settings, terminal.say)
            feature, scores = next(iter(choice.scores)), choice.scores
            best = ", ".join(f"{number} ({score:.2g})" for number, score in list(scores.items())[:5])
            terminal.say(
                f"features that detect the concept: {len(choice.detecting)}; "
                f"that promote its words: {len(choice.promoting)}"
            )
            terminal.say(
                f"features that make the watched tokens likeliest if amplified, with output scores: {best}; the first "
                "is used (find-feature may rank others first, because it ranks by what they detect)"
            )
        assert feature is not None
        experiment = steer_feature(
            finished,
            member,
            finished.dictionary(member).sae,
            features,
            feature,
            options.mode,
            options.tried,
            sampling,
            watched,
            baselines(finished, member, options.concept, sampling.seed, options.cache_dir, **talk),
            options.concept,
            options.sweep,
            terminal.progress,
        )
        terminal.leave_phase()
        terminal.say(f"watched tokens: {', '.join(map(repr, experiment.steered.watched))}")
        for table in (steered_texts_table(experiment.steered), steered_measures_table(experiment.steered)):
            terminal.show(table)
        if options.sweep:
            report_best(experiment, terminal)
    output.write(experiment.record(scores))


def report_best(experiment: Experiment, terminal: Terminal) -> None:
    """Print each direction's best strength and its numbers with other random draws, and write the figure."""
    from analysis.plots.steering import steering_chart
    from analysis.plots.style import save

    steered, run = experiment.steered, experiment.run.path
    limits = f"at most {FLUENT:g} × the unsteered perplexity, and at least 1/{FLUENT:g} of its share of distinct tokens"
    terminal.say(f"text counts as fluent with {limits}")
    for direction in steered.directions:
        best, found = steered.best(direction), experiment.reached(direction)
        strength = f"{best.strength:g}" if best else "none: no fluent text makes the watched tokens more likely"
        if found and found[1].probability <= found[0].probability:
            strength += ", but with another seed it makes the watched tokens no likelier: do not rely on it"
        terminal.say(f"best strength of {direction} at which the text stays fluent: {strength}")
        if found and direction in experiment.rerun:
            plain, texts = found
            gain = f"a probability of {texts.probability:.3g}, 0 unsteered"
            if plain.probability:
                gain = f"{texts.probability / plain.probability:.3g} × the unsteered probability"
            cost = texts.perplexity / plain.perplexity
            terminal.say(f"    with another seed: {gain}, {cost:.2g} × the unsteered perplexity")
    terminal.say(experiment.verdict())
    if IN_PROMPT in steered.plain:
        probability = steered.plain[IN_PROMPT].probability
        terminal.say(f"probability without steering, with the concept named in the prompt: {probability:.5f}")
    if can_be_kept(run, terminal.say):
        terminal.begin("drawing the figure")
        stem = run / "figures" / f"steer-{experiment.member}-{experiment.feature}"
        terminal.say(f"figure: {', '.join(map(str, save(steering_chart(steered), stem)))}")
