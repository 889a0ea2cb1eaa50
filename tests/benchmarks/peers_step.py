"""The time of a step of SAELens' training loop on the rows of step.py, as one JSON line per kind.

    OMP_NUM_THREADS=1 taskset -c 0 PEERS/bin/python tests/benchmarks/peers_step.py topk --d 768 --f 256 --batch 64

PEERS: pip install 'torch<2.14' sae-lens==6.54.12. `SAETrainer.fit` is unmodified and has no log. A step is the time
between two requests for rows. SAELens computes densely, so the time does not depend on the number of active features.
"""

import argparse
import json
import os

import sae_lens as lens
import torch
from peers_population import TimedRows
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

KINDS = {
    "relu": lambda sizes, k: lens.StandardTrainingSAE(lens.StandardTrainingSAEConfig(l1_coefficient=128 / k, **sizes)),
    "jump_relu": lambda sizes, k: lens.JumpReLUTrainingSAE(lens.JumpReLUTrainingSAEConfig(**sizes)),
    "topk": lambda sizes, k: lens.TopKTrainingSAE(lens.TopKTrainingSAEConfig(k=k, **sizes)),
    "batch_topk": lambda sizes, k: lens.BatchTopKTrainingSAE(lens.BatchTopKTrainingSAEConfig(k=k, **sizes)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("activation", nargs="*", default=["relu", "jump_relu", "topk"], choices=list(KINDS))
    for name, default in {"d": 768, "f": 256, "batch": 64, "k": 32, "steps": 10}.items():
        parser.add_argument("--" + name, type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    log = LoggingConfig(log_to_wandb=False)
    config = SAETrainerConfig(args.steps * args.batch, train_batch_size_samples=args.batch, lr_end=0.0, logger=log)
    for name in args.activation:
        rows = TimedRows(args.batch, args.d)
        sae = KINDS[name]({"d_in": args.d, "d_sae": args.f}, args.k)
        SAETrainer(config, sae, data_provider=iter(rows)).fit()
        print(json.dumps({"name": name, **rows.seconds_per_step()}))


if __name__ == "__main__":
    main()
