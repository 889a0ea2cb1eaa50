"""Training of SAELens' topk and batchtopk on the rows of one of our stores, in the same order as ours.

    PYTHONPATH=. PEERS/bin/python tests/benchmarks/saelens_quality.py STORE --to DIR --f 4608 --k 32 --batch 1024

PEERS: pip install 'torch<2.14' sae-lens==6.54.12 filelock. `SAETrainer.fit` is unmodified and uses SAELens' defaults,
except for our learning rate, warm-up and decay, and its recommended normalization (expected_average_only_in).
`python main.py evaluate RUN DIR/* --dataset ...` then measures both in the same way.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from harvest.store import ActivationStore
from sae_jax.training.batches import Feed

KINDS = {
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
}


def rows(store: ActivationStore, batch: int, epochs: int) -> Iterator[torch.Tensor]:
    feed = Feed([store.train], batch, epochs, seed=0)
    for block_LxSxBxD in feed.blocks(0, 16):
        yield from torch.from_numpy(block_LxSxBxD[0].astype("float32"))


def train(kind: str, seed: int, store: ActivationStore, asked: argparse.Namespace) -> None:
    sae_class, config_class = KINDS[kind]
    steps = asked.epochs * (len(store.train) // asked.batch)
    torch.manual_seed(seed)
    config = config_class(
        d_in=store.d_model, d_sae=asked.f, k=asked.k, normalize_activations="expected_average_only_in", dtype="float32"
    )
    if kind == "topk":
        config.use_sparse_activations = False  # sparse activations have no backward pass on a CPU
    config.metadata.hook_name = store.manifest["hook_name"]
    config.metadata.model_name = store.manifest["model"]["location"]
    config.metadata.context_size = store.manifest["seq_len"]
    config.metadata.prepend_bos = False
    schedule = {"lr_warm_up_steps": round(0.05 * steps), "lr_decay_steps": round(0.2 * steps), "lr_end": 0.0}
    trainer_config = SAETrainerConfig(
        steps * asked.batch,
        asked.batch,
        lr=asked.lr,
        n_batches_for_norm_estimate=50,
        logger=LoggingConfig(log_to_wandb=False),
        **schedule,
    )
    trainer = SAETrainer(trainer_config, sae_class(config), Rewound(store, asked))
    began = time.perf_counter()
    trainer.fit()
    directory = asked.to / f"saelens-{kind}-s{seed}"
    directory.mkdir(parents=True)
    trainer.sae.save_inference_model(str(directory))
    print(f"{directory.name}: {steps:,} steps in {time.perf_counter() - began:.0f} s", flush=True)


class Rewound:
    """Rows that start again at the first one after the norm was estimated."""

    def __init__(self, store: ActivationStore, asked: argparse.Namespace):
        self.make = lambda: rows(store, asked.batch, asked.epochs)
        self.rows, self.given = self.make(), 0

    def __next__(self) -> torch.Tensor:
        if self.given == 50:
            self.rows = self.make()
        self.given += 1
        return next(self.rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for name, value in (("--f", 4608), ("--k", 32), ("--batch", 1024), ("--epochs", 1)):
        parser.add_argument(name, type=int, default=value)
    parser.add_argument("--lr", type=float, default=1e-3)
    asked = parser.parse_args()
    for kind in asked.kinds:
        for seed in asked.seeds:
            train(kind, seed, ActivationStore(asked.store), asked)
