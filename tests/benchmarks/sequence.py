"""A population in one program against as many runs of one member each, one after another.

    OMP_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/sequence.py topk --members 16

Both from nothing, for the same steps on the same rows: weights, compilation, training. Every run of one member is a
program of its own, compiled as in a new process (without the seconds that a process takes to start); the persistent
compilation cache is off. A round does both; the table has the medians over the rounds, and the last line the ratios
of the sequence over the population, with and without what comes before the first step.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from population import sparse_rows
from step import start

from sae_jax.config import TrainConfig
from sae_jax.step import make_train_block


def run(config: TrainConfig, raw_NxD: np.ndarray, steps: int, block_steps: int) -> tuple[float, float]:
    """(seconds before the first step, seconds of the steps)."""
    jax.clear_caches()
    began = time.perf_counter()
    x_NxD = raw_NxD[:1024].astype(np.float32)
    groups, states, hypers = start(config, x_NxD, total_steps=steps)
    blocks_KxLxSxBxD = raw_NxD.reshape(-1, 1, block_steps, config.batch_size, raw_NxD.shape[1])
    calibration_LxNxD = jnp.asarray(x_NxD[None])
    side_by_side = 1 if jax.default_backend() == "cpu" else 1 << 30
    train_block = make_train_block(groups, side_by_side)
    program = train_block.lower(states, hypers, jnp.asarray(blocks_KxLxSxBxD[0]), calibration_LxNxD).compile()
    ready = time.perf_counter()
    for number in range(steps // block_steps):
        raw_LxSxBxD = jnp.asarray(blocks_KxLxSxBxD[number % len(blocks_KxLxSxBxD)])
        states, metrics = program(states, hypers, raw_LxSxBxD, calibration_LxNxD)
    jax.block_until_ready(metrics)
    return ready - began, time.perf_counter() - ready


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("activation", nargs="?", default="topk")
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--f", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--block-steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    raw_NxD = sparse_rows(2 * args.block_steps * args.batch, args.d)

    def trained(seeds: tuple[int, ...]) -> tuple[float, float]:
        config = TrainConfig(args.activation, args.f, seed=seeds, batch_size=args.batch)
        return run(config, raw_NxD, args.steps, args.block_steps)

    rounds = []
    for _ in range(args.rounds):
        population = trained(tuple(range(args.members)))
        alone = [trained((seed,)) for seed in range(args.members)]
        rounds.append((population, tuple(map(sum, zip(*alone, strict=True)))))
    print(
        f"| {args.activation}, {args.members} members, {args.steps} steps | before the first step | steps | together |"
    )
    print("|---|---|---|---|")
    for name, results in zip(("one program", "in sequence"), zip(*rounds, strict=True), strict=True):
        before, steps = (statistics.median(seconds) for seconds in zip(*results, strict=True))
        print(f"| {name} | {before:.1f} s | {steps:.1f} s | {before + steps:.1f} s |")
    without = statistics.median(sequence[1] / population[1] for population, sequence in rounds)
    including = statistics.median(sum(sequence) / sum(population) for population, sequence in rounds)
    print(f"in sequence over one program: {without:.2f} without compilation, {including:.2f} with it")


if __name__ == "__main__":
    main()
