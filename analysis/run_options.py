"""The flags of how a training run is carried out, and the refusal of settings that clash."""

from __future__ import annotations

from dataclasses import dataclass, fields
from numbers import Integral
from pathlib import Path

from harvest.errors import InputError
from harvest.flags import COUNT, DEVICE, NUMBER, POSITIVE, WHERE, Allowed, Flags, flag, named
from harvest.request import HarvestRequest, default_cache_dir
from harvest.streaming.order import AHEAD
from sae_jax.config import FLAGS_OF_SOME_KINDS, TrainConfig, flags_of_kind
from sae_jax.members import members_of
from sae_jax.training.axes import axes_asked
from sae_jax.training.cluster import Cluster, cluster_asked

WANDB_FLAGS = ("--wandb-project", "--log-freq")
STREAM_FLAGS = ("--ring-gb", "--sample-rows", "--ring-dir", "--producers")
PRODUCERS = Allowed(Integral, lambda v: 1 <= v <= AHEAD, f"a whole number, 1 to {AHEAD}")


@dataclass(frozen=True)
class RunOptions(Flags):
    """The settings of how a run is carried out.

    Nothing here changes the trained weights, except that --model-dtype auto depends on the kind of the device, and that
    a --mesh that splits members changes their last digits.
    """

    run_dir: Path | None = flag(None, "directory of the run (default: a folder in runs/ named after the settings)")
    cache_dir: Path = flag(default_cache_dir(), "where harvested activations and compiled programs are kept")
    device: str = flag("auto", WHERE, DEVICE)
    mesh: str = flag(
        "auto",
        "how the population is split over devices: members=N (its members are spread), data=N (each batch is split), "
        "features=N (each dictionary is split), or several, such as members=2,features=4; auto: chosen by an estimate",
    )
    coordinator: str | None = flag(
        None,
        "train in several processes, on one machine or several: host:port of process 0, the same for all; each needs "
        "its --process-id (under SLURM and Open MPI, leave the three flags out)",
    )
    num_processes: int | None = flag(None, "with --coordinator: the number of processes", COUNT)
    process_id: int | None = flag(None, "with --coordinator: which process this is, from 0", NUMBER)
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
        axes_asked(self.mesh)
        _ = self.cluster
        if self.resume and self.force:
            raise InputError("--resume continues the run, --force starts over: give only one of them")

    @property
    def cluster(self) -> Cluster | None:
        """The processes that train together."""
        return cluster_asked(self.coordinator, self.num_processes, self.process_id)


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
    if request.stream and options.cluster:
        raise InputError("--stream works in a single process: leave --coordinator out, or harvest to disk")
    members_of(config, request.sites)
    if request.held_out == 1:
        raise InputError("--held-out 1 leaves nothing to train on: give a value below 1")
    if config.batch_size > request.training_rows:
        raise InputError(
            f"--batch-size {config.batch_size} is larger than the {request.training_rows:,} training rows: "
            "lower it, or raise --n-samples or --seq-len"
        )
