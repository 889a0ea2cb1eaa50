"""A run that is not finished, read while another process may be training it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.runs.finished import read_record, refuse_no_run
from analysis.runs.reproduce import resume_command
from sae_jax.run_directory import METRICS_FILE, RunDirectory, is_being_trained
from sae_jax.shapes import MetricsLine, check, read_as
from sae_jax.training.progress import Progress


@dataclass
class LiveRun:
    """An unfinished run. `first` is the (time, step) of the first reading; the training rate is measured since then."""

    run: RunDirectory
    config: dict[str, Any]
    first: tuple[float, int] | None = None

    @classmethod
    def open(cls, path: Path) -> LiveRun:
        """Open the run at `path`. Raises InputError if no run was started there."""
        refuse_no_run(path)
        config = read_record(path, "config.json")
        return cls(RunDirectory(path, config["asked"]), config)

    @property
    def finished(self) -> bool:
        return (self.run.path / "results.json").exists()

    @property
    def being_trained(self) -> bool:
        return is_being_trained(self.run.path)

    def lines(self) -> list[dict[str, Any]]:
        path, advice = self.run.path / METRICS_FILE, "run the training command with --resume to write it again"
        with read_as(path, advice):
            lines = self.run.metrics(self.config["total_steps"])
        for line in lines:
            check(line, MetricsLine, path, advice)
        return lines

    def losses(self) -> Iterator[tuple[str, float]]:
        """(member id, mean squared error) of each block of steps except the last, in order."""
        lines = self.lines()
        yield from ((line["member"], line.get("mse", math.nan)) for line in lines if line["step"] < lines[-1]["step"])

    def progress(self) -> Progress | None:
        """The metrics of the last block of steps, or None before the first. A member without a line has failed."""
        lines, total = self.lines(), self.config["total_steps"]
        if not lines:
            return None
        step, now = lines[-1]["step"], time.monotonic()
        if self.first is None or step < self.first[1]:  # a resumed training begins at an earlier checkpoint
            self.first = (now, step)
        seconds, steps = now - self.first[0], step - self.first[1]
        per_step = seconds / steps if steps else math.nan
        failed = dict.fromkeys(("mse", "explained_variance", "l0", "dead_fraction"), math.nan)
        last = {line["member"]: line for line in lines if line["step"] == step}
        return Progress(
            step=step,
            total_steps=total,
            rows_per_second=self.config["asked"]["train"]["batch_size"] / per_step,
            seconds_left=(total - step) * per_step,
            data_wait=0.0,
            members={name: last.get(name, failed) for name in self.config["l0_asked"]},
            l0_asked=self.config["l0_asked"],
        )

    def record(self) -> dict[str, Any]:
        """The run as a record for other programs: its state, and the lines of the last block of steps."""
        lines = self.lines()
        last = [line for line in lines if line["step"] == lines[-1]["step"]]
        return {"schema": 1, "state": self.state(), "total_steps": self.config["total_steps"], "lines": last}

    def state(self) -> str:
        """Say in words whether the run is being trained or was interrupted, and how to continue it."""
        path, metrics = self.run.path, self.run.path / METRICS_FILE
        if self.being_trained:
            if not self.lines():
                return f"{path} is being trained; nothing is reported yet"
            return f"{path} is being trained; last reported {time.time() - metrics.stat().st_mtime:.0f} s ago"
        if self.run.interrupted:
            if "preset" in self.config["asked"] or self.config["asked"]["train"]["members"]:
                return f"{path} was interrupted: run the training command with --resume to continue from the checkpoint"
            again = resume_command(self.config, path)
            return f"{path} was interrupted; to continue from the checkpoint (add --cache-dir if it had one): {again}"
        return f"{path} was interrupted before its first checkpoint: run the training command again to start over"
