"""`--preset NAME`: flags of set-ups for GPT-2 small, published ones and our own. Imports neither torch nor jax.

A preset gives defaults, which flags on the command line override. `not_followed` lists the parts of a published set-up
that no flag reproduces. For the bundled model, `scale_down` adapts a preset and reports the changed values.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from harvest.errors import InputError
from harvest.flags import named, nearest
from harvest.request import HarvestRequest
from harvest.sources import Source, resolve
from sae_jax.config import TrainConfig

N_LAYERS, D_MODEL = 12, 768  # sizes of GPT-2 small
# Settings for the bundled corpus. Its documents are short, so longer windows would waste more of the text.
BUNDLED_SEQ_LEN, BUNDLED_WINDOWS, BUNDLED_HELD_OUT = 64, 14_819, 0.1
SHORT_RUN_STEPS, SHORT_RUN_LR = 1500, 1e-3  # a learning rate for runs of fewer steps

Settings = TypeVar("Settings", HarvestRequest, TrainConfig)


@dataclass(frozen=True)
class Preset:
    """A set-up: values of flags, its source and published results, and the parts that are not reproduced."""

    about: str
    flags: dict[str, Any]  # {field of HarvestRequest or TrainConfig: value}
    source: str
    published: str
    not_followed: tuple[str, ...]


ON_OPENWEBTEXT = {"dataset": "Skylion007/openwebtext", "seq_len": 128, "held_out": 0.01}
ON_OPENWEBTEXT |= {"epochs": 1, "batch_size": 4096, "n_samples": 300_000_000 // 128}
ON_OPENWEBTEXT |= {"decoder_lr_ratio": (1.0,), "fit_decoder": False}  # as published
RES_JB = ON_OPENWEBTEXT | {"layer": (8,), "hook": ("resid_pre",), "activation": ("relu",), "lr": (4e-4,)}
RES_JB |= {"normalization": ("mean_norm",), "dead_rule": ("anthropic",)}
OF_RES_JB = (
    "the L1 coefficient 8e-5, which belongs to another scale of loss and rows; here a target L0",
    "ghost gradients; here silent features are revived (--dead-rule anthropic)",
    "TransformerLens' centered weights, and first positions; here published weights without first positions",
    "b_dec from the geometric median; here from the mean",
)
TOPK = ON_OPENWEBTEXT | {"aux_coefficient": (1 / 32,), "normalization": ("mean_norm",), "dead_rule": ("none",)}

PRESETS = {
    "feature-splitting": Preset(
        about="relu at layer 8, eight widths, 768 to 98304 features",
        flags=RES_JB | {"hidden_dim": tuple(768 * 2**i for i in range(8)), "target_l0": (40.0,)},
        source="huggingface.co/jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8",
        published="explained variance .61 .67 .72 .76 .77 .79 .81 .82 by width, at L0 36 to 43",
        not_followed=OF_RES_JB,
    ),
    "res-jb": Preset(
        about="relu at layer 8, 24576 features",
        flags=RES_JB | {"hidden_dim": (24576,), "target_l0": (60.0,)},
        source="huggingface.co/jbloom/GPT2-Small-SAEs",
        published="L0 10 10 18 23 31 41 51 54 60 70 52 56 at layers 0 to 11 (another --layer: give --target-l0)",
        not_followed=OF_RES_JB,
    ),
    "openai-v5-32k": Preset(
        about="topk at layers 0 1 2, 32768 features, 32 active",
        flags=TOPK
        | {"layer": (0, 1, 2), "hook": ("resid_mid",), "activation": ("topk",), "k": (32,), "hidden_dim": (32768,)}
        | {"lr": (1e-4,), "ema": 0.999, "batch_size": 131072, "seq_len": 64}
        | {"n_samples": 640_000_000 // 64},
        source="github.com/openai/sparse_autoencoder (train.py); Gao et al. 2024",
        published="explained variance .968 .961 .957, CE score .9988 .9994 .9981 at layers 0 1 2",
        not_followed=(
            "the decay of the weights' average; here .999",
            "a layer norm of each row; here rows are divided by their mean norm",
            "Adam's epsilon 6.25e-10; AuxK with 256 features, here with half the model's width",
            "features dead after 10M silent rows; here after a tenth of the run",
            "the number of rows, which the code does not state; here 640M",
        ),
    ),
    "batch-topk-grid": Preset(
        about="topk and batch_topk at layer 8, four widths, 16 32 64 active",
        flags=TOPK
        | {"layer": (8,), "hook": ("resid_pre",), "activation": ("topk", "batch_topk"), "k": (16, 32, 64)}
        | {"hidden_dim": (3072, 6144, 12288, 24576), "lr": (3e-4,), "n_samples": 500_000_000 // 128},
        source="github.com/bartbussmann/BatchTopK (config.py, main.py); Bussmann et al. 2024",
        published="batch_topk is always above topk; the numbers are only in plots of the paper",
        not_followed=(
            "a normalization of each row; here rows are divided by their mean norm",
            "Adam's second decay .99, here .999; a constant lr, here with --warmup and --decay",
            "AuxK with 512 features, dead after 5 silent batches; here half the model's width, a tenth of the run",
        ),
    ),
    "gemma-scope": Preset(
        about="jump_relu of Gemma Scope adapted to layer 8, 16384 features, L0 20 40 80",
        flags=ON_OPENWEBTEXT
        | {"layer": (8,), "hook": ("resid_post",), "activation": ("jump_relu",), "target_l0": (20.0, 40.0, 80.0)}
        | {"hidden_dim": (16384,), "lr": (7e-5,), "normalization": ("mean_square",), "dead_rule": ("none",)},
        source="Lieberum et al. 2024, Gemma Scope (arXiv 2408.05147)",
        published="none for GPT-2, only for Gemma 2",
        not_followed=(
            "a grid of fixed coefficients of L0 (--sparsity); here three targets for L0",
            "a kernel of width .001; Adam's first decay 0, here .9; a constant lr, here with --warmup and --decay",
            "4 billion rows; here 300M",
        ),
    ),
    "frontier": Preset(
        about="five kinds at layer 8, 3072 features, 16 32 64 active, three seeds; ends in the Pareto plot",
        flags={"layer": (8,), "hidden_dim": (3072,), "target_l0": (16.0, 32.0, 64.0), "k": (16, 32, 64)}
        | {"activation": ("relu", "jump_relu", "gated", "topk", "batch_topk"), "seed": (0, 1, 2)}
        | {"dead_rule": ("anthropic",), "seq_len": 128, "n_samples": 100_000, "epochs": 1, "batch_size": 2048},
        source="ours",
        published="none",
        not_followed=(),
    ),
}


def preset_named(name: str) -> Preset:
    """The preset of this name. Raises InputError, with all names, for an unknown one."""
    if name not in PRESETS:
        known = f"must be one of {', '.join(PRESETS)} (or list, which describes them)"
        raise InputError(f"--preset {name}: {known}{nearest(name, PRESETS)}")
    return PRESETS[name]


def bundled_model(model_name: str | None) -> Source | None:
    """The bundled model if it is named, or if it replaces an unreachable default; otherwise None."""
    if model_name not in (None, "bundled"):
        return None
    model, _ = resolve(HarvestRequest(model_name=model_name, dataset="bundled"))
    return model if model.fell_back or model.asked == "bundled" else None


def scale_down(
    request: HarvestRequest, config: TrainConfig, given: Collection[str], bundled: Source
) -> tuple[HarvestRequest, TrainConfig, list[str]]:
    """(both adapted to the bundled model, a text for each change). Flags that are `given` do not change."""
    changes: list[str] = []

    def changed(settings: Settings, name: str, value: Any, why: str) -> Settings:
        before = getattr(settings, name)
        if named(name) in given or value == before:
            return settings
        changes.append(f"{named(name)} {flag_value(before)} -> {flag_value(value)} ({why})")
        return replace(settings, **{name: value})

    d_model = bundled.width(request.hook)
    assert bundled.n_layers and d_model
    deepest = (bundled.n_layers - 1) / (N_LAYERS - 1)
    layers = tuple(sorted({round(layer * deepest) for layer in request.layer}))
    request = changed(request, "layer", layers, f"the model has {bundled.n_layers} layers, not {N_LAYERS}")
    widths = tuple(max(16, width * d_model // D_MODEL // 16 * 16) for width in config.hidden_dim)
    why = f"the model has width {d_model}, not {D_MODEL}; multiples of 16 allow the sparse path"
    config = changed(config, "hidden_dim", widths, why)
    request = changed(request, "dataset", "bundled", "the text that the model was trained on")
    if request.dataset != "bundled":
        return request, config, changes
    request = changed(request, "seq_len", min(request.seq_len, BUNDLED_SEQ_LEN), "the documents are short")
    windows = BUNDLED_WINDOWS * BUNDLED_SEQ_LEN // request.seq_len
    request = changed(request, "n_samples", min(request.n_samples, windows), "the whole text")
    request = changed(request, "held_out", max(request.held_out, BUNDLED_HELD_OUT), "enough rows for the metrics")
    rows = request.training_rows * config.epochs
    if rows // config.batch_size < SHORT_RUN_STEPS:
        fewer = max(16, 1 << (max(rows // SHORT_RUN_STEPS, 1).bit_length() - 1))
        config = changed(config, "batch_size", min(config.batch_size, fewer), f"at least {SHORT_RUN_STEPS:,} steps")
        rates = tuple(dict.fromkeys(max(lr, SHORT_RUN_LR) for lr in config.lr))
        config = changed(config, "lr", rates, "few steps need a higher rate")
    return request, config, changes


def flag_value(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(flag_value, value))
    return "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
