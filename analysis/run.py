"""A finished run, opened to be asked questions: its records, members, activation stores and language model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harvest.errors import InputError
from harvest.files import read_json
from harvest.request import HarvestRequest, Site
from harvest.sources import BUNDLED_CORPUS, BUNDLED_MODEL
from sae_jax.run_directory import WRITTEN_AGAIN

if TYPE_CHECKING:
    from harvest.language_model import LanguageModel
    from harvest.store import ActivationStore
    from sae_jax.formats import Dictionary

EARLIER = "was written by an earlier version"
TRAIN_AGAIN, STUDY_AGAIN = "--force trains it again", "delete it, and run `study` again"
SAME = ("layer", "hook", "n_samples", "seq_len", "held_out", "keep_first_position")  # of a run and its control


@dataclass(frozen=True, repr=False)
class FinishedRun:
    """`config` and `results` are config.json and results.json. Shown in a notebook, it is the table of its members."""

    path: Path
    config: dict[str, Any]
    results: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> FinishedRun:
        """Raises InputError, with the reason, where there is no finished run."""
        if not path.is_dir():
            raise InputError(f"{path}: there is no such run directory")
        config, results = (read_record(path, name) for name in ("config.json", "results.json"))
        if "stores" not in config or "members" not in results or "failed" not in results["members"][0]:
            raise InputError(f"{path} {EARLIER}: train it again")
        return cls(path, config, results)

    def __repr__(self) -> str:
        from analysis.faces.notebook import run_text

        return run_text(self.results, str(self.path))

    def _repr_html_(self) -> str:
        from analysis.faces.notebook import run_html

        return run_html(self.results, str(self.path))

    def opened_control(self, path: Path) -> FinishedRun:
        """The same with shuffled weights. Raises InputError where it is not harvested like this run, but for them."""
        control = FinishedRun.open(path)
        if control.request.control is None:
            raise InputError(f"--control {path}: it was trained on the model as it is, not --control random-weights")
        facts = [
            {
                "model_name": of.model_location,
                "dataset": of.corpus,
                **{name: getattr(of.request, name) for name in SAME},
            }
            for of in (self, control)
        ]
        if other := [f"--{name.replace('_', '-')}" for name in facts[0] if facts[0][name] != facts[1][name]]:
            raise InputError(f"--control {path}: harvested with another {', '.join(other)}; it must be {self.path}'s")
        return control

    @property
    def members(self) -> dict[str, dict[str, Any]]:
        """Those that did not fail, as in results.json, by id."""
        return {member["id"]: member for member in self.results["members"] if not member["failed"]}

    def chosen(self, ids: tuple[str, ...]) -> list[str]:
        """These members, or all where none is named. Raises InputError for one that is not there or failed."""
        for name in ids:
            for member in self.results["members"]:
                if member["id"] == name and (failed := member["failed"]):
                    raise InputError(f"--member {name} failed at step {failed['step']:,} and was not written")
            if name not in self.members:
                raise InputError(f"--member {name} is not in {self.path}; it has {', '.join(self.members)}")
        return list(ids) or list(self.members)

    def only(self, name: str | None) -> str:
        """This member, or the only one. Raises InputError where none is named of several."""
        members = self.chosen((name,) if name else ())
        if len(members) > 1:
            raise InputError(f"--member: which of {', '.join(members)}?")
        return members[0]

    def site(self, member: str) -> Site:
        return Site(self.members[member]["layer"], self.members[member]["hook"])

    def store_facts(self, site: Site) -> dict[str, Any]:
        """What config.json says of the store that members of this site were trained on."""
        return next(store for store in self.config["stores"] if store["hook_name"] == site.hook_name)

    @property
    def request(self) -> HarvestRequest:
        return HarvestRequest(**self.config["asked"]["harvest"])

    @property
    def first_position(self) -> int:
        """The first of a window that was trained on."""
        return 0 if self.request.keep_first_position else 1

    @property
    def model_location(self) -> str:
        model = self.config["stores"][0]["model"]
        return str(BUNDLED_MODEL) if is_bundled(model) else model["location"]

    @property
    def corpus(self) -> str:
        """Where the text lies: a path or the name of a hub data set."""
        dataset = self.config["stores"][0]["dataset"]
        return str(BUNDLED_CORPUS) if is_bundled(dataset) else dataset["location"]

    def dictionary(self, member: str) -> Dictionary:
        from sae_jax.formats import load_dictionary

        return load_dictionary(self.path / "members" / member)

    @cached_property
    def language_model(self) -> LanguageModel:
        """Loaded once, whichever analyses ask for it."""
        from harvest.language_model import LanguageModel

        return LanguageModel.load(self.model_location, control=self.request.control)

    def store(
        self,
        site: Site,
        cache_dir: Path,
        on_progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
        say: Callable[[str], None] = lambda text: None,
    ) -> ActivationStore:
        """The rows that the members of a site were trained on, harvested again where the cache lacks them.

        Raises InputError where they cannot be had, or are not the same.
        """
        from harvest.capture import harvest
        from harvest.store import ActivationStore

        facts = self.store_facts(site)
        directory = cache_dir / "activations" / facts["directory"]
        if not (directory / "manifest.json").exists():
            asked = replace(self.request, layer=(site.layer,), hook=(site.hook,))
            harvest(asked, cache_dir, on_progress=on_progress, say=say)
        if not (directory / "manifest.json").exists():
            raise InputError(f"{self.path}: the text or the model has changed since: its activations cannot be had")
        if hashlib.sha256((directory / "manifest.json").read_bytes()).hexdigest() != facts["sha256"]:
            raise InputError(f"{self.path} was trained on other activations than those in {directory}")
        return ActivationStore(directory)


def read_record(run: Path, name: str) -> dict[str, Any]:
    """One of a run's JSON files. Raises InputError where it is not there or damaged."""
    path = run / name
    if not path.exists():
        raise InputError(f"{run}: it has no {name}: no run, or one that is not finished (--resume goes on)")
    return read_json(path, WRITTEN_AGAIN if name == "results.json" else TRAIN_AGAIN)


def is_bundled(source: dict[str, Any]) -> bool:
    """Whether a model or text of a store's manifest is the bundled one."""
    return source["fell_back"] or source["asked"] == "bundled"
