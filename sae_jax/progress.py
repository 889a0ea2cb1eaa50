"""What a running training says of itself: progress for a face, lines for metrics.jsonl, an end where a loss is lost.

Shapes: P members of a group, S steps of a block.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sae_jax.config import Member
from sae_jax.population import Group
from sae_jax.run_directory import RunDirectory

SMOOTHING = 0.9  # of the rate, a block


@dataclass(frozen=True)
class Progress:
    """What a block of steps came to. A member's figures are means over the block, on training rows."""

    step: int
    total_steps: int
    rows_per_second: float
    seconds_left: float
    data_wait: float  # share of the time since the start that training waited for rows
    members: dict[str, dict[str, float]]  # id → loss, explained_variance, mse, l0, dead_fraction


class Diverged(RuntimeError):
    """A member's loss stopped being finite."""

    def __init__(self, member: Member, step: int):
        super().__init__(
            f"the loss of {member.id} is not finite at step {step:,}: "
            f"try a lower --lr (it is {member.lr:g}) or a longer --warmup"
        )


class Interrupted(RuntimeError):
    """Training was asked to stop, and what it has learned is saved."""


class Reporter:
    """Turns the metrics of a block into a Progress and lines of metrics.jsonl; `variance` is that of the raw rows."""

    def __init__(
        self,
        groups: tuple[Group, ...],
        total_steps: int,
        batch_size: int,
        variance: float,
        run: RunDirectory,
        on_progress: Callable[[Progress], None],
    ):
        self.groups, self.total_steps, self.batch_size = groups, total_steps, batch_size
        self.variance, self.run, self.on_progress = variance, run, on_progress
        self.began = self.last = time.perf_counter()
        self.seconds_per_step = 0.0

    def __call__(self, step: int, metrics: list[dict], wait_seconds: float) -> None:
        """Fetch and report the block that ended before `step`. Raises Diverged, naming member and step."""
        members = {}
        for group, of_group in zip(self.groups, metrics, strict=True):
            fetched = {name: np.asarray(values, np.float64) for name, values in of_group.items()}
            self._refuse_non_finite(group, fetched["loss"], step)
            for p, member in enumerate(group.members):
                figures = {name: float(values[p].mean()) for name, values in fetched.items()}
                members[member.id] = figures | {"explained_variance": 1 - figures["mse"] / self.variance}
            steps = fetched["loss"].shape[1]
        self.run.append_metrics([{"step": step, "member": name, **figures} for name, figures in members.items()])

        now = time.perf_counter()
        measured = (now - self.last) / steps
        self.seconds_per_step += (1 - SMOOTHING if self.seconds_per_step else 1.0) * (measured - self.seconds_per_step)
        self.last = now
        self.on_progress(
            Progress(
                step=step,
                total_steps=self.total_steps,
                rows_per_second=self.batch_size / self.seconds_per_step,
                seconds_left=(self.total_steps - step) * self.seconds_per_step,
                data_wait=wait_seconds / (now - self.began),
                members=members,
            )
        )

    def _refuse_non_finite(self, group: Group, loss_PxS: np.ndarray, step: int) -> None:
        for member, loss_S in zip(group.members, loss_PxS, strict=True):
            if not np.isfinite(loss_S).all():
                raise Diverged(member, step - len(loss_S) + int(np.argmin(np.isfinite(loss_S))))


class StopSignals:
    """While entered, the first SIGINT or SIGTERM only sets `asked`; a second SIGINT interrupts at once."""

    asked = False

    def __enter__(self) -> StopSignals:
        self.previous = {}
        if threading.current_thread() is threading.main_thread():
            self.previous = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
