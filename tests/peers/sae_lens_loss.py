"""SAELens' evaluation of dictionaries on given token windows. Runs in the environment of SAELens.

python sae_lens_loss.py MODEL_DIR WINDOWS.npy HOOK_NAME HOOKED|BRIDGE IGNORED_TOKEN|-1 DICTIONARY... > figures.json
"""

import json
import sys
from types import SimpleNamespace

import numpy as np
import torch
from sae_lens import SAE
from sae_lens.evals import get_downstream_reconstruction_metrics
from sae_lens.training.activation_scaler import ActivationScaler
from transformer_lens import HookedTransformer
from transformers import AutoTokenizer, GPT2LMHeadModel

model_dir, windows_path, hook_name, model_class, ignored, *directories = sys.argv[1:]
if model_class == "BRIDGE":
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(model_dir)
else:
    raw = GPT2LMHeadModel.from_pretrained(model_dir, dtype=torch.float32)
    c = raw.config
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    facts = {"n_layers": c.n_layer, "d_model": c.n_embd, "n_heads": c.n_head, "d_head": c.n_embd // c.n_head}
    facts |= {"d_mlp": 4 * c.n_embd, "d_vocab": c.vocab_size, "n_ctx": c.n_positions, "act_fn": "gelu_new"}
    facts |= {"normalization_type": "LN", "eps": c.layer_norm_epsilon, "default_prepend_bos": False}
    cfg = HookedTransformerConfig(**facts)
    model = HookedTransformer(cfg, tokenizer=AutoTokenizer.from_pretrained(model_dir))
    weights = convert_gpt2_weights(raw, cfg)
    model.load_state_dict(weights, strict=False)
model.eval()
tokens_WxT = torch.from_numpy(np.load(windows_path)).long()
found = []
for directory in directories:
    sae = SAE.load_from_disk(directory)
    sae.cfg.metadata.hook_name = hook_name
    batches = iter(tokens_WxT.split(32))
    with torch.no_grad():
        metrics = get_downstream_reconstruction_metrics(
            sae,
            model,
            SimpleNamespace(get_batch_tokens=lambda n, batches=batches: next(batches)),
            ActivationScaler(),
            compute_kl=True,
            compute_ce_loss=True,
            n_batches=-(-len(tokens_WxT) // 32),
            eval_batch_size_prompts=32,
            ignore_tokens=[int(ignored)] if int(ignored) >= 0 else None,
        )
    found.append(metrics)
print("FIGURES" + json.dumps(found))
