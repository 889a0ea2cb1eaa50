"""The same command several times at once, on one run or one cache: nobody fails, and no file is torn.

    PYTHONPATH=.:tests python tests/robustness/concurrency.py [--rounds 30] [--only report study] [--folder DIR]

Each round deletes what the command left, starts it in two or three processes at once, and looks at every exit status,
at what was said, and at every file. A run that another process trains may be refused; all else must be done.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from command_line import THREE_KINDS, environment

import main
from harvest.files import TEMPORARY, parse_json

HEAVY = ["main", "jax", "transformer_lens", "altair", "analysis.report", "analysis.commands.find_feature"]
SHORT = (*THREE_KINDS, "--epochs", "2", "--snapshots", "3")
MAY_BE_REFUSED = "another process is training in it"


def in_a_process(argv: Sequence[str], said: Path) -> None:
    with open(said, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        status = main.run_as_command(list(argv))
    sys.exit(status)


def at_once(argv: Sequence[str], count: int, folder: Path) -> list[tuple[int | None, str]]:
    """(exit status, what was said) of each of so many processes that begin together, with all imported already."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(HEAVY)
    running = []
    for number in range(count):
        said = folder / f"said-{number}"
        running.append((processes.Process(target=in_a_process, args=(argv, said)), said))
    for process, _ in running:
        process.start()
    for process, _ in running:
        process.join(300)
    return [(process.exitcode, said.read_text()) for process, said in running]


def torn(folder: Path) -> list[str]:
    """Files that cannot be read as a whole, and temporary ones that were left."""
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
    """Runs it in a folder, and tells what failed."""
    cache, run, trained = folder / "cache", folder / "run", folder / "trained"
    os.environ |= environment(cache)
    with_cache = ("--cache-dir", str(cache))
    if not (run / "results.json").exists():
        for argv in ((*SHORT, "--run-dir", str(run)), ("study", str(run), "--documents", "2000")):
            assert main.run_as_command([*argv, *with_cache]) == 0
    analyses, figures = run / "analysis", run / "figures"
    tried: dict[str, tuple[tuple[str, ...], int, Callable[[], None]]] = {
        "report": (("report", str(run), *with_cache), 3, lambda: removed(analyses, figures, run / "report.html")),
        "frontier": (("frontier", str(run), "--to", str(folder / "to")), 2, lambda: None),
        "find-feature": (("find-feature", str(run), "ship", *with_cache), 2, lambda: removed(analyses)),
        "evaluate": (
            ("evaluate", str(run), "--ce-windows", "8", "--json", str(folder / "figures.json"), *with_cache),
            2,
            lambda: removed(folder / "figures.json"),
        ),
        "harvest": (
            (*SHORT, "--run-dir", str(trained), "--cache-dir", str(folder / "other")),
            2,
            lambda: removed(trained, folder / "other" / "activations"),
        ),
        "train": ((*SHORT, "--run-dir", str(trained), *with_cache), 2, lambda: removed(trained)),
        "study": (("study", str(run), "--documents", "2000", *with_cache), 2, lambda: removed(analyses, figures)),
    }
    failed = []
    for name, (argv, count, prepare) in tried.items():
        if only and name not in only:
            continue
        counts: Counter[str] = Counter()
        began = time.perf_counter()
        for number in range(rounds):
            prepare()
            for status, said in at_once(argv, count, folder):
                fine = status == 0 or status == 2 and MAY_BE_REFUSED in said
                counts["done" if status == 0 else "refused" if fine else "failed"] += 1
                if not fine or "Traceback" in said:
                    last = said.strip().splitlines()[-1:] or ["nothing said"]
                    failed.append(f"{name}, round {number}: status {status}: {last[0]}")
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
