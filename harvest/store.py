"""The activation store: activation rows of a language model on disk. Imports neither torch nor jax.

    <store>/manifest.json                      written last: a directory without it is unfinished
    <store>/train/rows-00000.npy               one activation row per token position, in a format of `row_formats.py`
    <store>/train/scales-00000.npy             float32, only with int8 rows: the scale of each row
    <store>/train/tokens-00000.npy             int32, the token windows of the rows
    <store>/train/documents-00000.npy          int32, the document of each window (the first, if it has several)
    <store>/train/token_documents-00000.npy    int32, the document of each token, only if windows have several
    <store>/train/kept-00000.npy               bool, which positions of each window have a row, unless all have
    <store>/held_out/...                       the same for whole documents that are not used for training
    <store>/stream/...                         all training windows without rows, if their rows are streamed; train
                                               then has the rows of some of them
    <store>/<split>/shard-00000.json           only while unfinished: rows, checksums and statistics of a finished shard

Shapes: N rows, D width of the model.
A shard of a float16 store whose rows do not fit is in a wider format, which is then the `dtype` of the manifest. Rows
are read as float16 if that is the format of all shards, otherwise as float32.

The manifest has a checksum of itself and of every file. A process compares a file with its checksum when it first opens
the file. Training rows are compared in a thread while training runs (`compared_meanwhile`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from harvest.errors import InputError
from harvest.files import read_json
from harvest.request import IMPORTED
from harvest.row_formats import decoded
from harvest.stored_windows import AGAIN, StoredWindows, is_damaged, parts_of, shard_path

FORMAT = 2
SPLITS, STREAM = ("train", "held_out"), "stream"


class Split(StoredWindows):
    """The rows of one split in the order of the text, and their windows. Rows are read as `dtype`."""

    def __init__(
        self,
        directory: Path,
        name: str,
        shards: list[dict],
        positions: int,
        first_position: int,
        dtype: str,
        compared: bool = True,
    ):
        super().__init__(directory, name, shards, positions, first_position, compared)
        self.dtype, self.row_starts = dtype, [0, *accumulate(s["rows"] for s in shards)]

    def __reduce__(self):
        facts = self.directory, self.name, self.shards, self.positions, self.first_position, self.dtype
        return Split, (*facts, self.compared)

    def not_compared(self) -> Split:
        """The same split without comparison, for a caller that compares its files in a thread."""
        facts = self.directory, self.name, self.shards, self.positions, self.first_position, self.dtype
        return Split(*facts, compared=False)

    def __len__(self) -> int:
        return self.row_starts[-1]

    def __repr__(self) -> str:
        return f"Split({self.name}: {len(self):,} rows of {self.n_windows:,} windows, in {self.directory})"

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) as a new array [N, D], by sequential reads without memory maps."""
        pieces = [self._read_rows(*part) for part in parts_of(self.row_starts, start, stop)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def chunks(self, size: int, first: int = 0) -> Iterator[np.ndarray]:
        for start in range(first, len(self), size):
            yield self.read(start, start + size)

    def __getitem__(self, rows: int | Sequence[int] | np.ndarray) -> np.ndarray:
        """A copy of one row [D], or of rows in any order [N, D]. For consecutive rows `read` is faster."""
        rows_N = np.atleast_1d(np.asarray(rows, np.int64))
        if len(rows_N) and not 0 <= rows_N.min() <= rows_N.max() < len(self):
            raise IndexError(f"rows {rows_N.min()} to {rows_N.max()} are requested, but there are {len(self)} rows")
        shard_N = np.searchsorted(self.row_starts, rows_N, side="right") - 1
        out = np.empty((len(rows_N), self._map("rows", 0).shape[1]), self.dtype)
        for shard in map(int, np.unique(shard_N)):
            here_N = shard_N == shard
            at_N = rows_N[here_N] - self.row_starts[shard]
            out[here_N] = self._decoded(shard, self._map("rows", shard)[at_N], at_N)
        return out if np.ndim(rows) else out[0]

    def _read_rows(self, shard: int, start: int, stop: int) -> np.ndarray:
        path, mapped = shard_path(self.directory, self.name, "rows", shard), self._map("rows", shard)
        assert isinstance(mapped, np.memmap)
        width, dtype = mapped.shape[1], mapped.dtype
        offset = mapped.offset + start * width * dtype.itemsize
        values = np.fromfile(path, dtype, (stop - start) * width, offset=offset)
        if len(values) < (stop - start) * width:
            raise InputError(f"{path} ended early: {AGAIN}")
        return self._decoded(shard, values.reshape(-1, width), slice(start, stop))

    def _decoded(self, shard: int, stored_NxD: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
        scale_N = self._map("scales", shard)[rows] if "scales" in self.shards[shard]["files"] else None
        return decoded(stored_NxD, scale_N).astype(self.dtype, copy=False)


class ActivationStore:
    """A finished store, whose files are checked to exist in their full size.

    `train` and `held_out` are each a `Split`. `mean` and `std` are float64 [D] over the training rows. Raises
    InputError that names all files that are missing or of another size.
    """

    def __init__(self, directory: Path | str):
        self.directory = Path(directory).expanduser()
        path = self.directory / "manifest.json"
        if not path.exists():
            raise InputError(
                f"{self.directory} holds no finished activation store (no manifest.json): harvest it again"
            )
        self.manifest = read_json(path, AGAIN)
        if self.manifest.get("format") != FORMAT:
            raise InputError(f"{path} has format {self.manifest.get('format')}, but must have {FORMAT}: {AGAIN}")
        self._raise_for([path for path, _ in self.files() if not path.exists()], "missing")
        other = [path for path, facts in self.files() if path.stat().st_size != facts["bytes"]]
        self._raise_for(other, "of another size")
        self.mean = np.array(self.manifest["mean"])
        self.std = np.array(self.manifest["std"])
        self.d_model: int = len(self.mean)
        first, shards = 0 if self.manifest["keep_first_position"] else 1, self.manifest["shards"]
        positions, dtype = self.manifest["seq_len"] - first, self.manifest["dtype"]
        dtype = "float16" if dtype == "float16" else "float32"
        self.train, self.held_out = (
            Split(self.directory, name, shards.get(name, []), positions, first, dtype) for name in SPLITS
        )
        self.stream = StoredWindows(self.directory, STREAM, shards.get(STREAM, []), positions, first, compared=True)

    def places(self, rows_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(window, position in it) of rows, [N] each. Held-out rows and windows are numbered after training ones."""
        held_out_N = rows_N >= len(self.train)
        here = self.train.places(np.where(held_out_N, 0, rows_N))
        there = self.held_out.places(np.where(held_out_N, rows_N - len(self.train), 0))
        windows_N = np.where(held_out_N, there[0] + self.train.n_windows, here[0])
        return windows_N, np.where(held_out_N, there[1], here[1])

    def __repr__(self) -> str:
        m = self.manifest
        model, text = ("bundled" if m[kind]["fell_back"] else m[kind]["asked"] for kind in ("model", "dataset"))
        if m.get("control"):
            model += f" ({m['control']})"
        what, origin = f"{m['hook_name']} of {model}", f"windows of {m['seq_len']} tokens of {text}"
        if m["hook"] == IMPORTED:
            what, origin = model, text
        return (
            f"ActivationStore of {what}, {self.d_model:,} wide\n"
            f"  {len(self.train):,} training rows and {len(self.held_out):,} held-out ones, from {origin}\n"
            f"  in {self.directory}"
        )

    @property
    def fingerprint(self) -> str:
        """A checksum of all files, from the manifest."""
        return f"{zlib.crc32(np.array([facts['crc32'] for _, facts in self.files()], '<u4').tobytes()):08x}"

    def rename(self, model: Mapping[str, Any], dataset: Mapping[str, Any]) -> None:
        """Describe the model and text by other records, because who harvested the rows may know them by other names."""
        self.manifest |= {"model": model, "dataset": dataset}

    def files(self) -> Iterator[tuple[Path, dict]]:
        for split, shards in self.manifest["shards"].items():
            for index, record in enumerate(shards):
                for name, facts in record["files"].items():
                    yield shard_path(self.directory, split, name, index), facts

    def verify(self, go_on: Callable[[], bool] = lambda: True) -> None:
        """Compare all files with their checksums. Raises InputError that names the files that differ.

        `go_on` is called before each file; the comparison stops if it returns False.
        """
        damaged = [path for path, facts in self.files() if go_on() and is_damaged(path, facts["crc32"])]
        self._raise_for(damaged, "damaged")

    def _raise_for(self, paths: list[Path], what: str) -> None:
        if paths:
            names = ", ".join(str(p.relative_to(self.directory)) for p in paths)
            raise InputError(f"{what} in the activation store {self.directory}: {names}: {AGAIN}")


@contextmanager
def compared_meanwhile(stores: Sequence[ActivationStore]) -> Iterator[Callable[[], None]]:
    """Verify stores in a thread. Yields a function that waits for the result and raises InputError as `verify` does.

    The thread ends with the body of the `with` statement, even if it has not finished.
    """
    left = False

    def verify() -> None:
        for store in stores:
            store.verify(go_on=lambda: not left)

    with ThreadPoolExecutor(max_workers=1) as thread:
        answer = thread.submit(verify)
        try:
            yield answer.result
        finally:
            left = True
