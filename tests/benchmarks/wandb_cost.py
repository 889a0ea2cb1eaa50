"""The cost of --use-wandb: training time with W&B offline and without W&B, in turn, as one JSON line.

    PYTHONPATH=.:tests taskset -c 1 python tests/benchmarks/wandb_cost.py --pairs 3 --epochs 100

Fields: seconds_with and seconds_without (medians of training_seconds), ratio (of these medians), ratios (of each pair),
after_seconds (the median time that W&B adds to the rest of the command, for tables and figures).
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from tests.command_line import BUNDLED, typed


def measure(run: Path, cache: Path, epochs: int, *flags: str) -> tuple[float, float]:
    """(seconds of training, of the rest of the command)."""
    shape = ("--n-samples", "2000", "--activation", "relu", "jump_relu", "topk", "--ce-windows", "0")
    began = time.perf_counter()
    done = typed(*BUNDLED, *shape, "--epochs", str(epochs), "--run-dir", run, *flags, cache=cache)
    whole = time.perf_counter() - began
    assert done.returncode == 0, done.stderr
    training = json.loads((run / "results.json").read_text())["timing"]["training_seconds"]
    return training, whole - training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=100)
    args = parser.parse_args()
    os.environ["WANDB_MODE"] = "offline"
    found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder, "first"), Path(folder, "cache"), args.epochs)  # harvests and compiles
        for pair in range(args.pairs):
            for logged in (False, True) if pair % 2 else (True, False):
                run = Path(folder, f"{pair}-{logged}")
                flags = ("--use-wandb",) if logged else ()
                found[logged].append(measure(run, Path(folder, "cache"), args.epochs, *flags))
    without, logged = ([training for training, _ in found[key]] for key in (False, True))
    rest = {key: statistics.median(rest for _, rest in found[key]) for key in found}
    print(
        json.dumps(
            {
                "seconds_with": statistics.median(logged),
                "seconds_without": statistics.median(without),
                "ratio": statistics.median(logged) / statistics.median(without),
                "ratios": [a / b for a, b in zip(logged, without, strict=True)],
                "after_seconds": rest[True] - rest[False],
            }
        )
    )


if __name__ == "__main__":
    main()
