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
from harvest.identity import matching_store
from harvest.messages import Progress, Say, ignore, say_sources, say_stores
from harvest.model_pass import BATCH_TOKENS, fill, refuse_unmeasurable
from harvest.placement import dtype_on
from harvest.request import HarvestRequest, Site
from harvest.sources import Source, name_of, resolve
from harvest.store import FORMAT, ActivationStore

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
    device: str | None = None,
) -> dict[Site, ActivationStore]:
    """The stores of the requested sites, all with the same windows. Stores that are missing are harvested.

    `sources` is the result of `resolve` for this request, if known. The rows of a site do not depend on the other sites
    that are harvested with it, up to rounding in float32. The harvest needs the memory of one shard per site. With
    `loss_recovered`, a site at which loss recovered cannot be measured is refused before the harvest. For an encoder,
    which has no loss recovered, this is only reported. The model runs on `device`, by default on cuda if there is such
    a device. Raises InputError if a model or text is unavailable, if a value is not finite, or if the disk is full.
    """
    model, dataset = sources or resolve(request, Path(cache_dir))
    request = replace(request, model_dtype=dtype_on(device, request.model_dtype, model))
    say_sources(model, dataset, say)
    if request.control:
        say(f"control: {request.control}, weights are shuffled within each matrix of the model")
    stores = Path(cache_dir) / "activations"
    directories = {s: stores / store_name(request, s, model, dataset, shard_bytes) for s in request.sites}
    if missing := _unfinished(directories):
        for source in (model, dataset):
            if source.out_of_reach:
                raise InputError(source.out_of_reach)
        with disk_trouble_said(stores), ExitStack() as locks:
            for directory in sorted(missing.values()):  # in a fixed order, so that no two processes wait for each other
                locks.enter_context(one_at_a_time(directory, say))
            if missing := _unfinished(missing):  # another process may have finished them
                fill(missing, request, model, dataset, on_progress, say, shard_bytes, loss_recovered, device)
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
    return by_site


def harvest_again(
    request: HarvestRequest,
    trained: Sequence[Mapping[str, Any]],
    cache_dir: Path,
    on_progress: Progress = ignore,
    say: Say = ignore,
    loss_recovered: bool = False,
    device: str | None = None,
) -> dict[Site, ActivationStore]:
    """The stores that a run began with, harvested again with the same model and text if the cache lacks one of them.

    `trained` are the run's records of them. If the cache holds them all, no hub is contacted.
    """
    facts = {site: fact for site in request.sites for fact in trained if fact["hook_name"] == site.hook_name}
    stores = {site: store for site, fact in facts.items() if (store := matching_store(fact, cache_dir))}
    model, dataset = name_of("model", trained[0]["model"]), name_of("dataset", trained[0]["dataset"])
    if len(stores) == len(request.sites):
        say(f"model: {model}")
        say(f"text: {dataset}")
        say_stores(stores, say)
        return stores
    dtype = trained[0].get("model_dtype", "float32")
    request = replace(request, model_name=model, dataset=dataset, model_dtype=dtype)
    return harvest(request, cache_dir, on_progress, say, loss_recovered=loss_recovered, device=device)


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


def _unfinished(directories: dict[Site, Path]) -> dict[Site, Path]:
    return {site: path for site, path in directories.items() if not (path / "manifest.json").exists()}


@contextmanager
def one_at_a_time(directory: Path, say: Say):
    """Lock a store: if two processes need it, the second waits until the first has finished it."""
    from filelock import FileLock, Timeout

    directory.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{directory}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("another process is harvesting the same activations: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()  # the lock file stays, because all processes must lock the same file


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
