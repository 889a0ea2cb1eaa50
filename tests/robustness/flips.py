"""Random bit flips and truncations in all files that the program writes: each is reported or harmless.

    python tests/robustness/flips.py --count 300 --seed 0 [--folder FOLDER]

Each case damages one file of a fresh copy, runs one command that reads it, and compares the results with those of an
undamaged copy. Damage is reported if the command ends with status 2 and one line with the file's name, or if it prints
the name and has the right results. It is harmless if the results are right. All other cases are failures and printed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from forked import Ended, run, warm

SIZES = (
    "--model-name",
    "bundled",
    "--dataset",
    "bundled",
    "--n-samples",
    "100",
    "--seq-len",
    "10",
    "--ce-windows",
    "0",
)
SIZES += ("--hidden-dim", "48", "--k", "8", "--block-steps", "4", "--dead-threshold", "0.1")
FINISHED = (
    *SIZES,
    "--target-l0",
    "8",
    "--activation",
    "relu",
    "topk",
    "--seed",
    "0",
    "1",
    "--epochs",
    "2",
    "--snapshots",
    "4",
)
LONGER = (*SIZES, "--activation", "topk", "--epochs", "6", "--snapshots", "3")
MEMBER = "topk-f48-k8-lr1e-3-s0"
CUT = 0.25  # share of the cases in which the end of the file is cut off


@dataclass(frozen=True)
class Command:
    """A command. `kinds` is {kind of file: glob} of the files that it reads, `results` are globs of those it writes.

    A quick command has several cases for each case of the others.
    """

    run: Callable[[Path], list[str] | Callable[[], object]]
    kinds: dict[str, str]
    results: tuple[str, ...]
    turns: int = 1


STORE = {
    "manifest": "cache/activations/*/manifest.json",
    "rows": "cache/activations/*/*/rows-*.npy",
    "tokens": "cache/activations/*/*/tokens-*.npy",
    "documents": "cache/activations/*/*/documents-*.npy",
}
RECORDS = {"config": "finished/config.json", "results": "finished/results.json"}
MEMBERS = {
    "cfg": "finished/members/*/cfg.json",
    "weights": "finished/members/*/sae_weights.safetensors",
    "densities": "finished/members/*/stats.npz",
}
DERIVED = {
    "features": "finished/analysis/features/*.npz",
    "snapshot": "finished/snapshots/*/*.npz",
    "study": "finished/analysis/study.json",
    "benchmarks": "finished/analysis/study_benchmarks.json",
    "comparison": "finished/analysis/comparison.*",
    "clusters": "finished/analysis/clusters-*",
    "curves": "finished/metrics.jsonl",
}
LEARNED = tuple(f"*/{what}" for what in ("members/*/*", "snapshots/*/*", "metrics.jsonl", "results.json"))


def of(names: str, *kinds: dict[str, str]) -> dict[str, str]:
    together = {name: glob for part in kinds for name, glob in part.items()}
    return {name: together[name] for name in names.split()}


def typed(*argv: object) -> Callable[[Path], list[str]]:
    """A command line, in which `{}` stands for the folder."""
    return lambda folder: [str(argument).replace("{}", str(folder)) for argument in argv]


def page(folder: Path) -> Callable[[], object]:
    """The page of a feature, as the dashboard computes it."""

    def compute() -> None:
        from analysis.comparison import shared_features
        from analysis.features.statistics import Features
        from analysis.pages import feature as feature_page
        from analysis.pages import feature_table
        from analysis.runs.finished import FinishedRun
        from harvest.model.tokenizer import load_tokenizer

        finished = FinishedRun.open(folder / "finished")
        features = Features.load(finished.path / "analysis" / "features" / f"{MEMBER}.npz", mapped=True)
        dictionary, tokenizer = finished.dictionary(MEMBER), load_tokenizer(finished.model_location)
        store = finished.store(finished.site(MEMBER), folder / "cache")
        compared = shared_features.read_shared_features(finished.path / "analysis", list(finished.members))
        feature = int(abs(features.density_F - 0.2).argmin())
        found = feature_page.compute_feature_page(
            finished, MEMBER, feature, features, dictionary, store, tokenizer, compared
        )
        places = feature_table.places(finished.path / "analysis", MEMBER, dictionary.tensors["W_dec"])
        print(found, places, features.activations(feature), features.logits(feature), features.max_F[feature])

    return compute


def truth(folder: Path) -> Callable[[], object]:
    def compute() -> None:
        from harvest.synthetic import Truth, synthesize

        found = Truth.load(synthesize(synthetic(), folder / "made"))
        print({name: array.tobytes() for name, array in vars(found).items()})

    return compute


def synthetic():
    from harvest.synthetic import SyntheticRequest

    return SyntheticRequest(n_features=64, d_model=16, train_rows=2000, held_out_rows=300, n_roots=8)


WHERE = ("{}/finished", "--cache-dir", "{}/cache")
MEASURED = ("--ce-windows", "0", "--cache-dir", "{}/cache", "--json", "{}/out.json")
ASKED = ("--member", MEMBER, "--prompt", "The sea", "--target", " and", "--json", "{}/out.json")
COMMANDS = {
    "train": Command(typed(*LONGER, "--run-dir", "{}/fresh", "--cache-dir", "{}/cache"), STORE, LEARNED),
    "harvest": Command(
        typed(*LONGER, "--run-dir", "{}/fresh", "--cache-dir", "{}/begun"),
        {
            "shard record": "begun/activations/*/*/shard-*.json",
            **{name: glob.replace("cache", "begun") for name, glob in of("rows tokens documents", STORE).items()},
        },
        (*LEARNED, "begun/activations/*/manifest.json", "begun/activations/*/*/*.npy"),
    ),
    "resume": Command(
        typed(*LONGER, "--resume", "--run-dir", "{}/new", "--cache-dir", "{}/cache"),
        {
            "newest checkpoint": "new/checkpoints/{newest}/**/*",
            "checkpoint before": "new/checkpoints/{before}/**/*",
            "curves": "new/metrics.jsonl",
            "config": "new/config.json",
            **of("rows manifest", STORE),
        },
        LEARNED,
        turns=2,
    ),
    "show (begun)": Command(
        typed("show", "{}/new"), {"curves": "new/metrics.jsonl", "config": "new/config.json"}, (), turns=4
    ),
    "show": Command(typed("show", "{}/finished"), RECORDS, (), turns=4),
    "again": Command(typed(*FINISHED, "--run-dir", *WHERE), RECORDS, (), turns=2),
    "evaluate": Command(
        typed("evaluate", "{}/finished", *MEASURED),
        of("cfg weights densities config manifest rows documents", MEMBERS, RECORDS, STORE),
        ("out.json",),
        turns=2,
    ),
    "evaluate (exported)": Command(
        typed("evaluate", "{}/exported", *MEASURED), {"exported": "exported/*[!d]"}, ("out.json",), turns=6
    ),
    "export": Command(
        typed("export", "{}/finished", "--member", MEMBER, "--to", "{}/out"),
        {name: glob.replace("*", MEMBER, 1) for name, glob in MEMBERS.items()} | RECORDS,
        ("out/*",),
        turns=4,
    ),
    "study": Command(
        typed("study", "--documents", "1500", *WHERE),
        of("features snapshot benchmarks config weights rows", DERIVED, RECORDS, MEMBERS, STORE),
        ("finished/analysis/*.*", "finished/analysis/features/*"),
    ),
    "report": Command(typed("report", *WHERE), of("study curves snapshot", DERIVED), ("finished/report.html",)),
    "page": Command(
        page,
        {
            **of("comparison tokens rows", DERIVED, STORE),
            "features": f"finished/analysis/features/{MEMBER}.npz",
            "snapshot": f"finished/snapshots/*/{MEMBER}.npz",
            "clusters": f"finished/analysis/clusters-{MEMBER}.*",
            "weights": f"finished/members/{MEMBER}/sae_weights.safetensors",
        },
        (),
        turns=4,
    ),
    "attribute": Command(
        typed("attribute", "{}/finished", *ASKED), of("weights config results", MEMBERS, RECORDS), ("out.json",)
    ),
    "synthetic": Command(
        truth,
        {"features": "made/activations/*/features.npz", "manifest": "made/activations/*/manifest.json"},
        (),
        turns=4,
    ),
}


def build(folder: Path, logs: Path) -> None:
    """Write a finished run with its analyses, an interrupted run, an unfinished store and an exported dictionary."""

    def need(command: list[str] | Callable[[], object], status: int = 0) -> None:
        ended = run(command, logs, 600)
        if ended.status != status:
            raise SystemExit(f"{command} ended with {ended.status}:\n{ended.out}\n{ended.err}")

    need(typed(*FINISHED, "--run-dir", "{}/finished", "--cache-dir", "{}/cache")(folder))
    need(interrupted(typed(*LONGER, "--run-dir", "{}/new", "--cache-dir", "{}/cache")(folder)), 130)
    need(half_harvested(typed(*LONGER, "--run-dir", "{}/none", "--cache-dir", "{}/begun")(folder)), 130)
    if {"study", "report", "page"} & COMMANDS.keys():
        need(typed("study", "--documents", "1500", *WHERE)(folder))
    need(typed("export", "{}/finished", "--member", MEMBER, "--to", "{}/exported")(folder))
    need(truth_made(folder))
    shutil.rmtree(folder / "none", ignore_errors=True)


def interrupted(argv: list[str]) -> Callable[[], object]:
    """A training that a signal stops after two checkpoints."""

    def command() -> None:
        import signal

        import main
        from sae_jax.training.checkpoint import Checkpoints

        looks = []

        def due(self) -> bool:
            looks.append(self)
            if len(looks) == 5:
                signal.raise_signal(signal.SIGINT)
            return len(looks) % 2 == 0

        Checkpoints.due = property(due)
        raise SystemExit(main.run_as_command(argv))

    return command


def half_harvested(argv: list[str]) -> Callable[[], object]:
    def command() -> None:
        import main
        from harvest.store_writer import StoreWriter

        def finish(*_: object) -> None:
            raise KeyboardInterrupt

        StoreWriter.finish = finish
        raise SystemExit(main.run_as_command(argv))

    return command


def truth_made(folder: Path) -> Callable[[], object]:
    def command() -> None:
        from harvest.synthetic import synthesize

        synthesize(synthetic(), folder / "made")

    return command


def damage(path: Path, chance: random.Random) -> str:
    """Flip a bit or cut off the end of a file. Returns a description."""
    content = bytearray(path.read_bytes())
    if chance.random() < CUT or not content:
        size = chance.randrange(max(1, len(content)))
        path.write_bytes(content[:size])
        return f"cut to {size} of {len(content)} bytes"
    bit = chance.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return f"bit {bit % 8} of byte {bit // 8} of {len(content)}"


def results_of(folder: Path, command: Command, ended: Ended) -> dict[str, object]:
    """The results of a command without the parts that differ each time: times, and messages on damage."""
    found: dict[str, object] = {} if command.results else {"said": ended.out}
    for glob in command.results:
        for path in sorted(path for path in folder.glob(glob) if path.is_file()):
            content: object = path.read_bytes()
            if path.name == "results.json":
                content = json.loads(path.read_text())["members"]
            found[str(path.relative_to(folder))] = content
    return found


def judged(ended: Ended, found: dict[str, object], expected: dict[str, object], path: Path, folder: Path) -> str:
    names = [path.name, *(f"step {part} " for part in path.relative_to(folder).parts if part.isdigit())]  # steps
    if ended.status is None:
        return "HANGS"
    if ended.status < 0 or "Traceback" in ended.err or ended.status not in (0, 2):
        return "TRACEBACK"
    if ended.status == 2:
        one_line = ended.err.startswith("error: ") and ended.err.count("\n") == 1
        return "named" if one_line and any(name in ended.err for name in names) else "NOT NAMED"
    if ended.err:
        return "SAYS TOO MUCH"
    said = any(name in line and "damaged" in line for name in names for line in ended.out.splitlines())
    if found == expected:
        return "named, the same results" if said else "harmless"
    return "named, and left out" if said else "SILENT"


FAULTS = ("HANGS", "TRACEBACK", "NOT NAMED", "SAYS TOO MUCH", "SILENT")


def cases(count: int, chance: random.Random) -> Iterator[tuple[str, str]]:
    """Endless (command, kind of file): all of them in random order, then again."""
    pairs = [(name, kind) for name, of in COMMANDS.items() for kind in of.kinds for _ in range(of.turns)]
    while count > 0:
        chance.shuffle(pairs)
        yield from pairs[:count]
        count -= len(pairs)


class Campaign:
    def __init__(self, folder: Path):
        self.folder, self.logs = folder, folder / "logs"
        self.whole, self.work = folder / "whole", folder / "work"
        self.expected: dict[str, dict[str, object]] = {}
        warm(folder / "compiled")
        if not self.whole.exists():
            self.work.mkdir(parents=True)
            build(self.work, self.logs)
            os.rename(self.work, self.whole)

    def attempt(self, name: str, damaged: Callable[[], Path] | None) -> tuple[Ended, dict[str, object], Path | None]:
        """Run a command in a fresh copy, which is always at the same path, after damaging it if requested."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.whole, self.work)
        path = damaged() if damaged else None
        ended = run(COMMANDS[name].run(self.work), self.logs, 300)
        return ended, results_of(self.work, COMMANDS[name], ended), path

    def case(self, name: str, kind: str, chance: random.Random) -> tuple[str, str]:
        """(verdict, description) of a case."""
        if name not in self.expected:
            ended, self.expected[name], _ = self.attempt(name, None)
            if ended.status or ended.err:
                raise SystemExit(f"{name}, undamaged, ends with {ended.status}: {ended.err}")
        how = []

        def damaged() -> Path:
            *_, before, newest = sorted((self.work / "new" / "checkpoints").iterdir(), key=lambda path: int(path.name))
            glob = COMMANDS[name].kinds[kind].replace("{newest}", newest.name).replace("{before}", before.name)
            path = chance.choice(sorted(path for path in self.work.glob(glob) if path.is_file()))
            how.append(damage(path, chance))
            return path

        ended, found, path = self.attempt(name, damaged)
        assert path
        verdict = judged(ended, found, self.expected[name], path, self.work)
        told = f"{name}: {path.relative_to(self.work)}, {how[0]}"
        if verdict in FAULTS:
            expected = self.expected[name]
            other = [key for key in found | expected if found.get(key) != expected.get(key)]
            told += f"\n  status {ended.status}; other: {other[:5]}\n  {ended.out[-300:]!r}\n  {ended.err[-1500:]}"
        return verdict, told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None, help="kept, and used again")
    parser.add_argument("--command", choices=COMMANDS, action="append", help="only this one")
    asked = parser.parse_args()
    for name in [name for name in COMMANDS if asked.command and name not in asked.command]:
        del COMMANDS[name]
    campaign = Campaign(asked.folder or Path(tempfile.mkdtemp(prefix="flips-")))
    chance, counts = random.Random(asked.seed), Counter()
    for number, (name, kind) in enumerate(cases(asked.count, chance), 1):
        verdict, told = campaign.case(name, kind, chance)
        counts[kind, verdict] += 1
        print(f"{number}/{asked.count} {verdict}: {told}", flush=True)
    for kind in sorted({kind for kind, _ in counts}):
        print(f"{kind}: " + ", ".join(f"{n} {verdict}" for (of, verdict), n in sorted(counts.items()) if of == kind))
    total = Counter(verdict for (_, verdict), n in counts.items() for _ in range(n))
    print(f"all {asked.count}: " + ", ".join(f"{n} {verdict}" for verdict, n in total.most_common()))
    sys.exit(any(verdict in FAULTS for verdict in total))


if __name__ == "__main__":
    main()
