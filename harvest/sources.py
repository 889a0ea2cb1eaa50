"""The model and the text of a request, found in under 5 seconds without a download. Does not import torch.

They are searched in this order: 'bundled', a local path, a model in the cache of the hub client, the hub (model and
data set at once), a data set in the cache of the client, activations harvested before. The environment variables of
the client apply: HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE.

A model or text is identified by its fingerprint. For local files this is a hash of their content (`fingerprints.py`),
and for files of the hub their repository and commit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harvest.errors import InputError
from harvest.files import parse_json
from harvest.fingerprints import model_hash, text_hash
from harvest.hub import FLAG, HubQuestion, Kind
from harvest.model_config import LAYER_KEYS, POSITION_KEYS, first_of, published_dtype_in, widths_in
from harvest.request import DEFAULT_DATASET, DEFAULT_MODEL, HarvestRequest, Site
from harvest.store import ActivationStore
from harvest.text.documents import text_files

BUNDLED = Path(__file__).parent / "bundled"
BUNDLED_MODEL = BUNDLED / "model"
BUNDLED_CORPUS = BUNDLED / "corpus.jsonl.gz"

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
DATA_SUFFIXES = {".parquet", ".arrow", ".json", ".jsonl", ".csv", ".txt", ".gz", ".zst"}


@dataclass(frozen=True)
class Source:
    """A model or a data set that is available."""

    asked: str  # the name given by the user or the default
    location: str  # a hub name or a local path to load
    fell_back: bool  # whether the bundled one replaces an unavailable default
    n_layers: int | None  # models only; None if unknown
    fingerprint: str  # hash of local files, or repository@commit of the hub
    n_positions: int | None = None  # models only: the length of the longest window
    widths: Mapping[str, int] = field(default_factory=dict)  # models only: of the activations at each hook, if known
    published_dtype: str = "float32"  # models only: the number format of its weights
    out_of_reach: str = ""  # why it cannot be loaded, if only activations harvested before are available

    def width(self, hooks: Sequence[str]) -> int | None:
        """The width of the activations at these hooks; None if it is unknown. Raises InputError if it differs."""
        keys = {hook: "one head" if Site(0, hook).head is not None else hook for hook in hooks}
        known = {hook: self.widths[key] for hook, key in keys.items() if key in self.widths}
        if len(set(known.values())) > 1:
            each = ", ".join(f"{hook}: {width}" for hook, width in known.items())
            flag = f"--hook {' '.join(hooks)}"
            raise InputError(f"{flag}: activations of different widths ({each}) do not train together: use a run each")
        return next(iter(known.values()), None)

    @property
    def record(self) -> dict[str, Any]:
        """The record in the manifest of a store, from which `place_of` and `name_of` find the source again."""
        kept = ("asked", "location", "fell_back", "fingerprint")
        return {name: getattr(self, name) for name in kept}


def resolve(request: HarvestRequest, cache_dir: Path | None = None) -> tuple[Source, Source]:
    """(model, data set) of a request.

    If the hub cannot be reached, a named model or data set is also searched among the activations in `cache_dir`; it
    then has `out_of_reach`. Raises InputError if a named model or data set is unavailable, and if the model does not
    have a layer or is too short for the windows.
    """
    model, dataset = _model_here(request.model_name), _dataset_here(request.dataset)
    model_name, dataset_name = request.model_name or DEFAULT_MODEL, request.dataset or DEFAULT_DATASET
    about_model = None if model else HubQuestion("model", model_name, official_name(model_name))
    about_dataset = None if dataset else HubQuestion("dataset", dataset_name, dataset_name.partition(":")[0])
    if about_model:
        model = _model_at_hub(about_model, request.model_name, cache_dir)
    if about_dataset:
        dataset = _dataset_at_hub(about_dataset, request.dataset, cache_dir)
    assert model and dataset
    _check_fits(request, model)
    return model, dataset


@cache
def official_name(name: str) -> str:
    """The hub name of a model, also if given by TransformerLens' alias, whose table is read without an import.

    Raises InputError if TransformerLens is not installed.
    """
    spec = find_spec("transformer_lens")
    if not spec or not spec.origin:
        raise InputError("the package transformer_lens is not installed: run `pip install -e .` in sae-jax's folder")
    table = Path(spec.origin).parent / "tools" / "model_registry" / "data" / "model_aliases.json"
    aliases = json.loads(table.read_text(encoding="utf-8"))["aliases"]
    return next((official for official, names in aliases.items() if name in names), name)


def same_name(name: str) -> str:
    """A unique name of a model or text: 'bundled', the hub name, or an absolute path."""
    path = Path(name).expanduser()
    if name == "bundled" or path.resolve().is_relative_to(BUNDLED):
        return "bundled"
    if cached := re.search(r"(?:models|datasets)--([^/]+)/snapshots/[^/:]+(.*)", name):
        name = cached[1].replace("--", "/") + cached[2]
    elif path.exists():
        return str(path.resolve())
    return official_name(name.removeprefix("openai-community/"))  # an alias of the hub: gpt2 is openai-community/gpt2


def place_of(kind: Kind, record: Mapping[str, Any]) -> str:
    """The location from which to load the model or text of a manifest, which may come from another machine."""
    if is_bundled(record):
        return str(BUNDLED_MODEL if kind == "model" else BUNDLED_CORPUS)
    repo, at, commit = record["fingerprint"].partition("@")
    if at and kind == "model":
        return str(_cached_model(repo, commit) or _cached_model(repo) or repo)
    return name_of(kind, record)


def name_of(kind: Kind, record: Mapping[str, Any]) -> str:
    """The name to request on this machine for the model or text of a manifest."""
    if is_bundled(record):
        return "bundled"
    repo, at, _ = record["fingerprint"].partition("@")
    if at:
        return repo
    moved = not Path(record["location"]).exists() and Path(record["asked"]).expanduser().exists()
    return str(Path(record["asked"]).expanduser().resolve()) if moved else record["location"]


def is_bundled(record: Mapping[str, Any]) -> bool:
    """Whether the model or text of a manifest is the bundled one."""
    return record["fell_back"] or record["asked"] == "bundled"


def model_fingerprint(location: str) -> str:
    """The fingerprint of the model at a location from `place_of`."""
    path = Path(location)
    if commit := re.search(r"models--([^/]+)/snapshots/([^/]+)$", location):
        return f"{commit[1].replace('--', '/')}@{commit[2]}"
    return model_hash(path) if path.is_dir() else ""


# Local sources: bundled, local paths, the cache of the hub client.


def _model_here(name: str | None) -> Source | None:
    if name == "bundled":
        return _local_model("bundled", BUNDLED_MODEL)
    if name is not None and (path := _existing_path("model", name)):
        if missing := _missing_from(path):
            raise InputError(
                f"--model-name {name}: not a complete model directory: it lacks {', '.join(missing)}: copy it whole"
            )
        return _local_model(name, path)
    repo = official_name(name or DEFAULT_MODEL)
    snapshot = _cached_model(repo)
    return _local_model(name or DEFAULT_MODEL, snapshot, f"{repo}@{snapshot.name}") if snapshot else None


def _dataset_here(name: str | None) -> Source | None:
    if name == "bundled":
        return Source("bundled", str(BUNDLED_CORPUS), False, None, text_hash([BUNDLED_CORPUS]))
    if name is not None and (path := _existing_path("dataset", name)):
        return Source(name, str(path), False, None, text_hash(text_files(path)))
    return None  # the cache comes after the hub, because it may have only some files of a data set


def _existing_path(kind: Kind, name: str) -> Path | None:
    """The path of a local model or text; None for the name of a hub repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    path = Path(name).expanduser()
    if path.exists():
        return path.resolve()
    try:
        validate_repo_id(name.partition(":")[0] if kind == "dataset" else name)
        path_like = name.endswith((".txt", ".jsonl", ".gz", ".parquet", ".json"))
    except HFValidationError:
        path_like = True
    if path_like or name.startswith((".", "~", "/")):
        raise InputError(
            f"{FLAG[kind]} {name}: there is no such file or directory, and this is no valid hub name: correct the "
            "path, or give a name like OWNER/NAME"
        )
    return None


def _local_model(asked: str, folder: Path, fingerprint: str = "", fell_back: bool = False) -> Source:
    config = parse_json(folder / "config.json", f"get another copy of the model (--model-name {asked})")
    return _model(asked, str(folder), config, fingerprint or model_hash(folder), fell_back)


def _model(asked: str, location: str, config: dict, fingerprint: str, fell_back: bool = False) -> Source:
    n_layers, n_positions = first_of(LAYER_KEYS, config), first_of(POSITION_KEYS, config)
    return Source(
        asked, location, fell_back, n_layers, fingerprint, n_positions, widths_in(config), published_dtype_in(config)
    )


def _missing_from(folder: Path) -> list[str]:
    """The files that a model directory lacks for offline loading."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    for index in [*folder.glob("model*.index.json"), *folder.glob("pytorch_model*.index.json")]:
        try:
            shards = parse_json(index, "get it again").get("weight_map")
        except InputError:
            shards = None
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            missing.append(f"a readable {index.name}")
            continue
        missing += sorted(shard for shard in set(shards.values()) if not (folder / shard).is_file())
    if not any([*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin")]):
        missing.append("weights (model.safetensors)")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        missing.append("a tokenizer (tokenizer.json)")
    return missing


def _cached_model(repo: str, commit: str | None = None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, "config.json", revision=commit)
    if isinstance(config, str) and not _missing_from(Path(config).parent):
        return Path(config).parent
    return None


def _cached_dataset(repo: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = Path(snapshot_download(repo, repo_type="dataset", local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return snapshot if any(path.suffix in DATA_SUFFIXES for path in snapshot.rglob("*")) else None


def named_files(request: HarvestRequest) -> dict[str, str]:
    """Fingerprints of the local files of a request. If these change, the request is a different one."""
    fingerprints = {}
    if request.rows:
        fingerprints["rows"] = ActivationStore(request.rows).fingerprint
    if request.model_name and (folder := Path(request.model_name).expanduser()).is_dir():
        fingerprints["model_name"] = model_hash(folder)
    if request.dataset and (path := Path(request.dataset).expanduser()).exists():
        fingerprints["dataset"] = text_hash(text_files(path))
    return fingerprints


# Sources on the hub.


def _model_at_hub(question: HubQuestion, named: str | None, cache_dir: Path | None) -> Source:
    answer = question.answer()
    if answer.verdict == "there":
        return _model(named or DEFAULT_MODEL, question.repo, answer.config, f"{question.repo}@{answer.commit}")
    if named is not None:
        return _harvested_before(question, question.repo, cache_dir)
    return _local_model(DEFAULT_MODEL, BUNDLED_MODEL, fell_back=True)


def _dataset_at_hub(question: HubQuestion, named: str | None, cache_dir: Path | None) -> Source:
    answer = question.answer()
    if answer.verdict == "there":
        return Source(question.name, question.name, False, None, f"{question.name}@{answer.commit}")
    if snapshot := _cached_dataset(question.repo):
        config = question.name.removeprefix(question.repo)  # '' or ':config'
        return Source(question.name, f"{snapshot}{config}", False, None, f"{question.name}@{snapshot.name}")
    if named is not None:
        return _harvested_before(question, question.name, cache_dir)
    return Source(question.name, str(BUNDLED_CORPUS), True, None, text_hash([BUNDLED_CORPUS]))


def _harvested_before(question: HubQuestion, name: str, cache_dir: Path | None) -> Source:
    """The model or text of the newest store of this name in the cache. Raises InputError if there is none."""
    manifests = [*(cache_dir / "activations").glob("*/manifest.json")] if cache_dir else []
    for path in sorted(manifests, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            manifest = parse_json(path, "")
        except InputError:
            continue  # a damaged store is reported when it is requested
        record = manifest.get(question.kind, {})
        if record.get("fingerprint", "").startswith(f"{name}@"):
            known: dict[str, Any] = {"published_dtype": manifest.get("model_dtype", "float32")}
            known |= {"widths": {manifest["hook"]: manifest["d_model"]}} if question.kind == "model" else {}
            trouble = str(question.refusal())
            return Source(question.name, name, False, None, record["fingerprint"], **known, out_of_reach=trouble)
    raise question.refusal()


def _check_fits(request: HarvestRequest, model: Source) -> None:
    name = official_name(model.asked)
    if model.fell_back:
        name = f"the bundled model (the hub cannot be reached for {model.asked})"
    elif model.asked == "bundled":
        name = "the bundled model"
    for layer in request.layer:
        if model.n_layers is not None and layer >= model.n_layers:
            raise InputError(f"--layer {layer}: must be 0 to {model.n_layers - 1}, the layers of {name}")
    if model.n_positions is not None and request.seq_len + request.generate > model.n_positions:
        given = f"--seq-len {request.seq_len}" + (f" + --generate {request.generate}" if request.generate else "")
        raise InputError(f"{given}: must be at most {model.n_positions}, the context of {name}")
