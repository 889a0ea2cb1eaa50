"""The ring between the language model and the training: shards of rows, one file each, that come and go.

A shard that is there is whole: it was written under another name and renamed. Imports neither torch nor jax.

Shapes: N rows, D width of a site.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from harvest.errors import InputError
from harvest.files import array_checksum, write_atomically
from harvest.row_formats import decoded, encoded

SUFFIX = ".safetensors"


class Ring:
    """The shards in a folder. `name` tells them from those of other settings; `dtypes` are by the name of a site."""

    def __init__(self, directory: Path, name: str, dtypes: Mapping[str, str]):
        self.directory, self.name, self.dtypes = directory, name, dict(dtypes)

    def path(self, shard: int) -> Path:
        return self.directory / f"{self.name}-{shard:06d}{SUFFIX}"

    def there(self) -> set[int]:
        """The numbers of the shards that are there."""
        found = self.directory.glob(f"{self.name}-*{SUFFIX}")
        return {int(path.name.removesuffix(SUFFIX).rpartition("-")[2]) for path in found}

    def write(self, shard: int, rows: Mapping[str, np.ndarray]) -> None:
        """Write the rows [N, D] of each site. Raises InputError if a value is not finite or does not fit the format."""
        arrays: dict[str, np.ndarray] = {}
        for site, rows_NxD in rows.items():
            where = f"activations at {site}, shard {shard} of the stream"
            if not np.isfinite(rows_NxD).all():
                raise InputError(
                    f"{where}: a value is not finite: use --model-dtype float32, or check the weights of the model"
                )
            files = encoded(rows_NxD, self.dtypes[site])
            if not np.isfinite(decoded(files["rows"], files.get("scales"))).all():
                raise InputError(f"{where}: a value does not fit {self.dtypes[site]}: use --store-dtype bfloat16")
            arrays |= {f"{site}/{part}": array for part, array in files.items()}
        content = save(arrays, {"crc32": json.dumps({name: array_checksum(a) for name, a in arrays.items()})})
        write_atomically(self.path(shard), lambda file: file.write(content))

    def is_whole(self, shard: int) -> bool:
        """Return whether a shard exists with the content that was written."""
        try:
            with safe_open(self.path(shard), "numpy") as file:
                checksums = json.loads(file.metadata()["crc32"])
                return all(array_checksum(file.get_tensor(name)) == checksums[name] for name in checksums)
        except (FileNotFoundError, SafetensorError, KeyError, TypeError, ValueError):
            return False

    def read(self, shard: int, start: int, stop: int) -> list[np.ndarray]:
        """Rows [start, stop) of a shard, [N, D] for each site."""
        with safe_open(self.path(shard), "numpy") as file:
            names, rows = file.keys(), []
            for site in self.dtypes:
                scales = f"{site}/scales"
                scale_N = file.get_slice(scales)[start:stop] if scales in names else None
                rows.append(decoded(file.get_slice(f"{site}/rows")[start:stop], scale_N))
            return rows

    def remove(self, shard: int) -> None:
        self.path(shard).unlink(missing_ok=True)
