"""Kills at random moments of a harvest, a training or an analysis: repeating the command completes the work.

    python tests/robustness/kills.py --count 100 --seed 0 [--folder FOLDER] [--command streaming]

Each case starts a command in a fresh folder and kills its process (SIGKILL) at a random moment, sometimes twice. Of a
streaming run, the training is killed, or the process that runs the language model (after which the run goes on), or
both. The same command (with --resume) then runs to its end. Its files must equal those of an undisturbed command byte
for byte.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent))
from flips import FINISHED, LONGER, SIZES, Command, Ended, results_of, typed
from forked import run, start, wait, warm

OFTEN = ("--checkpoint-seconds", "0.05")
ROWS = ("cache/activations/*/manifest.json", "cache/activations/*/*/*")
LEARNED = ("run/members/*/*", "run/snapshots/*/*", "run/metrics.jsonl", "run/results.json", "run/analysis/*.json")
# If a flag is given twice, the last one counts.
SHARDS = ("--n-samples", "8000", "--seq-len", "20", "--batch-size", "512", "--epochs", "1")
STREAMED = ("--stream", "--ring-gb", "0.04", "--n-samples", "2000", "--seq-len", "20", "--epochs", "6")
WHERE = ("--run-dir", "{}/run", "--cache-dir", "{}/cache", "--resume")


COMMANDS = {
    "harvest": Command(typed(*SIZES, *SHARDS, "--activation", "topk", *WHERE), {}, (*ROWS, *LEARNED)),
    "training": Command(typed(*LONGER, "--epochs", "20", *OFTEN, *WHERE), {}, LEARNED),
    "several": Command(typed(*FINISHED, "--epochs", "10", *OFTEN, *WHERE), {}, LEARNED),
    "streaming": Command(typed(*SIZES, *STREAMED, "--activation", "topk", "jump_relu", *OFTEN, *WHERE), {}, LEARNED),
    "study": Command(
        typed("study", "{}/run", "--documents", "1500", "--cache-dir", "{}/cache"),
        {},
        ("run/analysis/*.*", "run/analysis/features/*"),
    ),
    "report": Command(typed("report", "{}/run", "--cache-dir", "{}/cache"), {}, ("run/report.html",)),
}
AFTER = {
    "training": "harvested",
    "several": "harvested",
    "study": "trained",
    "report": "trained",
}  # from earlier results


VICTIMS = ("training", "producer", "both")  # of a streaming run


class Campaign:
    def __init__(self, folder: Path):
        self.folder, self.logs, self.work = folder, folder / "logs", folder / "work"
        self.logs.mkdir(parents=True, exist_ok=True)
        warm(folder / "compiled")
        self.expected: dict[str, dict[str, object]] = {}
        self.seconds: dict[str, float] = {}
        self._keep("harvested", COMMANDS["several"], begun=None)
        shutil.rmtree(folder / "harvested" / "run")
        self._keep("trained", COMMANDS["several"], begun="harvested")

    def _keep(self, name: str, command: Command, begun: str | None) -> None:
        self.fresh(begun)
        ended = run(command.run(self.work), self.logs, 600)
        assert ended.status == 0, ended
        shutil.rmtree(self.folder / name, ignore_errors=True)
        os.rename(self.work, self.folder / name)

    def fresh(self, begun: str | None) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        if begun:
            shutil.copytree(self.folder / begun, self.work)
        else:
            self.work.mkdir()

    def undisturbed(self, name: str) -> None:
        for _ in range(2):  # the first one also compiles
            self.fresh(AFTER.get(name))
            began = time.monotonic()
            ended = run(COMMANDS[name].run(self.work), self.logs, 600)
            self.seconds[name] = time.monotonic() - began
            assert (ended.status, ended.err) == (0, ""), ended
            again = results_of(self.work, COMMANDS[name], ended)
            assert self.expected.setdefault(name, again) == again, f"{name} differs from time to time"

    def case(self, name: str, chance: random.Random) -> tuple[str, str]:
        """(verdict, description) of a case."""
        if name not in self.expected:
            self.undisturbed(name)
        self.fresh(AFTER.get(name))
        moments = [chance.random() * self.seconds[name] for _ in range(1 + (chance.random() < 0.3))]
        victims = [chance.choice(VICTIMS) if name == "streaming" else "training" for _ in moments]
        killed = []
        for seconds, victim in zip(moments, victims, strict=True):
            process = start(COMMANDS[name].run(self.work), self.logs)
            time.sleep(seconds)
            producers = psutil.Process(process).children() if victim != "training" else []
            for producer in producers:
                producer.kill()
            if victim != "producer":
                os.kill(process, signal.SIGKILL)
            status = wait(process, self.logs).status
            killed.append(bool(producers) if victim == "producer" else status == -signal.SIGKILL)
        ended = run(COMMANDS[name].run(self.work), self.logs, 600)
        found, expected = results_of(self.work, COMMANDS[name], ended), self.expected[name]
        told = f"{name}: killed after {', '.join(f'{seconds:.2f} s' for seconds in moments)} ({', '.join(victims)})"
        told += f" of {self.seconds[name]:.2f}"
        verdict = self._judged(ended, found == expected, all(killed))
        if verdict in FAULTS:
            other = [key for key in found | expected if found.get(key) != expected.get(key)]
            told += f"\n  status {ended.status}; other: {other[:5]}\n  {ended.out[-300:]!r}\n  {ended.err[-1500:]}"
        return verdict, told

    @staticmethod
    def _judged(ended: Ended, same: bool, killed: bool) -> str:
        if ended.status or ended.err:
            return "DOES NOT GO ON"
        if not same:
            return "OTHER RESULTS"
        return "went on, the same results" if killed else "had ended before, the same results"


FAULTS = ("DOES NOT GO ON", "OTHER RESULTS")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", choices=COMMANDS, action="append", help="only this one")
    parser.add_argument("--folder", type=Path, default=None, help="kept, and used again")
    asked = parser.parse_args()
    campaign = Campaign(asked.folder or Path(tempfile.mkdtemp(prefix="kills-")))
    chance, counts, names = random.Random(asked.seed), Counter(), asked.command or list(COMMANDS)
    for number in range(asked.count):
        name = names[number % len(names)]
        verdict, told = campaign.case(name, chance)
        counts[name, verdict] += 1
        print(f"{number + 1}/{asked.count} {verdict}: {told}", flush=True)
    for name in names:
        print(f"{name}: " + ", ".join(f"{n} {verdict}" for (of, verdict), n in sorted(counts.items()) if of == name))
    sys.exit(any(verdict in FAULTS for _, verdict in counts))


if __name__ == "__main__":
    main()
