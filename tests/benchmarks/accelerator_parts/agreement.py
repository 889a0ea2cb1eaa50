"""The same training steps from the same state on the CPU and on the accelerator, in each precision.

The reference is the CPU in float32, with members in turn, which is the sparse path. It is compared with members side by
side, the dense path, on the accelerator. On a machine with a CPU only, the two paths of the CPU are compared.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from accelerator_parts.figures import Part
from accelerator_parts.training import PRECISIONS, START_ROWS, Sizes, batches, config_of, on_cpu, rows
from flax import nnx
from populations import grouped, prepare

from sae_jax.training.mesh import Placement
from sae_jax.training.programs import make_train_block

STEPS, TOTAL_STEPS = 5, 100


class Case:
    """A member of one kind before its first step, on the host, and the rows of some steps."""

    def __init__(self, kind: str, sizes: Sizes):
        self.kind, self.sizes = kind, sizes
        d, _, batch = sizes.agreement
        self.x_NxD = rows(START_ROWS, d).astype(np.float32)
        self.raw_LxSxBxD = batches(STEPS, batch, d)
        _, self.states, self.hypers = prepare(self.config("highest"), TOTAL_STEPS, self.x_NxD)

    def config(self, precision: str):
        _, width, batch = self.sizes.agreement
        return config_of(self.kind, width, batch, self.sizes.k, precision)

    def trained(self, device: jax.Device, precision: str, side_by_side: int) -> tuple[np.ndarray, np.ndarray]:
        """(loss of each step, which features fire on each row after the last step)."""
        (group,), _ = grouped(self.config(precision), self.x_NxD.shape[1], TOTAL_STEPS)
        placement = Placement((group,), [device])
        train_block = make_train_block((group,), side_by_side, placement)

        def fires(params: dict, settings: dict, x_NxD: jax.Array) -> jax.Array:
            return nnx.merge(group.signature.graphdef(), params, settings).encode(x_NxD) != 0

        with jax.default_matmul_precision(PRECISIONS[precision][0]), jax.default_device(device):
            states, hypers = placement.place(self.states), placement.place(self.hypers)
            rows_of_both = placement.rows(self.raw_LxSxBxD), placement.everywhere(self.x_NxD[None])
            states, metrics = train_block(states, hypers, *rows_of_both)
            (state,), (measured,) = placement.gather(states), placement.gather(metrics)
            one = jax.tree.map(lambda leaf: leaf[0], (state.params, state.settings))
            return measured["loss"][0], np.asarray(jax.jit(fires)(*one, self.x_NxD))


def measure_agreement(part: Part, sizes: Sizes) -> None:
    """Compare each kind in each precision, several kinds at the same time, since nothing here is timed."""
    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    part.facts["reference"] = "CPU, float32, in turn"
    part.facts["compared"] = f"{device.device_kind}, side by side"
    compared = [name for name in PRECISIONS if not (on_cpu() and name == "tensorfloat32")]

    def of_kind(kind: str) -> None:
        def precisions() -> dict:
            case = Case(kind, sizes)
            loss_S, fires_NxF = case.trained(cpu, "highest", side_by_side=1)
            figures: dict = {}
            for name in compared:
                other_S, others_NxF = case.trained(device, name, side_by_side=1 << 30)
                figures[f"{name}: loss differs by"] = f"{np.max(np.abs(other_S / loss_S - 1)):.1e}"
                either = (fires_NxF | others_NxF).sum()
                figures[f"{name}: equal firings"] = f"{100 * (fires_NxF & others_NxF).sum() / either:.3f}%"
            return figures

        part.measure({"kind": kind, "compared": part.facts["compared"]}, precisions)

    with ThreadPoolExecutor(max(1, 2 * (os.cpu_count() or 1) // 3)) as pool:
        list(pool.map(of_kind, sizes.kinds))
    if on_cpu():
        part.add({"kind": "all", "skipped": "tensorfloat32: a CPU has none"})
