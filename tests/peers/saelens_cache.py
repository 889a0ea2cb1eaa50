"""Let SAELens cache activations of a model. Runs in the environment of the peers.

    PEERS/bin/python tests/peers/saelens_cache.py MODEL TEXTS.jsonl HOOK_NAME TO

TEXTS.jsonl has the key `text`. Windows have 20 tokens and begin with BOS.
"""

import json
import sys
from pathlib import Path

from datasets import Dataset
from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig, cache_activations_runner
from transformer_lens.model_bridge import TransformerBridge

model, texts, hook_name, to = sys.argv[1:]
records = [json.loads(line) for line in Path(texts).read_text().splitlines()]
cfg = CacheActivationsRunnerConfig(
    dataset_path=texts,
    model_name=model,
    model_batch_size=8,
    hook_name=hook_name,
    d_in=json.loads((Path(model) / "config.json").read_text())["n_embd"],
    training_tokens=20 * 400,
    context_size=20,
    new_cached_activations_path=to,
    shuffle=False,
    prepend_bos=True,
    streaming=False,
    buffer_size_gb=0.002,
)
# Its own loader knows only models of the hub.
cache_activations_runner.load_model = lambda **_: TransformerBridge.boot_transformers(model)
CacheActivationsRunner(cfg, Dataset.from_list([{"text": record["text"]} for record in records])).run()
