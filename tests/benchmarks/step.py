"""The time of a training step, as one JSON line per kind.

    PYTHONPATH=. python tests/benchmarks/step.py --d 768 --f 256 --batch 64 --k 32

Fields: name, seconds_per_step and cpu_seconds_per_step (medians over blocks, with copying of rows), rows_per_second,
first_block_seconds (with compilation), and l0 (the mean L0 over the measured blocks, for each requested level). With
--sparsity X, relu and jump_relu have this fixed coefficient, so that half of all features fire at the start.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict

import jax
import numpy as np
from sparse_rows import sparse_rows

from sae_jax.config import TrainConfig
from sae_jax.training.programs import make_train_block
from tests.populations import placed


def measure(config: TrainConfig, d_model: int, block_steps: int, blocks: int, first_steps: int) -> dict:
    """The time of all members of the config together, after `first_steps` steps that are not counted."""
    raw_NxD = sparse_rows(4 * block_steps * config.batch_size, d_model)
    raw_KxLxSxBxD = raw_NxD.reshape(4, 1, block_steps, config.batch_size, d_model)
    x_NxD = raw_NxD[:1024].astype(np.float32)
    placement, states, hypers, groups = placed(config, 10_000, x_NxD)
    raw_LxSxBxD, *rest = map(placement.everywhere, (raw_KxLxSxBxD[0], x_NxD[None], np.array(block_steps, np.int32)))
    began = time.perf_counter()
    train_block = make_train_block(groups, placement=placement)
    states, metrics = train_block(states, hypers, raw_LxSxBxD, *rest)
    jax.block_until_ready(metrics)
    first_block, seconds, cpu_seconds, l0s = time.perf_counter() - began, [], [], defaultdict(list)
    first_blocks = -(-first_steps // block_steps) - 1
    for number in range(first_blocks + blocks):
        began, cpu_began = time.perf_counter(), time.process_time()
        raw_LxSxBxD = placement.rows(raw_KxLxSxBxD[number % len(raw_KxLxSxBxD)])
        states, metrics = train_block(states, hypers, raw_LxSxBxD, *rest)
        jax.block_until_ready(metrics)
        if number < first_blocks:
            continue
        seconds.append((time.perf_counter() - began) / block_steps)
        cpu_seconds.append((time.process_time() - cpu_began) / block_steps)
        for group, measured in zip(groups, placement.gather(metrics), strict=True):
            for member, l0 in zip(group.members, measured["l0"].mean(1), strict=True):
                l0s[f"{member.activation} {getattr(member, member.sparsity_control):g}"].append(float(l0))
    return {
        "seconds_per_step": statistics.median(seconds),
        "cpu_seconds_per_step": statistics.median(cpu_seconds),
        "rows_per_second": config.batch_size / statistics.median(seconds),
        "first_block_seconds": first_block,
        "l0": {name: round(statistics.mean(values), 1) for name, values in l0s.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("activation", nargs="*", default=["relu", "jump_relu", "topk"])
    sizes = {"d": 768, "f": 256, "batch": 64, "k": 32, "block_steps": 5, "blocks": 5, "first_steps": 10}
    for name, default in sizes.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    parser.add_argument("--sparsity", type=float, help="in place of k active features a row")
    args = parser.parse_args()
    for name in args.activation:
        level = {"k": args.k, "target_l0": float(args.k)} if args.sparsity is None else {"sparsity": args.sparsity}
        config = TrainConfig(name, args.f, batch_size=args.batch, **level)
        print(json.dumps({"name": name, **measure(config, args.d, args.block_steps, args.blocks, args.first_steps)}))


if __name__ == "__main__":
    main()
