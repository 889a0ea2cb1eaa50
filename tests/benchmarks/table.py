"""The table of speed in sae_jax/RESULTS.md: runs our benchmarks and those of other projects in turn.

    taskset -c 0 python tests/benchmarks/table.py --peers-python PEERS/bin/python --model DIR --dataset FILE.jsonl

PEERS is an environment with sae-lens and dictionary-learning (see peers_population.py). DIR and FILE are a Llama model
and a text for the harvest. Each benchmark runs in a separate process. A round runs both sides of every row. The ratio
of a row is the median over rounds of the other side's seconds divided by ours. All printed lines are kept in the file
--lines, and measurements that are in this file are not repeated.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
LARGE = "--d 768 --f 6144 --batch 2048"
SMALL = "--d 768 --f 256 --batch 64"
OURS_SMALL, PEERS_SMALL = f"{SMALL} --block-steps 100 --first-steps 100", f"{SMALL} --steps 300"
SIZES = (
    ("D 768, F 6144, batch 2048, k 32", LARGE, f"{LARGE} --steps 6"),
    ("D 768, F 256, batch 64, k 32", OURS_SMALL, PEERS_SMALL),
)


@dataclass(frozen=True)
class Row:
    """Two commands that do the same work, and the field of their seconds."""

    what: str
    ours: str
    against: str
    theirs: str
    field: str = "seconds_per_step"


ROWS = (
    *(
        Row(f"{kind}, a step, {size}", f"step.py {kind} {ours}", "SAELens", f"peers_step.py {kind} {peers}")
        for size, ours, peers in SIZES
        for kind in ("topk", "relu", "jump_relu")
    ),
    Row(
        "relu, a step, dense (by `--sparsity`), D 768, F 6144, batch 2048",
        f"step.py relu --sparsity 0.001 --first-steps 5 {LARGE}",
        "SAELens",
        f"peers_step.py relu {LARGE} --steps 6",
    ),
    Row("24 members, a step of all", "population.py", "SAELens", "peers_population.py sae_lens"),
    Row("24 members, a step of all", "population.py", "dictionary_learning", "peers_population.py dictionary_learning"),
    *(
        Row(f"16 members, F 256, 300 steps, {how}", "sequence.py population", "in sequence", "sequence.py alone", field)
        for how, field in (("from nothing", "seconds"), ("without compilation", "seconds_of_steps"))
    ),
    Row("feed from a store of 1.5 GB", "feed.py", "our topk step, F 256", f"step.py topk {OURS_SMALL}"),
    Row(
        "harvest's model calls, a million tokens",
        "harvest_speed.py ours --model MODEL --layer 8 --seq-len 64",
        "the raw model",
        "harvest_speed.py raw --model MODEL --layer 8 --seq-len 64",
        "seconds",
    ),
    Row(
        "harvest, a million rows",
        "harvest_peers.py ours --model MODEL --dataset DATASET --windows 512",
        "SAELens' ActivationsStore",
        "harvest_peers.py sae_lens --model MODEL --dataset DATASET --windows 512",
        "seconds",
    ),
)


class Measured:
    """The lines of a file by command and round. A missing line is measured and added."""

    def __init__(self, path: Path, asked: argparse.Namespace):
        self.path, self.asked = path, asked
        lines = map(json.loads, path.read_text().splitlines() if path.exists() else [])
        self.lines = {(line["command"], line["round"]): line for line in lines}

    def line(self, command: str, number: int) -> dict:
        if (command, number) not in self.lines:
            peers = command.startswith("peers_") or " sae_lens" in command
            script, *flags = command.split()
            places = {"MODEL": self.asked.model, "DATASET": self.asked.dataset}
            typed = [self.asked.peers_python if peers else sys.executable, HERE / script]
            done = subprocess.run(
                [*typed, *(places.get(flag, flag) for flag in flags)],
                env=os.environ
                | {"PYTHONPATH": str(HERE.parents[1])}
                | dict.fromkeys(("OMP_NUM_THREADS", "JAX_NUM_CPU_DEVICES"), str(cores())),
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            line = {"command": command, "round": number} | json.loads(done.stdout.splitlines()[-1])
            self.lines[command, number] = line
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        return self.lines[command, number]


def cores() -> int:
    return len(os.sched_getaffinity(0))


def machine(peers_python: str) -> str:
    listed = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in listed if line.startswith("model name")), "unknown CPU")
    ask = "from importlib.metadata import version as v; print(v('sae-lens'), v('dictionary-learning'), v('torch'))"
    lens, learning, torch = subprocess.check_output([peers_python, "-c", ask], text=True).split()
    ours = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "torch", "transformer-lens"))
    theirs = f"sae-lens {lens}, dictionary-learning {learning}, torch {torch}"
    return f"{cpu}, {cores()} core(s), Python {platform.python_version()}, {date.today()}: {ours}; peers: {theirs}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers-python", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="rows with this in their name")
    parser.add_argument("--lines", type=Path, default=Path("benchmarks.jsonl"))
    args = parser.parse_args()
    measured = Measured(args.lines, args)
    rows: dict[Row, list[tuple[dict, dict]]] = {row: [] for row in ROWS if args.only in row.what}
    for number in range(args.rounds):
        for row in rows:
            rows[row].append((measured.line(row.ours, number), measured.line(row.theirs, number)))

    print(machine(args.peers_python) + "\n")
    print("| | ours | against | | times as fast, each round | by CPU time |\n|---|---|---|---|---|---|")
    for row, rounds in rows.items():
        ours, theirs = (statistics.median(side[row.field] for side in sides) for sides in zip(*rounds, strict=True))
        ratios, cpu_ratios = (
            [theirs[field] / ours[field] for ours, theirs in rounds] for field in (row.field, f"cpu_{row.field}")
        )
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        cells = [row.what, seconds(ours), row.against, seconds(theirs)]
        cells += [f"**{statistics.median(ratios):.2f}** ({each})", f"{statistics.median(cpu_ratios):.2f}"]
        print(f"| {' | '.join(cells)} |")


def seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


if __name__ == "__main__":
    main()
