"""The time to train a population in one program, or as separate runs one after another, as one JSON line.

    PYTHONPATH=. OMP_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/sequence.py population --members 16
    PYTHONPATH=. OMP_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/sequence.py alone --members 16

Both include initialization, compilation and training, with the same steps on the same rows. Each separate run is
compiled anew, as in a new process, but the start of a process is not counted. The persistent compilation cache is off.
Fields: seconds, seconds_of_steps (without the time before the first step), and both in CPU time.
"""

import argparse
import json
import time

import jax
import numpy as np
from sparse_rows import sparse_rows

from sae_jax.config import TrainConfig
from sae_jax.training.programs import make_train_block
from tests.populations import placed


def now() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def run(config: TrainConfig, raw_NxD: np.ndarray, steps: int, block_steps: int) -> np.ndarray:
    """(wall-clock, CPU) seconds of the whole run, and of the steps after the first block, which compiles."""
    jax.clear_caches()
    began = now()
    x_NxD = raw_NxD[:1024].astype(np.float32)
    placement, states, hypers, groups = placed(config, steps, x_NxD)
    raw_KxLxSxBxD = raw_NxD.reshape(-1, 1, block_steps, config.batch_size, raw_NxD.shape[1])
    given = [placement.everywhere(array) for array in (x_NxD[None], np.array(block_steps, np.int32))]
    program = make_train_block(groups, placement=placement)
    states, metrics = program(states, hypers, placement.rows(raw_KxLxSxBxD[0]), *given)
    jax.block_until_ready(metrics)
    ready = now()
    for number in range(1, steps // block_steps):
        raw_LxSxBxD = placement.rows(raw_KxLxSxBxD[number % len(raw_KxLxSxBxD)])
        states, metrics = program(states, hypers, raw_LxSxBxD, *given)
    jax.block_until_ready(metrics)
    return np.stack([now() - began, now() - ready])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("population", "alone"))
    parser.add_argument("--activation", default="topk")
    sizes = {"members": 16, "d": 768, "f": 256, "batch": 64, "steps": 300, "block_steps": 100}
    for name, default in sizes.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    args = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    raw_NxD = sparse_rows(2 * args.block_steps * args.batch, args.d)
    seeds = list(range(args.members))
    runs = [tuple(seeds)] if args.what == "population" else [(seed,) for seed in seeds]
    total = sum(
        run(TrainConfig(args.activation, args.f, seed=of, batch_size=args.batch), raw_NxD, args.steps, args.block_steps)
        for of in runs
    )
    names = ("seconds", "cpu_seconds", "seconds_of_steps", "cpu_seconds_of_steps")
    print(
        json.dumps(
            {"name": args.what, "members": args.members, **dict(zip(names, total.ravel().tolist(), strict=True))}
        )
    )


if __name__ == "__main__":
    main()
