"""The time of a step of 24 dictionaries in one program, as one JSON line with the fields of step.py.

    PYTHONPATH=. OMP_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/population.py

The members are relu, jump_relu, topk and batch_topk, each at three sparsities and two learning rates. Steps are
measured after 50 steps: L0 is then near its target, and no feature counts as dead yet, so AuxK is not computed.
peers_population.py trains the same members in other projects, and table.py compares both.
"""

import argparse
import json

from step import measure

from sae_jax.config import TrainConfig

KINDS, L0S, RATES = ("relu", "jump_relu", "topk", "batch_topk"), (16, 32, 64), (1e-3, 3e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"d": 576, "f": 1536, "batch": 1024, "block_steps": 5, "blocks": 3, "first_steps": 50}
    for name, default in sizes.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    args = parser.parse_args()
    config = TrainConfig(
        KINDS,
        args.f,
        lr=RATES,
        target_l0=tuple(map(float, L0S)),
        k=L0S,
        batch_size=args.batch,
        warmup=0.0,
    )
    figures = measure(config, args.d, args.block_steps, args.blocks, args.first_steps)
    print(json.dumps({"name": "population", "members": len(KINDS) * len(L0S) * len(RATES), **figures}))


if __name__ == "__main__":
    main()
