"""The request for a harvest. Its fields are flags on the command line. Imports neither torch nor jax."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

from harvest.errors import InputError
from harvest.flags import ABOVE_0, COUNT, NUMBER, POSITIVE, TEXT, Allowed, Flags, flag

DEFAULT_MODEL = "gpt2-small"
DEFAULT_DATASET = "NeelNanda/pile-10k"
# hook: (TransformerLens' hook point, the tensor that is read). STREAMS and INNER are within a block, OUTER before or
# behind all blocks. STREAMS are as wide as the model.
STREAMS = {
    "resid_pre": ("hook_resid_pre", "the residual stream before the block"),
    "resid_mid": ("hook_resid_mid", "the residual stream between attention and the MLP"),
    "resid_post": ("hook_resid_post", "the residual stream after the block"),
    "mlp_out": ("hook_mlp_out", "what the MLP adds to the residual stream"),
    "attn_out": ("hook_attn_out", "what attention adds to the residual stream"),
}
INNER = {
    "mlp_in": ("mlp.hook_in", "the input of the MLP, after the norm and its gain"),
    "mlp_post": ("mlp.hook_post", "the hidden layer of the MLP, before its output projection"),
    "z": ("attn.hook_z", "the outputs of the attention heads, side by side, before the output projection"),
    "q": ("attn.hook_q", "the queries of the attention heads, side by side, before a norm or rotary embedding of them"),
    "k": ("attn.hook_k", "the keys of the attention heads, side by side, before a norm or rotary embedding of them"),
    "v": ("attn.hook_v", "the values of the attention heads, side by side"),
}
OUTER = {
    "embed": ("hook_embed", "the output of the embedding, which in most models is without positions"),
    "final": ("ln_final.hook_out", "the output of the last norm, which the unembedding reads"),
}
POINTS = STREAMS | INNER
HOOKS = (*POINTS, *OUTER)
IMPORTED, IMPORTED_ROWS = "imported", "imported rows"  # for the hook and the model of rows without a language model
HEADS = ("z", "q", "k", "v")  # hooks at which a single head can be read: the hook "z.3" is head 3
HEAD = r"[zqkv]\.\d{1,4}"
POINT = r"(?!blocks\.)(\w+\.)*hook_\w+"  # a hook point of TransformerLens within a block
STORE_DTYPES = ("float16", "bfloat16", "float32", "int8")
CONTROLS = ("random-weights",)
BOS = ("auto", "on", "off")
MODEL_DTYPES = ("auto", "float32", "bfloat16", "float16")
ADDED_LATER = {  # what a run did before it had these fields, which are no part of its name if they have these values
    "control": None,
    "bos": "auto",
    "text_column": None,
    "chat_roles": (),
    "special_tokens": False,
    "pack": False,
    "max_norm_ratio": 0.0,
    "model_dtype": "auto",
    "tokens": None,
    "rows": None,
    "hook_name": (),
    "generate": 0,
    "head": None,
    "stream": False,
    "ring_gb": 1.0,
    "sample_rows": 200_000,
}


def default_cache_dir() -> Path:
    return Path.home() / ".cache" / "sae-jax"


class Site(NamedTuple):
    """A layer and hook of the model at which activations are read.

    The hook is one of HOOKS, a single head such as z.3, or another point of TransformerLens within a block, such as
    ln1.hook_normalized.
    """

    layer: int
    hook: str

    @property
    def head(self) -> int | None:
        """The number of the single head that is read; None at other hooks."""
        return int(self.hook[2:]) if re.fullmatch(HEAD, self.hook) else None

    @property
    def heads(self) -> str:
        """The hook with all heads."""
        return self.hook if self.head is None else self.hook[0]

    @property
    def hook_name(self) -> str:
        """TransformerLens' name of the hook point."""
        if self.hook == IMPORTED:
            return IMPORTED
        if self.hook in OUTER:
            return OUTER[self.hook][0]
        return f"blocks.{self.layer}.{POINTS[self.heads][0] if self.heads in POINTS else self.hook}"

    @property
    def tensor(self) -> str:
        """The tensor that is read, in words."""
        words = (POINTS | OUTER).get(self.heads, ("", f"the value at TransformerLens' {self.hook}"))[1]
        return words if self.head is None else f"head {self.head} of {words}"

    def blocks_before(self, layers: int) -> int:
        """The number of blocks, of a model with so many, that run before this site."""
        return {"embed": 0, "final": layers, "resid_post": self.layer + 1}.get(self.hook, self.layer)

    @classmethod
    def named(cls, hook_name: str) -> Site | None:
        """The site of a hook point of TransformerLens, or None if the name is none of one."""
        if hook_name == IMPORTED:
            return cls(0, IMPORTED)
        if outer := next((hook for hook, (point, _) in OUTER.items() if point == hook_name), None):
            return cls(0, outer)
        found = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook_name)
        if not found or not re.fullmatch(POINT, found[2]):
            return None
        return cls(int(found[1]), next((hook for hook, (point, _) in POINTS.items() if point == found[2]), found[2]))


TWO_WINDOWS = Allowed(
    Integral,
    lambda v: 2 <= v < 2**31,
    "a whole number, at least 2 (one window to train on, one held out), and below 2147483648",
)
RATIO = Allowed(Real, lambda v: v == 0 or v > 1, "0, or a number over 1")
HOOK = Allowed(
    str,
    lambda v: v in (*HOOKS, IMPORTED) or re.fullmatch(f"{HEAD}|{POINT}", v) is not None,
    f"one of {', '.join(HOOKS)}, or a point of TransformerLens such as ln1.hook_normalized",
)
HOOK_NAME = Allowed(
    str, lambda v: Site.named(v) is not None, "a hook of TransformerLens, such as blocks.8.hook_resid_pre"
)
TOKENS = Allowed(Integral, lambda v: 1 <= v < 2**63, "a whole number, 1 or more, and below 9223372036854775808")


@dataclass(frozen=True)
class HarvestRequest(Flags):
    """The activations to harvest: the model, the sites and the text.

    `layer` and `hook` may be given as a plain int and str; they are stored as tuples. If `model_name` or `dataset` is
    None, the default is used (DEFAULT_MODEL, DEFAULT_DATASET). Only the defaults fall back to the bundled model and
    corpus if the hub cannot be reached. `tokens` are converted into `n_samples`. Raises InputError for invalid values.
    """

    model_name: str | None = flag(
        None,
        f"hub name, TransformerLens alias, local directory or 'bundled' (default: {DEFAULT_MODEL}; bundled if the hub "
        "is unreachable)",
        TEXT,
    )
    dataset: str | None = flag(
        None,
        f"hub data set, .txt, .jsonl, .jsonl.gz or .parquet file, folder of such files, or 'bundled' (default: "
        f"{DEFAULT_DATASET}; bundled if the hub is unreachable)",
        TEXT,
    )
    layer: tuple[int, ...] = flag((0,), "one or several layers of the model to read", NUMBER)
    hook: tuple[str, ...] = flag(("resid_pre",), "one or several points to read in each layer", HOOK, choices=HOOKS)
    hook_name: tuple[str, ...] = flag(
        (),
        "where to read by names of TransformerLens, such as blocks.8.hook_resid_pre, instead of --layer and --hook",
        HOOK_NAME,
    )
    head: int | None = flag(None, "with --hook z, q, k or v: read only this attention head", NUMBER)
    rows: str | None = flag(
        None, "train on the rows of this store, made by import-rows or a harvest, instead of a model and a text", TEXT
    )
    n_samples: int = flag(10000, "token windows to harvest, including held-out ones", TWO_WINDOWS)
    seq_len: int = flag(20, "tokens per window; a window never spans two documents unless they are packed", COUNT)
    tokens: int | None = flag(None, "tokens to harvest, such as 10M, instead of --n-samples", TOKENS)
    pack: bool = flag(
        False, "join the documents, so that short ones are not lost: windows go on over the token that separates them"
    )
    generate: int = flag(
        0,
        "let the model continue each window by this many tokens, drawn at temperature 1, and read only these",
        NUMBER,
    )
    held_out: float = flag(0.1, "share of the windows held out for evaluation, in whole documents", ABOVE_0)
    text_column: str | None = flag(
        None,
        "column of the data set that holds the text or the token ids, such as content, or meta.text within a column "
        "(default: text, input_ids, tokens or the only one with text)",
        TEXT,
    )
    keep_first_position: bool = flag(
        False,
        "also use the first position of each window, whose activation is an outlier in GPT-2 (see --max-norm-ratio)",
    )
    bos: str = flag(
        "auto",
        "run each window behind the token that begins a text (BOS), which is one of the --seq-len tokens but never a "
        "row; auto: if the tokenizer puts one there",
        choices=BOS,
    )
    chat_roles: tuple[str, ...] = flag(
        (), "in a data set of chats, the roles whose messages become rows, such as assistant (default: all)", TEXT
    )
    special_tokens: bool = flag(
        False, "also make rows of special tokens in the text, such as <|endoftext|>; otherwise windows end before them"
    )
    stream: bool = flag(
        False,
        "train while the model runs: rows pass through a ring of bounded size instead of a store of all rows; each "
        "epoch runs the model again",
    )
    ring_gb: float = flag(
        1.0, "with --stream: gigabytes of the ring, across which rows are shuffled, for all sites together", POSITIVE
    )
    sample_rows: int = flag(
        200_000,
        "with --stream: training rows, and at most as many held-out rows, that are kept with their text for analyses",
        COUNT,
    )
    max_norm_ratio: float = flag(
        10.0,
        "leave out rows whose norm is over this many times the median of their site, because a few of them (attention "
        "sinks) can hold most of the variance; 0 keeps all rows",
        RATIO,
    )
    store_dtype: str = flag(
        "float16",
        "number format of the rows on disk; rows that do not fit float16 are kept in bfloat16 if the model runs in it, "
        "otherwise in float32; int8: one scale per row",
        choices=STORE_DTYPES,
    )
    model_dtype: str = flag(
        "auto",
        "number format in which the model runs; auto: as published on an accelerator, float32 on a CPU",
        choices=MODEL_DTYPES,
    )
    control: str | None = flag(
        None,
        "harvest the same model with shuffled weights; results that it also shows do not come from learning",
        choices=CONTROLS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seq_len < 2 and not self.keep_first_position:
            raise InputError(f"--seq-len {self.seq_len}: must be at least 2")
        if self.hook_name:
            self._place_by_name()
        if self.head is not None:
            self._one_head()
        if len({Site(0, hook).heads for hook in self.hook}) < len(self.hook):
            raise InputError(f"--hook {' '.join(self.hook)}: train each head in a run of its own")
        if len(self.layer) > 1 and (outer := [hook for hook in self.hook if hook in OUTER]):
            raise InputError(f"--hook {outer[0]}: is in no layer: read it in a run with one --layer")
        if self.tokens is not None:
            object.__setattr__(self, "n_samples", self.tokens // self.seq_len)
            if not TWO_WINDOWS.fits(self.n_samples):
                raise InputError(f"--tokens {self.tokens}: must be 2 to 2147483647 windows of --seq-len {self.seq_len}")
            object.__setattr__(self, "tokens", None)  # the same request as that for as many windows

    def _place_by_name(self) -> None:
        """Convert `hook_name` into layers and hooks, which every layer must have in common."""
        if (self.layer, self.hook) != ((0,), ("resid_pre",)):
            raise InputError("--hook-name already gives the layer and the hook: leave --layer and --hook out")
        sites = [site for name in self.hook_name if (site := Site.named(name))]
        layers, hooks = (tuple(dict.fromkeys(part)) for part in zip(*sites, strict=True))
        if len(sites) < len(layers) * len(hooks):
            raise InputError(
                f"--hook-name {' '.join(self.hook_name)}: the layers have different hooks: give each hook its own run"
            )
        for name, value in {"layer": layers, "hook": hooks, "hook_name": ()}.items():
            object.__setattr__(self, name, value)  # the same request as by layers and hooks

    def _one_head(self) -> None:
        """Convert `head` into a part of the hooks."""
        if other := [hook for hook in self.hook if hook not in HEADS]:
            raise InputError(f"--head {self.head}: {other[0]} has no heads: use it with --hook {', '.join(HEADS)}")
        object.__setattr__(self, "hook", tuple(f"{hook}.{self.head}" for hook in self.hook))
        object.__setattr__(self, "head", None)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> HarvestRequest:
        """The request of a run, from its record, which lacks the fields of ADDED_LATER that have these values."""
        return cls(**(ADDED_LATER | dict(record)))

    def to_json(self) -> dict[str, Any]:
        """The fields, without those that have the value of ADDED_LATER."""
        return {name: value for name, value in asdict(self).items() if ADDED_LATER.get(name, ...) != value}

    @property
    def positions(self) -> int:
        """The number of positions of each window whose activations are harvested."""
        return self.seq_len - (not self.keep_first_position)

    @property
    def rows_per_window(self) -> int:
        """The number of rows of each window, if none is left out."""
        return self.generate or self.positions

    @property
    def training_windows(self) -> int:
        """The number of windows to train on: at least one, and not all, unless `held_out` is 1."""
        if self.held_out == 1:
            return 0
        return self.n_samples - min(max(1, round(self.n_samples * self.held_out_share)), self.n_samples - 1)

    @property
    def held_out_share(self) -> float:
        """The share of the windows that is held out: less than `held_out` if a stream keeps fewer."""
        return min(self.held_out, self.sample_windows / self.n_samples) if self.stream else self.held_out

    @property
    def sample_windows(self) -> int:
        """The number of windows whose rows a stream keeps, of each split at most."""
        return max(1, self.sample_rows // self.rows_per_window)

    @property
    def training_rows(self) -> int:
        """The number of rows to train on, for each site; fewer are harvested if the text is too short."""
        return self.training_windows * self.rows_per_window

    @property
    def sites(self) -> tuple[Site, ...]:
        """All sites: each hook of the first layer, then of the next layers."""
        return tuple(Site(layer, hook) for layer in self.layer for hook in self.hook)
