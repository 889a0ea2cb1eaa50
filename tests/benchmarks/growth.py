"""How a step's time grows with the number of members and with their width; a table line each.

    python tests/benchmarks/growth.py topk --d 768 --batch 256

On random rows, k 32, compilation not counted. The last columns divide by members and features: level is linear.
"""

import argparse

from step import seconds_per_step

from sae_jax.config import TrainConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("activation", nargs="?", default="topk")
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--members", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--widths", type=int, nargs="+", default=[1024, 4096, 16384, 65536])
    args = parser.parse_args()
    print("| members | F | ms a step | ms a step, member and 1024 features |\n|---|---|---|---|")
    sizes = [(members, args.widths[0]) for members in args.members] + [(1, width) for width in args.widths[1:]]
    for members, width in sizes:
        config = TrainConfig(args.activation, width, batch_size=args.batch, seed=tuple(range(members)))
        milliseconds = 1e3 * seconds_per_step(config, args.d, block_steps=4, blocks=3)
        print(f"| {members} | {width} | {milliseconds:.1f} | {milliseconds / members / width * 1024:.2f} |", flush=True)


if __name__ == "__main__":
    main()
