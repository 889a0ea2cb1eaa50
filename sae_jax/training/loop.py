"""A training run from start to end: rows, population, restore, loop, export, evaluation, results."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np

from harvest.errors import InputError
from harvest.identity import identity
from harvest.request import Site
from harvest.sources import name_of
from harvest.store import ActivationStore, compared_meanwhile
from harvest.streaming.stream import Stream
from sae_jax.calibration import calibration_sample
from sae_jax.config import TrainConfig
from sae_jax.evaluate import Evaluation
from sae_jax.members import Member, members_of
from sae_jax.run_directory import METRICS_FILE, RunDirectory
from sae_jax.training import processes
from sae_jax.training.axes import AUTO, Axes, axes_asked
from sae_jax.training.batches import BLOCK_BYTES, Blocks, Feed, StreamFeed
from sae_jax.training.export import export_and_evaluate, measured_on
from sae_jax.training.memory import needed, refuse_too_large
from sae_jax.training.mesh import Placement
from sae_jax.training.mesh_plan import machine_of_jax, plan_mesh
from sae_jax.training.population import (
    Population,
    Rows,
    State,
    abstract_group,
    groups_of,
    hyper_of,
    stack,
    start_group,
    steps_to_die,
)
from sae_jax.training.programs import make_train_block
from sae_jax.training.progress import Interrupted, Progress, Reporter, StopSignals, reason
from sae_jax.training.records import Records
from sae_jax.training.scaling import metric_of, normalization_of
from sae_jax.training.snapshots import snapshot_steps

START_ROWS, START_VALUES = 4096, 1 << 22  # at most, for the quantiles of the initialization: rows, pre-activations
MAX_BLOCK_STEPS = 256


def train(
    config: TrainConfig,
    stores: Sequence[ActivationStore],
    run: RunDirectory,
    *,
    stream: Stream | None = None,
    mesh: str = AUTO,
    resume: bool = False,
    force: bool = False,
    checkpoint_seconds: float = 60.0,
    snapshots: int = 0,
    harvest_seconds: float = 0.0,
    measure: Callable[[dict], None] = lambda results: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_phase: Callable[[str, int, int], None] = lambda phase, done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> dict:
    """Train the population of `config` on the stores, evaluate it on held-out rows, fill the run directory.

    `stores` hold the same text at different sites of one model. With a `stream`, the training rows come from it and not
    from the stores, which hold a sample of them. `mesh` has the form of `axes_asked`. A member whose loss is not finite
    is frozen and reported, and the others continue. `on_phase` gets the phase, what is done and the total of the work
    after the last step. `measure` adds further metrics to the results before they are written. Returns the content of
    results.json. Raises InputError, Diverged if all members have failed, or Interrupted (on SIGINT and SIGTERM).

    All processes of a `jax.distributed` cluster call this function with the same arguments. Process 0 writes the run
    directory. The others return {} as soon as the training is over, and the cluster is then shut down.
    """
    if run.results and not force:
        raise InputError(f"{run.path} already holds a finished run (results.json): pass force=True to train it again")
    splits = [store.train.not_compared() for store in stores]
    if stream:
        feed: Blocks = StreamFeed(stream, splits, config.batch_size)
    else:
        feed = Feed(splits, config.batch_size, config.epochs, config.data_seed)
    population = populate(config, stores, feed, mesh)
    refuse_if_too_large(population)
    with run.held() if processes.is_first() else nullcontext(), compared_meanwhile(stores) as rows_compared:
        if processes.is_first():
            begin(run, population, feed.total_steps, snapshots, resume, say)
        records = Records(run, population, checkpoint_seconds, rows_compared, say)
        with stream or nullcontext():
            states, report = learn(population, feed, records, resume, snapshots, on_progress, say)
        processes.part()
        if not processes.is_first():
            return {}
        evaluated = time.perf_counter()
        evaluations = export_and_evaluate(population, states, run, report, feed.total_steps, on_phase)
        del states
        seconds_here = evaluated - records.began
        training_seconds = records.seconds_before + seconds_here
        manifest = stores[0].manifest
        results = {
            "model": {"name": name_of("model", manifest["model"]), "fell_back": manifest["model"]["fell_back"]},
            "dataset": {"name": name_of("dataset", manifest["dataset"]), "fell_back": manifest["dataset"]["fell_back"]},
            "held_out": measured_on(stores[0]),
            "backend": jax.default_backend(),
            "members": [result_of(m, report.failed.get(m.id), evaluations.get(m.id)) for m in population.members()],
            "timing": {
                "harvest_seconds": harvest_seconds,
                "training_seconds": training_seconds,
                "evaluation_seconds": time.perf_counter() - evaluated,
                "steps": feed.total_steps,
                "rows_per_second": feed.total_steps * config.batch_size / training_seconds,
                "data_wait": feed.wait_seconds / seconds_here,
                **({"producer_wait": stream.producer_wait} if stream else {}),
            },
            METRICS_FILE: run.metrics_written(),
        }
        measure(results)
        run.finish(results)
        return results


def begin(
    run: RunDirectory,
    population: Population,
    total_steps: int,
    snapshots: int,
    resume: bool,
    say: Callable[[str], None],
) -> None:
    """Write what is known of the run before it is trained."""
    l0_asked = {m.id: m.l0_asked for m in population.members()}
    plan = {"total_steps": total_steps, "l0_asked": l0_asked, "snapshots": snapshots}
    facts = [store_facts(store) for store in population.stores]
    if changed := run.begin(facts, environment(population.axes), plan, resume):
        say(f"this run was started in another environment, so the last digits may differ: {changed}")


def populate(config: TrainConfig, stores: Sequence[ActivationStore], feed: Blocks, mesh: str = AUTO) -> Population:
    sites = tuple(Site(store.manifest["layer"], store.manifest["hook"]) for store in stores)
    for store in stores:
        same = [key for key in ("windows_hash", "d_model") if store.manifest.get(key) != stores[0].manifest.get(key)]
        if same or store.train.n_windows != stores[0].train.n_windows:
            raise InputError(
                f"{store.directory} and {stores[0].directory} differ in their text or model: "
                "train on stores of one text and one model"
            )
        if not store.std.any() or np.ptp(store.held_out.read(0, START_ROWS), axis=0).max() == 0:
            raise InputError(f"all rows of one split of {store.directory} are equal: use more or longer text")
    members = members_of(config, sites)
    whole = groups_of(members, config, stores[0].d_model)
    plan = plan_mesh(whole, config, machine_of_jax(), axes_asked(mesh))
    axes, side_by_side = processes.team().agree(plan)  # devices may differ
    axes = Axes(*axes)
    groups = groups_of(members, config, stores[0].d_model, axes.splits_members)
    rows = {}
    for member in members:
        site = sites.index(Site(member.layer, member.hook))
        shift_D, scale_D = normalization_of(stores[site], member.normalization)
        metric_D = metric_of(stores[site], member.loss_metric, scale_D)
        rows[member.id] = Rows(site, shift_D, scale_D, metric_D)
    hypers = [stack([hyper_of(m, rows[m.id], config, feed.total_steps) for m in g.members]) for g in groups]
    samples = [calibration_sample(store.held_out) for store in stores]
    calibration_LxNxD = np.stack([sample_NxD[: min(map(len, samples))] for sample_NxD in samples])
    return Population(config, stores, groups, axes, side_by_side, rows, hypers, calibration_LxNxD)


def refuse_if_too_large(population: Population) -> None:
    stored = sum(len(store.train) * store.train[0].nbytes for store in population.stores)
    on_host = jax.default_backend() == "cpu"
    refuse_too_large(
        needed(population.groups, population.config, stored, population.axes, on_host, population.side_by_side)
    )


def learn(
    population: Population,
    feed: Blocks,
    records: Records,
    resume: bool,
    snapshots: int,
    on_progress: Callable[[Progress], None],
    say: Callable[[str], None],
) -> tuple[list[State], Reporter]:
    """(states to export, on the host; the reporter with the failed members)."""
    config, total = population.config, feed.total_steps
    abstract = [abstract_group(group, hyper) for group, hyper in zip(population.groups, population.hypers, strict=True)]
    step, restored = records.restore(abstract, resume, total)
    placement = Placement(population.groups, processes.devices(population.axes.devices), population.axes)
    states = placement.place(restored if step else start(population, feed, abstract))
    del restored
    hypers = placement.place(population.hypers)
    train_block = make_train_block(population.groups, population.side_by_side, placement)
    calibration_LxNxD = placement.everywhere(population.calibration_LxNxD)
    variances = {m.id: float(np.square(population.store_of(m).std).sum()) for m in population.members()}
    kept = records.append_metrics, records.rows_compared
    report = Reporter(population.groups, total, config.batch_size, variances, *kept, on_progress, say)
    block_steps = config.block_steps or default_block_steps(config, population.stores, total)
    to_keep = snapshot_steps(total, block_steps, snapshots)

    def gathered() -> Iterator[State]:
        """The arrays to export of one group after another, so that the host never holds all of the state."""
        return (placement.gather_group(number, state.to_export()) for number, state in enumerate(states))

    def report_block(step: int, steps: int, metrics: list[dict]) -> None:
        on_host = placement.gather(metrics)
        done = [{name: array[:, :steps] if array.ndim > 1 else array for name, array in of.items()} for of in on_host]
        report(step, done, feed.wait_seconds)

    if step == 0 and to_keep:
        records.keep_snapshot(step, gathered(), report.failed)
    # Metrics are fetched after the next block is dispatched, so that the device never waits in a single process.
    pending = None
    with StopSignals() as stop:
        for raw_LxSxBxD in feed.blocks(step, block_steps):
            steps = raw_LxSxBxD.shape[1]
            rows = placement.rows(padded(raw_LxSxBxD, min(block_steps, total)))
            count = placement.everywhere(np.array(steps, np.int32))
            states, metrics = train_block(states, hypers, rows, calibration_LxNxD, count)
            step += steps
            if pending:
                report_block(*pending)
            pending = step, steps, metrics
            if step in to_keep:
                records.keep_snapshot(step, gathered(), report.failed)
            asked = stop.asked  # read once: a signal between two reads would end the run without saving it
            stopping, due = processes.agreed(asked, not asked and records.due)
            if stopping or due or step == total:
                report_block(*pending)
                pending = None
                records.save(step, placement.gather(states))
            if stopping:
                records.close()
                processes.part()
                raise Interrupted(f"stopped and saved at step {step:,} of {total:,}")
    records.close()
    return list(gathered()), report


def padded(raw_LxSxBxD: np.ndarray, block_steps: int) -> np.ndarray:
    """The block with zeros for the steps that it lacks, so that all blocks have the same shape."""
    missing = block_steps - raw_LxSxBxD.shape[1]
    return np.pad(raw_LxSxBxD, ((0, 0), (0, missing), (0, 0), (0, 0))) if missing else raw_LxSxBxD


def start(population: Population, feed: Blocks, abstract: list[State]) -> Iterator[State]:
    """The initial states of all members, one group after another. Process 0 makes them, so that all have the same."""
    for group, hyper, shapes in zip(population.groups, population.hypers, abstract, strict=True):
        raw_LxNxD = feed.sample(min(START_ROWS, max(256, START_VALUES // group.signature.hidden_dim)))

        def rows_of(member: Member, raw_LxNxD=raw_LxNxD) -> jax.Array:
            rows = population.rows[member.id]
            return jnp.asarray((raw_LxNxD[rows.site] - rows.shift_D) / rows.scale_D, jnp.float32)

        state = start_group(group, hyper, rows_of) if processes.is_first() else None
        yield processes.from_first(state, shapes)


def default_block_steps(config: TrainConfig, stores: Sequence[ActivationStore], total_steps: int) -> int:
    """Steps per block: as many as are efficient, but few enough for dead features, which are revived between blocks."""
    by_size = BLOCK_BYTES // (config.batch_size * sum(store.train[0].nbytes for store in stores))
    return max(1, min(MAX_BLOCK_STEPS, by_size, int(steps_to_die(config, total_steps))))


def result_of(member: Member, failed_step: int | None, evaluation: Evaluation | None) -> dict:
    failed = None if failed_step is None else {"step": failed_step, "reason": reason(member)}
    metrics = evaluation.metrics if evaluation else None
    return {**asdict(member), "sparsity_control": member.sparsity_control, "failed": failed, "metrics": metrics}


def store_facts(store: ActivationStore) -> dict:
    """Facts about a store for config.json: its origin, and the `identity` by which it is recognized later."""
    facts = {name: store.manifest[name] for name in ("model", "dataset", "hook_name", "rows")}
    facts["rows"] = store.manifest.get("streamed_rows", facts["rows"])
    facts |= {
        name: store.manifest[name] for name in ("control", "bos", "model_dtype", "versions") if store.manifest.get(name)
    }
    return {"directory": store.directory.name, "identity": identity(store), **facts}


def environment(axes: Axes) -> dict:
    """The versions, the device and the order of sums (a mesh that splits members): the last digits depend on them."""
    packages = {name: version(name) for name in ("sae-jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")}
    device = jax.devices()[0]
    facts = {"python": platform.python_version(), **packages, "backend": device.platform, "device": device.device_kind}
    return facts | ({"mesh": str(axes)} if axes.splits_members else {})
