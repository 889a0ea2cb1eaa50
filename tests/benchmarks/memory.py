"""Peak memory of training, on a store that is larger than it or in comparison with the estimate.

    PYTHONPATH=. python tests/benchmarks/memory.py --gigabytes 8 --directory DIR
    PYTHONPATH=. python tests/benchmarks/memory.py --populations --directory DIR

With --populations, five populations are trained by `python main.py`. For each, the peak resident memory of the process
and the estimate of --dry-run are printed. Without it, a store of random rows is written once, one epoch is trained, and
one JSON line is printed: the size of the store, the peak resident memory, the bytes of parameters and optimizer, rows
per second, and the share of time in which training waited for rows.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from harvest.request import HarvestRequest
from harvest.sources import resolve
from harvest.store import ActivationStore
from harvest.store_writer import StoreWriter
from sae_jax.config import TrainConfig
from sae_jax.cost import plan
from sae_jax.run_directory import RunDirectory
from sae_jax.training.loop import train

D, SEQ_LEN, SHARD_ROWS = 768, 129, 128 * 512


def write_store(directory: Path, gigabytes: float) -> ActivationStore:
    source = {"asked": "random rows", "location": "random rows", "fell_back": False}
    facts = {"hook": "resid_pre", "hook_name": "blocks.0.hook_resid_pre", "layer": 0, "seq_len": SEQ_LEN}
    writer = StoreWriter(directory, {"model": source, "dataset": source, "keep_first_position": False, **facts})
    rng = np.random.default_rng(0)
    for split, shards in (("train", max(1, round(gigabytes * 1e9 / (SHARD_ROWS * D * 2)))), ("held_out", 1)):
        for shard in range(shards):
            windows = SHARD_ROWS // (SEQ_LEN - 1)
            tokens_WxT = rng.integers(0, 1000, (windows, SEQ_LEN))
            if not writer.has_shard(split, shard, tokens_WxT):
                rows_NxD = rng.standard_normal((SHARD_ROWS, D), np.float32).astype(np.float16)
                writer.add_shard(split, shard, rows_NxD, tokens_WxT, np.arange(windows))
    return writer.finish()


POPULATIONS = (  # kinds, features, seeds
    (1, 256, 1),
    (2, 1024, 2),
    (4, 1024, 4),
    (4, 4096, 2),
    (4, 4096, 6),
)
KINDS = ("relu", "jump_relu", "topk", "batch_topk")
# Held-out rows suffice for a whole calibration sample. Training rows are few, since the peak does not depend on them.
TEXT = {"model_name": "bundled", "dataset": "bundled", "n_samples": 700, "held_out": 0.8}


def measure_population(kinds: int, features: int, seeds: int, directory: Path) -> dict:
    """Peak memory of the whole command with an empty cache: harvest, training, loss recovered."""
    config = TrainConfig(KINDS[:kinds], features, seed=tuple(range(seeds)), epochs=1)
    request = HarvestRequest(**TEXT)
    asked = {**TEXT, "activation": config.activation, "hidden_dim": features, "seed": config.seed, "epochs": 1}
    place = directory / f"{kinds}x{seeds}x{features}"
    shutil.rmtree(place, ignore_errors=True)
    command = [sys.executable, "main.py", "--quiet", "--cache-dir", place / "cache", "--run-dir", place / "run"]
    command += ["--ce-windows", 16]
    for name, value in asked.items():
        command += [f"--{name.replace('_', '-')}", *(value if isinstance(value, tuple) else (value,))]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    width = resolve(request)[0].d_model
    assert width
    estimate = sum(plan(config, request, width).memory.host.values())
    figures = {"members": kinds * seeds, "features": features, "peak_bytes": peak, "estimated_bytes": estimate}
    return figures | {"estimated_over_peak": round(estimate / peak, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=8)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--populations", action="store_true", help="compare five of them with the estimate")
    args = parser.parse_args()
    if args.populations:
        for population in POPULATIONS:
            print(json.dumps({"name": "memory", **measure_population(*population, args.directory)}), flush=True)
        return
    if not (args.directory / "store" / "manifest.json").exists():
        write_store(args.directory / "store", args.gigabytes)
        print("store written: run again, so that writing it does not count")
        return
    store = ActivationStore(args.directory / "store")

    config = TrainConfig(activation=("jump_relu",), epochs=1, batch_size=args.batch)
    run = RunDirectory(args.directory / "run", {"harvest": {}, "train": config.to_json()})
    results = train(config, [store], run)
    parameters = 3 * 4 * (2 * D * config.hidden_dim + 2 * config.hidden_dim + D)
    figures = {
        "store_bytes": sum(facts["bytes"] for _, facts in store.files()),
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "parameter_and_optimizer_bytes": parameters,
        "rows": results["timing"]["steps"] * args.batch,
        "rows_per_second": results["timing"]["rows_per_second"],
        "data_wait": results["timing"]["data_wait"],
    }
    print(json.dumps({"name": "memory", **figures}))


if __name__ == "__main__":
    main()
