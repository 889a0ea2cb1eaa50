"""Published SAEs: `sae_jax.from_pretrained` finds one on the Hugging Face hub, also by its name in SAELens.

SAELens has a list of published SAEs (pretrained_saes.yaml), grouped by release. It maps a release and an id to a folder
of a repository, and corrects the configuration of some.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from harvest.errors import InputError
from harvest.hub import HubQuestion
from sae_jax.formats import FILES, WEIGHTS, Dictionary, load_dictionary
from sae_jax.formats.dictionary import SCALED, unscaled
from sae_jax.formats.saelens import METADATA, RENAMED
from sae_jax.loading import LoadedSAE


class Published(NamedTuple):
    """Where an SAE is, and what SAELens' list adds to its files."""

    repo: str
    folder: str
    corrections: dict[str, Any] = {}  # values that replace those of its configuration
    scale: float | None = None  # the factor of the rows in training


def from_pretrained(release: str, sae_id: str = "", releases: Path | str | None = None) -> LoadedSAE:
    """Load a published SAE from the Hugging Face hub, or from the local cache of the hub if it was loaded before.

    `release` is a repository, OWNER/NAME, and `sae_id` a folder in it (if omitted, the files are at its top). Or
    `release` and `sae_id` are those of SAELens, whose list is that of the installed package, or a copy of its
    pretrained_saes.yaml at `releases`. The layouts are those of `sae_jax.load`; no code in the files is run. Raises
    InputError, with the reason, if the SAE cannot be found or read.
    """
    for name in (release, sae_id):
        if not isinstance(name, str):
            raise InputError(f"from_pretrained needs a release and an id in words, not {name!r}: give two strings")
    asked, listing = f"{release} {sae_id}".strip(), saelens_list(releases)
    if release in listing:
        published = in_list(release, sae_id, listing[release])
    else:
        refuse_no_repository(release, listing)
        published = Published(release, sae_id.strip("/"))
    directory = in_cache(published) or downloaded(published, asked)
    dictionary = corrected(load_dictionary(directory), published)
    dictionary.check(directory)
    return LoadedSAE(replace(dictionary, name=asked), directory)


def saelens_list(copy: Path | str | None) -> dict[str, Any]:
    """The releases in a copy of SAELens' list or in that of the installed package; empty if there is none."""
    if copy is not None:
        return read_list(Path(copy).expanduser())
    package = find_spec("sae_lens")  # found without importing it, because this would load torch
    path = Path(package.origin).parent / "pretrained_saes.yaml" if package and package.origin else None
    return read_list(path) if path and path.exists() else {}


@cache
def read_list(path: Path) -> dict[str, Any]:
    import yaml

    try:
        # The reader in C is several times as fast, but not every build of the package has it.
        content = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read ({error}): give a copy of SAELens' pretrained_saes.yaml") from error
    if not isinstance(content, dict) or not all(isinstance(r, dict) and "repo_id" in r for r in content.values()):
        raise InputError(f"{path} is no list of releases: give a copy of SAELens' pretrained_saes.yaml")
    return content


def in_list(release: str, sae_id: str, record: dict[str, Any]) -> Published:
    saes = {str(sae["id"]): sae for sae in record["saes"]}
    if sae_id not in saes:
        raise InputError(f"from_pretrained: release {release} has no SAE {sae_id!r}: {one_of(saes, sae_id)}")
    sae, corrections = saes[sae_id], record.get("config_overrides") or {}
    return Published(record["repo_id"], str(sae["path"]), corrections, sae.get("norm_scaling_factor"))


def refuse_no_repository(release: str, listing: Collection[str]) -> None:
    """Raise InputError unless this can be the name of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(release)
        is_name = "/" in release
    except HFValidationError:
        is_name = False
    is_directory = release != "" and Path(release).is_dir()
    if is_name and not is_directory:
        return
    fix = "give OWNER/NAME of a repository on the hub"
    if is_directory:
        fix = "give a directory to sae_jax.load"
    elif listing:
        fix = f"{one_of(listing, release)}, or {fix}"
    else:
        fix += "; for SAELens' names, `pip install --no-deps sae-lens` or give its pretrained_saes.yaml as `releases`"
    raise InputError(f"from_pretrained: {release!r} is neither a repository nor a known release: {fix}")


def one_of(names: Iterable[str], like: str) -> str:
    """A fix that names what is closest to `like`, or the first few names."""
    names = list(names)
    nearest = get_close_matches(like, names, n=3, cutoff=0.5) or names[:3]
    more = f" (of {len(names):,})" if len(names) > len(nearest) else ""
    return f"give one of {', '.join(nearest)}{more}" if names else "give another"


def in_cache(published: Published) -> Path | None:
    """The folder in the local cache of the hub, if it is complete: weights are the last of FILES to be downloaded."""
    from huggingface_hub import try_to_load_from_cache

    for name in WEIGHTS:
        path = try_to_load_from_cache(published.repo, in_folder(published.folder, name))
        if isinstance(path, str):
            return Path(path).parent
    return None


def downloaded(published: Published, asked: str) -> Path:
    """Download what is read of a folder into the local cache of the hub, and return the folder there."""
    from huggingface_hub import hf_hub_download

    repo, folder = published.repo, published.folder
    question = HubQuestion("sae", asked, repo)
    if question.answer().verdict != "there":
        raise question.refusal()
    with one_line(asked):
        there = files_in(repo, folder)
        paths = [hf_hub_download(repo, in_folder(folder, n)) for n in FILES if in_folder(folder, n) in there]
        everywhere = [] if paths else [PurePosixPath(name) for name in files_in(repo, "", recursive=True)]
    if paths:
        return Path(paths[0]).parent
    folders = sorted(str(path.parent) for path in everywhere if path.name in WEIGHTS)
    what = f"folder {folder!r} with an SAE" if folder else "SAE at its top"
    raise InputError(f"from_pretrained: {repo} has no {what} ({' or '.join(WEIGHTS)}): {one_of(folders, folder)}")


def files_in(repo: str, folder: str, recursive: bool = False) -> set[str]:
    """The paths of the files in a folder of a repository; empty if there is no such folder."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return {file.path for file in HfApi().list_repo_tree(repo, folder or None, recursive=recursive)}
    except EntryNotFoundError:
        return set()


def in_folder(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


@contextmanager
def one_line(asked: str) -> Iterator[None]:
    """A context in which an error of the hub's client, which raises many types, becomes one line."""
    try:
        yield
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(
            f"from_pretrained: {asked} cannot be downloaded ({reason}): try again; set HF_TOKEN if access is restricted"
        ) from error


def corrected(dictionary: Dictionary, published: Published) -> Dictionary:
    """The dictionary with what SAELens' list says about its configuration and the scale of its rows."""
    values = {RENAMED.get(name, name): value for name, value in published.corrections.items()}
    metadata = {name: values.pop(name) for name in METADATA if name in values}
    cfg = {**dictionary.cfg, **values, "metadata": dictionary.cfg["metadata"] | metadata}
    dictionary = replace(dictionary, cfg=cfg)
    if cfg.get("normalize_activations") != SCALED or not published.scale:
        return dictionary
    tensors = unscaled(dictionary.tensors, published.scale)
    return replace(
        dictionary, cfg=cfg | {"normalize_activations": "none"}, tensors=tensors, scale=float(published.scale)
    )
