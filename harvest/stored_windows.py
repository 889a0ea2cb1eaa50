"""The token windows of a split of an activation store, and which of their positions have a row.

Shapes: N rows, W windows, T tokens per window, P positions from `first_position` on.
Rows are in the order of their windows and positions. Unless a shard says which positions it kept, all of them have a
row: row r of a split is then position `first_position + r % positions` of window `r // positions`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np

from harvest.errors import InputError
from harvest.files import checksum

OPEN_MAPS = 256  # each holds a file descriptor, of which a process commonly has 1024
AGAIN = "delete the store and harvest again"


class StoredWindows:
    """The windows of one split in the order of the text, read through memory maps.

    If `compared`, files are compared with their checksums before they are read; a damaged one raises InputError.
    """

    def __init__(
        self, directory: Path, name: str, shards: list[dict], positions: int, first_position: int, compared: bool
    ):
        self.directory, self.name, self.shards, self.compared = directory, name, shards, compared
        self.positions, self.first_position = positions, first_position
        self.window_starts = [0, *accumulate(s["windows"] for s in shards)]
        self._map = lru_cache(OPEN_MAPS)(self._open)

    def __reduce__(self):
        """Pickle without open files and cached arrays, which a worker process opens itself."""
        facts = self.directory, self.name, self.shards, self.positions, self.first_position, self.compared
        return StoredWindows, facts

    @cached_property
    def windows(self) -> np.ndarray:
        """All token windows, int32 [W, T]."""
        return self._of_windows("tokens", 0, self.n_windows)

    @cached_property
    def documents(self) -> np.ndarray:
        """The document of each window, int32 [W]."""
        return self._of_windows("documents", 0, self.n_windows)

    @property
    def n_windows(self) -> int:
        return self.window_starts[-1]

    @property
    def keeps_all(self) -> bool:
        """Whether all positions from `first_position` on have a row."""
        return self._kept_WxP is None

    def read_windows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens [W, T], document [W]) of windows [start, stop), without reading the others."""
        return self._of_windows("tokens", start, stop), self._of_windows("documents", start, stop)

    def some_windows(self, windows_W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens [W, T], mask of the positions that have a row [W, P]) of windows in any order."""
        shard_W = np.searchsorted(self.window_starts, windows_W, side="right") - 1
        tokens_WxT = np.empty((len(windows_W), self._map("tokens", 0).shape[1]), np.int32)
        for shard in map(int, np.unique(shard_W)):
            here_W = shard_W == shard
            tokens_WxT[here_W] = self._map("tokens", shard)[windows_W[here_W] - self.window_starts[shard]]
        if self._kept_WxP is None:
            return tokens_WxT, np.ones((len(windows_W), self.positions), bool)
        return tokens_WxT, self._kept_WxP[windows_W]

    def row_documents(self, start: int, stop: int) -> np.ndarray:
        """The document of each row of windows [start, stop), [N]."""
        kept_WxP = self.kept_positions(start, stop)
        if not self._has("token_documents"):
            return np.repeat(self._of_windows("documents", start, stop), kept_WxP.sum(1))
        return self._of_windows("token_documents", start, stop)[:, self.first_position :][kept_WxP]

    def kept_positions(self, start: int, stop: int) -> np.ndarray:
        """A mask of the positions of windows [start, stop) that have a row, bool [W, P]."""
        if self._kept_WxP is not None:
            return self._kept_WxP[start:stop]
        return np.ones((max(0, min(stop, self.n_windows) - start), self.positions), bool)

    def rows_between(self, start: int, stop: int) -> tuple[int, int]:
        """The numbers of the first row of windows [start, stop), and of the row after their last."""
        start, stop = min(start, self.n_windows), min(stop, self.n_windows)
        if self._first_row_W is not None:
            return int(self._first_row_W[start]), int(self._first_row_W[stop])
        return start * self.positions, stop * self.positions

    def window_rows(self, windows_W: np.ndarray) -> np.ndarray:
        """Numbers of the rows of these windows, [N]."""
        if self._first_row_W is None:
            return (windows_W[:, None] * self.positions + np.arange(self.positions)).ravel()
        first_W, end_W = self._first_row_W[windows_W], self._first_row_W[windows_W + 1]
        runs = [np.arange(first, end) for first, end in zip(first_W, end_W, strict=True)]
        return np.concatenate([np.empty(0, np.int64), *runs])

    def places(self, rows_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(window, position in the window) of rows, [N] each."""
        if self._first_row_W is None or self._kept_WxP is None:
            windows_N, offsets_N = np.divmod(rows_N, self.positions)
            return windows_N, offsets_N + self.first_position
        windows_N = np.searchsorted(self._first_row_W, rows_N, side="right") - 1
        before_N = np.asarray(rows_N) - self._first_row_W[windows_N]
        offsets_N = (np.cumsum(self._kept_WxP[windows_N], 1) > before_N[:, None]).argmax(1)
        return windows_N, offsets_N + self.first_position

    @cached_property
    def _kept_WxP(self) -> np.ndarray | None:
        """A mask of the positions that have a row, [W, P]; None if all have."""
        if not self._has("kept"):
            return None
        whole = (np.ones((shard["windows"], self.positions), bool) for shard in self.shards)
        return np.concatenate(
            [
                self._map("kept", number) if "kept" in self.shards[number]["files"] else ones_WxP
                for number, ones_WxP in enumerate(whole)
            ]
        )

    @cached_property
    def _first_row_W(self) -> np.ndarray | None:
        """The number of each window's first row, and the number of rows at the end; None if all positions have one."""
        return None if self._kept_WxP is None else np.append(0, np.cumsum(self._kept_WxP.sum(1)))

    def _has(self, array: str) -> bool:
        return any(array in shard["files"] for shard in self.shards)

    def _of_windows(self, array: str, start: int, stop: int) -> np.ndarray:
        parts = parts_of(self.window_starts, start, stop)
        return np.concatenate([self._map(array, shard)[first:last] for shard, first, last in parts])

    def context(self, row: int) -> tuple[np.ndarray, int, int]:
        """The origin of a row: (its token window [T], its position in the window, its document)."""
        (window,), (position,) = (values.tolist() for values in self.places(np.array([row])))
        (tokens_T,), (document,) = self.read_windows(window, window + 1)
        if self._has("token_documents"):
            document = self._of_windows("token_documents", window, window + 1)[0, position]
        return np.asarray(tokens_T), position, int(document)

    def _open(self, array: str, shard: int) -> np.ndarray:
        path = shard_path(self.directory, self.name, array, shard)
        if self.compared and is_damaged(path, self.shards[shard]["files"][array]["crc32"]):
            raise InputError(f"{path} is damaged (its checksum differs): {AGAIN}")
        return np.load(path, mmap_mode="r", allow_pickle=False)


_compared: dict[Path, tuple[int, ...]] = {}  # state of the files that this process has compared


def is_damaged(path: Path, crc32: int) -> bool:
    """Whether a file differs from its checksum. A file is read only once per process unless it changes."""
    stat = path.stat()
    seen = (crc32, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if _compared.get(path) != seen:
        if checksum(path) != crc32:
            return True
        _compared[path] = seen
    return False


def shard_path(directory: Path, split: str, array: str, index: int) -> Path:
    return directory / split / f"{array}-{index:05d}.npy"


def parts_of(starts: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(shard, start and stop in it) of each shard that holds some of [start, stop); `starts` ends with the total."""
    for shard in range(bisect_right(starts, start) - 1, bisect_left(starts, min(stop, starts[-1]))):
        yield shard, max(start - starts[shard], 0), min(stop, starts[shard + 1]) - starts[shard]
