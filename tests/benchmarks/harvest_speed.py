"""Tokens a second to a layer: the harvest's own model call against the raw transformers model cut off at that layer.

    python tests/benchmarks/harvest_speed.py --model bundled --layer 2 --seq-len 20

Alternates the two in one process; one JSON line with both medians and their ratio.
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch
from transformers import AutoModel

from harvest.capture import BATCH_TOKENS
from harvest.language_model import LanguageModel
from harvest.request import Site
from harvest.sources import BUNDLED_MODEL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--seq-len", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    location = str(BUNDLED_MODEL) if args.model == "bundled" else args.model
    ours = LanguageModel.load(location)
    raw = AutoModel.from_pretrained(location, dtype=torch.float32).eval()
    blocks = raw.h if hasattr(raw, "h") else raw.layers
    del blocks[args.layer :]
    tokens_WxT = np.random.default_rng(0).integers(0, 1000, (BATCH_TOKENS // args.seq_len, args.seq_len))
    tokens = torch.from_numpy(tokens_WxT)
    site = Site(args.layer, "resid_pre")

    def run_raw():
        with torch.inference_mode():
            return raw(tokens, use_cache=False).last_hidden_state.numpy()

    def run_ours():
        return ours.activations(tokens_WxT, [site])[site]

    seconds: dict[str, list[float]] = {"raw": [], "ours": []}
    for round_ in range(args.rounds + 1):
        for name, run in (("raw", run_raw), ("ours", run_ours)):
            began = time.perf_counter()
            run()
            if round_:  # the first one warms up
                seconds[name].append(time.perf_counter() - began)
    raw_s, ours_s = (statistics.median(seconds[name]) for name in ("raw", "ours"))
    figures = {"raw_tokens_per_second": tokens_WxT.size / raw_s, "tokens_per_second": tokens_WxT.size / ours_s}
    print(json.dumps({"name": f"harvest/{args.model}/layer{args.layer}", **figures, "ratio": raw_s / ours_s}))


if __name__ == "__main__":
    main()
