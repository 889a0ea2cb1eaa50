"""Streaming beside a store of all rows: explained variance, disk, memory, waits, mixing, and the speed of the model.

    PYTHONPATH=. python tests/benchmarks/streaming.py --model-name MODEL --dataset TEXT --to DIR \
        --tokens 1.2M --seq-len 128 --layer 12 --hook resid_mid --activation relu jump_relu topk

All other flags are those of `python main.py`. Both runs get the same flags, one epoch, and documents held out alike.

Prints a table of members, and a record in JSON:
- peak_disk: bytes of the cache and the run at their largest, without compiled programs; peak_memory: resident bytes of
  the training and of the producers at their largest.
- speed: the seconds per token of the plain transformers model, run up to the input of the layer, over those of a
  producer, which also reads, sorts and writes the rows (medians; the two alternate, and no training runs).
- neighbours: the correlation of rows that follow each other in batches of the stream, in those of a store, in the text.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import torch
from transformers import AutoModelForCausalLM

from analysis.cli.train import parse
from harvest.files import read_json
from harvest.model_pass import batch_windows
from harvest.store import ActivationStore
from harvest.streaming.order import AHEAD, PARTS
from harvest.streaming.plan import StreamPlan
from harvest.streaming.stream import Stream
from sae_jax.training.batches import Feed

ROUNDS = 12
OURS = ("--epochs", "1", "--ce-windows", "0", "--snapshots", "0", "--quiet", "--force")


def disk(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a shard that has just been read
            total += 0 if "compiled" in path.parts else path.stat().st_size
    return total


def measured_run(folder: Path, flags: list[str]) -> dict:
    """Train as a user would, in an empty folder, and watch the disk and the processes."""
    places = ("--run-dir", folder / "run", "--cache-dir", folder / "cache")
    process = psutil.Popen([sys.executable, "main.py", *flags, *OURS, *map(str, places)])
    peaks = {"disk": 0, "training": 0, "producers": 0}
    while process.poll() is None:
        time.sleep(0.5)
        try:
            children = sum(child.memory_info().rss for child in process.children(recursive=True))
            now = {"disk": disk(folder), "training": process.memory_info().rss, "producers": children}
        except psutil.NoSuchProcess:
            continue
        peaks = {name: max(peak, now[name]) for name, peak in peaks.items()}
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    results = read_json(folder / "run" / "results.json", "")
    members = {m["id"]: {n: m["metrics"][n] for n in ("explained_variance", "l0")} for m in results["members"]}
    return {
        "peak_gb": {n: round(b / 1e9, 3) for n, b in peaks.items()},
        "timing": results["timing"],
        "members": members,
    }


def store_in(folder: Path) -> ActivationStore:
    (manifest,) = (folder / "cache" / "activations").glob("*/manifest.json")
    return ActivationStore(manifest.parent)


class Raw:
    """The plain transformers model, run up to the input of a layer."""

    class Enough(Exception):
        pass

    def __init__(self, location: str, layer: int):
        self.model = AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32).eval()
        blocks = next(m for m in self.model.modules() if isinstance(m, torch.nn.ModuleList))
        blocks[layer].register_forward_pre_hook(self.stop)

    def stop(self, *_: object) -> None:
        raise self.Enough

    def seconds(self, tokens_WxT: np.ndarray) -> float:
        began, step = time.perf_counter(), batch_windows(tokens_WxT.shape[1])
        for start in range(0, len(tokens_WxT), step):
            with torch.inference_mode(), suppress(self.Enough):
                self.model(torch.from_numpy(tokens_WxT[start : start + step]).long(), use_cache=False)
        return time.perf_counter() - began


def speed(store: ActivationStore, ring_gb: float, layer: int, folder: Path) -> tuple[dict, np.ndarray]:
    """(seconds per token of the raw model and of a producer, which alternate; the streamed rows)."""
    raw, plan = Raw(store.manifest["model"]["location"], layer), StreamPlan.of([store], ring_gb, 1, 0)
    seconds: dict[str, list[float]] = {"raw": [], "producer": []}
    rows = []
    with Stream(plan, folder / "ring") as stream:
        for number in range(PARTS, PARTS + 1 + ROUNDS):  # the ring is full: each block makes room for one shard
            busy = stream.busy_seconds
            rows.append(stream.block(number)[0])
            while not stream.arrived.issuperset(range(number - PARTS + 1, number + AHEAD + 1)):
                time.sleep(0.01)
            tokens_WxT, _ = store.stream.some_windows(stream.order.windows(number + AHEAD))
            if number > PARTS:
                seconds["producer"].append((stream.busy_seconds - busy) / tokens_WxT.size)
                seconds["raw"].append(raw.seconds(tokens_WxT) / tokens_WxT.size)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["raw"], seconds["producer"], strict=True)]
    return medians | {"speed": statistics.median(ratios), "tokens": tokens_WxT.size}, np.concatenate(rows)


def neighbours(rows_NxD: np.ndarray) -> float:
    """The correlation of rows with those that follow them."""
    x_NxD = rows_NxD.astype(np.float64) - rows_NxD.mean(0, dtype=np.float64)
    return float((x_NxD[:-1] * x_NxD[1:]).sum(1).mean() / np.square(x_NxD).sum(1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--ring-gb", type=float, default=0.2)
    args, flags = parser.parse_known_args()
    request, _, _, _ = parse(flags)
    streamed = ["--stream", "--ring-gb", str(args.ring_gb)]
    record = {
        "store": measured_run(args.to / "store", flags),
        "stream": measured_run(args.to / "stream", [*flags, *streamed]),
    }
    for member, there in record["store"]["members"].items():
        here = record["stream"]["members"][member]
        difference = here["explained_variance"] - there["explained_variance"]
        print(f"{member:40} store {there} stream {here} difference {difference:+.4f}")
    kept, whole = store_in(args.to / "stream"), store_in(args.to / "store")
    record["producer"], rows_NxD = speed(kept, args.ring_gb, request.layer[0], args.to)
    batches = Feed([whole.train], 64, epochs=1, seed=0).block(0, 500)[0].reshape(-1, whole.d_model)
    read = {"stream": rows_NxD, "store": batches, "text": whole.train.read(0, 30_000)}
    record["neighbours"] = {name: round(neighbours(rows), 4) for name, rows in read.items()}
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
