"""A finished run, opened for analysis: its records, members, activation stores and language model."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from harvest.errors import InputError
from harvest.files import read_lines
from harvest.hub import Kind
from harvest.imports.row_names import RowNames
from harvest.placement import refuse_no_device
from harvest.request import IMPORTED, HarvestRequest, Site
from harvest.sources import model_fingerprint, name_of, place_of
from sae_jax.config import SPARSITY_CONTROLS
from sae_jax.lookup import chosen_members, only_member
from sae_jax.members import Member, member_id
from sae_jax.run_directory import (
    METRICS_FILE,
    RUNS,
    WITHOUT_LINE,
    WRITTEN_AGAIN,
    RunDirectory,
    refuse_links,
    refuse_unfinished,
)

if TYPE_CHECKING:
    from harvest.model.language_model import LanguageModel
    from harvest.store import ActivationStore
    from sae_jax.formats import Dictionary

TRAIN_AGAIN, STUDY_AGAIN = "its training command with --force trains it again", "delete it, and run `study` again"
TEXT_SETTINGS = ("n_samples", "seq_len", "held_out", "pack", "special_tokens", "bos", "generate")
SAME = ("layer", "hook", *TEXT_SETTINGS, "keep_first_position", "max_norm_ratio")  # in a run and its control


@dataclass(frozen=True)
class FinishedRun:
    """A finished run. `config` and `results` are the contents of its config.json and results.json.

    Its language model runs on `device`, which is a value of --device.
    """

    path: Path
    config: dict[str, Any]
    results: dict[str, Any]
    device: str = "auto"

    @classmethod
    def open(cls, path: Path, device: str = "auto") -> Self:
        """Open the run at `path`. Raises InputError if there is no finished run, or no such device."""
        refuse_no_device(device)
        refuse_no_run(path)
        config, results = (read_record(path, name) for name in ("config.json", "results.json"))
        sites = {store["hook_name"] for store in config["stores"]}
        for member in map(Member.from_results, results["members"]):
            if (name := Site(member.layer, member.hook).hook_name) not in sites:
                raise InputError(
                    f"{path}: config.json lacks the store of {name} that {member.id} was trained on: {TRAIN_AGAIN}"
                )
            if member.activation not in SPARSITY_CONTROLS or member_id(member, len(sites) > 1) != member.id:
                raise InputError(
                    f"{path / 'results.json'}: the settings of {member.id} do not match its id: {TRAIN_AGAIN}"
                )
        return cls(path, config, results, device)

    def opened_control(self, path: Path) -> FinishedRun:
        """Open the run at `path` as the control of this one: trained on the same model with shuffled weights.

        Raises InputError if the control's activations were harvested differently except for the shuffled weights. The
        models are compared by the content of their files or their hub names, the texts by their token windows.
        """
        control = FinishedRun.open(path, self.device)
        if control.request.control is None:
            raise InputError(
                f"--control {path}: was trained on unshuffled weights: give a run trained with --control random-weights"
            )
        facts = [
            {
                "model_name": run.config["stores"][0]["model"]["fingerprint"].partition("@")[0],
                **{name: getattr(run.request, name) for name in SAME},
                "model_dtype": run.model_dtype,
                "dataset": run.config["stores"][0]["identity"]["windows_hash"],
            }
            for run in (self, control)
        ]
        if other := [f"--{name.replace('_', '-')}" for name in facts[0] if facts[0][name] != facts[1][name]]:
            raise InputError(
                f"--control {path}: was harvested with another {', '.join(other)} than {self.path}: "
                "give a control that was harvested like the run"
            )
        return control

    @property
    def members(self) -> dict[str, dict[str, Any]]:
        """The members of results.json that did not fail, by id."""
        return {member["id"]: member for member in self.results["members"] if not member["failed"]}

    @property
    def fitted(self) -> bool:
        """Return whether decoders were fitted after training."""
        return bool(self.config["asked"]["train"].get("fit_decoder"))

    @property
    def kinds(self) -> dict[str, str]:
        """The kind of each member by its id, also of members that failed."""
        return {member["id"]: Member.from_results(member).kind for member in self.results["members"]}

    def chosen(self, ids: tuple[str, ...]) -> list[str]:
        """The given ids, or all ids if none is given. Raises InputError for an id that does not exist or failed."""
        return chosen_members(self.path, self.results["members"], ids)

    def only(self, name: str | None) -> str:
        """The given id, or the id of the only member. Raises InputError if none is given and the run has several."""
        return only_member(self.path, self.results["members"], name)

    def site(self, member: str) -> Site:
        return Site(self.members[member]["layer"], self.members[member]["hook"])

    def store_facts(self, site: Site) -> dict[str, Any]:
        """The record in config.json of the store that the members at this site were trained on."""
        return next(store for store in self.config["stores"] if store["hook_name"] == site.hook_name)

    @property
    def request(self) -> HarvestRequest:
        return HarvestRequest.from_json(self.config["asked"]["harvest"])

    @property
    def first_position(self) -> int:
        """The first position of each window that was trained on."""
        return 0 if self.config["stores"][0]["identity"]["keep_first_position"] else 1

    @property
    def seq_len(self) -> int:
        """The number of tokens of a window, without BOS."""
        return self.config["stores"][0]["identity"]["seq_len"]

    @property
    def model_dtype(self) -> str:
        """The number format in which the model ran."""
        return self.config["stores"][0].get("model_dtype", "float32")

    @property
    def model_location(self) -> str:
        """The model's path on this machine, or its name at the hub."""
        return self._place("model")

    @property
    def corpus(self) -> str:
        """The text's path on this machine, or the name of a hub data set."""
        return self._place("dataset")

    @property
    def text(self) -> str | Iterator[str]:
        """The text's path or the name of a hub data set, or the documents of a text whose rows were imported."""
        if self.config["stores"][0]["dataset"]["fingerprint"]:
            return self.corpus
        from harvest.imports.stored_rows import documents_of

        return documents_of(self._imported(), self.tokenizer)

    def _place(self, kind: Kind) -> str:
        place = place_of(kind, self.config["stores"][0][kind])
        if Path(place).is_absolute() and not Path(place).exists():
            what = "model" if kind == "model" else "text"
            raise InputError(
                f"{self.path}: the {what} it was trained on is not at {place} any more: put it back there, or run the "
                "training command again with the new path, which is then recorded"
            )
        return place

    def curves(self) -> dict[str, list[dict[str, float]]]:
        """{member id: its lines of metrics.jsonl, ordered by step}. Raises InputError if it is missing or damaged."""
        from sae_jax.shapes import MetricsLine, check

        path, curves = self.path / METRICS_FILE, defaultdict(list)
        if not path.exists():
            raise InputError(f"{self.path} has no {METRICS_FILE}: {TRAIN_AGAIN}")
        for line in read_lines(path, TRAIN_AGAIN):
            check(line, MetricsLine, path, WITHOUT_LINE)
            curves[line["member"]].append(line)
        if self.results.get(METRICS_FILE) != RunDirectory(self.path, {}).metrics_written():
            raise InputError(f"{path} is damaged (lines are missing or changed): {TRAIN_AGAIN}")
        return dict(curves)

    def dictionary(self, member: str) -> Dictionary:
        from sae_jax.formats import load_dictionary

        directory = self.path / "members" / member
        dictionary = load_dictionary(directory)
        if (written := dictionary.cfg["metadata"].get("member")) != member:
            raise InputError(f"{directory} contains the weights of {written}: {WRITTEN_AGAIN}")
        return dictionary

    @property
    def has_language_model(self) -> bool:
        """Return whether the rows of the run come from a language model, and not from a program of another kind."""
        return self.config["stores"][0]["hook_name"] != IMPORTED

    def need_language_model(self) -> None:
        """Raise InputError if the rows were imported without the language model that they come from."""
        if not self.has_language_model:
            raise InputError(
                f"{self.path}: its rows were imported without a language model, which this needs: import them with "
                "--tokens and --model-name"
            )

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the language model; without one, rows are named by their numbers."""
        from harvest.model.tokenizer import load_tokenizer

        return load_tokenizer(self.model_location) if self.has_language_model else RowNames()

    @cached_property
    def language_model(self) -> LanguageModel:
        """The language model, loaded once for all analyses. Raises InputError if its weights have changed."""
        self.need_language_model()
        from harvest.model.language_model import LanguageModel

        trained, location = self.config["stores"][0]["identity"]["model"], self.model_location
        how: dict[str, Any] = {
            "control": self.request.control,
            "bos": self.request.bos,
            "dtype": self.model_dtype,
        }
        model = LanguageModel.load(location, self.device, **how)
        if model_fingerprint(location) != trained["fingerprint"] and model.weights_hash() != trained["weights_hash"]:
            raise InputError(
                f"{self.path} was trained on a model with other weights than the one that is now at {location}: "
                "put the original model back"
            )
        return model

    def store(
        self,
        site: Site,
        cache_dir: Path | str,
        on_progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
        say: Callable[[str], None] = lambda text: None,
    ) -> ActivationStore:
        """The activations that the members at a site were trained on, harvested again if the cache lacks them.

        Raises InputError if they cannot be harvested, or differ from the original ones. Differences by rounding, from
        another version of torch or another processor, are accepted and reported through `say`.
        """
        from harvest.capture import harvest
        from harvest.identity import difference, identity, matching_store, rounding

        facts, cache_dir = self.store_facts(site), Path(cache_dir)
        store = self._imported() if self.request.rows else matching_store(facts, cache_dir)
        if store is None:
            self._place("model")
            self._place("dataset")
            names = name_of("model", facts["model"]), name_of("dataset", facts["dataset"])
            asked = replace(self.request, layer=(site.layer,), hook=(site.hook,), model_name=names[0], dataset=names[1])
            asked = replace(asked, model_dtype=self.model_dtype)
            store = harvest(asked, cache_dir, on_progress=on_progress, say=say, device=self.device)[site]
        here = identity(store)
        if other := difference(facts["identity"], here):
            raise InputError(
                f"{self.path} was trained on other activations than those in {store.directory} ({other}): "
                "restore the original ones"
            )
        if apart := rounding(facts["identity"], here):
            say_once(say, f"{self.path} was trained with other library versions or on another processor: {apart}")
        return store

    def _imported(self) -> ActivationStore:
        """The store that the run was given with --rows. Raises InputError if it is not there any more."""
        from harvest.store import ActivationStore

        assert self.request.rows is not None
        if not Path(self.request.rows).exists():
            raise InputError(
                f"{self.path}: the rows it was trained on are not at {self.request.rows} any more: put them back "
                "there, or run the training command again with the new path, which is then recorded"
            )
        return ActivationStore(self.request.rows)


def can_be_kept(run: Path, say: Callable[[str], None]) -> bool:
    """Whether results of an analysis can be written to the run directory. If not, this is reported through `say`."""
    folders = (run, run / "analysis", run / "analysis" / "features", run / "figures")
    if all(os.access(folder, os.W_OK) for folder in folders if folder.exists()):
        return True
    say_once(say, f"{run} cannot be written to: the results are not saved")
    return False


@lru_cache
def say_once(say: Callable[[str], None], text: str) -> None:
    """Call `say` once for each text: a command may check several times whether a run can be written to."""
    say(text)


def refuse_no_run(path: Path) -> None:
    """Raise InputError if there is no run at `path`, or if links in it lead out of it."""
    if not path.is_dir():
        places = (path.parent, RUNS) if path.parent == Path() else (path.parent,)
        runs = {config.parent.name: config.parent for place in places for config in place.glob("*/config.json")}
        near = get_close_matches(path.name, runs, n=1)
        fix = f"did you mean {runs[near[0]]}?" if near else "give the directory of a run"
        raise InputError(f"{path}: there is no such run directory: {fix}")
    refuse_links(path)
    if not (path / "config.json").exists():
        inside = sorted(config.parent for config in path.glob("*/config.json"))
        fix = f"it is a folder of runs: give one, such as {inside[0]}" if inside else "give the directory of a run"
        raise InputError(f"{path} has no config.json, so it is no run: {fix}")


def read_record(run: Path, name: str) -> dict[str, Any]:
    """The content of one of a run's JSON files. Raises InputError if it is missing, damaged or of the wrong form."""
    path = run / name
    if name == "results.json":
        refuse_unfinished(run)
    from sae_jax.shapes import read_shaped  # imported here, because importing pydantic is slow

    return read_shaped(path, WRITTEN_AGAIN if name == "results.json" else TRAIN_AGAIN)
