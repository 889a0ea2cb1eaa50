"""Train sparse autoencoders (SAEs), and measure them.

python main.py --activation jump_relu                   # one SAE with default settings
python main.py --activation relu jump_relu topk         # three SAEs, trained together on the same batches
python main.py --n-samples 100 --seq-len 10 --epochs 2  # a quick test, about a minute
python main.py --preset frontier                        # kinds x sparsities x seeds, and the Pareto plot

Flags that take several values train one SAE (a member of the run) for each combination of values.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from analysis.cli.flags import Parser, filled
from analysis.cli.output import Output
from analysis.cli.show import cache_flag, say_commands, show_results
from analysis.run_options import RunOptions, refuse_conflicts
from analysis.training import job_text, train_run
from analysis.ui.terminal.live import Terminal
from analysis.ui.terminal.tables import plan_cells, plan_text, preset_table
from analysis.ui.terminal.wording import pasted
from harvest.errors import InputError
from harvest.files import read_json
from harvest.flags import flag
from harvest.imports.stored_rows import request_for_rows
from harvest.messages import say_sources
from harvest.request import HarvestRequest
from harvest.sources import resolve
from harvest.store import ActivationStore
from harvest.text.documents import documents
from sae_jax.config import TrainConfig
from sae_jax.presets import PRESETS, bundled_model, preset_named, scale_down
from sae_jax.training.axes import axes_asked
from sae_jax.training.cluster import only_python_prints


@dataclass(frozen=True)
class Options(RunOptions):
    dry_run: bool = flag(False, "print what would be trained and the estimated cost, without training")


def build_parser() -> Parser:
    parser = Parser("train", __doc__)
    about = "use the flags of a published set-up (or of our `frontier`) as defaults; `list` shows all set-ups"
    parser.add_argument("--preset", metavar="NAME", help=about)
    parser.add_flags(HarvestRequest, "activations")
    parser.add_flags(TrainConfig, "training")
    parser.add_flags(Options, "running")
    parser.add_flags(Output, "output")
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
        if bundled := None if request.rows else bundled_model(request.model_name):
            request, config, changes = scale_down(request, config, given, bundled)
        record = {"name": name, "not_followed": preset.not_followed, "scaled_down": changes}
    request = request_for_rows(request)
    refuse_conflicts(request, config, options, given)
    return request, config, options, record


def run(argv: list[str]) -> None:
    values = build_parser().parse_args(argv)
    output = filled(Output, vars(values))
    if values.preset == "list":
        with output.terminal() as terminal:
            terminal.show(preset_table(PRESETS))
        output.write({name: asdict(preset) for name, preset in PRESETS.items()})
        return
    request, config, options, preset = parse(argv)
    if options.dry_run:
        print_plan(request, config, options, output, preset)
        return
    alone = only_python_prints("stdout", os.devnull) if options.cluster else nullcontext()
    with alone, output.terminal() as terminal:
        say_preset(preset, terminal)
        if not argv:
            terminal.say(pasted("the default settings are used; `python main.py --help` lists what else there is"))
        path = train_run(
            request, config, options, terminal, preset, show=partial(show_run, terminal, options.cache_dir)
        )
    if path:
        output.write(read_json(path / "results.json", "train it again with --force"))


def show_run(terminal: Terminal, cache_dir: Path, path: Path, results: dict[str, Any], *, anew: bool = False) -> None:
    """Show the results and, after training, what to do next."""
    show_results(path, results, terminal, anew=anew)
    if anew:
        terminal.say(pasted(f"next: python main.py dashboard {quote(str(path))}{cache_flag(cache_dir)}"))
        say_commands("next", path, results, terminal, cache_dir)


def print_plan(
    request: HarvestRequest, config: TrainConfig, options: Options, output: Output, preset: dict[str, Any] | None
) -> None:
    """Print what would be trained, and the estimated cost."""
    with output.terminal() as terminal:
        say_preset(preset, terminal)
        terminal.say(f"would train {job_text(request, config, preset)}")
        terminal.begin("loading the libraries")
        from sae_jax.cost import plan
        from sae_jax.training.memory import has_accelerator, refuse_too_large
        from sae_jax.training.mesh_plan import machine_before_jax, machine_of_jax, refuse_small_devices

        here = machine_of_jax() if has_accelerator() else machine_before_jax()
        machine = replace(here, devices=here.devices * (options.num_processes or 1))
        planned = plan(config, request, width_of_rows(request, terminal), machine, axes_asked(options.mesh))
        terminal.table(*plan_cells(planned))
        terminal.say(plan_text(planned))
        terminal.say(f"not counted: {'the language model' if request.stream else 'harvesting'} and measuring")
        if not request.rows:
            terminal.say("if the text has fewer windows, there are fewer steps")
        try:
            refuse_too_large(planned.memory)
            refuse_small_devices(planned.memory.device, planned.mesh.axes, machine)
        except InputError as error:
            terminal.say(f"training would be refused on this machine: {error}")
    output.write(asdict(planned) | {"mesh": planned.mesh.axes._asdict(), "side_by_side": planned.mesh.side_by_side})


def width_of_rows(request: HarvestRequest, terminal: Terminal) -> int:
    """The width of the rows to train on. Raises InputError if they cannot be had, or if their width is not known."""
    if request.rows:
        return ActivationStore(request.rows).d_model
    model, dataset = resolve(request)
    say_sources(model, dataset, terminal.say)
    if not dataset.out_of_reach:
        next(documents(dataset.location, column=request.text_column), None)  # raises if it has no such column
    if width := model.width(request.hook):
        return width
    hooks = ", ".join(request.hook)
    raise InputError(
        f"--dry-run: the config of {model.location} does not state the width of {hooks}: leave --dry-run out"
    )


def say_preset(preset: dict[str, Any] | None, terminal: Terminal) -> None:
    if preset and preset["scaled_down"]:
        terminal.say(f"--preset {preset['name']} scaled down to the bundled model: {', '.join(preset['scaled_down'])}")
    if preset and preset["not_followed"]:
        terminal.say(f"--preset {preset['name']} differs from the original in: {'; '.join(preset['not_followed'])}")
