"""Measure how much each feature adds to the next token's logit.

The features with the largest estimates are also ablated.

python main.py attribute RUN --prompt "The ships lay in the" --target " sea"
python main.py attribute RUN --member ID --prompt "The ships lay in the" --target " sea" --against " sun"

The explained output is the target's logit minus the logit of --against, or minus the mean logit over the vocabulary.
A feature's attribution estimates how much the feature adds to that output. It is the sum over positions of
f · (W_dec · gradient), with f the feature's value and the gradient taken by --method:
  gradient    at the prompt itself
  integrated  averaged while all features are scaled from 0 to their values (integrated gradients)
  path        averaged while only this feature is scaled from 0 to its value
Ablation is the measured change of the output when the feature is removed at all positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.cli.flags import MEMBER, filled, parsed, place
from analysis.cli.found_member import say_found
from analysis.cli.output import Output
from analysis.runs.finished import FinishedRun
from analysis.ui.terminal.tables import attribution_table
from harvest.errors import InputError
from harvest.flags import COUNT, DEVICE, WHERE, Flags, flag
from harvest.request import default_cache_dir

if TYPE_CHECKING:
    from analysis.interventions.attribution import Attribution

METHODS = ("gradient", "integrated", "path")  # defined here, so that --help does not import jax


@dataclass(frozen=True)
class Options(Flags):
    """The flags of `attribute`."""

    run: Path = place("RUN", "a run directory")
    member: str | None = flag(None, MEMBER)
    prompt: str | None = flag(None, "the text before the token to explain")
    target: str | None = flag(None, "the token to explain, with its leading space if it has one")
    against: str | None = flag(None, "a second token, to explain the difference between the two logits")
    method: str = flag("path", "where the gradient is taken (see above)", choices=METHODS)
    steps: int = flag(16, "number of gradients that --method integrated averages", COUNT)
    top: int = flag(20, "number of features to show and to ablate: those with the largest absolute attributions", COUNT)
    device: str = flag("auto", WHERE, DEVICE)
    cache_dir: Path = flag(default_cache_dir(), "where compiled programs are kept")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prompt", "target"):
            if not getattr(self, name):
                example = "--prompt 'The ships lay in the' --target ' sea'"
                raise InputError(f"--{name} is missing: give it, as in {example}")


def run(argv: list[str]) -> None:
    values = parsed("attribute", __doc__, argv, Options, Output)
    options, output = filled(Options, values), filled(Output, values)
    assert options.prompt is not None and options.target is not None
    finished = FinishedRun.open(options.run, options.device)
    finished.need_language_model()
    member = finished.only(options.member)
    with output.terminal() as terminal:
        say_found(finished, options.member, terminal)
        terminal.begin("loading the language model and the dictionary")
        from analysis.interventions.attribution import attribute_next_token

        asked = (options.prompt, options.target, options.against, options.method, options.top, options.steps)
        explained = attribute_next_token(finished, member, *asked, terminal.progress)
        terminal.leave_phase()
        result = explained.attribution
        subtracted = f"logit of {options.against!r}" if options.against else "mean logit"
        terminal.say(f"logit of {options.target!r} minus {subtracted}: {result.output:.3f}")
        terminal.say(f"probability of {options.target!r}: {result.probability:.4f}")
        terminal.show(attribution_table(result, explained.prompt))
        correlation = "undefined" if result.correlation is None else f"{result.correlation:.3f}"
        if result.method == "path":
            correlation += " (1 by construction; that of `--method gradient` is a test)"
        terminal.say(f"correlation of attribution ({result.method}) with ablation, over these features: {correlation}")
        for line in sum_lines(result):
            terminal.say(line)
    output.write(explained.record())


def sum_lines(result: Attribution) -> list[str]:
    """Lines that divide the output into measured parts, and give the estimates of the attribution beside them."""
    together = result.output - result.without_features
    total = f"sum of all attributions ({'integrated' if result.method == 'path' else result.method})"
    why = "an estimate of the same"
    if result.method == "gradient":
        why += ", which is only good if the output is nearly linear; that of `--method integrated` adds up"
    return [
        f"measured: {result.output:.3f} = {result.without_features:.3f} with all {result.active} active features "
        f"ablated (the dictionary's bias and its reconstruction error remain) {together:+.3f} that they add together",
        f"{total}: {result.features_give:+.3f}, {why}",
        f"gradient · reconstruction error: {result.error_gives:+.3f}, an estimate of what the error adds; "
        f"it is no further term of this sum, because the error remains in the {result.without_features:.3f}",
    ]
