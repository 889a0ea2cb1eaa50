"""A training run from the request to its results: harvest, train, measure. The command line and Python share it."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import ExitStack
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Protocol

from analysis.run_options import RunOptions
from analysis.ui.terminal.wording import counted, duration_text, pasted, place_text
from harvest.capture import harvest, harvest_again
from harvest.errors import InputError
from harvest.flags import named
from harvest.imports.stored_rows import stored_rows
from harvest.placement import refuse_no_device
from harvest.request import DEFAULT_DATASET, DEFAULT_MODEL, IMPORTED, HarvestRequest, Site
from harvest.row_formats import BYTES
from harvest.sources import named_files, resolve
from harvest.store import ActivationStore
from harvest.streaming.plan import StreamPlan, windows_of_shard
from harvest.streaming.stream import Stream
from harvest.team import Team
from harvest.text.documents import documents
from sae_jax.config import TrainConfig
from sae_jax.members import members_of
from sae_jax.run_directory import RING, RunDirectory, default_name, default_path
from sae_jax.training.axes import axes_asked
from sae_jax.training.cluster import joined

if TYPE_CHECKING:
    from analysis.ui.terminal.live import Terminal
    from analysis.ui.wandb_log import WandbLog
    from sae_jax.training.progress import Progress


class Show(Protocol):
    """Shows the results of a run, which has just been trained if `anew`."""

    def __call__(self, path: Path, results: dict[str, Any], *, anew: bool = False) -> object: ...


def train_run(
    request: HarvestRequest,
    config: TrainConfig,
    options: RunOptions,
    terminal: Terminal,
    preset: dict[str, Any] | None = None,
    show: Show = lambda path, results, *, anew=False: None,
) -> Path | None:
    """Harvest, train and measure, unless the run is finished already, and `show` its results. Returns its directory.

    If several processes train together, process 0 shows the results, and the others return None. JAX must not be
    imported yet if the settings made here, for its compiled programs and its devices, are to take effect. Raises
    InputError for an interrupted run without --resume or --force.
    """
    asked = {"harvest": request.to_json(), "train": config.to_json(), "files": named_files(request)}
    asked |= {"preset": preset} if preset else {}
    run = RunDirectory(options.run_dir or default_path(asked), asked)
    if options.cluster:
        prepare_jax(options.cache_dir)
    settings = {"settings": default_name(asked)}
    settings |= {named(name): getattr(options, name) for name in ("mesh", "resume", "force", "snapshots")}
    with joined(options.cluster, run.path, settings) as team:
        if not team.leads:
            terminal.be_quiet()
        else:
            run.refuse_another_run()
            run.note_places()
        if team.agree(team.leads and answered(run, request, options, terminal, show)):
            return run.path if team.leads else None
        refuse_no_device(options.device)
        terminal.say(f"training {job_text(request, config, preset)}")
        if options.resume and team.leads and not (run.path / "config.json").exists():
            terminal.say(f"--resume: there is no run in {run.path}, so a new one starts there")
        if request.stream and config.epochs > 1:
            terminal.say(f"each of the {config.epochs} epochs runs the language model again; --epochs 1 runs it once")
        terminal.begin("loading the libraries")
        prepare_jax(options.cache_dir)
        began, began_at = time.perf_counter(), time.time()
        stores = training_stores(request, config, options, run, terminal, team)
        made = [store for store in stores.values() if (store.directory / "manifest.json").stat().st_mtime >= began_at]
        harvest_seconds = time.perf_counter() - began if made else 0.0
        say_fewer_steps(next(iter(stores.values())), request, config, terminal)
        with ExitStack() as others:
            if team.leads:
                others.enter_context(run.held())
            finished_meanwhile = team.leads and answered(run, request, options, terminal, show)
            if team.agree(finished_meanwhile):
                return run.path if team.leads else None
            log = None
            if options.use_wandb and team.leads:
                log = others.enter_context(wandb_log(request, config, options, run, terminal))
            results = work(stores, harvest_seconds, request, config, options, run, terminal, log)
            if not team.leads:
                return None
            show(run.path, results, anew=True)
            if log:
                terminal.begin("sending the last figures to W&B")
                log.results(results)
    return run.path


def training_stores(
    request: HarvestRequest,
    config: TrainConfig,
    options: RunOptions,
    run: RunDirectory,
    terminal: Terminal,
    team: Team,
) -> dict[Site, ActivationStore]:
    """The rows to train on: those of a given store, those that the run began with, or harvested ones."""
    if request.rows:
        say_cost(config, request, options, ActivationStore(request.rows).d_model, terminal)
        return stored_rows(request, terminal.say)
    how: dict[str, Any] = {
        "on_progress": terminal.progress,
        "say": terminal.say,
        "device": options.device,
        "team": team,
    }
    how["loss_recovered"] = measures_loss_recovered(request, options)
    if options.resume:
        if began_with := team.agree(run.stores if team.leads else None):
            return harvest_again(request, began_with, options.cache_dir, **how)
        return harvest(request, options.cache_dir, **how)
    model, dataset = resolve(request, options.cache_dir)  # called once, because an unreachable hub takes long
    if Path(dataset.location).exists():  # a column that is not there is found before the model is loaded
        next(documents(dataset.location, column=request.text_column), None)
    if d_model := model.width(request.hook):  # `train` checks the memory again, with the devices that JAX has found
        say_cost(config, request, options, d_model, terminal)
        if request.stream:  # `StreamPlan.of` checks it again, without BOS
            window_bytes = request.rows_per_window * d_model * BYTES[request.store_dtype] * len(request.sites)
            windows_of_shard(request.ring_gb, request.seq_len, window_bytes)
    return harvest(request, options.cache_dir, sources=(model, dataset), **how)


def job_text(request: HarvestRequest, config: TrainConfig, preset: dict[str, Any] | None = None) -> str:
    """A line that describes the training. A preset that was scaled down is for the bundled model."""
    members = members_of(config, request.sites)
    kinds, sites = dict.fromkeys(m.activation for m in members), dict.fromkeys((m.hook, m.layer) for m in members)
    what = f"{counted(len(members), 'member')} ({', '.join(kinds)}) for {counted(config.epochs, 'epoch')} on"
    if request.rows:
        return f"{what} the rows in {request.rows}"
    where = ", ".join(place_text(hook, layer) for hook, layer in sites)
    default_model = "bundled" if preset and preset["scaled_down"] else DEFAULT_MODEL
    text, model = request.dataset or DEFAULT_DATASET, request.model_name or default_model
    text, model = (f"the bundled {kind}" if n == "bundled" else n for n, kind in ((text, "text"), (model, "model")))
    length = f"{request.seq_len} tokens of {text}"
    length += f" and {counted(request.generate, 'token')} that the model writes behind them" if request.generate else ""
    streamed = f", streamed through a ring of {request.ring_gb:g} GB" if request.stream else ""
    return f"{what} up to {request.n_samples:,} windows of {length}: {where} of {model}{streamed}"


def say_cost(
    config: TrainConfig, request: HarvestRequest, options: RunOptions, d_model: int, terminal: Terminal
) -> None:
    """Say about how long training takes. Raises InputError if it needs more memory than this machine has."""
    from sae_jax.cost import plan
    from sae_jax.training.memory import has_accelerator, refuse_too_large
    from sae_jax.training.mesh_plan import machine_before_jax, machine_of_jax

    machine = machine_of_jax() if options.cluster else machine_before_jax()  # a cluster has started JAX
    known = machine.on_host or options.cluster  # the devices of an accelerator are counted when training starts
    planned = plan(config, request, d_model, machine, axes_asked(options.mesh) if known else None)
    refuse_too_large(planned.memory)
    if not has_accelerator():
        seconds = duration_text(planned.seconds)
        terminal.say(
            f"{counted(planned.steps, 'step')}: about {seconds} of compiling and training on this CPU if nothing else "
            f"runs, besides {'the language model' if request.stream else 'harvesting'} and measuring"
        )


def say_fewer_steps(store: ActivationStore, request: HarvestRequest, config: TrainConfig, terminal: Terminal) -> None:
    """Say how many steps there are if the text was shorter than the steps announced by `say_cost` need."""
    rows = store.manifest.get("streamed_rows", len(store.train))
    steps, announced = (config.steps(n, request.stream) for n in (rows, request.training_rows))
    if not request.rows and steps < 0.9 * announced:
        terminal.say(f"so there are {counted(steps, 'step')} instead of {announced:,}, which take less time")


def prepare_jax(cache_dir: Path) -> None:
    """Settings of JAX, which must not be imported yet: kept programs, and every CPU core as a device for members."""
    from joblib import cpu_count

    keep_compiled(cache_dir)
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(cpu_count()))


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
        mesh=options.mesh,
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
