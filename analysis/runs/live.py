"""A run that is not finished, read from outside while another process may be training it."""

from __future__ import annotations

import fcntl
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.runs.finished import read_record, refuse_no_run
from sae_jax.run_directory import LOCK, RunDirectory
from sae_jax.shapes import MetricsLine, check, read_as
from sae_jax.training.progress import Progress


@dataclass
class LiveRun:
    """`first` is the (time, step) at which it was first looked at: the rate is what was seen since."""

    run: RunDirectory
    config: dict[str, Any]
    first: tuple[float, int] | None = None

    @classmethod
    def open(cls, path: Path) -> LiveRun:
        """Raises InputError where no run was begun."""
        refuse_no_run(path)
        config = read_record(path, "config.json")
        return cls(RunDirectory(path, config["asked"]), config)

    @property
    def finished(self) -> bool:
        return (self.run.path / "results.json").exists()

    @property
    def being_trained(self) -> bool:
        """True while another process holds the directory; nothing is written to find out.

        The lock is shared for an instant, for which a training that begins waits.
        """
        path = self.run.path / LOCK
        if not path.exists():
            return False
        with open(path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def lines(self) -> list[dict[str, Any]]:
        path, advice = self.run.path / "metrics.jsonl", "--resume, by the command that began it, writes it again"
        with read_as(path, advice):
            lines = self.run.metrics(self.config["total_steps"])
        for line in lines:
            check(line, MetricsLine, path, advice)
        return lines

    def losses(self) -> Iterator[tuple[str, float]]:
        """(member, loss) of each block but the last, in order."""
        lines = self.lines()
        yield from ((line["member"], line["loss"]) for line in lines if line["step"] < lines[-1]["step"])

    def progress(self) -> Progress | None:
        """Its last block; a member without a line there has failed. None before the first."""
        lines, total = self.lines(), self.config["total_steps"]
        if not lines:
            return None
        step, now = lines[-1]["step"], time.monotonic()
        self.first = self.first or (now, step)
        seconds, steps = now - self.first[0], step - self.first[1]
        per_step = seconds / steps if steps else math.nan
        failed = dict.fromkeys(("loss", "explained_variance", "l0", "dead_fraction"), math.nan)
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

    def state(self) -> str:
        path, metrics = self.run.path, self.run.path / "metrics.jsonl"
        if self.being_trained:
            if not self.lines():
                return f"{path} is being trained; nothing is reported yet"
            return f"{path} is being trained; last reported {time.time() - metrics.stat().st_mtime:.0f} s ago"
        if self.run.interrupted:
            return f"{path} was interrupted: the command that began it, with --resume, goes on from its last checkpoint"
        return f"{path} was interrupted before its first checkpoint: the command that began it begins again"
