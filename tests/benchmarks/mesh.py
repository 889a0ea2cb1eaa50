"""The bytes that each device holds and sends in a step, on meshes of eight virtual devices of a CPU.

    PYTHONPATH=.:tests python tests/benchmarks/mesh.py [--d 256] [--f 4096] [--batch 512]

Both are read off the compiled program: the bytes of its arguments (states, hyperparameters, rows) and of its temporary
arrays on a device, and the bytes of the results of collectives in the loop over steps. The rounds of a loop within a
step count as often as they run. Nothing is trained.
"""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import replace

os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import jax
import numpy as np

from sae_jax.config import TrainConfig
from sae_jax.training.axes import Axes
from sae_jax.training.mesh import on_mesh
from sae_jax.training.programs import make_programs
from tests.populations import placed

MESHES = [Axes(), Axes(members=8), Axes(data=8), Axes(features=8), Axes(2, 2, 2), Axes(members=2, features=4)]
POPULATIONS = {
    "8 topk": TrainConfig("topk", k=32, seed=tuple(range(8))),
    "8 relu": TrainConfig("relu", seed=tuple(range(8))),
    "relu, jump_relu, topk, batch_topk of two widths": TrainConfig(("relu", "jump_relu", "topk", "batch_topk"), k=32),
    "8 matryoshka": TrainConfig("matryoshka", k=32, seed=tuple(range(8))),
}
COLLECTIVE = re.compile(
    r"= (.*) (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(.*op_name=\"([^\"]*)\""
)
WITH_AUXK = re.compile(r"branch_1_fun/[^/]*jvp")  # a branch of the loss that is taken while features are dead
ARRAY = re.compile(r"([a-z]+)(\d+)\[([\d,]*)\]")
ROUNDS = 31  # of the bisection that finds the k largest values
LOOPS = 2  # a step is in the loop over members and in the loop over steps


def sent(program: str) -> int:
    """Bytes of the collectives of a step without AuxK, from the text of a compiled program."""
    total = 0
    for arrays, name in COLLECTIVE.findall(program):
        if WITH_AUXK.search(name):
            continue
        loops = name.count("while/body")
        size = sum(
            int(bits) // 8 * int(np.prod([int(n) for n in shape.split(",") if n]))
            for _, bits, shape in ARRAY.findall(arrays)
        )
        total += size * (ROUNDS if loops > LOOPS else loops == LOOPS)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d", type=int, default=256)
    parser.add_argument("--f", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=512)
    asked = parser.parse_args()
    x_NxD = np.random.default_rng(0).standard_normal((256, asked.d)).astype(np.float32)
    raw_LxSxBxD = np.zeros((1, 2, asked.batch, asked.d), np.float16)
    print(f"{'':50}{'arguments, MB':>15}{'temporary, MB':>15}{'sent, MB a step':>17}")
    for name, config in POPULATIONS.items():
        widths = (asked.f // 2, asked.f) if "two widths" in name else asked.f
        config = replace(config, hidden_dim=widths, batch_size=asked.batch)
        print(name)
        for axes in MESHES:
            placement, states, hypers, groups = placed(config, 1000, x_NxD, axes)
            held, temporary, bytes_sent = [0] * len(jax.devices()), 0, 0
            for mesh, numbers, run in make_programs(groups, 1, placement):
                trees = ([of[number] for number in numbers] for of in (states, hypers))
                rows = placement.rows(raw_LxSxBxD), placement.everywhere(x_NxD[None])
                compiled = run.lower(*trees, [on_mesh(array, mesh) for array in rows]).compile()
                memory = compiled.memory_analysis()
                for device in mesh.devices.flat:
                    held[device.id] += memory.argument_size_in_bytes
                temporary = max(temporary, memory.temp_size_in_bytes)
                bytes_sent = max(bytes_sent, sent(compiled.as_text()))
            print(f"  {axes!s:48}{max(held) / 1e6:15.1f}{temporary / 1e6:15.1f}{bytes_sent / 1e6:17.2f}", flush=True)


if __name__ == "__main__":
    main()
