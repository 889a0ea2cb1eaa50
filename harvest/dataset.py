"""Activations as a torch data set, for use in other training loops.

from torch.utils.data import DataLoader
from harvest import TransformerActivationDataset

dataset = TransformerActivationDataset(model_name="gpt2-small", layer=0, n_samples=1000)
for batch in DataLoader(dataset, batch_size=64, shuffle=True):
    batch["activations"]  # float32 [64, 768]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from harvest.capture import harvest
from harvest.errors import InputError
from harvest.messages import Progress, Say, ignore
from harvest.request import HarvestRequest, default_cache_dir
from harvest.store import SPLITS, ActivationStore


class TransformerActivationDataset(Dataset):
    """Activation rows of a language model. An item is {"activations": float32 [D]}, a batch [B, D].

    The rows are also under the key "pixel_values", which data sets of images use, so loops for images can read them.

    The rows are those of a `store`. Without one, the arguments are those of `HarvestRequest`: the first use harvests,
    later uses read the store in `cache_dir`. `split` is "train" or "held_out". The attribute `store` holds statistics
    and the origin of each row. Raises InputError as `harvest` does.
    """

    def __init__(
        self,
        store: ActivationStore | None = None,
        *,
        split: str = "train",
        cache_dir: Path | str | None = None,
        on_progress: Progress = ignore,
        say: Say = print,
        **arguments: Any,
    ):
        if split not in SPLITS:
            raise InputError(f"split {split!r}: must be one of {', '.join(SPLITS)}")
        if store is not None and (arguments or cache_dir):
            other = next(iter(arguments), "cache_dir")
            raise InputError(f"a data set of a store holds the rows that it has: leave {other} out, or the store")
        self.store = store or self._harvested(HarvestRequest(**arguments), cache_dir, on_progress, say)
        self.rows = self.store.train if split == "train" else self.store.held_out

    @staticmethod
    def _harvested(
        request: HarvestRequest, cache_dir: Path | str | None, on_progress: Progress, say: Say
    ) -> ActivationStore:
        if len(request.sites) > 1:
            raise InputError(
                "a data set holds the rows of one site, but several are given: give one layer and one hook"
            )
        (store,) = harvest(request, Path(cache_dir or default_cache_dir()), on_progress, say).values()
        return store

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return item(torch.from_numpy(self.rows[row]).float())

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """A batch, read at once. The DataLoader calls this method if a data set has it."""
        return [item(row_D) for row_D in torch.from_numpy(self.rows[rows]).float()]


def item(row_D: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"activations": row_D, "pixel_values": row_D}
