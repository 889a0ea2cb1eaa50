"""Run directories from an attacker: malformed but with correct checksums, or with links that lead out of the run.

    python tests/robustness/received.py [--count 100] [--seed 0] [--folder FOLDER]

A run is trained and studied, unless there is one in FOLDER/run. Each of COUNT copies gets one fault, and all commands
that read the faulty file run on it. A command may succeed, or refuse the run in one sentence. A traceback or a changed
file outside of the copy is a failure.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import random
import shlex
import shutil
import sys
import tempfile
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from command_line import THREE_KINDS, environment, files_of

import main
from analysis.runs.reproduce import reproduction_command
from harvest.files import ARRAYS, CHECKSUM, append_lines, read_lines, write_arrays

Fault = Callable[[Path], None]
SHORT = (*THREE_KINDS, "--seed", "0", "1", "--epochs", "2", "--snapshots", "3", "--ce-windows", "8")

GONE = object()
deep: Any = []
for _ in range(400):
    deep = [deep]
VALUES = {
    "missing": GONE,
    "null": None,
    "text": "x",
    "empty text": "",
    "list": [],
    "object": {},
    "nested": deep,
    "true": True,
    "negative": -1,
    "fraction": 0.5,
    "huge": 10**30,
    "NaN": math.nan,
    "infinite": math.inf,
    "NUL": "\0",
    "escape code": "\x1b[2J\x1b]0;owned\x07",
    "half of a character": "\ud800",
    "path": "../../outside/owned",
}
ABSOLUTE = "ABSOLUTE"  # stands for the path of a file outside of the run
IDS = (
    ABSOLUTE,
    "../../outside/owned",
    "..",
    ".",
    "",
    "a/b",
    "a\0b",
    "a\nb",
    "\x1b[31mred",
    "-rf",
    "i" * 300,
    ".hidden",
)
WRONG_ARRAYS = {
    "missing": None,
    "no dimension": lambda a: np.array(7),
    "empty": lambda a: a[:0],
    "one short": lambda a: a[:-1],
    "turned": lambda a: a.T[..., None],
    "text": lambda a: np.full(a.shape, "x"),
    "far too large": lambda a: np.full_like(a, 2**40 if a.dtype.kind == "i" and a.dtype.itemsize == 8 else 1e9),
    "negative": lambda a: np.full_like(a, -7),
    "NaN": lambda a: np.full(a.shape, np.nan),
}
RECORDS = ("config.json", "results.json", "analysis/[!f]*.json")
ARCHIVES = ("analysis/comparison.npz", "analysis/clusters-*.npz", "analysis/features/*.npz", "snapshots/*/*.npz")
LINKS = (
    "figures",
    "analysis",
    "analysis/features",
    "analysis/find",
    "members",
    "members/*",
    "snapshots",
    "snapshots/*",
)
FILES = ("report.html", ".report.html.tmp", ".lock", "figures/pareto.svg", "analysis/frontier.json")


def commands(run: Path, cache: Path, member: str, resumed: list[str]) -> Iterator[list[str]]:
    """All commands that read a run, except the slow `steer` and `saebench`, which open it as `attribute` does."""
    with_cache = ["--cache-dir", str(cache)]
    if not (run / "results.json").exists():
        yield ["show", str(run)]
        yield [*resumed, "--run-dir", str(run), "--resume", *with_cache]
        return
    yield ["show", str(run), "--pareto"]
    yield ["report", str(run), *with_cache]
    yield ["study", str(run), "--documents", "2000", *with_cache]
    yield ["frontier", str(run)]
    yield ["find-feature", str(run), "ship", *with_cache]
    yield ["evaluate", str(run), "--ce-windows", "0", *with_cache]
    yield ["export", str(run), "--member", member, "--to", str(run.with_name("exported"))]
    yield ["attribute", str(run), "--member", member, "--prompt", "The ships lay in the", "--target", " h"]
    yield ["dashboard", str(run), *with_cache]
    yield [*resumed, "--run-dir", str(run), "--resume", *with_cache]


def write_record(path: Path, record: Any) -> None:
    """Write a record with a correct checksum, like `write_json`, but with NaN and other values that JSON lacks."""
    whole = record | {CHECKSUM: checksum_of(record)} if isinstance(record, dict) else record
    path.write_text(json.dumps(whole))


def checksum_of(record: dict) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True, separators=(",", ":")).encode())


def read_record(path: Path) -> dict:
    record = json.loads(path.read_text())
    record.pop(CHECKSUM, None)
    return record


def places(tree: Any, here: tuple = ()) -> Iterator[tuple]:
    """The path to each value of a record; of each list, only to its first entry."""
    yield here
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from places(value, (*here, key))
    elif isinstance(tree, list) and tree:
        yield from places(tree[0], (*here, 0))


def changed(tree: Any, place: tuple, value: Any) -> Any:
    if not place:
        return value
    copy = tree.copy()
    if value is GONE and len(place) == 1:
        del copy[place[0]]
    else:
        copy[place[0]] = changed(tree[place[0]], place[1:], value)
    return copy


def record_fault(file: str, place: tuple, value: Any) -> Fault:
    def apply(run: Path) -> None:
        write_record(run / file, changed(read_record(run / file), place, value))

    return apply


def line_fault(value: Any) -> Fault:
    """A fault in a line of metrics.jsonl, with a correct checksum."""

    def apply(run: Path) -> None:
        path = run / "metrics.jsonl"
        first, *rest = read_lines(path, "")
        path.unlink()
        if isinstance(line := value(first), dict) and not any(of != of for of in line.values()):
            append_lines(path, [line])
        else:
            path.write_text(json.dumps(line) + "\n")
        append_lines(path, rest)

    return apply


def array_fault(file: str, name: str, change: Callable[[np.ndarray], np.ndarray] | None) -> Fault:
    def apply(run: Path) -> None:
        def without_or_changed(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            array = arrays.pop(name)
            return arrays | ({name: change(array)} if change else {})

        change_arrays(run / file, without_or_changed)

    return apply


def change_arrays(path: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    """Change arrays, and correct the checksum in the file and in the record beside it."""
    with np.load(path) as loaded:
        arrays = dict(loaded)
    written = write_arrays(path, change(arrays))
    if (beside := path.with_suffix(".json")).exists():
        write_record(beside, read_record(beside) | {ARRAYS: written})


def id_fault(name: str) -> Fault:
    """Rename the first member everywhere, and its folder if the name can be that of a folder."""

    def apply(run: Path) -> None:
        hostile = str(run.with_name("outside") / "owned") if name == ABSOLUTE else name
        results, config = read_record(run / "results.json"), read_record(run / "config.json")
        old = results["members"][0]["id"]
        results["members"][0]["id"] = hostile
        config["l0_asked"] = {hostile if key == old else key: value for key, value in config["l0_asked"].items()}
        with contextlib.suppress(OSError, ValueError):
            shutil.copytree(run / "members" / old, run / "members" / hostile)
            shutil.copy(run / f"analysis/features/{old}.npz", run / f"analysis/features/{hostile}.npz")
        write_record(run / "results.json", results)
        write_record(run / "config.json", config)

    return apply


def link_fault(place: str) -> Fault:
    def apply(run: Path) -> None:
        outside = run.with_name("outside")
        at = next(iter(sorted(run.glob(place))), run / place)
        if is_file := place in FILES:
            at.unlink(missing_ok=True)
        else:
            at.mkdir(parents=True, exist_ok=True)
            outside = shutil.copytree(at, outside / "folder", dirs_exist_ok=True)
            shutil.rmtree(at)
        at.parent.mkdir(parents=True, exist_ok=True)
        at.symlink_to(outside / "victim" if is_file else outside)

    return apply


def unfinished(fault: Fault) -> Fault:
    """A fault in an interrupted run."""

    def apply(run: Path) -> None:
        fault(run)
        (run / "results.json").unlink()

    return apply


def faults(run: Path, rng: random.Random) -> list[tuple[str, Fault]]:
    """All faults of ids and links, and random faults of records and arrays, in random order."""
    found: list[tuple[str, Fault]] = [(f"id {name!r:.40}", id_fault(name)) for name in IDS]
    found += [(f"link {place}", link_fault(place)) for place in (*LINKS, *FILES)]
    lines = {"no object": lambda line: [1], "no member": lambda line: {"step": 1}, "null": lambda line: None}
    lines |= {f"step {v!r:.20}": lambda line, v=v: line | {"step": v} for v in ("x", None, -1, 10**30)}
    lines |= {f"loss {v!r:.20}": lambda line, v=v: line | {"loss": v} for v in ("x", None, math.nan, [])}
    found += [(f"metrics.jsonl: {name}", line_fault(value)) for name, value in lines.items()]
    found += [(f"unfinished, {name}", unfinished(fault)) for name, fault in found]
    drawn: list[list[tuple[str, Fault]]] = []
    for file in (path for pattern in RECORDS for path in sorted(run.glob(pattern))):
        name, record = str(file.relative_to(run)), read_record(file)
        here = [(place, what) for place in places(record) for what in VALUES if place or what != "missing"]
        rng.shuffle(here)
        drawn.append(
            [
                (f"{name}: {'.'.join(map(str, place))} {what}", record_fault(name, place, VALUES[what]))
                for place, what in here[:200]
            ]
        )
    for pattern in ARCHIVES:
        file = sorted(run.glob(pattern))[-1]
        name = str(file.relative_to(run))
        with np.load(file) as arrays:
            here = [(array, what) for array in arrays.files for what in WRONG_ARRAYS]
        rng.shuffle(here)
        drawn.append(
            [(f"{name}: {array} {what}", array_fault(name, array, WRONG_ARRAYS[what])) for array, what in here[:200]]
        )
    while any(drawn):  # one from each file in turn, so that a short campaign has faults of all files
        for of in drawn:
            if of:
                found.append(of.pop())
    return found


def readers(name: str) -> Sequence[str]:
    """The commands that read the faulty file; empty if all commands do."""
    if "analysis/" in name or "snapshots/" in name:
        return ("report", "study", "find-feature")
    return ("show", "report", "frontier") if any(f" {file}" in name for file in FILES) or "metrics" in name else ()


def outcome(argv: list[str]) -> tuple[int | str, str]:
    """(exit status or "traceback", printed text) of a command in this process. A dashboard ends before it serves."""
    said = io.StringIO()
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        mock.patch("analysis.cli.dashboard.serve"),
        mock.patch("analysis.cli.dashboard.need_free"),
    ):
        try:
            status = main.run_as_command(argv)
        except BaseException:
            return "traceback", traceback.format_exc()
    if status == 130:
        raise KeyboardInterrupt
    return status, said.getvalue()


def tried(run: Path, cache: Path, name: str, fault: Fault) -> list[tuple[str, int | str, str]]:
    """(command, outcome, printed text) of every command that reads the faulty file, on a copy with this fault."""
    config, results = read_record(run / "config.json"), read_record(run / "results.json")
    member, resumed = results["members"][-1]["id"], shlex.split(reproduction_command(config, results))[2:]
    with tempfile.TemporaryDirectory() as folder:
        copy, outside = Path(folder) / "run", Path(folder) / "outside"
        shutil.copytree(run, copy)
        outside.mkdir()
        (outside / "victim").write_text("whole\n")
        fault(copy)
        before, found = files_of(outside), []
        for argv in commands(copy, cache, member, resumed):
            if (only := readers(name)) and argv[0] not in only:
                continue
            with contextlib.chdir(folder):
                status, said = outcome(argv)
            if files_of(outside) != before:
                status, before = "wrote outside", files_of(outside)
            found.append((argv[0], status, said))
        return found


def campaign(folder: Path, count: int, seed: int) -> list[str]:
    """Try `count` faults. Returns the failures."""
    run, cache = folder / "run", folder / "cache"
    os.environ |= environment(cache)
    if not (run / "analysis" / "study.json").exists():
        for argv in ((*SHORT, "--run-dir", str(run)), ("study", str(run), "--documents", "2000")):
            assert main.run_as_command([*argv, "--cache-dir", str(cache)]) == 0
    counts: Counter[str | int] = Counter()
    failed = []
    for number, (name, fault) in enumerate(faults(run, random.Random(seed))[:count]):
        for command, status, said in tried(run, cache, name, fault):
            counts[status] += 1
            if status not in (0, 2):
                failed.append(f"{name}: {command}: {status}: {said.strip().splitlines()[-1] if said.strip() else ''}")
                print(failed[-1], flush=True)
                if status == "traceback":
                    print("\n".join(said.strip().splitlines()[-7:-1]), flush=True)
        if number % 10 == 9:
            print(f"{number + 1} directories: {dict(counts)}", flush=True)
    print(f"{count} directories, {sum(counts.values())} commands: {dict(counts)}; {len(failed)} failures")
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as fresh:
        sys.exit(bool(campaign((asked.folder or Path(fresh)).resolve(), asked.count, asked.seed)))
