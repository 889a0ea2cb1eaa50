"""Train and evaluate sparse autoencoders (SAEs) on the activations of a language model, in one command.

python main.py --activation jump_relu                   # one SAE with default settings
python main.py --activation relu jump_relu topk         # three SAEs, trained together on the same batches
python main.py --n-samples 100 --seq-len 10 --epochs 2  # a quick test, about a minute
python main.py --preset frontier                        # kinds x sparsities x seeds, and the Pareto plot

Flags that take several values train one SAE (a member of the run) for each combination of values.
`python main.py COMMAND --help` describes a command that analyses a run. These are the commands:
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from analysis.cli import COMMANDS
from analysis.cli.flags import Parser, filled
from analysis.cli.show import show_results
from analysis.training import RunOptions, refuse_conflicts, train_run
from analysis.ui.terminal.live import Terminal
from analysis.ui.terminal.tables import plan_cells, plan_text, preset_table
from harvest.errors import InputError
from harvest.flags import flag
from harvest.request import HarvestRequest
from harvest.sources import resolve
from sae_jax.config import TrainConfig
from sae_jax.presets import PRESETS, bundled_model, preset_named, scale_down


@dataclass(frozen=True)
class Options(RunOptions):
    quiet: bool = flag(False, "print only the path of the run, and failed members on standard error")
    dry_run: bool = flag(False, "print what would be trained and the estimated cost, without training")


def build_parser() -> Parser:
    parser = Parser(description=f"{__doc__}{', '.join(COMMANDS)}")
    about = "use the flags of a published set-up (or of our `frontier`) as defaults; `list` shows all set-ups"
    parser.add_argument("--preset", metavar="NAME", help=about)
    parser.add_flags(HarvestRequest, "activations")
    parser.add_flags(TrainConfig, "training")
    parser.add_flags(Options, "running")
    return parser


def parse(argv: list[str]) -> tuple[HarvestRequest, TrainConfig, Options, dict[str, Any] | None]:
    """The checked settings, and the record of the preset if one is given. Raises InputError for flags that clash."""
    parser = build_parser()
    values, record = vars(parser.parse_args(argv)), None
    given = {argument.partition("=")[0] for argument in argv}
    if name := values["preset"]:
        preset = preset_named(name)
        parser.set_defaults(**preset.flags)
        values = vars(parser.parse_args(argv))
    request, config, options = filled(HarvestRequest, values), filled(TrainConfig, values), filled(Options, values)
    if name:
        changes: list[str] = []
        if bundled := bundled_model(request.model_name):
            request, config, changes = scale_down(request, config, given, bundled)
        record = {"name": name, "not_followed": preset.not_followed, "scaled_down": changes}
    refuse_conflicts(request, config, options, given)
    return request, config, options, record


def run(argv: list[str]) -> None:
    if build_parser().parse_args(argv).preset == "list":
        with Terminal() as terminal:
            terminal.show(preset_table(PRESETS))
        return
    request, config, options, preset = parse(argv)
    if options.dry_run:
        print_plan(request, config, options, preset)
        return
    with Terminal(quiet=options.quiet) as terminal:
        say_preset(preset, terminal)
        train_run(request, config, options, terminal, preset, show=partial(show_results, terminal=terminal))


def print_plan(request: HarvestRequest, config: TrainConfig, options: Options, preset: dict[str, Any] | None) -> None:
    """Print what would be trained, and the estimated cost."""
    from sae_jax.cost import plan
    from sae_jax.training.memory import refuse_too_large

    model, _ = resolve(request)
    if model.d_model is None:
        raise InputError(
            f"--dry-run: the config of {model.location} does not state the model's width: leave --dry-run out"
        )
    with Terminal(quiet=options.quiet) as terminal:
        say_preset(preset, terminal)
        planned = plan(config, request, model.d_model)
        terminal.table(*plan_cells(planned))
        terminal.say(plan_text(planned))
        try:
            refuse_too_large(planned.memory)
        except InputError as error:
            terminal.say(f"training would be refused on this machine: {error}")


def say_preset(preset: dict[str, Any] | None, terminal: Terminal) -> None:
    if preset and preset["scaled_down"]:
        terminal.say(f"--preset {preset['name']} scaled down to the bundled model: {', '.join(preset['scaled_down'])}")
    if preset and preset["not_followed"]:
        terminal.say(f"--preset {preset['name']} differs from the original in: {'; '.join(preset['not_followed'])}")
