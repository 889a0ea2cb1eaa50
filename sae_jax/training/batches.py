"""Shuffled blocks of batches from a store or a stream, read ahead by a thread.

Shapes: L sites, N rows of an era, S steps of a block, B rows of a batch, P pieces, E eras, D width of the model.

A piece is a short run of rows that is read at once. An epoch is a seeded permutation of the pieces, cut into eras: an
era has as many pieces as fit the memory budget, and its rows are permuted once more. A store that fits into one era is
shuffled perfectly. The order is a pure function of (seed, epoch). The step alone is therefore enough to resume, and
resuming reads one era.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from harvest.errors import InputError
from harvest.store import Split
from harvest.streaming.stream import Stream

PIECE_BYTES = 1 << 20
ERA_BYTES = 256 << 20
BLOCK_BYTES = 16 << 20


class Shared:
    """The rows of a split whose places in the text also have a row in other splits."""

    def __init__(self, split: Split, rows_N: np.ndarray):
        self.split, self.rows_N = split, rows_N

    def __len__(self) -> int:
        return len(self.rows_N)

    def __getitem__(self, rows: int | np.ndarray) -> np.ndarray:
        return self.split[self.rows_N[rows]]

    def read(self, start: int, stop: int) -> np.ndarray:
        rows_N = self.rows_N[start:stop]
        return self.split.read(rows_N[0], rows_N[-1] + 1)[rows_N - rows_N[0]]


def shared(splits: Sequence[Split]) -> Sequence[Split | Shared]:
    """Splits of the same windows at several sites with the same rows, so that row r is at the same place in all.

    A site may lack a row that another one has, because the norm of its activation is extreme.
    """
    if len(splits) == 1 or all(split.keeps_all for split in splits):
        return splits
    kept = [split.kept_positions(0, split.n_windows) for split in splits]
    in_all_WxP = np.logical_and.reduce(kept)
    if all(np.array_equal(kept_WxP, in_all_WxP) for kept_WxP in kept):
        return splits
    return [Shared(split, np.flatnonzero(in_all_WxP[kept_WxP])) for split, kept_WxP in zip(splits, kept, strict=True)]


def refuse_large_batch(batch_size: int, rows: int) -> None:
    if batch_size > rows:
        raise InputError(f"--batch-size {batch_size}: there are only {rows} training rows; use a smaller batch size")


class Blocks(ABC):
    """Blocks of batches, read ahead. `wait_seconds` is the total time that the consumer of `blocks` waited for data."""

    total_steps: int
    wait_seconds = 0.0

    @abstractmethod
    def block(self, step: int, block_steps: int) -> np.ndarray:
        """The batches [L, S, B, D] of steps from `step` on: as many as `block_steps`, or as are left."""

    @abstractmethod
    def sample(self, count: int) -> np.ndarray:
        """At most so many training rows, from which members are initialized, [L, N, D]."""

    def blocks(self, start_step: int, block_steps: int) -> Iterator[np.ndarray]:
        """Blocks [L, S, B, D] from `start_step` to the end. Each is a new array; the last may have fewer steps."""
        starts = range(start_step, self.total_steps, block_steps)
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead = reader.submit(self.block, starts[0], block_steps) if starts else None
            for start in starts:
                waiting_since = time.perf_counter()
                assert ahead is not None
                block = ahead.result()
                self.wait_seconds += time.perf_counter() - waiting_since
                if start != starts[-1]:
                    ahead = reader.submit(self.block, start + block_steps, block_steps)
                yield block


class StreamFeed(Blocks):
    """Batches of the rows of a stream, whose blocks are read one after another.

    Members are initialized from the rows that `splits` keep.
    """

    def __init__(self, stream: Stream, splits: Sequence[Split], batch_size: int):
        self.stream, self.splits, self.batch_size = stream, shared(splits), batch_size
        refuse_large_batch(batch_size, stream.order.rows)
        self.total_steps = stream.order.rows // batch_size
        self._read: tuple[int, np.ndarray] | None = None

    def block(self, step: int, block_steps: int) -> np.ndarray:
        start = step * self.batch_size
        stop = min(step + block_steps, self.total_steps) * self.batch_size
        starts, parts = self.stream.order.starts, []
        while start < stop:
            number = int(np.searchsorted(starts, start, side="right")) - 1
            end = min(stop, int(starts[number + 1]))
            parts.append(self._rows(number)[:, start - starts[number] : end - starts[number]])
            start = end
        rows_LxNxD = np.concatenate(parts, axis=1)
        return rows_LxNxD.reshape(len(rows_LxNxD), -1, self.batch_size, rows_LxNxD.shape[-1])

    def sample(self, count: int) -> np.ndarray:
        rows_N = np.random.default_rng(0).permutation(len(self.splits[0]))[:count]
        return np.stack([split[np.sort(rows_N)] for split in self.splits])

    def _rows(self, number: int) -> np.ndarray:
        if self._read is None or self._read[0] != number:
            self._read = number, self.stream.block(number)
        return self._read[1]


class Feed(Blocks):
    """Batches of rows for `epochs` passes. Rows left over after the last full batch of an epoch are not used in it.

    `splits` hold the same windows at several sites of the model, and their rows are read in the same order.
    """

    def __init__(self, splits: Sequence[Split], batch_size: int, epochs: int, seed: int, era_bytes: int = ERA_BYTES):
        self.splits = shared(splits)
        self.rows, row_bytes = len(self.splits[0]), splits[0][0].nbytes
        refuse_large_batch(batch_size, self.rows)
        self.batch_size, self.seed = batch_size, seed
        self.steps_per_epoch = self.rows // batch_size
        self.total_steps = epochs * self.steps_per_epoch
        self.piece_rows = max(1, PIECE_BYTES // row_bytes)
        self.pieces = -(-self.rows // self.piece_rows)
        self.era_pieces = max(1, era_bytes // row_bytes // self.piece_rows // len(splits))
        self._era: tuple[tuple[int, int], np.ndarray] | None = None

    def block(self, step: int, block_steps: int) -> np.ndarray:
        steps = min(block_steps, self.total_steps - step)
        parts, done = [], 0
        while done < steps:
            epoch, batch = divmod(step + done, self.steps_per_epoch)
            run = min(steps - done, self.steps_per_epoch - batch)
            rows_LxNxD = self._rows(epoch, batch * self.batch_size, (batch + run) * self.batch_size)
            parts.append(rows_LxNxD.reshape(len(self.splits), run, self.batch_size, -1))
            done += run
        return np.concatenate(parts, axis=1)

    def sample(self, count: int) -> np.ndarray:
        """The first rows of the first epoch."""
        return self._rows(0, 0, min(count, self.rows))

    def _rows(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) in the order of the epoch. Eras have equal numbers of pieces; one piece may be shorter."""
        pieces_P = np.random.default_rng((self.seed, epoch)).permutation(self.pieces)
        lengths_P = np.where(
            pieces_P == self.pieces - 1, self.rows - (self.pieces - 1) * self.piece_rows, self.piece_rows
        )
        era_of_P = np.arange(self.pieces) // self.era_pieces
        ends_E = np.cumsum(np.bincount(era_of_P, lengths_P)).astype(int)
        out = []
        while start < stop:
            era = int(np.searchsorted(ends_E, start, side="right"))
            era_start = ends_E[era] - int(lengths_P[era_of_P == era].sum())
            end = min(stop, int(ends_E[era]))
            out.append(self._load(epoch, era, pieces_P[era_of_P == era])[:, start - era_start : end - era_start])
            start = end
        return out[0] if len(out) == 1 else np.concatenate(out, axis=1)

    def _load(self, epoch: int, era: int, pieces: np.ndarray) -> np.ndarray:
        """The permuted rows of one era. The most recent era is kept in memory."""
        if self._era is None or self._era[0] != (epoch, era):
            self._era = None  # free the old era before the new one is read
            runs = [(p * self.piece_rows, (p + 1) * self.piece_rows) for p in pieces]
            rows_LxNxD = [np.concatenate([split.read(*run) for run in runs]) for split in self.splits]
            order_N = np.random.default_rng((self.seed, epoch, era)).permutation(len(rows_LxNxD[0]))
            self._era = (epoch, era), np.stack([rows_NxD[order_N] for rows_NxD in rows_LxNxD])
        return self._era[1]
