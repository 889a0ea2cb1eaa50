"""The time of a topk step of another project on a GPU, or on the CPU without one, as one JSON line.

    PYTHONPATH=tests/benchmarks PEERS/bin/python tests/benchmarks/accelerator_parts/peer_step.py sae_lens bfloat16

Rows are on the device already. SAELens runs its own `SAETrainer.fit`, and a step is the time between two requests for
rows. dictionary_learning runs its trainer's `update` with the loss compiled by torch.compile. sparsify has no loop that
takes rows, so its SAE runs its own forward pass with its kernels, then Adam and the unit norm, as in its trainer.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from unittest.mock import MagicMock

import torch
from sparse_rows import sparse_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FIRST_STEPS, STEPS = 5, 20
BATCHES = 4


def now() -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def sae_lens(rows: list[torch.Tensor], asked: argparse.Namespace) -> list[float]:
    import sae_lens as lens
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    asked_at: list[float] = []

    def provider() -> Iterator[torch.Tensor]:
        while True:
            asked_at.append(now())
            yield rows[len(asked_at) % len(rows)]

    sparse = DEVICE == "cuda"  # sparse activations have no backward pass on a CPU
    sae = lens.TopKTrainingSAE(
        lens.TopKTrainingSAEConfig(k=asked.k, d_in=asked.d, d_sae=asked.f, device=DEVICE, use_sparse_activations=sparse)
    )
    config = SAETrainerConfig(
        (FIRST_STEPS + STEPS) * asked.batch,
        train_batch_size_samples=asked.batch,
        lr_end=0.0,
        device=DEVICE,
        autocast=asked.precision == "bfloat16",
        logger=LoggingConfig(log_to_wandb=False),
    )
    SAETrainer(config, sae, data_provider=provider()).fit()
    return [after - before for before, after in zip(asked_at, asked_at[1:], strict=False)]


def dictionary_learning(rows: list[torch.Tensor], asked: argparse.Namespace) -> list[float]:
    sys.modules.setdefault("nnsight", MagicMock())  # only needed for language models
    from dictionary_learning.trainers import TopKTrainer

    trainer = TopKTrainer(
        steps=10_000,
        activation_dim=asked.d,
        dict_size=asked.f,
        k=asked.k,
        layer=0,
        lm_name="none",
        device=DEVICE,
        warmup_steps=0,
    )
    trainer.loss = torch.compile(trainer.loss)
    return timed(lambda step: trainer.update(step, rows[step % len(rows)]), asked)


def sparsify(rows: list[torch.Tensor], asked: argparse.Namespace) -> list[float]:
    from sparsify import SparseCoder, SparseCoderConfig

    sae = SparseCoder(asked.d, SparseCoderConfig(num_latents=asked.f, k=asked.k), device=DEVICE)
    adam = torch.optim.Adam(sae.parameters(), lr=1e-3)

    def step(number: int) -> None:
        sae.set_decoder_norm_to_unit_norm()
        sae(rows[number % len(rows)]).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()

    return timed(step, asked)


def timed(step: Callable[[int], None], asked: argparse.Namespace) -> list[float]:
    seconds = []
    with torch.autocast(DEVICE, torch.bfloat16, enabled=asked.precision == "bfloat16"):
        for number in range(FIRST_STEPS + STEPS):
            began = now()
            step(number)
            seconds.append(now() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers = {peer.__name__: peer for peer in (sae_lens, dictionary_learning, sparsify)}
    parser.add_argument("peer", choices=peers)
    parser.add_argument("precision", choices=("tensorfloat32", "bfloat16"))
    for name, default in {"d": 768, "f": 6144, "batch": 4096, "k": 32}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")  # TF32
    rows_NxD = torch.from_numpy(sparse_rows(BATCHES * asked.batch, asked.d)).to(DEVICE, torch.float32)
    seconds = peers[asked.peer](list(rows_NxD.split(asked.batch)), asked)[FIRST_STEPS:]
    step = statistics.median(seconds)
    print(json.dumps({"seconds_per_step": step, "rows_per_second": asked.batch / step}))


if __name__ == "__main__":
    main()
