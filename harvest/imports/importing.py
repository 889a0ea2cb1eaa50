"""A store from rows that another program computed: of a language model, or of images, sounds or proteins.

Shapes: N rows, W windows (a row without a text is a window by itself), T rows per window, D width.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harvest.capture import SHARD_BYTES
from harvest.errors import InputError
from harvest.files import FILE_NAME, whole_directory
from harvest.flags import ABOVE_0, NUMBER, TEXT, Flags, as_arguments, flag
from harvest.imports.written_by_model import WrittenByModel
from harvest.messages import Progress, Say, ignore
from harvest.model_pass import norm_limit
from harvest.request import HOOKS, IMPORTED, IMPORTED_ROWS, RATIO, STORE_DTYPES, Site
from harvest.row_formats import BYTES
from harvest.store import SPLITS, ActivationStore
from harvest.store_writer import StoreWriter
from harvest.text.documents import Reading
from harvest.text.hashes import hashed


@dataclass(frozen=True)
class ImportSettings(Flags):
    """The settings of an import: how rows are stored, and which language model they come from, if any."""

    model_name: str | None = flag(
        None,
        "the language model that the rows and --tokens come from: hub name, TransformerLens alias, local directory or "
        "'bundled'; without it, rows are numbered, and analyses that need a text are refused",
        TEXT,
    )
    layer: int | None = flag(None, "with --model-name: the layer of the rows", NUMBER)
    hook: str | None = flag(None, "with --model-name: the point in the layer that the rows come from", choices=HOOKS)
    held_out: float = flag(0.1, "share of the documents whose rows are held out for evaluation", ABOVE_0)
    special_tokens: bool = flag(False, "with --model-name: also keep the rows of special tokens, except BOS")
    max_norm_ratio: float = flag(
        10.0,
        "leave out rows whose norm is over this many times the median of the first rows, because a few of them can "
        "hold most of the variance; 0 keeps all rows",
        RATIO,
    )
    store_dtype: str = flag("float16", "number format of the rows on disk, as in training", choices=STORE_DTYPES)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model_name is not None and (self.layer is None or self.hook is None):
            raise InputError("--model-name needs the place of the rows in the model: add --layer and --hook")
        if self.model_name is None and (self.layer is not None or self.hook is not None):
            raise InputError("--layer and --hook need the model that the rows come from: add --model-name")
        if self.held_out == 1:
            raise InputError("--held-out 1 leaves nothing to train on: give a value below 1")


@dataclass(frozen=True)
class Piece:
    """Rows that follow each other: [N, D], or whole windows [W, T, D] with the tokens [W, T] of a language model.

    `documents` are numbers [N] or [W] of what the rows belong to, such as an image; documents are held out whole. By
    default each entry of the first axis is a document.
    """

    rows: np.ndarray
    tokens: np.ndarray | None = None
    documents: np.ndarray | None = None


def store_of_rows(
    pieces: np.ndarray | Iterable[np.ndarray | Piece],
    to: Path | str,
    *,
    origin: str = "rows from Python",
    on_progress: Progress = ignore,
    say: Say = ignore,
    total: int = 0,
    **settings: Any,
) -> ActivationStore:
    """Write rows to a new store in the folder `to`, on which `train_population(rows=to)` trains.

    `pieces` are an array, or arrays or `Piece`s that are read one at a time. The settings are the fields of
    `ImportSettings`. The rows of a language model (`model_name`) are compared with those that the model gives. `total`
    is the number of entries, if known, for the progress. Raises InputError for rows that do not fit each other, that
    are not finite, or that are not those of the model; nothing is then left in `to`.
    """
    directory, asked = Path(to), ImportSettings(**settings)
    if not re.fullmatch(FILE_NAME, directory.absolute().name):
        raise InputError(f"--to {directory}: its name must have only letters, digits and any of _ + - .")
    given = iter([pieces] if isinstance(pieces, np.ndarray) else pieces)
    with whole_directory(directory.absolute()) as partial:
        _Import(partial, asked, origin, say).fill(given, lambda done: on_progress("import", done, max(done, total)))
    return ActivationStore(directory)


import_rows = as_arguments()(store_of_rows)  # for Python, where errors name arguments instead of flags


@dataclass
class _Import:
    """The state of one import: what is known of its rows, and those that wait for a full shard, by split."""

    directory: Path
    asked: ImportSettings
    origin: str
    say: Say
    entries: int = 0
    candidates: int = 0
    shape: tuple[int, ...] = ()
    max_norm: float | None = None
    model: WrittenByModel | None = None
    writer: StoreWriter | None = None
    waiting: dict[str, list[tuple[np.ndarray, ...]]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    shards: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    digest: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))

    def fill(self, pieces: Iterator[np.ndarray | Piece], advance: Any) -> None:
        for piece in pieces:
            rows_WxTxD, tokens_WxT, documents_W = self.windows_of(piece if isinstance(piece, Piece) else Piece(piece))
            if not len(rows_WxTxD):
                continue
            if not self.entries:
                rows_WxTxD, tokens_WxT = self.begin(rows_WxTxD, tokens_WxT)
            elif self.model:
                rows_WxTxD, tokens_WxT = self.model.without_bos(rows_WxTxD, tokens_WxT)
            self.entries += len(rows_WxTxD)
            self.sort(rows_WxTxD, tokens_WxT, documents_W)
            advance(self.entries)
        if self.writer is None:
            raise InputError("there are no rows to import: give at least two documents")
        for split, parts in self.waiting.items():
            if not parts and not self.shards[split]:
                raise InputError(
                    f"there are no {split} rows: {self.entries:,} documents are split by a hash of their numbers: "
                    f"give more of them, or a {'smaller' if split == 'train' else 'larger'} --held-out"
                )
            self.write(split)
        self.writer.description |= self.counted()
        self.writer.finish()

    def windows_of(self, piece: Piece) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(rows [W, T, D], tokens [W, T], documents [W]) of a piece. Without tokens, rows are numbered."""
        rows, tokens = np.asarray(piece.rows), piece.tokens
        if self.asked.model_name is not None:
            if tokens is None:
                raise InputError("--model-name needs the tokens of the rows: add --tokens, or leave --model-name out")
            tokens = np.asarray(tokens)
            if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
                raise InputError(
                    f"tokens of shape {list(tokens.shape)} ({tokens.dtype}): give whole numbers, windows × positions"
                )
            if rows.ndim == 2 and len(rows) == tokens.size:
                rows = rows.reshape(*tokens.shape, -1)
            if rows.shape[:2] != tokens.shape:
                raise InputError(
                    f"rows of shape {list(rows.shape)} do not fit tokens of shape {list(tokens.shape)}: each token "
                    "needs a row"
                )
        rows = rows[:, None] if rows.ndim == 2 else rows
        if rows.ndim != 3 or rows.dtype.kind not in "fV":
            raise InputError(
                f"rows of shape {list(rows.shape)} ({rows.dtype}): give floating-point numbers, rows × width or "
                "windows × positions × width"
            )
        if self.shape and rows.shape[1:] != self.shape:
            raise InputError(f"an entry has shape {list(rows.shape[1:])}, but those before it {list(self.shape)}")
        self.shape = rows.shape[1:]
        rows = rows.astype(np.float32)
        if not np.isfinite(rows).all():
            entry = int(np.flatnonzero(~np.isfinite(rows).all((1, 2)))[0]) + self.entries
            raise InputError(f"entry {entry:,} has a value that is not finite in float32: leave it out, or correct it")
        numbers_W = np.arange(self.entries, self.entries + len(rows))
        if tokens is None:
            if (self.entries + len(rows)) * rows.shape[1] >= 2**31:
                raise InputError("there are over 2147483647 rows: import them in several parts")
            tokens = numbers_W[:, None] * rows.shape[1] + np.arange(rows.shape[1])
        documents = numbers_W if piece.documents is None else np.asarray(piece.documents)
        if documents.shape != (len(rows),) or documents.dtype.kind not in "iu":
            raise InputError(
                f"documents of shape {list(documents.shape)} ({documents.dtype}): give a whole number for each of the "
                f"{len(rows):,} entries"
            )
        if len(documents) and not 0 <= documents.min() <= documents.max() < 2**31:
            raise InputError("the number of a document is below 0 or over 2147483647: number them from 0")
        return rows, tokens.astype(np.int32), documents.astype(np.int32)

    def begin(self, rows_WxTxD: np.ndarray, tokens_WxT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Learn from the first piece what all rows share, and compare it with the model. Returns it without BOS."""
        if self.asked.model_name is not None:
            assert self.asked.layer is not None and self.asked.hook is not None
            site = Site(self.asked.layer, self.asked.hook)
            self.model = WrittenByModel(self.asked.model_name, site, tokens_WxT, self.say)
            rows_WxTxD, tokens_WxT = self.model.without_bos(rows_WxTxD, tokens_WxT)
            self.model.refuse_others(rows_WxTxD, tokens_WxT)
        if ratio := self.asked.max_norm_ratio:
            median = float(np.median(np.linalg.norm(rows_WxTxD, axis=-1)))
            self.max_norm = norm_limit(ratio, median) or None  # rows of zeros have no norm to compare with
        self.writer = StoreWriter(self.directory, {"dtype": self.asked.store_dtype, "hook_name": self.origin})
        return rows_WxTxD, tokens_WxT

    def sort(self, rows_WxTxD: np.ndarray, tokens_WxT: np.ndarray, documents_W: np.ndarray) -> None:
        """Divide windows among the splits by a hash of their documents, and write shards that are full."""
        kept_WxT = np.ones(tokens_WxT.shape, bool)
        if self.model and not self.asked.special_tokens:
            kept_WxT &= ~np.isin(tokens_WxT, self.model.special)
        self.candidates += int(kept_WxT.sum())
        if self.max_norm:
            kept_WxT &= ~(np.linalg.norm(rows_WxTxD, axis=-1) > self.max_norm)
        is_held_out_W = hashed(documents_W.astype(np.uint64)) / 2.0**64 < self.asked.held_out
        for split, here_W in zip(SPLITS, (~is_held_out_W, is_held_out_W), strict=True):
            if not here_W.any():
                continue
            self.waiting[split].append(tuple(a[here_W] for a in (rows_WxTxD, tokens_WxT, documents_W, kept_WxT)))
            if sum(map(len, (part[0] for part in self.waiting[split]))) >= self.shard_windows(rows_WxTxD.shape):
                self.write(split)

    def shard_windows(self, shape: tuple[int, ...]) -> int:
        return max(1, SHARD_BYTES // (shape[1] * shape[2] * BYTES[self.asked.store_dtype]))

    def write(self, split: str) -> None:
        """Write the waiting windows of a split as a shard."""
        if not self.waiting[split]:
            return
        rows, tokens, documents, kept = (np.concatenate(arrays) for arrays in zip(*self.waiting[split], strict=True))
        self.waiting[split] = []
        assert self.writer is not None
        others = {} if kept.all() else {"kept": kept}
        self.writer.add_shard(split, self.shards[split], rows[kept], tokens, documents, **others)
        self.shards[split] += 1
        for array in (tokens, documents, kept):
            self.digest.update(f"{split} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())

    def counted(self) -> dict[str, Any]:
        """The facts for the manifest that are known at the end."""
        numbered = {"asked": IMPORTED_ROWS, "location": IMPORTED_ROWS, "fell_back": False, "fingerprint": ""}
        none = "the rows were imported without a language model"
        facts: dict[str, Any] = {
            "model": numbered,
            "weights_hash": IMPORTED,
            "tokenizer_hash": IMPORTED,
            "hook": IMPORTED,
            "hook_name": IMPORTED,
            "layer": 0,
            "tensor": IMPORTED_ROWS,
            "no_loss_recovered": none,
        }
        length, width = self.shape
        if self.model:
            facts = self.model.facts()
            length -= len(self.model.language_model.bos)
        return {
            **facts,
            "dataset": {"asked": self.origin, "location": self.origin, "fell_back": False, "fingerprint": ""},
            "windows_hash": self.digest.hexdigest(),
            "seq_len": length,
            "keep_first_position": True,
            "d_model": width,
            "n_samples": self.entries,
            "n_samples_got": self.entries,
            "held_out": self.asked.held_out,
            "text": asdict(Reading()),
            "versions": {"numpy": np.__version__},
            **({"max_norm": self.max_norm, "candidate_rows": self.candidates} if self.max_norm else {}),
        }
