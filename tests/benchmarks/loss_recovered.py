"""The time of loss recovered for a population, compared with one whole run of the model per member.

python tests/benchmarks/loss_recovered.py [--model-name DIR] [--layer 2] [--members 12] [--windows 128] [--seq-len 20]

Ours runs the layers before the site once, and those after it for each member, for zero ablation and for the check of
the first batch. The other side runs the whole model with a hook for each member, for zero ablation and unchanged. The
replacement itself costs nothing here. Prints medians of three alternating rounds, in CPU seconds.
"""

import argparse
import time
from statistics import median

import numpy as np
import torch

from harvest.interventions.loss_recovered import batch_windows, losses, window_losses
from harvest.model.language_model import LanguageModel
from harvest.request import Site
from harvest.sources import BUNDLED_MODEL


def whole_runs(model, tokens_WxT, site, replacements, first_position):
    batch, found = batch_windows(model, tokens_WxT.shape[1]), {name: [] for name in replacements}
    for start in range(0, len(tokens_WxT), batch):
        tokens = model.token_ids(tokens_WxT[start : start + batch])
        targets = tokens[:, first_position + 1 :, None]
        clean = model.bridge(tokens, use_cache=False)[:, first_position:].log_softmax(-1)
        for name, replace in replacements.items():

            def put(x, hook, replace=replace):
                x = x.clone()
                rows = x[:, first_position:]
                x[:, first_position:] = torch.from_numpy(replace(rows.reshape(-1, x.shape[-1]).numpy())).view(
                    rows.shape
                )
                return x

            with model.bridge.hooks(fwd_hooks=[(site.hook_name, put)]):
                logp = model.bridge(tokens, use_cache=False)[:, first_position:].log_softmax(-1)
            found[name].append(window_losses(logp, clean, targets).ce_W)
    return {name: np.concatenate(parts).mean() for name, parts in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-name", default=str(BUNDLED_MODEL))
    for name, default in (("layer", 2), ("members", 12), ("windows", 128), ("seq-len", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    model, site = LanguageModel.load(args.model_name), Site(args.layer, "resid_pre")
    tokens_WxT = np.random.default_rng(0).integers(0, model.bridge.cfg.d_vocab, (args.windows, args.seq_len))
    replacements = {str(i): lambda x, i=i: np.float32(i / args.members) * x for i in range(args.members)}
    replacements["zero"] = np.zeros_like
    seconds: dict[str, list[float]] = {"ours": [], "whole": []}
    for _ in range(3):
        began = time.process_time()
        _, ours = losses(model, tokens_WxT, site, replacements)
        seconds["ours"].append(time.process_time() - began)
        began = time.process_time()
        with torch.inference_mode():
            whole = whole_runs(model, tokens_WxT, site, replacements, 1)
        seconds["whole"].append(time.process_time() - began)
        assert all(abs(ours[name].ce_W.mean() - whole[name]) < 1e-3 for name in replacements)
    a, b = (median(seconds[name]) for name in ("ours", "whole"))
    what = f"{args.members} members, layer {args.layer} of {model.n_layers}"
    print(f"{what}: {a:.2f} s; whole runs {b:.2f} s = {b / a:.2f} x")


if __name__ == "__main__":
    main()
