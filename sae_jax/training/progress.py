"""Reports of a training run: progress for the user interface, lines of metrics.jsonl, failed members, stop signals.

Shapes: P members of a group, S steps of a block.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sae_jax.members import Member

if TYPE_CHECKING:
    from sae_jax.training.population import Group

SMOOTHING = 0.9  # weight of earlier blocks in the time per step


@dataclass(frozen=True)
class Progress:
    """The state of training after a block of steps. Metrics of members are means over the block, on training rows."""

    step: int
    total_steps: int
    rows_per_second: float
    seconds_left: float
    data_wait: float  # share of the time so far in which training waited for rows
    members: dict[str, dict[str, float]]  # id → loss, explained_variance, mse, l0, dead_fraction; nan if it failed
    l0_asked: dict[str, float | None]  # requested L0; None if the penalty coefficient is fixed


class Diverged(RuntimeError):
    """All members have failed: no loss is finite."""


def reason(member: Member) -> str:
    return f"its loss was not finite; try a lower --lr (it is {member.lr:g}) or a longer --warmup"


class Interrupted(RuntimeError):
    """Training was stopped by a signal, after it saved its state."""


class Reporter:
    """Turns the metrics of a block into a Progress and lines of metrics.jsonl.

    `variances` holds the variance of the raw rows of each member, and `failed` the step at which a member failed.
    `append` gets the lines of metrics.jsonl. Before a member is marked as failed, `rows_compared` is called, which
    raises InputError if rows are damaged.
    """

    def __init__(
        self,
        groups: tuple[Group, ...],
        total_steps: int,
        batch_size: int,
        variances: dict[str, float],
        append: Callable[[list[dict]], None],
        rows_compared: Callable[[], None],
        on_progress: Callable[[Progress], None],
        say: Callable[[str], None],
    ):
        self.groups, self.total_steps, self.batch_size = groups, total_steps, batch_size
        self.variances, self.append, self.rows_compared = variances, append, rows_compared
        self.on_progress, self.say = on_progress, say
        self.failed: dict[str, int] = {}
        self.began = self.last = time.perf_counter()
        self.seconds_per_step, self.blocks = 0.0, 0

    def __call__(self, step: int, metrics: list[dict], wait_seconds: float) -> None:
        """Fetch and report the metrics of the block that ended before `step`. Raises Diverged if all members failed."""
        members = {}
        for group, arrays in zip(self.groups, metrics, strict=True):
            fetched = {name: np.asarray(values, np.float64) for name, values in arrays.items()}
            failed_P, steps = fetched.pop("failed"), fetched["loss"].shape[1]
            for p, member in enumerate(group.members):
                means = {name: float(values[p].mean()) for name, values in fetched.items()}
                means["explained_variance"] = 1 - means["mse"] / self.variances[member.id]
                if failed_P[p] >= 0:
                    self.fail(member, int(failed_P[p]))
                    means = dict.fromkeys(means, math.nan)
                members[member.id] = means
        self.refuse_none_left()
        lines = [{"step": step, "member": name, **f} for name, f in members.items() if name not in self.failed]
        self.append(lines)

        now = time.perf_counter()
        measured = (now - self.last) / steps
        # The first block includes compilation, so the second replaces it and nothing is expected from it.
        weight = 1 - SMOOTHING if self.blocks > 1 else 1.0
        self.seconds_per_step += weight * (measured - self.seconds_per_step)
        self.last, self.blocks = now, self.blocks + 1
        left = self.total_steps - step
        self.on_progress(
            Progress(
                step=step,
                total_steps=self.total_steps,
                rows_per_second=self.batch_size / self.seconds_per_step,
                seconds_left=left * self.seconds_per_step if self.blocks > 1 or not left else math.nan,
                data_wait=wait_seconds / (now - self.began),
                members=members,
                l0_asked={m.id: m.l0_asked for group in self.groups for m in group.members},
            )
        )

    def refuse_none_left(self) -> None:
        members = [m for group in self.groups for m in group.members]
        if len(self.failed) == len(members):
            first = members[0]
            raise Diverged(f"all members failed ({first.id} at step {self.failed[first.id]:,}): {reason(first)}")

    def fail(self, member: Member, step: int) -> None:
        """Mark a member as failed and report it once. The other members continue."""
        if member.id not in self.failed:
            self.rows_compared()
            self.failed[member.id] = step
            self.say(f"{member.id} failed at step {step:,} and is not trained further: {reason(member)}")


class StopSignals:
    """A context in which the first SIGINT or SIGTERM only sets `asked`, and the second interrupts at once."""

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
