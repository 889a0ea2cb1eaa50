"""What a running training says of itself: progress for a face, lines for metrics.jsonl, an end where a loss is lost.

Shapes: P members of a group, S steps of a block.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sae_jax.members import Member
from sae_jax.run_directory import RunDirectory
from sae_jax.training.population import Group

SMOOTHING = 0.9  # of the rate, a block


@dataclass(frozen=True)
class Progress:
    """What a block of steps came to. A member's figures are means over the block, on training rows."""

    step: int
    total_steps: int
    rows_per_second: float
    seconds_left: float
    data_wait: float  # share of the time since the start that training waited for rows
    members: dict[str, dict[str, float]]  # id → loss, explained_variance, mse, l0, dead_fraction; nan if it failed
    l0_asked: dict[str, float | None]  # None where a coefficient is fixed


class Diverged(RuntimeError):
    """No member is left whose loss is finite."""


def reason(member: Member) -> str:
    return f"its loss was not finite; try a lower --lr (it is {member.lr:g}) or a longer --warmup"


class Interrupted(RuntimeError):
    """Training was asked to stop, and what it has learned is saved."""


class Reporter:
    """Turns the metrics of a block into a Progress and lines of metrics.jsonl.

    `variances` are those of the raw rows of each member; `failed` has the step at which a member failed. Before a
    failure is laid to a member, `rows_compared` is called: it raises InputError where rows are damaged.
    """

    def __init__(
        self,
        groups: tuple[Group, ...],
        total_steps: int,
        batch_size: int,
        variances: dict[str, float],
        run: RunDirectory,
        on_progress: Callable[[Progress], None],
        say: Callable[[str], None],
        rows_compared: Callable[[], None],
    ):
        self.groups, self.total_steps, self.batch_size = groups, total_steps, batch_size
        self.variances, self.run, self.on_progress, self.say = variances, run, on_progress, say
        self.rows_compared = rows_compared
        self.failed: dict[str, int] = {}
        self.began = self.last = time.perf_counter()
        self.seconds_per_step = 0.0

    def __call__(self, step: int, metrics: list[dict], wait_seconds: float) -> None:
        """Fetch and report the block that ended before `step`. Raises Diverged where no member is left."""
        members = {}
        for group, of_group in zip(self.groups, metrics, strict=True):
            fetched = {name: np.asarray(values, np.float64) for name, values in of_group.items()}
            failed_P, steps = fetched.pop("failed"), fetched["loss"].shape[1]
            for p, member in enumerate(group.members):
                figures = {name: float(values[p].mean()) for name, values in fetched.items()}
                figures["explained_variance"] = 1 - figures["mse"] / self.variances[member.id]
                if failed_P[p] >= 0:
                    self.fail(member, int(failed_P[p]))
                    figures = dict.fromkeys(figures, math.nan)
                members[member.id] = figures
        self.refuse_none_left()
        lines = [{"step": step, "member": name, **f} for name, f in members.items() if name not in self.failed]
        self.run.append_metrics(lines)

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
                l0_asked={m.id: m.l0_asked for group in self.groups for m in group.members},
            )
        )

    def refuse_none_left(self) -> None:
        members = [m for group in self.groups for m in group.members]
        if len(self.failed) == len(members):
            first = members[0]
            raise Diverged(f"{first.id} failed at step {self.failed[first.id]:,}, and so all: {reason(first)}")

    def fail(self, member: Member, step: int) -> None:
        """Remember that a member has failed, and say it once; the others go on."""
        if member.id not in self.failed:
            self.rows_compared()
            self.failed[member.id] = step
            self.say(f"{member.id} failed at step {step:,} and is left out: {reason(member)}")


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
