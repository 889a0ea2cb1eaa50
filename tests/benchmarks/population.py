"""24 dictionaries in one program, against the sweeps of dictionary_learning and SAELens on the same rows.

    PYTHONPATH=. OMP_NUM_THREADS=1 python tests/benchmarks/population.py --rounds 3 --peers-python PEERS/bin/python

relu, jump_relu, topk and batch_topk, each at three levels of sparsity and two learning rates. PEERS is an environment
with sae-lens and dictionary-learning (see peers_population.py). A round runs ours and then each peer in a process of
its own; at the end a table of the medians over the rounds. Without --rounds ours alone, one JSON line: seconds a step
of the whole population, of the clock and of this process' CPU time, which other work on the machine disturbs less
(medians of several blocks, reading the rows included), seconds of compilation, and each kind's mean L0 over the
measured blocks by level, which shows what work was done. Measured from a state of 50 steps on, of a run of 10,000
without warm-up: the L0 is about the one that was asked for, and no feature counts as dead on any side, so that nobody
computes AuxK.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sae_jax.config import TrainConfig
from sae_jax.step import make_train_block
from tests.populations import prepare

KINDS, LEVELS, RATES = ("relu", "jump_relu", "topk", "batch_topk"), (16, 32, 64), (1e-3, 3e-4)


def sparse_rows(count: int, d_model: int) -> np.ndarray:
    """Of unit variance: 2D random directions, a log-normal number of them in a row (24 on average), and noise."""
    rng = np.random.default_rng(0)
    directions_GxD = rng.standard_normal((2 * d_model, d_model))
    share_Nx1 = 24 / len(directions_GxD) * rng.lognormal(-0.125, 0.5, (count, 1))
    strength_NxG = (rng.random((count, len(directions_GxD))) < share_Nx1) * rng.uniform(0.5, 2.0, (count, 1))
    x_NxD = strength_NxG @ directions_GxD
    x_NxD += 0.1 * x_NxD.std() * rng.standard_normal(x_NxD.shape)
    return ((x_NxD - x_NxD.mean(0)) / x_NxD.std(0)).astype(np.float16)


def measure(args: argparse.Namespace) -> dict:
    raw_NxD = np.load(args.rows, mmap_mode="r")
    blocks_KxSxBxD = raw_NxD.reshape(-1, args.block_steps, args.batch, raw_NxD.shape[1])
    config = TrainConfig(
        KINDS, args.f, lr=RATES, target_l0=tuple(map(float, LEVELS)), k=LEVELS, batch_size=args.batch, warmup=0.0
    )
    x_NxD = raw_NxD[:1024].astype(np.float32)
    groups, states, hypers = prepare(config, 10_000, x_NxD)
    raw_LxSxBxD, calibration_LxNxD = jnp.asarray(blocks_KxSxBxD[:1]), jnp.asarray(x_NxD[None])
    began = time.perf_counter()
    train_block = make_train_block(groups).lower(states, hypers, raw_LxSxBxD, calibration_LxNxD).compile()
    compilation, seconds, cpu_seconds, l0s = time.perf_counter() - began, [], [], defaultdict(list)
    first_blocks = -(-args.first_steps // args.block_steps)
    for number in range(first_blocks + args.blocks):
        began, cpu_began, block = time.perf_counter(), time.process_time(), number % len(blocks_KxSxBxD)
        raw_LxSxBxD = jnp.asarray(blocks_KxSxBxD[block : block + 1])
        states, metrics = train_block(states, hypers, raw_LxSxBxD, calibration_LxNxD)
        jax.block_until_ready(metrics)
        if number >= first_blocks:
            seconds.append((time.perf_counter() - began) / args.block_steps)
            cpu_seconds.append((time.process_time() - cpu_began) / args.block_steps)
            for group, measured in zip(groups, metrics, strict=True):
                for member, l0 in zip(group.members, measured["l0"].mean(1), strict=True):
                    l0s[f"{member.activation} {member.k or member.target_l0:g}"].append(float(l0))
    mean_l0 = {name: round(statistics.mean(values), 1) for name, values in l0s.items()}
    return {
        "name": "ours",
        "members": sum(len(group.members) for group in groups),
        "seconds_per_step": statistics.median(seconds),
        "cpu_seconds_per_step": statistics.median(cpu_seconds),
        "compilation_seconds": compilation,
        "l0": mean_l0,
    }


def compare(args: argparse.Namespace) -> None:
    sizes = ["--rows", str(args.rows), "--f", str(args.f), "--batch", str(args.batch)]
    blocks = ["--block-steps", str(args.block_steps), "--blocks", str(args.blocks)]
    commands = [[sys.executable, __file__, *sizes, *blocks, "--first-steps", str(args.first_steps)]]
    peers = [args.peers_python, str(Path(__file__).with_name("peers_population.py")), "--steps", str(args.peers_steps)]
    commands += [[*peers, *sizes, peer] for peer in ("dictionary_learning", "sae_lens")]
    lines = defaultdict(list)
    for _ in range(args.rounds):
        for command in commands:
            line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
            print(line, flush=True)
            lines[json.loads(line)["name"]].append(json.loads(line))
    for clock in ("seconds_per_step", "cpu_seconds_per_step"):
        print(f"| | {clock} | over ours | in each round |\n|---|---|---|---|")
        for name, rounds in lines.items():
            values = [line[clock] for line in rounds]
            ratios = [value / line[clock] for value, line in zip(values, lines["ours"], strict=True)]
            each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"| {name} | {statistics.median(values):.3f} | {statistics.median(ratios):.2f} | {each} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"d": 576, "f": 1536, "batch": 1024, "block_steps": 5, "first_steps": 50, "blocks": 3, "peers_steps": 9}
    for name, default in (sizes | {"rounds": 0}).items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    parser.add_argument("--peers-python")
    parser.add_argument("--rows", type=Path, help="a .npy of rows (default: one is made)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        if args.rows is None:
            args.rows = Path(directory) / "rows.npy"
            np.save(args.rows, sparse_rows(4 * args.block_steps * args.batch, args.d))
        compare(args) if args.rounds else print(json.dumps(measure(args)))


if __name__ == "__main__":
    main()
