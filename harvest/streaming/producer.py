"""The process that runs the language model and fills the ring: `python -m harvest.streaming.producer RING NUMBER OF`.

Several producers share out the shards: producer n of N makes shards n, n + N, ... On standard input, each line is the
number of the oldest shard that is still needed; when the input ends, the training has ended, and so does the producer.
On standard output, each line is a record of a shard that is there, or of the trouble that ended the process.

Shapes: N rows, W windows, T tokens per window, P positions of a window that become rows, D width of a site.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from harvest.errors import InputError
from harvest.model_pass import activation_rows
from harvest.request import Site
from harvest.streaming.order import AHEAD, Order
from harvest.streaming.plan import StreamPlan


class Position:
    """The oldest shard that is needed, as the training says it, line by line. Ends the process with the input."""

    def __init__(self) -> None:
        self.first = -1
        self.moved = threading.Condition()
        threading.Thread(target=self._follow, daemon=True).start()

    def wait_for(self, first: int) -> float:
        """Wait until no shard before `first` is needed. Returns the seconds that this took."""
        began = time.perf_counter()
        with self.moved:
            self.moved.wait_for(lambda: self.first >= first)
        return time.perf_counter() - began

    def _follow(self) -> None:
        for line in sys.stdin:
            with self.moved:
                self.first = int(line)
                self.moved.notify()
        os._exit(0)  # whatever this process is doing


def produce(directory: Path, number: int, of: int, device: str, report: Callable[..., None]) -> None:
    """Make the shards of one producer, each as soon as the ring has room for it."""
    position, plan = Position(), StreamPlan.read(directory)
    import torch

    from harvest.model.language_model import LanguageModel

    if device == "auto" and (devices := torch.cuda.device_count()) > 1:
        device = f"cuda:{devices - 1 - number % devices}"  # the training uses the first ones
    stores = plan.open_stores()
    first_store = next(iter(stores.values()))
    language_model = LanguageModel.of_store(first_store.manifest, device, plan.model)
    if language_model.weights_hash() != first_store.manifest["weights_hash"]:
        raise InputError(f"{plan.model} has other weights than when the training began: add --force to start again")
    widths = {site: store.d_model for site, store in stores.items()}
    limits = {site: store.manifest.get("max_norm") for site, store in stores.items()}
    order, ring = plan.order(first_store), plan.ring(directory, stores)

    def write(shard: int, rows: dict[Site, np.ndarray], **facts: float) -> None:
        chosen_N, extreme = chosen_rows(order, shard, rows, limits)
        ring.write(shard, {site.hook_name: rows_NxD[chosen_N] for site, rows_NxD in rows.items()})
        report(shard=shard, rows=len(chosen_N), extreme=extreme, **facts)

    with ThreadPoolExecutor(max_workers=1) as writer:  # the model runs on while a shard is written
        written: Future | None = None
        for shard in range(number, order.shards, of):
            waited = position.wait_for(max(0, shard - order.parts - AHEAD + 1))
            if shard < position.first:
                continue
            if ring.is_whole(shard):
                report(shard=shard, rows=0, extreme=0, waited=waited, busy=0.0)
                continue
            began = time.perf_counter()
            tokens_WxT, kept_WxP = first_store.stream.some_windows(order.windows(shard))
            x = activation_rows(language_model, tokens_WxT, widths, kept_WxP.shape[1])
            rows = {site: x_WxPxD[kept_WxP] for site, x_WxPxD in x.items()}
            if written:
                written.result()
            written = writer.submit(write, shard, rows, waited=waited, busy=time.perf_counter() - began)
        if written:
            written.result()
    threading.Event().wait()  # until the training ends


def chosen_rows(
    order: Order, shard: int, rows: dict[Site, np.ndarray], limits: dict[Site, float | None]
) -> tuple[np.ndarray, int]:
    """(the rows of a shard in the order in which they are written, [N]; how many were of extreme norm at some site).

    A row of extreme norm is replaced by another row of the shard, drawn at random, so that the number of rows, and with
    it the number of steps, is known before the model runs.
    """
    count = len(next(iter(rows.values())))
    chosen_N, extreme_N = order.permutation("shard", shard, count), np.zeros(count, bool)
    for site, limit in limits.items():
        if limit:
            extreme_N |= np.linalg.norm(rows[site], axis=-1) > limit
    if extreme_N.all():
        raise InputError(
            f"all rows in shard {shard} of the stream are of extreme norm: use a larger --max-norm-ratio or --ring-gb"
        )
    usual_N = chosen_N[~extreme_N[chosen_N]]
    draw = np.random.default_rng((order.seed, shard)).integers(len(usual_N), size=count)
    return np.where(extreme_N[chosen_N], usual_N[draw], chosen_N), int(extreme_N.sum())


def main(arguments: list[str]) -> None:
    records = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no record

    def report(**record: Any) -> None:
        records.write(json.dumps(record) + "\n")
        records.flush()

    directory, number, of, device = arguments
    try:
        produce(Path(directory), int(number), int(of), device, report)
    except InputError as error:
        report(trouble=str(error))
        os._exit(2)
    except OSError as error:
        fix = "free some space, or start again with a smaller --ring-gb or another --ring-dir"
        report(trouble=f"the ring in {directory} cannot be written ({error.strerror}): {fix}")
        os._exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
