"""One pass of a language model over its text windows, which fills a store for each site.

Shapes: W windows, T tokens per window, P positions of a window that become rows, D width of the model.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harvest.errors import InputError
from harvest.messages import Progress, Say, ignore
from harvest.request import HarvestRequest, Site
from harvest.row_formats import BYTES
from harvest.sources import Source
from harvest.store_writer import StoreWriter
from harvest.team import Team
from harvest.text.windows import Windows

if TYPE_CHECKING:
    from harvest.rehearsal import Rehearsed

BATCH_TOKENS = 2048  # the same on all machines, because a resumed harvest must run the same batches


def fill(
    directories: dict[Site, Path],
    request: HarvestRequest,
    model: Source,
    dataset: Source,
    on_progress: Progress,
    say: Say,
    shard_bytes: int,
    loss_recovered: bool,
    device: str,
    team: Team,
) -> None:
    """Harvest the stores. Each process of the team makes a part of the shards, and process 0 finishes the stores."""
    from harvest.model.language_model import LanguageModel
    from harvest.rehearsal import guesses, rehearse
    from harvest.text.documents import Reading
    from harvest.text.windows import token_windows

    how: dict[str, Any] = {"control": request.control, "bos": request.bos, "dtype": request.model_dtype}
    language_model = LanguageModel.load(model.location, device, **how)
    for note in language_model.notes:
        say(f"{model.asked}: {note}")
    say(f"harvest runs on {language_model.places} in {language_model.dtype_name} (torch {version('torch')})")
    request = request_for_text(request, language_model)
    windows = token_windows(
        dataset.location, language_model.tokenizer, request, reading := Reading(), language_model.bos
    )
    if request.generate:
        windows = {name: continued(language_model, split, request, on_progress) for name, split in windows.items()}
        request = replace(request, seq_len=request.seq_len + request.generate)
    every_WxT = np.concatenate([split.tokens_WxT for split in windows.values()])
    rehearsed = rehearse(language_model, every_WxT, list(directories), not request.keep_first_position)
    if not request.control and (remark := guesses(language_model, rehearsed.values())):
        say(remark)
    facts = {**_description(request, model, dataset, language_model, windows), "text": asdict(reading)}
    what = {"weights_hash": "the model", "tokenizer_hash": "the tokenizer", "windows_hash": "the text"}
    team.refuse_differences({words: facts[name] for name, words in what.items()} | {"versions": facts["versions"]})
    about = {site: {**facts, **site_facts(language_model, site, rehearsed[site])} for site in directories}
    streamed = windows["train"] if request.stream else None
    if streamed:
        windows["train"] = streamed.part(spread(len(streamed.tokens_WxT), request.sample_windows))
    if request.max_norm_ratio:
        candidates = sum(int(split.kept(request.positions).sum()) for split in windows.values())
        norms = median_norms(language_model, every_WxT, list(directories), request.positions)
        limits = team.agree([norm_limit(request.max_norm_ratio, norms[site]) for site in directories])
        for site, limit in zip(directories, limits, strict=True):
            about[site] |= {"max_norm": limit, "candidate_rows": candidates}
    if loss_recovered:
        refuse_unmeasurable(about, ignore)
    writers = {site: StoreWriter(path, about[site], tuple(windows)) for site, path in directories.items()}
    if streamed and team.leads:
        for writer in writers.values():
            writer.description["streamed_rows"] = int(streamed.kept(request.positions).sum())
            writer.add_stream(streamed.tokens_WxT, streamed.documents_W, **streamed.others)
    row_bytes = max(of_site.width for of_site in rehearsed.values()) * BYTES[request.store_dtype]
    batch_bytes = batch_windows(request.seq_len) * request.positions * row_bytes
    shard_windows = batch_windows(request.seq_len) * max(1, shard_bytes // batch_bytes)
    shards = shards_of(windows, shard_windows)
    write_shards(language_model, request, writers, shards[team.index :: team.count], on_progress)
    team.wait()
    if team.leads:
        for writer in writers.values():
            writer.finish(Counter(split for split, _, _ in shards))
    team.wait()


def shards_of(windows: dict[str, Windows], shard_windows: int) -> list[tuple[str, int, Windows]]:
    """(split, number in it, windows) of each shard."""
    starts = {split: range(0, len(whole.tokens_WxT), shard_windows) for split, whole in windows.items()}
    return [
        (split, index, windows[split].part(slice(start, start + shard_windows)))
        for split in windows
        for index, start in enumerate(starts[split])
    ]


def write_shards(
    language_model,
    request: HarvestRequest,
    writers: dict[Site, StoreWriter],
    shards: list[tuple[str, int, Windows]],
    on_progress: Progress,
) -> None:
    """Run the model on the windows of shards, and write the rows of the sites that lack them."""
    total = sum(len(part.tokens_WxT) for _, _, part in shards)
    done = 0

    def advance(n_windows: int) -> None:
        nonlocal done
        done += n_windows
        on_progress("harvest", done * request.seq_len, total * request.seq_len)

    for split, index, part in shards:
        lacking = {site: w for site, w in writers.items() if not w.has_shard(split, index, part.tokens_WxT)}
        if not lacking:
            advance(len(part.tokens_WxT))
            continue
        widths = {site: writer.description["d_model"] for site, writer in lacking.items()}
        rows = activation_rows(language_model, part.tokens_WxT, widths, request.positions, advance)
        for site, writer in lacking.items():
            x_WxPxD, kept_WxP = rows.pop(site), part.kept(request.positions)
            if most := writer.description.get("max_norm"):
                kept_WxP = kept_WxP & ~(np.linalg.norm(x_WxPxD, axis=-1) > most)
            others = {name: array_WxT for name, array_WxT in part.others.items() if name != "kept"}
            others |= {} if kept_WxP.all() else {"kept": kept_WxP}
            writer.add_shard(split, index, x_WxPxD[kept_WxP], part.tokens_WxT, part.documents_W, **others)


def spread(count: int, most: int) -> np.ndarray:
    """At most `most` of the numbers below `count`, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def continued(language_model, windows: Windows, request: HarvestRequest, on_progress: Progress) -> Windows:
    """Windows with tokens that the model writes behind them, which alone become rows."""
    from harvest.interventions.steering import write_texts

    tokens_WxT, new, written = windows.tokens_WxT, request.generate, []
    for start in range(0, len(tokens_WxT), batch_windows(request.seq_len)):
        batch_WxT = tokens_WxT[start : start + batch_windows(request.seq_len)]
        written.append(write_texts(language_model, batch_WxT, None, new, 1.0, seed=start).tokens_SxN)
        on_progress("generation", (start + len(batch_WxT)) * new, len(tokens_WxT) * new)
    new_WxN = np.concatenate(written).astype(np.int32)
    # A new token belongs to the document of the last token of its window.
    others = {name: np.pad(array_WxT, ((0, 0), (0, new)), "edge") for name, array_WxT in windows.others.items()}
    is_new_T = np.arange(tokens_WxT.shape[1] + new) >= tokens_WxT.shape[1]
    others["kept"] = np.tile(is_new_T, (len(tokens_WxT), 1))
    return Windows(np.concatenate([tokens_WxT, new_WxN], 1), windows.documents_W, others)


def refuse_unmeasurable(manifests: dict[Site, dict], say: Say) -> None:
    """Raise InputError if loss recovered cannot be measured at a site; for an encoder, only report this."""
    for manifest in manifests.values():
        if (trouble := manifest.get("no_loss_recovered")) and not manifest["reads_both_ways"]:
            raise InputError(f"{trouble}, or train without cross-entropy recovered (--ce-windows 0)")
    encoders = [manifest["no_loss_recovered"] for manifest in manifests.values() if manifest.get("reads_both_ways")]
    for trouble in encoders[:1]:
        say(f"cross-entropy recovered is not measured: {trouble}")


def median_norms(language_model, tokens_WxT: np.ndarray, sites: list[Site], positions: int) -> dict[Site, float]:
    """The median norm of the rows of 4 to 32 windows, which are spread over the text, for each site."""
    windows = min(32, max(4, BATCH_TOKENS // tokens_WxT.shape[1]))
    spread_W = np.unique(np.linspace(0, len(tokens_WxT) - 1, windows).astype(int))
    activations = language_model.activations(tokens_WxT[spread_W], sites)
    return {
        site: float(np.median(np.linalg.norm(x_WxTxD[:, -positions:], axis=-1)))
        for site, x_WxTxD in activations.items()
    }


def norm_limit(ratio: float, median_norm: float) -> float:
    """The norm over which rows are left out, without the digits that differ by rounding between machines."""
    return float(f"{ratio * median_norm:.4g}")


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


def activation_rows(
    language_model,
    tokens_WxT: np.ndarray,
    widths: dict[Site, int],
    positions: int,
    advance: Callable[[int], None] = ignore,
) -> dict[Site, np.ndarray]:
    """The activations [W, P, D] of the last positions of token windows at each site, of its width."""
    rows = {s: np.empty((len(tokens_WxT), positions, width), np.float32) for s, width in widths.items()}
    step = batch_windows(tokens_WxT.shape[1])
    for start in range(0, len(tokens_WxT), step):
        batch_WxT = tokens_WxT[start : start + step]
        for site, activations_WxTxD in language_model.activations(batch_WxT, list(widths)).items():
            rows[site][start : start + len(batch_WxT)] = activations_WxTxD[:, -positions:]
        advance(len(batch_WxT))
    return rows


def batch_windows(seq_len: int) -> int:
    """The number of windows that the model runs at once."""
    return -(-BATCH_TOKENS // seq_len)


def _description(request: HarvestRequest, model: Source, dataset: Source, language_model, windows) -> dict:
    """Facts about the origin of the rows, for the manifests of all sites."""
    arrays = [a for s in windows.values() for a in (s.tokens_WxT, s.documents_W, *s.others.values())]
    return {
        **model_facts(language_model, model),
        **({"control": request.control} if request.control else {}),
        **({"model_dtype": request.model_dtype} if request.model_dtype != "float32" else {}),
        "dataset": dataset.record,
        "windows_hash": _hash_arrays(arrays),
        "held_out": request.held_out,
        "seq_len": request.seq_len,
        "keep_first_position": request.keep_first_position,
        "dtype": request.store_dtype,
        "n_samples": request.n_samples,
        "n_samples_got": sum(len(split.tokens_WxT) for split in windows.values()),
        "versions": {name: version(name) for name in ("torch", "transformers", "transformer_lens")},
    }


def model_facts(language_model, source: Source) -> dict[str, Any]:
    """Facts about the language model that rows come from, for the manifest of a store."""
    return {
        "model": source.record,
        **({"bos": list(language_model.bos)} if language_model.bos else {}),
        "weights_hash": language_model.weights_hash(),
        "reads_both_ways": language_model.reads_both_ways,
        "tokenizer_hash": language_model.tokenizer_hash(),
    }


def site_facts(language_model, site: Site, rehearsed: Rehearsed) -> dict[str, Any]:
    """Facts about the site that rows come from, for the manifest of a store."""
    return {
        "hook_name": site.hook_name,
        **site._asdict(),
        "tensor": site.tensor,
        "module": language_model.module_of(site),
        "d_model": rehearsed.width,
        "no_loss_recovered": rehearsed.trouble,
    }


def _hash_arrays(arrays: list[np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
