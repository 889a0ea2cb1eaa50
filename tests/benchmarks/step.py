"""Seconds a training step, on random rows, member by member; one JSON line each.

    python tests/benchmarks/step.py --d 768 --f 256 --batch 64

Fields: name, seconds_per_step (median of several blocks), rows_per_second. Compilation is not counted.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from harvest.request import Site
from sae_jax.config import TrainConfig
from sae_jax.grid import members_of
from sae_jax.population import Group, Rows, State, groups_of, hyper_of, stack, start_member
from sae_jax.step import make_train_block


def start(
    config: TrainConfig, x_NxD: np.ndarray, total_steps: int
) -> tuple[tuple[Group, ...], list[State], list[dict]]:
    """(groups, states before the first step, hypers) of all members; rows are taken as they are."""
    d_model = x_NxD.shape[1]
    groups = groups_of(members_of(config, (Site(0, "resid_pre"),)), config, d_model)
    rows = Rows(0, np.zeros(d_model), np.ones(d_model))
    states, hypers = [], []
    for group in groups:
        own = [hyper_of(member, rows, config, total_steps) for member in group.members]
        begun = [
            start_member(group.signature, *pair, jnp.asarray(x_NxD)) for pair in zip(group.members, own, strict=True)
        ]
        states.append(stack(begun))
        hypers.append(stack(own))
    return groups, states, hypers


def seconds_per_step(config: TrainConfig, d_model: int, block_steps: int, blocks: int) -> float:
    """Of all members of the config."""
    rng = np.random.default_rng(0)
    x_NxD = rng.standard_normal((1024, d_model)).astype(np.float32)
    groups, states, hypers = start(config, x_NxD, total_steps=100_000)
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
