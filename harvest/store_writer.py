"""Writing an activation store (`store.py`): its shards, then their statistics and the manifest.

Shapes: N rows, W windows, T tokens per window, D width of the model.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from harvest.errors import InputError
from harvest.files import checksum, read_json, write_atomically, write_json
from harvest.row_formats import BYTES, decoded, encoded
from harvest.store import FORMAT, SPLITS, STREAM, ActivationStore
from harvest.stored_windows import shard_path

STREAM_TOKENS = 1 << 23  # in a file of the windows whose rows are streamed
MOST_LOST = 1e-3  # share of the variance that int8 may lose, and with it explained variance


def window_arrays(tokens_WxT: np.ndarray, documents_W: np.ndarray) -> dict[str, np.ndarray]:
    return {"tokens": tokens_WxT.astype(np.int32), "documents": documents_W.astype(np.int32)}


@dataclass
class Moments:
    """Count, mean and summed squared deviation per dimension in float64, merged by Chan et al.'s formula (1979)."""

    count: int
    mean_D: np.ndarray
    m2_D: np.ndarray
    norm_sum: float

    @classmethod
    def of(cls, x_NxD: np.ndarray) -> Moments:
        x_NxD = x_NxD.astype(np.float64)
        mean_D = x_NxD.mean(0)
        norms = np.sqrt(np.square(x_NxD).sum(1))
        return cls(len(x_NxD), mean_D, np.square(x_NxD - mean_D).sum(0), float(norms.sum()))

    def merge(self, other: Moments) -> Moments:
        count = self.count + other.count
        delta_D = other.mean_D - self.mean_D
        mean_D = self.mean_D + delta_D * (other.count / count)
        m2_D = self.m2_D + other.m2_D + np.square(delta_D) * (self.count * other.count / count)
        return Moments(count, mean_D, m2_D, self.norm_sum + other.norm_sum)

    def to_json(self) -> dict:
        return {**asdict(self), "mean_D": self.mean_D.tolist(), "m2_D": self.m2_D.tolist()}

    @classmethod
    def from_json(cls, record: dict) -> Moments:
        return cls(record["count"], np.array(record["mean_D"]), np.array(record["m2_D"]), record["norm_sum"])


class StoreWriter:
    """Writes a store shard by shard. A shard is finished when its `shard-*.json` exists, and is not written again.

    `splits` is "train" and "held_out", or only "held_out"; statistics are those of the first one. Several processes may
    write different shards of a store.
    """

    def __init__(self, directory: Path, description: dict, splits: Sequence[str] = SPLITS):
        self.directory = Path(directory)
        self.description, self.splits = description, splits
        self.streamed: list[dict] = []

    def has_shard(self, split: str, index: int, tokens_WxT: np.ndarray) -> bool:
        """Whether a shard of exactly these windows is finished and undamaged."""
        try:
            record = read_json(self._record_path(split, index), "")
        except (InputError, FileNotFoundError):
            return False
        paths = {name: shard_path(self.directory, split, name, index) for name in record["files"]}
        if not all(path.exists() and checksum(path) == record["files"][name]["crc32"] for name, path in paths.items()):
            return False
        return np.array_equal(np.load(paths["tokens"], allow_pickle=False), tokens_WxT)

    def add_shard(
        self,
        split: str,
        index: int,
        rows_NxD: np.ndarray,
        tokens_WxT: np.ndarray,
        documents_W: np.ndarray,
        **others: np.ndarray,
    ) -> None:
        """Write rows [N, D] in the format of the description, by default as they are; wider if they do not fit.

        `others` are further arrays of the windows (see `store.py`). Raises InputError for rows that are not finite, and
        if int8 loses more than MOST_LOST of their variance.
        """
        where = f"activations at {self.description.get('hook_name')}, shard {index}"
        if not np.isfinite(rows_NxD).all():
            raise InputError(
                f"{where}: a value is not finite: use --model-dtype float32, or check the weights of the model"
            )
        dtype = self.description.get("dtype", str(rows_NxD.dtype))
        files = encoded(rows_NxD, dtype)
        stored_NxD = decoded(files["rows"], files.get("scales"))
        if not np.isfinite(stored_NxD).all():
            dtype = "bfloat16" if self.description.get("model_dtype") == "bfloat16" else "float32"
            files = encoded(rows_NxD, dtype)
            stored_NxD = decoded(files["rows"], None)
        moments = Moments.of(stored_NxD)
        record: dict = {"rows": len(rows_NxD), "windows": len(tokens_WxT), "dtype": dtype}
        if dtype == "int8":
            record["error"] = float(np.square(rows_NxD - stored_NxD, dtype=np.float64).sum())
            if record["error"] > MOST_LOST * moments.m2_D.sum():
                lost = record["error"] / moments.m2_D.sum()
                raise InputError(
                    f"{where}: int8 would lose {lost:.2%} of their variance, because single values are much larger "
                    "than the others of their row: use --store-dtype float16"
                )
        record["files"] = self._write(split, index, files | window_arrays(tokens_WxT, documents_W) | others)
        record["moments"] = moments.to_json()
        write_json(self._record_path(split, index), record)

    def add_stream(self, tokens_WxT: np.ndarray, documents_W: np.ndarray, **others: np.ndarray) -> None:
        """Write the windows whose rows are streamed, without their rows."""
        self.streamed = []
        step = max(1, STREAM_TOKENS // tokens_WxT.shape[1])
        for index, start in enumerate(range(0, len(tokens_WxT), step)):
            part = slice(start, start + step)
            arrays = window_arrays(tokens_WxT[part], documents_W[part])
            arrays |= {name: array_WxT[part] for name, array_WxT in others.items()}
            self.streamed.append({"windows": len(arrays["tokens"]), "files": self._write(STREAM, index, arrays)})

    def _write(self, split: str, index: int, arrays: dict[str, np.ndarray]) -> dict[str, dict[str, int]]:
        """Write the files of a shard. Returns the length and checksum of each."""
        files = {}
        for name, array in arrays.items():
            buffer = io.BytesIO()  # numpy hides that the disk is full when it writes to a file
            np.save(buffer, array, allow_pickle=False)
            data = buffer.getbuffer()
            write_atomically(shard_path(self.directory, split, name, index), lambda f, data=data: f.write(data))
            files[name] = {"bytes": len(data), "crc32": zlib.crc32(data)}
        return files

    def finish(self, expected: Mapping[str, int] | None = None) -> ActivationStore:
        """Merge the statistics, write the manifest and remove the records that were only needed to resume.

        `expected` is the number of shards of each split, by default that of those which are there.
        """
        shards, moments, dtypes, error = {}, None, set(), 0.0
        for split in self.splits:
            paths = sorted((self.directory / split).glob("shard-*.json"))
            if expected is not None:  # a network's file system may list new files of other machines late
                paths = [self._record_path(split, index) for index in range(expected[split])]
            if absent := [path for path in paths if not path.exists()]:
                raise InputError(
                    f"{absent[0]}, which another process of the harvest wrote, is not there: give all of them the same "
                    "--cache-dir, in a directory that they share"
                )
            records = [read_json(p, "delete it, and the same command harvests its rows again") for p in paths]
            if not records:
                raise InputError(f"the store {self.directory} would have no {split} rows: use more or longer text")
            split_moments = [Moments.from_json(r.pop("moments")) for r in records]
            dtypes |= {r.pop("dtype", self.description.get("dtype")) for r in records}
            errors = [r.pop("error", 0.0) for r in records]
            if split == self.splits[0]:  # the normalization of training rows must not depend on held-out rows
                for m in split_moments:
                    moments = m if moments is None else moments.merge(m)
                error = sum(errors)
            shards[split] = records
        assert moments is not None
        shards |= {STREAM: self.streamed} if self.streamed else {}
        manifest = {
            "format": FORMAT,
            **self.description,
            "dtype": max(dtypes, key=[*BYTES].index),
            **({"lost_variance": error / float(moments.m2_D.sum())} if error else {}),
            "rows": moments.count,
            "mean": moments.mean_D.tolist(),
            "std": np.sqrt(moments.m2_D / moments.count).tolist(),
            "mean_norm": moments.norm_sum / moments.count,
            "shards": shards,
        }
        write_json(self.directory / "manifest.json", manifest)
        for split in self.splits:
            for path in (self.directory / split).glob("shard-*.json"):
                path.unlink()
        return ActivationStore(self.directory)

    def _record_path(self, split: str, index: int) -> Path:
        return self.directory / split / f"shard-{index:05d}.json"
