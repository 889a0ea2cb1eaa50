"""The files of a run while it is trained: checkpoints, snapshots and metrics.jsonl.

Several processes may train a run together. Process 0 alone writes its files, and tells the others what it has read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable

import numpy as np

from harvest.files import record_checksum
from sae_jax.run_directory import RunDirectory, meant
from sae_jax.training import processes
from sae_jax.training.checkpoint import Checkpoints
from sae_jax.training.export import exported
from sae_jax.training.population import Population, State
from sae_jax.training.snapshots import write_snapshot


class Records:
    """Nothing is saved before `rows_compared` has returned, so that no later process resumes from damaged rows.

    The other processes than the first call the same methods, which write nothing there.
    """

    def __init__(
        self,
        run: RunDirectory,
        population: Population,
        checkpoint_seconds: float,
        rows_compared: Callable[[], None],
        say: Callable[[str], None],
    ):
        self.run, self.population, self.rows_compared, self.say = run, population, rows_compared, say
        self.began, self.seconds_before = time.perf_counter(), 0.0
        self.checkpoints: Checkpoints | None = None
        if processes.is_first():
            self.checkpoints = Checkpoints(run.checkpoints, checkpoint_seconds, record_checksum(meant(run.asked)))

    def restore(self, start: list[State], resume: bool, total_steps: int) -> tuple[int, list[State]]:
        """(step, states) of the newest checkpoint; 0 and the given shapes if there is none."""
        step, states = 0, start
        if self.checkpoints:
            step, states, metrics_then, self.seconds_before = self.checkpoints.restore(start, self.say)
            if step:
                self.say(f"resuming at step {step:,} of {total_steps:,}")
            elif resume:
                self.say("there is no checkpoint to resume from: starting at the first step")
            self.run.rewind_metrics(metrics_then, self.say)
        step = int(processes.from_first(np.int32(step), np.int32(0)))
        return step, processes.from_first(states, start) if step else start

    def append_metrics(self, lines: list[dict]) -> None:
        if self.checkpoints:
            self.run.append_metrics(lines)

    @property
    def due(self) -> bool:
        """Return whether it is time for a checkpoint."""
        return self.checkpoints is not None and self.checkpoints.due

    def save(self, step: int, states: list[State]) -> None:
        """Start to write a checkpoint of states on the host."""
        self.rows_compared()
        if self.checkpoints:
            seconds = self.seconds_before + time.perf_counter() - self.began
            self.checkpoints.save(step, states, self.run.metrics_written(), seconds)

    def keep_snapshot(self, step: int, to_export: Iterable[State], failed: Collection[str]) -> None:
        """Write the decoders and densities of the members that have not failed."""
        if not self.checkpoints:
            for _ in to_export:  # each is gathered from all processes
                pass
            return
        for member, dictionary in exported(self.population, to_export):
            if member.id not in failed:
                raw_NxD = self.population.calibration_LxNxD[self.population.rows[member.id].site]
                write_snapshot(self.run.path, step, member.id, dictionary, raw_NxD)

    def close(self) -> None:
        """Wait until the last checkpoint is written."""
        if self.checkpoints:
            self.checkpoints.close()
