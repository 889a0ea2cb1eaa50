"""What a dictionary's metadata says of the rows that it was made for, where our rows are others."""

from __future__ import annotations

from typing import Any

# Of TransformerLens' settings of a model: those by which it has other weights, and those by which it computes the same
# at the hooks that are read here. `center_writing_weights` is obeyed (`Dictionary.sae`), a dtype is told.
OTHER_WEIGHTS = (
    "revision",
    "code_revision",
    "checkpoint_index",
    "checkpoint_value",
    "first_n_layers",
    "quantization_config",
    "load_in_4bit",
    "load_in_8bit",
)
SAME_ROWS: tuple[str, ...] = (
    "center_writing_weights",
    "center_unembed",
    "fold_ln",
    "fold_value_biases",
    "refactor_factored_attn_matrices",
)
SAME_ROWS += ("device", "device_map", "n_devices", "move_to_device", "cache_dir", "token", "local_files_only", "n_ctx")
SAME_ROWS += ("trust_remote_code", "default_padding_side", "attn_implementation", "low_cpu_mem_usage")
FLOAT32 = ("float32", "torch.float32", "fp32", "float")
EVERY_POSITION: tuple[list[int | None], ...] = (
    [],
    [None],
    [0],
    [None, None],
    [0, None],
    [None, None, None],
    [0, None, 1],
    [0, None, None],
)


def settings_of(metadata: dict[str, Any]) -> dict[str, Any]:
    """Of its model (`model_from_pretrained_kwargs`), those that are set."""
    settings = metadata.get("model_from_pretrained_kwargs") or {}
    return {name: value for name, value in settings.items() if value is not None and value is not False}


def other_weights(metadata: dict[str, Any]) -> str:
    """The settings by which its model has other weights than the published ones: "revision = 'step1000'"."""
    settings = settings_of(metadata)
    return ", ".join(
        f"{name} = {settings[name]!r}" for name in OTHER_WEIGHTS if name in settings and settings[name] != "main"
    )


def other_rows(metadata: dict[str, Any]) -> list[str]:
    """Sentences on what it was trained on that is not done here."""
    settings, told = settings_of(metadata), []
    for name in ("dtype", "torch_dtype"):
        if (dtype := str(settings.pop(name, "float32"))) not in FLOAT32:
            told.append(f"its model ran in {dtype.removeprefix('torch.')}; here it runs in float32")
    if metadata.get("prepend_bos") or settings.pop("default_prepend_bos", False):
        told.append("it was trained on windows that begin with a special token (prepend_bos); here they are text alone")
    if metadata.get("hook_head_index") is not None:
        told.append(
            f"it is of head {metadata['hook_head_index']} alone (hook_head_index); here whole activations are read"
        )
    positions = metadata.get("seqpos_slice")
    if positions is not None and (not isinstance(positions, list) or positions not in EVERY_POSITION):
        told.append(
            f"it was trained on the positions {positions} of each window (seqpos_slice); here others count, too"
        )
    if unknown := sorted(settings.keys() - {*OTHER_WEIGHTS, *SAME_ROWS}):
        told.append(f"its model was loaded with {', '.join(unknown)}, which is not done here")
    return told
