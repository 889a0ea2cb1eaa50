"""Activations as a torch data set, for use in other training loops.

from torch.utils.data import DataLoader
from harvest import TransformerActivationDataset

dataset = TransformerActivationDataset(model_name="gpt2-small", layer=0, n_samples=1000)
for batch in DataLoader(dataset, batch_size=64, shuffle=True):
    batch["pixel_values"]  # float32 [64, 768]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from harvest.capture import Progress, Say, harvest, ignore
from harvest.errors import InputError
from harvest.request import HarvestRequest, default_cache_dir
from harvest.store import SPLITS


class TransformerActivationDataset(Dataset):
    """Activation rows of a language model. An item is {"pixel_values": float32 [D]}, a batch [B, D].

    The first use harvests; later uses read the store in `cache_dir`. The arguments are those of `HarvestRequest`, and
    `split` is "train" or "held_out". The attribute `store` holds statistics and the origin of each row. Raises
    InputError as `harvest` does.
    """

    def __init__(
        self,
        *,
        split: str = "train",
        cache_dir: Path | str | None = None,
        on_progress: Progress = ignore,
        say: Say = print,
        **arguments: Any,
    ):
        if split not in SPLITS:
            raise InputError(f"split {split!r}: must be one of {', '.join(SPLITS)}")
        request = HarvestRequest(**arguments)
        if len(request.sites) > 1:
            raise InputError(
                "a data set holds the rows of one site, but several are given: give one layer and one hook"
            )
        (self.store,) = harvest(request, Path(cache_dir or default_cache_dir()), on_progress, say).values()
        self.rows = self.store.train if split == "train" else self.store.held_out

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.from_numpy(self.rows[row]).float()}

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """A batch, read at once. The DataLoader calls this method if a data set has it."""
        return [{"pixel_values": row_D} for row_D in torch.from_numpy(self.rows[rows]).float()]
