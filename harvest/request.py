"""What a harvest is asked for: the fields are the command line's flags. No torch, no jax."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from harvest.errors import InputError

DEFAULT_MODEL = "gpt2-small"
DEFAULT_DATASET = "NeelNanda/pile-10k"
HOOKS = ("resid_pre", "resid_mid", "resid_post", "mlp_out", "attn_out")
STORE_DTYPES = ("float16", "float32")


def flag(default, help: str, **extra):
    """A dataclass field that `main.py` shows as a flag."""
    return field(default=default, metadata={"help": help, **extra})


def default_cache_dir() -> Path:
    return Path.home() / ".cache" / "sae-jax"


@dataclass(frozen=True)
class HarvestRequest:
    """Which activations: of which model, at which hook, on which text.

    `model_name` and `dataset` of None mean the defaults (DEFAULT_MODEL, DEFAULT_DATASET), and only these may fall
    back to the bundled model and corpus where no hub is in reach. Raises InputError for values that cannot be.
    """

    model_name: str | None = flag(
        None,
        f"hub name, alias, local directory or 'bundled' (default: {DEFAULT_MODEL}; bundled where no hub is in reach)",
    )
    dataset: str | None = flag(
        None,
        f"hub data set, .txt, .jsonl, .jsonl.gz, .parquet or 'bundled' (default: {DEFAULT_DATASET}; "
        "bundled where no hub is in reach)",
    )
    layer: int = flag(0, "layer of the model to read")
    hook: str = flag("resid_pre", "where in the layer", choices=HOOKS)
    n_samples: int = flag(10000, "token windows to harvest, held-out ones included")
    seq_len: int = flag(20, "tokens a window; a window never crosses a document")
    held_out: float = flag(0.1, "share of the windows that comes from documents kept for evaluation")
    keep_first_position: bool = flag(False, "keep the first position of each window (in GPT-2 an outlier)")
    store_dtype: str = flag("float16", "number format of the rows on disk", choices=STORE_DTYPES)

    def __post_init__(self) -> None:
        def need(ok: bool, name: str, allowed: str) -> None:
            if not ok:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be {allowed}")

        need(self.layer >= 0, "layer", "0 or more")
        need(self.hook in HOOKS, "hook", f"one of {', '.join(HOOKS)}")
        need(self.n_samples >= 2, "n_samples", "at least 2 (one window to train on, one held out)")
        need(self.seq_len >= (1 if self.keep_first_position else 2), "seq_len", "at least 2")
        need(0 < self.held_out < 1, "held_out", "between 0 and 1")
        need(self.store_dtype in STORE_DTYPES, "store_dtype", f"one of {', '.join(STORE_DTYPES)}")
        for name in ("model_name", "dataset"):
            need(getattr(self, name) is None or bool(getattr(self, name).strip()), name, "a name, not an empty text")
