"""Groups of members that differ in one setting only, such as the seed. Ids are never parsed for this.

The compared settings are the fields of `Member` and `TrainConfig`, and the model, text and rows that a member was
trained on. A field that is added to those classes is compared without further code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from analysis.runs.finished import FinishedRun
from harvest.identity import meaning
from harvest.request import Site
from harvest.sources import is_bundled
from sae_jax.config import AXES, SPARSITY_CONTROLS, TrainConfig
from sae_jax.members import Member, exact

Settings = Mapping[str, Any]

MEMBER = tuple(field.name for field in fields(Member) if field.name != "id")
TRAINING = {field.name: field.default for field in fields(TrainConfig) if field.name not in (*AXES, "members")}
CONTROLS = {control for controls in SPARSITY_CONTROLS.values() for control in controls}  # each member has one of them
ROWS = ("model", "text", "rows", "layer", "hook")
NAMES = {"activation": "kind", "hidden_dim": "width", "lr": "learning rate"}
WORDS = {"activation": "{}", "sparsity": "{}", "hidden_dim": "{:,} features", "hook": "{}", "baseline": "{}"}
WORDS |= {"penalty": "by {}", "model": "{}", "text": "{}", "rows": "{:,} rows"}


def settings_of(run: FinishedRun, record: Mapping[str, Any]) -> dict[str, Any]:
    """All settings that the metrics of a member of results.json depend on. None if one does not apply to its kind.

    `sparsity` is the k, target L0 or coefficient as text. The text is the same for a k and a target L0.
    """
    member, training = Member.from_results(record), {**TRAINING, **run.config["asked"]["train"]}
    control, store = member.sparsity_control, run.store_facts(Site(member.layer, member.hook))
    model = source_name(store["model"], "model") + (f", {store['control']}" if "control" in store else "")
    return {
        "activation": member.activation,
        "sparsity": f"{'coefficient' if control == 'sparsity' else 'L0'} {exact(getattr(member, control))}",
        **{name: getattr(member, name) for name in MEMBER if name not in CONTROLS},
        **{name: "by default" if training[name] is None else training[name] for name in TRAINING},
        **{"model": model, "text": source_name(store["dataset"], "corpus"), "rows": store["rows"]},
        "store": meaning(store["identity"]),
    }


def source_name(source: dict[str, Any], what: str) -> str:
    return f"bundled {what}" if is_bundled(source) else Path(source["asked"]).name


def alike(settings: Mapping[str, Settings], but_for: str) -> list[list[str]]:
    """Families of members with the same settings except for the setting `but_for`. A family may have one member."""
    families: dict[frozenset, list[str]] = defaultdict(list)
    for name, member in settings.items():
        families[frozenset(item for item in member.items() if item[0] != but_for)].append(name)
    return list(families.values())


def by_seed(settings: Mapping[str, Settings]) -> dict[str, list[str]]:
    """{label: ids of the members that differ only in their seed}. Labels are made of the settings that differ."""
    families = alike(settings, but_for="seed")
    label = labels({names[0]: settings[names[0]] for names in families}, but_for=("seed",))
    return {label[names[0]]: names for names in families}


def differing(settings: Collection[Settings], but_for: Collection[str] = ()) -> list[str]:
    """The settings in which members differ. The store is listed only if the settings in ROWS do not distinguish it."""

    def values(*names: str) -> set[tuple]:
        return {tuple(member.get(name) for name in names) for member in settings}

    names = [name for name in next(iter(settings)) if len(values(name) - {(None,)}) > 1 and name not in but_for]
    rows_suffice = len(values(*ROWS)) == len(values(*ROWS, "store"))
    return [name for name in names if name != "store" or not rows_suffice]


def common(settings: Sequence[Settings]) -> dict[str, Any]:
    """The settings that are the same in all members to which they apply."""
    values = {name: {member[name] for member in settings} - {None} for name in settings[0]}
    return {name: only.pop() for name, only in values.items() if len(only) == 1}


def in_words(settings: Settings, names: Sequence[str]) -> str:
    form = {name: WORDS.get(name, setting_name(name) + " {}") for name in names}
    return ", ".join(form[name].format(settings[name]) for name in names if settings.get(name) is not None)


def setting_name(setting: str) -> str:
    return NAMES.get(setting, setting.replace("_", " "))


def labels(settings: Mapping[str, Settings], but_for: Collection[str] = ()) -> dict[str, str]:
    """A label for each member, made of the settings in which members differ; the ids if labels would not be unique."""
    names = ["activation", *differing(settings.values(), {*but_for, "activation"})]
    words = {name: in_words(member, names) for name, member in settings.items()}
    return words if len(set(words.values())) == len(words) else {name: name for name in words}


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) over seeds; the deviation is None for a single seed."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)
