"""For every command: the seconds to its first line, the longest silence and what came before it, the seconds in all.

python tests/benchmarks/silence.py                       # all commands, on a small run that it trains first
python tests/benchmarks/silence.py --only steer study    # some of them

The output goes to a pipe, as into a log file. A silence ends with any output on standard output or standard error.
"""

from __future__ import annotations

import argparse
import os
import selectors
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
BUNDLED = ("--model-name", "bundled", "--dataset", "bundled")
SMALL = ("--activation", "relu", "topk", "--layer", "2", "--seed", "0", "1", "2", "--n-samples", "1000", "--epochs")
SMALL += ("4",)
SEA = ("--prompt", "The ships lay in the", "--target", " sea")
MOST_SECONDS = 3.0  # of silence
SERVED = "dashboard"  # ends only when it is stopped


def commands(run: Path, folder: Path) -> dict[str, tuple[str, ...]]:
    """The arguments of each command, training first, because the others need its run."""
    best, rows = (str(run), "--member", "best"), folder / "rows.npy"
    np.save(rows, np.random.default_rng(0).standard_normal((200_000, 128), np.float32))
    return {
        "train": (*BUNDLED, *SMALL, "--run-dir", str(run), "--use-wandb"),
        "runs": (str(run.parent),),
        "show": (str(run), "--pareto"),
        "evaluate": (str(run),),
        "frontier": (str(run),),
        "saebench": (str(run), "--documents", "2000"),
        "study": (str(run), "--documents", "2000"),
        "find-feature": (str(run), "the sea"),
        "steer": (*best, "--concept", "the sea", "--sweep"),
        "attribute": (*best, *SEA),
        "report": (str(run),),
        "import-rows": (str(rows), "--to", str(folder / "store")),
        "export": (*best, "--to", str(folder / "export")),
        SERVED: (str(run), "--port", "8599"),
    }


def measure(argv: list[str], seconds: float | None) -> tuple[float, float, str, float, int | None]:
    """(seconds to the first output, longest silence, output before it, seconds in all, exit status).

    The command is stopped after `seconds`.
    """
    environment = os.environ | {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
    began = last = time.monotonic()
    first, longest, before, output = 0.0, 0.0, "", b""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen([sys.executable, ROOT / "main.py", *argv], env=environment, **pipes)
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while seconds is None or time.monotonic() - began < seconds:
            ready = selector.select(timeout=1.0)
            now = time.monotonic()
            if ready:
                if now - last > longest:
                    longest, before = now - last, output.decode(errors="replace").strip().rpartition("\n")[2]
                first, last = first or now - began, now
                if not (output := os.read(process.stdout.fileno(), 1 << 16)):
                    break
    process.terminate()
    return first, longest, before, time.monotonic() - began, process.wait() if seconds is None else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="commands to measure; training is always run first")
    parser.add_argument("--cache-dir", type=Path, help="where activations and compiled programs are kept")
    options = parser.parse_args()
    silent = []
    print(f"{'command':14}{'first line':>11}{'silence':>9}{'in all':>9}   status  before the silence")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cache = ("--cache-dir", str(options.cache_dir or folder / "cache"))
        for command, argv in commands(folder / "runs" / "small", folder).items():
            if options.only and command not in ("train", *options.only):
                continue
            takes_cache = command not in ("runs", "show", "frontier", "import-rows")
            argv = [command, *argv, *(cache if takes_cache else ())]
            first, longest, before, total, status = measure(argv, 20.0 if command == SERVED else None)
            print(f"{command:14}{first:9.1f} s{longest:7.1f} s{total:7.0f} s   {status}  {before}", flush=True)
            silent += [command] * (longest > MOST_SECONDS)
    print(f"silent for more than {MOST_SECONDS:g} s: {', '.join(silent) or 'none'}")


if __name__ == "__main__":
    main()
