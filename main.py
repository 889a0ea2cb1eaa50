"""Text in, trained and evaluated sparse autoencoders out, in one command.

python main.py --activation jump_relu                   # one dictionary, by default settings
python main.py --activation relu jump_relu topk         # three in one jit, on the same batches
python main.py --n-samples 100 --seq-len 10 --epochs 2  # a smoke test, in seconds
python main.py --preset frontier                        # kinds x sparsities x seeds, and the Pareto plot
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joblib import cpu_count

from analysis.commands.flags import Parser, filled
from analysis.faces.tables import frontier_table, preset_table
from analysis.faces.terminal import Terminal
from analysis.frontier import compute, write
from harvest.capture import DISK_FULL, harvest
from harvest.errors import InputError, is_out_of_memory
from harvest.request import HarvestRequest, Site, default_cache_dir, flag
from harvest.sources import named_files, resolve
from harvest.store import ActivationStore
from sae_jax.config import LEVELS, TrainConfig
from sae_jax.grid import members_of
from sae_jax.presets import PRESETS, bundled_model, cost_of, preset_named, scale_down
from sae_jax.run_directory import RunDirectory, default_name

if TYPE_CHECKING:
    from analysis.faces.wandb_log import WandbLog
    from sae_jax.progress import Progress


@dataclass(frozen=True)
class Options:
    """How to run it; nothing here changes what is trained."""

    run_dir: Path | None = flag(None, "where the run lies (default: runs/, named by what was asked for)")
    cache_dir: Path = flag(default_cache_dir(), "where harvested activations and compiled programs are kept")
    ce_windows: int = flag(256, "held-out windows on which loss recovered is measured at the end; 0: not at all")
    checkpoint_seconds: float = flag(60.0, "seconds between checkpoints")
    snapshots: int = flag(10, "how often decoders are kept on the way, at log-spaced steps (for `study`); 0: never")
    resume: bool = flag(False, "go on with an interrupted run from its last checkpoint")
    force: bool = flag(False, "start again, also where the run is finished or interrupted")
    quiet: bool = flag(False, "print nothing but where the results lie")
    dry_run: bool = flag(False, "print what would be trained, and about what it costs, and train nothing")
    use_wandb: bool = flag(False, "log to Weights & Biases; offline where there is no login")
    wandb_project: str = flag("sae-interpretability", "the project there")
    log_freq: int = flag(100, "steps from one point logged there to the next, at least")
    wandb_per_member: bool = flag(False, "a run there for each member, in one group, in place of one with all")
    wandb_artifact: bool = flag(False, "keep the finished run directory there, as an artifact")


def build_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--preset", metavar="NAME", help="defaults of a published set-up, or list (flags win over it)")
    parser.add_flags("activations", HarvestRequest)
    parser.add_flags("training", TrainConfig)
    parser.add_flags("running", Options)
    return parser


COMMANDS = (  # `run(argv)` of analysis/commands/NAME.py
    "attribute",
    "dashboard",
    "evaluate",
    "export",
    "find-feature",
    "frontier",
    "report",
    "saebench",
    "show",
    "steer",
    "study",
)
WANDB_FLAGS = ("--wandb-project", "--log-freq", "--wandb-per-member", "--wandb-artifact")
LEVEL_OF_FLAG = {"--k": "k", "--aux-coefficient": "k", "--target-l0": "target_l0", "--sparsity": "target_l0"}


def parse(argv: list[str]) -> tuple[HarvestRequest, TrainConfig, Options, dict[str, Any] | None]:
    """The flags, checked, and the record of a preset. Raises InputError."""
    parser = build_parser()
    values, record = vars(parser.parse_args(argv)), None
    changes: list[str] = []
    given = {argument.partition("=")[0] for argument in argv}
    if name := values["preset"]:
        preset = preset_named(name)
        parser.set_defaults(**preset.flags)
        values = vars(parser.parse_args(argv))
        if bundled := bundled_model(values["model_name"]):
            values, changes = scale_down(values, {flag[2:].replace("-", "_") for flag in given}, bundled)
        record = {"name": name, "not_followed": preset.not_followed, "scaled_down": changes}
    request, config, options = filled(HarvestRequest, values), filled(TrainConfig, values), filled(Options, values)
    for name, level in LEVEL_OF_FLAG.items():
        if name in given and not any(level in LEVELS[kind] for kind in config.activation) and not config.members:
            raise InputError(f"{name} means nothing to --activation {' '.join(config.activation)}: leave it out")
    if {"--target-l0", "--sparsity"} <= given:
        raise InputError("--target-l0 and --sparsity: steer to an L0, or fix the coefficient? Give one of them")
    if options.resume and options.force:
        raise InputError("--resume and --force: go on, or start again? Give one of them")
    if not options.use_wandb and (idle := [name for name in WANDB_FLAGS if name in given]):
        raise InputError(f"{idle[0]} means nothing without --use-wandb: add that, or leave it out")
    if options.log_freq < 1:
        raise InputError(f"--log-freq {options.log_freq}: must be 1 or more")
    members_of(config, request.sites)
    if request.held_out == 1:
        raise InputError("--held-out 1: leaves nothing to train on; must be between 0 and 1")
    if config.batch_size > (most := request.n_samples * request.seq_len):
        raise InputError(f"--batch-size {config.batch_size}: --n-samples times --seq-len are at most {most:,} rows")
    if not options.checkpoint_seconds > 0:
        raise InputError(f"--checkpoint-seconds {options.checkpoint_seconds}: must be a positive number")
    for name in ("ce_windows", "snapshots"):
        if (value := getattr(options, name)) < 0:
            raise InputError(f"--{name.replace('_', '-')} {value}: must be 0 or more")
    return request, config, options, record


def main(argv: list[str]) -> None:
    if argv and argv[0] in COMMANDS:
        import_module(f"analysis.commands.{argv[0].replace('-', '_')}").run(argv[1:])
        return
    if build_parser().parse_args(argv).preset == "list":
        list_presets()
        return
    request, config, options, preset = parse(argv)
    if options.dry_run:
        model, _ = resolve(request)
        if model.d_model is None:
            raise InputError(f"--dry-run: the config of {model.location} does not say how wide the model is")
        from sae_jax.plan import plan

        with Terminal(quiet=options.quiet) as terminal:
            say_preset(preset, terminal)
            terminal.plan(plan(config, request, model.d_model))
        return
    asked = {"harvest": request.to_json(), "train": config.to_json(), "files": named_files(request)}
    asked |= {"preset": preset} if preset else {}
    run = RunDirectory(options.run_dir or Path("runs") / default_name(asked), asked)
    run.refuse_another_run()
    with Terminal(quiet=options.quiet) as terminal, ExitStack() as others:
        say_preset(preset, terminal)
        if run.results and not options.force and not lacks_loss_recovered(run.results, request, options):
            terminal.say(f"{run.path} is finished; --force does it again")
            show(run, run.results, terminal)
            return
        if run.interrupted and not (options.resume or options.force):
            raise InputError(f"{run.path} was interrupted: add --resume to go on, or --force to start again")
        log = None
        if options.use_wandb:
            log = others.enter_context(wandb_log(request, config, options, run, terminal))
        stores, results = work(request, config, options, run, terminal, log)
        if lacks_loss_recovered(results, request, options):
            from analysis.loss_recovered import complete_run

            location = resolve(request)[0].location
            results = complete_run(run, stores, location, options.ce_windows, terminal.progress)
        elif options.ce_windows and "loss_recovered" not in results:
            terminal.say(f"loss recovered is not measured: windows of {request.seq_len} tokens leave none to predict")
        show(run, results, terminal, anew=True)
        if log:
            log.results(results, run.path)


def wandb_log(
    request: HarvestRequest, config: TrainConfig, options: Options, run: RunDirectory, terminal: Terminal
) -> WandbLog:
    from analysis.faces.wandb_log import WandbLog, WandbOptions

    members = {member.id: asdict(member) for member in members_of(config, request.sites)}
    asked = {key: value for part in run.asked.values() for key, value in part.items()}
    chosen = WandbOptions(
        project=options.wandb_project,
        log_freq=options.log_freq,
        per_member=options.wandb_per_member,
        artifact=options.wandb_artifact,
    )
    return WandbLog(chosen, run.path, asked, members, terminal.say)


def list_presets() -> None:
    bundled = bundled_model("bundled")
    with Terminal() as terminal:
        costs = {name: (preset, cost_of(preset), cost_of(preset, bundled)) for name, preset in PRESETS.items()}
        terminal.show(preset_table(costs))


def say_preset(preset: dict[str, Any] | None, terminal: Terminal) -> None:
    if preset and preset["scaled_down"]:
        terminal.say(f"--preset {preset['name']} scaled down to the bundled model: {', '.join(preset['scaled_down'])}")
    if preset and preset["not_followed"]:
        terminal.say(f"--preset {preset['name']} does not follow: {'; '.join(preset['not_followed'])}")


def show(run: RunDirectory, results: dict, terminal: Terminal, anew: bool = False) -> None:
    """The box of results and, where a kind was trained at several sparsities, the frontier."""
    frontier = compute(run.path)
    if frontier.has_curve:
        if anew or not (run.path / "figures" / "frontier.svg").exists():
            write(frontier, run.path)
        terminal.say(frontier.title)
        terminal.show(frontier_table(frontier))
        terminal.say(f"figure: {run.path / 'figures' / 'frontier.png'}, and .svg")
    terminal.results(results, str(run.path))


def lacks_loss_recovered(results: dict, request: HarvestRequest, options: Options) -> bool:
    """Whether it can, and is yet to be measured, on as many windows as are asked for."""
    if request.seq_len - (not request.keep_first_position) < 2:
        return False
    return options.ce_windows not in (0, results.get("loss_recovered", {}).get("windows_asked"))


def work(
    request: HarvestRequest,
    config: TrainConfig,
    options: Options,
    run: RunDirectory,
    terminal: Terminal,
    log: WandbLog | None,
) -> tuple[dict[Site, ActivationStore], dict]:
    """(the stores, the content of results.json, of a run finished before that of then)."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(options.cache_dir / "compiled"))
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(cpu_count()))  # members train on all cores, each on its own
    if not run.results or options.force:
        from sae_jax.plan import refuse_before_harvest

        refuse_before_harvest(config, request)
    began = time.perf_counter()
    stores = harvest(request, options.cache_dir, on_progress=terminal.progress, say=terminal.say)
    harvest_seconds = time.perf_counter() - began
    if run.results and not options.force:
        terminal.say(f"{run.path} is trained, but its loss recovered is to be measured")
        return stores, run.results

    import jax

    from sae_jax.train import train

    def on_progress(progress: Progress) -> None:
        terminal.training_progress(progress)
        if log:
            log.training_progress(progress)

    terminal.say(f"training on {jax.default_backend()}")
    results = train(
        config,
        list(stores.values()),
        run,
        resume=options.resume,
        force=options.force,
        checkpoint_seconds=options.checkpoint_seconds,
        snapshots=options.snapshots,
        harvest_seconds=harvest_seconds,
        on_progress=on_progress,
        say=terminal.say,
    )
    return stores, results


def run_as_command(argv: list[str]) -> int:
    """Exit status: 0 done, 1 failed, 2 bad input, 130 stopped. Only defects of this program show a traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # outside training, too, it stops with a word
    try:
        with memory_said(argv):
            main(argv)
    except KeyboardInterrupt:
        return fail("stopped; the same command again (with --resume once training has begun) goes on", 130)
    except InputError as e:
        return fail(str(e), 2)
    except MemoryError as e:
        return fail(str(e), 1)
    except OSError as e:
        if e.errno not in DISK_FULL:
            return fail(f"{e.strerror or e}: {e.filename or 'no file named'}", 1)
        where = e.filename or "while writing"
        return fail(f"the disk is full ({where}): what was done before stays; make room and --resume", 1)
    except RuntimeError as e:
        from sae_jax.progress import Diverged, Interrupted

        if isinstance(e, Interrupted):
            return fail(f"{e}; the same command with --resume goes on", 130)
        if isinstance(e, Diverged):
            return fail(str(e), 1)
        raise
    return 0


NEEDS_LESS_MEMORY = {  # by command; training has no name
    "": "a smaller --hidden-dim, fewer members or a smaller --batch-size need less",
    "attribute": "a shorter --prompt needs less",
    "evaluate": "fewer dictionaries at once or a shorter --seq-len need less",
    "find-feature": "fewer members at once (--member) or fewer --passages need less",
    "saebench": "fewer members at once (--member) need less",
    "steer": "a shorter prompt or fewer --candidates need less",
    "study": "fewer --documents need less",
}


@contextmanager
def memory_said(argv: list[str]) -> Iterator[None]:
    """Raises MemoryError, with what would need less, for whatever a library raises where no memory is left."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        command = argv[0] if argv and argv[0] in COMMANDS else ""
        advice = NEEDS_LESS_MEMORY.get(command, "a run with fewer or narrower members needs less")
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise MemoryError(f"there is not enough memory ({reason}): {advice}") from error


def fail(message: str, status: int) -> int:
    line = " ".join(message.splitlines())
    print(line if status == 130 else f"error: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(run_as_command(sys.argv[1:]))
