"""Dictionaries opened from disk for an evaluation, and whether they can be measured on the same model and windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.runs.finished import read_record
from harvest.errors import InputError
from harvest.request import Site
from sae_jax.run_directory import refuse_unfinished, run_of

if TYPE_CHECKING:
    from harvest.sources import Source
    from sae_jax.formats import Dictionary


@dataclass(frozen=True)
class Opened:
    """A dictionary, its directory, and the config.json of its run, None if it belongs to none."""

    directory: Path
    dictionary: Dictionary
    run: dict[str, Any] | None


def dictionaries_in(directory: Path) -> list[Path]:
    """The directories of a run's members, in the order of its results, or a single dictionary's own directory."""
    if not directory.is_dir():
        raise InputError(f"{directory}: there is no such directory: give a run, or the directory of a dictionary")
    if is_run(directory):
        refuse_unfinished(directory)
    elif runs := [path.name for path in sorted(directory.iterdir()) if is_run(path)]:
        raise InputError(f"{directory} is a folder of runs: give one or several of them, such as {directory / runs[0]}")
    if not (directory / "members").is_dir():
        return [directory]
    members = [member["id"] for member in results_of(directory) if not member["failed"]]
    if not members:
        raise InputError(f"{directory}: all its members failed in training and none was written: give another run")
    return [directory / "members" / name for name in members]


def results_of(run: Path) -> list[dict[str, Any]]:
    return read_record(run, "results.json")["members"]


def is_run(directory: Path) -> bool:
    from sae_jax.formats import is_dictionary

    return (directory / "config.json").exists() and not is_dictionary(directory)


def failed_in(directory: Path) -> list[str]:
    """The ids of a run's members that failed in training; empty if the directory is not a run."""
    if not (directory / "members").is_dir():
        return []
    return [member["id"] for member in results_of(directory) if member["failed"]]


def open_dictionary(directory: Path) -> Opened:
    """Read a dictionary. Raises InputError, with the reason, if it cannot be read."""
    from sae_jax.formats import load_dictionary

    run = run_of(directory)
    config = None if run is None else read_record(run, "config.json")
    return Opened(directory, load_dictionary(directory), config)


def names_of(opened: list[Opened]) -> list[str]:
    """The names of the dictionaries' directories, or their whole paths if names are not unique."""
    short = [o.directory.resolve().name for o in opened]
    return [n if short.count(n) == 1 else str(o.directory) for n, o in zip(short, opened, strict=True)]


def compare_models(opened: list[Opened], model_name: str | None, model: Source, say: Callable[[str], None]) -> None:
    """Refuse another model than a dictionary was trained on, or report it if --model-name asks for it."""
    from harvest.sources import place_of, same_name
    from sae_jax.formats.made_for import other_weights

    for o in opened:
        if others := other_weights(o.dictionary.cfg["metadata"]):
            if model_name is None:
                raise InputError(
                    f"{o.directory} was trained on another version of its model ({others}): give "
                    "--model-name with a directory that contains that version"
                )
            say(f"{o.directory} was trained on a model with {others}, and is measured on {model_name}")
        trained_on = place_of("model", o.run["stores"][0]["model"]) if o.run else o.dictionary.model_name
        if trained_on is None or same_name(trained_on) == same_name(model.location):
            continue
        if model_name is None:
            measured = opened[0].dictionary.model_name or same_name(model.location)
            raise InputError(
                f"{o.directory} was trained on the model {trained_on}, {opened[0].directory} on {measured}: evaluate "
                "each alone, or give the model to measure both on by --model-name"
            )
        say(f"{o.directory} was trained on the model {trained_on}, and is measured on {model_name}")


def report_other_rows(opened: list[Opened], seq_len: int, has_bos: bool, say: Callable[[str], None]) -> None:
    """Report dictionaries that were trained on other rows than they are measured on."""
    said = {True: "behind BOS", False: "without BOS"}
    for o in opened:
        notes, trained = o.dictionary.told(), o.dictionary.context_size
        if trained is not None and trained != seq_len:
            notes.append(f"it was trained on windows of {trained} tokens; here they have {seq_len}")
        if o.dictionary.prepend_bos not in (None, has_bos):
            notes.append(f"it was trained on windows {said[not has_bos]}; here they are {said[has_bos]} (--bos)")
        for note in notes:
            say(f"{o.directory}: {note}")


def refuse_another_width(
    opened: list[Opened], sites: list[Site], widths: Mapping[Site, int | None], origin: str
) -> None:
    """Raise InputError for a dictionary of another width than the activations at its site, if that is known."""
    for o, site in zip(opened, sites, strict=True):
        if (width := widths[site]) is not None and o.dictionary.d_in != width:
            raise InputError(
                f"{o.directory} is for activations of width {o.dictionary.d_in}, but {origin} has {width} at "
                f"{site.hook_name}: give the model that it was trained on by --model-name"
            )


def refuse_a_control_among_others(opened: list[Opened]) -> None:
    """Raise InputError if dictionaries of a control run are measured together with others: all use one model."""
    by_control = {o.run["asked"]["harvest"].get("control") if o.run else None: o.directory for o in opened}
    if len(by_control) > 1:
        first, other = by_control.values()
        raise InputError(f"{first} and {other} were trained with and without --control: evaluate each alone")
