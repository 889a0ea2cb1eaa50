"""Random language models of many families, with a few thousand weights each and the bundled tokenizer."""

from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM

from harvest.sources import BUNDLED_MODEL

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES |= {"vocab_size": 4096, "initializer_range": 0.3}
OPT = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 4096}
OPT |= {"max_position_embeddings": 64, "init_std": 0.3}
GPT = {"vocab_size": 4096, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
SEQ2SEQ = {"vocab_size": 4096, "d_model": 32, "num_heads": 4, "d_kv": 8, "d_ff": 64, "num_layers": 3}

CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SIZES, num_key_value_heads=2),
    "mistral": lambda: transformers.MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=8),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES, num_key_value_heads=2),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8),
    "gemma2": lambda: transformers.Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=8),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SIZES, num_key_value_heads=2, head_dim=8, sliding_window=8),
    "phi": lambda: transformers.PhiConfig(**SIZES),
    "olmo": lambda: transformers.OlmoConfig(**SIZES),
    "olmo2": lambda: transformers.Olmo2Config(**SIZES),
    "granite": lambda: transformers.GraniteConfig(**SIZES, num_key_value_heads=2, residual_multiplier=0.5),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SIZES, use_parallel_residual=True),
    "opt": lambda: transformers.OPTConfig(**OPT, word_embed_proj_dim=32),
    "post-norm opt": lambda: transformers.OPTConfig(**OPT, word_embed_proj_dim=16, do_layer_norm_before=False),
    "bloom": lambda: transformers.BloomConfig(
        vocab_size=4096, hidden_size=32, n_layer=3, n_head=4, initializer_range=0.3
    ),
    "codegen": lambda: transformers.CodeGenConfig(**GPT, n_ctx=64, rotary_dim=4),
    "gpt": lambda: transformers.OpenAIGPTConfig(**GPT),
    "gpt2": lambda: transformers.GPT2Config(**GPT),
    "bert": lambda: transformers.BertConfig(**SIZES, max_position_embeddings=64),
    "roberta": lambda: transformers.RobertaConfig(**SIZES, max_position_embeddings=66),
    "t5": lambda: transformers.T5Config(**SEQ2SEQ),
}
CLASSES = {"bert": transformers.BertForMaskedLM, "roberta": transformers.RobertaForMaskedLM}
CLASSES |= {"t5": transformers.T5ForConditionalGeneration}


def write_model_with_large_token(directory: Path, token: int, factor: float) -> Path:
    """Write the directory of a GPT-2 in which the embedding of one token is so many times as large."""
    write_model("gpt2", directory)
    weights = load_file(directory / "model.safetensors")
    (name,) = (name for name in weights if name.endswith("wte.weight"))
    weights[name][token] *= factor
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return directory


def write_model(family: str, directory: Path, bos: bool = False) -> Path:
    """Write the directory of a model with transformers. With `bos`, its tokenizer begins each text with a token."""
    torch.manual_seed(0)
    config = CONFIGS[family]()
    model = CLASSES[family](config) if family in CLASSES else AutoModelForCausalLM.from_config(config)
    model.eval().save_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(BUNDLED_MODEL)
    if bos:
        tokenizer.bos_token = tokenizer.eos_token
        named = (tokenizer.bos_token, tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{named[0]} $A", special_tokens=[named])
    tokenizer.save_pretrained(directory)
    return directory
