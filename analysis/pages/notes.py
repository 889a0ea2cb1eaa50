"""Notes and stars that a reader gives to features. They are kept in the run, in analysis/notes.json."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from analysis.runs.shapes import Notes
from harvest.files import write_json
from sae_jax.shapes import read_shaped

ADVICE = "repair or delete it"


class Note(NamedTuple):
    star: bool
    text: str


def read_notes(run: Path, member: str) -> dict[int, Note]:
    """The notes on a member's features, by the number of the feature."""
    return {int(feature): Note(**of) for feature, of in recorded(run).get(member, {}).items()}


def write_note(run: Path, member: str, feature: int, note: Note) -> None:
    """Keep a note on a feature. A note without a star and without text is removed."""
    notes = recorded(run)
    of_member = notes.setdefault(member, {})
    of_member.pop(str(feature), None)
    if note.star or note.text:
        of_member[str(feature)] = note._asdict()
    write_json(run / "analysis" / "notes.json", {"notes": notes})


def recorded(run: Path) -> dict[str, dict[str, dict]]:
    path = run / "analysis" / "notes.json"
    return read_shaped(path, ADVICE, Notes)["notes"] if path.exists() else {}
