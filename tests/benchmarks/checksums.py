"""The cost of checksums in a harvest, a training and a pass over all rows, measured with and without them in turn.

    PYTHONPATH=.:tests python tests/benchmarks/checksums.py FOLDER [--rows 200000] [--pairs 4]

Prints medians of CPU seconds of this process (all threads) and of wall-clock seconds. A first pair is not counted.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from unittest.mock import patch

from rows import make_store

import harvest.files
import harvest.store
import harvest.stored_windows
from harvest.capture import harvest as harvest_rows
from harvest.request import HarvestRequest
from harvest.store import ActivationStore
from sae_jax.config import TrainConfig
from sae_jax.evaluate import evaluate
from sae_jax.formats import load_dictionary
from sae_jax.run_directory import RunDirectory
from sae_jax.training.loop import train

CONFIG = TrainConfig("topk", 1024, k=32, batch_size=256, epochs=2)


@contextmanager
def checksums(taken: bool) -> Iterator[None]:
    """Imitate a process that has not compared any file yet or, if `taken` is false, one that never compares files."""
    harvest.stored_windows._compared.clear()
    if taken:
        yield
        return
    none = SimpleNamespace(crc32=lambda data, crc32=0: 0)
    never = partial(patch.object, attribute="is_damaged", new=lambda *_: False)
    with patch.object(harvest.files, "zlib", none), never(harvest.store), never(harvest.stored_windows):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--pairs", type=int, default=4)
    asked = parser.parse_args()
    if not (asked.folder / "store").exists():
        make_store(asked.folder / "store", windows=asked.rows // 8, d_model=256, shards=4)
    store, run = ActivationStore(asked.folder / "store"), asked.folder / "run"

    def training() -> None:
        shutil.rmtree(run, ignore_errors=True)
        train(CONFIG, [store], RunDirectory(run, {"train": CONFIG.to_json()}), checkpoint_seconds=2.0)

    def load_trained() -> None:  # with checksums, which later calls may skip
        trained["sae"] = load_dictionary(next((run / "members").iterdir())).sae

    def analysis() -> None:
        evaluate({"one": trained["sae"]}, store.train, store.mean)

    trained: dict = {}
    request = HarvestRequest(model_name="bundled", dataset="bundled", layer=2, n_samples=asked.rows // 50)

    def harvesting() -> None:
        shutil.rmtree(asked.folder / "cache", ignore_errors=True)
        harvest_rows(request, asked.folder / "cache")

    for task in (harvesting, training, analysis):
        if task is analysis:
            load_trained()
        took: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        for taken in (False, True) * (asked.pairs + 1):
            with checksums(taken):
                clock, processor = time.perf_counter(), time.process_time()
                task()
                took[taken].append((time.process_time() - processor, time.perf_counter() - clock))
        for what, number in (("processor", 0), ("clock", 1)):
            without, with_them = (median(pair[number] for pair in took[taken][1:]) for taken in (False, True))
            more = with_them / without - 1
            print(f"{task.__name__}: {what} {without:.2f} s without, {with_them:.2f} s with ({more:+.1%})")


if __name__ == "__main__":
    main()
