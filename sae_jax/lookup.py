"""Finding members of a run by what a user types: an id, what a screen made of it, a part of it, or `best`."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path
from typing import Any

from harvest.errors import InputError
from sae_jax.best_member import best_of_results

BEST = "best"
HYPHEN = re.compile(r"(?<!\de)-")  # between the parts of an id, not in 1e-3
LEFT_OUT = re.compile(r"…|\.\.+")  # in the middle of an id that a screen has shortened
MOST_NAMED = 5  # ids in a message


def chosen_members(run: Path, records: Sequence[dict[str, Any]], texts: Collection[str]) -> list[str]:
    """The ids that the texts mean, or those of all members that did not fail if there is no text.

    `records` are those of results.json. Raises InputError for a text that means no member or several, and for a member
    that failed.
    """
    if not texts:
        return [record["id"] for record in records if not record["failed"]]
    return list(dict.fromkeys(found_member(run, records, text) for text in texts))


def only_member(run: Path, records: Sequence[dict[str, Any]], text: str | None) -> str:
    """The id that a text means, or without a text the id of the only member that did not fail.

    Raises InputError if there is not exactly one.
    """
    members = chosen_members(run, records, () if text is None else (text,))
    if not members:
        raise InputError(f"all members of {run} failed: give another run")
    if len(members) > 1:
        raise InputError(f"--member is missing and the run has several: give {BEST}, or one of {some(members)}")
    return members[0]


def found_member(run: Path, records: Sequence[dict[str, Any]], text: str) -> str:
    """The id of the member that a text means (see `meant_ids`)."""
    if not isinstance(text, str):  # such as run[0] in Python
        ids = some(chosen_members(run, records, ()))
        raise InputError(f"a member is chosen by its id, not by {text!r}: give {BEST}, or one of {ids}")
    if text == BEST:
        return best_id(run, records)
    failures = {record["id"]: record["failed"] for record in records}
    found = meant_ids(list(failures), text)
    if len(found) > 1:
        raise InputError(f"--member {text} is in several ids of {run}: give more of one of {some(found)}")
    if not found:
        ids = chosen_members(run, records, ())
        near = get_close_matches(text, ids, n=3, cutoff=0.3)
        fix = f"did you mean {' or '.join(near)}?" if near else f"give one of {some(ids)}"
        raise InputError(f"--member {text} is not in {run}: {fix}")
    if failed := failures[found[0]]:
        raise InputError(
            f"--member {found[0]} failed at step {failed['step']:,} and was not written: give another member"
        )
    return found[0]


def best_id(run: Path, records: Sequence[dict[str, Any]]) -> str:
    trained = {record["id"]: record for record in records if not record["failed"]}
    best = next(iter(trained)) if len(trained) == 1 else best_of_results(trained)
    if best is None:
        raise InputError(f"--member {BEST}: no member of {run} has an L0 within a tenth of its target: give an id")
    return best


def meant_ids(ids: Sequence[str], text: str) -> list[str]:
    """The ids that a text may mean: by the first of these rules that fits any.

    The text is an id; it is what a screen left of an id, because other ids share the rest or the middle did not fit;
    all its parts are parts of the id, in this order; they are at least in the id's text.
    """
    text = text.strip().rstrip("★* /").rpartition("/")[2]  # a screen marks the best, or gives the path
    if text in ids:
        return [text]
    parts, short = HYPHEN.split(text), dict(zip(ids, told_apart(ids), strict=True))
    ends = ".*".join(map(re.escape, LEFT_OUT.split(text)))
    rules = (
        lambda name: short[name] == text,
        lambda name: LEFT_OUT.search(text) and (re.fullmatch(ends, name) or re.fullmatch(ends, short[name])),
        lambda name: is_subsequence(parts, HYPHEN.split(name)),
        lambda name: re.search(".*".join(map(re.escape, filter(None, parts))), name),
    )
    return next((found for rule in rules if (found := [name for name in ids if rule(name)])), [])


def is_subsequence(parts: Sequence[str], of: Sequence[str]) -> bool:
    rest = iter(of)
    return all(part in rest for part in parts)


def told_apart(ids: Sequence[str], among: Sequence[str] = ()) -> list[str]:
    """The ids without the parts that all of them (or all of `among`) share, if the rest still distinguishes them."""
    columns = list(zip_longest(*(HYPHEN.split(name) for name in among or ids), fillvalue=""))
    different = {number for number, column in enumerate(columns) if len(set(column)) > 1}
    short = ["-".join(p for i, p in enumerate(HYPHEN.split(name)) if i in different) for name in ids]
    return short if all(short) and len(set(short)) == len(ids) else list(ids)


def some(ids: Sequence[str]) -> str:
    more = len(ids) - MOST_NAMED
    return ", ".join(ids[:MOST_NAMED]) + (f" and {more} more (`show` lists all)" if more > 0 else "")
