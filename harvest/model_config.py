"""Reading the size and number format of a language model from its config.json. Imports neither torch nor jax."""

from __future__ import annotations

from harvest.request import MODEL_DTYPES, STREAMS

LAYER_KEYS = ("n_layer", "num_hidden_layers", "n_layers", "num_layers")
POSITION_KEYS = ("n_positions", "max_position_embeddings", "n_ctx", "max_seq_len")
WIDTH_KEYS = ("n_embd", "hidden_size", "d_model")
HEAD_KEYS, HEAD_WIDTH_KEYS = ("n_head", "num_attention_heads", "n_heads", "num_heads"), ("head_dim", "d_kv")
EMBEDDING_KEYS = ("word_embed_proj_dim", "embedding_size")  # of models whose embeddings have another width
KEY_HEAD_KEYS, MLP_KEYS = ("num_key_value_heads",), ("n_inner", "intermediate_size", "ffn_dim", "d_ff")


def widths_in(config: dict) -> dict[str, int]:
    """The width of the activations at each hook, as far as the config of a model tells them."""
    d_model, heads = first_of(WIDTH_KEYS, config), first_of(HEAD_KEYS, config)
    if not d_model:
        return {}
    widths = dict.fromkeys((*STREAMS, "mlp_in", "final"), d_model)
    widths["embed"] = first_of(EMBEDDING_KEYS, config) or d_model
    widths["mlp_post"] = first_of(MLP_KEYS, config) or 4 * d_model
    if heads:
        head = first_of(HEAD_WIDTH_KEYS, config) or d_model // heads
        key_heads = first_of(KEY_HEAD_KEYS, config) or heads
        widths |= {"one head": head, "q": heads * head, "z": heads * head, "k": key_heads * head, "v": key_heads * head}
    return widths


def published_dtype_in(config: dict) -> str:
    """The number format of the weights as the config of a model gives it; float32 if it gives none that models run in.

    Multimodal models have it in text_config.
    """
    inner = config.get("text_config")
    found = (
        level.get(key)
        for level in (inner if isinstance(inner, dict) else {}, config)
        for key in ("dtype", "torch_dtype")
    )
    return next((dtype for dtype in found if dtype in MODEL_DTYPES[1:]), "float32")


def first_of(keys: tuple[str, ...], config: dict) -> int | None:
    """A number in the config of a model, under any of these keys; multimodal models have it in text_config."""
    inner = config.get("text_config")
    for level in (config, inner if isinstance(inner, dict) else {}):
        for key in keys:
            if type(level.get(key)) is int and level[key] > 0:
                return level[key]
    return None
