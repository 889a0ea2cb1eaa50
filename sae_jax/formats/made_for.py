"""Differences between the rows that a dictionary was trained on, by its metadata, and the rows used here."""

from __future__ import annotations

from typing import Any

# TransformerLens' settings of a model. Those of OTHER_WEIGHTS change its weights. Those of SAME_ROWS do not change the
# activations read here, except `center_writing_weights`, which `Dictionary.sae` applies. A dtype is reported.
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
    "default_prepend_bos",
    "refactor_factored_attn_matrices",
)
SAME_ROWS += ("device", "device_map", "n_devices", "move_to_device", "cache_dir", "token", "local_files_only", "n_ctx")
SAME_ROWS += ("trust_remote_code", "default_padding_side", "attn_implementation", "low_cpu_mem_usage")
FLOAT32 = ("float32", "torch.float32", "fp32", "float")
EVERY_POSITION: Any = ([], [None], [0], [None, None], [0, None], [None, None, None], [0, None, 1], [0, None, None])


def settings_of(metadata: dict[str, Any]) -> dict[str, Any]:
    """The settings with which the model of a dictionary was loaded (`model_from_pretrained_kwargs`).

    Settings that are null or false are left out.
    """
    settings = metadata.get("model_from_pretrained_kwargs") or {}
    return {name: value for name, value in settings.items() if value is not None and value is not False}


def other_weights(metadata: dict[str, Any]) -> str:
    """The settings that give its model other weights than the published ones: "revision = 'step1000'"."""
    settings = settings_of(metadata)
    return ", ".join(
        f"{name} = {settings[name]!r}" for name in OTHER_WEIGHTS if name in settings and settings[name] != "main"
    )


def other_rows(metadata: dict[str, Any]) -> list[str]:
    """Notes on settings of its training rows that are not reproduced here."""
    settings, notes = settings_of(metadata), []
    for name in ("dtype", "torch_dtype"):
        if (dtype := str(settings.pop(name, "float32"))) not in FLOAT32:
            notes.append(f"its model ran in {dtype.removeprefix('torch.')}; here it runs in float32")
    positions = metadata.get("seqpos_slice")
    if positions is not None and positions not in EVERY_POSITION:
        notes.append(
            f"it was trained on the positions {positions} of each window (seqpos_slice); here others are used, too"
        )
    if unknown := sorted(settings.keys() - {*OTHER_WEIGHTS, *SAME_ROWS}):
        notes.append(f"its model was loaded with {', '.join(unknown)}, which is not done here")
    return notes
