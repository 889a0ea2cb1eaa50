"""Kills of one of two processes that train together, or of both: resuming completes the run.

    PYTHONPATH=.:tests python tests/robustness/processes.py --count 40 --seed 0

Each case starts two processes on a mesh that splits members over both, kills one or both (SIGKILL) at a random moment,
waits until all have ended, and resumes: with two processes on the same mesh, after which all files must equal those of
an undisturbed run byte for byte, or in every other case with one process on one device, after which explained variance
and L0 must agree within 1e-4 (relative).
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from clusters import SMALL, ended, start_all
from command_line import typed

from harvest.files import read_json

COMMAND = (*SMALL, "--epochs", "40", "--checkpoint-seconds", "0.05")
TWO, ONE = ("--mesh", "features=2"), ("--mesh", "members=1")
LEARNED = ("members/*/*", "snapshots/*/*", "metrics.jsonl")
EXITS = 30  # seconds within which every process has to end


def files(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for pattern in LEARNED for path in sorted(run.glob(pattern))}


def metrics(run: Path) -> np.ndarray:
    members = read_json(run / "results.json", "")["members"]
    return np.array([[member["metrics"][name] for name in ("explained_variance", "l0")] for member in members])


def together(run: Path, cache: Path) -> float:
    """Train in two processes to the end, and return the seconds."""
    began = time.monotonic()
    told = ended(start_all(2, cache, *COMMAND, *TWO, "--run-dir", run, "--resume"))
    assert told == [(0, ""), (0, "")], told
    return time.monotonic() - began


def case(number: int, chance: random.Random, folder: Path, seconds: float) -> tuple[str, str]:
    """(verdict, description) of a case."""
    run, whole, cache = folder / "run", folder / "whole", folder / "cache"
    shutil.rmtree(run, ignore_errors=True)
    processes = start_all(2, cache, *COMMAND, *TWO, "--run-dir", run, "--resume")
    moment, victims = chance.random() * seconds, chance.choice([[0], [1], [0, 1]])
    time.sleep(moment)
    hit = [process.poll() is None for process in processes]
    for victim in victims:
        processes[victim].kill()
    began = time.monotonic()
    told = ended(processes)
    took = time.monotonic() - began
    of = f"{'+'.join(map(str, victims))} after {moment:.1f} s of {seconds:.1f}, all ended {took:.1f} s later"
    survivors = [told[n] for n in (0, 1) if n not in victims]
    lines = [err for status, err in survivors if status and len(err.splitlines()) != 1]
    if lines or took > EXITS:
        return "DOES NOT END IN A LINE", f"{of}: {lines}"
    saved = "saved" if any(path.name.isdigit() for path in (run / "checkpoints").glob("*")) else "nothing saved"
    when = f"{saved}, {'running' if any(hit[n] for n in victims) else 'ended before'}"
    if number % 2:
        resumed = typed(*COMMAND, *ONE, "--run-dir", run, "--resume", "--quiet", cache=cache)
        assert resumed.returncode == 0, resumed.stderr
        alike = np.allclose(metrics(run), metrics(whole), rtol=1e-4)
        return (f"same metrics on another mesh ({when})" if alike else "OTHER METRICS"), of
    together(run, cache)
    same = files(run) == files(whole)
    return (f"same bytes on the same mesh ({when})" if same else "OTHER BYTES"), of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    folder, chance, counts = Path(tempfile.mkdtemp(prefix="processes-")), random.Random(asked.seed), Counter()
    for _ in range(2):  # the first one also harvests and compiles
        shutil.rmtree(folder / "whole", ignore_errors=True)
        seconds = together(folder / "whole", folder / "cache")
    for number in range(asked.count):
        verdict, told = case(number, chance, folder, seconds)
        counts[verdict] += 1
        print(f"{number + 1}/{asked.count} {verdict}: {told}", flush=True)
    print(", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())))
    sys.exit(any(verdict.isupper() for verdict in counts))


if __name__ == "__main__":
    main()
