"""Rows from a synthetic store on disk: how fast they reach the device, and whether training waits for them.

Blocks have as many steps as in a run of the project. The store was written just before, so rows come from the page
cache.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import jax
from accelerator_parts.figures import Part
from accelerator_parts.training import Sizes, Training, config_of, fast_float32

from harvest.store import ActivationStore
from harvest.synthetic import SyntheticRequest, synthesize
from sae_jax.training.batches import BLOCK_BYTES, Feed

MOST_SECONDS = 6.0  # of training on rows of the feed


def measure_feed(part: Part, sizes: Sizes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store: list[ActivationStore] = []

        def make() -> dict:
            request = SyntheticRequest(
                d_model=sizes.d, train_rows=sizes.stored_rows, held_out_rows=1024, orthogonal_steps=0
            )
            began = time.perf_counter()
            store.append(synthesize(request, Path(directory)))
            return {"rows_per_second": sizes.stored_rows / (time.perf_counter() - began)}

        part.measure({"what": "make the store"}, make)
        part.measure({"what": "read and shuffle"}, lambda: read(store[0], sizes, to_device=False))
        part.measure({"what": "read, shuffle, copy to the device"}, lambda: read(store[0], sizes, to_device=True))
        for members in (1, sizes.fed_members):
            what = f"train topk on them, {members} member{'s' * (members > 1)}"
            part.measure({"what": what}, lambda members=members: trained(store[0], sizes, members))


def block_steps(sizes: Sizes) -> int:
    return max(1, BLOCK_BYTES // (sizes.batch * sizes.d * 2))


def feed_of(store: ActivationStore, sizes: Sizes, epochs: int) -> Feed:
    return Feed([store.train.not_compared()], sizes.batch, epochs, seed=0)


def read(store: ActivationStore, sizes: Sizes, to_device: bool) -> dict:
    feed, steps, began = feed_of(store, sizes, epochs=2), 0, time.perf_counter()
    for raw_LxSxBxD in feed.blocks(0, block_steps(sizes)):
        if to_device:
            jax.device_put(raw_LxSxBxD, jax.devices()[0]).block_until_ready()
        steps += raw_LxSxBxD.shape[1]
    per_second = steps * sizes.batch / (time.perf_counter() - began)
    return {"rows_per_second": per_second, "bytes_per_second": per_second * sizes.d * 2}


def trained(store: ActivationStore, sizes: Sizes, members: int) -> dict:
    """Rows per second of a training loop like the project's, and the share of time in which it waits for rows."""
    config = config_of("topk", sizes.widths[0], sizes.batch, sizes.k, fast_float32(), seed=tuple(range(members)))
    training = Training(config, sizes.d, fast_float32(), block_steps(sizes))
    feed = feed_of(store, sizes, epochs=100)
    blocks, pending, began, done, waited = feed.blocks(0, block_steps(sizes)), None, 0.0, 0, 0.0
    for number, raw_LxSxBxD in enumerate(blocks):
        metrics = training.block(training.placement.rows(raw_LxSxBxD))
        if pending is not None:
            jax.block_until_ready(pending)
        pending = metrics
        if number == 0:  # compilation does not count
            jax.block_until_ready(metrics)
            began, waited = time.perf_counter(), feed.wait_seconds
            continue
        done += raw_LxSxBxD.shape[1]
        if time.perf_counter() - began > MOST_SECONDS:
            break
    blocks.close()
    jax.block_until_ready(pending)
    seconds = time.perf_counter() - began
    return {
        "rows_per_second": done * sizes.batch / seconds,
        "bytes_per_second": done * sizes.batch * sizes.d * 2 / seconds,
        "seconds_per_step": seconds / done,
        "share_of_time_waiting": (feed.wait_seconds - waited) / seconds,
    }
