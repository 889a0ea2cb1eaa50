"""The training run, top to bottom: data, state, restore, loop, export, evaluate, results."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np

from harvest.errors import InputError
from harvest.store import ActivationStore, write_atomically
from sae_jax.checkpoint import Checkpoints
from sae_jax.config import Member, TrainConfig
from sae_jax.evaluate import Evaluation, evaluate
from sae_jax.feed import Feed
from sae_jax.formats import fold_normalization, load_member, save_member
from sae_jax.population import Group, State, groups_of, hyper_of, stack, start_member, steps_to_die
from sae_jax.progress import Diverged, Interrupted, Progress, Reporter, StopSignals
from sae_jax.run_directory import RunDirectory
from sae_jax.step import Normalization, make_train_block

START_ROWS, START_VALUES = 4096, 1 << 22  # rows, and pre-activations, that a start's quantile is taken over
BLOCK_BYTES, MAX_BLOCK_STEPS = 16 << 20, 256


def train(
    config: TrainConfig,
    store: ActivationStore,
    run: RunDirectory,
    *,
    resume: bool = False,
    checkpoint_seconds: float = 60.0,
    harvest_seconds: float = 0.0,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    say: Callable[[str], None] = lambda text: None,
) -> dict:
    """Train the population of `config` on the store, evaluate it on held-out rows, fill the run directory.

    Returns the content of results.json. Raises InputError, Diverged, or Interrupted (on SIGINT and SIGTERM).
    """
    feed = Feed(store.train, config.batch_size, config.epochs, config.seed)
    groups = groups_of(config, store.d_model)
    hypers = [stack([hyper_of(m, config, feed.total_steps) for m in g.members]) for g in groups]
    normalization = normalization_of(store, config.normalize_activations)
    variance = float(np.square(store.std).sum())
    if variance == 0 or np.ptp(store.held_out.read(0, START_ROWS), axis=0).max() == 0:
        raise InputError(f"all rows of a split of {store.directory} are the same: use more or longer text")

    with run.held():
        if changed := run.begin(store_facts(store), environment(), resume):
            say(f"begun in another environment, so the last digits may differ: {changed}")
        checkpoints = Checkpoints(run.checkpoints, checkpoint_seconds)
        states = start(groups, hypers, feed, normalization)
        step = first_step = checkpoints.latest_step or 0
        if first_step:
            states = checkpoints.restore(states)
            say(f"resuming at step {first_step:,} of {feed.total_steps:,}")
        elif resume:
            say("nothing to resume: starting at the first step")
        run.rewind_metrics(first_step)

        train_block = make_train_block(groups, side_by_side=1 if jax.default_backend() == "cpu" else 1 << 30)
        report = Reporter(groups, feed.total_steps, config.batch_size, variance, run, on_progress)
        block_steps = config.block_steps or default_block_steps(config, store, feed.total_steps)
        pending = None  # metrics are fetched once the next block is dispatched, so that the device never waits
        with StopSignals() as stop:
            for raw_SxBxD in feed.blocks(first_step, block_steps):
                states, metrics = train_block(states, hypers, normalization, jnp.asarray(raw_SxBxD))
                step += len(raw_SxBxD)
                if pending:
                    report(*pending, feed.wait_seconds)
                pending = step, metrics
                if stop.asked or checkpoints.due or step == feed.total_steps:
                    report(*pending, feed.wait_seconds)  # raises before a lost state is saved
                    pending = None
                    checkpoints.save(step, states)
                if stop.asked:
                    checkpoints.close()
                    raise Interrupted(f"stopped at step {step:,} of {feed.total_steps:,}, all saved")
        checkpoints.close()
        training_seconds = time.perf_counter() - report.began

        evaluations = export_and_evaluate(groups, states, normalization, store, run)
        for member in config.members():  # the last step's loss was finite, but what it made of the weights may not be
            if not np.isfinite(list(evaluations[member.id].metrics.values())).all():
                raise Diverged(member, step)
        results = {
            "model": {"name": store.manifest["model"]["location"], "fell_back": store.manifest["model"]["fell_back"]},
            "backend": jax.default_backend(),
            "members": [result_of(m, store.manifest, evaluations[m.id]) for g in groups for m in g.members],
            "timing": {
                "harvest_seconds": harvest_seconds,
                "training_seconds": training_seconds,
                "evaluation_seconds": time.perf_counter() - report.began - training_seconds,
                "steps": step - first_step,
                "rows_per_second": (step - first_step) * config.batch_size / training_seconds,
                "data_wait": feed.wait_seconds / training_seconds,
            },
        }
        run.finish(results)
        return results


def start(groups: tuple[Group, ...], hypers: list, feed: Feed, normalization: Normalization) -> list[State]:
    shift_D, scale_D = normalization
    states = []
    for group, hyper in zip(groups, hypers, strict=True):
        rows = min(START_ROWS, max(256, START_VALUES // group.signature.hidden_dim))
        x_NxD = (jnp.asarray(feed.sample(rows), jnp.float32) - shift_D) / scale_D
        per_member = [jax.tree.map(lambda leaf, p=p: leaf[p], hyper) for p in range(len(group.members))]
        begin = jax.jit(start_member, static_argnums=(0, 1))
        states.append(
            stack([begin(group.signature, m, h, x_NxD) for m, h in zip(group.members, per_member, strict=True)])
        )
    return states


def normalization_of(store: ActivationStore, normalize: bool) -> Normalization:
    """(shift, scale) per feature in float32; a feature that never varies is only shifted."""
    if not normalize:
        return jnp.zeros(store.d_model), jnp.ones(store.d_model)
    return jnp.asarray(store.mean, jnp.float32), jnp.asarray(np.where(store.std > 0, store.std, 1.0), jnp.float32)


def default_block_steps(config: TrainConfig, store: ActivationStore, total_steps: int) -> int:
    """As long as pays, but short enough that dead features, looked at between blocks, are looked at in time."""
    by_size = BLOCK_BYTES // (config.batch_size * store.train[0].nbytes)
    return max(1, min(MAX_BLOCK_STEPS, by_size, int(steps_to_die(config, total_steps))))


def export_and_evaluate(
    groups: tuple[Group, ...],
    states: list[State],
    normalization: Normalization,
    store: ActivationStore,
    run: RunDirectory,
) -> dict[str, Evaluation]:
    """Write every member for raw activations, then measure what was written, read back from its files."""
    shift_D, scale_D = (np.asarray(n, np.float64) for n in normalization)
    saes = {}
    for group, state in zip(groups, states, strict=True):
        for p, member in enumerate(group.members):
            directory = run.path / "members" / member.id
            tensors = fold_normalization({name: leaf[p] for name, leaf in state.params.items()}, shift_D, scale_D)
            save_member(directory, member, tensors, store.manifest)
            saes[member.id] = load_member(directory)
    evaluations = evaluate(saes, store.held_out, store.mean)
    for member_id, evaluation in evaluations.items():
        stats = run.path / "members" / member_id / "stats.npz"
        write_atomically(stats, lambda f, e=evaluation: np.savez(f, density=e.density_F))
    return evaluations


def result_of(member: Member, manifest: dict, evaluation: Evaluation) -> dict:
    return {
        "id": member.id,
        "activation": member.activation,
        "hidden_dim": member.hidden_dim,
        "layer": manifest["layer"],
        "hook": manifest["hook"],
        "lr": member.lr,
        "sparsity_by": member.sparsity_by,
        "k": member.k,
        "target_l0": member.target_l0,
        "sparsity": member.sparsity,
        "seed": member.seed,
        "failed": None,
        "metrics": evaluation.metrics,
    }


def store_facts(store: ActivationStore) -> dict:
    """What names the store in config.json: rows of another store are never mixed into a run."""
    manifest = (store.directory / "manifest.json").read_bytes()
    facts = {name: store.manifest[name] for name in ("model", "dataset", "hook_name", "rows")}
    return {"directory": store.directory.name, "sha256": hashlib.sha256(manifest).hexdigest(), **facts}


def environment() -> dict:
    packages = {name: version(name) for name in ("sae-jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")}
    device = jax.devices()[0]
    return {"python": platform.python_version(), **packages, "backend": device.platform, "device": device.device_kind}
