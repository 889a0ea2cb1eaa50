"""Populations on one device, trained block by block on synthetic rows: steps, populations, and their memory."""

from __future__ import annotations

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from accelerator_parts.figures import Part
from population import KINDS as MIXED_KINDS
from population import L0S as MIXED_L0S
from population import RATES as MIXED_RATES
from populations import grouped, placed
from sparse_rows import sparse_rows

from sae_jax.config import SPARSITY_CONTROLS, TrainConfig
from sae_jax.training.axes import Axes
from sae_jax.training.population import State, abstract_group
from sae_jax.training.programs import make_train_block
from sae_jax.training.roofline import device_named, flops_of_member

# Name: JAX's precision of products of float32 numbers, and the dtype of the config.
PRECISIONS = {
    "highest": ("highest", "float32"),
    "tensorfloat32": ("tensorfloat32", "float32"),
    "bfloat16": ("default", "bfloat16"),
}
TOTAL_STEPS, START_ROWS = 10_000, 1024
BLOCK_STEPS = 8  # enough to hide what is done once a block, such as the revival of dead features
ROUND_SECONDS, ROUNDS = 0.4, 3


@dataclass(frozen=True)
class Sizes:
    """The sizes of everything that is measured."""

    d: int
    widths: tuple[int, ...]
    batch: int
    k: int
    kinds: tuple[str, ...]
    members: tuple[int, ...]
    fed_members: int  # a population that trains on rows from disk, and in bfloat16
    agreement: tuple[int, int, int]  # D, F, batch
    stored_rows: int


FULL = Sizes(
    d=768,
    widths=(6144, 24_576),
    batch=2048,
    k=32,
    kinds=tuple(SPARSITY_CONTROLS),
    members=(1, 4, 24, 96),
    fed_members=24,
    agreement=(256, 2048, 512),
    stored_rows=1 << 18,
)
SMALL = Sizes(
    d=64,
    widths=(512, 1024),
    batch=128,
    k=16,
    kinds=("topk", "jump_relu"),
    members=(1, 4),
    fed_members=4,
    agreement=(64, 512, 64),
    stored_rows=1 << 13,
)


def config_of(
    kinds: str | tuple[str, ...], width: int, batch: int, k: int, precision: str, /, **settings
) -> TrainConfig:
    levels = {"k": k, "target_l0": float(k)} | settings
    return TrainConfig(kinds, width, batch_size=batch, dtype=PRECISIONS[precision][1], **levels)


def on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def fast_float32() -> str:
    """The precision in which a run of the project computes products of float32 numbers on this device."""
    return "highest" if on_cpu() else "tensorfloat32"


def side_by_side() -> int:
    """The number of members of a group in one vmap: one on a CPU, all on an accelerator, as in a run that fits."""
    return 1 if on_cpu() else 1 << 30


@lru_cache(maxsize=2)
def rows(count: int, d: int) -> np.ndarray:
    return sparse_rows(count, d)


def batches(steps: int, batch: int, d: int) -> np.ndarray:
    """Raw rows [1, S, B, D]. Rows occur several times, since making them takes long."""
    pool_NxD = rows(max(START_ROWS, batch), d)
    return pool_NxD[np.random.default_rng(0).integers(0, len(pool_NxD), (1, steps, batch))]


class Training:
    """A population and the rows of a block on the first device. All its calls compute in one precision."""

    def __init__(self, config: TrainConfig, d: int, precision: str, block_steps: int):
        self.precision = PRECISIONS[precision][0]
        x_NxD = rows(max(START_ROWS, config.batch_size), d)[:START_ROWS].astype(np.float32)
        self.placement, self.states, self.hypers, groups = placed(config, TOTAL_STEPS, x_NxD, Axes())
        self.members = sum(len(group.members) for group in groups)
        self.flops = sum(len(group.members) * flops_of_member(group.signature, config, Axes()) for group in groups)
        self.train_block = make_train_block(groups, side_by_side(), self.placement)
        self.given = [self.placement.everywhere(array) for array in (x_NxD[None], np.array(block_steps, np.int32))]
        self.raw_LxSxBxD = self.placement.rows(batches(block_steps, config.batch_size, d))

    def block(self, raw_LxSxBxD: jax.Array) -> list[dict]:
        """Train one block of steps. Returns its metrics, which may still be on their way."""
        with jax.default_matmul_precision(self.precision):
            self.states, metrics = self.train_block(self.states, self.hypers, raw_LxSxBxD, *self.given)
        return metrics


def started(config: TrainConfig, d: int, precision: str, block_steps: int) -> tuple[Training, float]:
    """(a population whose block is compiled and has run once, the seconds of that)."""
    training = Training(config, d, precision, block_steps)
    began = time.perf_counter()
    jax.block_until_ready(training.block(training.raw_LxSxBxD))
    return training, time.perf_counter() - began


def timed(training: Training, first_block: float, precision: str, width: int) -> dict:
    """The time of a step of all members, with rows that are on the device already."""
    _, block_steps, batch, d = training.raw_LxSxBxD.shape
    one, seconds = seconds_of_blocks(training, 1), []
    for _ in range(ROUNDS):
        blocks = max(1, min(100, round(ROUND_SECONDS / one)))
        seconds.append(seconds_of_blocks(training, blocks) / blocks / block_steps)
    step = statistics.median(seconds)
    figures = {
        "seconds_per_step": step,
        "rows_per_second": batch / step,
        "first_block_seconds": first_block,
        "teraflops_per_second": training.flops / step / 1e12,
    }
    peak = peak_of(jax.devices()[0].device_kind, precision)
    return figures | ({"share_of_peak": training.flops / step / peak} if peak else {})


def seconds_of_blocks(training: Training, blocks: int) -> float:
    began = time.perf_counter()
    for _ in range(blocks):
        metrics = training.block(training.raw_LxSxBxD)
    jax.block_until_ready(metrics)
    return time.perf_counter() - began


def peak_of(device_kind: str, precision: str) -> float | None:
    """The peak of a device in FLOP/s; None if it is not known."""
    device = device_named(device_kind)
    return device.flops.get({"tensorfloat32": "float32"}.get(precision, precision)) if device else None


def measure_steps(part: Part, sizes: Sizes) -> None:
    """One step of each kind at each width; FLOP are those of the products of a dense step of the kind.

    The programs of all kinds are compiled at the same time, and timed one after another when all are ready.
    """
    longest = 0.0
    for precision in (fast_float32(), "bfloat16"):
        for width in sizes.widths:
            began = time.perf_counter()
            lines = {kind: {"kind": kind, "F": width, "precision": precision} for kind in sizes.kinds}
            if part.left() <= longest:
                for line in lines.values():
                    part.add({**line, "skipped": "no time left"})
                continue

            def ready(kind: str, width=width, precision=precision) -> tuple[Training, float]:
                return started(config_of(kind, width, sizes.batch, sizes.k, precision), sizes.d, precision, BLOCK_STEPS)

            with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2 if not on_cpu() else 1)) as pool:
                trainings = {kind: pool.submit(ready, kind) for kind in sizes.kinds}
            for kind, line in lines.items():
                training = trainings.pop(kind)  # so that its memory is free after its turn
                part.measure(line, lambda t=training, p=precision, w=width: timed(*t.result(), p, w))
            longest = max(longest, time.perf_counter() - began)


def measure_populations(part: Part, sizes: Sizes) -> None:
    """Populations of topk that differ in the seed, then the 24 mixed members of population.py."""
    width = sizes.widths[0]
    mixed = {"k": MIXED_L0S, "target_l0": tuple(map(float, MIXED_L0S)), "lr": MIXED_RATES}
    cases = [("topk", {"seed": tuple(range(n))}, fast_float32()) for n in sizes.members]
    cases += [("topk", {"seed": tuple(range(sizes.fed_members))}, "bfloat16"), (MIXED_KINDS, mixed, fast_float32())]
    for kinds, settings, precision in cases:
        config = config_of(kinds, width, sizes.batch, sizes.k, precision, **settings)

        def population(config=config, precision=precision) -> dict:
            training, first_block = started(config, sizes.d, precision, block_steps=2)
            figures = timed(training, first_block, precision, width)
            figures["seconds_per_step_and_member"] = figures["seconds_per_step"] / training.members
            peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
            return figures | ({"peak_bytes_so_far": peak} if peak else {})

        members = sum(len(group.members) for group in grouped(config, sizes.d, TOTAL_STEPS)[0])
        kind = kinds if isinstance(kinds, str) else "mixed"
        part.measure({"members": members, "kind": kind, "F": width, "precision": precision}, population)


def measure_memory(part: Part, sizes: Sizes) -> None:
    """The memory that the compiler plans for a block of a topk population, and the peak of this process so far."""
    for members in sizes.members:
        config = config_of("topk", sizes.widths[0], sizes.batch, sizes.k, fast_float32(), seed=tuple(range(members)))
        line = {"what": "planned for topk", "members": members, "F": sizes.widths[0]}
        part.measure(line, lambda config=config: planned(config, sizes))
    stats = jax.devices()[0].memory_stats()
    if not stats:
        part.add({"what": "peak of this process so far", "skipped": "this device does not report its memory"})
        return
    part.add({"what": "peak of this process so far", "total_bytes": stats["peak_bytes_in_use"]})
    part.add({"what": "limit of this process", "total_bytes": stats.get("bytes_limit")})


def planned(config: TrainConfig, sizes: Sizes) -> dict:
    """Bytes of a compiled block, without running it."""
    states, compiled = compiled_block(config, sizes, fast_float32())
    plan = compiled.memory_analysis()
    kept = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return {
        "state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(states)),
        "temporary_bytes": plan.temp_size_in_bytes,
        "total_bytes": kept + plan.temp_size_in_bytes,
    }


def compiled_block(config: TrainConfig, sizes: Sizes, precision: str) -> tuple[list[State], jax.stages.Compiled]:
    """(shapes of the states, the compiled program of a block of two steps)."""
    groups, hypers = grouped(config, sizes.d, TOTAL_STEPS)
    states = [abstract_group(group, hyper) for group, hyper in zip(groups, hypers, strict=True)]
    raw_LxSxBxD = jax.ShapeDtypeStruct((1, 2, config.batch_size, sizes.d), jnp.float16)
    given = jax.ShapeDtypeStruct((1, START_ROWS, sizes.d), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    with jax.default_matmul_precision(PRECISIONS[precision][0]):
        lowered = make_train_block(groups, side_by_side()).lower(states, hypers, raw_LxSxBxD, *given)
        return states, lowered.compile()
