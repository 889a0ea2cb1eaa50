"""The time from text to activations in our harvest or in SAELens' ActivationsStore, as one JSON line.

    PYTHONPATH=. OMP_NUM_THREADS=1 taskset -c 0 python tests/benchmarks/harvest_peers.py ours --model DIR
        --dataset FILE.jsonl --layer 8 --seq-len 64

Both read the text, tokenize, cut windows, run the model up to the layer and hand out rows: ours shuffled when they are
read, SAELens' mixed in its buffer. Theirs (`sae_lens`, to be run in an environment with sae-lens==6.54.12) is on
TransformerLens' HookedTransformer, its default, built with the sizes of the model's config and random weights (its
tables lack many models, and the time does not depend on weights); only Llama's architecture. Loading the model and the
first buffer are not counted. Fields: seconds and cpu_seconds for a million rows, rows_per_second.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def for_a_million(rows: int, began: tuple[float, float]) -> list[float]:
    """Wall-clock seconds and CPU seconds of this process, for a million rows."""
    return [1e6 * (b - a) / rows for a, b in zip(began, now(), strict=True)]


def ours(args: argparse.Namespace) -> list[float]:
    from harvest.capture import harvest
    from harvest.request import HarvestRequest

    seen: list[tuple[tuple[float, float], int]] = []
    asked = HarvestRequest(args.model, args.dataset, args.layer, n_samples=args.windows, seq_len=args.seq_len)
    with tempfile.TemporaryDirectory() as cache:
        harvest(asked, Path(cache), on_progress=lambda phase, done, total: seen.append((now(), done)))
        return for_a_million(seen[-1][1] - seen[0][1], seen[0][0])  # the store is complete


def sae_lens(args: argparse.Namespace) -> list[float]:
    import torch
    from datasets import Dataset
    from sae_lens.training.activations_store import ActivationsStore
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformers import AutoTokenizer

    hf = json.loads((Path(args.model) / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    config = HookedTransformerConfig(
        n_layers=hf["num_hidden_layers"],
        d_model=hf["hidden_size"],
        n_heads=hf["num_attention_heads"],
        n_key_value_heads=hf["num_key_value_heads"],
        d_head=hf["head_dim"],
        d_mlp=hf["intermediate_size"],
        d_vocab=hf["vocab_size"],
        n_ctx=args.seq_len,
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_dim=hf["head_dim"],
        final_rms=True,
        default_prepend_bos=False,
    )
    texts = [json.loads(line)["text"] for line in Path(args.dataset).read_text().splitlines()]
    store = ActivationsStore(
        model=HookedTransformer(config, tokenizer).eval(),
        dataset=Dataset.from_dict({"text": texts}),
        streaming=False,
        hook_name=f"blocks.{args.layer}.hook_resid_pre",
        hook_head_index=None,
        context_size=args.seq_len,
        d_in=config.d_model,
        n_batches_in_buffer=64,
        total_training_tokens=args.windows * args.seq_len,
        store_batch_size_prompts=32,
        train_batch_size_tokens=1024,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
    )
    store.next_batch()
    began, rows = now(), 0
    with torch.no_grad():
        while rows < args.windows * args.seq_len:
            rows += len(store.next_batch())
    return for_a_million(rows, began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("who", choices=("ours", "sae_lens"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--layer", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--windows", type=int, default=1024)
    args = parser.parse_args()
    seconds, cpu_seconds = (ours if args.who == "ours" else sae_lens)(args)
    figures = {"seconds": seconds, "cpu_seconds": cpu_seconds, "rows_per_second": 1e6 / seconds}
    print(json.dumps({"name": f"harvest {args.who}", **figures}))


if __name__ == "__main__":
    main()
