"""A finished run, opened to be asked questions: its records, members, activation stores and language model."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harvest.errors import InputError
from harvest.hub import Kind
from harvest.request import HarvestRequest, Site
from harvest.sources import model_fingerprint, name_of, place_of
from sae_jax.config import SPARSITY_CONTROLS
from sae_jax.members import member_id
from sae_jax.run_directory import WRITTEN_AGAIN

if TYPE_CHECKING:
    from harvest.model.language_model import LanguageModel
    from harvest.store import ActivationStore
    from sae_jax.formats import Dictionary

TRAIN_AGAIN, STUDY_AGAIN = "--force trains it again", "delete it, and run `study` again"
SAME = ("layer", "hook", "n_samples", "seq_len", "held_out", "keep_first_position")  # of a run and its control


@dataclass(frozen=True)
class FinishedRun:
    """`config` and `results` are config.json and results.json."""

    path: Path
    config: dict[str, Any]
    results: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> FinishedRun:
        """Raises InputError, with the reason, where there is no finished run."""
        refuse_no_run(path)
        config, results = (read_record(path, name) for name in ("config.json", "results.json"))
        sites = {store["hook_name"] for store in config["stores"]}
        for member in results["members"]:
            if (name := Site(member["layer"], member["hook"]).hook_name) not in sites:
                raise InputError(f"{path}: config.json has no store of {name}, where {member['id']} was trained")
            if member["activation"] not in SPARSITY_CONTROLS or member_id(member, len(sites) > 1) != member["id"]:
                raise InputError(
                    f"{path / 'results.json'}: {member['id']} has other settings than its id says: {TRAIN_AGAIN}"
                )
        return cls(path, config, results)

    def opened_control(self, path: Path) -> FinishedRun:
        """The same with shuffled weights. Raises InputError where it is not harvested like this run, but for them.

        What a model's files hold or its name at the hub tells that it is the same, and token windows that a text is.
        """
        control = FinishedRun.open(path)
        if control.request.control is None:
            raise InputError(f"--control {path}: it was trained on the model as it is, not --control random-weights")
        facts = [
            {
                "model_name": of.config["stores"][0]["model"]["fingerprint"].partition("@")[0],
                **{name: getattr(of.request, name) for name in SAME},
                "dataset": of.config["stores"][0]["identity"]["windows_hash"],
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
        """The place of the model on this machine: a path, or its name at the hub."""
        return self._place("model")

    @property
    def corpus(self) -> str:
        """Where the text lies: a path or the name of a hub data set."""
        return self._place("dataset")

    def _place(self, kind: Kind) -> str:
        place = place_of(kind, self.config["stores"][0][kind])
        if Path(place).is_absolute() and not Path(place).exists():
            what = "model" if kind == "model" else "text"
            raise InputError(
                f"{self.path}: the {what} it was trained on is not at {place} any more: put it back there, or give the "
                "command that trained it once more, with the new place, which is then kept"
            )
        return place

    def dictionary(self, member: str) -> Dictionary:
        from sae_jax.formats import load_dictionary

        directory = self.path / "members" / member
        dictionary = load_dictionary(directory)
        if (written := dictionary.cfg["metadata"].get("member")) != member:
            raise InputError(f"{directory} holds the weights of {written}: {WRITTEN_AGAIN}")
        return dictionary

    @cached_property
    def language_model(self) -> LanguageModel:
        """Loaded once, whichever analyses ask for it. Raises InputError where it is not the one trained on."""
        from harvest.model.language_model import LanguageModel

        trained, location = self.config["stores"][0]["identity"]["model"], self.model_location
        model = LanguageModel.load(location, control=self.request.control)
        if model_fingerprint(location) != trained["fingerprint"] and model.weights_hash() != trained["weights_hash"]:
            raise InputError(
                f"{self.path} was trained on a model of other weights than the one that is now at {location}: "
                "put back the one that it was trained on"
            )
        return model

    def store(
        self,
        site: Site,
        cache_dir: Path,
        on_progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
        say: Callable[[str], None] = lambda text: None,
    ) -> ActivationStore:
        """The rows that the members of a site were trained on, harvested again where the cache lacks them.

        Raises InputError where they cannot be had, or are others. Where another version of torch or another processor
        made them differ by rounding, `say` is told.
        """
        from harvest.capture import harvest
        from harvest.identity import difference, found, identity, rounding

        facts = self.store_facts(site)
        store = found(facts["identity"], cache_dir / "activations" / facts["directory"])
        if store is None:
            self._place("model")
            self._place("dataset")
            names = name_of("model", facts["model"]), name_of("dataset", facts["dataset"])
            asked = replace(self.request, layer=(site.layer,), hook=(site.hook,), model_name=names[0], dataset=names[1])
            store = harvest(asked, cache_dir, on_progress=on_progress, say=say)[site]
        here = identity(store)
        if other := difference(facts["identity"], here):
            raise InputError(f"{self.path} was trained on other activations than those in {store.directory} ({other})")
        if apart := rounding(facts["identity"], here):
            say_once(say, f"{self.path} was trained with other versions or on another processor: {apart}")
        return store


def can_be_kept(run: Path, say: Callable[[str], None]) -> bool:
    """True where results of an analysis can be written to the run's directory; `say` is told where they cannot."""
    folders = (run, run / "analysis", run / "analysis" / "features", run / "figures")
    if all(os.access(folder, os.W_OK) for folder in folders if folder.exists()):
        return True
    say_once(say, f"{run} cannot be written to: what is computed of it is not kept")
    return False


@lru_cache
def say_once(say: Callable[[str], None], text: str) -> None:
    """Say it, unless the same `say` has said it before: a command asks several times whether a run can be written."""
    say(text)


def refuse_no_run(path: Path) -> None:
    """Raises InputError where there is no such directory, or one whose links lead elsewhere."""
    if not path.is_dir():
        raise InputError(f"{path}: there is no such run directory")
    from sae_jax.shapes import refuse_links

    refuse_links(path)


def read_record(run: Path, name: str) -> dict[str, Any]:
    """One of a run's JSON files. Raises InputError where it is not there, damaged, or not what it must be."""
    path = run / name
    if not path.exists():
        raise InputError(f"{run}: it has no {name}: no run, or one that is not finished (--resume goes on)")
    from sae_jax.shapes import read_shaped  # here, for the time that pydantic takes

    return read_shaped(path, WRITTEN_AGAIN if name == "results.json" else TRAIN_AGAIN)
