"""The order in which streamed rows are made and read: a pure function of the seed and the position in the text.

The training windows are permuted, anew for each epoch, and cut into shards. The rows of a shard are permuted and dealt
out over as many consecutive blocks as the ring has parts. Block b therefore has one part of each of the latest PARTS
shards, whose rows are permuted once more. A block needs one new shard and is the last to need one old shard, so that
the model can fill the ring as fast as the training drains it. (In coding, this is a convolutional interleaver.)

      shard 0   0 1 2 3
      shard 1     0 1 2 3         parts, each under the block that reads it (here with 4 parts)
      shard 2       0 1 2 3
      block     0 1 2 3 4 5

Imports neither torch nor jax. Shapes: W windows, J shards, N rows.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

PARTS, AHEAD = 24, 8  # shards of a full ring: those that a block reads, and those that are made before it


class Order:
    """The windows of each shard and the parts of each block, for `epochs` passes over windows with so many rows."""

    def __init__(self, rows_W: np.ndarray, epochs: int, seed: int, shard_windows: int):
        self.rows_W, self.epochs, self.seed, self.shard_windows = rows_W, epochs, seed, shard_windows
        self.shards = -(-epochs * len(rows_W) // shard_windows)
        self.parts = min(PARTS, self.shards)
        self._epoch: tuple[int, np.ndarray] | None = None

    def windows(self, shard: int) -> np.ndarray:
        """The numbers of the windows of a shard, [W]."""
        start = shard * self.shard_windows
        stop = min(start + self.shard_windows, self.epochs * len(self.rows_W))
        parts = []
        while start < stop:
            epoch, first = divmod(start, len(self.rows_W))
            parts.append(self._permuted(epoch)[first : first + stop - start])
            start += len(parts[-1])
        return np.concatenate(parts)

    @cached_property
    def rows_J(self) -> np.ndarray:
        """The number of rows of each shard, [J]."""
        if self.rows_W.min() == self.rows_W.max():
            windows_J = np.full(self.shards, self.shard_windows)
            windows_J[-1] = self.epochs * len(self.rows_W) - (self.shards - 1) * self.shard_windows
            return windows_J * int(self.rows_W[0])
        return np.array([self.rows_W[self.windows(shard)].sum() for shard in range(self.shards)])

    def parts_of(self, block: int) -> list[tuple[int, int, int]]:
        """(shard, its first row, the row after its last) of each part that a block reads."""
        shards = range(max(0, block - self.parts + 1), min(block + 1, self.shards))
        cuts = [(shard, int(self.rows_J[shard]), block - shard) for shard in shards]
        return [(shard, rows * part // self.parts, rows * (part + 1) // self.parts) for shard, rows, part in cuts]

    @cached_property
    def starts(self) -> np.ndarray:
        """The number of rows before each block, and at the end the number of all rows."""
        part = np.arange(self.parts + 1)
        sizes_JxK = np.diff(self.rows_J[:, None] * part // self.parts, axis=1)
        blocks_JxK = np.arange(self.shards)[:, None] + part[None, :-1]
        sizes = np.bincount(blocks_JxK.ravel(), sizes_JxK.ravel(), minlength=self.shards + self.parts - 1)
        return np.append(0, np.cumsum(sizes.astype(np.int64)))

    @property
    def rows(self) -> int:
        """The number of all rows, in all epochs."""
        return int(self.rows_J.sum())

    def first_needed(self, block: int) -> int:
        """The oldest shard that a block, or one after it, reads."""
        return max(0, block - self.parts + 1)

    def permutation(self, what: str, number: int, count: int) -> np.ndarray:
        """The order of the rows of a shard or a block, [N]."""
        return np.random.default_rng((self.seed, ("shard", "block").index(what), number)).permutation(count)

    def _permuted(self, epoch: int) -> np.ndarray:
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.rows_W))
        return self._epoch[1]
