"""The members of population.py, trained by SAELens or dictionary_learning on the same rows; one JSON line.

    OMP_NUM_THREADS=1 taskset -c 0 PEERS/bin/python tests/benchmarks/peers_population.py sae_lens

PEERS: pip install 'torch<2.14' sae-lens==6.54.12, then pip install --no-deps dictionary-learning==0.1.0.
dictionary_learning runs its unmodified `trainSAE`. SAELens runs `MultiSAETrainer.fit`, because MultiSAETrainingRunner
only takes rows from a language model. It has one learning rate for all members, so the trainer of each member is
replaced. A step is the time between two requests for rows, with the reading of rows. Both compute densely (SAELens'
`use_sparse_activations` has no backward pass on a CPU), so a step's time does not depend on L0, and few steps suffice.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from unittest.mock import MagicMock

import numpy as np
import torch
from sparse_rows import sparse_rows

MEMBERS = list(product((16, 32, 64), (1e-3, 3e-4)))  # (k or target L0, learning rate) for each kind
FIRST_STEPS = 2  # steps that are not measured


class TimedRows:
    """Batches, and the (wall-clock, CPU) seconds at which they were requested."""

    def __init__(self, batch: int, d: int, batches: int = 20):
        self.batches_KxBxD = sparse_rows(batches * batch, d).reshape(batches, batch, d)
        self.asked_at: list[tuple[float, float]] = []

    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            self.asked_at.append((time.perf_counter(), time.process_time()))
            x_BxD = self.batches_KxBxD[len(self.asked_at) % len(self.batches_KxBxD)]
            yield torch.from_numpy(x_BxD.astype(np.float32))

    def seconds_per_step(self) -> dict[str, float]:
        seconds, cpu_seconds = np.median(np.diff(self.asked_at, axis=0)[FIRST_STEPS:], axis=0)
        return {"seconds_per_step": seconds, "cpu_seconds_per_step": cpu_seconds}


def dictionary_learning(rows: TimedRows, d: int, f: int, batch: int, steps: int) -> None:
    sys.modules.setdefault("nnsight", MagicMock())  # only needed for language models
    from dictionary_learning.trainers import BatchTopKTrainer, JumpReluTrainer, StandardTrainer, TopKTrainer
    from dictionary_learning.training import trainSAE

    sizes = {"steps": steps + 1, "activation_dim": d, "dict_size": f, "layer": 0, "lm_name": "none", "device": "cpu"}
    configs = []
    for level, lr in MEMBERS:
        common = sizes | {"lr": lr, "warmup_steps": 0}
        penalized = common | {"sparsity_warmup_steps": 0}
        configs += [
            {"trainer": StandardTrainer, "l1_penalty": 128 / level, **penalized},
            {"trainer": JumpReluTrainer, "target_l0": level, **penalized},
            {"trainer": TopKTrainer, "k": level, **common},
            {"trainer": BatchTopKTrainer, "k": level, **common},
        ]
    trainSAE(rows, configs, steps=steps, device="cpu")


def sae_lens(rows: TimedRows, d: int, f: int, batch: int, steps: int) -> None:
    import sae_lens as lens
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.multi_sae_trainer import MultiSAETrainer
    from sae_lens.training.sae_trainer import SAETrainer

    sizes = {"d_in": d, "d_sae": f}
    saes, rates = {}, {}
    for level, lr in MEMBERS:
        jump_relu = {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": level, **sizes}
        for sae in (
            lens.StandardTrainingSAE(lens.StandardTrainingSAEConfig(l1_coefficient=128 / level, **sizes)),
            lens.JumpReLUTrainingSAE(lens.JumpReLUTrainingSAEConfig(**jump_relu)),
            lens.TopKTrainingSAE(lens.TopKTrainingSAEConfig(k=level, **sizes)),
            lens.BatchTopKTrainingSAE(lens.BatchTopKTrainingSAEConfig(k=level, **sizes)),
        ):
            name = f"{sae.cfg.architecture()}-{level}-{lr}"
            saes[name], rates[name] = sae, lr
    log = LoggingConfig(log_to_wandb=False)
    config = SAETrainerConfig(steps * batch, train_batch_size_samples=batch, lr_end=0.0, logger=log)
    provider = ({"rows": x_BxD} for x_BxD in rows)
    trainer = MultiSAETrainer(config, saes, dict.fromkeys(saes, "rows"), provider)
    trainer.trainers = {
        name: SAETrainer(replace(config, lr=rates[name]), sae, data_provider=iter(())) for name, sae in saes.items()
    }
    trainer.fit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=("dictionary_learning", "sae_lens"))
    for name, default in {"d": 576, "f": 1536, "batch": 1024, "steps": 9}.items():
        parser.add_argument("--" + name, type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    rows = TimedRows(args.batch, args.d)
    peer = dictionary_learning if args.peer == "dictionary_learning" else sae_lens
    peer(rows, args.d, args.f, args.batch, args.steps)
    print(json.dumps({"name": args.peer, "members": 4 * len(MEMBERS), **rows.seconds_per_step()}))


if __name__ == "__main__":
    main()
