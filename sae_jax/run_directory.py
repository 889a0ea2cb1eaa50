"""The run directory: configuration, progress and results of a run. Imports neither torch nor jax.

config.json      the requested settings, versions, stores and backend; written first
metrics.jsonl    one line per member and block; its length and checksum are recorded in checkpoints and results.json
checkpoints/     written by Orbax
members/<id>/    trained SAEs in SAELens' layout, and stats.npz
snapshots/       decoders and densities during training
ring/            rows on their way from the language model to the training, only while it runs
analysis/        results of analyses
figures/         charts of analyses
wandb/           files of W&B
wandb.json       the W&B runs of this run
results.json     written last: a run that has it is finished
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from harvest.errors import InputError
from harvest.files import (
    TEMPORARY,
    append_lines,
    checksum,
    parse_json,
    read_lines,
    remove_temporary,
    unsealed,
    write_atomically,
    write_json,
)
from harvest.identity import difference, rounding
from sae_jax.differences import differences, differing_flags

SCHEMA = 1
RUNS = Path("runs")  # the folder of runs without --run-dir
LOCK = ".lock"
RING = "ring"
DAMAGED = "damaged-"  # prefix of the name of a damaged checkpoint
ANOTHER = "choose another --run-dir, or delete this one"
WRITTEN_AGAIN = "delete results.json, and --resume writes it again from the last checkpoint"
METRICS_FILE, NO_METRICS = "metrics.jsonl", {"bytes": 0, "crc32": 0}
WITHOUT_LINE = "delete that line; the training curves then lack only this point"
WITHOUT_FILE = "delete the file; the training curves then begin where --resume continues"


def default_path(asked: dict) -> Path:
    """runs/NAME, or what an earlier version has called the directory of this run, if it is there."""
    now, earlier = RUNS / default_name(asked), RUNS / name_of_run(asked, asked["train"]["activation"], "l")
    return earlier if earlier.exists() and not now.exists() else now


def default_name(asked: dict) -> str:
    """A readable name that is different for each configuration."""
    flags, entries = asked["train"]["activation"], asked["train"].get("members") or [{}]
    kinds = [kind for entry in entries for kind in ([entry["activation"]] if "activation" in entry else flags)]
    return name_of_run(asked, kinds, "layer")


def name_of_run(asked: dict, kinds: Iterable[str], layer: str) -> str:
    digest = hashlib.sha256(json.dumps(meant(asked), sort_keys=True).encode()).hexdigest()[:8]
    model = Path(asked["harvest"].get("rows") or asked["harvest"]["model_name"] or "default").name
    model += f"-{control}" if (control := asked["harvest"].get("control")) else ""
    kinds = list(dict.fromkeys(kinds))
    what = "-".join(kinds) if len(kinds) <= 3 else f"{len(kinds)}-kinds"
    return f"{what}-{model}-{layer}{'-'.join(map(str, asked['harvest']['layer']))}-{digest}"


def run_of(member: Path) -> Path | None:
    """The run that a directory of weights belongs to as one of its members; None if it belongs to none."""
    folder = member.resolve().parent
    return folder.parent if folder.name == "members" and (folder.parent / "config.json").exists() else None


def refuse_unfinished(run: Path) -> None:
    """Raise InputError for a run without results."""
    if (run / "results.json").exists():
        return
    if is_being_trained(run):
        raise InputError(f"{run} is still being trained by another process: wait until that has finished")
    raise InputError(f"{run} is not finished: its training command with --resume finishes it (`show {run}` prints it)")


def is_being_trained(run: Path) -> bool:
    """Return whether another process holds the lock of a run. Nothing is written to find out.

    The lock is taken as a shared one for an instant. A training that starts in that instant waits for it.
    """
    if not (run / LOCK).exists():
        return False
    with open(run / LOCK, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def meant(asked: dict) -> dict:
    """The requested settings without the paths of local files, which are identified by content: they may be moved."""
    harvest = {name: value for name, value in asked.get("harvest", {}).items() if name not in asked.get("files", {})}
    return {**asked, "harvest": harvest}


class RunDirectory:
    """The files of one run. `asked` is {"harvest": ..., "train": ...} and all else that the results depend on."""

    def __init__(self, path: Path, asked: dict):
        self.path = path
        self.asked = json.loads(json.dumps(asked))
        self.checkpoints = path / "checkpoints"
        self._lock = FileLock(path / LOCK)

    def refuse_another_run(self) -> None:
        """Raise InputError if the directory cannot be used, or holds a run of another configuration or other files."""
        there = next(p for p in (self.path.absolute(), *self.path.absolute().parents) if os.path.lexists(p))
        if not there.is_dir() or not (os.access(there, os.W_OK) or self.results):
            raise InputError(f"--run-dir {self.path}: {there} is no directory that can be written to: choose another")
        if not self.path.exists() or all(p.name == LOCK or p.name.endswith(TEMPORARY) for p in self.path.iterdir()):
            return  # a killed process may leave these
        config_file = self.path / "config.json"
        if not config_file.exists() or "asked" not in parse_json(config_file, ANOTHER):
            raise InputError(f"--run-dir {self.path} is not empty and holds no run: choose another directory")
        config = self._read("config.json")
        assert config is not None
        before, now = meant(config["asked"]), meant(self.asked)
        if before != now:
            raise InputError(
                f"--run-dir {self.path} holds a run of another configuration "
                f"({differing_flags(before, now)}): choose another directory, or delete this one; "
                f"`show {self.path}` prints the command that continues it"
            )

    @property
    def results(self) -> dict | None:
        return self._read("results.json")

    @property
    def stores(self) -> list[dict]:
        """The facts about the stores in config.json; empty if the run has not started."""
        return (self._read("config.json") or {}).get("stores", [])

    @property
    def interrupted(self) -> bool:
        saved = self.checkpoints.iterdir() if self.checkpoints.exists() else ()
        return self.results is None and any(p.name.isdigit() or p.name.startswith(DAMAGED) for p in saved)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the directory against other processes. The lock is reentrant.

        The content of the directory must be read after locking, because another process may change it before. Raises
        InputError if another process has the lock, or if the directory holds another run.
        """
        if self._lock.is_locked:
            yield
            return
        self.refuse_another_run()
        self.path.mkdir(parents=True, exist_ok=True)
        refuse_links(self.path, (LOCK, METRICS_FILE))
        try:
            lock = self._lock.acquire(timeout=1)  # `show` holds the lock for an instant
        except Timeout:
            raise InputError(
                f"--run-dir {self.path}: another process is training in it: wait for it, or choose another directory"
            ) from None
        with lock:
            self.refuse_another_run()
            for folder in (self.path, *self.path.glob("members/*"), *self.path.glob("snapshots/*")):
                remove_temporary(folder)
            yield

    def begin(self, stores: list[dict], environment: dict, plan: dict, resume: bool) -> str:
        """Write config.json. The state of an interrupted run is deleted unless it is resumed.

        `plan` is {"total_steps": ..., "l0_asked": {member: ...}, "snapshots": ...}. Returns how the environment and
        the rows differ from those with which a resumed run was started ("" if they do not). Raises InputError if the
        rows differ by more than rounding.
        """
        config = self._read("config.json")
        if config is not None and resume:
            pairs = [(old["identity"], new["identity"]) for old, new in zip(config["stores"], stores, strict=True)]
            if changed := [text for pair in pairs if (text := difference(*pair))]:
                raise InputError(
                    f"{self.path} was trained on another activation store than this one "
                    f"({'; '.join(changed)}): add --force to start again"
                )
            texts = [differences(config["environment"], environment), *(rounding(*pair) for pair in pairs)]
            return ", ".join(text for text in texts if text)
        self.clear()
        write_json(
            self.path / "config.json",
            {"schema": SCHEMA, "asked": self.asked, "stores": stores, "environment": environment, **plan},
        )
        return ""

    def note_places(self) -> None:
        """Update the paths of the local model and text in config.json, since they may have been moved."""
        config = self._read("config.json")
        if config is None or config["asked"] == self.asked or not os.access(self.path, os.W_OK):
            return
        for part, name in (("model", "model_name"), ("dataset", "dataset")):
            if name in self.asked.get("files", {}):
                path = self.asked["harvest"][name]
                for store in config["stores"]:
                    store[part] |= {"asked": path, "location": str(Path(path).expanduser().resolve())}
        with self.held():
            write_json(self.path / "config.json", config | {"asked": self.asked})

    def clear(self) -> None:
        """Delete the run, config.json last, so that what is left after a kill is still recognized as this run."""
        (self.path / "results.json").unlink(missing_ok=True)
        for name in ("checkpoints", "members", "snapshots", "analysis", "figures", "wandb", RING):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in (METRICS_FILE, "wandb.json", "config.json"):
            (self.path / name).unlink(missing_ok=True)

    def append_metrics(self, lines: list[dict]) -> None:
        append_lines(self.path / METRICS_FILE, lines)

    def metrics(self, up_to: int) -> list[dict]:
        """The lines of metrics.jsonl up to a step, without an incomplete last line, which a killed process may leave.

        Raises InputError if a line is damaged, or if lines are missing that the newest checkpoint has recorded.
        """
        path = self.path / METRICS_FILE
        lines = read_lines(path, WITHOUT_LINE) if path.exists() else []
        if self.metrics_written()["bytes"] < self._metrics_saved()["bytes"]:
            raise InputError(f"{path} is damaged (lines are missing): {WITHOUT_FILE}")
        return [line for line in lines if line["step"] <= up_to]

    def _metrics_saved(self) -> dict[str, int]:
        """Length and checksum of metrics.jsonl in the newest checkpoint. A damaged checkpoint counts as none.

        It is reported when it is restored.
        """
        steps = [int(p.name) for p in self.checkpoints.glob("*") if p.name.isdigit()]
        try:
            record = parse_json(self.checkpoints / str(max(steps, default="none")) / "record" / "metadata", "")
            return unsealed(record, "", "")["metrics"]
        except (InputError, OSError):
            return NO_METRICS

    def metrics_written(self) -> dict[str, int]:
        """Length and checksum of metrics.jsonl now, to be saved with a checkpoint or with the results."""
        path = self.path / METRICS_FILE
        return {"bytes": path.stat().st_size, "crc32": checksum(path)} if path.exists() else NO_METRICS

    def rewind_metrics(self, then: dict[str, int], say: Callable[[str], None]) -> None:
        """Delete the lines after a checkpoint, which will be written again. `then` is what the checkpoint recorded.

        Raises InputError if lines before the checkpoint are damaged.
        """
        path = self.path / METRICS_FILE
        if then["bytes"] and not path.exists():
            say(f"{path} is missing: the training curves begin where training resumes")
            return
        content = path.read_bytes()[: then["bytes"]] if path.exists() else b""
        if (len(content), zlib.crc32(content)) != (then["bytes"], then["crc32"]):
            read_lines(path, WITHOUT_FILE)  # raises with the damaged line, unless lines are only missing
            raise InputError(f"{path} is damaged (lines are missing or changed): {WITHOUT_FILE}")
        write_atomically(path, lambda f: f.write(content))

    def finish(self, results: dict) -> None:
        write_json(self.path / "results.json", {"schema": SCHEMA, **results})

    def _read(self, name: str) -> dict | None:
        from sae_jax.shapes import read_shaped  # imported here because pydantic is slow to import

        path = self.path / name
        advice = WRITTEN_AGAIN if name == "results.json" else ANOTHER
        return read_shaped(path, advice) if path.exists() else None


def refuse_links(run: Path, written: Collection[str] = (LOCK,)) -> None:
    """Raise InputError for a link in a run through which something would be written outside of the run.

    Such links lead to a folder or to nothing, or have the name of a file that is `written` in place; links with other
    names are replaced. W&B's own folder, which has such links, is not checked.
    """
    for folder, folders, files in os.walk(run):
        links = [name for name in (*folders, *files) if os.path.islink(os.path.join(folder, name))]
        links = [name for name in links if name in written or not os.path.isfile(os.path.join(folder, name))]
        if links:
            raise InputError(
                f"{Path(folder) / links[0]} is a link to {os.readlink(os.path.join(folder, links[0]))}: "
                "files of a run must stay in the run: copy the target of the link there, or remove the link"
            )
        if Path(folder) == run and "wandb" in folders:
            folders.remove("wandb")
