"""The harvest: activations of a language model on text windows, in one store per site that is made once and then found.

A harvest that was stopped continues where it stopped.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from harvest.errors import InputError
from harvest.files import remove_temporary
from harvest.identity import matching_store
from harvest.messages import Progress, Say, ignore, say_sources, say_stores
from harvest.model_pass import BATCH_TOKENS, fill, refuse_unmeasurable
from harvest.placement import dtype_on
from harvest.request import HarvestRequest, Site
from harvest.sources import Source, name_of, resolve
from harvest.store import FORMAT, SPLITS, STREAM, ActivationStore
from harvest.team import ALONE, Team

SHARD_BYTES = 32 << 20  # bytes of the rows in a shard
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def harvest(
    request: HarvestRequest,
    cache_dir: Path,
    on_progress: Progress = ignore,
    say: Say = ignore,
    shard_bytes: int = SHARD_BYTES,
    sources: tuple[Source, Source] | None = None,
    loss_recovered: bool = False,
    device: str = "auto",
    team: Team = ALONE,
) -> dict[Site, ActivationStore]:
    """The stores of the requested sites, all with the same windows. Stores that are missing are harvested.

    `sources` is the result of `resolve` for this request, if known. The rows of a site do not depend on the other sites
    that are harvested with it, up to rounding in float32. The harvest needs the memory of one shard per site. With
    `loss_recovered`, a site at which loss recovered cannot be measured is refused before the harvest. For an encoder,
    which has no loss recovered, this is only reported. `device` says where the model runs, as --device does. If several
    processes call this, each with its place in their `team`, each makes a part of the shards; the stores are those of
    one process, byte for byte. Raises InputError if a model or text is unavailable, if a value is not finite, if the
    disk is full, or if another process of the team has ended.
    """
    model, dataset = sources or resolve(request, Path(cache_dir))
    request = replace(request, model_dtype=dtype_on(device, request.model_dtype, model))
    say_sources(model, dataset, say)
    if request.control:
        say(f"control: {request.control}, weights are shuffled within each matrix of the model")
    stores = Path(cache_dir) / "activations"
    directories = {s: stores / store_name(request, s, model, dataset, shard_bytes) for s in request.sites}
    team.refuse_differences({"the stores that they need": [path.name for path in directories.values()]})
    with disk_trouble_said(stores), ExitStack() as locks:
        if missing := _missing(directories, team, locks, say):
            for source in (model, dataset):
                if source.out_of_reach:
                    raise InputError(source.out_of_reach)
            fill(missing, request, model, dataset, on_progress, say, shard_bytes, loss_recovered, device, team)
            _free_memory()
    by_site = {site: ActivationStore(directory) for site, directory in directories.items()}
    for store in by_site.values():
        store.rename(model.record, dataset.record)
    if loss_recovered:
        refuse_unmeasurable({site: store.manifest for site, store in by_site.items()}, say)
    say_stores(by_site, say)
    for site, store in by_site.items():
        if (wider := store.manifest["dtype"]) != request.store_dtype:
            say(f"{site.hook_name}: rows that do not fit {request.store_dtype} are in {wider}")
    if (got := next(iter(by_site.values())).manifest["n_samples_got"]) < request.n_samples:
        say(f"the text has only {got:,} windows of {request.seq_len} tokens; {request.n_samples:,} were requested")
        if request.stream:
            say("fewer documents are held out than of as much text as was requested: ask for no more than there is")
    return by_site


def harvest_again(
    request: HarvestRequest,
    trained: Sequence[Mapping[str, Any]],
    cache_dir: Path,
    on_progress: Progress = ignore,
    say: Say = ignore,
    loss_recovered: bool = False,
    device: str = "auto",
    team: Team = ALONE,
) -> dict[Site, ActivationStore]:
    """The stores that a run began with, harvested again with the same model and text if the cache lacks one of them.

    `trained` are the run's records of them. If the cache holds them all, no hub is contacted.
    """
    facts = {site: fact for site in request.sites for fact in trained if fact["hook_name"] == site.hook_name}
    stores = {site: store for site, fact in facts.items() if (store := matching_store(fact, cache_dir))}
    model, dataset = name_of("model", trained[0]["model"]), name_of("dataset", trained[0]["dataset"])
    if team.agree(found := len(stores) == len(request.sites)):
        if not found:
            raise InputError(_not_shared(cache_dir, team))
        say(f"model: {model}")
        say(f"text: {dataset}")
        say_stores(stores, say)
        return stores
    dtype = trained[0].get("model_dtype", "float32")
    request = replace(request, model_name=model, dataset=dataset, model_dtype=dtype)
    return harvest(request, cache_dir, on_progress, say, loss_recovered=loss_recovered, device=device, team=team)


def store_name(
    request: HarvestRequest, site: Site, model: Source, dataset: Source, shard_bytes: int = SHARD_BYTES
) -> str:
    """A hash of everything on which the rows and manifest of a site depend, followed by the control, if any.

    The number format of the model must be known, and not be "auto".
    """
    given = replace(request, model_dtype="auto") if request.model_dtype == "float32" else request
    given = replace(given, ring_gb=1.0)  # which changes no row
    facts = {
        **given.to_json(),  # without float32, which keeps the names of older stores
        **site._asdict(),
        "model_name": (model.fingerprint, False),  # by content, not by name; False keeps the names of older stores
        "dataset": (dataset.fingerprint, False),
        "format": FORMAT,
        "shard_bytes": shard_bytes,
        "batch_tokens": BATCH_TOKENS,
    }
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=10).hexdigest()
    return f"{digest}-{request.control}" if request.control else digest


def _missing(directories: dict[Site, Path], team: Team, locks: ExitStack, say: Say) -> dict[Site, Path]:
    """The stores that are unfinished, the same in all processes of a team. Process 0 locks them."""
    missing: dict[Site, Path] = {}
    if team.leads:
        missing = _unfinished(directories)
        for directory in sorted(missing.values()):  # in a fixed order, so that no two processes wait for each other
            locks.enter_context(one_at_a_time(directory, say))
        missing = _unfinished(missing)  # another process may have finished them
    names = team.agree([path.name for path in missing.values()])
    missing = {site: path for site, path in directories.items() if path.name in names}
    for directory in missing.values():
        if not _lock_path(directory).exists():
            raise InputError(_not_shared(directory.parents[1], team))
    return missing


def _not_shared(cache_dir: Path, team: Team) -> str:
    return (
        f"--cache-dir {cache_dir}: process {team.index} of the harvest does not find the files of process 0 in it: "
        "give all processes the same directory, on a disk that they share"
    )


def _unfinished(directories: dict[Site, Path]) -> dict[Site, Path]:
    return {site: path for site, path in directories.items() if not (path / "manifest.json").exists()}


@contextmanager
def one_at_a_time(directory: Path, say: Say):
    """Lock a store, and delete the temporary files that killed processes left in it.

    If two processes need it, the second waits until the first has finished it.
    """
    from filelock import FileLock, Timeout

    directory.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(_lock_path(directory))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("another process is harvesting the same activations: waiting for it")
        lock.acquire()
    try:
        for folder in (directory, *(directory / split for split in (*SPLITS, STREAM))):
            remove_temporary(folder)
        yield
    finally:
        lock.release()  # the lock file stays, because all processes must lock the same file


def _lock_path(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.lock")


@contextmanager
def disk_trouble_said(stores: Path):
    """Turn errors of a full or read-only disk into an InputError."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise InputError(
                f"the disk is full ({error.strerror}) at {stores}: free some space, or choose another disk with "
                "--cache-dir. The finished part of the harvest is kept, and the same command continues from there"
            ) from error
        if error.errno in NOT_WRITABLE:
            raise InputError(
                f"--cache-dir {stores.parent}: cannot be written to ({error.strerror}): choose another directory"
            ) from error
        raise


def _free_memory() -> None:
    """Free the memory of the model, which its hooks keep in reference cycles, before training begins."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
