"""The same command in several processes at once, on one run or one cache: none fails, and no file is incomplete.

    python tests/robustness/concurrency.py [--rounds 30] [--only report study] [--folder DIR]

Each round deletes the command's output, starts the command in two or three processes at once, and checks every exit
status, every message and every file. A process may refuse a run that another process trains. All others must succeed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from command_line import THREE_KINDS
from forked import Ended, run, start, wait, warm

from harvest.files import TEMPORARY, parse_json

SHORT = (*THREE_KINDS, "--k", "4", "8", "--epochs", "2", "--snapshots", "3")
MAY_BE_REFUSED = "another process is training in it"


def at_once(argv: Sequence[str], count: int, logs: Path) -> list[Ended]:
    """Run a command in `count` processes that start together, with all imports done."""
    places = [logs / str(number) for number in range(count)]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    running = [start(list(argv), place) for place in places]
    return [wait(number, place, 600) for number, place in zip(running, places, strict=True)]


def torn(folder: Path) -> list[str]:
    """Incomplete files, and temporary files that were left."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            if path.name.endswith(TEMPORARY):
                raise ValueError("left behind")
            if path.suffix == ".json":
                parse_json(path, "")
            elif path.suffix == ".npz":
                with np.load(path) as arrays:
                    [arrays[name] for name in arrays.files]
            elif path.suffix in (".html", ".svg") and not path.read_text().rstrip().endswith(f"</{path.suffix[1:]}>"):
                raise ValueError("it has no end")
        except Exception as error:
            found.append(f"{path.relative_to(folder)}: {error}")
    return found


def removed(*paths: Path) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
        if path.is_file():
            path.unlink()


def campaign(folder: Path, rounds: int, only: Sequence[str] = ()) -> list[str]:
    """Run all rounds in a folder. Returns the failures."""
    cache, finished, trained, logs = folder / "cache", folder / "run", folder / "trained", folder / "logs"
    warm(cache / "compiled")
    with_cache = ("--cache-dir", str(cache))
    if not (finished / "results.json").exists():
        done = run([*SHORT, "--run-dir", str(finished), *with_cache], logs, 900)
        assert done.status == 0, done.err
    analyses, figures = finished / "analysis", finished / "figures"
    tried: dict[str, tuple[tuple[str, ...], int, Callable[[], None]]] = {
        "report": (
            ("report", str(finished), *with_cache),
            3,
            lambda: removed(analyses, figures, finished / "report.html"),
        ),
        "frontier": (("frontier", str(finished), "--to", str(folder / "to")), 2, lambda: None),
        "find-feature": (("find-feature", str(finished), "ship", *with_cache), 2, lambda: removed(analyses)),
        "evaluate": (
            ("evaluate", str(finished), "--ce-windows", "8", "--json", str(folder / "figures.json"), *with_cache),
            2,
            lambda: removed(folder / "figures.json"),
        ),
        "harvest": (
            (*SHORT, "--run-dir", str(trained), "--cache-dir", str(folder / "other")),
            2,
            lambda: removed(trained, folder / "other" / "activations"),
        ),
        "train": ((*SHORT, "--run-dir", str(trained), *with_cache), 2, lambda: removed(trained)),
        "study": (("study", str(finished), "--documents", "2000", *with_cache), 2, lambda: removed(analyses, figures)),
    }
    failed = []
    for name, (argv, count, prepare) in tried.items():
        if only and name not in only:
            continue
        counts: Counter[str] = Counter()
        began = time.perf_counter()
        for number in range(rounds):
            prepare()
            for done in at_once(argv, count, logs):
                refused = done.status == 2 and MAY_BE_REFUSED in done.err
                counts["refused" if refused else "done" if done.status == 0 else "failed"] += 1
                if not (refused or done.status == 0) or "Traceback" in done.out + done.err:
                    last = done.err.strip().splitlines()[-1:] or ["nothing said"]
                    failed.append(f"{name}, round {number}: status {done.status}: {last[0]}")
            failed += [f"{name}, round {number}: torn: {path}" for path in torn(folder)]
        print(f"{name}: {rounds} rounds of {count}: {dict(counts)}, {time.perf_counter() - began:.0f} s", flush=True)
    print("\n".join(failed) or "no failure")
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as fresh:
        sys.exit(bool(campaign((asked.folder or Path(fresh)).resolve(), asked.rounds, asked.only)))
