"""Groups of members that are alike, and what tells them apart: by their settings, never by the text of their ids.

The settings are the fields of `Member` and of `TrainConfig`, so that one which is added later counts by itself, and
the text and the model that the rows are from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from analysis.runs.finished import FinishedRun
from harvest.identity import meaning
from harvest.request import Site
from harvest.sources import is_bundled
from sae_jax.config import AXES, SPARSITY_CONTROLS, TrainConfig
from sae_jax.members import Member, exact

Settings = Mapping[str, Any]

MEMBER = tuple(field.name for field in fields(Member) if field.name != "id")
TRAINING = {field.name: field.default for field in fields(TrainConfig) if field.name not in (*AXES, "members")}
CONTROLS = {control for controls in SPARSITY_CONTROLS.values() for control in controls}  # of which each member has one
ROWS = ("model", "text", "rows", "layer", "hook")
NAMES = {"activation": "kind", "hidden_dim": "width", "lr": "learning rate"}
WORDS = {"activation": "{}", "sparsity": "{}", "hidden_dim": "{:,} features", "hook": "{}"}
WORDS |= {"penalty": "by {}", "model": "{}", "text": "{}", "rows": "{:,} rows", "epochs": "{} epochs"}


def settings_of(run: FinishedRun, member: Mapping[str, Any]) -> dict[str, Any]:
    """All that the figures of a member of results.json depend on; None is what means nothing to its kind.

    `sparsity` is the k, L0 or coefficient that was asked for, in words that are the same for a k and an L0.
    """
    control, training = member["sparsity_control"], {**TRAINING, **run.config["asked"]["train"]}
    store = run.store_facts(Site(member["layer"], member["hook"]))
    model = source_name(store["model"], "model") + (f", {store['control']}" if "control" in store else "")
    return {
        "activation": member["activation"],
        "sparsity": f"{'coefficient' if control == 'sparsity' else 'L0'} {exact(member[control])}",
        **{name: member.get(name) for name in MEMBER if name not in CONTROLS},
        **{name: "by default" if training[name] is None else training[name] for name in TRAINING},
        **{"model": model, "text": source_name(store["dataset"], "corpus"), "rows": store["rows"]},
        "store": meaning(store["identity"]),
    }


def source_name(source: dict[str, Any], what: str) -> str:
    return f"bundled {what}" if is_bundled(source) else Path(source["asked"]).name


def alike(settings: Mapping[str, Settings], but_for: str) -> list[list[str]]:
    """The names of members with the same settings, one setting left out of account; families of one among them."""
    families: dict[frozenset, list[str]] = defaultdict(list)
    for name, of in settings.items():
        families[frozenset(item for item in of.items() if item[0] != but_for)].append(name)
    return list(families.values())


def differing(settings: Collection[Settings], but_for: Collection[str] = ()) -> list[str]:
    """The settings in which members differ; the store only where nothing else says that the rows are others."""

    def values(*names: str) -> set[tuple]:
        return {tuple(of.get(name) for name in names) for of in settings}

    names = [name for name in next(iter(settings)) if len(values(name) - {(None,)}) > 1 and name not in but_for]
    told = len(values(*ROWS)) == len(values(*ROWS, "store"))
    return [name for name in names if name != "store" or not told]


def common(settings: Sequence[Settings]) -> dict[str, Any]:
    """The settings that are the same in all members for which they mean something."""
    values = {name: {of[name] for of in settings} - {None} for name in settings[0]}
    return {name: only.pop() for name, only in values.items() if len(only) == 1}


def in_words(of: Settings, names: Sequence[str]) -> str:
    form = {name: WORDS.get(name, name_of(name) + " {}") for name in names}
    return ", ".join(form[name].format(of[name]) for name in names if of.get(name) is not None)


def name_of(setting: str) -> str:
    return NAMES.get(setting, setting.replace("_", " "))


def labels(settings: Mapping[str, Settings], but_for: Collection[str] = ()) -> dict[str, str]:
    """Words that tell each member from the others; the names themselves where no words do."""
    names = ["activation", *differing(settings.values(), {*but_for, "activation"})]
    found = {name: in_words(of, names) for name, of in settings.items()}
    return found if len(set(found.values())) == len(found) else {name: name for name in found}


@dataclass(frozen=True)
class Spread:
    """Over seeds; the deviation is that of a sample (n - 1), None of a single seed."""

    mean: float
    deviation: float | None
