"""The time to run a model up to a layer, in the harvest or in plain transformers, as one JSON line.

    PYTHONPATH=. OMP_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/harvest_speed.py ours --model bundled --layer 2

Fields: seconds and cpu_seconds for a million tokens (medians over batches), tokens_per_second.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import AutoModel

from harvest.model.language_model import LanguageModel
from harvest.model_pass import BATCH_TOKENS
from harvest.request import Site
from harvest.sources import BUNDLED_MODEL


def ours(location: str, layer: int, tokens_WxT: np.ndarray) -> Callable[[], object]:
    model = LanguageModel.load(location)
    return lambda: model.activations(tokens_WxT, [Site(layer, "resid_pre")])


def raw(location: str, layer: int, tokens_WxT: np.ndarray) -> Callable[[], object]:
    model, tokens = AutoModel.from_pretrained(location, dtype=torch.float32).eval(), torch.from_numpy(tokens_WxT)
    del (model.h if hasattr(model, "h") else model.layers)[layer:]

    def run() -> object:
        with torch.inference_mode():
            return model(tokens, use_cache=False).last_hidden_state.numpy()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("who", choices=("ours", "raw"))
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=20)
    parser.add_argument("--batches", type=int, default=9)
    args = parser.parse_args()
    location = str(BUNDLED_MODEL) if args.model == "bundled" else args.model
    tokens_WxT = np.random.default_rng(0).integers(0, 1000, (BATCH_TOKENS // args.seq_len, args.seq_len))
    run = (ours if args.who == "ours" else raw)(location, args.layer, tokens_WxT)
    times = []
    for _ in range(args.batches + 1):
        times.append((time.perf_counter(), time.process_time()))
        run()
    seconds, cpu_seconds = np.median(np.diff(times, axis=0)[1:], axis=0) * 1e6 / tokens_WxT.size  # after one warm-up
    figures = {"seconds": seconds, "cpu_seconds": cpu_seconds, "tokens_per_second": 1e6 / seconds}
    print(json.dumps({"name": f"model {args.who}", **figures}))


if __name__ == "__main__":
    main()
