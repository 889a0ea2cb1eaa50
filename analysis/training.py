"""A training run from the request to its results: harvest, train, measure. The command line and Python share it."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, fields
from numbers import Integral
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Protocol

from analysis.ui.terminal.wording import counted, duration_text, pasted, place_text
from harvest.capture import harvest, harvest_again
from harvest.errors import InputError
from harvest.flags import COUNT, DEVICE, NUMBER, POSITIVE, Allowed, Flags, flag, named
from harvest.imports.stored_rows import stored_rows
from harvest.request import DEFAULT_DATASET, DEFAULT_MODEL, IMPORTED, HarvestRequest, Site, default_cache_dir
from harvest.row_formats import BYTES
from harvest.sources import named_files, resolve
from harvest.store import ActivationStore
from harvest.streaming.order import AHEAD
from harvest.streaming.plan import StreamPlan, windows_of_shard
from harvest.streaming.stream import Stream
from harvest.text.documents import documents
from sae_jax.config import FLAGS_OF_SOME_KINDS, TrainConfig, flags_of_kind
from sae_jax.members import members_of
from sae_jax.run_directory import RING, RunDirectory, default_path

if TYPE_CHECKING:
    from analysis.ui.terminal.live import Terminal
    from analysis.ui.wandb_log import WandbLog
    from sae_jax.training.progress import Progress

WANDB_FLAGS = ("--wandb-project", "--log-freq")
STREAM_FLAGS = ("--ring-gb", "--sample-rows", "--ring-dir", "--producers")
PRODUCERS = Allowed(Integral, lambda v: 1 <= v <= AHEAD, f"a whole number, 1 to {AHEAD}")


class Show(Protocol):
    """Shows the results of a run, which has just been trained if `anew`."""

    def __call__(self, path: Path, results: dict[str, Any], *, anew: bool = False) -> object: ...


@dataclass(frozen=True)
class RunOptions(Flags):
    """The settings of how a run is carried out.

    Nothing here changes the trained weights, except that --model-dtype auto depends on the kind of the device.
    """

    run_dir: Path | None = flag(None, "directory of the run (default: a folder in runs/ named after the settings)")
    cache_dir: Path = flag(default_cache_dir(), "where harvested activations and compiled programs are kept")
    device: str | None = flag(
        None,
        "where the language model runs: cpu, cuda or cuda:N (default: cuda if torch finds it, otherwise cpu)",
        DEVICE,
    )
    ce_windows: int = flag(
        256, "held-out windows on which cross-entropy recovered is measured at the end; 0 skips it", NUMBER
    )
    ring_dir: Path | None = flag(
        None,
        "with --stream: where the ring lies, such as /dev/shm for the memory (default: in the directory of the run)",
    )
    producers: int = flag(1, "with --stream: processes that run the language model and share out the text", PRODUCERS)
    checkpoint_seconds: float = flag(60.0, "seconds between checkpoints", POSITIVE)
    snapshots: int = flag(
        10, "save decoders at the start and at up to this many log-spaced steps, for `study`; 0 saves none", NUMBER
    )
    resume: bool = flag(False, "continue an interrupted run from its last checkpoint")
    force: bool = flag(False, "start over, even if the run is finished or interrupted")
    use_wandb: bool = flag(False, "log to Weights & Biases; offline if you are not logged in")
    wandb_project: str = flag("sae-interpretability", "Weights & Biases project")
    log_freq: int = flag(100, "smallest number of steps between two points that are logged to Weights & Biases", COUNT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume and self.force:
            raise InputError("--resume continues the run, --force starts over: give only one of them")


def refuse_conflicts(request: HarvestRequest, config: TrainConfig, options: RunOptions, given: set[str]) -> None:
    """Raise InputError for settings that clash or have no effect; `given` are the flags that the user has given."""
    used = set().union(*map(flags_of_kind, config.activation))
    for name in (named(field) for field in FLAGS_OF_SOME_KINDS if field not in used):
        if name in given and not config.members:
            instead = {"--k": "--target-l0", "--target-l0": "--k"}.get(name)
            fix = f"give {instead}, or leave it out" if instead else "leave it out"
            raise InputError(f"{name} has no effect on --activation {' '.join(config.activation)}: {fix}")
    if {"--target-l0", "--sparsity"} <= given:
        raise InputError("--target-l0 steers to an L0, --sparsity fixes the coefficient: give only one of them")
    if request.rows and (idle := sorted(given & {named(f.name) for f in fields(HarvestRequest)} - {"--rows"})):
        raise InputError(f"{idle[0]} has no effect with --rows, whose store has its own: leave it out")
    if {"--tokens", "--n-samples"} <= given:
        raise InputError("--tokens and --n-samples both say how much text is read: give only one of them")
    if not options.use_wandb and (idle := [name for name in WANDB_FLAGS if name in given]):
        raise InputError(f"{idle[0]} has no effect without --use-wandb: add --use-wandb, or leave {idle[0]} out")
    if not request.stream and (idle := [name for name in STREAM_FLAGS if name in given]):
        raise InputError(f"{idle[0]} has no effect without --stream: add --stream, or leave {idle[0]} out")
    members_of(config, request.sites)
    if request.held_out == 1:
        raise InputError("--held-out 1 leaves nothing to train on: give a value below 1")
    if config.batch_size > request.training_rows:
        raise InputError(
            f"--batch-size {config.batch_size} is larger than the {request.training_rows:,} training rows: "
            "lower it, or raise --n-samples or --seq-len"
        )


def train_run(
    request: HarvestRequest,
    config: TrainConfig,
    options: RunOptions,
    terminal: Terminal,
    preset: dict[str, Any] | None = None,
    show: Show = lambda path, results, *, anew=False: None,
) -> Path:
    """Harvest, train and measure, unless the run is finished already, and `show` its results. Returns its directory.

    JAX must not be imported yet if the settings made here, for its compiled programs and its devices, are to take
    effect. Raises InputError for an interrupted run without --resume or --force.
    """
    asked = {"harvest": request.to_json(), "train": config.to_json(), "files": named_files(request)}
    asked |= {"preset": preset} if preset else {}
    run = RunDirectory(options.run_dir or default_path(asked), asked)
    run.refuse_another_run()
    run.note_places()
    if answered(run, request, options, terminal, show):
        return run.path
    terminal.say(f"training {job_text(request, config)}")
    if request.stream and config.epochs > 1:
        terminal.say(f"each of the {config.epochs} epochs runs the language model again; --epochs 1 runs it once")
    terminal.begin("loading the libraries")
    from joblib import cpu_count

    keep_compiled(options.cache_dir)
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(cpu_count()))  # spreads the members over all cores
    began, began_at = time.perf_counter(), time.time()
    stores = training_stores(request, config, options, run, terminal)
    made = [store for store in stores.values() if (store.directory / "manifest.json").stat().st_mtime >= began_at]
    harvest_seconds = time.perf_counter() - began if made else 0.0
    with ExitStack() as others:
        others.enter_context(run.held())
        if answered(run, request, options, terminal, show):  # another process may have finished it in the meantime
            return run.path
        log = None
        if options.use_wandb:
            log = others.enter_context(wandb_log(request, config, options, run, terminal))
        results = work(stores, harvest_seconds, request, config, options, run, terminal, log)
        show(run.path, results, anew=True)
        if log:
            terminal.begin("sending the last figures to W&B")
            log.results(results)
    return run.path


def training_stores(
    request: HarvestRequest, config: TrainConfig, options: RunOptions, run: RunDirectory, terminal: Terminal
) -> dict[Site, ActivationStore]:
    """The rows to train on: those of a given store, those that the run began with, or harvested ones."""
    if request.rows:
        say_cost(config, request, ActivationStore(request.rows).d_model, terminal)
        return stored_rows(request, terminal.say)
    how: dict[str, Any] = {"on_progress": terminal.progress, "say": terminal.say, "device": options.device}
    how["loss_recovered"] = measures_loss_recovered(request, options)
    if options.resume:
        if run.stores:
            return harvest_again(request, run.stores, options.cache_dir, **how)
        return harvest(request, options.cache_dir, **how)
    model, dataset = resolve(request, options.cache_dir)  # called once, because an unreachable hub takes long
    if Path(dataset.location).exists():  # a column that is not there is found before the model is loaded
        next(documents(dataset.location, column=request.text_column), None)
    if d_model := model.width(request.hook):  # `train` checks the memory again, with the devices that JAX has found
        say_cost(config, request, d_model, terminal)
        if request.stream:  # `StreamPlan.of` checks it again, without BOS
            window_bytes = request.rows_per_window * d_model * BYTES[request.store_dtype] * len(request.sites)
            windows_of_shard(request.ring_gb, request.seq_len, window_bytes)
    return harvest(request, options.cache_dir, sources=(model, dataset), **how)


def job_text(request: HarvestRequest, config: TrainConfig) -> str:
    """What will be trained, in a line."""
    members = members_of(config, request.sites)
    kinds, sites = dict.fromkeys(m.activation for m in members), dict.fromkeys((m.hook, m.layer) for m in members)
    what = f"{counted(len(members), 'member')} ({', '.join(kinds)}) for {counted(config.epochs, 'epoch')} on"
    if request.rows:
        return f"{what} the rows in {request.rows}"
    where = ", ".join(place_text(hook, layer) for hook, layer in sites)
    text, model = request.dataset or DEFAULT_DATASET, request.model_name or DEFAULT_MODEL
    text, model = (f"the bundled {kind}" if n == "bundled" else n for n, kind in ((text, "text"), (model, "model")))
    length = f"{request.seq_len} tokens of {text}"
    length += f" and {counted(request.generate, 'token')} that the model writes behind them" if request.generate else ""
    streamed = f", streamed through a ring of {request.ring_gb:g} GB" if request.stream else ""
    return f"{what} {request.n_samples:,} windows of {length}: {where} of {model}{streamed}"


def say_cost(config: TrainConfig, request: HarvestRequest, d_model: int, terminal: Terminal) -> None:
    """Say about how long training takes. Raises InputError if it needs more memory than this machine has."""
    from sae_jax.cost import plan
    from sae_jax.training.memory import has_accelerator, refuse_too_large

    planned = plan(config, request, d_model)
    refuse_too_large(planned.memory)
    if not has_accelerator():
        seconds = duration_text(planned.seconds)
        terminal.say(
            f"{counted(planned.steps, 'step')}: about {seconds} of compiling and training on this CPU if nothing else "
            f"runs, besides {'the language model' if request.stream else 'harvesting'} and measuring"
        )


def keep_compiled(cache_dir: Path) -> None:
    """Let JAX, which must not be imported yet, keep its compiled programs in the cache directory."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir / "compiled"))


def answered(run: RunDirectory, request: HarvestRequest, options: RunOptions, terminal: Terminal, show: Show) -> bool:
    """Show the results if the run is finished already, and return whether it is.

    Raises InputError for an interrupted run without --resume or --force.
    """
    if run.interrupted and not (options.resume or options.force):
        raise InputError(f"{run.path} was interrupted: add --resume to continue, or --force to start over")
    results = run.results
    if not results or options.force:
        return False
    terminal.say(f"{run.path} is finished; --force trains it again")
    measured = results.get("loss_recovered", {}).get("windows_asked", 0)
    if measures_loss_recovered(request, options) and measured != options.ce_windows:
        again = pasted(f"python main.py evaluate {quote(str(run.path))} --ce-windows {options.ce_windows}")
        terminal.say(f"its cross-entropy recovered was measured on {measured} windows: `{again}` measures it on others")
    show(run.path, results)
    return True


def wandb_log(
    request: HarvestRequest, config: TrainConfig, options: RunOptions, run: RunDirectory, terminal: Terminal
) -> WandbLog:
    from analysis.ui.wandb_log import WandbLog

    settings = dict(run.asked)
    asked = settings.pop("harvest") | settings.pop("train") | settings
    members = [member.id for member in members_of(config, request.sites)]
    return WandbLog(run.path, asked | {"members": members}, terminal.say, options.wandb_project, options.log_freq)


def measures_loss_recovered(request: HarvestRequest, options: RunOptions) -> bool:
    """Whether the run measures loss recovered: it is asked to, and its windows have a next token to predict."""
    return options.ce_windows > 0 and request.positions >= 2 and IMPORTED not in request.hook


def work(
    stores: dict[Site, ActivationStore],
    harvest_seconds: float,
    request: HarvestRequest,
    config: TrainConfig,
    options: RunOptions,
    run: RunDirectory,
    terminal: Terminal,
    log: WandbLog | None,
) -> dict:
    """Train, measure loss recovered, and return the content of results.json."""
    import jax

    from analysis.quality.loss_recovered import add_loss_recovered
    from sae_jax.training.loop import train

    def on_progress(progress: Progress) -> None:
        terminal.training_progress(progress)
        if log:
            log.training_progress(progress)

    def measure(results: dict) -> None:
        if measures_loss_recovered(request, options):
            terminal.begin("loading the language model to measure cross-entropy recovered")
            add_loss_recovered(results, run.path, stores, options.ce_windows, terminal.progress, options.device)
        elif options.ce_windows:
            why = f"windows of {counted(request.seq_len, 'token')} are too short for it: use a longer --seq-len"
            if IMPORTED in request.hook:
                why = next(iter(stores.values())).manifest["no_loss_recovered"]
            terminal.say(f"cross-entropy recovered is not measured: {why}")

    terminal.begin(f"compiling the training step, then training on {jax.default_backend()}")
    return train(
        config,
        list(stores.values()),
        run,
        stream=stream_of(stores, request, config, options, run, terminal) if request.stream else None,
        resume=options.resume,
        force=options.force,
        checkpoint_seconds=options.checkpoint_seconds,
        snapshots=options.snapshots,
        harvest_seconds=harvest_seconds,
        measure=measure,
        on_progress=on_progress,
        on_phase=terminal.progress,
        say=terminal.say,
    )


def stream_of(
    stores: dict[Site, ActivationStore],
    request: HarvestRequest,
    config: TrainConfig,
    options: RunOptions,
    run: RunDirectory,
    terminal: Terminal,
) -> Stream:
    """The rows that the language model makes while the training runs."""
    plan = StreamPlan.of(list(stores.values()), request.ring_gb, config.epochs, config.data_seed)
    place = run.path / RING
    if options.ring_dir:
        run_hash = hashlib.sha256(str(run.path.resolve()).encode()).hexdigest()[:8]
        place = options.ring_dir / f"ring-{run_hash}"
    return Stream(plan, place.absolute(), options.producers, options.device, terminal.say)
