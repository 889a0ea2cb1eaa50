"""The choice of sites, and of a text or a store of rows, on which dictionaries are measured, from the flags."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.quality.opened import Opened, compare_models, refuse_another_width
from harvest.errors import InputError
from harvest.flags import ABOVE_0, COUNT, DEVICE, NUMBER, TEXT, WHERE, Flags, flag
from harvest.request import BOS, HOOK_NAME, HOOKS, MODEL_DTYPES, TWO_WINDOWS, HarvestRequest, Site, default_cache_dir

if TYPE_CHECKING:
    from harvest.sources import Source
    from harvest.store import ActivationStore

HARVEST = ("model_name", "dataset", "text_column", "n_samples", "seq_len", "bos", "model_dtype")  # flags of training
N_SAMPLES, SEQ_LEN = 1000, 128  # used if neither a run nor a dictionary's configuration has them


@dataclass(frozen=True)
class EvaluateSettings(Flags):
    """The model, hooks and text to measure on. By default, the model and text are those of the first dictionary.

    Each dictionary is by default measured at its own hook.
    """

    model_name: str | None = flag(
        None, "hub name, TransformerLens alias, local directory or 'bundled' (default: the first dictionary's model)"
    )
    layer: int | None = flag(
        None, "layer to measure all dictionaries at (default: the layer that each was trained on)", NUMBER
    )
    hook: str | None = flag(
        None, "hook to measure all dictionaries at (default: the hook that each was trained on)", choices=HOOKS
    )
    hook_name: str | None = flag(None, "layer and hook as one name, for example blocks.8.hook_resid_pre")
    dataset: str | None = flag(
        None, "text to measure on, in any form that training accepts (default: the text of the first dictionary)"
    )
    text_column: str | None = flag(None, "column of --dataset to read (default: as in training)", TEXT)
    n_samples: int | None = flag(
        None,
        "token windows to harvest (default: as many as for the training of the first dictionary; "
        f"{N_SAMPLES} if that is not known, or with --dataset)",
        TWO_WINDOWS,
    )
    seq_len: int | None = flag(
        None, f"tokens per window (default: as in the training of the first dictionary, or {SEQ_LEN})", COUNT
    )
    held_out: float | None = flag(
        None,
        "share of the documents to measure on (default: all; on the text of a run, the documents that it held out)",
        ABOVE_0,
    )
    keep_first_position: bool = flag(False, "also measure at the first position of each window")
    bos: str | None = flag(
        None, "run each window behind BOS, as in training (default: as the first dictionary was trained)", choices=BOS
    )
    model_dtype: str | None = flag(
        None,
        "number format in which the model runs (default: as for the first run, or auto: as published on an "
        "accelerator, float32 on a CPU)",
        choices=MODEL_DTYPES,
    )
    device: str = flag("auto", WHERE, DEVICE)
    ce_windows: int = flag(256, "number of windows on which cross-entropy recovered is measured; 0 skips it", NUMBER)
    rows: str | None = flag(
        None,
        "measure on the held-out rows of this store instead of a text (default: as in training with --rows)",
        TEXT,
    )
    cache_dir: Path = flag(default_cache_dir(), "where harvested activations and compiled programs are kept")


def on_text(
    opened: list[Opened],
    options: EvaluateSettings,
    sites: list[Site],
    on_progress: Callable[[str, int, int], None],
    say: Callable[[str], None],
) -> tuple[HarvestRequest, dict[Site, ActivationStore]]:
    """(the request, the store of each site) for a measurement on a text."""
    from harvest.capture import harvest
    from harvest.sources import resolve

    request = request_of(opened[0], options, sites)
    model, dataset = resolve(request, options.cache_dir)
    request = replace(request, held_out=share_of(opened, options, dataset, say))
    compare_models(opened, options.model_name, model, say)
    refuse_another_width(opened, sites, {site: model.widths.get(site.hook) for site in sites}, model.asked)
    stores = harvest(
        request,
        options.cache_dir,
        on_progress=on_progress,
        say=say,
        sources=(model, dataset),
        loss_recovered=bool(options.ce_windows),
        device=options.device,
    )
    return request, stores


def rows_of(first: Opened, options: EvaluateSettings) -> str | None:
    """The store to measure on, if it is not a text: by default that of the first dictionary's run."""
    elsewhere = options.model_name or options.dataset
    if options.rows and elsewhere:
        raise InputError("--rows measures on a store, --model-name and --dataset on a text: give only one of them")
    trained = first.run["asked"]["harvest"].get("rows") if first.run and not elsewhere else None
    return options.rows or trained


def on_stored_rows(
    rows: str, opened: list[Opened], sites: list[Site], say: Callable[[str], None]
) -> tuple[HarvestRequest, dict[Site, ActivationStore]]:
    """(the request, the store of its site) for a measurement on the held-out rows of a store."""
    from harvest.imports.stored_rows import request_for_rows, stored_rows

    request = request_for_rows(HarvestRequest(rows=rows))
    for o, site in zip(opened, sites, strict=True):
        if site not in request.sites:
            raise InputError(
                f"{o.directory} is for {site.hook_name}, the rows in {rows} are of {request.sites[0].hook_name}: give "
                "rows of that hook"
            )
    return request, stored_rows(request, say)


def sites_of(opened: list[Opened], options: EvaluateSettings) -> list[Site]:
    if options.hook_name and (options.layer is not None or options.hook):
        raise InputError("--hook-name already gives the layer and the hook: leave --layer and --hook out")
    if options.hook_name:
        return [site_named(options.hook_name, "--hook-name")] * len(opened)
    if options.layer is not None and options.hook:
        return [Site(options.layer, options.hook)] * len(opened)
    sites = []
    for o in opened:
        if not o.dictionary.hook_name:
            raise InputError(f"{o.directory} does not record its hook: give --hook-name")
        trained = site_named(o.dictionary.hook_name, f"{o.directory}: its hook")
        if (head := o.dictionary.head) is not None:
            trained = trained._replace(hook=f"{trained.hook}.{head}")
        layer = trained.layer if options.layer is None else options.layer
        sites.append(Site(layer, options.hook or trained.hook))
    return sites


def site_named(hook_name: str, what: str) -> Site:
    if site := Site.named(hook_name):
        return site
    raise InputError(f"{what} {hook_name}: must be {HOOK_NAME.words}")


def request_of(first: Opened, options: EvaluateSettings, sites: list[Site]) -> HarvestRequest:
    """The harvest that the flags request, completed by what the first dictionary was trained on.

    Without flags it equals the harvest of the first dictionary's run, so that the run's store is found in the cache.
    """
    from harvest.sources import name_of

    if first.run:
        facts = first.run["stores"][0]
        settings = dict(first.run["asked"]["harvest"])
        settings |= {"model_name": name_of("model", facts["model"]), "dataset": name_of("dataset", facts["dataset"])}
        settings["model_dtype"] = facts.get("model_dtype", "float32")
    else:
        settings = {
            "model_name": first.dictionary.model_name,
            "dataset": first.dictionary.dataset_path,
            "store_dtype": "float32",
            "n_samples": first.dictionary.n_samples or N_SAMPLES,
            "seq_len": first.dictionary.context_size or SEQ_LEN,
            "bos": "on" if first.dictionary.prepend_bos else "off",
        }
    if options.dataset:
        settings |= {"n_samples": N_SAMPLES, "text_column": None}
    given = {name: getattr(options, name) for name in HARVEST}
    settings |= {name: value for name, value in given.items() if value is not None}
    for name, flag_name in (("model_name", "--model-name"), ("dataset", "--dataset")):
        if settings[name] is None and not first.run:
            raise InputError(f"{first.directory} does not record its {name.replace('_', ' ')}: give {flag_name}")
    settings["keep_first_position"] = options.keep_first_position or settings.get("keep_first_position", False)
    settings |= {"layer": tuple(sorted({s.layer for s in sites})), "hook": tuple(sorted({s.hook for s in sites}))}
    return HarvestRequest.from_json(settings | {"held_out": 1.0})


def share_of(opened: list[Opened], options: EvaluateSettings, dataset: Source, say: Callable[[str], None]) -> float:
    """The share of documents to measure on: by default the documents that none of these runs trained on.

    Documents are held out by a hash, so the documents of a smaller share are contained in those of a larger one.
    """
    from harvest.sources import place_of, same_name

    shares, unrecorded = [1.0], []
    for o in opened:
        trained_on = place_of("dataset", o.run["stores"][0]["dataset"]) if o.run else o.dictionary.dataset_path
        if trained_on is None or same_name(trained_on) != same_name(dataset.location):
            continue
        if o.run:
            shares.append(o.run["asked"]["harvest"]["held_out"])
        elif (share := o.dictionary.held_out) is not None:
            shares.append(share)
        else:
            unrecorded.append(o.directory)
    share = min(shares)
    if options.held_out is not None:
        if options.held_out > share:
            say(
                f"--held-out {options.held_out:g} is more than the share of {share:g} that was held out from training: "
                "the metrics also rest on documents of the training, and may be too good"
            )
        return options.held_out
    used = "none is left out" if share == 1 else "those that the runs held out are used"
    for directory in unrecorded:
        say(
            f"{directory} was trained on this text and does not record on which documents: {used}, "
            "so its metrics may be too good"
        )
    return share
