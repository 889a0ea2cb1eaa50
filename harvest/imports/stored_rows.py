"""Training on the rows of a store that is there already, imported or harvested, instead of a model and a text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from harvest.errors import InputError
from harvest.files import FILE_NAME
from harvest.messages import Say, say_stores
from harvest.request import IMPORTED, HarvestRequest, Site
from harvest.sources import name_of
from harvest.store import ActivationStore


def request_for_rows(request: HarvestRequest) -> HarvestRequest:
    """A request for the rows of a store, completed by what its manifest says; other requests as they are.

    Raises InputError if there is no such store, or if it has no training rows.
    """
    if request.rows is None:
        return request
    if not (Path(request.rows).expanduser() / "manifest.json").exists():
        problem = "is no store" if Path(request.rows).expanduser().exists() else "there is no such directory"
        raise InputError(
            f"--rows {request.rows}: {problem}: give a store, such as one that `import-rows FILE --to ROWS` makes"
        )
    store = ActivationStore(request.rows)
    path, manifest = store.directory.resolve(), store.manifest
    if not len(store.train) or not len(store.held_out):
        raise InputError(f"--rows {request.rows}: has rows of only one split: give a store with training rows")
    if not re.fullmatch(FILE_NAME, path.name):
        raise InputError(
            f"--rows {request.rows}: its name must have only letters, digits and any of _ + - .: rename it"
        )
    bos = manifest.get("bos", [])  # one of the tokens of a window in a request, but not in a store
    windows = store.train.n_windows + store.held_out.n_windows
    return replace(
        request,
        rows=str(path),
        model_name=None if manifest["hook"] == IMPORTED else name_of("model", manifest["model"]),
        layer=(manifest["layer"],),
        hook=(manifest["hook"],),
        n_samples=windows,
        seq_len=manifest["seq_len"] + len(bos),
        held_out=store.held_out.n_windows / windows,
        keep_first_position=manifest["keep_first_position"] and not bos,
        bos="on" if bos else "off",
        store_dtype=manifest["dtype"],
        model_dtype=manifest.get("model_dtype", "float32"),
        control=manifest.get("control"),
    )


def documents_of(store: ActivationStore, tokenizer: Any) -> Iterator[str]:
    """The documents of a store as texts, in the order of their numbers; empty for numbers that are not used."""
    windows = [(split, number) for split in (store.train, store.held_out) for number in range(split.n_windows)]
    documents_W = np.concatenate([store.train.documents, store.held_out.documents])
    order_W = np.argsort(documents_W, kind="stable")
    sorted_W = documents_W[order_W]
    for document in range(int(sorted_W[-1]) + 1):
        first, end = np.searchsorted(sorted_W, [document, document + 1])
        of_document = (windows[w] for w in order_W[first:end].tolist())
        yield "".join(tokenizer.decode(split.windows[number].tolist()) for split, number in of_document)


def stored_rows(request: HarvestRequest, say: Say) -> dict[Site, ActivationStore]:
    """The store of a request from `request_for_rows`."""
    assert request.rows is not None
    stores = {request.sites[0]: ActivationStore(request.rows)}
    say_stores(stores, say)
    return stores
