"""Seconds a training step, on random rows, member by member; one JSON line each.

    PYTHONPATH=. python tests/benchmarks/step.py --d 768 --f 256 --batch 64

Fields: name, seconds_per_step (median of several blocks), rows_per_second. Compilation is not counted.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from sae_jax.config import TrainConfig
from sae_jax.step import make_train_block
from tests.populations import prepare


def seconds_per_step(config: TrainConfig, d_model: int, block_steps: int, blocks: int) -> float:
    """Of all members of the config."""
    rng = np.random.default_rng(0)
    x_NxD = rng.standard_normal((1024, d_model)).astype(np.float32)
    groups, states, hypers = prepare(config, 100_000, x_NxD)
    raw_LxSxBxD = jnp.asarray(rng.standard_normal((1, block_steps, config.batch_size, d_model)), jnp.float16)
    train_block, calibration_LxNxD = make_train_block(groups), jnp.asarray(x_NxD[None])
    seconds = []
    for _ in range(blocks + 1):
        began = time.perf_counter()
        states, metrics = train_block(states, hypers, raw_LxSxBxD, calibration_LxNxD)
        jax.block_until_ready(metrics)
        seconds.append((time.perf_counter() - began) / block_steps)
    return statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("activation", nargs="*", default=["relu", "jump_relu", "topk"])
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--f", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--block-steps", type=int, default=100)
    parser.add_argument("--blocks", type=int, default=7)
    args = parser.parse_args()
    for name in args.activation:
        config = TrainConfig(
            activation=(name,), hidden_dim=args.f, batch_size=args.batch, k=args.k, target_l0=float(args.k)
        )
        seconds = seconds_per_step(config, args.d, args.block_steps, args.blocks)
        print(
            json.dumps({"name": name, "seconds_per_step": seconds, "rows_per_second": args.batch / seconds}), flush=True
        )


if __name__ == "__main__":
    main()
