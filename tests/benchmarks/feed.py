"""The time to read and shuffle the rows of one step from a store on disk, as one JSON line.

    PYTHONPATH=. python tests/benchmarks/feed.py --d 768 --rows 2000000

The store is made first (rows x D x 2 bytes) in a temporary directory and read back from the page cache or the disk.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from harvest.store_writer import StoreWriter
from sae_jax.training.batches import Feed

SEQ_LEN, SHARD_ROWS = 129, 128 * 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--block-steps", type=int, default=100)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        writer = StoreWriter(Path(directory), {"seq_len": SEQ_LEN, "keep_first_position": False})
        rng, windows = np.random.default_rng(0), SHARD_ROWS // (SEQ_LEN - 1)
        rows_NxD = rng.standard_normal((SHARD_ROWS, args.d)).astype(np.float16)
        tokens_WxT = np.zeros((windows, SEQ_LEN), np.int64)
        for split, shards in (("train", max(1, args.rows // SHARD_ROWS)), ("held_out", 1)):
            for shard in range(shards):
                writer.add_shard(split, shard, rows_NxD, tokens_WxT, np.arange(windows))
        feed = Feed([writer.finish().train], args.batch, epochs=1, seed=0)
        began, cpu_began, steps = time.perf_counter(), time.process_time(), 0
        for raw_LxSxBxD in feed.blocks(0, args.block_steps):
            steps += raw_LxSxBxD.shape[1]
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    figures = {"seconds_per_step": seconds / steps, "cpu_seconds_per_step": cpu_seconds / steps}
    print(json.dumps({"name": "feed", "rows": steps * args.batch, **figures}))


if __name__ == "__main__":
    main()
