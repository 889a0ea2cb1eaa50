"""The harvest: activations of a language model on text windows, written to one store per site in one pass.

A harvest that was stopped continues where it stopped.

Shapes: W windows, T tokens per window, N rows, D width of the model.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from harvest.errors import InputError
from harvest.identity import matching_store
from harvest.placement import dtype_on
from harvest.request import HarvestRequest, Site
from harvest.row_formats import BYTES
from harvest.sources import Source, name_of, resolve
from harvest.store import FORMAT, ActivationStore
from harvest.store_writer import StoreWriter

BATCH_TOKENS = 2048  # the same on all machines, because a resumed harvest must run the same batches
SHARD_BYTES = 32 << 20  # bytes of the rows in a shard
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)

Progress = Callable[[str, int, int], None]  # phase, tokens done, total tokens
Say = Callable[[str], None]


def ignore(*_: object) -> None:
    """Report nothing."""


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
                _fill(missing, request, model, dataset, on_progress, say, shard_bytes, loss_recovered, device)
                _free_memory()
    by_site = {site: ActivationStore(directory) for site, directory in directories.items()}
    for store in by_site.values():
        store.rename(model.record, dataset.record)
    if loss_recovered:
        refuse_unmeasurable({site: store.manifest for site, store in by_site.items()}, say)
    _say_stores(by_site, say)
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
    if len(stores) == len(request.sites):
        _say_stores(stores, say)
        return stores
    model, dataset = name_of("model", trained[0]["model"]), name_of("dataset", trained[0]["dataset"])
    dtype = trained[0].get("model_dtype", "float32")
    request = replace(request, model_name=model, dataset=dataset, model_dtype=dtype)
    return harvest(request, cache_dir, on_progress, say, loss_recovered=loss_recovered, device=device)


def _say_stores(stores: dict[Site, ActivationStore], say: Say) -> None:
    _say_text(next(iter(stores.values())).manifest["text"], say)
    for site, store in stores.items():
        train, held_out = len(store.train), len(store.held_out)
        rows = f"{train:,} training rows, {held_out:,} held-out rows" if train else f"{held_out:,} rows"
        say(f"activations at {site.hook_name}: {rows} in {store.manifest['dtype']}, in {store.directory}")
        if lost := store.manifest.get("lost_variance"):
            say(f"int8 lost {lost:.1g} of the variance of the rows")
        if limit := store.manifest.get("max_norm"):
            candidates = store.manifest["candidate_rows"]
            if left_out := candidates - train - held_out:
                share = f"{left_out / candidates:.3%}"
                say(f"{left_out:,} rows ({share}) are left out at {site.hook_name}: their norm is over {limit:.4g}")


def refuse_unmeasurable(manifests: dict[Site, dict], say: Say) -> None:
    """Raise InputError if loss recovered cannot be measured at a site; for an encoder, only report this."""
    for manifest in manifests.values():
        if (trouble := manifest.get("no_loss_recovered")) and not manifest["reads_both_ways"]:
            raise InputError(f"{trouble}, or train without cross-entropy recovered (--ce-windows 0)")
    encoders = [manifest["no_loss_recovered"] for manifest in manifests.values() if manifest.get("reads_both_ways")]
    for trouble in encoders[:1]:
        say(f"cross-entropy recovered is not measured: {trouble}")


def store_name(
    request: HarvestRequest, site: Site, model: Source, dataset: Source, shard_bytes: int = SHARD_BYTES
) -> str:
    """A hash of everything on which the rows and manifest of a site depend, followed by the control, if any.

    The number format of the model must be known, and not be "auto".
    """
    given = replace(request, model_dtype="auto") if request.model_dtype == "float32" else request
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


def _fill(
    directories: dict[Site, Path],
    request: HarvestRequest,
    model: Source,
    dataset: Source,
    on_progress: Progress,
    say: Say,
    shard_bytes: int,
    loss_recovered: bool,
    device: str | None,
) -> None:
    from harvest.model.language_model import LanguageModel
    from harvest.rehearsal import rehearse
    from harvest.text.documents import Reading
    from harvest.text.windows import token_windows

    how: dict[str, Any] = {"control": request.control, "bos": request.bos, "dtype": request.model_dtype}
    language_model = LanguageModel.load(model.location, device, **how)
    for note in language_model.notes:
        say(f"{model.asked}: {note}")
    say(f"harvest runs on {language_model.device} in {language_model.dtype_name} (torch {version('torch')})")
    request = request_for_text(request, language_model)
    windows = token_windows(
        dataset.location, language_model.tokenizer, request, reading := Reading(), language_model.bos
    )
    every_WxT = np.concatenate([split.tokens_WxT for split in windows.values()])
    rehearsed = rehearse(language_model, every_WxT, list(directories), not request.keep_first_position)
    facts = {**_description(request, model, dataset, language_model, windows), "text": asdict(reading)}
    about = {
        site: {**facts, "hook_name": site.hook_name, **site._asdict(), "no_loss_recovered": rehearsed[site]}
        for site in directories
    }
    if request.max_norm_ratio:
        candidates = sum(int(split.kept(request.positions).sum()) for split in windows.values())
        for site, norm in median_norms(language_model, every_WxT, list(directories), request.positions).items():
            limit = float(f"{request.max_norm_ratio * norm:.4g}")  # without the rounding errors that may differ
            about[site] |= {"max_norm": limit, "candidate_rows": candidates}
    if loss_recovered:
        refuse_unmeasurable(about, ignore)
    writers = {site: StoreWriter(path, about[site], tuple(windows)) for site, path in directories.items()}
    row_bytes = language_model.d_model * BYTES[request.store_dtype]
    batch_bytes = _batch_windows(request) * request.positions * row_bytes
    shard_windows = _batch_windows(request) * max(1, shard_bytes // batch_bytes)
    total = sum(len(split.tokens_WxT) for split in windows.values())
    done = 0

    def advance(n_windows: int) -> None:
        nonlocal done
        done += n_windows
        on_progress("harvest", done * request.seq_len, total * request.seq_len)

    for split in windows:
        for index, start in enumerate(range(0, len(windows[split].tokens_WxT), shard_windows)):
            part = windows[split].part(slice(start, start + shard_windows))
            lacking = [site for site, writer in writers.items() if not writer.has_shard(split, index, part.tokens_WxT)]
            if not lacking:
                advance(len(part.tokens_WxT))
                continue
            rows = _rows(language_model, part.tokens_WxT, lacking, request, advance)
            for site in lacking:
                x_WxPxD, kept_WxP = rows.pop(site), part.kept(request.positions)
                if most := about[site].get("max_norm"):
                    kept_WxP = kept_WxP & ~(np.linalg.norm(x_WxPxD, axis=-1) > most)
                others = {name: array_WxT for name, array_WxT in part.others.items() if name != "kept"}
                others |= {} if kept_WxP.all() else {"kept": kept_WxP}
                writers[site].add_shard(split, index, x_WxPxD[kept_WxP], part.tokens_WxT, part.documents_W, **others)
    for writer in writers.values():
        writer.finish()


def median_norms(language_model, tokens_WxT: np.ndarray, sites: list[Site], positions: int) -> dict[Site, float]:
    """The median norm of the rows of 4 to 32 windows, which are spread over the text, for each site."""
    windows = min(32, max(4, BATCH_TOKENS // tokens_WxT.shape[1]))
    spread_W = np.unique(np.linspace(0, len(tokens_WxT) - 1, windows).astype(int))
    activations = language_model.activations(tokens_WxT[spread_W], sites)
    return {
        site: float(np.median(np.linalg.norm(x_WxTxD[:, -positions:], axis=-1)))
        for site, x_WxTxD in activations.items()
    }


def request_for_text(request: HarvestRequest, language_model) -> HarvestRequest:
    """The same request for windows without BOS, which takes their first tokens; what follows it are all rows."""
    if not language_model.bos:
        return request
    if request.keep_first_position:
        raise InputError(
            "--keep-first-position has no effect on windows behind BOS, where only BOS is left out: leave it out, or "
            "use --bos off"
        )
    return replace(request, seq_len=request.seq_len - len(language_model.bos), keep_first_position=True)


def _rows(
    language_model, tokens_WxT: np.ndarray, sites: list[Site], request: HarvestRequest, advance: Callable[[int], None]
) -> dict[Site, np.ndarray]:
    """The activations [W, P, D] of token windows at each site."""
    shape = (len(tokens_WxT), request.positions, language_model.d_model)
    rows = {site: np.empty(shape, np.float32) for site in sites}
    for start in range(0, len(tokens_WxT), _batch_windows(request)):
        batch_WxT = tokens_WxT[start : start + _batch_windows(request)]
        for site, activations_WxTxD in language_model.activations(batch_WxT, sites).items():
            rows[site][start : start + len(batch_WxT)] = activations_WxTxD[:, -request.positions :]
        advance(len(batch_WxT))
    return rows


def _batch_windows(request: HarvestRequest) -> int:
    return -(-BATCH_TOKENS // request.seq_len)


def _description(request: HarvestRequest, model: Source, dataset: Source, language_model, windows) -> dict:
    """Facts about the origin of the rows, for the manifests of all sites."""
    arrays = [a for s in windows.values() for a in (s.tokens_WxT, s.documents_W, *s.others.values())]
    return {
        "model": model.record,
        **({"control": request.control} if request.control else {}),
        **({"bos": list(language_model.bos)} if language_model.bos else {}),
        **({"model_dtype": request.model_dtype} if request.model_dtype != "float32" else {}),
        "weights_hash": language_model.weights_hash(),
        "reads_both_ways": language_model.reads_both_ways,
        "tokenizer_hash": language_model.tokenizer_hash(),
        "dataset": dataset.record,
        "windows_hash": _hash_arrays(arrays),
        "seq_len": request.seq_len,
        "keep_first_position": request.keep_first_position,
        "dtype": request.store_dtype,
        "d_model": language_model.d_model,
        "n_samples": request.n_samples,
        "n_samples_got": sum(len(split.tokens_WxT) for split in windows.values()),
        "versions": {name: version(name) for name in ("torch", "transformers", "transformer_lens")},
    }


def say_sources(model: Source, dataset: Source, say: Say) -> None:
    """Say which model and text are used, and why, if they are not those of the request."""
    for kind, source in (("model", model), ("text", dataset)):
        where = "" if source.location == source.asked else f" ({source.location})"
        where += " (the hub cannot be reached: activations harvested before are used)" if source.out_of_reach else ""
        say(
            f"{kind}: the bundled one, because the hub cannot be reached and there is no local copy of {source.asked}"
            if source.fell_back
            else f"{kind}: {source.asked}{where}"
        )


def _say_text(text: dict, say: Say) -> None:
    if text["columns"] not in ([], ["text"]):
        say(f"text is read from the column {', '.join(text['columns'])}")
    if files := text["left_out"]:
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        say(f"not read, because they are empty or of a test or validation split: {', '.join(files[:3])}{more}")
    if lost := text.get("lost_tokens"):
        share = f"{lost / (lost + text['tokens']):.0%}"
        say(
            f"{share} of the text's tokens are in no window, because windows are full and never span two documents; "
            "--pack joins documents"
        )
    if text["near_copies"]:
        copies = f"near-copies: {text['near_copies']:,} of {text['documents']:,} documents nearly equal an earlier one"
        apart = "copies are split like other documents, because one split would be empty otherwise"
        say(f"{copies}; {'copies are in the split of their original' if text['copies_together'] else apart}")


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


def _hash_arrays(arrays: list[np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
