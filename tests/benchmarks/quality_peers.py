"""Train a peer's dictionary on the rows of one of our stores, in the order of our batches.

    PYTHONPATH=. PEERS/bin/python tests/benchmarks/quality_peers.py STORE TRAINER --to DIR --f 2304 --k 32

PEERS: pip install 'torch<2.14' sae-lens==6.54.12 filelock schedulefree natsort ml-dtypes; pip install --no-deps
dictionary-learning==0.1.0 eai-sparsify==1.3.3 simple_parsing docstring_parser. The peers' own training loops run
unmodified with their own normalization: SAELens scales rows to the mean norm √D (`expected_average_only_in`),
dictionary_learning to a mean squared norm of 1, and sparsify takes rows as they are. SAELens' jumprelu has the
quadratic penalty, which has a target L0. sparsify trains with Adam on an embedding that stands for the language model
and returns our rows. Learning rate, warm-up (5%), decay (the last 20%; sparsify's lasts the whole run) and the time
until a silent feature counts as dead (a tenth of the run) are those of our runs, because the peers' default window of
1,000 steps or ten million rows is longer than a short run. `quality.py` calls this script.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import MagicMock

import torch

from harvest.store import ActivationStore
from sae_jax.training.batches import Feed

NORM_BATCHES = 50  # from which SAELens estimates the mean norm


class Rows:
    """The batches of a run. Each iterator starts at the first batch."""

    def __init__(self, store: ActivationStore, batch: int, epochs: int):
        self.feed = Feed([store.train], batch, epochs, seed=0)

    def __iter__(self) -> Iterator[torch.Tensor]:
        for block_LxSxBxD in self.feed.blocks(0, 16):
            yield from torch.from_numpy(block_LxSxBxD[0].astype("float32"))


class Rewound:
    """An iterator for SAELens, which starts again at the first batch after the norm was estimated."""

    def __init__(self, rows: Rows):
        self.batches, self.rows, self.given = iter(rows), rows, 0

    def __next__(self) -> torch.Tensor:
        if self.given == NORM_BATCHES:
            self.batches = iter(self.rows)
        self.given += 1
        return next(self.batches)


def train_saelens(kind: str, store: ActivationStore, rows: Rows, asked: argparse.Namespace) -> None:
    import sae_lens
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    name = {"batchtopk": "BatchTopK", "matryoshka": "MatryoshkaBatchTopK", "topk": "TopK", "jumprelu": "JumpReLU"}[kind]
    steps, extra = rows.feed.total_steps, {"k": asked.k}
    if kind == "topk":
        extra["use_sparse_activations"] = False  # sparse activations have no backward pass on a CPU
    if kind == "matryoshka":
        extra["matryoshka_widths"] = [asked.f // part for part in (32, 16, 8, 4, 1)]
    if kind == "jumprelu":
        extra = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": asked.k}
        extra["l0_warm_up_steps"] = round(0.05 * steps)
    config = getattr(sae_lens, f"{name}TrainingSAEConfig")(
        d_in=store.d_model, d_sae=asked.f, normalize_activations="expected_average_only_in", **extra
    )
    config.metadata.hook_name = store.manifest["hook_name"]
    config.metadata.model_name = store.manifest["model"]["location"]
    config.metadata.context_size = store.manifest["seq_len"]
    config.metadata.prepend_bos = False
    trainer_config = SAETrainerConfig(
        steps * asked.batch,
        asked.batch,
        lr=asked.lr,
        lr_warm_up_steps=round(0.05 * steps),
        lr_decay_steps=round(0.2 * steps),
        lr_end=0.0,
        dead_feature_window=round(0.1 * steps),
        n_batches_for_norm_estimate=NORM_BATCHES,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(trainer_config, getattr(sae_lens, f"{name}TrainingSAE")(config), Rewound(rows))
    trainer.fit()
    save_as_saelens(trainer.sae, asked.to)


def save_as_saelens(sae, directory: Path) -> None:
    temporary = directory.parent / f".{directory.name}"
    temporary.mkdir(parents=True, exist_ok=True)
    getattr(sae, "save_inference_model", sae.save_model)(str(temporary))
    temporary.rename(directory)


def train_dictionary_learning(kind: str, store: ActivationStore, rows: Rows, asked: argparse.Namespace) -> None:
    sys.modules.setdefault("nnsight", MagicMock())  # only needed for language models
    from dictionary_learning.trainers import batch_top_k, top_k
    from dictionary_learning.training import trainSAE

    base, sae_class = {
        "topk": (top_k.TopKTrainer, top_k.AutoEncoderTopK),
        "batchtopk": (batch_top_k.BatchTopKTrainer, batch_top_k.BatchTopKSAE),
    }[kind]
    steps = rows.feed.total_steps

    class Trainer(base):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.dead_feature_threshold = round(0.1 * steps) * asked.batch

    settings = {
        "trainer": Trainer,
        "dict_class": sae_class,
        "steps": steps,
        "activation_dim": store.d_model,
        "dict_size": asked.f,
        "k": asked.k,
        "layer": store.manifest["layer"],
        "lm_name": store.manifest["model"]["location"],
        "lr": asked.lr,
        "warmup_steps": round(0.05 * steps),
        "decay_start": round(0.8 * steps),
        "threshold_start_step": steps // 2,
        "threshold_beta": 0.99,  # 0.999 would not follow the threshold within a short run
        "seed": asked.seed,
        "device": "cpu",
        "submodule_name": store.manifest["hook_name"],
    }
    trainSAE(
        rows,
        [settings],
        steps=steps,
        save_dir=str(asked.to.parent / f".{asked.to.name}"),
        normalize_activations=True,
        device="cpu",
        autocast_dtype=torch.float32,
    )
    (asked.to.parent / f".{asked.to.name}" / "trainer_0").rename(asked.to)


def train_sparsify(kind: str, store: ActivationStore, rows: Rows, asked: argparse.Namespace) -> None:
    import sparsify
    import transformers
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    rows_NxD = torch.cat(list(rows))

    class RowsAsModel(transformers.PreTrainedModel):
        config_class = transformers.PretrainedConfig

        def __init__(self, config):
            super().__init__(config)
            self.rows = torch.nn.Embedding.from_pretrained(rows_NxD)

        def forward(self, input_ids):
            return self.rows(input_ids)

    steps = len(rows_NxD) // asked.batch
    trainer = sparsify.Trainer(
        sparsify.TrainConfig(
            sparsify.SparseCoderConfig(num_latents=asked.f, k=asked.k),
            batch_size=asked.batch,
            optimizer="adam",
            lr=asked.lr,
            lr_warmup_steps=round(0.05 * steps),
            auxk_alpha=1 / 32,
            dead_feature_threshold=round(0.1 * steps) * asked.batch,
            hookpoints=["rows"],
            init_seeds=[asked.seed],
            save_every=2 * steps,
            log_to_wandb=False,
            save_dir=str(asked.to.parent / f".{asked.to.name}-checkpoint"),
        ),
        [{"input_ids": torch.tensor([number])} for number in range(steps * asked.batch)],
        RowsAsModel(transformers.PretrainedConfig()),
    )
    trainer.fit()
    coder = trainer.saes["rows"]
    sae = TopKSAE(TopKSAEConfig(d_in=store.d_model, d_sae=asked.f, k=asked.k, apply_b_dec_to_input=True))
    weights = {"W_enc": coder.encoder.weight.T, "b_enc": coder.encoder.bias, "W_dec": coder.W_dec, "b_dec": coder.b_dec}
    sae.load_state_dict({name: weight.detach() for name, weight in weights.items()})
    save_as_saelens(sae, asked.to)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument(
        "trainer",
        help="saelens-topk, -batchtopk, -matryoshka, -jumprelu, dictionary_learning-topk, -batchtopk or sparsify-topk",
    )
    parser.add_argument("--to", type=Path, required=True)
    for name, value in (("--f", 4608), ("--k", 32), ("--batch", 256), ("--epochs", 3), ("--seed", 0)):
        parser.add_argument(name, type=int, default=value)
    parser.add_argument("--lr", type=float, default=1e-3)
    asked = parser.parse_args()
    torch.manual_seed(asked.seed)
    store = ActivationStore(asked.store)
    library, _, kind = asked.trainer.partition("-")
    train_by = {
        "saelens": train_saelens,
        "dictionary_learning": train_dictionary_learning,
        "sparsify": train_sparsify,
    }
    train_by[library](kind, store, Rows(store, asked.batch, asked.epochs), asked)
