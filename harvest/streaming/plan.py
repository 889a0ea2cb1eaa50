"""The plan of a stream, which the processes that make rows and the one that reads them share. No torch, no jax.

Shapes: W windows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harvest.errors import InputError
from harvest.files import read_json, write_json
from harvest.model_pass import batch_windows
from harvest.request import Site
from harvest.row_formats import BYTES
from harvest.sources import place_of
from harvest.store import ActivationStore
from harvest.streaming.order import AHEAD, PARTS, Order
from harvest.streaming.ring import Ring

PLAN = "plan.json"
SCALE_BYTES = 4  # of a row in int8


@dataclass(frozen=True)
class StreamPlan:
    """The stores that keep the windows of a stream, one per site, and how their rows pass through the ring.

    Rows depend on nothing else: a process that is started again makes the same ones.
    """

    stores: tuple[str, ...]  # directories
    model: str  # location of the language model
    epochs: int
    seed: int
    shard_windows: int

    @classmethod
    def of(cls, stores: Sequence[ActivationStore], ring_gb: float, epochs: int, seed: int) -> StreamPlan:
        """The plan for a ring of so many gigabytes. Raises InputError as `windows_of_shard` does."""
        manifest = stores[0].manifest
        row_bytes = sum(s.d_model * BYTES[s.manifest["dtype"]] + SCALE_BYTES for s in stores)
        return cls(
            stores=tuple(str(store.directory.resolve()) for store in stores),
            model=place_of("model", manifest["model"]),
            epochs=epochs,
            seed=seed,
            shard_windows=windows_of_shard(ring_gb, manifest["seq_len"], stores[0].stream.positions * row_bytes),
        )

    def open_stores(self) -> dict[Site, ActivationStore]:
        stores = [ActivationStore(directory) for directory in self.stores]
        return {Site(store.manifest["layer"], store.manifest["hook"]): store for store in stores}

    def order(self, store: ActivationStore) -> Order:
        windows = store.stream
        rows_W = windows.kept_positions(0, windows.n_windows).sum(1)
        return Order(rows_W, self.epochs, self.seed, self.shard_windows)

    def ring(self, directory: Path, stores: dict[Site, ActivationStore]) -> Ring:
        facts = {**asdict(self), "stores": [store.fingerprint for store in stores.values()], "model": None}
        name = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=6).hexdigest()
        return Ring(directory, name, {site.hook_name: store.manifest["dtype"] for site, store in stores.items()})

    def write(self, directory: Path) -> None:
        write_json(directory / PLAN, asdict(self))

    @classmethod
    def read(cls, directory: Path) -> StreamPlan:
        record: dict[str, Any] = read_json(directory / PLAN, "start the training again")
        return cls(**record | {"stores": tuple(record["stores"])})


def windows_of_shard(ring_gb: float, seq_len: int, window_bytes: int) -> int:
    """The number of windows of a shard: whole batches of the model. Raises InputError if it would be less than one."""
    batch, shards = batch_windows(seq_len), PARTS + AHEAD
    batches = int(ring_gb * 1e9 / shards / window_bytes) // batch
    if not batches:
        least = shards * batch * window_bytes / 1e9
        raise InputError(f"--ring-gb {ring_gb}: the smallest ring for these rows has {least:.2g} GB: enlarge it")
    return batch * batches
