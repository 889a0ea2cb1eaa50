"""This benchmark scores how well each kind recovers known features, beside the peers, on rows of SAELens' generator.

    PYTHONPATH=.:tests python tests/benchmarks/ground_truth_peers.py --to DIR --peers-python PEERS/bin/python

Everyone trains on the same rows in the same order, at each of `--lrs` and `--seeds`. Prints MCC and F1 of each trainer
at its best learning rate: means with 95% intervals over seeds. A dictionary that exists is not trained again. PEERS is
described in `quality_peers.py`.
"""

import argparse
import subprocess
from itertools import product
from pathlib import Path

import numpy as np
from ground_truth import recovered, scores_of
from rows import SEQ_LEN, store_of

from analysis.stats import over_seeds
from harvest.files import write_arrays
from harvest.store import ActivationStore
from harvest.synthetic import FEATURES, SyntheticRequest, Truth
from sae_jax.config import SPARSITY_CONTROLS, TrainConfig

PEERS = ("saelens-topk", "saelens-batchtopk", "saelens-matryoshka", "dictionary_learning-topk")
PEERS += ("dictionary_learning-batchtopk",)


def store_of_known_features(directory: Path, peers_python: str) -> ActivationStore:
    """The store of SAELens' rows with their true features, made if needed."""
    if (directory / "manifest.json").exists():
        return ActivationStore(directory)
    directory.mkdir(parents=True)
    made = directory / "made.npz"
    subprocess.run([peers_python, "tests/benchmarks/ground_truth_rows.py", made], check=True)
    arrays = np.load(made)
    rows_NxD, known = arrays["rows"], {name: arrays[name] for name in ("directions_GxD", "probabilities_G", "fired")}
    windows = len(rows_NxD) // (SEQ_LEN - 1)
    tokens_WxT = np.zeros((windows, SEQ_LEN), int)
    store = store_of(directory, rows_NxD, tokens_WxT, np.arange(windows), len(known["fired"]) / len(rows_NxD))
    none = {"parents_G": np.full(len(known["probabilities_G"]), -1), "bias_D": np.zeros(store.d_model)}
    write_arrays(directory / FEATURES, known | none | {"factors_GxR": np.zeros((1, 1))})
    made.unlink()
    return store


def scores_of_peer(store: ActivationStore, trainer: str, lr: float, seed: int, asked: argparse.Namespace) -> dict:
    path = asked.to / "peers" / f"{trainer}-lr{lr:g}-s{seed}"
    if not path.exists():
        flags = ["--f", asked.width, "--k", asked.active, "--lr", lr, "--seed", seed, "--batch", asked.batch]
        command = [asked.peers_python, "tests/benchmarks/quality_peers.py", store.directory, trainer, "--to", path]
        command += [*flags, "--epochs", asked.epochs]
        subprocess.run(list(map(str, command)), check=True, env={"PYTHONPATH": "."})
    return {"trainer": trainer, "lr": lr, **recovered(path, store, Truth.load(store))}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--peers-python", required=True)
    parser.add_argument("--kinds", nargs="+", default=list(SPARSITY_CONTROLS))
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    parser.add_argument("--lrs", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for name, number in (("--width", 1024), ("--active", 8), ("--epochs", 3), ("--batch", 256)):
        parser.add_argument(name, type=int, default=number)
    asked = parser.parse_args()
    store = store_of_known_features(asked.to / "store", asked.peers_python)
    config = TrainConfig(
        activation=tuple(asked.kinds),
        hidden_dim=(asked.width,),
        k=(asked.active,),
        target_l0=(asked.active,),
        lr=tuple(asked.lrs),
        seed=tuple(asked.seeds),
        epochs=asked.epochs,
        batch_size=asked.batch,
    )
    scores = [s | {"trainer": s["activation"]} for s in scores_of(config, SyntheticRequest(), store, asked.to)]
    scores += [scores_of_peer(store, *each, asked) for each in product(asked.peers, asked.lrs, asked.seeds)]
    print("| trainer | learning rate | L0 | MCC | F1 |\n|---|---|---|---|---|")
    for trainer in dict.fromkeys(score["trainer"] for score in scores):
        by_lr = [[s for s in scores if (s["trainer"], s["lr"]) == (trainer, lr)] for lr in asked.lrs]
        best = max(by_lr, key=lambda alike: np.mean([s["mcc"] + s["f1"] for s in alike]))
        cells = [over_seeds([s[name] for s in best]).plus_minus() for name in ("mcc", "f1")]
        print(f"| {trainer} | {best[0]['lr']:g} | {np.mean([s['l0'] for s in best]):.1f} | {' | '.join(cells)} |")
