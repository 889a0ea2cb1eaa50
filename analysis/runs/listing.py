"""The runs in a folder, as a list."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from analysis.runs.finished import read_record
from analysis.runs.live import LiveRun
from harvest.errors import InputError
from harvest.sources import name_of
from sae_jax.best_member import best_of_results


def runs_in(folder: Path) -> list[dict[str, Any]]:
    """A record for each run in a folder, the newest first. Raises InputError if there is no such folder."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder: train something first, or give the folder of your runs")
    return sorted(records_in(folder), key=lambda record: record["date"], reverse=True)


def records_in(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.iterdir()):
        if not (path / "config.json").is_file():
            continue
        files = [path / name for name in ("results.json", "metrics.jsonl", "config.json") if (path / name).exists()]
        date = datetime.fromtimestamp(files[0].stat().st_mtime)
        record: dict[str, Any] = {"name": path.name, "path": str(path), "date": date.isoformat(timespec="minutes")}
        try:
            yield record | facts_of(LiveRun.open(path))
        except InputError as error:  # the others are listed all the same
            yield record | {"state": "unreadable", "trouble": str(error)}


def facts_of(run: LiveRun) -> dict[str, Any]:
    """State, members, model and sites of a run, and its best member if it is finished."""
    stores, path = run.config["stores"], run.run.path
    facts: dict[str, Any] = {
        "state": "finished" if run.finished else "training" if run.being_trained else "interrupted"
    }
    facts |= {"members": len(run.config["l0_asked"]), "model": name_of("model", stores[0]["model"])}
    facts |= {"sites": [store["hook_name"] for store in stores]}
    if run.finished:
        members = {member["id"]: member for member in read_record(path, "results.json")["members"]}
        trained = {name: member for name, member in members.items() if not member["failed"]}
        best = best_of_results(trained) or max(
            trained, key=lambda name: trained[name]["metrics"]["explained_variance"], default=None
        )
        facts |= {"best": best, "explained_variance": best and trained[best]["metrics"]["explained_variance"]}
    return facts
